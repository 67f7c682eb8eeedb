//! How a session ends, and what its client is told: the one place that chooses words for an outsider.
//!
//! Every reason is a variant with its metric label and its message; the details that help an operator go to the log.

use std::time::Duration;

use bytes::BytesMut;
use portcullis_wire::{ErrorMessage, Severity, SqlState, WireError};

use crate::budget::OverBudget;
use crate::pool::LeaseError;
use crate::throttle::Throttled;
use crate::upstream::UpstreamError;

/// Why a connection or session is over.
#[derive(Debug, thiserror::Error)]
pub enum SessionEnd {
    /// The client closed before its first byte (a load balancer's health check) or after it.
    #[error("the client closed the connection")]
    ClientGone,
    /// The client said Terminate.
    #[error("the client terminated the session")]
    ClientTerminated,
    /// A CancelRequest: there was no session.
    #[error("a cancel request")]
    CancelRequest,
    /// The client's socket failed.
    #[error("the client's socket failed")]
    ClientIo(#[source] std::io::Error),
    /// No ReadyForQuery within `connect_timeout_ms`.
    #[error("the login took too long")]
    LoginTimeout,
    /// Bytes that are no message, or none that is allowed.
    #[error("the client broke the protocol")]
    ClientProtocol(#[from] WireError),
    /// A message that does not belong here.
    #[error("the client sent an unexpected message")]
    ClientMessage(u8),
    /// Bytes came before the TLS handshake that could have been injected.
    #[error("unencrypted data after a TLS request")]
    PlaintextInjected,
    /// TLS failed.
    #[error("the TLS handshake failed")]
    TlsHandshake(#[source] std::io::Error),
    /// Direct TLS without ALPN `postgresql`.
    #[error("direct TLS without the protocol name")]
    NoAlpn,
    /// A session in the clear.
    #[error("the client did not ask for TLS")]
    TlsRequired,
    /// The password, or the user, is wrong.
    #[error("authentication failed")]
    LoginFailed {
        /// The user name that was given.
        user: String,
    },
    /// Too many have failed before; whether this one would have is not told.
    #[error("refused after too many failed logins")]
    Throttled(Throttled),
    /// The SCRAM exchange itself was broken.
    #[error("the SCRAM exchange was broken: {0}")]
    Scram(String),
    /// The login does not open this database.
    #[error("the login does not open this database")]
    NoDatabase {
        /// The database that was asked for.
        database: String,
    },
    /// A startup parameter was refused.
    #[error("a startup setting was refused")]
    Setting(Box<ErrorMessage>),
    /// The workspace is not open.
    #[error("the workspace is not open: {0}")]
    WorkspaceClosed(&'static str),
    /// The catalog has not been heard of for too long.
    #[error("the catalog snapshot is too old for new logins")]
    CatalogAway,
    /// `max_connections` of the workspace.
    #[error("the workspace has too many sessions")]
    TooManySessions {
        /// The limit.
        most: u32,
    },
    /// No upstream connection for the login.
    #[error("no upstream connection")]
    Lease(#[from] LeaseError),
    /// The upstream connection failed in the middle.
    #[error("the upstream connection failed")]
    Upstream(#[from] UpstreamError),
    /// The server closed the connection after an error that the client has seen.
    #[error("the server ended the connection")]
    UpstreamFatal,
    /// The server closed the connection without a word.
    #[error("the server closed the connection")]
    UpstreamGone,
    /// The server sent what was not asked for.
    #[error("the server sent an unexpected message (type {0:#04x})")]
    UpstreamMessage(u8),
    /// A cancelled statement did not end.
    #[error("a statement ran into its time limit and did not end")]
    StatementStuck,
    /// A result was cut, and what the client has sent behind it cannot be taken back.
    #[error("a result was longer than its limit, in the middle of a pipeline")]
    ResultCut(Box<ErrorMessage>),
    /// `idle_timeout_ms`.
    #[error("idle for too long")]
    IdleTimeout,
    /// `idle_in_transaction_timeout_ms`.
    #[error("idle in a transaction for too long")]
    IdleInTransactionTimeout,
    /// `transaction_timeout_ms`.
    #[error("a transaction was open for too long")]
    TransactionTimeout,
    /// An operator ended the workspace's sessions.
    #[error("an operator ended the sessions of the workspace")]
    Killed,
    /// The login's sessions were ended, or the login is no more.
    #[error("the login's sessions were ended")]
    LoginEnded,
    /// The process stops.
    #[error("the proxy is shutting down")]
    Draining,
    /// The process holds as much memory as it may.
    #[error("no memory for a new session")]
    NoMemory(#[from] OverBudget),
    /// No random bytes.
    #[error("the operating system gave no random bytes")]
    NoRandom,
}

impl SessionEnd {
    /// The metric label.
    pub fn label(&self) -> &'static str {
        match self {
            Self::ClientGone => "client_gone",
            Self::ClientTerminated => "terminated",
            Self::CancelRequest => "cancel_request",
            Self::ClientIo(_) => "client_io",
            Self::LoginTimeout => "login_timeout",
            Self::ClientProtocol(_) | Self::ClientMessage(_) => "client_protocol",
            Self::PlaintextInjected => "plaintext_injected",
            Self::TlsHandshake(_) => "tls_handshake",
            Self::NoAlpn => "no_alpn",
            Self::TlsRequired => "tls_required",
            Self::LoginFailed { .. } => "login_failed",
            Self::Throttled(account) => account.label(),
            Self::Scram(_) => "scram",
            Self::NoDatabase { .. } => "no_database",
            Self::Setting(_) => "setting",
            Self::WorkspaceClosed(_) => "workspace_closed",
            Self::CatalogAway => "catalog_away",
            Self::TooManySessions { .. } => "too_many_sessions",
            Self::Lease(_) => "lease",
            Self::Upstream(_) | Self::UpstreamFatal | Self::UpstreamGone => "upstream",
            Self::UpstreamMessage(_) => "upstream_protocol",
            Self::StatementStuck => "statement_stuck",
            Self::ResultCut(_) => "result_cut",
            Self::IdleTimeout => "idle_timeout",
            Self::IdleInTransactionTimeout => "idle_in_transaction_timeout",
            Self::TransactionTimeout => "transaction_timeout",
            Self::Killed => "killed",
            Self::LoginEnded => "login_ended",
            Self::Draining => "draining",
            Self::NoMemory(_) => "no_memory",
            Self::NoRandom => "no_random",
        }
    }

    /// Whether an operator should see it without asking for details.
    pub fn is_remarkable(&self) -> bool {
        !matches!(
            self,
            // Those who are throttled are told of once, when that begins.
            Self::ClientGone
                | Self::ClientTerminated
                | Self::CancelRequest
                | Self::Draining
                | Self::LoginEnded
                | Self::Throttled(_)
        )
    }

    /// Writes the last message to a client that has no session yet, in the form that its protocol has.
    pub fn write_farewell(&self, out: &mut BytesMut) {
        let Some(message) = self.farewell() else { return };
        match self {
            Self::ClientProtocol(WireError::UnsupportedProtocol { major: ..=2, .. }) => {
                message.encode_error_before_3(out)
            }
            _ => message.encode_error(out),
        }
    }

    /// The last message to the client; `None` when nobody listens or all has been said.
    pub fn farewell(&self) -> Option<ErrorMessage> {
        let message = match self {
            Self::ClientGone
            | Self::ClientTerminated
            | Self::CancelRequest
            | Self::ClientIo(_)
            | Self::PlaintextInjected
            | Self::TlsHandshake(_)
            | Self::NoAlpn
            | Self::UpstreamFatal => return None,
            Self::LoginTimeout => fatal(SqlState::PROTOCOL_VIOLATION, "the login was not completed in time"),
            Self::ClientProtocol(error) => fatal(error.sqlstate(), error.to_string()),
            Self::ClientMessage(tag) => {
                fatal(SqlState::PROTOCOL_VIOLATION, format!("unexpected frontend message type {tag}"))
            }
            Self::TlsRequired => {
                fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "this server accepts encrypted connections only")
                    .hint(
                        "Connect with sslmode=require, or better sslmode=verify-full with the server's CA certificate.",
                    )
            }
            Self::LoginFailed { user } => fatal(
                SqlState::INVALID_PASSWORD,
                format!("password authentication failed for user \"{}\"", shown(user)),
            )
            .hint("Take the connection URI as it was issued; after a rotation, reveal it again."),
            Self::Throttled(_) => {
                fatal(SqlState::INVALID_AUTHORIZATION_SPECIFICATION, "too many failed logins; try again later").hint(
                    "Many logins from this network, or under this user name, have failed within the last minutes. Correct the \
                     password wherever it is stored, and wait a minute.",
                )
            }
            Self::Scram(_) => fatal(SqlState::PROTOCOL_VIOLATION, "malformed or unacceptable SCRAM message"),
            Self::NoDatabase { database } => {
                fatal(SqlState::INVALID_CATALOG_NAME, format!("database \"{}\" does not exist", shown(database)))
                    .hint("Use the database name of the issued connection URI; a login opens its own workspace only.")
            }
            Self::Setting(error) => (**error).clone(),
            Self::ResultCut(error) => fatal(SqlState::PROGRAM_LIMIT_EXCEEDED, error.message.clone())
                .hint("Connect again. Whether what was sent behind that statement took effect is not known."),
            Self::WorkspaceClosed(why) => fatal(SqlState::CANNOT_CONNECT_NOW, format!("the workspace is {why}"))
                .hint("Ask the administrator of the workspace, or try again later."),
            Self::CatalogAway => {
                fatal(SqlState::CANNOT_CONNECT_NOW, "new logins are not accepted while the catalog is away")
                    .hint("Try again in a moment; sessions that are open go on.")
            }
            Self::TooManySessions { most } => fatal(
                SqlState::TOO_MANY_CONNECTIONS,
                format!("the workspace already has {most} sessions, as many as it may have"),
            )
            .hint("Close idle sessions, use a smaller pool in the application, or have max_connections raised."),
            Self::Lease(error) => lease_message(error, true),
            Self::Upstream(_) | Self::UpstreamGone => {
                fatal(SqlState::CONNECTION_FAILURE, "the connection to the workspace's database was lost")
                    .hint("Connect again. Whether the last statement took effect is not known.")
            }
            Self::UpstreamMessage(_) => {
                fatal(SqlState::PROTOCOL_VIOLATION, "the workspace's database broke the protocol")
                    .hint("Connect again; if it happens twice, tell the administrator.")
            }
            Self::StatementStuck => {
                fatal(SqlState::QUERY_CANCELED, "the statement ran into its time limit and did not end when cancelled")
            }
            Self::IdleTimeout => {
                fatal(SqlState::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout")
            }
            Self::IdleInTransactionTimeout => fatal(
                SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            )
            .hint("End transactions as soon as their work is done; this one was rolled back."),
            Self::TransactionTimeout => {
                fatal(SqlState::TRANSACTION_TIMEOUT, "terminating connection due to transaction timeout")
                    .hint("Do the work in shorter transactions; this one was rolled back.")
            }
            Self::Killed => fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
                .hint("An operator ended the sessions of this workspace; connect again."),
            Self::LoginEnded => fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
                .hint("The sessions of this login were ended; connect with its current password."),
            Self::Draining => fatal(SqlState::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
                .hint("The gate is being restarted; connect again."),
            Self::NoMemory(_) => fatal(SqlState::OUT_OF_MEMORY, "the gate has no memory left for another session")
                .hint("Try again in a moment. The administrator finds what holds it in memory_budget_bytes, and its bound in limits.memory_bytes_max."),
            Self::NoRandom => fatal(SqlState::INTERNAL_ERROR, "the gate cannot make random numbers"),
        };
        Some(message)
    }
}

/// What a client is told when no connection can be had: FATAL during the login, an ordinary error later.
pub fn lease_message(error: &LeaseError, fatal_one: bool) -> ErrorMessage {
    let make =
        |code, text: &str| if fatal_one { ErrorMessage::fatal(code, text) } else { ErrorMessage::error(code, text) };
    match error {
        LeaseError::WaitedTooLong => {
            make(SqlState::TOO_MANY_CONNECTIONS, "no connection to the workspace's database became free in time")
                .hint("Long transactions hold connections: end them sooner, or have the pool enlarged.")
        }
        LeaseError::Paused => {
            make(SqlState::CANNOT_CONNECT_NOW, "the workspace is paused for maintenance").hint("Try again in a moment.")
        }
        LeaseError::QueueFull => {
            make(SqlState::TOO_MANY_CONNECTIONS, "too many sessions wait for a connection to the database")
                .hint("Try again in a moment.")
        }
        LeaseError::Upstream(_) => {
            make(SqlState::CANNOT_CONNECT_NOW, "the workspace's database cannot be reached at the moment")
                .hint("Try again in a moment; if it stays, the administrator finds the reason in the gate's log.")
        }
    }
}

/// What a client that waits for a connection is told, so that its user knows why nothing happens.
pub fn wait_notice(most: Duration, paused: bool) -> ErrorMessage {
    let text = "waiting for a connection to the workspace's database";
    let why = if paused { "The workspace is paused for maintenance." } else { "All that may be used are in use." };
    ErrorMessage::new(Severity::Notice, SqlState::SUCCESSFUL_COMPLETION, text)
        .detail(format!("{why} The statement waits for at most {} ms.", most.as_millis()))
}

/// Everything that led to an error, for the log: the last one is what helps.
pub fn causes(error: &dyn std::error::Error) -> Option<String> {
    let causes: Vec<String> =
        std::iter::successors(error.source(), |cause| cause.source()).map(ToString::to_string).collect();
    (!causes.is_empty()).then(|| causes.join(": "))
}

fn fatal(code: SqlState, text: impl Into<String>) -> ErrorMessage {
    ErrorMessage::fatal(code, text)
}

/// A name that a client chose, short enough to repeat.
fn shown(name: &str) -> String {
    name.chars().filter(|c| !c.is_control()).take(63).collect()
}
