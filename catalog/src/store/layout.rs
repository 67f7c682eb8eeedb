//! What the reconciler remembers of each database between two looks. No intent: no revision, no audit.

use super::Store;
use crate::{error::Result, id::WorkspaceId};

impl Store {
    /// What was remembered of a workspace's database, in the provisioner's own format.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn layout(&self, id: &WorkspaceId) -> Result<Option<String>> {
        let sql = "SELECT record FROM catalog.layout WHERE workspace_id = $1";
        let row = self.client().await?.query_opt(sql, &[&id.as_str()]).await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }

    /// Remembers what a workspace's database looks like now.
    ///
    /// # Errors
    /// If the catalog is not available or knows no such workspace.
    pub async fn record_layout(&self, id: &WorkspaceId, record: &str) -> Result<()> {
        let sql = "INSERT INTO catalog.layout (workspace_id, record) VALUES ($1, $2) \
                   ON CONFLICT (workspace_id) DO UPDATE SET record = $2, recorded_at = now()";
        self.client().await?.execute(sql, &[&id.as_str(), &record]).await?;
        Ok(())
    }
}
