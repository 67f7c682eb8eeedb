//! Servers, policy documents and workspaces: what should exist, and what the reconciler found.

use aws_lc_rs::digest::{SHA256, digest};
use jiff::Timestamp;
use serde_json::json;

use super::{Change, Store};
use crate::{
    audit::{Actor, AuditEvent},
    error::{CatalogError, Result},
    id::{Revision, ServerId, WorkspaceId},
    login::BackendRole,
    rows::{self, BACKEND_COLUMNS, POLICY_COLUMNS, SERVER_COLUMNS, WORKSPACE_COLUMNS, signed},
    seal::Sealed,
    snapshot::PolicyDocument,
    workspace::{Mode, PlaneStatus, Server, Settings, UpstreamTls, Workspace},
};

/// Workspaces that one listing returns at most.
const LIST_MAX: u32 = 1_000;

/// Removals are remembered for this long; a reader that was away longer loads everything.
const REMOVALS_KEPT_DAYS: i32 = 7;

/// What a new workspace is made of; it begins in [`PlaneStatus::Provisioning`].
#[derive(Debug)]
pub struct NewWorkspace {
    /// From [`WorkspaceId::random`].
    pub id: WorkspaceId,
    /// Unique; 1 to 53 bytes, without `__`.
    pub name: String,
    /// What it is for.
    pub mode: Mode,
    /// The name of a stored policy document.
    pub profile: String,
    /// A stored server.
    pub server: ServerId,
    /// The database's real name there; unique on the server.
    pub database: String,
    /// The wrapped data key ([`crate::seal::KeyOfKeys::new_data_key`]), unless no passwords are kept.
    pub wrapped_key: Option<Sealed>,
    /// Its limits.
    pub settings: Settings,
    /// The moment of creation.
    pub now: Timestamp,
}

const NO_WORKSPACE: CatalogError = CatalogError::NotFound { what: "the workspace" };

impl Store {
    /// Records how proxies reach a server. Without a difference nothing is written.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn upsert_server(&self, actor: &Actor, server: &Server) -> Result<Revision> {
        if self.server(&server.id).await?.as_ref() == Some(server) {
            return self.revision().await;
        }
        let (tls, ca_pem) = match &server.tls {
            UpstreamTls::Disable => ("disable", None),
            UpstreamTls::Require => ("require", None),
            UpstreamTls::VerifyFull { ca_pem } => ("verify-full", Some(ca_pem)),
        };
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        change
            .transaction
            .execute(
                "INSERT INTO catalog.server (id, host, port, tls, ca_pem, revision) VALUES ($1, $2, $3, $4, $5, $6) \
                 ON CONFLICT (id) DO UPDATE SET host = $2, port = $3, tls = $4, ca_pem = $5, revision = $6",
                &[&server.id.as_str(), &server.host, &i32::from(server.port), &tls, &ca_pem, &change.revision.0],
            )
            .await?;
        let detail = json!({"host": server.host, "port": server.port, "tls": tls});
        change.commit(&AuditEvent::new("server.upsert").subject(server.id.as_str()).detail(detail)).await
    }

    /// A server by its id.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn server(&self, id: &ServerId) -> Result<Option<Server>> {
        let sql = format!("SELECT {SERVER_COLUMNS} FROM catalog.server WHERE id = $1");
        self.client().await?.query_opt(&sql, &[&id.as_str()]).await?.as_ref().map(rows::server).transpose()
    }

    /// Stores a policy document under the profile's name. Without a difference nothing is written. Whoever calls it has
    /// parsed the text: proxies refuse a profile whose document they cannot parse.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn upsert_policy(&self, actor: &Actor, name: &str, text: &str) -> Result<Revision> {
        if self.policy(name).await?.is_some_and(|stored| stored.text == text) {
            return self.revision().await;
        }
        let digest = digest(&SHA256, text.as_bytes());
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        change
            .transaction
            .execute(
                "INSERT INTO catalog.policy (name, text, digest, revision) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (name) DO UPDATE SET text = $2, digest = $3, revision = $4",
                &[&name, &text, &digest.as_ref(), &change.revision.0],
            )
            .await?;
        change.commit(&AuditEvent::new("policy.upsert").subject(name)).await
    }

    /// A policy document by its profile's name.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn policy(&self, name: &str) -> Result<Option<PolicyDocument>> {
        let sql = format!("SELECT {POLICY_COLUMNS} FROM catalog.policy WHERE name = $1");
        self.client().await?.query_opt(&sql, &[&name]).await?.as_ref().map(rows::policy).transpose()
    }

    /// Records a new workspace.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if the name is taken, [`CatalogError::Database`] if server or profile are not stored.
    pub async fn create_workspace(&self, actor: &Actor, new: &NewWorkspace) -> Result<(Workspace, Revision)> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let sql = format!(
            "INSERT INTO catalog.workspace (id, name, mode, profile, server_id, database, created_at, plane_status, \
             plane_since, wrapped_key, query_timeout_ms, max_rows_per_query, max_connections, revision) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'provisioning', $7, $8, $9, $10, $11, $12) RETURNING {WORKSPACE_COLUMNS}"
        );
        let row = change
            .transaction
            .query_one(
                &sql,
                &[
                    &new.id.as_str(),
                    &new.name,
                    &new.mode.as_str(),
                    &new.profile,
                    &new.server.as_str(),
                    &new.database,
                    &new.now,
                    &new.wrapped_key.as_ref().map(Sealed::as_bytes),
                    &new.settings.query_timeout_ms.map(signed),
                    &new.settings.max_rows_per_query.map(signed),
                    &new.settings.max_connections.map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
                    &change.revision.0,
                ],
            )
            .await?;
        let workspace = rows::workspace(&row)?;
        let detail = json!({"name": new.name, "mode": new.mode.as_str(), "profile": new.profile});
        let event = AuditEvent::new("workspace.create").workspace(&new.id).detail(detail);
        let revision = change.commit(&event).await?;
        Ok((workspace, revision))
    }

    /// Workspaces in the order of their names, after `after`; at most `limit`, and at most 1,000.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn workspaces(&self, after: Option<&str>, limit: u32) -> Result<Vec<Workspace>> {
        let sql = format!(
            "SELECT {WORKSPACE_COLUMNS} FROM catalog.workspace WHERE name COLLATE \"C\" > $1 \
             ORDER BY name COLLATE \"C\" LIMIT $2"
        );
        let limit = i64::from(limit.min(LIST_MAX));
        let rows = self.client().await?.query(&sql, &[&after.unwrap_or_default(), &limit]).await?;
        rows.iter().map(rows::workspace).collect()
    }

    /// How many workspaces there are.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn workspaces_count(&self) -> Result<i64> {
        Ok(self.client().await?.query_one("SELECT count(*) FROM catalog.workspace", &[]).await?.try_get(0)?)
    }

    /// A workspace by its id or by its name; an id wins.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn workspace(&self, id_or_name: &str) -> Result<Option<Workspace>> {
        let sql = format!(
            "SELECT {WORKSPACE_COLUMNS} FROM catalog.workspace WHERE id = $1 OR name = $1 ORDER BY id = $1 DESC LIMIT 1"
        );
        self.client().await?.query_opt(&sql, &[&id_or_name]).await?.as_ref().map(rows::workspace).transpose()
    }

    /// The wrapped data key of a workspace; `None` where no passwords are kept.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or if the catalog is not available.
    pub async fn wrapped_key(&self, id: &WorkspaceId) -> Result<Option<Sealed>> {
        let sql = "SELECT wrapped_key FROM catalog.workspace WHERE id = $1";
        let row = self.client().await?.query_opt(sql, &[&id.as_str()]).await?.ok_or(NO_WORKSPACE)?;
        Ok(row.try_get::<_, Option<Vec<u8>>>(0)?.map(Sealed::from_bytes))
    }

    /// Records the state of a workspace's database. `since` moves only with the status; `schema_version` of `None`
    /// keeps the recorded one.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or if the catalog is not available.
    pub async fn set_plane(
        &self,
        actor: &Actor,
        id: &WorkspaceId,
        status: PlaneStatus,
        schema_version: Option<&str>,
        last_error: Option<&str>,
        now: Timestamp,
    ) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let changed = change
            .transaction
            .execute(
                "UPDATE catalog.workspace SET plane_status = $2, schema_version = coalesce($3, schema_version), \
                 last_error = $4, revision = $6, \
                 plane_since = CASE WHEN plane_status = $2 THEN plane_since ELSE $5 END WHERE id = $1",
                &[&id.as_str(), &status.as_str(), &schema_version, &last_error, &now, &change.revision.0],
            )
            .await?;
        if changed == 0 {
            return Err(NO_WORKSPACE);
        }
        let detail = json!({"status": status.as_str(), "schema_version": schema_version, "last_error": last_error});
        change.commit(&AuditEvent::new("workspace.plane").workspace(id).detail(detail)).await
    }

    /// Replaces the limits of a workspace.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or if the catalog is not available.
    pub async fn set_settings(&self, actor: &Actor, id: &WorkspaceId, settings: &Settings) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let changed = change
            .transaction
            .execute(
                "UPDATE catalog.workspace SET query_timeout_ms = $2, max_rows_per_query = $3, max_connections = $4, \
                 revision = $5 WHERE id = $1",
                &[
                    &id.as_str(),
                    &settings.query_timeout_ms.map(signed),
                    &settings.max_rows_per_query.map(signed),
                    &settings.max_connections.map(|n| i32::try_from(n).unwrap_or(i32::MAX)),
                    &change.revision.0,
                ],
            )
            .await?;
        if changed == 0 {
            return Err(NO_WORKSPACE);
        }
        let detail = json!({
            "query_timeout_ms": settings.query_timeout_ms,
            "max_rows_per_query": settings.max_rows_per_query,
            "max_connections": settings.max_connections,
        });
        change.commit(&AuditEvent::new("workspace.settings").workspace(id).detail(detail)).await
    }

    /// Forgets a workspace with its logins, backend roles and keys. Its database is the reconciler's business.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`], or if the catalog is not available.
    pub async fn delete_workspace(&self, actor: &Actor, id: &WorkspaceId) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let logins = "SELECT username FROM catalog.login WHERE workspace_id = $1";
        for row in change.transaction.query(logins, &[&id.as_str()]).await? {
            change.removed("login", row.try_get(0)?).await?;
        }
        change.removed("workspace", id.as_str()).await?;
        let deleted = "DELETE FROM catalog.workspace WHERE id = $1 RETURNING name";
        let row = change.transaction.query_opt(deleted, &[&id.as_str()]).await?.ok_or(NO_WORKSPACE)?;
        let name: &str = row.try_get(0)?;
        forget_old_removals(&change).await?;
        change.commit(&AuditEvent::new("workspace.delete").workspace(id).detail(json!({"name": name}))).await
    }

    /// Publishes what proxies log in with, for one kind of login. The generation must be higher than the published one;
    /// an equal one with equal contents changes nothing, so that a crash may be followed by a repetition.
    ///
    /// # Errors
    /// [`CatalogError::Stale`] if a generation as high or higher is published already.
    pub async fn put_backend_role(&self, actor: &Actor, role: &BackendRole) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let select =
            format!("SELECT {BACKEND_COLUMNS} FROM catalog.backend_role WHERE workspace_id = $1 AND kind = $2");
        let stored = change.transaction.query_opt(&select, &[&role.workspace.as_str(), &role.kind]).await?;
        if let Some(stored) = stored.as_ref().map(rows::backend_role).transpose()? {
            if stored == *role {
                drop(change);
                return self.revision().await;
            }
            if stored.generation >= role.generation {
                return Err(CatalogError::Stale { what: "the backend role" });
            }
        }
        change
            .transaction
            .execute(
                "INSERT INTO catalog.backend_role \
                 (workspace_id, kind, role, login, generation, salt, iterations, sealed_keys, revision) \
                 VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) ON CONFLICT (workspace_id, kind) DO UPDATE \
                 SET role = $3, login = $4, generation = $5, salt = $6, iterations = $7, sealed_keys = $8, \
                 revision = $9, created_at = now()",
                &[
                    &role.workspace.as_str(),
                    &role.kind,
                    &role.role,
                    &role.login,
                    &role.generation.0,
                    &role.salt,
                    &rows::unsigned::<u32, i32>(role.iterations)?,
                    &role.sealed_keys.as_bytes(),
                    &change.revision.0,
                ],
            )
            .await?;
        let detail = json!({"kind": role.kind, "login": role.login, "generation": role.generation.0});
        let event = AuditEvent::new("backend_role.publish").workspace(&role.workspace);
        change.commit(&event.subject(&*role.role).detail(detail)).await
    }

    /// The published backend roles of a workspace, in the order of their kinds.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn backend_roles(&self, workspace: &WorkspaceId) -> Result<Vec<BackendRole>> {
        let sql = format!("SELECT {BACKEND_COLUMNS} FROM catalog.backend_role WHERE workspace_id = $1 ORDER BY kind");
        self.client().await?.query(&sql, &[&workspace.as_str()]).await?.iter().map(rows::backend_role).collect()
    }
}

async fn forget_old_removals(change: &Change<'_>) -> Result<()> {
    let sql = "WITH old AS (DELETE FROM catalog.removal WHERE removed_at < now() - make_interval(days => $1) \
               RETURNING revision) \
               UPDATE catalog.revision SET horizon = greatest(horizon, (SELECT max(revision) FROM old)) \
               WHERE EXISTS (SELECT FROM old)";
    change.transaction.execute(sql, &[&REMOVALS_KEPT_DAYS]).await?;
    Ok(())
}
