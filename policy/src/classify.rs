//! What a statement is: its kind, what it reads, writes, locks and defines, what it calls and sets.
//!
//! The walk over PostgreSQL's tree is exhaustive: every kind of node is named in a match without a wildcard, and what is not
//! expected at its place is refused (`node.unknown`). It collects facts and must not know any role's rights; only what no
//! policy can allow is refused here.

mod columns;
mod define;
mod names;
mod query;
mod session;
mod statement;
mod walk;

use pg_query::protobuf as pb;

use crate::document::{DefineObject, TableRule};
use crate::rule::Rule;
use crate::verdict::{Effect, Kind};

pub(crate) use columns::{Exposed, Exposure, Touched, column_name};
pub(crate) use names::{Name, strings};
pub(crate) use session::{cast_to, constant};
pub(crate) use statement::classify;

/// A byte offset into the text; negative where the parser gives none.
pub(crate) type Location = i32;

/// What a statement does to a relation or to another object of a schema.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Access {
    /// SELECT, COPY TO, LIKE, LOCK IN ACCESS SHARE MODE.
    Read,
    /// INSERT, UPDATE, DELETE, MERGE, COPY FROM.
    Write,
    /// FOR UPDATE, FOR SHARE and the like.
    LockRows,
    /// LOCK in any mode beyond ACCESS SHARE.
    LockTable,
    /// TRUNCATE
    Truncate,
    /// A foreign key, a parent or a partition: the other side of a definition.
    Reference,
    /// CREATE, ALTER, DROP, COMMENT.
    Define(DefineObject),
    /// CREATE TEMPORARY.
    DefineTemporary,
    /// nextval, setval, currval.
    Sequence,
}

/// One use of a relation (or, for definitions, of another object in a schema). A negative location: the parser gives none.
#[derive(Debug, Clone)]
pub(crate) struct Use<'t> {
    pub(crate) name: Name<'t>,
    pub(crate) access: Access,
    pub(crate) touched: Touched<'t>,
    pub(crate) location: Location,
}

/// One call of a function.
#[derive(Debug, Clone)]
pub(crate) struct Call<'t> {
    pub(crate) name: Name<'t>,
    pub(crate) arguments: &'t [pb::Node],
    pub(crate) location: Location,
    /// Stands in a definition (a default, a check, a view), so that nothing is called now.
    pub(crate) deferred: bool,
}

/// `x.name` where `name` may call a function.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Attribute<'t> {
    pub(crate) name: &'t str,
    pub(crate) of: AttributeOf<'t>,
    pub(crate) location: Location,
}

/// What stands in front of an [`Attribute`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AttributeOf<'t> {
    /// `x.name`
    Alias(&'t str),
    /// `schema.table.name`
    Table,
    /// `(expression).name`
    Value,
}

/// A qualified name of something else that lives in a schema: a type, an operator, a collation, an operator class.
#[derive(Debug, Clone)]
pub(crate) struct Other<'t> {
    pub(crate) what: &'static str,
    pub(crate) name: Name<'t>,
    pub(crate) location: Location,
}

/// One parameter that is set.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    /// In lower case.
    pub(crate) name: String,
    pub(crate) value: SettingValue,
    pub(crate) location: Location,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SettingValue {
    /// As `set_config` would take it.
    Text(String),
    /// DEFAULT, RESET or NULL.
    Default,
    /// $n
    Bound(u16),
}

/// Everything the judge looks at, for one statement.
#[derive(Debug)]
pub(crate) struct Facts<'t> {
    pub(crate) kind: Kind,
    /// Statements inside it that count for themselves: what changes data in WITH, EXPLAIN, PREPARE, a cursor or COPY, and
    /// the parts of MERGE and ON CONFLICT.
    pub(crate) inner: Vec<Kind>,
    pub(crate) location: Location,
    pub(crate) uses: Vec<Use<'t>>,
    /// The first reference to what is not open of a watched table.
    pub(crate) exposure: Option<Exposure<'t>>,
    pub(crate) calls: Vec<Call<'t>>,
    pub(crate) attributes: Vec<Attribute<'t>>,
    /// The names under which functions stand in FROM; `None` for one whose name is not known.
    pub(crate) functions_in_from: Vec<Option<&'t str>>,
    pub(crate) others: Vec<Other<'t>>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) effects: Vec<Effect>,
    /// Names of cursors, prepared statements and savepoints.
    pub(crate) session_names: Vec<&'t str>,
    /// A plain SELECT of nothing but `set_config` and `pg_advisory_unlock_all`.
    pub(crate) only_settings: bool,
    /// LISTEN or NOTIFY.
    pub(crate) notifies: bool,
    /// COPY FROM STDIN or TO STDOUT.
    pub(crate) copies: bool,
    /// SET SESSION AUTHORIZATION DEFAULT.
    pub(crate) resets_authorization: bool,
}

impl Facts<'_> {
    fn new(location: Location) -> Self {
        Self {
            kind: Kind::Other("statement"),
            inner: Vec::new(),
            location,
            uses: Vec::new(),
            exposure: None,
            calls: Vec::new(),
            attributes: Vec::new(),
            functions_in_from: Vec::new(),
            others: Vec::new(),
            settings: Vec::new(),
            effects: Vec::new(),
            session_names: Vec::new(),
            only_settings: false,
            notifies: false,
            copies: false,
            resets_authorization: false,
        }
    }
}

/// A refusal that needs no policy: what no role may do.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) rule: Rule,
    /// What is refused, as PostgreSQL names it.
    pub(crate) object: String,
    /// Why, as the end of the sentence "Rule x: …".
    pub(crate) why: String,
    /// What to do instead; empty for the role's general advice.
    pub(crate) hint: &'static str,
    pub(crate) location: Location,
}

pub(crate) type Walked = Result<(), Box<Refusal>>;

/// A refusal of a whole kind of statement.
fn kind_refused(name: &'static str, location: Location) -> Box<Refusal> {
    Box::new(Refusal {
        rule: Rule::StatementNotAllowed,
        object: name.to_owned(),
        why: format!("{name} is not among the statements that pass"),
        hint: "",
        location,
    })
}

/// A refusal of a part of a statement whose kind may pass.
fn clause_refused(object: &str, hint: &'static str, location: Location) -> Box<Refusal> {
    Box::new(Refusal {
        rule: Rule::ClauseNotAllowed,
        object: object.to_owned(),
        why: format!("{object} does not pass"),
        hint,
        location,
    })
}

/// A refusal of a node that is not known, or not known at its place.
fn node_refused(name: &str) -> Box<Refusal> {
    Box::new(Refusal {
        rule: Rule::NodeUnknown,
        object: name.to_owned(),
        why: format!("syntax of kind {name} is not known at this place"),
        hint: "Write the statement without it.",
        location: -1,
    })
}

/// The walk over one statement.
struct Walker<'t> {
    facts: Facts<'t>,
    /// CTEs in scope, innermost last; they hide unqualified relation names.
    ctes: Vec<&'t str>,
    /// Tables whose columns are looked at one by one, sorted by table and schema.
    watched: &'t [TableRule],
    /// Those in scope, innermost last, from `level` on those of the innermost query.
    visible: Vec<columns::Visible<'t>>,
    level: usize,
    /// Inside a definition, whose expressions run later.
    deferred: bool,
}
