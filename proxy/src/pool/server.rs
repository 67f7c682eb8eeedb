//! The connections to one server: the pools, who waits, and the counters that bound them all.
//!
//! Everything here happens under one lock and does no I/O. A place is counted before its connection is opened and given
//! up after the connection is closed, so the bounds hold on the server too.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use portcullis_catalog::{Server, WorkspaceId};
use portcullis_config::PoolConfig;
use tokio::sync::oneshot;

use super::PoolKey;
use super::held::Held;
use crate::admin::PoolRow;
use crate::metrics::Metrics;
use crate::reported::{Known, Reported};
use crate::session::settings::Values;
use crate::upstream::Upstream;
use crate::workers::here;

/// How long a session waits at most while sessions of other pools, which came later, go on using the connections that
/// both may have.
const STARVED_AFTER: Duration = Duration::from_secs(1);
/// For so long may a waiter be overtaken by others of the thread that gives a connection back: to move one to another
/// thread costs about as much as a short statement. Whoever has waited longer is next, wherever he is.
const OVERTAKEN_MAX: Duration = Duration::from_millis(20);
/// How many waiters are looked at for one of that thread.
const OVERTAKERS_MAX: usize = 16;
/// How many sets of startup settings a pool remembers the server's answer to.
const GREETINGS_MAX: usize = 256;

/// The connections to one server.
pub struct ServerPools {
    state: Mutex<State>,
    limits: PoolConfig,
    held: Arc<Held>,
    metrics: Arc<Metrics>,
    reported: Arc<Known>,
}

#[derive(Default)]
pub(super) struct State {
    open: usize,
    of_workspace: HashMap<WorkspaceId, usize>,
    pools: HashMap<Arc<PoolKey>, Pool>,
    /// The pools with somebody waiting.
    queues: HashSet<Arc<PoolKey>>,
    arrivals: u64,
}

#[derive(Default)]
struct Pool {
    open: usize,
    connecting: usize,
    /// Boxed as in a lease, which comes from here and returns with every transaction.
    idle: VecDeque<Box<Upstream>>,
    waiters: VecDeque<Waiter>,
    /// Raised by RECONNECT: connections of an earlier era are closed when their session lets go of them.
    era: u64,
    /// How many of these there are.
    outdated: usize,
    schema: Arc<AtomicU64>,
    greetings: HashMap<Values, Reported>,
}

impl Pool {
    /// The connection that was used last, of those that this thread watches if there are any: moving one costs.
    fn next_idle(&mut self) -> Option<Box<Upstream>> {
        let here = here();
        match self.idle.iter().rposition(|upstream| upstream.home() == here) {
            Some(at) => self.idle.remove(at),
            None => self.idle.pop_back(),
        }
    }

    /// Who gets a connection that this thread gives back: whoever came first, or shortly after him from this thread.
    fn next_waiter(&mut self) -> Option<Waiter> {
        let (first, here) = (self.waiters.front()?, here());
        if first.home == here || first.since.elapsed() > OVERTAKEN_MAX {
            return self.waiters.pop_front();
        }
        let mut nearest = self.waiters.iter().take(OVERTAKERS_MAX);
        let at = nearest.position(|waiter| waiter.home == here && !waiter.grant.is_closed());
        self.waiters.remove(at.unwrap_or(0))
    }
}

struct Waiter {
    since: Instant,
    home: Option<u16>,
    /// In order of arrival at this server.
    ticket: u64,
    grant: oneshot::Sender<Grant>,
}

/// What a waiter gets.
pub(super) enum Grant {
    /// A connection that somebody gave back.
    Connection(Box<Upstream>, Place),
    /// Leave to open one.
    Place(Place),
}

/// What asking for a connection gives.
pub(super) enum Taken {
    Connection(Box<Upstream>, Place),
    Place(Place),
    Wait(oneshot::Receiver<Grant>),
    QueueFull,
}

/// A counted place at a server; dropping it gives it up and serves the queue.
pub(super) struct Place {
    home: Arc<ServerPools>,
    key: Arc<PoolKey>,
    era: u64,
    schema: Arc<AtomicU64>,
    counted: bool,
}

impl Place {
    /// Ends this value without giving the place up: whoever counts it now has been decided under the lock.
    fn hand_over(mut self) {
        self.counted = false;
    }

    pub(super) fn home(&self) -> &Arc<ServerPools> {
        &self.home
    }

    /// See [`super::Lease::schema_epoch`].
    pub(super) fn schema_epoch(&self) -> u64 {
        self.schema.load(Ordering::Acquire)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.counted {
            return;
        }
        let mut state = self.home.lock();
        state.uncount(&self.key, self.era);
        let closing = self.home.serve_waiters(&mut state);
        drop(state);
        drop(closing);
        self.home.held.changed();
    }
}

impl State {
    fn count(&mut self, key: &Arc<PoolKey>) {
        self.open += 1;
        *self.of_workspace.entry(key.workspace.clone()).or_default() += 1;
        self.pools.entry(key.clone()).or_default().open += 1;
    }

    fn uncount(&mut self, key: &PoolKey, era: u64) {
        if let Some(pool) = self.pools.get_mut(key)
            && era < pool.era
        {
            pool.outdated = pool.outdated.saturating_sub(1);
        }
        self.closed(key, 1);
    }

    /// So many connections of this pool are no more.
    fn closed(&mut self, key: &PoolKey, count: usize) {
        self.open = self.open.saturating_sub(count);
        if let Some(pool) = self.pools.get_mut(key) {
            pool.open = pool.open.saturating_sub(count);
        }
        if let Some(open) = self.of_workspace.get_mut(&key.workspace) {
            *open = open.saturating_sub(count);
            if *open == 0 {
                self.of_workspace.remove(&key.workspace);
            }
        }
    }

    fn open_of(&self, workspace: &WorkspaceId) -> usize {
        self.of_workspace.get(workspace).copied().unwrap_or_default()
    }

    fn open_in(&self, key: &PoolKey) -> usize {
        self.pools.get(key).map_or(0, |pool| pool.open)
    }

    /// The arrival of the first in this pool's queue who still waits. A pool without any leaves the set of queues.
    fn first_waiter(&mut self, key: &Arc<PoolKey>) -> Option<(u64, Instant)> {
        let waiters = &mut self.pools.get_mut(key)?.waiters;
        while waiters.front().is_some_and(|waiter| waiter.grant.is_closed()) {
            waiters.pop_front();
        }
        let first = waiters.front().map(|waiter| (waiter.ticket, waiter.since));
        if first.is_none() {
            self.queues.remove(key);
        }
        first
    }

    /// The queues by the arrival of their first.
    fn queues_in_order(&mut self) -> Vec<(u64, Instant, Arc<PoolKey>)> {
        if self.queues.is_empty() {
            return Vec::new();
        }
        let keys: Vec<_> = self.queues.iter().cloned().collect();
        let first = keys.into_iter().filter_map(|key| self.first_waiter(&key).map(|(at, since)| (at, since, key)));
        let mut queues: Vec<_> = first.collect();
        queues.sort_unstable_by_key(|(at, ..)| *at);
        queues
    }
}

impl ServerPools {
    pub(super) fn new(limits: PoolConfig, held: Arc<Held>, metrics: Arc<Metrics>, reported: Arc<Known>) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), limits, held, metrics, reported })
    }

    pub(super) fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key by which this pool is known here, if it is; this one otherwise.
    pub(super) fn known(&self, key: &Arc<PoolKey>) -> Arc<PoolKey> {
        self.lock().pools.get_key_value(key).map_or_else(|| key.clone(), |(known, _)| known.clone())
    }

    fn place(self: &Arc<Self>, state: &State, key: &Arc<PoolKey>) -> Place {
        let pool = state.pools.get(key);
        let schema = pool.map(|pool| pool.schema.clone()).unwrap_or_default();
        let era = pool.map_or(0, |pool| pool.era);
        Place { home: self.clone(), key: key.clone(), era, schema, counted: true }
    }

    /// An idle connection to `server`, or leave to open one, or a place in the queue.
    pub(super) fn take(self: &Arc<Self>, key: &Arc<PoolKey>, server: &Arc<Server>) -> Taken {
        let mut closing = Vec::new();
        let mut state = self.lock();
        let taken = if self.held.has(&key.workspace) {
            self.enqueue(&mut state, key)
        } else {
            match self.take_idle(&mut state, key, server, &mut closing) {
                Some(upstream) => Taken::Connection(upstream, self.place(&state, key)),
                None => self.take_place(&mut state, key, &mut closing),
            }
        };
        drop(state);
        drop(closing);
        taken
    }

    /// An idle connection to `server`, if that is all it takes.
    pub(super) fn take_at_once(
        self: &Arc<Self>,
        key: &Arc<PoolKey>,
        server: &Arc<Server>,
    ) -> Option<(Box<Upstream>, Place)> {
        if self.held.has(&key.workspace) {
            return None;
        }
        let mut closing = Vec::new();
        let mut state = self.lock();
        let taken = self.take_idle(&mut state, key, server, &mut closing);
        let taken = taken.map(|upstream| (upstream, self.place(&state, key)));
        drop(state);
        drop(closing);
        taken
    }

    fn take_idle(
        &self,
        state: &mut State,
        key: &Arc<PoolKey>,
        server: &Arc<Server>,
        closing: &mut Vec<Upstream>,
    ) -> Option<Box<Upstream>> {
        let pool = state.pools.get_mut(key)?;
        let mut found = None;
        while let Some(mut upstream) = pool.next_idle() {
            let moved = !upstream.leads_to(server);
            if !moved && upstream.is_quiet() {
                found = Some(upstream);
                break;
            }
            closing.push(*upstream);
            self.metrics.upstream_closed(if moved { "moved" } else { "dead" });
        }
        state.closed(key, closing.len());
        found
    }

    fn take_place(self: &Arc<Self>, state: &mut State, key: &Arc<PoolKey>, closing: &mut Vec<Upstream>) -> Taken {
        if state.first_waiter(key).is_none() && self.make_room(state, key, closing) {
            state.count(key);
            return Taken::Place(self.place(state, key));
        }
        self.enqueue(state, key)
    }

    fn enqueue(&self, state: &mut State, key: &Arc<PoolKey>) -> Taken {
        state.arrivals += 1;
        let ticket = state.arrivals;
        let waiters = &mut state.pools.entry(key.clone()).or_default().waiters;
        if waiters.len() >= self.limits.waiters_max {
            waiters.retain(|waiter| !waiter.grant.is_closed());
        }
        if waiters.len() >= self.limits.waiters_max {
            return Taken::QueueFull;
        }
        let (grant, waiting) = oneshot::channel();
        waiters.push_back(Waiter { since: Instant::now(), home: here(), ticket, grant });
        state.queues.insert(key.clone());
        Taken::Wait(waiting)
    }

    /// A place for a connection that is opened before anybody asks for it; none where that would cost anybody anything.
    pub(super) fn take_spare(self: &Arc<Self>, key: &Arc<PoolKey>) -> Option<Place> {
        let mut state = self.lock();
        let spare = state.open_in(key) < self.limits.size_min.min(self.limits.size_max)
            && state.open < self.limits.server_connections_max
            && state.open_of(&key.workspace) < self.limits.workspace_connections_max
            && state.queues.is_empty()
            && !self.held.has(&key.workspace);
        spare.then(|| {
            state.count(key);
            self.place(&state, key)
        })
    }

    /// Whether this pool may open one more connection; closes the longest-idle one of others if that is what it takes.
    fn make_room(&self, state: &mut State, key: &PoolKey, closing: &mut Vec<Upstream>) -> bool {
        if state.open_in(key) >= self.limits.size_max {
            return false;
        }
        if state.open_of(&key.workspace) >= self.limits.workspace_connections_max {
            return self.evict(state, closing, |other| other.workspace == key.workspace);
        }
        state.open < self.limits.server_connections_max || self.evict(state, closing, |_| true)
    }

    fn evict(&self, state: &mut State, closing: &mut Vec<Upstream>, from: impl Fn(&PoolKey) -> bool) -> bool {
        let longest = state
            .pools
            .iter()
            .filter(|(key, _)| from(key))
            .filter_map(|(key, pool)| Some((pool.idle.front()?.idle_since, key.clone())))
            .min_by_key(|(since, _)| *since);
        let Some((_, key)) = longest else { return false };
        let upstream = state.pools.get_mut(&key).and_then(|pool| pool.idle.pop_front());
        state.closed(&key, usize::from(upstream.is_some()));
        self.metrics.upstream_closed("evicted");
        closing.extend(upstream.map(|upstream| *upstream));
        true
    }

    /// Hands places to those who wait longest and may have one. Gives what had to be closed for it.
    fn serve_waiters(self: &Arc<Self>, state: &mut State) -> Vec<Upstream> {
        let mut closing = Vec::new();
        for (_, _, key) in state.queues_in_order() {
            if self.held.has(&key.workspace) {
                continue;
            }
            while state.first_waiter(&key).is_some() && self.make_room(state, &key, &mut closing) {
                let Some(waiter) = state.pools.get_mut(&key).and_then(|pool| pool.waiters.pop_front()) else { break };
                state.count(&key);
                let place = self.place(state, &key);
                if let Err(Grant::Place(place)) = waiter.grant.send(Grant::Place(place)) {
                    state.uncount(&key, place.era);
                    place.hand_over();
                }
            }
        }
        closing
    }

    /// A connection is free again: for the next of its pool, or for somebody who has waited for its place for too long, or
    /// it idles. One that may not be used again is closed, and only then is its place free.
    pub(super) fn give_back(self: &Arc<Self>, mut upstream: Box<Upstream>, place: Place) {
        upstream.idle_since = Instant::now();
        self.reported.share(&mut upstream.parameters);
        let key = place.key.clone();
        let mut state = self.lock();
        if let Some(reason) = self.must_close(&mut state, &upstream, &place) {
            drop(state);
            self.close(upstream, place, reason);
            return;
        }
        let mut grant = Grant::Connection(upstream, place);
        while let Some(waiter) = state.pools.get_mut(&key).and_then(Pool::next_waiter) {
            match waiter.grant.send(grant) {
                Ok(()) => return,
                Err(back) => grant = back,
            }
        }
        state.queues.remove(&key);
        let mut closing = Vec::new();
        if let Grant::Connection(upstream, place) = grant {
            place.hand_over(); // to the idle connection, which stays counted
            if let Some(pool) = state.pools.get_mut(&key) {
                pool.idle.push_back(upstream);
            }
            closing = self.serve_waiters(&mut state);
        }
        drop(state);
        drop(closing);
    }

    fn must_close(&self, state: &mut State, upstream: &Upstream, place: &Place) -> Option<&'static str> {
        let era = state.pools.get(&place.key).map_or(0, |pool| pool.era);
        if upstream.retires_at <= upstream.idle_since {
            Some("lifetime")
        } else if place.era < era {
            Some("reconnect")
        } else if self.held.has(&place.key.workspace) {
            Some("paused")
        } else {
            self.someone_starves(state, &place.key).then_some("evicted")
        }
    }

    /// Closes a connection that nobody uses, and gives its place up when the server has closed its side.
    pub(super) fn close(&self, upstream: Box<Upstream>, place: Place, reason: &'static str) {
        self.metrics.upstream_closed(reason);
        tokio::spawn(async move {
            upstream.close().await;
            drop(place);
        });
    }

    /// Whether somebody of another pool waits for a place that only this pool's sessions keep from him: at once where his
    /// workspace has fewer connections than this one, otherwise when he has waited for long.
    fn someone_starves(&self, state: &mut State, key: &Arc<PoolKey>) -> bool {
        let server_full = state.open >= self.limits.server_connections_max;
        let mine = state.open_of(&key.workspace);
        let workspace_full = mine >= self.limits.workspace_connections_max;
        if !server_full && !workspace_full {
            return false;
        }
        state.queues_in_order().into_iter().any(|(_, since, other)| {
            if other == *key || state.open_in(&other) >= self.limits.size_max || self.held.has(&other.workspace) {
                return false;
            }
            let theirs = state.open_of(&other.workspace);
            let starved = since.elapsed() > STARVED_AFTER;
            if other.workspace == key.workspace {
                return starved;
            }
            server_full && theirs < self.limits.workspace_connections_max && (theirs + 1 < mine || starved)
        })
    }

    /// Counts a connection that is being opened until the value is dropped.
    pub(super) fn connecting(place: &Place) -> Connecting {
        if let Some(pool) = place.home.lock().pools.get_mut(&place.key) {
            pool.connecting += 1;
        }
        Connecting { home: place.home.clone(), key: place.key.clone() }
    }

    /// What the server reported to a session with these startup settings.
    pub(super) fn greeting(&self, key: &PoolKey, startup: &Values) -> Option<Reported> {
        self.lock().pools.get(key)?.greetings.get(startup).cloned()
    }

    /// What the server probably reports to one: what it reported to another whose settings, as far as they are reported,
    /// are replaced by these.
    pub(super) fn likely_greeting(&self, key: &PoolKey, startup: &Values) -> Option<Reported> {
        let state = self.lock();
        let own = state.pools.get(key).into_iter();
        let (values, known) =
            own.chain(state.pools.values()).flat_map(|pool| &pool.greetings).find(|(values, known)| {
                let reported = |name: &str| known.keys().any(|key| key.eq_ignore_ascii_case(name));
                values.keys().all(|name| startup.contains_key(name) || !reported(name))
            })?;
        debug_assert!(values.len() <= GREETINGS_MAX);
        let mut likely = known.clone();
        for name in known.keys() {
            if let Some((_, wanted)) = startup.iter().find(|(wanted, _)| wanted.eq_ignore_ascii_case(name)) {
                likely.insert(name, wanted);
            }
        }
        Some(likely)
    }

    pub(super) fn remember_greeting(&self, key: &Arc<PoolKey>, startup: &Values, greeting: Reported) {
        let mut state = self.lock();
        let pool = state.pools.entry(key.clone()).or_default();
        if pool.greetings.len() >= GREETINGS_MAX {
            pool.greetings.clear();
        }
        pool.greetings.insert(startup.clone(), greeting);
    }

    /// See [`super::Pools::schema_changed`].
    pub(super) fn schema_changed(&self, database: &str) {
        for (key, pool) in &self.lock().pools {
            if key.database == database {
                pool.schema.fetch_add(1, Ordering::AcqRel);
            }
        }
    }

    /// Takes away what has idled or lived too long, and forgets pools that have nothing. Some stay idle however long.
    pub(super) fn take_stale(&self, now: Instant) -> Vec<Upstream> {
        let idle_max = Duration::from_millis(self.limits.idle_timeout_ms);
        let mut stale = Vec::new();
        let mut state = self.lock();
        let keys: Vec<_> = state.pools.keys().cloned().collect();
        for key in keys {
            let Some(pool) = state.pools.get_mut(&key) else { continue };
            let mut spare = pool.open.saturating_sub(self.limits.size_min);
            let (gone, kept): (VecDeque<_>, VecDeque<_>) =
                std::mem::take(&mut pool.idle).into_iter().partition(|idle| {
                    let idled = spare > 0 && now.saturating_duration_since(idle.idle_since) > idle_max;
                    let goes = idled || idle.retires_at <= now;
                    spare -= usize::from(goes && spare > 0);
                    goes
                });
            pool.idle = kept;
            state.closed(&key, gone.len());
            stale.extend(gone.into_iter().map(|upstream| *upstream));
        }
        let held = &self.held;
        state.pools.retain(|key, pool| pool.open > 0 || !pool.waiters.is_empty() || held.has(&key.workspace));
        stale
    }

    /// Takes the idle connections of a workspace away; they stay counted until they are closed. With `renew` those in use
    /// are closed when they are released.
    pub(super) fn take_idle_of(self: &Arc<Self>, workspace: &WorkspaceId, renew: bool) -> Vec<(Box<Upstream>, Place)> {
        let mut state = self.lock();
        let keys: Vec<_> = state.pools.keys().filter(|key| key.workspace == *workspace).cloned().collect();
        let mut taken = Vec::new();
        for key in keys {
            let Some(pool) = state.pools.get_mut(&key) else { continue };
            let idle = std::mem::take(&mut pool.idle);
            // Their places are of the era that ends.
            let places: Vec<Place> = idle.iter().map(|_| self.place(&state, &key)).collect();
            if renew && let Some(pool) = state.pools.get_mut(&key) {
                pool.era += 1;
                pool.outdated = pool.open;
            }
            taken.extend(idle.into_iter().zip(places));
        }
        taken
    }

    /// Serves those that a pause had held up.
    pub(super) fn resume(self: &Arc<Self>) {
        let mut state = self.lock();
        let closing = self.serve_waiters(&mut state);
        drop(state);
        drop(closing);
    }

    /// How many connections a workspace has, and how many of them are older than the last RECONNECT.
    pub(super) fn connections_of(&self, workspace: &WorkspaceId) -> (usize, usize) {
        let state = self.lock();
        let mine = state.pools.iter().filter(|(key, _)| key.workspace == *workspace);
        (state.open_of(workspace), mine.map(|(_, pool)| pool.outdated).sum())
    }

    /// One row per pool.
    pub(super) fn rows(&self) -> Vec<PoolRow> {
        let state = self.lock();
        let row = |(key, pool): (&Arc<PoolKey>, &Pool)| {
            let waiting = || pool.waiters.iter().filter(|waiter| !waiter.grant.is_closed());
            let longest = waiting().next().map_or(Duration::ZERO, |waiter| waiter.since.elapsed());
            PoolRow {
                server: key.server.to_string(),
                workspace: key.workspace.to_string(),
                database: key.database.clone(),
                role: key.role.clone(),
                generation: key.generation.0,
                paused: self.held.has(&key.workspace),
                active: pool.open.saturating_sub(pool.idle.len() + pool.connecting) as u64,
                idle: pool.idle.len() as u64,
                connecting: pool.connecting as u64,
                waiters: waiting().count() as u64,
                oldest_wait_ms: u64::try_from(longest.as_millis()).unwrap_or(u64::MAX),
            }
        };
        state.pools.iter().map(row).collect()
    }
}

/// Counts a connection that is being opened.
pub(super) struct Connecting {
    home: Arc<ServerPools>,
    key: Arc<PoolKey>,
}

impl Drop for Connecting {
    fn drop(&mut self) {
        if let Some(pool) = self.home.lock().pools.get_mut(&self.key) {
            pool.connecting = pool.connecting.saturating_sub(1);
        }
    }
}
