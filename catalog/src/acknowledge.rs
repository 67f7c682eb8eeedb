//! Waiting until every live proxy has drawn the consequences of a revision.
//!
//! A proxy is live while its heartbeat is young. One that was killed stops counting after [`LIVE_SECONDS`]; until then a
//! wait runs into its time limit and says who was missing.

use std::time::Duration;

use tokio::time::Instant;

use crate::{
    error::Result,
    id::{LoginId, Revision},
    store::Store,
};

/// Five heartbeats.
pub(crate) const LIVE_SECONDS: f64 = 10.0;

/// How often acknowledgements are looked for, at first and at last.
const LOOK_FIRST: Duration = Duration::from_millis(5);
const LOOK_LAST: Duration = Duration::from_millis(50);

/// Who has acknowledged a revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acknowledged {
    /// Whether every live proxy has; true also when there is none.
    pub all: bool,
    /// How many live proxies there are.
    pub proxies: usize,
    /// The names of those that have not.
    pub missing: Vec<String>,
}

impl Store {
    /// Waits until every live proxy has acknowledged `revision`, but no longer than `timeout`.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn wait_acknowledged(&self, revision: Revision, timeout: Duration) -> Result<Acknowledged> {
        let deadline = Instant::now() + timeout;
        let mut pause = LOOK_FIRST;
        loop {
            let seen = self.acknowledged(revision).await?;
            if seen.all || Instant::now() + pause > deadline {
                return Ok(seen);
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LOOK_LAST);
        }
    }

    /// Who has acknowledged `revision` by now.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn acknowledged(&self, revision: Revision) -> Result<Acknowledged> {
        let sql = "SELECT name, revision >= $1 FROM observed.proxy \
                   WHERE stopped_at IS NULL AND heartbeat_at > now() - make_interval(secs => $2) ORDER BY name";
        let rows = self.client().await?.query(sql, &[&revision.0, &LIVE_SECONDS]).await?;
        let mut missing = Vec::new();
        for row in &rows {
            if !row.try_get::<_, bool>(1)? {
                missing.push(row.try_get(0)?);
            }
        }
        Ok(Acknowledged { all: missing.is_empty(), proxies: rows.len(), missing })
    }

    /// Forgets proxies that have been gone for a day, terminations after thirty days, and uses of logins that no longer
    /// exist, so that `observed` does not grow without end. Call it now and then.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn forget_old_observations(&self) -> Result<()> {
        let sql = "DELETE FROM observed.proxy WHERE heartbeat_at < now() - interval '1 day'; \
                   DELETE FROM observed.termination WHERE at < now() - interval '30 days'; \
                   DELETE FROM observed.last_used AS u \
                   WHERE NOT EXISTS (SELECT FROM catalog.login WHERE id = u.login_id)";
        Ok(self.client().await?.batch_execute(sql).await?)
    }

    /// How many sessions proxies have ended because a login's session epoch became `epoch`.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn sessions_terminated(&self, login: &LoginId, epoch: i64) -> Result<i64> {
        let sql =
            "SELECT coalesce(sum(sessions), 0)::bigint FROM observed.termination WHERE login_id = $1 AND epoch = $2";
        Ok(self.client().await?.query_one(sql, &[&login.as_str(), &epoch]).await?.try_get(0)?)
    }
}
