//! Logins, which customers hold, and backend roles, which the proxy holds. The two are never the same.

use std::fmt;

use jiff::Timestamp;

use crate::{
    id::{Generation, LoginId, WorkspaceId},
    seal::Sealed,
    workspace::spelt,
};

spelt!(
    /// The life of a login's version: `pending → active → grace → revoked`.
    VersionState {
        /// Stored, not yet accepted.
        Pending = "pending",
        /// The newest accepted one.
        Active = "active",
        /// Replaced, and accepted until `valid_until`.
        Grace = "grace",
        /// Never accepted again; its secrets are gone.
        Revoked = "revoked",
    }
);

/// A login: what a customer's URI names. All its live versions share salt and iteration count, so that one SCRAM
/// exchange can be finished with either password.
#[derive(Clone, Debug)]
pub struct Login {
    /// Its id.
    pub id: LoginId,
    /// The workspace that it opens.
    pub workspace: WorkspaceId,
    /// Its kind, which the profile defines, e.g. `customer_db`.
    pub kind: String,
    /// The user name on the wire.
    pub username: String,
    /// SCRAM's salt.
    pub salt: Vec<u8>,
    /// SCRAM's iteration count.
    pub iterations: u32,
    /// Raised to end sessions: a session that began under a lower epoch ends with 57P01.
    pub session_epoch: i64,
    /// The versions that were alive when this was read, newest first; at most two. Ask [`Login::accepted`].
    pub versions: Vec<LoginVersion>,
}

impl Login {
    /// The versions whose password is accepted at `now`, newest first.
    pub fn accepted(&self, now: Timestamp) -> impl Iterator<Item = &LoginVersion> {
        self.versions.iter().filter(move |v| crate::credentials::is_accepted(v.state, v.valid_until, now))
    }
}

/// One password of a login, as a SCRAM verifier (RFC 5802 §3).
#[derive(Clone)]
pub struct LoginVersion {
    /// From 1.
    pub version: i32,
    /// `Active` or `Grace`.
    pub state: VersionState,
    /// SCRAM's StoredKey.
    pub stored_key: [u8; 32],
    /// SCRAM's ServerKey.
    pub server_key: [u8; 32],
    /// From this moment on it is not accepted; `None` means for ever.
    pub valid_until: Option<Timestamp>,
    /// When it was made.
    pub created_at: Timestamp,
}

impl fmt::Debug for LoginVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginVersion")
            .field("version", &self.version)
            .field("state", &self.state)
            .field("valid_until", &self.valid_until)
            .field("created_at", &self.created_at)
            .finish_non_exhaustive()
    }
}

/// What the proxy logs in with at the workspace's server, for one kind of login.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendRole {
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The kind of login that it serves.
    pub kind: String,
    /// The NOLOGIN role that holds the grants, sent as `role` in the startup packet.
    pub role: String,
    /// The login role, `…_a` or `…_b`.
    pub login: String,
    /// Raised with every new credential; part of the pool's key.
    pub generation: Generation,
    /// SCRAM's salt, as PostgreSQL has it.
    pub salt: Vec<u8>,
    /// SCRAM's iteration count, as PostgreSQL has it.
    pub iterations: u32,
    /// SCRAM's ClientKey and ServerKey under the proxy key: see [`crate::seal::ProxyKey::open_backend`].
    pub sealed_keys: Sealed,
}
