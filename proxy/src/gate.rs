//! What every session and the admin port share, and the tasks that keep it current.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aws_lc_rs::hmac;
use futures_util::future::BoxFuture;
use portcullis_catalog::seal::ProxyKey;
use portcullis_catalog::{CatalogError, LoginId, Reader, Termination, WorkspaceId};
use portcullis_config::ProxyConfig;
use portcullis_policy::{CacheSize, VerdictCache};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::admin::{DataPlane, PoolRow, PoolTotals, SessionRow};
use crate::budget::{Budget, Held};
use crate::cancel::Cancels;
use crate::handshakes::Handshakes;
use crate::long_texts::LongTexts;
use crate::metrics::{Memory, Metrics};
use crate::pool::{Order, Pools, Standing};
use crate::session::route::{Policies, destinations};
use crate::sessions::{Sessions, Signal};
use crate::throttle::{Limits, Throttle};
use crate::tls::Tls;

/// How often idle connections are looked at.
const TIDY_EVERY: Duration = Duration::from_secs(5);
/// How long a look into the catalog may hold up a login.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// The shared state of one proxy process.
pub struct Gate {
    /// What needs a restart to change.
    pub config: ProxyConfig,
    /// The certificate that is shown.
    pub tls: Arc<Tls>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Client permits: `clients_max` of them.
    pub clients: Arc<Semaphore>,
    /// Places for connections that have not logged in yet.
    pub handshakes: Arc<Handshakes>,
    /// Failed logins.
    pub throttle: Throttle,
    /// Memory that the process may hold.
    pub budget: Arc<Budget>,
    /// Long texts being judged.
    pub long_texts: LongTexts,
    /// Cancelled when the process begins to drain; sessions end at their next idle point.
    pub draining: CancellationToken,
    /// The catalog.
    pub reader: Reader,
    /// Upstream connections.
    pub pools: Arc<Pools>,
    /// Cancel keys.
    pub cancels: Arc<Cancels>,
    /// Open sessions.
    pub sessions: Arc<Sessions>,
    /// Compiled policies.
    pub policies: Policies,
    /// Verdicts over texts that come again.
    pub verdicts: VerdictCache,
    mock_key: hmac::Key,
    began: Instant,
}

impl Gate {
    /// The state of a process that has not accepted anything yet.
    ///
    /// # Errors
    /// When the proxy key cannot be used.
    pub fn new(
        config: ProxyConfig,
        tls: Arc<Tls>,
        metrics: Arc<Metrics>,
        reader: Reader,
    ) -> Result<Arc<Self>, CatalogError> {
        let key = Arc::new(ProxyKey::new(&config.keys.proxy_key)?);
        let secret = config.keys.proxy_key.expose();
        // A key of its own for mock salts, so that they say nothing about the proxy key.
        let derived = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), b"portcullis mock salt");
        Ok(Arc::new(Self {
            clients: Arc::new(Semaphore::new(config.listen.clients_max)),
            handshakes: Handshakes::new(config.listen.handshakes_max, config.listen.handshakes_per_network_max),
            throttle: Throttle::new(Limits {
                network: config.throttle.failures_per_network_max,
                login: config.throttle.failures_per_login_max,
                window: Duration::from_millis(config.throttle.failures_window_ms),
            }),
            began: Instant::now(),
            budget: Budget::new(config.limits.memory_bytes_max),
            long_texts: LongTexts::new(std::thread::available_parallelism().map_or(1, usize::from)),
            draining: CancellationToken::new(),
            pools: Arc::new(Pools::new(config.pool.clone(), key, metrics.clone())),
            cancels: Arc::default(),
            sessions: Arc::default(),
            policies: Policies::default(),
            verdicts: VerdictCache::new(config.limits.verdict_cache_bytes),
            mock_key: hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()),
            config,
            tls,
            metrics,
            reader,
        }))
    }

    /// How long this has existed.
    pub fn uptime(&self) -> Duration {
        self.began.elapsed()
    }

    /// The salt that a user who does not exist seems to have: always the same, like anyone's.
    pub fn mock_salt(&self, user: &str) -> Vec<u8> {
        hmac::sign(&self.mock_key, user.as_bytes()).as_ref()[..16].to_vec()
    }

    /// Ends every session at once: the drain has taken too long.
    pub fn end_all(&self) {
        for session in self.sessions.all() {
            session.signal(Signal::Hurry);
        }
    }

    /// Has the catalog looked at now, because something may be newer than the snapshot; at most two seconds.
    pub async fn look_again(&self) {
        let _ = self.reader.refresh_now(tokio::time::Instant::now() + LOOK_MAX).await;
    }

    /// Keeps sessions and pools current until the process ends: newer snapshots, draining, idle connections.
    pub async fn keep_current(self: Arc<Self>) {
        let mut revisions = self.reader.subscribe();
        let mut tidy = tokio::time::interval(TIDY_EVERY);
        let mut draining = false;
        loop {
            tokio::select! {
                changed = revisions.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    self.snapshot_changed();
                }
                () = self.draining.cancelled(), if !draining => {
                    draining = true;
                    for session in self.sessions.all() {
                        session.signal(Signal::Drain);
                    }
                }
                _ = tidy.tick() => {
                    self.pools.tidy(Instant::now());
                    self.warm();
                    self.budget.note(Held::Verdicts, self.verdicts.size().bytes);
                }
            }
        }
    }

    /// Opens connections that pools should have before they are asked for.
    fn warm(&self) {
        if self.pools.warms() && !self.draining.is_cancelled() {
            let snapshot = self.reader.snapshot();
            self.pools.warm(destinations(&snapshot, &self.policies));
        }
    }

    /// Ends the sessions of logins that were ended, tells the others to look again, and acknowledges the revision.
    fn snapshot_changed(&self) {
        let snapshot = self.reader.snapshot();
        let mut ended: HashMap<(LoginId, i64), u64> = HashMap::new();
        for session in self.sessions.all() {
            let login = snapshot.login(&session.username).filter(|login| login.id == session.login);
            match login {
                Some(login) if login.session_epoch <= session.epoch => session.signal(Signal::Refresh),
                Some(login) => {
                    if !session.has(Signal::End) {
                        *ended.entry((login.id.clone(), login.session_epoch)).or_default() += 1;
                    }
                    session.signal(Signal::End);
                }
                None => session.signal(Signal::End),
            }
        }
        let ended: Vec<Termination> =
            ended.into_iter().map(|((login, epoch), sessions)| Termination { login, epoch, sessions }).collect();
        self.reader.acknowledge(snapshot.revision(), &ended);
    }
}

impl DataPlane for Gate {
    fn catalog_age(&self) -> Option<Duration> {
        self.reader.ready().then(|| self.reader.age())
    }

    fn catalog_revision(&self) -> i64 {
        self.reader.snapshot().revision().0
    }

    fn pool_totals(&self) -> PoolTotals {
        self.pools.totals()
    }

    fn verdicts(&self) -> CacheSize {
        self.verdicts.size()
    }

    fn memory(&self) -> Memory {
        Memory {
            bytes_max: self.budget.bytes_max(),
            held: Held::ALL.map(|held| (held.label(), self.budget.bytes_of(held))),
        }
    }

    fn pools(&self) -> Vec<PoolRow> {
        self.pools.rows()
    }

    fn sessions(&self) -> Vec<SessionRow> {
        self.sessions.rows()
    }

    fn operate<'a>(&'a self, workspace: &'a str, order: Order, patience: Duration) -> BoxFuture<'a, Option<Standing>> {
        Box::pin(async move {
            let snapshot = self.reader.snapshot();
            let by_id = WorkspaceId::parse(workspace).filter(|id| snapshot.workspace(id).is_some());
            let by_name = || snapshot.workspaces().find(|entry| entry.workspace.name == workspace);
            let id = by_id.or_else(|| by_name().map(|entry| entry.workspace.id.clone()))?;
            let exists = |id: &WorkspaceId| snapshot.workspace(id).is_some();
            Some(self.pools.operate(order, &id, &self.sessions, exists, patience).await)
        })
    }
}
