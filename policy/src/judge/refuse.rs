//! The words of refusals: the contract's messages to the letter, SQLSTATE, DETAIL with rule and object, HINT with the remedy,
//! position. It must not decide whether something passes; it says why it does not.

use pg_query::protobuf as pb;

use crate::classify::{Access, Facts, Location, Name, Refusal};
use crate::document::{DefineObject, RolePolicy};
use crate::rule::Rule;
use crate::scan::{COMMENT_DEPTH_MAX, DEPTH_MAX, NAME_BYTES_MAX, TooMuch};
use crate::verdict::{Denial, Kind, Surface};
use crate::{RESERVED_PREFIX, SQL_BYTES_MAX};

/// The longest part of an object's name that is shown, in characters.
const SHOWN_MAX: usize = 200;

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

fn shown(name: &str) -> String {
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
                Err(denial("42601", Rule::StatementMultiple, message, why, "Prepare each statement by itself."))
            }
            (Surface::Http, count) => {
                Err(self.several(count, statements.get(1).map_or(-1, |second| second.stmt_location)))
            }
        }
    }

    fn several(&self, count: usize, location: Location) -> Box<Denial> {
        let message = "Only one statement at a time is supported.".to_owned();
        let why = format!("the text contains {count} statements that work");
        let hint = "Send each statement by itself; BEGIN, COMMIT, SET and cursor commands may stand around one.";
        self.located(denial("42501", Rule::StatementMultiple, message, &why, hint), location)
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

    /// A refusal that the walk itself made.
    pub(super) fn classified(&self, refusal: Refusal) -> Box<Denial> {
        let Refusal { rule, object, why, hint, location } = refusal;
        let hint = if hint.is_empty() { self.general_hint() } else { hint.to_owned() };
        self.named(denial("42501", rule, self.role.message_kind.clone(), &why, &hint), &object, location)
    }

    /// The message about kinds (D33).
    pub(super) fn kind(&self, kind: Kind, rule: Rule, why: &str, hint: &str, location: Location) -> Box<Denial> {
        let hint = if hint.is_empty() { self.general_hint() } else { hint.to_owned() };
        let why = format!("{kind}: {why}");
        self.named(denial("42501", rule, self.role.message_kind.clone(), &why, &hint), kind.name(), location)
    }

    /// A target where the login may not do this, rewritten in the hint; the message about targets (D34) for the kinds that
    /// the contract lists, else the one about kinds (D33).
    pub(super) fn target(
        &self,
        kind: Kind,
        name: &Name<'_>,
        access: Access,
        rule: Rule,
        location: Location,
    ) -> Box<Denial> {
        let why = match rule {
            Rule::TargetUnqualified => format!("{kind}: target {name} is not schema-qualified"),
            Rule::TargetTemporary => format!("{kind}: {name} would be a temporary table"),
            _ => format!("{kind}: {} {name} is not in a schema that this login may {}", thing(access), verb(access)),
        };
        let hint = match self.role.own_schema() {
            Some(schema) => {
                let table = if is_plain_name(name.name) {
                    name.name.to_owned()
                } else {
                    crate::settings::quote_identifier(name.name)
                };
                format!("Rewrite the target as {schema}.{table}, or make the query read-only.")
            }
            None => "This login only reads; use one that may write.".to_owned(),
        };
        let message = if contract_lists(kind, access) { &self.role.message_target } else { &self.role.message_kind };
        self.named(denial("42501", rule, message.clone(), &why, &shown(&hint)), &name.to_string(), location)
    }

    pub(super) fn unreadable(&self, name: &Name<'_>, location: Location) -> Box<Denial> {
        let message = format!("permission denied for schema {}", shown(name.schema));
        let why = format!("schema {} is not among those that this login reads", shown(name.schema));
        let hint = format!("This login reads {} and pg_catalog.", self.role.readable_schemas().join(", "));
        self.named(denial("42501", Rule::RelationNotReadable, message, &why, &hint), &name.to_string(), location)
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
