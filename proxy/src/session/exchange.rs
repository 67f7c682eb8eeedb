//! The conversation of one session, without its sockets: what each client message becomes, and what each server message
//! answers.
//!
//! Every message that is sent to the server leaves an [`Expect`] in one queue. Answers that the proxy gives itself take
//! their place in that queue, so order is always that of the client's messages. An error in an extended-protocol
//! pipeline unwinds the queue up to the next Sync, as the server itself skips
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-PIPELINING>), and takes back what the
//! skipped messages had done to the maps of statements and portals.
//!
//! A refusal behaves as an error of the server. With nothing outstanding and no transaction it is answered at once;
//! otherwise a text that cannot parse takes the place of the refused one, and the server's complaint about exactly
//! that text becomes our error: the failed transaction and the skipping are then PostgreSQL's own.
//!
//! It does no I/O and makes no decision about SQL.

mod client;
mod cut;
mod names;
mod repeat;
mod server;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use portcullis_policy::Permit;
use portcullis_wire::{ErrorMessage, TransactionStatus};

use crate::prepared::Statement;
use crate::reported::Reported;
use crate::session::settings::{Settings, Values};
use crate::upstream::{RefusalToken, UpstreamState};

pub use client::{Message, Performed};
pub use cut::{ResultLimits, Row};
use names::Names;
pub use server::Handled;
pub(super) use server::hidden_parameter;

/// How many messages may wait for their answers before the client is read no more: the shortest ones cost the proxy more
/// than they cost the client, and the proxy's own answers cost the server nothing at all.
const PENDING_MAX: usize = 1024;

/// What a client's name for a prepared statement stands for.
#[derive(Debug, Clone)]
pub(super) enum Slot {
    /// A judged text.
    Statement(Arc<Statement>),
    /// A command about the maps of this session, which the server never sees.
    Local(LocalCommand),
}

/// What a client's name for a portal stands for.
#[derive(Debug, Clone)]
pub(super) enum Portal {
    /// Bound from a judged statement.
    Bound(Arc<Statement>),
    /// Declared in SQL; `hold` outlives the transaction.
    Cursor { hold: bool },
    /// Bound from a local command.
    Local(LocalCommand),
}

/// DEALLOCATE of statements that exist in the proxy's maps only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum LocalCommand {
    Deallocate(String),
    DeallocateAll,
}

impl LocalCommand {
    fn tag(&self) -> &'static str {
        match self {
            Self::Deallocate(_) => "DEALLOCATE",
            Self::DeallocateAll => "DEALLOCATE ALL",
        }
    }
}

/// How to take back what a message did to the maps, when the server skips it.
#[derive(Debug)]
pub(super) enum Undo {
    Nothing,
    Statement(String, Option<Slot>),
    Portal(String, Option<Portal>),
}

/// Our error in the server's place.
#[derive(Debug)]
pub(super) struct Refusal {
    token: RefusalToken,
    error: Box<ErrorMessage>,
}

/// What the server owes for one message, in order.
#[derive(Debug)]
pub(super) enum Expect {
    /// The proxy's own statement that moves settings; nothing of it reaches the client.
    Settings,
    /// A Query; `completed` counts its statements that have ended.
    Query { permit: Option<Permit>, completed: usize, refusal: Option<Refusal> },
    /// A Parse of the client's, or one that only re-prepares (`visible: false`).
    Parse { visible: bool, named: bool, statement: Arc<Statement>, undo: Undo },
    /// A Parse that only gives a DEALLOCATE something to find.
    StandIn,
    /// A Parse that must fail.
    RefusedParse(Refusal),
    /// Bind.
    Bind { undo: Undo },
    /// Describe; the statement when it is one.
    Describe { statement: Option<Arc<Statement>> },
    /// Execute; the statement unless it is a cursor's portal.
    Execute { statement: Option<Arc<Statement>>, portal: String },
    /// Close of a portal, or of a statement that made room (`visible: false`).
    Close { visible: bool, undo: Undo },
    /// Sync. One that was sent during COPY FROM STDIN is ignored by the server if the copy has begun.
    Sync { in_copy: bool },
    /// The proxy's own Query that fails a transaction in which a result was cut.
    FailTransaction,
    /// The proxy's own answer.
    Local { reply: Bytes, undo: Undo },
}

/// COPY FROM STDIN, from the statement that begins it to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CopyIn {
    /// The server has said CopyInResponse.
    begun: bool,
    /// CopyDone or CopyFail has been sent.
    done: bool,
}

/// Limits of one conversation.
#[derive(Debug, Clone, Copy)]
pub struct ExchangeLimits {
    /// Protocol-level prepared statements that a session may hold.
    pub prepared_statements_max: usize,
    /// The policy gives each session a connection of its own.
    pub session_pooling: bool,
    /// An unnamed statement that comes again is kept prepared.
    pub keeps_unnamed: bool,
}

/// What the conversation needs to know of the moment: who judges, and how old the schema is.
pub struct Surroundings<'a> {
    /// Judges a text again when the policy has changed since it was prepared.
    pub rejudge: &'a dyn Fn(&Statement) -> Result<Permit, Box<ErrorMessage>>,
    /// The digest of the policy in force.
    pub policy: &'a Arc<str>,
    /// See [`crate::pool::Lease::schema_epoch`].
    pub schema_epoch: u64,
}

/// The state of one session's conversation.
pub struct Exchange {
    limits: ExchangeLimits,
    session: u64,
    pending: VecDeque<Expect>,
    statements: Names<Slot>,
    portals: Names<Portal>,
    /// Names of SQL's PREPARE; `false` until the server has confirmed it.
    sql_prepared: HashMap<String, bool>,
    /// Names of SQL's PREPARE of a statement that writes.
    sql_writers: HashSet<String>,
    settings: Settings,
    /// What the client was told last.
    reported: Reported,
    copy_in: Option<CopyIn>,
    copy_failure: Option<Box<ErrorMessage>>,
    cancel_failure: Option<Box<ErrorMessage>>,
    /// What the client has got of the result at the head of the queue, and of portals that have more to give.
    sent: cut::Sent,
    fetched: HashMap<String, cut::Sent>,
    /// The result at the head is cut: rows are dropped until the server ends, then the client gets this.
    cut: Option<Box<ErrorMessage>>,
    /// A result was cut whose statement had ended well: its transaction has to fail.
    fails_transaction: bool,
    /// Messages of the extended protocol were sent and no Sync after them.
    open_pipeline: bool,
    /// An error came; everything up to Sync is dropped.
    skip_until_sync: bool,
    /// As many messages wait for their answers as may.
    crowded: bool,
    /// The server reported an error since the last ReadyForQuery.
    failed: bool,
    pin: Option<&'static str>,
    tainted: bool,
    schema_changed: bool,
    /// The search path or the schema changes in the transaction at hand, or may: what is prepared now is not shared.
    in_doubt: bool,
    /// How many statements were prepared while in doubt.
    doubts: u64,
    repeat: repeat::Repeat,
    /// When the session's task was woken for what happens now.
    now: Instant,
    head_since: Instant,
}

impl Exchange {
    /// The conversation of the session of this number, which begins with the settings of the startup packet and what
    /// was reported to the client for them.
    pub fn new(limits: ExchangeLimits, session: u64, startup: Values, reported: Reported) -> Self {
        let now = Instant::now();
        Self {
            limits,
            session,
            pending: VecDeque::new(),
            statements: Names::default(),
            portals: Names::default(),
            sql_prepared: HashMap::new(),
            sql_writers: HashSet::new(),
            settings: Settings::new(startup),
            reported,
            copy_in: None,
            copy_failure: None,
            cancel_failure: None,
            sent: cut::Sent::default(),
            fetched: HashMap::new(),
            cut: None,
            fails_transaction: false,
            open_pipeline: false,
            skip_until_sync: false,
            crowded: false,
            failed: false,
            pin: None,
            tainted: false,
            schema_changed: false,
            in_doubt: false,
            doubts: 0,
            repeat: repeat::Repeat::default(),
            now,
            head_since: now,
        }
    }

    /// Tells the time, for what happens until the next call.
    pub fn tick(&mut self, now: Instant) {
        self.now = now;
    }

    /// Whether the server owes nothing and no pipeline is open.
    pub fn is_quiet(&self) -> bool {
        self.pending.is_empty() && !self.open_pipeline && !self.must_repeat()
    }

    /// Whether so many answers are outstanding that the client's next message has to wait. It waits until half of them
    /// are in, and has the server told to send what it may be holding back until a Sync.
    pub fn is_crowded(&mut self, upstream: Option<&mut UpstreamState>) -> bool {
        let most = if self.crowded { PENDING_MAX / 2 } else { PENDING_MAX };
        let crowded = self.pending.len() >= most;
        if crowded
            && !self.crowded
            && let Some(upstream) = upstream
        {
            upstream.outgoing.flush();
        }
        self.crowded = crowded;
        crowded
    }

    /// Whether the connection is just being brought to this session's settings.
    pub fn is_moving_settings(&self) -> bool {
        matches!(self.pending.front(), Some(Expect::Settings))
    }

    /// Whether a connection in this status may go to another session.
    pub fn may_release(&self, status: TransactionStatus) -> bool {
        self.is_quiet() && !self.is_pinned() && status == TransactionStatus::Idle && self.copy_in.is_none()
    }

    /// Why the session stays on its connection, if it does.
    pub fn pin(&self) -> Option<&'static str> {
        self.pin.or(self.limits.session_pooling.then_some("policy"))
    }

    /// Whether the client wants to hear NOTICEs, by its `client_min_messages`.
    pub fn takes_notices(&self) -> bool {
        let least = self.settings.desired().get("client_min_messages").map(|value| value.to_ascii_lowercase());
        !matches!(least.as_deref(), Some("warning" | "error"))
    }

    /// Whether the session stays on its connection.
    pub fn is_pinned(&self) -> bool {
        self.pin().is_some()
    }

    /// Whether the server is working for this session, and since when on the statement at hand.
    pub fn working_since(&self) -> Option<Instant> {
        (!self.pending.is_empty() && !self.holds_one_answer()).then_some(self.head_since)
    }

    /// Whether all that is owed is one answer of the proxy's own, which goes out with the next that the server gives.
    fn holds_one_answer(&self) -> bool {
        self.pending.len() == 1 && matches!(self.pending.front(), Some(Expect::Local { .. }))
    }

    /// Whether what ran since the last call left something on the connection that the next session must not meet.
    pub fn take_taint(&mut self) -> bool {
        std::mem::take(&mut self.tainted)
    }

    /// Whether a statement since the last call may have changed what others' prepared statements return.
    pub fn take_schema_change(&mut self) -> bool {
        std::mem::take(&mut self.schema_changed)
    }

    /// The next 57014 of the server is answered with this instead: the cancel was ours.
    pub fn cancelled_because(&mut self, error: ErrorMessage) {
        self.cancel_failure = Some(Box::new(error));
    }

    fn expect(&mut self, expect: Expect) {
        let first = self.pending.is_empty();
        self.pending.push_back(expect);
        if first {
            self.head_changed();
        }
    }

    fn head_changed(&mut self) {
        self.head_since = self.now;
        self.begin_result();
    }

    fn take_back(&mut self, undo: Undo) {
        match undo {
            Undo::Nothing => {}
            Undo::Statement(name, Some(slot)) => {
                self.statements.insert(name, slot);
            }
            Undo::Statement(name, None) => {
                self.statements.remove(&name);
            }
            Undo::Portal(name, Some(portal)) => {
                self.portals.insert(name, portal);
            }
            Undo::Portal(name, None) => {
                self.portals.remove(&name);
            }
        }
    }

    fn run_local(&mut self, command: &LocalCommand) {
        match command {
            LocalCommand::Deallocate(name) => {
                self.statements.remove(name);
            }
            LocalCommand::DeallocateAll => self.statements.clear(),
        }
    }

    /// DISCARD ALL as far as this session's own books go.
    fn discard_all(&mut self) {
        self.statements.clear();
        self.portals.clear();
        self.sql_prepared.clear();
        self.settings.reset_all();
    }
}
