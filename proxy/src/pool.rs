//! Upstream connections shared by the sessions of one workspace and role.
//!
//! One [`ServerPools`] per PostgreSQL server owns every connection to it: a pool per [`PoolKey`], a fair queue of waiters,
//! and the counters that bound them all. A place is counted before connecting, never after. A pool that
//! wants a connection while its server or its workspace is full takes the place of the connection that has idled longest
//! in another. The generation of a backend role is part of the key, so a rotated credential needs no invalidation.
//! What an operator may do to the connections of one workspace is in [`operate`].

mod held;
mod operate;
mod server;

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use portcullis_catalog::seal::ProxyKey;
use portcullis_catalog::{Generation, ServerId, WorkspaceId};
use portcullis_config::PoolConfig;
use portcullis_wire::TransactionStatus;
use tokio::sync::Semaphore;

use crate::admin::{PoolRow, PoolTotals};
use crate::cancel::CancelSlot;
use crate::metrics::Metrics;
use crate::reported::{Known, Reported};
use crate::session::settings::{Values, are_dangerous};
use crate::upstream::{Destination, Upstream, UpstreamError, UpstreamState};
use held::Held;
pub use operate::{Order, Standing};
use server::{Grant, Place, ServerPools, Taken};

/// How long a connection may take to be made fit for the next session.
const RESET_MAX: Duration = Duration::from_secs(5);
/// How many connections are opened at once before anybody asks for them.
const WARMING_MAX: usize = 8;
/// A connection lives up to this part less than its lifetime, so that those that were opened together do not end together.
const JITTER: u64 = 5;

/// What makes connections interchangeable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolKey {
    /// The server.
    pub server: ServerId,
    /// The workspace, which bounds its pools together.
    pub workspace: WorkspaceId,
    /// The real name of the database.
    pub database: String,
    /// The role that statements run as.
    pub role: String,
    /// The generation of the role's login.
    pub generation: Generation,
    /// Of all the others: keys are looked up several times per transaction.
    hash: u64,
}

impl PoolKey {
    /// The pool of `role`'s connections to a workspace's database.
    pub fn new(
        server: ServerId,
        workspace: WorkspaceId,
        database: String,
        role: String,
        generation: Generation,
    ) -> Self {
        let mut hasher = std::hash::DefaultHasher::new();
        (&server, &workspace, &database, &role, generation).hash(&mut hasher);
        Self { server, workspace, database, role, generation, hash: hasher.finish() }
    }
}

impl Hash for PoolKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// Why no connection could be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All are in use, and stayed so for the whole wait.
    #[error("no connection became free in time")]
    WaitedTooLong,
    /// The workspace was paused for the whole wait.
    #[error("the workspace is paused")]
    Paused,
    /// The queue itself is full.
    #[error("too many sessions wait for a connection")]
    QueueFull,
    /// A new one could not be opened.
    #[error("the workspace's server cannot be used")]
    Upstream(#[source] UpstreamError),
}

/// Where a destination's connections are.
#[derive(Clone)]
pub struct Home {
    server: Arc<ServerPools>,
    /// The very key that the pool is known by: two that are one are equal at a glance.
    key: Arc<PoolKey>,
}

/// All pools of this process.
pub struct Pools {
    servers: Mutex<HashMap<ServerId, Arc<ServerPools>>>,
    limits: PoolConfig,
    key: Arc<ProxyKey>,
    held: Arc<Held>,
    warming: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    reported: Arc<Known>,
}

/// An upstream connection that belongs to one session until it is released. Dropping it closes the connection.
pub struct Lease {
    upstream: Box<Upstream>,
    place: Place,
}

impl std::ops::Deref for Lease {
    type Target = Upstream;
    fn deref(&self) -> &Upstream {
        &self.upstream
    }
}

impl std::ops::DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Upstream {
        &mut self.upstream
    }
}

impl Lease {
    /// What is known of the connection.
    pub fn state_mut(&mut self) -> &mut UpstreamState {
        &mut self.upstream
    }

    /// The version of the schema as far as statements through this pool have changed it.
    pub fn schema_epoch(&self) -> u64 {
        self.place.schema_epoch()
    }

    /// Gives the connection back for the next session, once it is fit for that: no cancel on its way, no transaction,
    /// nothing left behind. What cannot be made fit within five seconds is closed.
    pub fn release(mut self, slot: &Arc<CancelSlot>) {
        let flight = slot.detach();
        self.tainted |= are_dangerous(&self.settings);
        if flight.is_none() && !self.tainted && self.status == TransactionStatus::Idle {
            let Self { upstream, place } = self;
            place.home().clone().give_back(upstream, place);
            return;
        }
        let mut lease = self;
        tokio::spawn(async move {
            let metrics = lease.place.home().metrics().clone();
            let cleaned = async {
                let settled = match &flight {
                    Some(flight) => flight.settled().await,
                    None => true,
                };
                settled && lease.upstream.reset().await.is_ok()
            };
            if let Ok(true) = tokio::time::timeout(RESET_MAX, cleaned).await {
                metrics.upstream_reset("clean");
                let Self { upstream, place } = lease;
                place.home().clone().give_back(upstream, place);
            } else {
                metrics.upstream_reset("closed");
            }
        });
    }

    /// Gives back a connection that no session was attached to, if it is fit for the next one.
    pub fn release_unattached(self) {
        if !self.tainted
            && !are_dangerous(&self.settings)
            && self.status == TransactionStatus::Idle
            && self.outgoing.is_empty()
        {
            let Self { upstream, place } = self;
            place.home().clone().give_back(upstream, place);
        }
    }

    /// Ends a connection whose client is gone or whose statement will not end: cancel what runs, then close. The
    /// place stays counted until the server has been told.
    pub fn abandon(self, slot: &Arc<CancelSlot>) {
        slot.detach();
        self.place.home().metrics().upstream_closed("abandoned");
        tokio::spawn(async move {
            if let Some(target) = self.cancel_target() {
                let _ = tokio::time::timeout(RESET_MAX, target.send()).await;
            }
            self.upstream.close().await;
            drop(self.place);
        });
    }
}

impl Pools {
    /// No connection is opened until one is asked for.
    pub fn new(limits: PoolConfig, key: Arc<ProxyKey>, metrics: Arc<Metrics>) -> Self {
        let warming = Arc::new(Semaphore::new(WARMING_MAX));
        Self {
            servers: Mutex::default(),
            limits,
            key,
            held: Arc::default(),
            warming,
            metrics,
            reported: Arc::default(),
        }
    }

    /// The connections to a destination's server and its pool there: looked up once.
    fn of<'a>(&self, to: &'a Destination) -> &'a Home {
        to.home.get_or_init(|| {
            let server = self.server(&to.server.id);
            let key = server.known(&to.key);
            Home { server, key }
        })
    }

    fn server(&self, id: &ServerId) -> Arc<ServerPools> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(id) {
            return server.clone();
        }
        let server =
            ServerPools::new(self.limits.clone(), self.held.clone(), self.metrics.clone(), self.reported.clone());
        servers.insert(id.clone(), server.clone());
        server
    }

    fn all(&self) -> Vec<Arc<ServerPools>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// An idle connection to `to`, if there is one: what [`Self::lease`] would give without waiting for anything.
    pub fn lease_at_once(&self, to: &Destination) -> Option<Lease> {
        let (mut upstream, place) = self.of(to).server.take_at_once(&self.of(to).key, &to.server)?;
        if upstream.move_here().is_ok() {
            return Some(Lease { upstream, place });
        }
        self.metrics.upstream_closed("dead");
        None // the place is given up with it
    }

    /// A connection to `to`: an idle one, or a new one, or the next that becomes free, first come first served.
    ///
    /// # Errors
    /// See [`LeaseError`]. It is safe to drop the future at any time.
    pub async fn lease(&self, to: &Destination) -> Result<Lease, LeaseError> {
        let waiting = match self.of(to).server.take(&self.of(to).key, &to.server) {
            Taken::Connection(upstream, place) => return self.move_here(upstream, place, to).await,
            Taken::Place(place) => return self.open(to, place).await,
            Taken::QueueFull => return Err(LeaseError::QueueFull),
            Taken::Wait(waiting) => waiting,
        };
        let limit = Duration::from_millis(self.limits.query_wait_timeout_ms);
        match tokio::time::timeout(limit, waiting).await {
            Ok(Ok(Grant::Connection(upstream, place))) if upstream.leads_to(&to.server) => {
                self.move_here(upstream, place, to).await
            }
            Ok(Ok(Grant::Connection(upstream, place))) => {
                drop(upstream);
                self.metrics.upstream_closed("moved");
                self.open(to, place).await
            }
            Ok(Ok(Grant::Place(place))) => self.open(to, place).await,
            Ok(Err(_)) | Err(_) if self.held.has(&to.key.workspace) => Err(LeaseError::Paused),
            Ok(Err(_)) | Err(_) => Err(LeaseError::WaitedTooLong),
        }
    }

    /// The connection, watched by the thread of the session that has got it.
    async fn move_here(
        &self,
        mut upstream: Box<Upstream>,
        place: Place,
        to: &Destination,
    ) -> Result<Lease, LeaseError> {
        if upstream.move_here().is_ok() {
            return Ok(Lease { upstream, place });
        }
        self.metrics.upstream_closed("dead");
        self.open(to, place).await
    }

    async fn open(&self, to: &Destination, place: Place) -> Result<Lease, LeaseError> {
        let began = Instant::now();
        let connecting = ServerPools::connecting(&place);
        let opened = Upstream::open(to, &self.key, &self.limits).await;
        drop(connecting);
        match opened {
            Ok(mut upstream) => {
                self.reported.share(&mut upstream.parameters);
                self.metrics.upstream_connected(began.elapsed());
                upstream.retires_at = upstream.born + some_lifetime(self.limits.lifetime_ms);
                Ok(Lease { upstream: Box::new(upstream), place })
            }
            Err(error) => {
                self.metrics.upstream_failed(error.label());
                Err(LeaseError::Upstream(error))
            }
        }
    }

    /// Opens connections for pools that have fewer than `size_min`, a few at a time, where nobody has to wait for it.
    /// What the server reports to a session without settings of its own is known from then on.
    pub fn warm(self: &Arc<Self>, destinations: impl Iterator<Item = Destination>) {
        for to in destinations {
            let Ok(turn) = self.warming.clone().try_acquire_owned() else { return };
            let Some(place) = self.of(&to).server.take_spare(&to.key) else { continue };
            let pools = self.clone();
            tokio::spawn(async move {
                let _turn = turn;
                match pools.open(&to, place).await {
                    Ok(lease) => {
                        pools.remember_greeting(&to, &Values::new(), lease.parameters.clone());
                        lease.release_unattached();
                    }
                    Err(error) => {
                        let cause = crate::session::causes(&error);
                        tracing::warn!(workspace = %to.key.workspace, %error, cause, "no connection in advance");
                    }
                }
            });
        }
    }

    /// Whether connections are opened before they are asked for.
    pub fn warms(&self) -> bool {
        self.limits.size_min > 0
    }

    /// What the server reports at start to a client with these startup settings, if that is known already. While the
    /// workspace is paused nobody can ask the server: what it probably reports has to do, and what it really does is told
    /// with the session's first statement.
    pub fn greeting(&self, to: &Destination, startup: &Values) -> Option<Reported> {
        let server = &self.of(to).server;
        server.greeting(&to.key, startup).or_else(|| {
            let paused = self.held.has(&to.key.workspace);
            paused.then(|| server.likely_greeting(&to.key, startup))?
        })
    }

    /// Has what a session was told share its memory with others that were told the same.
    pub fn share(&self, reported: &mut Reported) {
        self.reported.share(reported);
    }

    /// Remembers what the server reported for these startup settings.
    pub fn remember_greeting(&self, to: &Destination, startup: &Values, greeting: Reported) {
        self.of(to).server.remember_greeting(&to.key, startup, greeting);
    }

    /// A statement that may change a result type has run on this database: what was prepared before is prepared again.
    pub fn schema_changed(&self, to: &Destination) {
        self.of(to).server.schema_changed(&to.database);
    }

    /// Closes connections that have idled or lived too long, and forgets pools that have none. Called on a timer.
    pub fn tidy(&self, now: Instant) {
        for server in self.all() {
            let stale = server.take_stale(now);
            for upstream in &stale {
                self.metrics.upstream_closed(if upstream.retires_at <= now { "lifetime" } else { "idle" });
            }
        }
    }

    /// One row per pool.
    pub fn rows(&self) -> Vec<PoolRow> {
        self.all().iter().flat_map(|server| server.rows()).collect()
    }

    /// Sums over all pools.
    pub fn totals(&self) -> PoolTotals {
        let mut totals = PoolTotals { paused: self.held.len() as u64, ..PoolTotals::default() };
        for row in self.rows() {
            totals.pools += 1;
            totals.active += row.active;
            totals.idle += row.idle;
            totals.connecting += row.connecting;
            totals.waiters += row.waiters;
        }
        totals
    }
}

/// How long a connection lives.
fn some_lifetime(most_ms: u64) -> Duration {
    let mut byte = [0];
    // Without randomness all live equally long.
    let _ = aws_lc_rs::rand::fill(&mut byte);
    Duration::from_millis(most_ms - most_ms / JITTER * u64::from(byte[0]) / 255)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_that_were_opened_together_do_not_end_together() {
        for most in [1_000, 3_600_000, 604_800_000] {
            let lives: Vec<u64> = (0..200).map(|_| u64::try_from(some_lifetime(most).as_millis()).unwrap()).collect();
            assert!(lives.iter().all(|life| (most * 8 / 10..=most).contains(life)), "{most}: {lives:?}");
            assert!(lives.iter().collect::<std::collections::HashSet<_>>().len() > 20, "{most}");
        }
    }
}
