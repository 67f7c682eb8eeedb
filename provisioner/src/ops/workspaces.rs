//! Workspaces: made, found, described.

use jiff::Timestamp;
use portcullis_catalog::{Actor, CatalogError, Mode, NewWorkspace, ServerId, Settings, Workspace, WorkspaceId};

use super::credentials::{self, Credential, CredentialError};
use crate::Provisioner;
use crate::reconcile::{self, IfMissing, ReconcileError};
use crate::server::{ServerError, Session};

/// C9: what holds where nothing was set for a workspace.
pub const QUERY_TIMEOUT_MS: u64 = 30_000;
/// C9: what holds where nothing was set for a workspace.
pub const MAX_ROWS_PER_QUERY: u64 = 1_000;
/// C9: client sessions, where nothing was set for a workspace.
pub const MAX_CONNECTIONS: u32 = 100;

/// A name that a workspace may have (T7, C13): 1 to 53 bytes without `__`, so that `<name>_workspace` is an identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name(String);

impl Name {
    /// Checks a name.
    ///
    /// # Errors
    /// A sentence that says what is wrong with it.
    pub fn parse(text: &str) -> Result<Name, &'static str> {
        match text {
            _ if text.is_empty() => Err("name must not be empty"),
            _ if text.len() > 53 => Err("name must not be longer than 53 bytes"),
            _ if text.contains("__") => Err("name cannot contain `__`: it is a reserved separator"),
            _ if text.chars().any(char::is_control) => Err("name must not contain control characters"),
            _ if text.trim() != text => Err("name must not begin or end with white space"),
            _ if WorkspaceId::parse(text).is_some() => Err("name must not look like a workspace's id"),
            _ => Ok(Name(text.to_owned())),
        }
    }
}

/// What a new workspace is to be.
#[derive(Debug)]
pub struct Wanted {
    /// Its name.
    pub name: Name,
    /// Tenant or control.
    pub mode: Mode,
    /// The name of its profile, which exists.
    pub profile: String,
}

/// Why a workspace could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// The catalog refused or failed.
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    /// No server was there, so nothing was recorded.
    #[error(transparent)]
    NoServer(ServerError),
    /// It is recorded and not finished; the reconciler goes on with it.
    #[error("{error}")]
    Unfinished {
        /// The workspace.
        id: WorkspaceId,
        /// What stopped it.
        error: ReconcileError,
    },
    /// Its credential cannot be given.
    #[error(transparent)]
    Credential(#[from] CredentialError),
}

/// Records a workspace, makes its database, and gives its primary credential.
///
/// # Errors
/// See [`CreateError`].
pub async fn create(
    provisioner: &Provisioner,
    actor: &Actor,
    wanted: &Wanted,
) -> Result<(Workspace, Credential), CreateError> {
    let (server, access) = provisioner.servers.iter().next().ok_or(CatalogError::NotFound { what: "a server" })?;
    // Asked before anything is recorded: a name is not taken by a request that could not have worked.
    Session::open(access, &access.database).await.map_err(CreateError::NoServer)?;
    let id = WorkspaceId::random()?;
    let (_, wrapped_key) = provisioner.key_of_keys.new_data_key(&id)?;
    let new = NewWorkspace {
        database: id.as_str().to_owned(),
        name: wanted.name.0.clone(),
        mode: wanted.mode,
        profile: wanted.profile.clone(),
        server: ServerId::parse(server).ok_or(CatalogError::NotFound { what: "a server" })?,
        wrapped_key: Some(wrapped_key),
        settings: Settings::default(),
        now: Timestamp::now(),
        id,
    };
    let (workspace, _) = provisioner.store.create_workspace(actor, &new).await?;
    let unfinished = |error| CreateError::Unfinished { id: workspace.id.clone(), error };
    reconcile::reconcile(provisioner, &workspace, IfMissing::Report).await.map_err(unfinished)?;
    // The first login through every proxy is to work; an answer a little early is better than none.
    let revision = provisioner.store.revision().await?;
    let acknowledged = provisioner.store.wait_acknowledged(revision, credentials::ACKNOWLEDGE).await?;
    if !acknowledged.all {
        tracing::warn!(workspace = %workspace.id, missing = ?acknowledged.missing, "some proxies do not know it yet");
    }
    let policy = &provisioner.profile(&workspace).map_err(CredentialError::from)?.policy;
    let primary = policy.primary().ok_or(CredentialError::NotProvisioned)?;
    let credential = credentials::reveal(provisioner, actor, &workspace, primary.kind()).await?;
    Ok((workspace, credential))
}

/// Whether a finished workspace's database is there, as far as its server says so in time.
pub async fn is_database_there(provisioner: &Provisioner, workspace: &Workspace) -> Option<bool> {
    let access = provisioner.server(workspace).ok()?;
    let session = Session::open(access, &access.database).await.ok()?;
    let sql = "SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = $1)";
    let rows = session.rows("looking for the database", sql, &[&workspace.database]).await.ok()?;
    session.value(rows.first()?, 0).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t7_names() {
        let longest = "n".repeat(53);
        for good in ["a", "acme", "Akmé GmbH", "a-b.c/d", "a_b", "_a_", "ws_1", "\"; drop", longest.as_str()] {
            assert!(Name::parse(good).is_ok(), "{good}");
        }
        let too_long = "n".repeat(54);
        for bad in ["", "a__b", "__", " a", "a ", "a\nb", "a\0", "ws_0123456789abcdef", too_long.as_str()] {
            assert!(Name::parse(bad).is_err(), "{bad}");
        }
    }
}
