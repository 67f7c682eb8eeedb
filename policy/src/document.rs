//! A policy document: which kinds of login a profile has, and what each may read, write and define.
//!
//! The document is data (TOML, `provisioner/profiles/<profile>/policy.toml`); it is parsed once, at the edge, into types that
//! cannot be wrong, and *all* its mistakes are reported, each with line and column. It must not decide about SQL: the judge
//! and the GRANTs both read what stands here.
//!
//! The format, with every key, its default and who enforces it: `provisioner/profiles/README.md`.
//!
//! `portcullis-proxy check --policy policy.toml --role <kind>` judges SQL with a document and, with `--grants`, prints its GRANTs.

mod read;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use read::{Picked, Table};

use crate::settings::{self, Cap};
use crate::verdict::Kind;

pub(crate) use table::{Selection, TableRule};

/// D33, to the letter.
const MESSAGE_KIND: &str = "Only read statements or schema-qualified storage tables are supported.";
/// D34, to the letter.
const MESSAGE_TARGET: &str = "Customer DB writes are only allowed for schema-qualified storage tables.";

/// One profile's policy.
#[derive(Debug, Clone)]
pub struct Policy {
    name: String,
    managed_schemas: Vec<String>,
    customer_schemas: Vec<String>,
    kinds: Vec<Arc<RolePolicy>>,
}

impl Policy {
    /// Parses a document.
    ///
    /// # Errors
    /// All mistakes of the document at once, each with its line and column.
    pub fn parse(toml: &str) -> Result<Self, DocumentErrors> {
        read::document(toml, policy)
    }

    /// The profile's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The schemas that belong to the platform, in the order of the document.
    pub fn managed_schemas(&self) -> &[String] {
        &self.managed_schemas
    }

    /// The schemas that customers define objects in.
    pub fn customer_schemas(&self) -> &[String] {
        &self.customer_schemas
    }

    /// Every kind of login, internal ones included.
    pub fn kinds(&self) -> &[Arc<RolePolicy>] {
        &self.kinds
    }

    /// The kind of this name.
    pub fn kind(&self, kind: &str) -> Option<&Arc<RolePolicy>> {
        self.kinds.iter().find(|role| role.kind == kind)
    }

    /// The kind whose user name has no suffix; every document has exactly one.
    pub fn primary(&self) -> Option<&Arc<RolePolicy>> {
        self.kinds.iter().find(|role| role.primary)
    }
}

/// How sessions share connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pooling {
    /// A connection per transaction.
    Transaction,
    /// A connection per session.
    Session,
}

/// Objects that a kind may define in its schemas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum DefineObject {
    Table,
    Index,
    Sequence,
    View,
    MaterializedView,
    Type,
    Domain,
    Statistics,
}

impl DefineObject {
    const NAMES: [(&'static str, Self); 8] = [
        ("table", Self::Table),
        ("index", Self::Index),
        ("sequence", Self::Sequence),
        ("view", Self::View),
        ("materialized_view", Self::MaterializedView),
        ("type", Self::Type),
        ("domain", Self::Domain),
        ("statistics", Self::Statistics),
    ];
}

/// What one kind of login may do.
#[derive(Debug, Clone)]
pub struct RolePolicy {
    pub(crate) profile: String,
    pub(crate) kind: String,
    pub(crate) contract_role: String,
    pub(crate) primary: bool,
    pub(crate) username_suffix: Option<String>,
    pub(crate) internal: bool,
    pub(crate) pooling: Pooling,
    pub(crate) batches_each: bool,
    pub(crate) read: BTreeSet<String>,
    pub(crate) write: BTreeSet<String>,
    pub(crate) truncate: BTreeSet<String>,
    pub(crate) define: BTreeSet<String>,
    pub(crate) define_objects: BTreeSet<DefineObject>,
    /// Sorted by table and schema.
    pub(crate) tables: Vec<TableRule>,
    pub(crate) statements: Selection<Kind>,
    pub(crate) copy: bool,
    pub(crate) unqualified_target: Option<String>,
    pub(crate) listen: bool,
    pub(crate) advisory_locks: bool,
    pub(crate) temporary_tables: bool,
    pub(crate) functions: BTreeSet<String>,
    pub(crate) message_kind: String,
    pub(crate) message_target: String,
    pub(crate) settings_allow: BTreeSet<String>,
    pub(crate) settings_deny: BTreeSet<String>,
    pub(crate) settings_max: BTreeMap<String, Cap>,
    pub(crate) search_path: Option<Vec<String>>,
    pub(crate) rows_max: Option<u64>,
    pub(crate) bytes_max: Option<u64>,
    pub(crate) query_timeout_ms: Option<u64>,
    pub(crate) transaction_timeout_ms: Option<u64>,
    pub(crate) idle_in_transaction_timeout_ms: Option<u64>,
    pub(crate) idle_timeout_ms: Option<u64>,
    pub(crate) temp_file_kb_max: Option<u64>,
}

impl RolePolicy {
    /// The name of the profile that the kind belongs to.
    pub fn profile(&self) -> &str {
        &self.profile
    }

    /// The kind's name in the API, such as `customer_db`.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The role's name in the contract, such as `dl_tenant_override`.
    pub fn contract_role(&self) -> &str {
        &self.contract_role
    }

    /// Whether the login's user name has no suffix.
    pub fn primary(&self) -> bool {
        self.primary
    }

    /// What follows `tdb_<hex>_` in the user name of a kind that is not primary.
    pub fn username_suffix(&self) -> Option<&str> {
        self.username_suffix.as_deref()
    }

    /// Whether a login of this kind may be shown to customers.
    pub fn revealable(&self) -> bool {
        !self.internal
    }

    /// Whether any schema or table takes writes or definitions.
    pub fn may_write(&self) -> bool {
        !self.write.is_empty() || !self.define.is_empty() || self.tables.iter().any(|rule| !rule.write.is_none())
    }

    /// The schemas that may be read, sorted; those that may be written or defined in are among them.
    pub fn readable_schemas(&self) -> Vec<&str> {
        self.read.iter().map(String::as_str).collect()
    }

    /// The schemas that take INSERT, UPDATE and DELETE or definitions, sorted.
    pub fn writable_schemas(&self) -> Vec<&str> {
        self.write.union(&self.define).map(String::as_str).collect()
    }

    /// The schemas in which the kind may define objects, sorted.
    pub fn definable_schemas(&self) -> Vec<&str> {
        self.define.iter().map(String::as_str).collect()
    }

    /// Whether sessions of this kind keep one connection.
    pub fn session_pooling(&self) -> bool {
        self.pooling == Pooling::Session
    }

    /// How sessions of this kind share connections.
    pub fn pooling(&self) -> Pooling {
        self.pooling
    }

    /// The search path that the proxy sends when it connects, as the value of the parameter; `None` leaves the server's.
    pub fn search_path(&self) -> Option<String> {
        let schemas = self.search_path.as_ref()?;
        Some(schemas.iter().map(|schema| crate::settings::quote_identifier(schema)).collect::<Vec<_>>().join(", "))
    }

    /// The most rows a statement may return, where the policy limits it.
    pub fn rows_max(&self) -> Option<u64> {
        self.rows_max
    }

    /// The most bytes of rows (as they travel, `DataRow` and `CopyData`) a statement may return, where the policy limits it.
    pub fn bytes_max(&self) -> Option<u64> {
        self.bytes_max
    }

    /// Whether sessions may make temporary tables, for which the role needs TEMPORARY on its database.
    pub fn temporary_tables(&self) -> bool {
        self.temporary_tables
    }

    /// The longest a statement may run, in milliseconds, where the policy limits it.
    pub fn query_timeout_ms(&self) -> Option<u64> {
        self.query_timeout_ms
    }

    /// The longest a transaction may stay open, in milliseconds, where the policy limits it.
    pub fn transaction_timeout_ms(&self) -> Option<u64> {
        self.transaction_timeout_ms
    }

    /// The longest a transaction may stay open without traffic, in milliseconds, where the policy limits it.
    pub fn idle_in_transaction_timeout_ms(&self) -> Option<u64> {
        self.idle_in_transaction_timeout_ms
    }

    /// The longest a session may be idle outside a transaction, in milliseconds, where the policy limits it.
    pub fn idle_timeout_ms(&self) -> Option<u64> {
        self.idle_timeout_ms
    }

    /// `temp_file_limit` of the role, in kB: only a superuser can set it, so the provisioner does.
    pub fn temp_file_kb_max(&self) -> Option<u64> {
        self.temp_file_kb_max
    }

    /// Whether SQL may name `schema` for reading.
    pub(crate) fn reads(&self, schema: &str) -> bool {
        self.read.contains(schema)
    }

    /// Whether anything may be written to a table of this schema, which may have a rule of its own.
    pub(crate) fn may_write_in(&self, schema: &str, table: &str) -> bool {
        self.write.contains(schema) || self.rules_for(schema, table).next().is_some()
    }

    /// The rules for tables of this name; without a schema, those of every schema.
    pub(crate) fn rules_for<'a>(&'a self, schema: &'a str, table: &'a str) -> impl Iterator<Item = &'a TableRule> {
        let from = self.tables.partition_point(|rule| rule.table.as_str() < table);
        let named = self.tables[from..].iter().take_while(move |rule| rule.table == table);
        named.filter(move |rule| schema.is_empty() || rule.schema == schema)
    }

    /// The schema that a hint should name for the customer's own tables.
    pub(crate) fn own_schema(&self) -> Option<&str> {
        self.define.iter().next().or_else(|| self.write.iter().next()).map(String::as_str)
    }
}

/// One mistake in a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentError {
    /// 1-based.
    pub line: u32,
    /// 1-based, in characters.
    pub column: u32,
    /// What is wrong and what is expected.
    pub message: String,
}

/// All mistakes of a document, in its order; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DocumentErrors(pub Vec<DocumentError>);

impl fmt::Display for DocumentErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "line {}, column {}: {}", error.line, error.column, error.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for DocumentErrors {}

fn policy(root: &mut Table<'_, '_>) -> Policy {
    let name = root.required_name("name", 32);
    let managed_schemas = root.schemas("managed_schemas");
    let customer_schemas = root.schemas("customer_schemas");
    for schema in managed_schemas.iter().filter(|schema| customer_schemas.contains(schema)) {
        root.mistake_at("customer_schemas", format!("schema `{schema}` cannot be both managed and the customer's"));
    }
    let mut kinds: Vec<Arc<RolePolicy>> = Vec::new();
    root.tables("kind", |table| {
        let role = role_policy(table, &name, &managed_schemas, &customer_schemas);
        if kinds.iter().any(|other| other.kind == role.kind) {
            table.mistake_at("kind", format!("kind `{}` stands here twice", role.kind));
        }
        if kinds.iter().any(|other| other.username_suffix == role.username_suffix) {
            table.mistake(match &role.username_suffix {
                Some(suffix) => format!("username_suffix `{suffix}` is used by another kind"),
                None => "two kinds are primary; exactly one may be".to_owned(),
            });
        }
        kinds.push(Arc::new(role));
    });
    if !kinds.iter().any(|role| role.primary) {
        root.mistake("no [[kind]] is `primary = true`; exactly one must be".to_owned());
    }
    Policy { name, managed_schemas, customer_schemas, kinds }
}

fn role_policy(table: &mut Table<'_, '_>, profile: &str, managed: &[String], customer: &[String]) -> RolePolicy {
    let known = |table: &mut Table<'_, '_>, key: &str, allowed: &[&[String]]| -> BTreeSet<String> {
        let schemas = table.schemas(key);
        for schema in &schemas {
            if !allowed.iter().any(|list| list.contains(schema)) {
                let known = allowed.concat().join(", ");
                table.mistake_at(key, format!("schema `{schema}` is not declared for this; at the top stand: {known}"));
            }
        }
        schemas.into_iter().collect()
    };
    let mut read = known(table, "read", &[managed, customer]);
    let write = known(table, "write", &[managed, customer]);
    let truncate = known(table, "truncate", &[managed, customer]);
    let define = known(table, "define", &[customer]);
    read.extend(write.iter().chain(&define).cloned());
    if let Some(schema) = truncate.iter().find(|schema| !write.contains(*schema)) {
        table.mistake_at("truncate", format!("schema `{schema}` must be in `write` too"));
    }

    let primary = table.boolean("primary", false);
    let username_suffix = table.optional_name("username_suffix", 16);
    match (primary, &username_suffix) {
        (true, Some(_)) => table.mistake_at("username_suffix", "a primary kind has no username_suffix".to_owned()),
        (false, None) => table.mistake("a kind that is not primary needs a `username_suffix`"),
        _ => {}
    }
    let unqualified_target = table.optional_name("unqualified_target", 63);
    let tables = table::tables(table, managed, &read, &write);
    let mut role = RolePolicy {
        profile: profile.to_owned(),
        kind: kind_name(table),
        contract_role: table.required_name("role", 63),
        primary,
        username_suffix,
        internal: table.boolean("internal", false),
        pooling: table.choice("pooling", &[("transaction", Pooling::Transaction), ("session", Pooling::Session)]),
        batches_each: table.choice("batches", &[("one", false), ("each", true)]),
        read,
        write,
        truncate,
        define,
        define_objects: table.choices("define_objects", &DefineObject::NAMES).into_iter().collect(),
        tables,
        statements: statements(table),
        copy: table.boolean("copy", true),
        unqualified_target,
        listen: table.boolean("listen", false),
        advisory_locks: table.boolean("advisory_locks", false),
        temporary_tables: table.boolean("temporary_tables", false),
        functions: functions(table),
        message_kind: table.string("message_kind").unwrap_or_else(|| MESSAGE_KIND.to_owned()),
        message_target: table.string("message_target").unwrap_or_else(|| MESSAGE_TARGET.to_owned()),
        settings_allow: BTreeSet::new(),
        settings_deny: BTreeSet::new(),
        settings_max: BTreeMap::from([settings::default_cap()]),
        search_path: None,
        rows_max: None,
        bytes_max: None,
        query_timeout_ms: None,
        transaction_timeout_ms: None,
        idle_in_transaction_timeout_ms: None,
        idle_timeout_ms: None,
        temp_file_kb_max: None,
    };
    table.table("settings", |settings| settings_of(settings, &mut role));
    table.table("limits", |limits| {
        role.rows_max = limits.integer("rows_max", 1, i64::MAX as u64);
        role.bytes_max = limits.integer("bytes_max", 1, i64::MAX as u64);
        role.query_timeout_ms = limits.integer("query_timeout_ms", 1, 86_400_000);
        role.transaction_timeout_ms = limits.integer("transaction_timeout_ms", 1, 604_800_000);
        role.idle_in_transaction_timeout_ms = limits.integer("idle_in_transaction_timeout_ms", 1, 604_800_000);
        role.idle_timeout_ms = limits.integer("idle_timeout_ms", 1, 604_800_000);
        role.temp_file_kb_max = limits.integer("temp_file_kb_max", 0, i32::MAX as u64);
    });
    if let Some(schema) = &role.unqualified_target {
        let fixed = role.search_path.as_ref().is_some_and(|path| path.first() == Some(schema));
        if !fixed || !role.write.contains(schema) {
            let message = format!("needs `{schema}` first in settings.search_path and in `write`");
            table.mistake_at("unqualified_target", message);
        }
    }
    if !role.define_objects.is_empty() && role.define.is_empty() {
        table.mistake_at("define_objects", "there is no schema in `define`".to_owned());
    }
    role
}

/// The kind's name; roles of the server are called after it, beside `owner` and the logins `…_a` and `…_b`.
fn kind_name(table: &mut Table<'_, '_>) -> String {
    let name = table.required_name("kind", 32);
    if name == "owner" || name.ends_with("_a") || name.ends_with("_b") {
        table
            .mistake_at("kind", format!("`{name}` is taken: a kind is not called owner, and does not end in _a or _b"));
    }
    name
}

fn statements(table: &mut Table<'_, '_>) -> Selection<Kind> {
    let kinds = |table: &mut Table<'_, '_>, names: Vec<(usize, String)>| {
        let mut kinds = BTreeSet::new();
        for (at, name) in names {
            match Kind::CHOOSABLE.iter().find(|kind| kind.name() == name) {
                Some(kind) => {
                    kinds.insert(*kind);
                }
                None => {
                    let known = Kind::CHOOSABLE.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", ");
                    table.mistake_in(at, format!("`statements`: `{name}` is not one of {known}"));
                }
            }
        }
        kinds
    };
    match table.picked("statements", false) {
        None | Some(Picked::All | Picked::None) => Selection::All,
        Some(Picked::Only(names)) => Selection::Only(kinds(table, names)),
        Some(Picked::Except(names)) => Selection::Except(kinds(table, names)),
    }
}

fn functions(table: &mut Table<'_, '_>) -> BTreeSet<String> {
    let mut functions = BTreeSet::new();
    for (at, name) in table.texts("functions") {
        let problem = match name.split_once('.') {
            Some(("pg_catalog" | "information_schema", _)) => {
                Some("PostgreSQL's own functions have a list of their own; only an extension's can be added")
            }
            Some((schema, function)) if !schema.is_empty() && !function.is_empty() && name.len() <= 127 => None,
            _ => Some("must be schema.function, the function without arguments"),
        };
        match problem {
            Some(problem) => table.mistake_in(at, format!("`functions`: `{name}`: {problem}")),
            None => {
                functions.insert(name);
            }
        }
    }
    functions
}

fn settings_of(table: &mut Table<'_, '_>, role: &mut RolePolicy) {
    for (at, name) in table.texts("allow") {
        match settings::may_be_added(&name) {
            Ok(()) => {
                role.settings_allow.insert(name);
            }
            Err(why) => table.mistake_in(at, format!("`allow`: `{name}` {why}")),
        }
    }
    for (at, name) in table.texts("deny") {
        if settings::is_built_in(&name) {
            role.settings_deny.insert(name);
        } else {
            table.mistake_in(at, format!("`deny`: `{name}` is not among the parameters that may be set anyway"));
        }
    }
    table.table("max", |max| {
        for (at, name, text) in max.amounts() {
            let settable = settings::is_built_in(&name) || role.settings_allow.contains(&name);
            match Cap::parse(&name, &text) {
                Ok(_) if !settable => max.mistake_in(at, format!("`{name}` must be in `allow` too")),
                Ok(cap) => {
                    role.settings_max.insert(name, cap);
                }
                Err(why) => max.mistake_in(at, format!("`{name}`: {why}")),
            }
        }
    });
    if table.has("search_path") {
        let path = table.schemas("search_path");
        for schema in path.iter().filter(|schema| *schema != "public" && !role.read.contains(*schema)) {
            table.mistake_at("search_path", format!("schema `{schema}` must be in `read`, `write` or `define`"));
        }
        role.search_path = Some(path);
    }
}

#[cfg(test)]
#[path = "document/tests.rs"]
mod tests;
