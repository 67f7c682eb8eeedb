//! A policy document: which kinds of login a profile has, and what each may read, write and define.
//!
//! The document is data (TOML, `provisioner/profiles/<profile>/policy.toml`); it is parsed once, at the edge, into types that
//! cannot be wrong, and *all* its mistakes are reported, each with line and column. It must not decide about SQL: the judge
//! and the GRANTs both read what stands here.
//!
//! `portcullis-proxy check --policy policy.toml --role <kind>` judges SQL with a document and, with `--grants`, prints its GRANTs.
//!
//! ```toml
//! name = "storage"                            # the profile
//! managed_schemas = ["dl_resolved", "dl_meta"] # belong to the platform; no kind may define there
//! customer_schemas = ["storage"]              # made empty; what kinds define belongs to them
//!
//! [[kind]]
//! kind = "customer_db"            # the name in the API (1–32 of a–z, 0–9, _)
//! role = "customer_db"            # the role's name in the contract, for metadata
//! primary = true                  # exactly one kind; its user name has no suffix
//! username_suffix = "read"        # of every other kind
//! internal = false                # true: never revealed to anybody
//! pooling = "transaction"         # or "session"
//! batches = "one"                 # or "each": every statement of a Query judged, without a count
//! read = ["dl_resolved", "storage"]
//! write = ["storage"]             # INSERT, UPDATE, DELETE, MERGE, COPY FROM
//! truncate = ["storage"]
//! define = ["storage"]            # CREATE, ALTER, DROP, COMMENT
//! define_objects = ["table", "index", "sequence"]   # also view, materialized_view, type, domain, statistics
//! copy = true                     # COPY FROM STDIN and TO STDOUT
//! unqualified_target = "public"   # absent: writes must be schema-qualified
//! listen = false                  # LISTEN, NOTIFY
//! advisory_locks = false          # session and transaction advisory locks
//! temporary_tables = false
//! functions = ["public.uuid_generate_v4"]           # beyond the built-in list, for extensions
//! message_kind = "…"              # absent: the contract's D33
//! message_target = "…"            # absent: the contract's D34
//!
//! [kind.settings]
//! work_mem_kb_max = 65536
//! search_path = ["public"]        # sent by the proxy at start, so RESET returns to it
//!
//! [kind.limits]                   # absent: no limit of the policy
//! rows_max = 1000
//! query_timeout_ms = 30000
//! temp_file_kb_max = 1048576      # set on the role by the provisioner
//! ```

mod read;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use read::Table;

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
    pub(crate) copy: bool,
    pub(crate) unqualified_target: Option<String>,
    pub(crate) listen: bool,
    pub(crate) advisory_locks: bool,
    pub(crate) temporary_tables: bool,
    pub(crate) functions: BTreeSet<String>,
    pub(crate) message_kind: String,
    pub(crate) message_target: String,
    pub(crate) work_mem_kb_max: u64,
    pub(crate) search_path: Option<Vec<String>>,
    pub(crate) rows_max: Option<u64>,
    pub(crate) query_timeout_ms: Option<u64>,
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

    /// Whether any schema takes writes or definitions.
    pub fn may_write(&self) -> bool {
        !self.write.is_empty() || !self.define.is_empty()
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

    /// The longest a statement may run, in milliseconds, where the policy limits it.
    pub fn query_timeout_ms(&self) -> Option<u64> {
        self.query_timeout_ms
    }

    /// `temp_file_limit` of the role, in kB: only a superuser can set it, so the provisioner does.
    pub fn temp_file_kb_max(&self) -> Option<u64> {
        self.temp_file_kb_max
    }

    /// Whether SQL may name `schema` for reading.
    pub(crate) fn reads(&self, schema: &str) -> bool {
        self.read.contains(schema)
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
                table.mistake_at(key, format!("schema `{schema}` is not declared for this at the top of the document"));
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
        (false, None) => table.mistake("a kind that is not primary needs a `username_suffix`".to_owned()),
        _ => {}
    }
    let unqualified_target = table.optional_name("unqualified_target", 63);
    let mut role = RolePolicy {
        profile: profile.to_owned(),
        kind: table.required_name("kind", 32),
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
        copy: table.boolean("copy", true),
        unqualified_target,
        listen: table.boolean("listen", false),
        advisory_locks: table.boolean("advisory_locks", false),
        temporary_tables: table.boolean("temporary_tables", false),
        functions: table.strings("functions").into_iter().collect(),
        message_kind: table.string("message_kind").unwrap_or_else(|| MESSAGE_KIND.to_owned()),
        message_target: table.string("message_target").unwrap_or_else(|| MESSAGE_TARGET.to_owned()),
        work_mem_kb_max: 65_536,
        search_path: None,
        rows_max: None,
        query_timeout_ms: None,
        temp_file_kb_max: None,
    };
    table.table("settings", |settings| {
        role.work_mem_kb_max = settings.integer("work_mem_kb_max", 64, 2_097_151).unwrap_or(role.work_mem_kb_max);
        if settings.has("search_path") {
            role.search_path = Some(settings.schemas("search_path"));
        }
    });
    table.table("limits", |limits| {
        role.rows_max = limits.integer("rows_max", 1, u64::MAX / 2);
        role.query_timeout_ms = limits.integer("query_timeout_ms", 1, 86_400_000);
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

#[cfg(test)]
#[path = "document/tests.rs"]
mod tests;
