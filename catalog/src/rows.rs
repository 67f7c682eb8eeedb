//! Rows of the catalog as values. Both sides read them through these functions, so a column means one thing.

use tokio_postgres::Row;

use crate::{
    error::{CatalogError, Result},
    id::{Generation, LoginId, ServerId, WorkspaceId},
    login::{BackendRole, Login, LoginVersion, VersionState},
    seal::Sealed,
    snapshot::PolicyDocument,
    workspace::{Mode, Plane, PlaneStatus, Server, Settings, UpstreamTls, Workspace},
};

pub(crate) const SERVER_COLUMNS: &str = "id, host, port, tls, ca_pem";
pub(crate) const POLICY_COLUMNS: &str = "name, text, digest";
pub(crate) const WORKSPACE_COLUMNS: &str = "id, name, mode, profile, server_id, database, created_at, \
     query_timeout_ms, max_rows_per_query, max_connections, plane_status, plane_since, schema_version, last_error";
pub(crate) const LOGIN_COLUMNS: &str = "id, workspace_id, kind, username, salt, iterations, session_epoch";
pub(crate) const BACKEND_COLUMNS: &str = "workspace_id, kind, role, login, generation, salt, iterations, sealed_keys";

pub(crate) fn server(row: &Row) -> Result<Server> {
    let tls = match (row.try_get("tls")?, row.try_get("ca_pem")?) {
        ("disable", None::<String>) => UpstreamTls::Disable,
        ("require", None) => UpstreamTls::Require,
        ("verify-full", Some(ca_pem)) => UpstreamTls::VerifyFull { ca_pem },
        _ => return Err(CatalogError::Corrupt { what: "server's TLS mode" }),
    };
    Ok(Server {
        id: ServerId::from_column(row.try_get("id")?)?,
        host: row.try_get("host")?,
        port: unsigned(row.try_get::<_, i32>("port")?)?,
        tls,
    })
}

pub(crate) fn policy(row: &Row) -> Result<PolicyDocument> {
    let digest: &[u8] = row.try_get("digest")?;
    let digest = digest.try_into().map_err(|_| CatalogError::Corrupt { what: "policy's digest" })?;
    Ok(PolicyDocument { name: row.try_get("name")?, text: row.try_get("text")?, digest })
}

pub(crate) fn workspace(row: &Row) -> Result<Workspace> {
    let name: String = row.try_get("name")?;
    Ok(Workspace {
        id: WorkspaceId::from_column(row.try_get("id")?)?,
        alias: Workspace::alias_of(&name),
        name,
        mode: Mode::from_column(row.try_get("mode")?)?,
        profile: row.try_get("profile")?,
        created_at: row.try_get("created_at")?,
        settings: Settings {
            query_timeout_ms: row.try_get::<_, Option<i64>>("query_timeout_ms")?.map(unsigned).transpose()?,
            max_rows_per_query: row.try_get::<_, Option<i64>>("max_rows_per_query")?.map(unsigned).transpose()?,
            max_connections: row.try_get::<_, Option<i32>>("max_connections")?.map(unsigned).transpose()?,
        },
        plane: Plane {
            status: PlaneStatus::from_column(row.try_get("plane_status")?)?,
            since: row.try_get("plane_since")?,
            schema_version: row.try_get("schema_version")?,
            last_error: row.try_get("last_error")?,
        },
        server: ServerId::from_column(row.try_get("server_id")?)?,
        database: row.try_get("database")?,
    })
}

/// A login without its versions.
pub(crate) fn login(row: &Row) -> Result<Login> {
    Ok(Login {
        id: LoginId::from_column(row.try_get("id")?)?,
        workspace: WorkspaceId::from_column(row.try_get("workspace_id")?)?,
        kind: row.try_get("kind")?,
        username: row.try_get("username")?,
        salt: row.try_get("salt")?,
        iterations: unsigned(row.try_get::<_, i32>("iterations")?)?,
        session_epoch: row.try_get("session_epoch")?,
        versions: Vec::new(),
    })
}

/// A live version of a login.
pub(crate) fn login_version(row: &Row) -> Result<LoginVersion> {
    Ok(LoginVersion {
        version: row.try_get("version")?,
        state: VersionState::from_column(row.try_get("state")?)?,
        stored_key: key(row.try_get("stored_key")?)?,
        server_key: key(row.try_get("server_key")?)?,
        valid_until: row.try_get("valid_until")?,
        created_at: row.try_get("created_at")?,
    })
}

pub(crate) fn backend_role(row: &Row) -> Result<BackendRole> {
    Ok(BackendRole {
        workspace: WorkspaceId::from_column(row.try_get("workspace_id")?)?,
        kind: row.try_get("kind")?,
        role: row.try_get("role")?,
        login: row.try_get("login")?,
        generation: Generation(row.try_get("generation")?),
        salt: row.try_get("salt")?,
        iterations: unsigned(row.try_get::<_, i32>("iterations")?)?,
        sealed_keys: Sealed::from_bytes(row.try_get("sealed_keys")?),
    })
}

fn key(bytes: &[u8]) -> Result<[u8; 32]> {
    bytes.try_into().map_err(|_| CatalogError::Corrupt { what: "SCRAM key" })
}

/// PostgreSQL has no unsigned numbers.
pub(crate) fn unsigned<N, U: TryFrom<N>>(number: N) -> Result<U> {
    U::try_from(number).map_err(|_| CatalogError::Corrupt { what: "number" })
}

/// PostgreSQL has no unsigned numbers; what is too large for it is as good as its largest.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
