//! The proxy's side: the catalog as an immutable snapshot that follows it, and goes on serving while it is away.
//!
//! One task owns the one connection (`follow`): it listens for announcements, asks every poll tick in case one was lost,
//! loads what changed (`load`), and writes what the proxy reports. Everybody else reads the snapshot without a lock, or
//! leaves a note for the task. A method here never waits for the catalog, except [`Reader::refresh_now`] and
//! [`Reader::stop`], which have a limit.

mod follow;
mod load;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use portcullis_config::ProxyCatalogConfig;
use tokio::{
    sync::{Notify, watch},
    task::AbortHandle,
    time::Instant,
};

use crate::{
    connect::Source,
    error::Result,
    id::{LoginId, Revision},
    snapshot::Snapshot,
};

/// How long [`Reader::start`] waits for the first snapshot before it lets the proxy start without.
const START_WAIT: Duration = Duration::from_secs(5);
/// The shortest time between two polls.
const POLL_MIN: Duration = Duration::from_millis(10);
/// How long [`Reader::stop`] waits for the last words.
const STOP_WAIT: Duration = Duration::from_secs(2);
/// Notes of uses that are kept while the catalog is away; more are dropped, since they only inform.
const LAST_USED_MAX: usize = 100_000;

/// How to follow a catalog.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    /// Where it is.
    pub source: Source,
    /// What operators call this proxy, e.g. its host and port; need not be unique.
    pub name: String,
    /// How often to ask for changes that no announcement told of.
    pub poll: Duration,
}

impl ReaderOptions {
    /// From the proxy's configuration.
    pub fn new(config: &ProxyCatalogConfig, name: impl Into<String>) -> Self {
        Self { source: config.into(), name: name.into(), poll: Duration::from_millis(config.poll_ms) }
    }
}

/// Sessions that this proxy ended because a login's epoch rose.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Termination {
    /// The login.
    pub login: LoginId,
    /// The epoch that ended them.
    pub epoch: i64,
    /// How many.
    pub sessions: u64,
}

/// What a look into the catalog came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refreshed {
    /// The snapshot is no older than the call.
    Fresh,
    /// The catalog is away or did not answer in time: the snapshot is what it was.
    Unavailable,
}

/// Follows the catalog. Clones share one follower, which ends with the last of them.
#[derive(Clone, Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    _follower: Arc<Follower>,
}

impl Reader {
    /// Starts to follow. Returns once a snapshot is loaded, or after five seconds without one: then [`Self::ready`] is
    /// false, and the follower keeps trying.
    ///
    /// # Errors
    /// Only for what trying again cannot mend: a malformed address, an unreadable CA file, no random numbers.
    pub async fn start(options: ReaderOptions) -> Result<Self> {
        let (config, tls) = options.source.prepare("portcullis-proxy")?;
        let mut id = [0u8; 16];
        crate::seal::random_bytes(&mut id)?;
        let id = format!("px_{:032x}", u128::from_be_bytes(id));
        let shared = Arc::new(Shared::new());
        let link = follow::Link { config, tls, id, name: options.name, poll: options.poll.max(POLL_MIN) };
        let task = tokio::spawn(follow::follow(Arc::clone(&shared), link));
        let reader = Self { shared, _follower: Arc::new(Follower(task.abort_handle())) };
        let mut state = reader.shared.state.subscribe();
        // Running out of time is an answer too: ready() tells.
        let _ = tokio::time::timeout(START_WAIT, state.wait_for(|state| state.loaded)).await;
        Ok(reader)
    }

    /// The newest snapshot that was loaded; empty, at revision 0, before there was one.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Tells of each new snapshot by its revision; intermediate ones may be skipped. The first call of `changed` returns
    /// at once: nothing falls between a look at the snapshot and the subscription.
    pub fn subscribe(&self) -> watch::Receiver<Revision> {
        let mut receiver = self.shared.revision.subscribe();
        receiver.mark_changed();
        receiver
    }

    /// Whether a snapshot was ever loaded.
    pub fn ready(&self) -> bool {
        self.shared.state.borrow().loaded
    }

    /// Whether the catalog answers at present.
    pub fn connected(&self) -> bool {
        self.shared.state.borrow().connected
    }

    /// How long ago the catalog last confirmed that the snapshot is its newest; without a snapshot, since the start.
    pub fn age(&self) -> Duration {
        self.shared.age()
    }

    /// Makes the snapshot no older than this call, e.g. because a login is not in it yet. Calls that come together share
    /// one look, and there are at most ten looks a second, so anybody may cause one.
    pub async fn refresh_now(&self, deadline: Instant) -> Refreshed {
        // The look that starts next carries the next number: any look with it started after this call.
        let ticket = self.shared.loads_started.load(Ordering::SeqCst) + 1;
        let mut state = self.shared.state.subscribe();
        self.shared.refresh_wanted.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
        let done = state.wait_for(|state| state.loads_done >= ticket || !state.connected);
        match tokio::time::timeout_at(deadline, done).await {
            Ok(Ok(state)) if state.loads_done >= ticket => Refreshed::Fresh,
            _ => Refreshed::Unavailable,
        }
    }

    /// Reports that this proxy has drawn all consequences of `revision`, ended sessions included. The provisioner waits
    /// for it, so call it for every revision that [`Self::subscribe`] brings, also when nothing had to be done. (The
    /// first one acknowledges itself: no session can have begun before it.)
    pub fn acknowledge(&self, revision: Revision, terminations: &[Termination]) {
        let mut outbox = self.shared.outbox();
        outbox.acknowledged = outbox.acknowledged.max(Some(revision));
        outbox.terminations.extend_from_slice(terminations);
        drop(outbox);
        self.shared.wake.notify_one();
    }

    /// Notes that a login was used; written with the next heartbeat.
    pub fn last_used(&self, login: &LoginId, version: i32, now: Timestamp) {
        let mut outbox = self.shared.outbox();
        if outbox.last_used.len() < LAST_USED_MAX {
            let noted = outbox.last_used.entry((login.clone(), version)).or_insert(now);
            *noted = now.max(*noted);
        }
    }

    /// Reports what is left to report and that this proxy is gone, so that nobody waits for it; gives up after two
    /// seconds.
    pub async fn stop(&self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
        let mut state = self.shared.state.subscribe();
        let _ = tokio::time::timeout(STOP_WAIT, state.wait_for(|state| state.stopped)).await;
    }
}

/// Ends the follower's task when the last reader is dropped.
#[derive(Debug)]
struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the follower has come to.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// A snapshot was loaded.
    loaded: bool,
    /// The catalog answers.
    connected: bool,
    /// The number of the newest look that succeeded.
    loads_done: u64,
    /// The follower has ended.
    stopped: bool,
}

/// What readers and the follower share.
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    revision: watch::Sender<Revision>,
    state: watch::Sender<State>,
    /// Looks that were begun.
    loads_started: AtomicU64,
    refresh_wanted: AtomicBool,
    stopping: AtomicBool,
    /// Wakes the follower for a note in the outbox, a wanted look or a stop.
    wake: Notify,
    outbox: Mutex<Outbox>,
    started: Instant,
    /// Milliseconds from `started` to when the catalog last confirmed the snapshot.
    heard_ms: AtomicU64,
}

/// What is to be written to `observed`.
#[derive(Default)]
struct Outbox {
    acknowledged: Option<Revision>,
    terminations: Vec<Termination>,
    last_used: HashMap<(LoginId, i32), Timestamp>,
}

impl Shared {
    fn new() -> Self {
        Self {
            snapshot: ArcSwap::default(),
            revision: watch::Sender::new(Revision::default()),
            state: watch::Sender::new(State::default()),
            loads_started: AtomicU64::new(0),
            refresh_wanted: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            wake: Notify::new(),
            outbox: Mutex::default(),
            started: Instant::now(),
            heard_ms: AtomicU64::new(0),
        }
    }

    /// Its holders only move values, so a panic cannot leave it half changed.
    fn outbox(&self) -> std::sync::MutexGuard<'_, Outbox> {
        self.outbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn since_start_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn age(&self) -> Duration {
        Duration::from_millis(self.since_start_ms().saturating_sub(self.heard_ms.load(Ordering::Relaxed)))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("snapshot", &self.snapshot).field("state", &*self.state.borrow()).finish()
    }
}
