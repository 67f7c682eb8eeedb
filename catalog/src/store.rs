//! The provisioner's side: every change of what should exist, each one transaction = change + audit row + revision +
//! notification.
//!
//! [`Change`] makes that shape the only one: it begins by raising the revision, which makes writers take turns, and can
//! only be committed with an [`AuditEvent`]. Methods here decide nothing that [`crate::credentials`] can decide, and
//! hold no transaction open while they wait for anybody but the catalog.

mod idempotency;
mod keys;
mod layout;
mod logins;
mod workspaces;

use std::time::Duration;

use deadpool_postgres::{Client, Manager, ManagerConfig, Pool, RecyclingMethod, Runtime, Transaction};

pub use idempotency::{Claim, Claimed, KeyedRequest};
pub use keys::ApiKey;
pub use logins::{LoginRecord, NewLogin, NewVersion, Rotated, Rotation, VersionRecord};
pub use workspaces::NewWorkspace;

use crate::{
    audit::{self, Actor, AuditEvent, ChainCheck},
    connect::Source,
    error::{CatalogError, Result},
    id::Revision,
    migrate,
};

/// The channel on which each new revision is announced; the payload is the revision.
pub(crate) const CHANNEL: &str = "portcullis";

/// What a connection waits for: a free place in the pool, a new connection, an answer, a lock.
const POOL_WAIT: Duration = Duration::from_secs(5);
const STATEMENT_OPTIONS: &str =
    "-c statement_timeout=15s -c lock_timeout=5s -c idle_in_transaction_session_timeout=30s";

/// The catalog as the provisioner has it. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("connections", &self.pool.status().size).finish()
    }
}

impl Store {
    /// Opens the catalog and makes sure that it answers.
    ///
    /// # Errors
    /// [`CatalogError::Address`] if the address is wrong, [`CatalogError::Unavailable`] if nobody answers there.
    pub async fn connect(source: &Source, connections_max: usize) -> Result<Self> {
        let store = Self::open(source, connections_max)?;
        store.client().await?.batch_execute("").await?;
        Ok(store)
    }

    /// The same without asking: connections are made when they are needed.
    ///
    /// # Errors
    /// [`CatalogError::Address`] if the address is wrong.
    pub fn open(source: &Source, connections_max: usize) -> Result<Self> {
        let (mut config, tls) = source.prepare("portcullis-provisioner")?;
        let options = config.get_options().map_or_else(String::new, |given| format!("{given} "));
        config.options(format!("{options}{STATEMENT_OPTIONS}"));
        let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(connections_max.max(1))
            .runtime(Runtime::Tokio1)
            .wait_timeout(Some(POOL_WAIT))
            .create_timeout(Some(POOL_WAIT))
            .recycle_timeout(Some(POOL_WAIT))
            .build()
            .map_err(|error| CatalogError::Address(error.to_string()))?;
        Ok(Self { pool })
    }

    /// Brings the schema to [`crate::SCHEMA_VERSION`] and grants `proxy_role`, which must exist, what a proxy needs and
    /// nothing else. Does nothing where nothing is to do; several sidecars may call it at once.
    ///
    /// # Errors
    /// [`CatalogError::Schema`] if the role is missing, if a migration differs from the one that was applied, or if the
    /// schema is newer than this program.
    pub async fn migrate(&self, proxy_role: &str) -> Result<()> {
        let mut client = self.client().await?;
        migrate::migrate(&mut client, proxy_role).await
    }

    /// The newest revision.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn revision(&self) -> Result<Revision> {
        let row = self.client().await?.query_one("SELECT value FROM catalog.revision", &[]).await?;
        Ok(Revision(row.try_get(0)?))
    }

    /// Appends an event that changes nothing, e.g. the reveal of a password. It is durable when this returns.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn audit(&self, actor: &Actor, event: &AuditEvent) -> Result<()> {
        let mut client = self.client().await?;
        let transaction = client.transaction().await?;
        audit::append(&transaction, actor, event, None).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Checks the provisioner's audit chain from its first event to its last.
    ///
    /// # Errors
    /// If the catalog is not available.
    pub async fn check_audit(&self) -> Result<ChainCheck> {
        let mut client = self.client().await?;
        let transaction = client.build_transaction().isolation_level(tokio_postgres::IsolationLevel::RepeatableRead);
        let transaction = transaction.read_only(true).start().await?;
        audit::check(&transaction).await
    }

    pub(crate) async fn client(&self) -> Result<Client> {
        Ok(self.pool.get().await?)
    }
}

/// A change in the making: the revision is raised, nothing is visible yet. Dropping it undoes it.
struct Change<'a> {
    transaction: Transaction<'a>,
    actor: &'a Actor,
    revision: Revision,
}

impl<'a> Change<'a> {
    /// Waits for the previous writer, and raises the revision.
    async fn begin(client: &'a mut Client, actor: &'a Actor) -> Result<Self> {
        let transaction = client.transaction().await?;
        let row = transaction.query_one("UPDATE catalog.revision SET value = value + 1 RETURNING value", &[]).await?;
        let revision = Revision(row.try_get(0)?);
        Ok(Self { transaction, actor, revision })
    }

    /// Notes that something is gone. `key` is what readers find it by.
    async fn removed(&self, relation: &str, key: &str) -> Result<()> {
        self.transaction
            .execute(
                "INSERT INTO catalog.removal (revision, relation, key) VALUES ($1, $2, $3)",
                &[&self.revision.0, &relation, &key],
            )
            .await?;
        Ok(())
    }

    /// Writes the audit row, announces the revision, and makes it all visible at once.
    async fn commit(self, event: &AuditEvent) -> Result<Revision> {
        audit::append(&self.transaction, self.actor, event, Some(self.revision)).await?;
        let announce = "SELECT pg_notify($1, $2)";
        self.transaction.execute(announce, &[&CHANNEL, &self.revision.to_string()]).await?;
        self.transaction.commit().await?;
        Ok(self.revision)
    }
}
