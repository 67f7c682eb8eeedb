//! Keys of the HTTP API. The catalog knows a hash of the secret and nothing that opens anything.

use jiff::Timestamp;
use serde_json::json;
use tokio_postgres::Row;

use super::{Change, Store};
use crate::{
    audit::{Actor, AuditEvent},
    error::{CatalogError, Result},
    id::{ApiKeyId, Revision, WorkspaceId},
};

/// A key of the HTTP API.
#[derive(Clone)]
pub struct ApiKey {
    /// The public part.
    pub id: ApiKeyId,
    /// What people call it.
    pub name: String,
    /// A hash of the secret part; compare in constant time.
    pub secret_hash: [u8; 32],
    /// What it may do.
    pub scopes: Vec<String>,
    /// The workspace that it is bound to; `None` for the whole organisation.
    pub workspace: Option<WorkspaceId>,
    /// When it was made.
    pub created_at: Timestamp,
    /// From when on it is refused; `None` for never.
    pub expires_at: Option<Timestamp>,
    /// Since when it is refused because somebody revoked it.
    pub revoked_at: Option<Timestamp>,
    /// When it was last used.
    pub last_used_at: Option<Timestamp>,
}

impl ApiKey {
    /// Whether it is accepted at `now`, the secret aside.
    pub fn is_accepted(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none_or(|at| now < at) && self.expires_at.is_none_or(|at| now < at)
    }
}

impl std::fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiKey").field("id", &self.id).field("scopes", &self.scopes).finish_non_exhaustive()
    }
}

impl Store {
    /// Stores a new key.
    ///
    /// # Errors
    /// [`CatalogError::Exists`] if the id is taken; ids are random, so make another.
    pub async fn insert_api_key(&self, actor: &Actor, key: &ApiKey) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        insert(&change, key).await?;
        change.commit(&created(key)).await
    }

    /// Whether there is any key, accepted or not.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn has_api_keys(&self) -> Result<bool> {
        let sql = "SELECT EXISTS (SELECT FROM catalog.api_key)";
        Ok(self.client().await?.query_one(sql, &[]).await?.try_get(0)?)
    }

    /// Stores the first key of an empty catalog: of several sidecars that start together, one makes it.
    ///
    /// # Errors
    /// If the catalog is not available. `None` if there is a key already.
    pub async fn insert_first_api_key(&self, actor: &Actor, key: &ApiKey) -> Result<Option<Revision>> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let some = change.transaction.query_one("SELECT EXISTS (SELECT FROM catalog.api_key)", &[]).await?;
        if some.try_get(0)? {
            return Ok(None);
        }
        insert(&change, key).await?;
        change.commit(&created(key)).await.map(Some)
    }

    /// A key by its id, accepted or not.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn api_key(&self, id: &ApiKeyId) -> Result<Option<ApiKey>> {
        let row =
            self.client().await?.query_opt("SELECT * FROM catalog.api_key WHERE id = $1", &[&id.as_str()]).await?;
        row.as_ref().map(api_key).transpose()
    }

    /// Records that a key was used. Not an event of its own, and no new revision.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn api_key_used(&self, id: &ApiKeyId, now: Timestamp) -> Result<()> {
        let sql = "UPDATE catalog.api_key SET last_used_at = greatest(last_used_at, $2) WHERE id = $1";
        self.client().await?.execute(sql, &[&id.as_str(), &now]).await?;
        Ok(())
    }

    /// Refuses a key from `now` on.
    ///
    /// # Errors
    /// [`CatalogError::NotFound`] if there is none that is not revoked.
    pub async fn revoke_api_key(&self, actor: &Actor, id: &ApiKeyId, now: Timestamp) -> Result<Revision> {
        let mut client = self.client().await?;
        let change = Change::begin(&mut client, actor).await?;
        let sql = "UPDATE catalog.api_key SET revoked_at = $2 WHERE id = $1 AND revoked_at IS NULL";
        if change.transaction.execute(sql, &[&id.as_str(), &now]).await? == 0 {
            return Err(CatalogError::NotFound { what: "the API key" });
        }
        change.commit(&AuditEvent::new("api_key.revoke").subject(id.as_str())).await
    }
}

async fn insert(change: &Change<'_>, key: &ApiKey) -> Result<()> {
    change
        .transaction
        .execute(
            "INSERT INTO catalog.api_key (id, name, secret_hash, scopes, workspace_id, created_at, expires_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7)",
            &[
                &key.id.as_str(),
                &key.name,
                &key.secret_hash.as_slice(),
                &key.scopes,
                &key.workspace.as_ref().map(WorkspaceId::as_str),
                &key.created_at,
                &key.expires_at,
            ],
        )
        .await?;
    Ok(())
}

fn created(key: &ApiKey) -> AuditEvent {
    let event = AuditEvent::new("api_key.create").subject(key.id.as_str());
    let event = event.detail(json!({"name": key.name, "scopes": key.scopes}));
    AuditEvent { workspace: key.workspace.clone(), ..event }
}

fn api_key(row: &Row) -> Result<ApiKey> {
    let hash: &[u8] = row.try_get("secret_hash")?;
    let workspace: Option<&str> = row.try_get("workspace_id")?;
    Ok(ApiKey {
        id: ApiKeyId::from_column(row.try_get("id")?)?,
        name: row.try_get("name")?,
        secret_hash: hash.try_into().map_err(|_| CatalogError::Corrupt { what: "API key's hash" })?,
        scopes: row.try_get("scopes")?,
        workspace: workspace.map(WorkspaceId::from_column).transpose()?,
        created_at: row.try_get("created_at")?,
        expires_at: row.try_get("expires_at")?,
        revoked_at: row.try_get("revoked_at")?,
        last_used_at: row.try_get("last_used_at")?,
    })
}
