//! A role's rules over the facts of one statement. The order is that of the text's own reading: kind, relations, names,
//! functions, settings; the first rule that refuses speaks.

use pg_query::NodeEnum;
use pg_query::protobuf as pb;

use super::refuse::Refuse;
use crate::RESERVED_PREFIX;
use crate::classify::{
    Access, Attribute, AttributeOf, Call, Exposed, Facts, Name, SettingValue, Touched, Use, cast_to, column_name,
    constant, strings,
};
use crate::document::{DefineObject, RolePolicy};
use crate::functions::{self, Class, Special};
use crate::rule::Rule;
use crate::settings;
use crate::verdict::{Denial, Effect, Kind, PinReason, TaintReason, Target};

type Judged = Result<(), Box<Denial>>;

pub(super) struct Rules<'a> {
    pub(super) role: &'a RolePolicy,
    pub(super) target: &'a Target<'a>,
    pub(super) refuse: &'a Refuse<'a>,
    /// Some identifier of the text is longer than PostgreSQL keeps.
    pub(super) long_name: bool,
}

/// Whether a statement counts as one that works: not transaction control, settings, cursor commands, resets, and reads of
/// nothing but the catalogs.
pub(super) fn works(facts: &Facts<'_>) -> bool {
    match facts.kind {
        Kind::Transaction
        | Kind::Set
        | Kind::Show
        | Kind::Fetch
        | Kind::CloseCursor
        | Kind::Deallocate
        | Kind::Discard
        | Kind::Unlisten
        | Kind::SetConstraints
        | Kind::Empty => false,
        Kind::DeclareCursor => facts.calls.iter().any(acts),
        Kind::Select => !facts.only_settings && (!reads_catalogs_only(facts) || facts.calls.iter().any(acts)),
        _ => true,
    }
}

fn class_of(name: &Name<'_>) -> Class {
    match name.schema {
        "" => functions::lookup(name.name),
        schema => functions::lookup_in(schema, name.name),
    }
}

/// Whether a call does more than give a value. Of a policy's own functions nobody here can know.
fn acts(call: &Call<'_>) -> bool {
    match class_of(&call.name) {
        Class::Special(special) => match special {
            Special::NextVal | Special::SetVal | Special::SessionLock | Special::TransactionLock | Special::Notify => {
                true
            }
            Special::CurrVal
            | Special::LastVal
            | Special::SetConfig
            | Special::AdvisoryUnlockAll
            | Special::TsRewrite
            | Special::JsonbSetLax => false,
        },
        Class::Unknown => true,
        Class::Allowed | Class::Forbidden => false,
    }
}

fn reads_catalogs_only(facts: &Facts<'_>) -> bool {
    let catalog = |used: &Use<'_>| {
        let schema = used.name.schema;
        let named = schema == "pg_catalog" || schema == "information_schema";
        // pg_catalog is always searched; who has a table called pg_… of his own reads that one, which is no harm here.
        used.access == Access::Read && (named || (schema.is_empty() && used.name.name.starts_with("pg_")))
    };
    !facts.uses.is_empty() && facts.uses.iter().all(catalog)
}

/// Whether a statement only gives back what the session holds.
pub(super) fn resets(facts: &Facts<'_>) -> bool {
    facts.only_settings && facts.settings.is_empty()
        || !facts.effects.is_empty()
            && facts.effects.iter().all(|effect| {
                matches!(
                    effect,
                    Effect::ResetSessionAuthorization
                        | Effect::Reset { .. }
                        | Effect::ResetAll
                        | Effect::CloseAll
                        | Effect::Unlisten(_)
                        | Effect::DiscardAll
                        | Effect::DiscardOther
                        | Effect::DeallocateAll
                )
            })
}

/// Whether no literal had a say in a statement's verdict: plain queries and writes whose only way to look at one, the
/// arguments of certain functions, is not taken. Settings, cursors, definitions, COPY and the like are not looked into.
pub(super) fn ignores_literals(facts: &Facts<'_>) -> bool {
    let plain = matches!(facts.kind, Kind::Select | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge);
    let looks = |call: &Call<'_>| !matches!(class_of(&call.name), Class::Allowed | Class::Unknown);
    plain && facts.settings.is_empty() && facts.effects.is_empty() && !facts.calls.iter().any(looks)
}

/// Whether a statement can do its work as the only one of a session, as over HTTP (D29, D31, D32).
pub(super) fn stands_alone(facts: &Facts<'_>) -> bool {
    match facts.kind {
        Kind::Transaction
        | Kind::Set
        | Kind::SetConstraints
        | Kind::CopyIn
        | Kind::CopyOut
        | Kind::DeclareCursor
        | Kind::Fetch
        | Kind::CloseCursor
        | Kind::Prepare
        | Kind::Execute
        | Kind::Deallocate
        | Kind::Discard
        | Kind::Listen
        | Kind::Notify
        | Kind::Unlisten
        | Kind::Lock
        | Kind::Empty => false,
        Kind::Select => !facts.only_settings && facts.settings.is_empty(),
        _ => true,
    }
}

impl Rules<'_> {
    /// Judges one statement; gives its facts back with the effects that only the rules know.
    pub(super) fn apply<'t>(&self, facts: Facts<'t>) -> Result<Facts<'t>, Box<Denial>> {
        let start = facts.location;
        self.judged(facts).map_err(|denial| match denial.position {
            None => self.refuse.located(denial, start),
            Some(_) => denial,
        })
    }

    fn judged<'t>(&self, mut facts: Facts<'t>) -> Result<Facts<'t>, Box<Denial>> {
        self.kind(&facts)?;
        for used in &facts.uses {
            self.used(&facts, used)?;
        }
        if let Some(exposure) = &facts.exposure {
            let rule = &self.role.tables[exposure.table];
            return Err(self.refuse.closed_column(rule, exposure.what, exposure.location));
        }
        for name in &facts.session_names {
            let place = || self.refuse.place_of_session_name(&facts, name);
            if name.starts_with(RESERVED_PREFIX) {
                return Err(self.refuse.reserved_name(name, place()));
            }
            if self.may_be_cut(name.len()) {
                return Err(self.refuse.name_too_long(name, place()));
            }
        }
        for other in &facts.others {
            self.database(&other.name, other.location)?;
            let known = match other.what {
                "operator" => other.name.schema == "pg_catalog",
                _ => self.readable_schema(other.name.schema),
            };
            if !known {
                return Err(self.refuse.other_name(other.what, &other.name, other.location));
            }
        }
        if let Some(attribute) = facts.attributes.iter().find(|attribute| may_call(attribute, &facts)) {
            return Err(self.refuse.attribute(attribute));
        }
        let mut effects = Vec::new();
        if facts.uses.iter().any(|used| makes_temporary(facts.kind, used)) {
            pin(&mut effects, PinReason::TemporaryTable, TaintReason::SessionObject);
        }
        for call in &facts.calls {
            self.call(&facts, call, &mut effects)?;
        }
        for setting in &facts.settings {
            self.setting(setting)?;
        }
        facts.effects.append(&mut effects);
        Ok(facts)
    }

    fn kind(&self, facts: &Facts<'_>) -> Judged {
        let no = |why: &str, hint: &str| {
            Err(self.refuse.kind(facts.kind, Rule::StatementNotAllowed, why, hint, facts.location))
        };
        let of_choice = Kind::CHOOSABLE.contains(&facts.kind).then_some(facts.kind);
        for kind in of_choice.iter().chain(&facts.inner) {
            if !self.role.statements.has(kind) {
                let why = "it is not among this login's statements";
                let hint = "Use another kind of statement, or another login.";
                return Err(self.refuse.kind(*kind, Rule::StatementNotAllowed, why, hint, facts.location));
            }
        }
        if facts.copies && !self.role.copy {
            return no("this login does not use COPY", "");
        }
        if facts.notifies && !self.role.listen {
            return no("notifications are off for this login", "Poll a table instead of LISTEN and NOTIFY.");
        }
        Ok(())
    }

    fn used(&self, facts: &Facts<'_>, used: &Use<'_>) -> Judged {
        let Use { name, access, touched, location } = used;
        self.database(name, *location)?;
        if self.may_be_cut(name.longest()) {
            return Err(self.refuse.name_too_long(name.name, self.refuse.place(facts, used)));
        }
        if self.role.temporary_tables && name.schema == TEMPORARY {
            return self.temporary(facts, used);
        }
        match access {
            Access::Read => self.read(name, *touched, *location),
            Access::DefineTemporary if self.role.temporary_tables => Ok(()),
            Access::DefineTemporary => Err(self.refuse.target(facts, used, Rule::TargetTemporary)),
            Access::Write | Access::LockRows => {
                self.target(facts, used, |schema| self.role.may_write_in(schema, name.name))?;
                self.written(facts.kind, used)
            }
            Access::Truncate => {
                self.target(facts, used, |schema| self.role.truncate.contains(schema))?;
                self.written(facts.kind, used)
            }
            Access::LockTable | Access::Reference | Access::Sequence => {
                self.target(facts, used, |schema| self.role.define.contains(schema))
            }
            Access::Define(object) => {
                let may = self.role.define_objects.contains(object);
                // The contract speaks of targets for tables and indexes, and of kinds for everything else.
                if !may && !matches!(object, DefineObject::Table | DefineObject::Index) {
                    let why = "this login does not define objects of this kind";
                    return Err(self.refuse.kind(facts.kind, Rule::StatementNotAllowed, why, "", facts.location));
                }
                self.target(facts, used, |schema| may && self.role.define.contains(schema))
            }
        }
    }

    /// The session's own temporary tables, with their indexes and sequences.
    fn temporary(&self, facts: &Facts<'_>, used: &Use<'_>) -> Judged {
        match used.access {
            Access::Define(DefineObject::Table | DefineObject::Index | DefineObject::Sequence) => Ok(()),
            Access::Define(_) => Err(self.refuse.target(facts, used, Rule::TargetTemporary)),
            _ => Ok(()),
        }
    }

    /// A name's database, if one is written, must be the session's own.
    fn database(&self, name: &Name<'_>, location: i32) -> Judged {
        let own = name.database.is_empty() || self.target.database_names.contains(&name.database);
        if own { Ok(()) } else { Err(self.refuse.other_database(name, location)) }
    }

    /// A name of (nearly) 63 bytes in a text with a longer one may be what PostgreSQL made of that; a multi-byte character
    /// at the limit goes as a whole.
    fn may_be_cut(&self, bytes: usize) -> bool {
        self.long_name && bytes > crate::scan::NAME_BYTES_MAX - 4
    }

    fn read(&self, name: &Name<'_>, touched: Touched<'_>, location: i32) -> Judged {
        match name.schema {
            // pg_catalog is searched first; anything else the grants decide.
            "" | "pg_catalog" if functions::revoked_relations().binary_search(&name.name).is_ok() => {
                Err(self.refuse.secret_catalog(name, location))
            }
            // They show values of every column that PostgreSQL lets the role read.
            "" | "pg_catalog"
                if SAMPLES.contains(&name.name) && self.role.tables.iter().any(|rule| !rule.read.is_all()) =>
            {
                Err(self.refuse.samples(name, location))
            }
            "pg_catalog" | "information_schema" => Ok(()),
            schema => {
                let mut ruled = false;
                // A name without a schema may be that of any of these tables.
                for rule in self.role.rules_for(schema, name.name) {
                    ruled = true;
                    if rule.read.is_none() {
                        return Err(self.refuse.closed_table(rule, location));
                    }
                    let columns: &[pb::Node] = match touched {
                        Touched::Referenced => &[],
                        Touched::Row if rule.read.is_all() => &[],
                        Touched::Row => return Err(self.refuse.closed_column(rule, Exposed::Row, location)),
                        Touched::Columns(columns) => columns,
                    };
                    for column in columns.iter().filter_map(column_name) {
                        if !rule.read.has(column) {
                            return Err(self.refuse.closed_column(rule, Exposed::Column(column), location));
                        }
                    }
                }
                if ruled || schema.is_empty() || self.role.reads(schema) {
                    return Ok(());
                }
                Err(self.refuse.unreadable(name, location))
            }
        }
    }

    /// The columns of a table with rules of its own that a statement sets; the rows that it locks, deletes or truncates.
    fn written(&self, kind: Kind, used: &Use<'_>) -> Judged {
        let schema = if used.name.schema.is_empty() { self.role.unqualified_target.as_deref() } else { None };
        let schema = schema.unwrap_or(used.name.schema);
        for rule in self.role.rules_for(schema, used.name.name) {
            if rule.write.is_none() {
                return Err(self.refuse.closed_target(kind, rule, used.location));
            }
            let columns: &[pb::Node] = match used.touched {
                Touched::Referenced => &[],
                Touched::Row if rule.write.is_all() || used.access == Access::LockRows => &[],
                Touched::Row => return Err(self.refuse.closed_write(kind, rule, None, used.location)),
                Touched::Columns(columns) => columns,
            };
            for column in columns.iter().filter_map(column_name) {
                if !rule.write.has(column) {
                    return Err(self.refuse.closed_write(kind, rule, Some(column), used.location));
                }
            }
        }
        Ok(())
    }

    fn readable_schema(&self, schema: &str) -> bool {
        matches!(schema, "pg_catalog" | "information_schema") || self.role.reads(schema)
    }

    fn target(&self, facts: &Facts<'_>, used: &Use<'_>, allowed: impl Fn(&str) -> bool) -> Judged {
        let schema = match (&self.role.unqualified_target, used.name.schema) {
            // pg_catalog is searched before every other schema.
            (Some(_), "") if in_catalog(facts, used) => "pg_catalog",
            (Some(schema), "") => schema,
            (_, schema) => schema,
        };
        if schema.is_empty() {
            return Err(self.refuse.target(facts, used, Rule::TargetUnqualified));
        }
        if allowed(schema) {
            return Ok(());
        }
        Err(self.refuse.target(facts, used, Rule::TargetSchema))
    }

    fn call(&self, facts: &Facts<'_>, call: &Call<'_>, effects: &mut Vec<Effect>) -> Judged {
        let name = &call.name;
        self.database(name, call.location)?;
        match class_of(name) {
            Class::Allowed => Ok(()),
            Class::Special(special) => self.special(facts, special, call, effects),
            Class::Unknown if self.listed(name) => Ok(()),
            Class::Forbidden => {
                let why = format!("{}: {}", name.name, functions::reason(name.name).unwrap_or("it is not on the list"));
                Err(self.refuse.function(&name.to_string(), &why, CALL_HINT, call.location))
            }
            Class::Unknown => {
                let why = format!("{name} is not a function on this login's list");
                let own =
                    self.role.define.contains(name.schema) && self.role.define_objects.contains(&DefineObject::Type);
                let hint = if own { OWN_TYPE_HINT } else { UNKNOWN_HINT };
                Err(self.refuse.function(&name.to_string(), &why, hint, call.location))
            }
        }
    }

    /// A function of an extension that the policy lists as `schema.name`.
    fn listed(&self, name: &Name<'_>) -> bool {
        self.role.functions.iter().any(|listed| match listed.split_once('.') {
            Some((schema, function)) => function == name.name && (name.schema.is_empty() || schema == name.schema),
            None => false,
        })
    }

    fn special(&self, facts: &Facts<'_>, special: Special, call: &Call<'_>, effects: &mut Vec<Effect>) -> Judged {
        let refuse = |why: &str, hint: &str| {
            let why = format!("{}: {why}", call.name.name);
            Err(self.refuse.function(&call.name.to_string(), &why, hint, call.location))
        };
        match special {
            Special::NextVal | Special::SetVal | Special::CurrVal => {
                self.sequence(facts, call)?;
                if special != Special::CurrVal && !call.deferred {
                    pin(effects, PinReason::Sequence, TaintReason::Sequence);
                }
                Ok(())
            }
            Special::LastVal | Special::AdvisoryUnlockAll => Ok(()),
            Special::SessionLock if self.role.advisory_locks => {
                pin(effects, PinReason::AdvisoryLock, TaintReason::SessionObject);
                Ok(())
            }
            Special::TransactionLock if self.role.advisory_locks => Ok(()),
            Special::SessionLock | Special::TransactionLock => {
                refuse("advisory locks are off for this login", "Lock rows of your own tables with FOR UPDATE.")
            }
            Special::Notify if self.role.listen => Ok(()),
            Special::Notify => refuse("notifications are off for this login", "Poll a table instead."),
            Special::TsRewrite if call.arguments.len() == 3 => Ok(()),
            Special::TsRewrite => refuse("with two arguments it runs a query from a string", "Give three arguments."),
            Special::JsonbSetLax if keeps_its_arguments(call.arguments) => Ok(()),
            Special::JsonbSetLax => refuse(
                "a NULL for its third argument can crash the server, unless the fifth says delete_key, return_target or raise_exception",
                "Use jsonb_set with coalesce(value, 'null'), or give the fifth argument.",
            ),
            Special::SetConfig => {
                if self.tightens_dump(call) {
                    // It may not even exist on this server, so it cannot be moved with the session.
                    effects.push(Effect::Taint(TaintReason::Setting));
                    return Ok(());
                }
                refuse(
                    "it passes only as SELECT set_config(…) without anything else",
                    "Use SET, or SELECT set_config(…) alone.",
                )
            }
        }
    }

    /// What pg_dump 17 sends: `set_config(name, 'view, foreign-table', false)` over the one row of that name.
    fn tightens_dump(&self, _call: &Call<'_>) -> bool {
        self.refuse.text.split_whitespace().collect::<Vec<_>>().join(" ").trim_end_matches(';') == DUMP_SETTING
    }

    /// The sequence must be named by a constant, in a schema where the role defines.
    fn sequence(&self, facts: &Facts<'_>, call: &Call<'_>) -> Judged {
        let refuse = |why: &str| {
            let why = format!("{}: {why}", call.name.name);
            let schema = self.role.own_schema().unwrap_or("schema");
            let hint = format!("Name a sequence of your own: {}('{schema}.name').", call.name.name);
            Err(self.refuse.function(&call.name.to_string(), &why, &hint, call.location))
        };
        let Some(argument) = call.arguments.first() else { return refuse("it needs a sequence") };
        // PDO's lastInsertId and DBD::Pg's last_insert_id bind the name. No verdict can know it then, and none has to:
        // the grants say of which sequence it may be, and there is a value only where this session has made one.
        if call.name.name == "currval" && matches!(constant(argument), Some(SettingValue::Bound(_))) {
            return Ok(());
        }
        let Some(text) = sequence_text(argument) else {
            return refuse("the sequence must be a constant name");
        };
        let Some(parts) = dotted(&text) else { return refuse("this is not a name") };
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let Some(name) = Name::of_parts(&parts) else { return refuse("this is not a name") };
        let (access, touched, location) = (Access::Sequence, Touched::Referenced, call.location);
        let used = Use { name, access, touched, location };
        self.used(facts, &used)
    }

    fn setting(&self, setting: &crate::classify::Setting) -> Judged {
        let judged = match &setting.value {
            SettingValue::Text(value) => settings::value_allowed(self.role, &setting.name, Some(value)),
            SettingValue::Default => settings::value_allowed(self.role, &setting.name, None),
            SettingValue::Bound(_) if settings::any_value_allowed(self.role, &setting.name) => Ok(()),
            SettingValue::Bound(_) if settings::is_listed(self.role, &setting.name) => {
                let hint = "Write the value into the statement.";
                Err(settings::value_refused(&setting.name, "its value must be judged, so it cannot be bound", hint))
            }
            SettingValue::Bound(_) => settings::value_allowed(self.role, &setting.name, None),
        };
        judged.map_err(|denial| self.refuse.located(denial, setting.location))
    }
}

/// PostgreSQL's name for the schema of the session's own temporary objects.
const TEMPORARY: &str = "pg_temp";

/// Whether a use leaves a temporary object behind. REFRESH CONCURRENTLY drops its own again.
fn makes_temporary(kind: Kind, used: &Use<'_>) -> bool {
    match used.access {
        Access::DefineTemporary => kind != Kind::RefreshMaterializedView,
        Access::Define(_) => used.name.schema == TEMPORARY,
        _ => false,
    }
}

/// Whether a `jsonb_set_lax` leaves its arguments alone. PostgreSQL (15.18 at least) answers a NULL third argument by putting
/// a JSON null in its place, in memory that goes with the row; a constant is not evaluated again for the next row, which
/// then reads freed memory. What the planner makes constant cannot be seen here (it looks through subqueries and bound
/// parameters), so the third must be written out, or the fifth say that NULL is no JSON null, or all be literals: then the
/// planner calls the function, once.
fn keeps_its_arguments(arguments: &[pb::Node]) -> bool {
    let text = |argument: Option<&pb::Node>| match argument.and_then(constant) {
        Some(SettingValue::Text(text)) => Some(text),
        Some(SettingValue::Default | SettingValue::Bound(_)) | None => None,
    };
    text(arguments.get(2).map(without_cast)).is_some()
        || text(arguments.get(4)).is_some_and(|treatment| treatment != "use_json_null")
        || arguments.iter().all(is_literal)
}

fn without_cast(node: &pb::Node) -> &pb::Node {
    match &node.node {
        Some(NodeEnum::TypeCast(cast)) => cast.arg.as_deref().unwrap_or(node),
        _ => node,
    }
}

/// A literal, NULL included, for which the parser itself makes a constant: a cast of a cast, or to a domain, is evaluated later.
fn is_literal(node: &pb::Node) -> bool {
    match &node.node {
        Some(NodeEnum::AConst(_)) => true,
        Some(NodeEnum::NamedArgExpr(named)) => named.arg.as_deref().is_some_and(is_literal),
        Some(NodeEnum::TypeCast(cast)) => {
            let literal = cast.arg.as_deref().is_some_and(|arg| matches!(arg.node, Some(NodeEnum::AConst(_))));
            literal && cast_to(cast, &["jsonb", "text", "bool"])
        }
        _ => false,
    }
}

/// Views of `pg_catalog` with samples of columns' values.
const SAMPLES: &[&str] = &["pg_stats", "pg_stats_ext", "pg_stats_ext_exprs"];

const CALL_HINT: &str = "Use functions that compute from their arguments or read your own data.";

const UNKNOWN_HINT: &str =
    "Use a built-in function; functions of extensions pass where the policy lists them by schema and name.";

/// In a schema where the login makes its types: their constructors have their names, which are not known here.
const OWN_TYPE_HINT: &str = "Write a value of your own range type as a literal: '[1,2)'::schema.type.";

const DUMP_SETTING: &str = "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings \
     WHERE name = 'restrict_nonsystem_relation_kind'";

/// Whether `x.name` can be a call: where `x` is a value rather than a row, and no column has the name.
///
/// Of what stands in FROM only a function under its alias is a value; tables, subqueries, CTEs and joins are rows, and no
/// function that does not pass takes a row. Names that begin like PostgreSQL's own are refused everywhere: they are nobody's
/// columns.
fn may_call(attribute: &Attribute<'_>, facts: &Facts<'_>) -> bool {
    let reserved = ["pg_", "lo_", "dblink"].iter().any(|start| attribute.name.starts_with(start));
    reserved
        || match attribute.of {
            AttributeOf::Value => true,
            AttributeOf::Table => false,
            AttributeOf::Alias(alias) => {
                facts.functions_in_from.iter().any(|function| function.is_none_or(|name| name == alias))
            }
        }
}

/// Whether an unqualified name means something in `pg_catalog`: what exists there is found first, what is made goes to the
/// first schema of the path.
fn in_catalog(facts: &Facts<'_>, used: &Use<'_>) -> bool {
    let type_of_its_own = matches!(used.access, Access::Define(DefineObject::Type | DefineObject::Domain))
        && !matches!(facts.kind, Kind::CreateType | Kind::CreateDomain)
        && functions::is_built_in_type(used.name.name);
    functions::is_catalog(used.name.name) || type_of_its_own
}

fn pin(effects: &mut Vec<Effect>, pin: PinReason, taint: TaintReason) {
    for effect in [Effect::Pin(pin), Effect::Taint(taint)] {
        if !effects.contains(&effect) {
            effects.push(effect);
        }
    }
}

/// The sequence's name: a constant, or the sequence of a column: `pg_get_serial_sequence('schema.table', 'column')`, which
/// lives in the table's schema.
fn sequence_text(argument: &pb::Node) -> Option<String> {
    let argument = match &argument.node {
        Some(NodeEnum::TypeCast(cast)) if cast_to(cast, &["regclass"]) => cast.arg.as_deref()?,
        _ => argument,
    };
    if let Some(SettingValue::Text(text)) = constant(argument) {
        return Some(text);
    }
    let Some(NodeEnum::FuncCall(call)) = &argument.node else { return None };
    let serial = matches!(strings(&call.funcname)?.as_slice(), [.., "pg_get_serial_sequence"]);
    match (serial, call.args.as_slice()) {
        (true, [table, column]) => {
            constant(column)?;
            match constant(table)? {
                SettingValue::Text(text) => Some(text),
                SettingValue::Default | SettingValue::Bound(_) => None,
            }
        }
        _ => None,
    }
}

/// Splits `schema."Name"` as PostgreSQL's `stringToQualifiedNameList` does. A number is no name: `regclass` takes it for
/// the OID of whatever it is.
fn dotted(text: &str) -> Option<Vec<String>> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let mut parts = Vec::new();
    let mut rest = text.trim();
    loop {
        if let Some(quoted) = rest.strip_prefix('"') {
            let end = quoted.find('"')?;
            // A doubled quote inside a name is rarer than a trick with it.
            if quoted[end + 1..].starts_with('"') {
                return None;
            }
            parts.push(quoted[..end].to_owned());
            rest = quoted[end + 1..].trim_start();
        } else {
            let end = rest.find('.').unwrap_or(rest.len());
            let part = rest[..end].trim();
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '$';
            if part.is_empty() || !part.chars().all(plain) {
                return None;
            }
            parts.push(part.to_ascii_lowercase());
            rest = &rest[end..];
        }
        if rest.is_empty() {
            return Some(parts);
        }
        rest = rest.strip_prefix('.')?.trim_start();
    }
}
