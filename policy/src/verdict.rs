//! What the judge answers: a `Permit`, the proof without which nothing reaches an upstream, or a `Denial` in words that
//! a client understands. It must not decide anything, and nobody outside this crate can make a `Permit`.

use std::fmt;
use std::sync::Arc;

use crate::rule::Rule;

/// The answer to one text.
#[derive(Debug, Clone)]
pub enum Verdict {
    /// Exactly this text may be forwarded.
    Allow(Permit),
    /// The text must not be forwarded.
    Deny(Arc<Denial>),
}

/// Where a text comes from: it decides whether several statements in one text can pass at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Surface {
    /// A `Query` message of the simple protocol; several statements may pass, as the role's policy says.
    SimpleQuery,
    /// A `Parse` message of the extended protocol: at most one statement.
    Parse,
    /// The HTTP interfaces, query tools and agents: exactly one statement.
    Http,
}

/// What the session is connected to, as far as names in SQL can mention it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The names under which the session's own database may stand in front of `schema.table`.
    pub database_names: &'a [&'a str],
}

/// Proof that a text passed. Only the judge makes one, and the cache for a text that differs from a judged one in nothing but
/// literals which no rule looked at; it carries the very text that it is for.
#[derive(Clone)]
pub struct Permit {
    text: Arc<str>,
    passed: Arc<Passed>,
}

/// Everything about a text that passed but the text itself: texts of one shape share it.
pub(crate) struct Passed {
    pub(crate) kind: Kind,
    pub(crate) statements: usize,
    pub(crate) effects: Vec<Effect>,
    /// For each statement, where its effects end in `effects`.
    pub(crate) ends: Vec<usize>,
    pub(crate) reads: Vec<String>,
    pub(crate) writes: Vec<String>,
    pub(crate) functions: Vec<String>,
    /// Whether some literal had a say in the verdict, so that another one might change it.
    pub(crate) literals_matter: bool,
}

impl Permit {
    pub(crate) fn new(text: &str, passed: Passed) -> Self {
        Self { text: text.into(), passed: Arc::new(passed) }
    }

    /// The same for a text that differs from the judged one in nothing but literals which no rule looked at.
    pub(crate) fn of_same_shape(&self, text: &str) -> Self {
        Self { text: text.into(), passed: self.passed.clone() }
    }

    pub(crate) fn literals_matter(&self) -> bool {
        self.passed.literals_matter
    }

    /// The text as the cache shares it.
    pub(crate) fn shared_text(&self) -> &Arc<str> {
        &self.text
    }

    /// Roughly what the permit takes in memory, its text included, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let passed = &self.passed;
        let names = [&passed.reads, &passed.writes, &passed.functions].into_iter().flatten();
        let names: usize = names.map(|name| size_of::<String>() + name.len()).sum();
        let effects = passed.effects.len() * 2 * size_of::<Effect>() + passed.ends.len() * size_of::<usize>();
        size_of::<Passed>() + self.text.len() + names + effects
    }

    /// The text that passed: these bytes may be forwarded, and no others.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What the text does to the session, in the order of its statements.
    pub fn effects(&self) -> &[Effect] {
        &self.passed.effects
    }

    /// What one statement of the text does, by its number from 0; nothing for a number that the text does not have.
    pub fn effects_of(&self, statement: usize) -> &[Effect] {
        let ends = &self.passed.ends;
        let from = statement.checked_sub(1).and_then(|before| ends.get(before)).copied().unwrap_or(0);
        ends.get(statement).map_or(&[], |to| &self.passed.effects[from..*to])
    }

    /// How many statements the text has; 0 is the empty query that clients ping with.
    pub fn statements(&self) -> usize {
        self.passed.statements
    }

    /// The kind of the statement that works, or of the first one where none does.
    pub fn command(&self) -> Kind {
        self.passed.kind
    }

    /// The relations that are read, as written after PostgreSQL's decoding, sorted, without CTEs.
    pub fn reads(&self) -> &[String] {
        &self.passed.reads
    }

    /// The relations and other objects that are written, locked, truncated, defined or dropped, sorted.
    pub fn writes(&self) -> &[String] {
        &self.passed.writes
    }

    /// The functions that are called, sorted.
    pub fn functions(&self) -> &[String] {
        &self.passed.functions
    }
}

impl fmt::Debug for Permit {
    /// Leaves the text out: it may carry customers' data, and permits end up in logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit")
            .field("kind", &self.passed.kind)
            .field("statements", &self.passed.statements)
            .field("effects", &self.passed.effects)
            .finish_non_exhaustive()
    }
}

/// Statement kinds, named as PostgreSQL's command tags where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "the variants are PostgreSQL's own command names")]
pub enum Kind {
    Empty,
    Select,
    Explain,
    Insert,
    Update,
    Delete,
    Merge,
    CopyIn,
    CopyOut,
    Truncate,
    CreateTable,
    CreateTableAs,
    AlterTable,
    DropTable,
    CreateIndex,
    AlterIndex,
    DropIndex,
    CreateSequence,
    AlterSequence,
    DropSequence,
    CreateView,
    AlterView,
    DropView,
    CreateMaterializedView,
    AlterMaterializedView,
    RefreshMaterializedView,
    DropMaterializedView,
    CreateType,
    AlterType,
    DropType,
    CreateDomain,
    AlterDomain,
    DropDomain,
    CreateStatistics,
    AlterStatistics,
    DropStatistics,
    Analyze,
    Comment,
    Lock,
    Transaction,
    Set,
    Show,
    DeclareCursor,
    Fetch,
    CloseCursor,
    Prepare,
    Execute,
    Deallocate,
    Discard,
    Listen,
    Notify,
    Unlisten,
    SetConstraints,
    /// A statement that no policy of this gate can allow; the text is PostgreSQL's name for it.
    Other(&'static str),
}

impl Kind {
    /// The kinds that a policy can choose from. The others only begin, end, show or give back something.
    pub(crate) const CHOOSABLE: &[Self] = &[
        Self::Select,
        Self::Explain,
        Self::Insert,
        Self::Update,
        Self::Delete,
        Self::Merge,
        Self::CopyIn,
        Self::CopyOut,
        Self::Truncate,
        Self::CreateTable,
        Self::CreateTableAs,
        Self::AlterTable,
        Self::DropTable,
        Self::CreateIndex,
        Self::AlterIndex,
        Self::DropIndex,
        Self::CreateSequence,
        Self::AlterSequence,
        Self::DropSequence,
        Self::CreateView,
        Self::AlterView,
        Self::DropView,
        Self::CreateMaterializedView,
        Self::AlterMaterializedView,
        Self::RefreshMaterializedView,
        Self::DropMaterializedView,
        Self::CreateType,
        Self::AlterType,
        Self::DropType,
        Self::CreateDomain,
        Self::AlterDomain,
        Self::DropDomain,
        Self::CreateStatistics,
        Self::AlterStatistics,
        Self::DropStatistics,
        Self::Analyze,
        Self::Comment,
        Self::Lock,
        Self::DeclareCursor,
        Self::Fetch,
        Self::Prepare,
        Self::Execute,
        Self::Listen,
        Self::Notify,
        Self::SetConstraints,
    ];

    /// PostgreSQL's name for the command, in upper case.
    pub fn name(self) -> &'static str {
        match self {
            Self::Empty => "EMPTY QUERY",
            Self::Select => "SELECT",
            Self::Explain => "EXPLAIN",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Merge => "MERGE",
            Self::CopyIn => "COPY FROM",
            Self::CopyOut => "COPY TO",
            Self::Truncate => "TRUNCATE TABLE",
            Self::CreateTable => "CREATE TABLE",
            Self::CreateTableAs => "CREATE TABLE AS",
            Self::AlterTable => "ALTER TABLE",
            Self::DropTable => "DROP TABLE",
            Self::CreateIndex => "CREATE INDEX",
            Self::AlterIndex => "ALTER INDEX",
            Self::DropIndex => "DROP INDEX",
            Self::CreateSequence => "CREATE SEQUENCE",
            Self::AlterSequence => "ALTER SEQUENCE",
            Self::DropSequence => "DROP SEQUENCE",
            Self::CreateView => "CREATE VIEW",
            Self::AlterView => "ALTER VIEW",
            Self::DropView => "DROP VIEW",
            Self::CreateMaterializedView => "CREATE MATERIALIZED VIEW",
            Self::AlterMaterializedView => "ALTER MATERIALIZED VIEW",
            Self::RefreshMaterializedView => "REFRESH MATERIALIZED VIEW",
            Self::DropMaterializedView => "DROP MATERIALIZED VIEW",
            Self::CreateType => "CREATE TYPE",
            Self::AlterType => "ALTER TYPE",
            Self::DropType => "DROP TYPE",
            Self::CreateDomain => "CREATE DOMAIN",
            Self::AlterDomain => "ALTER DOMAIN",
            Self::DropDomain => "DROP DOMAIN",
            Self::CreateStatistics => "CREATE STATISTICS",
            Self::AlterStatistics => "ALTER STATISTICS",
            Self::DropStatistics => "DROP STATISTICS",
            Self::Analyze => "ANALYZE",
            Self::Comment => "COMMENT",
            Self::Lock => "LOCK TABLE",
            Self::Transaction => "transaction control",
            Self::Set => "SET",
            Self::Show => "SHOW",
            Self::DeclareCursor => "DECLARE CURSOR",
            Self::Fetch => "FETCH",
            Self::CloseCursor => "CLOSE",
            Self::Prepare => "PREPARE",
            Self::Execute => "EXECUTE",
            Self::Deallocate => "DEALLOCATE",
            Self::Discard => "DISCARD",
            Self::Listen => "LISTEN",
            Self::Notify => "NOTIFY",
            Self::Unlisten => "UNLISTEN",
            Self::SetConstraints => "SET CONSTRAINTS",
            Self::Other(name) => name,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a permitted statement does to the state of its session or connection, for the proxy's bookkeeping.
/// The judge cannot know whether the statement will succeed: an effect is what happens if it does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// BEGIN or START TRANSACTION.
    Begin,
    /// COMMIT or END; `chain` opens the next transaction at once.
    Commit {
        /// AND CHAIN
        chain: bool,
    },
    /// ROLLBACK or ABORT.
    Rollback {
        /// AND CHAIN
        chain: bool,
    },
    /// SAVEPOINT name
    Savepoint(String),
    /// ROLLBACK TO SAVEPOINT name
    RollbackTo(String),
    /// RELEASE SAVEPOINT name
    Release(String),
    /// SET, SET LOCAL or `set_config` of one parameter.
    Set {
        /// The parameter in lower case (`timezone`, whatever way it was written).
        name: String,
        /// Flattened so that `set_config(name, value, false)` has the same effect; `None` is SET … TO DEFAULT.
        value: Option<String>,
        /// Ends with the transaction, so it need not be tracked.
        local: bool,
    },
    /// `set_config` of this parameter with a bound value ($n), which only the server's ParameterStatus or the Bind shows:
    /// the proxy cannot replay it unless it reads the Bind.
    SetBound {
        /// The parameter in lower case.
        name: String,
        /// The parameter number, from 1.
        parameter: u16,
        /// Ends with the transaction.
        local: bool,
    },
    /// RESET name
    Reset {
        /// The parameter in lower case.
        name: String,
    },
    /// RESET ALL, also as a part of DISCARD ALL (which comes as [`Effect::DiscardAll`] alone).
    ResetAll,
    /// SET SESSION AUTHORIZATION DEFAULT inside a batch of resets: does nothing for a login that never changed it.
    ResetSessionAuthorization,
    /// PREPARE name AS …
    SqlPrepare {
        /// The statement's name.
        name: String,
    },
    /// EXECUTE name
    SqlExecute {
        /// The statement's name.
        name: String,
    },
    /// DEALLOCATE name
    SqlDeallocate {
        /// The statement's name.
        name: String,
    },
    /// DEALLOCATE ALL
    DeallocateAll,
    /// DISCARD ALL
    DiscardAll,
    /// DISCARD PLANS, SEQUENCES or TEMP
    DiscardOther,
    /// DECLARE name CURSOR
    Declare {
        /// The cursor's name.
        name: String,
        /// WITH HOLD: it outlives the transaction and pins the session.
        hold: bool,
    },
    /// FETCH or MOVE
    Fetch {
        /// The cursor's name.
        name: String,
    },
    /// CLOSE name
    CloseCursor {
        /// The cursor's name.
        name: String,
    },
    /// CLOSE ALL
    CloseAll,
    /// LISTEN channel
    Listen(String),
    /// UNLISTEN channel; `None` is UNLISTEN *.
    Unlisten(Option<String>),
    /// COPY … FROM STDIN: expect CopyInResponse.
    CopyIn,
    /// COPY … TO STDOUT: expect CopyOutResponse.
    CopyOut,
    /// From here on the session needs this very connection.
    Pin(PinReason),
    /// The connection must be cleaned (or closed) before another session gets it.
    Taint(TaintReason),
}

/// Why a session stays on its connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PinReason {
    /// SQL-level PREPARE.
    PreparedStatement,
    /// A cursor WITH HOLD.
    HoldCursor,
    /// `nextval`, `setval` or `lastval` by name: `currval` and `lastval` are per connection.
    Sequence,
    /// LISTEN
    Listen,
    /// A temporary table.
    TemporaryTable,
    /// A session-level advisory lock.
    AdvisoryLock,
}

impl PinReason {
    /// A short stable word for metrics and `/sessions`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreparedStatement => "prepared_statement",
            Self::HoldCursor => "hold_cursor",
            Self::Sequence => "sequence",
            Self::Listen => "listen",
            Self::TemporaryTable => "temporary_table",
            Self::AdvisoryLock => "advisory_lock",
        }
    }
}

/// Why a connection must be cleaned before the next session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TaintReason {
    /// A setting that the proxy cannot follow exactly (a bound `set_config`).
    Setting,
    /// Sequence state (`currval`) of a connection.
    Sequence,
    /// A holdable cursor, a prepared statement, a channel, a temporary table or an advisory lock.
    SessionObject,
}

impl TaintReason {
    /// A short stable word for metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Setting => "setting",
            Self::Sequence => "sequence",
            Self::SessionObject => "session_object",
        }
    }
}

/// A refusal, with everything an ErrorResponse of the server would carry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Denial {
    /// Five characters, see <https://www.postgresql.org/docs/current/errcodes-appendix.html>.
    pub sqlstate: &'static str,
    /// What is wrong; the contract's words where it has some.
    pub message: String,
    /// The rule that refused.
    pub rule: Rule,
    /// The object that the rule is about, decoded, such as `public.notes` or `pg_sleep`.
    pub object: Option<String>,
    /// Names rule and object in a sentence.
    pub detail: String,
    /// What to do instead.
    pub hint: String,
    /// Where in the text, 1-based, in characters as PostgreSQL counts.
    pub position: Option<u32>,
}
