//! The ways in which the catalog fails, by whose fault it is.
//!
//! Texts here are for operators: what is told to an outsider is chosen elsewhere. No variant carries a secret.

use tokio_postgres::error::SqlState;

/// What the methods of this crate return.
pub type Result<T, E = CatalogError> = std::result::Result<T, E>;

/// Why the catalog could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum CatalogError {
    /// The configuration of the connection is wrong: a restart with another one is needed.
    #[error("the catalog's address cannot be used: {0}")]
    Address(String),
    /// The catalog cannot be reached, or does not answer in time. Trying again later helps.
    #[error("the catalog is not available: {reason}")]
    Unavailable {
        /// What happened, without the error's own words.
        reason: &'static str,
        /// What the driver said.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// Something with this name exists already.
    #[error("{what} exists already")]
    Exists {
        /// What, e.g. `a workspace of this name`.
        what: &'static str,
    },
    /// The thing to change does not exist (any more).
    #[error("{what} does not exist")]
    NotFound {
        /// What, e.g. `the workspace`.
        what: &'static str,
    },
    /// Somebody else changed it since it was read: read again and decide again.
    #[error("{what} was changed by somebody else")]
    Stale {
        /// What.
        what: &'static str,
    },
    /// The change is not allowed in the present state.
    #[error("{0}")]
    Refused(&'static str),
    /// The schema cannot be brought to, or is not at, what this program needs.
    #[error("the catalog's schema: {0}")]
    Schema(String),
    /// A row holds what it must not hold.
    #[error("the catalog holds a malformed {what}")]
    Corrupt {
        /// Which type was malformed.
        what: &'static str,
    },
    /// A sealed value does not open: another key, another place, or damage.
    #[error("a sealed value cannot be opened with this key at this place")]
    Seal,
    /// The system's random generator failed.
    #[error("the system's random generator failed")]
    Random,
    /// PostgreSQL refused a statement of ours.
    #[error("the catalog refused a statement")]
    Database(#[source] tokio_postgres::Error),
}

impl CatalogError {
    /// Whether the same call may succeed later without anybody's help.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }

    /// PostgreSQL's code, where PostgreSQL said no.
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Database(error) => error.code().map(SqlState::code),
            _ => None,
        }
    }

    pub(crate) fn timeout(reason: &'static str) -> Self {
        Self::Unavailable { reason, source: None }
    }
}

/// Names of constraints whose violation is an answer and not a fault.
const KNOWN_CONSTRAINTS: [(&str, &str); 6] = [
    ("workspace_name_key", "a workspace of this name"),
    ("workspace_server_id_database_key", "a database of this name"),
    ("workspace_pkey", "a workspace of this id"),
    ("login_username_key", "a login of this user name"),
    ("login_workspace_id_kind_key", "a login of this kind"),
    ("api_key_pkey", "an API key of this id"),
];

impl From<tokio_postgres::Error> for CatalogError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(db) = error.as_db_error() else {
            let reason = if error.is_closed() { "the connection was closed" } else { "the connection failed" };
            return Self::Unavailable { reason, source: Some(Box::new(error)) };
        };
        let (code, constraint) = (db.code().clone(), db.constraint());
        if code == SqlState::UNIQUE_VIOLATION
            && let Some((_, what)) = KNOWN_CONSTRAINTS.iter().find(|(name, _)| Some(*name) == constraint)
        {
            return Self::Exists { what };
        }
        // Shutdown, start-up, full servers, time limits, deadlocks and lost connections pass by themselves.
        let class = &code.code()[..2];
        if matches!(class, "08" | "40" | "53" | "57") || code == SqlState::LOCK_NOT_AVAILABLE {
            return Self::Unavailable { reason: "the server cannot serve now", source: Some(Box::new(error)) };
        }
        Self::Database(error)
    }
}

impl From<deadpool_postgres::PoolError> for CatalogError {
    fn from(error: deadpool_postgres::PoolError) -> Self {
        match error {
            deadpool_postgres::PoolError::Backend(error) => error.into(),
            deadpool_postgres::PoolError::Timeout(_) => Self::timeout("no connection became free in time"),
            other => Self::Unavailable { reason: "the pool failed", source: Some(Box::new(other)) },
        }
    }
}
