//! The words of refusals: the contract's messages to the letter, SQLSTATE, DETAIL with rule and object, HINT with the remedy,
//! position. It must not decide whether something passes; it says why it does not.

use pg_query::protobuf as pb;

use super::rewrite;
use crate::classify::{Access, Attribute, AttributeOf, Exposed, Facts, Location, Name, Refusal, Use};
use crate::document::{DefineObject, RolePolicy, Selection, TableRule};
use crate::rule::Rule;
use crate::scan::{COMMENT_DEPTH_MAX, DEPTH_MAX, NAME_BYTES_MAX, TooMuch};
use crate::verdict::{Denial, Kind, Surface};
use crate::{RESERVED_PREFIX, SQL_BYTES_MAX};

/// The longest part of an object's name that is shown, in characters.
const SHOWN_MAX: usize = 200;

/// The most targets that a hint lists.
const TARGETS_SHOWN_MAX: usize = 8;

/// Says no, for one role and one text.
pub(super) struct Refuse<'a> {
    pub(super) role: &'a RolePolicy,
    pub(super) text: &'a str,
}

/// The 1-based position in characters of a byte offset, as PostgreSQL counts.
pub(super) fn position(text: &str, location: Location) -> Option<u32> {
    let before = text.get(..usize::try_from(location).ok()?)?;
    u32::try_from(before.chars().count() + 1).ok()
}

fn denial(sqlstate: &'static str, rule: Rule, message: String, why: &str, hint: &str) -> Box<Denial> {
    let detail = format!("Rule {rule}: {why}.");
    Box::new(Denial { sqlstate, message, rule, object: None, detail, hint: hint.to_owned(), position: None })
}

pub(super) fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(SHOWN_MAX).collect()
}

pub(super) fn too_long(bytes: usize) -> Box<Denial> {
    let why = format!("the text has {bytes} bytes, {SQL_BYTES_MAX} are allowed");
    let hint = "Send fewer rows per statement, bind parameters, or use COPY … FROM STDIN.";
    denial("54000", Rule::TextTooLong, "statement is too long".to_owned(), &why, hint)
}

pub(super) fn not_utf8(text: &[u8], error: &std::str::Utf8Error) -> Box<Denial> {
    let byte = text.get(error.valid_up_to()).copied().unwrap_or(0);
    let message = format!("invalid byte sequence for encoding \"UTF8\": 0x{byte:02x}");
    let why = "only UTF-8 text is judged";
    let mut denial = denial("22021", Rule::TextNotUtf8, message, why, "Set client_encoding to UTF8 and send UTF-8.");
    let before = text.get(..error.valid_up_to()).and_then(|before| std::str::from_utf8(before).ok());
    denial.position = before.and_then(|before| u32::try_from(before.chars().count() + 1).ok());
    denial
}

pub(super) fn zero_byte(text: &str, at: usize) -> Box<Denial> {
    let message = "invalid byte sequence for encoding \"UTF8\": 0x00".to_owned();
    let mut denial =
        denial("22021", Rule::TextZeroByte, message, "the text contains a zero byte", "Remove the zero byte.");
    denial.position = i32::try_from(at).ok().and_then(|at| position(text, at));
    denial
}

pub(super) fn too_much(text: &str, too_much: TooMuch) -> Box<Denial> {
    let (sqlstate, rule, message, why, hint, at) = match too_much {
        TooMuch::Size(at) => (
            "54000",
            Rule::TextTooLarge,
            "statement is too complex",
            "it consists of too many names and values".to_owned(),
            "Send fewer rows per statement, bind parameters, or use COPY … FROM STDIN.",
            at,
        ),
        TooMuch::Tree(at) => (
            "54001",
            Rule::TextTooDeep,
            "statement is too complex",
            format!("expressions may be nested or chained at most {DEPTH_MAX} deep"),
            "Use lists, VALUES, ANY(array) or several statements instead of long chains of operators.",
            at,
        ),
        TooMuch::Comment(at) => (
            "54001",
            Rule::TextCommentDepth,
            "comments are nested too deeply",
            format!("comments may be nested at most {COMMENT_DEPTH_MAX} deep"),
            "Take comments out of comments.",
            at,
        ),
    };
    let mut denial = denial(sqlstate, rule, message.to_owned(), &why, hint);
    denial.position = i32::try_from(at).ok().and_then(|at| position(text, at));
    denial
}

impl Refuse<'_> {
    pub(super) fn located(&self, mut denial: Box<Denial>, location: Location) -> Box<Denial> {
        denial.position = position(self.text, location);
        denial
    }

    fn named(&self, mut denial: Box<Denial>, object: &str, location: Location) -> Box<Denial> {
        denial.object = Some(shown(object));
        self.located(denial, location)
    }

    /// What a login of this kind can do instead of a statement that does not pass.
    fn general_hint(&self) -> String {
        match self.role.own_schema() {
            Some(schema) => format!(
                "Make the query read-only (SELECT, EXPLAIN, WITH), or write to tables named exactly {schema}.<table>."
            ),
            None => "Make the query read-only (SELECT, EXPLAIN, WITH): this login does not write.".to_owned(),
        }
    }

    /// The advice for a kind of statement that does not pass, and the general one.
    fn instead_of(&self, kind: &str) -> String {
        let general = self.general_hint();
        match advice(kind, self.role.may_write()) {
            "" => general,
            advice => format!("{advice} {general}"),
        }
    }

    pub(super) fn empty(&self) -> Box<Denial> {
        let message = "the statement is empty".to_owned();
        denial("42601", Rule::StatementEmpty, message, "exactly one statement is expected", "Send one SQL statement.")
    }

    /// How many statements a surface takes at all.
    pub(super) fn count(&self, surface: Surface, statements: &[pb::RawStmt]) -> Result<(), Box<Denial>> {
        match (surface, statements.len()) {
            (Surface::SimpleQuery, _) | (Surface::Parse, 0 | 1) | (Surface::Http, 1) => Ok(()),
            (Surface::Http, 0) => Err(self.empty()),
            (Surface::Parse, _) => {
                let message = "cannot insert multiple commands into a prepared statement".to_owned();
                let why = "one statement per prepared statement";
                let denial =
                    denial("42601", Rule::StatementMultiple, message, why, "Prepare each statement by itself.");
                let second = self.second(statements);
                Err(self.named(denial, &self.command_at(second), second))
            }
            (Surface::Http, count) => Err(self.several(count, self.second(statements))),
        }
    }

    fn second(&self, statements: &[pb::RawStmt]) -> Location {
        statements.get(1).map_or(-1, |second| super::start_of(self.text, second))
    }

    /// The first word of the statement that starts there.
    fn command_at(&self, location: Location) -> String {
        let rest = usize::try_from(location).ok().and_then(|at| self.text.get(at..)).unwrap_or("");
        let word: String = rest.chars().take_while(char::is_ascii_alphabetic).collect();
        word.to_ascii_uppercase()
    }

    fn several(&self, count: usize, location: Location) -> Box<Denial> {
        let message = "Only one statement at a time is supported.".to_owned();
        let why = format!("the text contains {count} statements that work");
        let hint = "Send each statement by itself; BEGIN, COMMIT, SET and cursor commands may stand around one.";
        self.named(denial("42501", Rule::StatementMultiple, message, &why, hint), &self.command_at(location), location)
    }

    /// The rules over all statements of a text together.
    pub(super) fn batch(&self, surface: Surface, all: &[Facts<'_>]) -> Result<(), Box<Denial>> {
        if surface == Surface::Http
            && let Some(facts) = all.iter().find(|facts| !super::rules::stands_alone(facts))
        {
            let why = "over HTTP there is no session for it to act on";
            let hint =
                "Connect with a connection URI for transactions, settings, cursors, prepared statements and COPY.";
            return Err(self.kind(facts.kind, Rule::StatementNeedsSession, why, hint, facts.location));
        }
        if let Some(facts) = all.iter().find(|facts| facts.resets_authorization) {
            let only_resets = all.len() > 1 && all.iter().all(super::rules::resets);
            if !only_resets {
                return Err(self.setting_kind("session_authorization", facts.location));
            }
        }
        let working: Vec<&Facts<'_>> = all.iter().filter(|facts| super::rules::works(facts)).collect();
        match working.as_slice() {
            [_, second, ..] if !self.role.batches_each => Err(self.several(working.len(), second.location)),
            _ => Ok(()),
        }
    }

    fn setting_kind(&self, name: &str, location: Location) -> Box<Denial> {
        match crate::settings::value_allowed(self.role, name, None) {
            Err(denial) => self.located(denial, location),
            Ok(()) => self.kind(Kind::Other("SET"), Rule::StatementNotAllowed, "it does not pass", "", location),
        }
    }

    /// A refusal that the walk itself made, in the statement that starts at `start`.
    pub(super) fn classified(&self, refusal: Refusal, start: Location) -> Box<Denial> {
        let Refusal { rule, object, why, hint, location } = refusal;
        let location = match rule {
            // The parser gives no place for most clauses: they are where their first word is.
            Rule::ClauseNotAllowed if location == start => self.clause(&object, start),
            _ => location,
        };
        let hint = match rule {
            Rule::StatementNotAllowed => self.instead_of(&object),
            _ => hint.to_owned(),
        };
        let why = shown(&why);
        self.named(denial("42501", rule, self.role.message_kind.clone(), &why, &hint), &object, location)
    }

    fn clause(&self, object: &str, start: Location) -> Location {
        let word = object.split(' ').next().unwrap_or("").to_ascii_lowercase();
        rewrite::find(self.text, start, 0, &Name { database: "", schema: "", name: &word }).unwrap_or(start)
    }

    /// The message about kinds (D33).
    pub(super) fn kind(&self, kind: Kind, rule: Rule, why: &str, hint: &str, location: Location) -> Box<Denial> {
        let hint = if hint.is_empty() { self.instead_of(kind.name()) } else { hint.to_owned() };
        let why = format!("{kind}: {why}");
        self.named(denial("42501", rule, self.role.message_kind.clone(), &why, &hint), kind.name(), location)
    }

    /// A target where the login may not do this, with the remedy: the statement rewritten where that is one; the message
    /// about targets (D34) for the kinds that D31 lists, else the one about kinds.
    pub(super) fn target(&self, facts: &Facts<'_>, used: &Use<'_>, rule: Rule) -> Box<Denial> {
        let Use { name, access, .. } = used;
        let (kind, access) = (facts.kind, *access);
        let shown_name = shown(&name.to_string());
        let why = match rule {
            _ if access == Access::DefineTemporary && kind == Kind::RefreshMaterializedView => {
                format!("{kind}: CONCURRENTLY works through a temporary table, which this login may not make")
            }
            Rule::TargetUnqualified if access == Access::Sequence => {
                format!("{kind}: sequence {shown_name} is not schema-qualified")
            }
            Rule::TargetUnqualified => format!("{kind}: target {shown_name} is not schema-qualified"),
            Rule::TargetTemporary => format!("{kind}: {shown_name} would be a temporary table"),
            _ => format!(
                "{kind}: {} {shown_name} is not in a schema that this login may {}",
                thing(access),
                verb(access)
            ),
        };
        let hint = self.remedy(facts, used, rule);
        let message = if contract_lists(kind, access) { &self.role.message_target } else { &self.role.message_kind };
        let object = name.to_string();
        self.named(denial("42501", rule, message.clone(), &why, &hint), &object, self.place(facts, used))
    }

    /// Where a use stands; the statement's start where that is not known.
    pub(super) fn place(&self, facts: &Facts<'_>, used: &Use<'_>) -> Location {
        if used.location >= 0 {
            return used.location;
        }
        let words = match facts.kind {
            Kind::Comment => "COMMENT ON TABLE",
            kind => kind.name(),
        };
        let found = rewrite::find(self.text, facts.location, words.split(' ').count(), &used.name);
        found.unwrap_or(facts.location)
    }

    /// Where a cursor, prepared statement or savepoint is named.
    pub(super) fn place_of_session_name(&self, facts: &Facts<'_>, name: &str) -> Location {
        let name = Name { database: "", schema: "", name };
        rewrite::find(self.text, facts.location, 1, &name).unwrap_or(facts.location)
    }

    /// What to do instead of using a target in this way.
    fn remedy(&self, facts: &Facts<'_>, used: &Use<'_>, rule: Rule) -> String {
        let Use { name, access, .. } = used;
        if *access == Access::DefineTemporary && facts.kind == Kind::RefreshMaterializedView {
            return "Leave CONCURRENTLY out.".to_owned();
        }
        let Some(schema) = self.schema_for(*access) else { return self.no_schema(used) };
        let own = format!("{}.{}", quoted(schema), quoted(name.name));
        match access {
            Access::Sequence => {
                format!("Name a sequence of your own, with its schema: '{own}'.")
            }
            Access::LockRows if rule == Rule::TargetSchema => {
                format!("Leave FOR UPDATE or FOR SHARE out, or lock rows of a table of your own ({own}).")
            }
            Access::LockTable if rule == Rule::TargetSchema => {
                format!("Lock a table of your own ({own}), or use IN ACCESS SHARE MODE.")
            }
            Access::Reference if rule == Rule::TargetSchema => {
                format!("Refer to a table of your own ({own}), or leave the reference out.")
            }
            Access::Truncate if rule == Rule::TargetSchema && self.role.write.contains(name.schema) => {
                format!("Use DELETE FROM {}.{}.", quoted(name.schema), quoted(name.name))
            }
            Access::DefineTemporary => {
                format!("Create {own} without TEMPORARY and drop it afterwards, or use WITH.")
            }
            _ if rule == Rule::TargetUnqualified => self.rewritten(facts, schema, &own),
            _ => format!("Rewrite the target as {own}, or make the query read-only."),
        }
    }

    /// The first schema of the role that takes this access, those for own objects first.
    fn schema_for(&self, access: Access) -> Option<&str> {
        let role = self.role;
        let takes = match access {
            Access::Write | Access::LockRows => &role.write,
            Access::Truncate => &role.truncate,
            Access::Read => &role.read,
            Access::Define(object) if !role.define_objects.contains(&object) => return None,
            Access::Define(_) | Access::DefineTemporary | Access::LockTable | Access::Reference | Access::Sequence => {
                &role.define
            }
        };
        takes.intersection(&role.define).chain(takes).next().map(String::as_str)
    }

    fn no_schema(&self, used: &Use<'_>) -> String {
        match used.access {
            Access::LockRows => return "Leave FOR UPDATE or FOR SHARE out; this login locks no rows.".to_owned(),
            Access::LockTable => return "Use IN ACCESS SHARE MODE, or leave LOCK out.".to_owned(),
            _ => {}
        }
        if !self.role.may_write() {
            return "This login only reads; use one that may write.".to_owned();
        }
        match used.access {
            Access::Truncate => "This login does not truncate; use DELETE.".to_owned(),
            Access::Sequence => "This login does not use sequences by name.".to_owned(),
            _ => "This login does not define objects; use one that may.".to_owned(),
        }
    }

    /// The hint for a target without a schema: the name to write, and the whole statement with all its targets qualified.
    fn rewritten(&self, facts: &Facts<'_>, schema: &str, own: &str) -> String {
        let missing = |used: &&Use<'_>| !used.name.is_qualified();
        let changed = |used: &&Use<'_>| !matches!(used.access, Access::Read | Access::Sequence);
        let mut names: Vec<&str> = Vec::new();
        for used in facts.uses.iter().filter(missing).filter(changed) {
            if !names.contains(&used.name.name) {
                names.push(used.name.name);
            }
        }
        // What is read under the name of a target is that target.
        let mut targets: Vec<(Location, &str)> = facts
            .uses
            .iter()
            .filter(missing)
            .filter(|used| used.access != Access::Sequence && names.contains(&used.name.name))
            .map(|used| (self.place(facts, used), used.name.name))
            .collect();
        targets.sort_unstable();
        targets.dedup();
        let quoted_schema = quoted(schema);
        let shown_names: Vec<String> =
            names.iter().take(TARGETS_SHOWN_MAX).map(|name| format!("{quoted_schema}.{}", quoted(name))).collect();
        let advice = match shown_names.as_slice() {
            [] | [_] => format!("Rewrite the target as {own}, or make the query read-only."),
            several => format!("Rewrite the targets as {}, or make the query read-only.", several.join(", ")),
        };
        match rewrite::qualified(self.text, facts.location, &targets, &quoted_schema) {
            Some(statement) => format!("{advice} For example: {statement}"),
            None => advice,
        }
    }

    pub(super) fn unreadable(&self, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("permission denied for schema {}", shown(name.schema));
        let why = format!("schema {} is not among those that this login reads", shown(name.schema));
        let hint = format!("This login reads {} and pg_catalog.", self.role.readable_schemas().join(", "));
        self.named(denial("42501", Rule::RelationNotReadable, message, &why, &hint), &name.to_string(), location)
    }

    /// A column, a row or new names for columns, of a table of which the login reads some columns only.
    pub(super) fn closed_column(&self, rule: &TableRule, what: Exposed<'_>, location: Location) -> Box<Denial> {
        let table = format!("{}.{}", rule.schema, rule.table);
        if rule.read.is_none() {
            return self.closed_table(rule, location);
        }
        let (object, why) = match what {
            Exposed::Column(column) => (
                format!("{table}.{column}"),
                format!("it may be column {column} of {table}, which this login does not read"),
            ),
            Exposed::Row => (
                table.clone(),
                format!("this means whole rows of {table}, of which this login does not read every column"),
            ),
            Exposed::Renamed => {
                (table.clone(), format!("columns of {table} that get other names cannot be told apart"))
            }
        };
        let hint = match &rule.read {
            Selection::Only(names) => format!(
                "Name columns one by one, with the table in front; of {table} this login reads {}.",
                listed(names)
            ),
            Selection::Except(names) => format!(
                "Name columns one by one, with the table in front; of {table} this login reads all but {}.",
                listed(names)
            ),
            Selection::All => String::new(),
        };
        let message = format!("permission denied for table {}", shown(&rule.table));
        self.named(denial("42501", Rule::ColumnNotReadable, message, &why, &hint), &object, location)
    }

    /// A table that the policy keeps from a login which reads others of its schema.
    pub(super) fn closed_table(&self, rule: &TableRule, location: Location) -> Box<Denial> {
        let table = format!("{}.{}", rule.schema, rule.table);
        let message = format!("permission denied for table {}", shown(&rule.table));
        let why = format!("{table} is not among the tables that this login reads");
        let hint = "Leave the table out; with a schema in front, another table of this name can be read.";
        self.named(denial("42501", Rule::RelationNotReadable, message, &why, hint), &table, location)
    }

    /// A view of PostgreSQL's that shows values of columns.
    pub(super) fn samples(&self, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("permission denied for view {}", name.name);
        let why = format!("{} shows values of columns, and this login does not read every column", name.name);
        let hint = "Compute what you need from the columns that this login reads.";
        self.named(denial("42501", Rule::CatalogNotReadable, message, &why, hint), name.name, location)
    }

    /// A table that the policy keeps from writes.
    pub(super) fn closed_target(&self, kind: Kind, rule: &TableRule, location: Location) -> Box<Denial> {
        let table = format!("{}.{}", rule.schema, rule.table);
        let why = format!("{kind}: {table} is not among the tables that this login writes");
        let hint = self.general_hint();
        self.named(denial("42501", Rule::TargetTable, self.role.message_target.clone(), &why, &hint), &table, location)
    }

    /// A column, or whole rows, of a table of which the login writes some columns only.
    pub(super) fn closed_write(
        &self,
        kind: Kind,
        rule: &TableRule,
        column: Option<&str>,
        location: Location,
    ) -> Box<Denial> {
        let table = format!("{}.{}", rule.schema, rule.table);
        let (object, why) = match column {
            Some(column) => {
                (format!("{table}.{column}"), format!("{kind}: this login does not write column {column} of {table}"))
            }
            None => (table.clone(), format!("{kind}: whole rows of {table} are not this login's to write")),
        };
        let hint = match &rule.write {
            Selection::Only(names) => {
                format!("INSERT with a list of columns, or UPDATE; of {table} this login writes {}.", listed(names))
            }
            Selection::Except(names) => format!(
                "INSERT with a list of columns, or UPDATE; of {table} this login writes all but {}.",
                listed(names)
            ),
            Selection::All => String::new(),
        };
        let message = format!("permission denied for table {}", shown(&rule.table));
        self.named(denial("42501", Rule::ColumnNotWritable, message, &why, &hint), &object, location)
    }

    pub(super) fn secret_catalog(&self, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("permission denied for table {}", name.name);
        let why = format!("{} tells of others than this workspace", name.name);
        let hint = "Use information_schema, or pg_catalog's views about your own tables.";
        self.named(denial("42501", Rule::CatalogNotReadable, message, &why, hint), name.name, location)
    }

    pub(super) fn other_database(&self, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("cross-database references are not implemented: \"{}\"", shown(&name.to_string()));
        let why = "a name may begin with this workspace's database only";
        let hint = "Write schema.name, without a database.";
        self.named(denial("0A000", Rule::NameDatabase, message, why, hint), &name.to_string(), location)
    }

    pub(super) fn name_too_long(&self, name: &str, location: Location) -> Box<Denial> {
        let message = "identifier is too long".to_owned();
        let why =
            format!("names of objects may have at most {NAME_BYTES_MAX} bytes; PostgreSQL would cut this one off");
        self.named(denial("42622", Rule::NameTooLong, message, &why, "Use the name as it is stored."), name, location)
    }

    pub(super) fn reserved_name(&self, name: &str, location: Location) -> Box<Denial> {
        let message = format!("name \"{}\" is reserved", shown(name));
        let why = format!("names that start with {RESERVED_PREFIX} belong to the proxy");
        self.named(denial("42939", Rule::NameReserved, message, &why, "Choose another name."), name, location)
    }

    /// `x.name`, which may call the function `name`; one-part names never do.
    pub(super) fn attribute(&self, attribute: &Attribute<'_>) -> Box<Denial> {
        let name = shown(attribute.name);
        let column = quoted(&name);
        let (why, hint) = match attribute.of {
            AttributeOf::Alias(alias) => (
                format!("{}.{name} calls function {name} where {0} has no column of that name", shown(alias)),
                format!(
                    "For a column of that name write {column} without the table's name, or rename it in a subquery: \
                     (SELECT {column} AS a FROM …) x, then x.a."
                ),
            ),
            AttributeOf::Table => (
                format!("schema.table.{name} calls function {name} where the table has no column of that name"),
                format!("For a column of that name write {column} without the table's name."),
            ),
            AttributeOf::Value => (
                format!("(…).{name} calls function {name} where the value has no field of that name"),
                format!(
                    "For a field of that name take all fields out first: FROM …, LATERAL (SELECT (…).*) f, and write \
                     {column} alone."
                ),
            ),
        };
        self.function(&name, &why, &hint, attribute.location)
    }

    pub(super) fn function(&self, name: &str, why: &str, hint: &str, location: Location) -> Box<Denial> {
        let message = format!("permission denied for function {}", shown(name));
        self.named(denial("42501", Rule::FunctionNotAllowed, message, &shown(why), hint), name, location)
    }

    pub(super) fn other_name(&self, what: &str, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("permission denied for schema {}", shown(name.schema));
        let why = format!("{what} {} is in a schema that this login does not read", shown(&name.to_string()));
        let hint = "Leave the schema out for PostgreSQL's own.";
        self.named(denial("42501", Rule::NameSchema, message, &why, hint), &name.to_string(), location)
    }
}

/// What people want who send a kind of statement that does not pass, and how they get it.
fn advice(kind: &str, writes: bool) -> &'static str {
    match kind {
        "CREATE VIEW" | "CREATE MATERIALIZED VIEW" if !writes => "Name the query with WITH.",
        "REINDEX" | "CREATE TRIGGER" | "CREATE RULE" | "CREATE TYPE" | "CREATE DOMAIN" | "COPY FROM" if !writes => "",
        "GRANT" | "REVOKE" | "ALTER DEFAULT PRIVILEGES" => {
            "Rights come with the login's kind; use a login of another kind."
        }
        "CREATE ROLE" | "ALTER ROLE" | "DROP ROLE" | "DROP OWNED" | "REASSIGN OWNED" => {
            "Logins and their passwords are managed over the HTTP API."
        }
        "CREATE DATABASE" | "ALTER DATABASE" | "DROP DATABASE" => "Workspaces are managed over the HTTP API.",
        "CREATE SCHEMA" | "DROP SCHEMA" => "The schemas of a workspace are fixed.",
        "CREATE EXTENSION" | "ALTER EXTENSION" | "DROP EXTENSION" => "Extensions are the operator's to install.",
        "ANALYZE" if writes => "Name the tables: ANALYZE schema.table. The server also does this by itself.",
        "VACUUM" | "ANALYZE" | "CLUSTER" | "CHECKPOINT" => "The server does this by itself.",
        "REINDEX" => "Drop the index and create it again.",
        "DO" | "CALL" | "CREATE FUNCTION" | "CREATE PROCEDURE" => "Send the statements themselves, one at a time.",
        "CREATE TRIGGER" | "CREATE RULE" => "Use defaults, checks and generated columns.",
        "CREATE POLICY" | "ALTER POLICY" => "Filter rows in the query.",
        "CREATE VIEW" | "CREATE MATERIALIZED VIEW" => "Name the query with WITH, or keep its result in a table.",
        "CREATE TYPE" | "CREATE DOMAIN" => "Use a built-in type with a CHECK constraint.",
        "PREPARE TRANSACTION" | "COMMIT PREPARED" | "ROLLBACK PREPARED" => "Use BEGIN and COMMIT.",
        "COPY FROM" => "Use INSERT.",
        "COPY TO" => "Use SELECT.",
        "CREATE FOREIGN TABLE" | "FOREIGN DATA WRAPPER" | "SERVER" | "USER MAPPING" | "IMPORT FOREIGN SCHEMA" => {
            "Load data with COPY … FROM STDIN."
        }
        _ => "",
    }
}

/// Names for a hint, bounded.
fn listed(names: &std::collections::BTreeSet<String>) -> String {
    const MOST: usize = 20;
    let mut text = names.iter().take(MOST).map(|name| shown(name)).collect::<Vec<_>>().join(", ");
    if names.len() > MOST {
        text.push_str(", …");
    }
    text
}

/// Whether the contract lists the kind for own tables (D31); a write inside WITH, EXPLAIN or PREPARE counts for itself.
fn contract_lists(kind: Kind, access: Access) -> bool {
    let other = matches!(
        kind,
        Kind::Merge
            | Kind::CopyIn
            | Kind::Lock
            | Kind::Comment
            | Kind::AlterIndex
            | Kind::DropIndex
            | Kind::CreateSequence
            | Kind::AlterSequence
            | Kind::DropSequence
    );
    match access {
        Access::Write | Access::Truncate | Access::Reference | Access::Sequence | Access::DefineTemporary => !other,
        Access::Define(object) => !other && matches!(object, DefineObject::Table | DefineObject::Index),
        Access::Read | Access::LockRows | Access::LockTable => false,
    }
}

/// A name as it can be written, in quotes where it needs them.
fn quoted(name: &str) -> String {
    let name = shown(name);
    if is_plain_name(&name) { name } else { crate::settings::quote_identifier(&name) }
}

/// Whether a name needs no quotes; keywords are not looked at, a quoted one is right as well.
fn is_plain_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
        && !name.starts_with(|first: char| first.is_ascii_digit())
}

fn thing(access: Access) -> &'static str {
    match access {
        Access::Sequence => "sequence",
        Access::Define(_) => "object",
        _ => "table",
    }
}

fn verb(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::LockRows | Access::LockTable => "lock",
        Access::Truncate => "truncate",
        Access::Reference => "refer to in definitions",
        Access::Define(_) | Access::DefineTemporary => "define in",
        Access::Sequence => "use sequences of",
    }
}
