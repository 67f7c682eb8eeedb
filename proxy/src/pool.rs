//! Upstream connections shared by the sessions of one workspace and role.
//!
//! One [`ServerPools`] per PostgreSQL server owns every connection to it: a pool per [`PoolKey`], one fair queue of
//! waiters, and the counters that bound them all. A place is counted before connecting, never after. A pool that
//! wants a connection while its server is full takes the place of the connection that has idled longest in another.
//! The generation of a backend role is part of the key, so a rotated credential needs no invalidation.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_catalog::seal::ProxyKey;
use portcullis_catalog::{Generation, ServerId};
use portcullis_config::PoolConfig;
use portcullis_wire::TransactionStatus;
use tokio::sync::oneshot;

use crate::admin::{PoolRow, PoolTotals};
use crate::cancel::CancelSlot;
use crate::metrics::Metrics;
use crate::session::settings::{Values, are_dangerous};
use crate::upstream::{Destination, Upstream, UpstreamError, UpstreamState};

/// How long a connection may take to be made fit for the next session.
const RESET_MAX: Duration = Duration::from_secs(5);
/// How long a session waits at most while another workspace's, which came later, go on using the server's connections.
const STARVED_AFTER: Duration = Duration::from_secs(1);
/// How many sets of startup settings a pool remembers the server's answer to.
const GREETINGS_MAX: usize = 256;

/// What makes connections interchangeable.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The server.
    pub server: ServerId,
    /// The real name of the database.
    pub database: String,
    /// The role that statements run as.
    pub role: String,
    /// The generation of the role's login.
    pub generation: Generation,
}

impl Destination {
    fn pool_key(&self) -> PoolKey {
        PoolKey {
            server: self.server.id.clone(),
            database: self.database.clone(),
            role: self.backend.role.clone(),
            generation: self.backend.generation,
        }
    }
}

/// Why no connection could be had.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// All are in use, and stayed so for the whole wait.
    #[error("no connection became free in time")]
    WaitedTooLong,
    /// The queue itself is full.
    #[error("too many sessions wait for a connection")]
    QueueFull,
    /// A new one could not be opened.
    #[error("the workspace's server cannot be used")]
    Upstream(#[source] UpstreamError),
}

/// All pools of this process.
pub struct Pools {
    servers: Mutex<HashMap<ServerId, Arc<ServerPools>>>,
    limits: PoolConfig,
    key: Arc<ProxyKey>,
    metrics: Arc<Metrics>,
}

/// The connections to one server.
pub struct ServerPools {
    state: Mutex<State>,
    limits: PoolConfig,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct State {
    open: usize,
    pools: HashMap<PoolKey, Pool>,
    waiters: VecDeque<Waiter>,
}

#[derive(Default)]
struct Pool {
    open: usize,
    connecting: usize,
    idle: VecDeque<Upstream>,
    schema_epoch: u64,
    greetings: HashMap<Values, Arc<Reported>>,
}

/// What a server reports at start: ParameterStatus by name.
pub type Reported = BTreeMap<String, String>;

struct Waiter {
    since: Instant,
    key: PoolKey,
    grant: oneshot::Sender<Grant>,
}

enum Grant {
    Connection(Box<Upstream>, Place),
    Place(Place),
}

/// A counted place at a server; dropping it gives it up and serves the queue.
struct Place {
    home: Arc<ServerPools>,
    key: PoolKey,
    counted: bool,
}

impl Place {
    /// Ends this value without giving the place up: whoever counts it now has been decided under the lock.
    fn hand_over(mut self) {
        self.counted = false;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut state = self.home.lock();
        state.uncount(&self.key);
        let closing = self.home.serve_waiters(&mut state);
        drop(state);
        drop(closing);
    }
}

impl State {
    fn count(&mut self, key: &PoolKey) {
        self.open += 1;
        self.pools.entry(key.clone()).or_default().open += 1;
    }

    fn uncount(&mut self, key: &PoolKey) {
        self.open = self.open.saturating_sub(1);
        if let Some(pool) = self.pools.get_mut(key) {
            pool.open = pool.open.saturating_sub(1);
        }
    }
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

    /// Gives the connection back for the next session, once it is fit for that: no cancel on its way, no transaction,
    /// nothing left behind. What cannot be made fit within five seconds is closed.
    pub fn release(mut self, slot: &Arc<CancelSlot>) {
        let flight = slot.detach();
        self.tainted |= are_dangerous(&self.settings);
        if flight.is_none() && !self.tainted && self.status == TransactionStatus::Idle {
            let Self { upstream, place } = self;
            place.home.clone().give_back(upstream, place);
            return;
        }
        let mut lease = self;
        tokio::spawn(async move {
            let metrics = lease.place.home.metrics.clone();
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
                place.home.clone().give_back(upstream, place);
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
            place.home.clone().give_back(upstream, place);
        }
    }

    /// Ends a connection whose client is gone or whose statement will not end: cancel what runs, then close. The
    /// place stays counted until the server has been told.
    pub fn abandon(self, slot: &Arc<CancelSlot>) {
        slot.detach();
        self.place.home.metrics.upstream_closed("abandoned");
        tokio::spawn(async move {
            if let Some(target) = self.cancel_target() {
                let _ = tokio::time::timeout(RESET_MAX, target.send()).await;
            }
            drop(self);
        });
    }
}

impl Pools {
    /// No connection is opened until one is asked for.
    pub fn new(limits: PoolConfig, key: Arc<ProxyKey>, metrics: Arc<Metrics>) -> Self {
        Self { servers: Mutex::default(), limits, key, metrics }
    }

    fn server(&self, id: &ServerId) -> Arc<ServerPools> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = || {
            Arc::new(ServerPools {
                state: Mutex::default(),
                limits: self.limits.clone(),
                metrics: self.metrics.clone(),
            })
        };
        servers.entry(id.clone()).or_insert_with(fresh).clone()
    }

    /// A connection to `to`: an idle one, or a new one, or the next that becomes free, first come first served.
    ///
    /// # Errors
    /// See [`LeaseError`]. It is safe to drop the future at any time.
    pub async fn lease(&self, to: &Destination) -> Result<Lease, LeaseError> {
        let server = self.server(&to.server.id);
        let key = to.pool_key();
        let waiting = match server.take(&key, to) {
            Taken::Connection(upstream, place) => return Ok(Lease { upstream, place }),
            Taken::Place(place) => return self.open(to, place).await,
            Taken::QueueFull => return Err(LeaseError::QueueFull),
            Taken::Wait(waiting) => waiting,
        };
        let limit = Duration::from_millis(self.limits.query_wait_timeout_ms);
        match tokio::time::timeout(limit, waiting).await {
            Ok(Ok(Grant::Connection(upstream, place))) if upstream.leads_to(&to.server) => {
                Ok(Lease { upstream, place })
            }
            Ok(Ok(Grant::Connection(upstream, place))) => {
                drop(upstream);
                self.metrics.upstream_closed("moved");
                self.open(to, place).await
            }
            Ok(Ok(Grant::Place(place))) => self.open(to, place).await,
            Ok(Err(_)) | Err(_) => Err(LeaseError::WaitedTooLong),
        }
    }

    async fn open(&self, to: &Destination, place: Place) -> Result<Lease, LeaseError> {
        let began = Instant::now();
        let connecting = Connecting::begin(&place);
        let opened = Upstream::open(to, &self.key, &self.limits).await;
        drop(connecting);
        match opened {
            Ok(upstream) => {
                self.metrics.upstream_connected(began.elapsed());
                Ok(Lease { upstream: Box::new(upstream), place })
            }
            Err(error) => {
                self.metrics.upstream_failed(error.label());
                Err(LeaseError::Upstream(error))
            }
        }
    }

    /// What the server reports at start to a client with these startup settings, if that is known already.
    pub fn greeting(&self, to: &Destination, startup: &Values) -> Option<Arc<Reported>> {
        let server = self.server(&to.server.id);
        let state = server.lock();
        state.pools.get(&to.pool_key())?.greetings.get(startup).cloned()
    }

    /// Remembers what the server reported for these startup settings.
    pub fn remember_greeting(&self, to: &Destination, startup: &Values, greeting: Arc<Reported>) {
        let server = self.server(&to.server.id);
        let mut state = server.lock();
        let pool = state.pools.entry(to.pool_key()).or_default();
        if pool.greetings.len() >= GREETINGS_MAX {
            pool.greetings.clear();
        }
        pool.greetings.insert(startup.clone(), greeting);
    }

    /// The version of the schema as far as statements through this pool have changed it.
    pub fn schema_epoch(&self, to: &Destination) -> u64 {
        let server = self.server(&to.server.id);
        let state = server.lock();
        state.pools.get(&to.pool_key()).map_or(0, |pool| pool.schema_epoch)
    }

    /// A statement that may change a result type has run on this database: what was prepared before is prepared again.
    pub fn schema_changed(&self, to: &Destination) {
        let server = self.server(&to.server.id);
        let mut state = server.lock();
        for (key, pool) in &mut state.pools {
            if key.database == to.database {
                pool.schema_epoch += 1;
            }
        }
    }

    /// Closes connections that have idled or lived too long, and forgets pools that have none. Called on a timer.
    pub fn tidy(&self, now: Instant) {
        for server in self.all() {
            let stale = server.take_stale(now);
            stale.iter().for_each(|_| self.metrics.upstream_closed("idle"));
        }
    }

    /// One row per pool.
    pub fn rows(&self) -> Vec<PoolRow> {
        self.all().iter().flat_map(|server| server.rows()).collect()
    }

    /// Sums over all pools.
    pub fn totals(&self) -> PoolTotals {
        let mut totals = PoolTotals::default();
        for row in self.rows() {
            totals.pools += 1;
            totals.active += row.active;
            totals.idle += row.idle;
            totals.connecting += row.connecting;
            totals.waiters += row.waiters;
        }
        totals
    }

    fn all(&self) -> Vec<Arc<ServerPools>> {
        self.servers.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }
}

/// Counts a connection that is being opened.
struct Connecting<'a>(&'a Place);

impl<'a> Connecting<'a> {
    fn begin(place: &'a Place) -> Self {
        if let Some(pool) = place.home.lock().pools.get_mut(&place.key) {
            pool.connecting += 1;
        }
        Self(place)
    }
}

impl Drop for Connecting<'_> {
    fn drop(&mut self) {
        if let Some(pool) = self.0.home.lock().pools.get_mut(&self.0.key) {
            pool.connecting = pool.connecting.saturating_sub(1);
        }
    }
}

enum Taken {
    Connection(Box<Upstream>, Place),
    Place(Place),
    Wait(oneshot::Receiver<Grant>),
    QueueFull,
}

impl ServerPools {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(self: &Arc<Self>, key: &PoolKey) -> Place {
        Place { home: self.clone(), key: key.clone(), counted: true }
    }

    fn take(self: &Arc<Self>, key: &PoolKey, to: &Destination) -> Taken {
        let mut closing = Vec::new();
        let mut state = self.lock();
        let pool = state.pools.entry(key.clone()).or_default();
        let mut found = None;
        while let Some(mut upstream) = pool.idle.pop_back() {
            let moved = !upstream.leads_to(&to.server);
            if !moved && upstream.is_quiet() {
                found = Some(upstream);
                break;
            }
            closing.push(upstream);
            self.metrics.upstream_closed(if moved { "moved" } else { "dead" });
        }
        pool.open -= closing.len();
        state.open -= closing.len();
        let taken = match found {
            Some(upstream) => Taken::Connection(Box::new(upstream), self.place(key)),
            None => self.take_place(&mut state, key, &mut closing),
        };
        drop(state);
        drop(closing);
        taken
    }

    fn take_place(self: &Arc<Self>, state: &mut State, key: &PoolKey, closing: &mut Vec<Upstream>) -> Taken {
        let open_here = state.pools.get(key).map_or(0, |pool| pool.open);
        let nobody_before = !state.waiters.iter().any(|waiter| waiter.key == *key);
        if nobody_before && open_here < self.limits.size_max && self.make_room(state, closing) {
            state.count(key);
            return Taken::Place(self.place(key));
        }
        if state.waiters.len() >= self.limits.waiters_max {
            state.waiters.retain(|waiter| !waiter.grant.is_closed());
        }
        if state.waiters.len() >= self.limits.waiters_max {
            return Taken::QueueFull;
        }
        let (grant, waiting) = oneshot::channel();
        state.waiters.push_back(Waiter { since: Instant::now(), key: key.clone(), grant });
        Taken::Wait(waiting)
    }

    /// Whether one more connection may be opened; closes the longest-idle one elsewhere if that is what it takes.
    fn make_room(&self, state: &mut State, closing: &mut Vec<Upstream>) -> bool {
        if state.open < self.limits.server_connections_max {
            return true;
        }
        let longest = state
            .pools
            .iter()
            .filter_map(|(key, pool)| Some((pool.idle.front()?.idle_since, key.clone())))
            .min_by_key(|(since, _)| *since);
        let Some((_, key)) = longest else { return false };
        if let Some(pool) = state.pools.get_mut(&key)
            && let Some(upstream) = pool.idle.pop_front()
        {
            pool.open -= 1;
            state.open -= 1;
            self.metrics.upstream_closed("evicted");
            closing.push(upstream);
        }
        true
    }

    /// Hands a place to whoever waits longest and may have one.
    fn serve_waiters(self: &Arc<Self>, state: &mut State) -> Vec<Upstream> {
        let mut closing = Vec::new();
        state.waiters.retain(|waiter| !waiter.grant.is_closed());
        let mut at = 0;
        while at < state.waiters.len() {
            let key = state.waiters[at].key.clone();
            let open = state.pools.get(&key).map_or(0, |pool| pool.open);
            if open >= self.limits.size_max || !self.make_room(state, &mut closing) {
                at += 1;
                continue;
            }
            let Some(waiter) = state.waiters.remove(at) else { break };
            state.count(&key);
            if let Err(Grant::Place(place)) = waiter.grant.send(Grant::Place(self.place(&key))) {
                place.hand_over();
                state.uncount(&key);
            }
        }
        closing
    }

    fn give_back(self: &Arc<Self>, mut upstream: Box<Upstream>, place: Place) {
        upstream.idle_since = Instant::now();
        if upstream.born.elapsed() > Duration::from_millis(self.limits.lifetime_ms) {
            self.metrics.upstream_closed("lifetime");
            return; // dropping the place counts it down and serves the queue
        }
        let key = place.key.clone();
        let mut state = self.lock();
        if self.someone_starves(&state, &key) {
            drop(state);
            self.metrics.upstream_closed("evicted");
            return;
        }
        let mut grant = Grant::Connection(upstream, place);
        while let Some(at) = state.waiters.iter().position(|waiter| waiter.key == key) {
            let Some(waiter) = state.waiters.remove(at) else { break };
            match waiter.grant.send(grant) {
                Ok(()) => return,
                Err(back) => grant = back,
            }
        }
        let mut closing = Vec::new();
        if let Grant::Connection(upstream, place) = grant {
            place.hand_over(); // to the idle connection, which stays counted
            if let Some(pool) = state.pools.get_mut(&key) {
                pool.idle.push_back(*upstream);
            }
            closing = self.serve_waiters(&mut state);
        }
        drop(state);
        drop(closing);
    }

    /// Whether a session of another pool has waited long for a place that only this pool's sessions keep it from.
    fn someone_starves(&self, state: &State, key: &PoolKey) -> bool {
        state.open >= self.limits.server_connections_max
            && state.waiters.iter().any(|waiter| {
                let open = state.pools.get(&waiter.key).map_or(0, |pool| pool.open);
                waiter.key != *key
                    && open < self.limits.size_max
                    && waiter.since.elapsed() > STARVED_AFTER
                    && !waiter.grant.is_closed()
            })
    }

    fn take_stale(&self, now: Instant) -> Vec<Upstream> {
        let idle_max = Duration::from_millis(self.limits.idle_timeout_ms);
        let lifetime = Duration::from_millis(self.limits.lifetime_ms);
        let mut stale = Vec::new();
        let mut state = self.lock();
        let mut closed = 0;
        for pool in state.pools.values_mut() {
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut pool.idle).into_iter().partition(|upstream| {
                    now.saturating_duration_since(upstream.idle_since) > idle_max
                        || now.saturating_duration_since(upstream.born) > lifetime
                });
            pool.idle = kept;
            pool.open -= gone.len();
            closed += gone.len();
            stale.extend(gone);
        }
        state.open -= closed;
        state.pools.retain(|_, pool| pool.open > 0);
        stale
    }

    fn rows(&self) -> Vec<PoolRow> {
        let state = self.lock();
        let waiters = |key: &PoolKey| {
            let mine = state.waiters.iter().filter(|waiter| waiter.key == *key && !waiter.grant.is_closed());
            mine.fold((0, Duration::ZERO), |(count, longest), waiter| (count + 1, longest.max(waiter.since.elapsed())))
        };
        let row = |(key, pool): (&PoolKey, &Pool)| {
            let (waiting, longest) = waiters(key);
            PoolRow {
                server: key.server.to_string(),
                database: key.database.clone(),
                role: key.role.clone(),
                generation: key.generation.0,
                active: pool.open.saturating_sub(pool.idle.len() + pool.connecting) as u64,
                idle: pool.idle.len() as u64,
                connecting: pool.connecting as u64,
                waiters: waiting,
                oldest_wait_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
            }
        };
        state.pools.iter().map(row).collect()
    }
}
