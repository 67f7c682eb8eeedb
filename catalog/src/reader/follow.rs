//! The follower: the one task that talks to the catalog for a proxy.
//!
//! It connects, registers, loads, and then waits for the first of: an announcement, a poll tick, a heartbeat, a wanted
//! look, a note to write, the end of the connection. Whatever fails, it drops the connection and comes back after a
//! pause that grows to two seconds; the snapshot stays what it is meanwhile.

use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::StreamExt as _;
use tokio::{
    sync::mpsc,
    task::AbortHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tokio_postgres::{AsyncMessage, Client, types::Type};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Outbox, Shared, Termination, load};
use crate::{
    acknowledge::LIVE_SECONDS,
    error::{CatalogError, Result},
    id::Revision,
    snapshot::Delta,
    store::CHANNEL,
};

/// A catalog that does not answer a small question in this time is taken for gone.
const ANSWER_WAIT: Duration = Duration::from_secs(5);
/// The same for a load, which may be everything there is.
const LOAD_WAIT: Duration = Duration::from_secs(60);
/// A fifth of the time after which a proxy no longer counts as live.
const HEARTBEAT: Duration = Duration::from_millis((LIVE_SECONDS * 200.0) as u64);
/// Between two looks that logins caused.
const REFRESH_GAP: Duration = Duration::from_millis(100);
/// Pauses between attempts to connect.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(2);

/// How to reach the catalog, and as whom.
pub(super) struct Link {
    pub config: tokio_postgres::Config,
    pub tls: MakeRustlsConnect,
    pub id: String,
    pub name: String,
    pub poll: Duration,
}

/// Follows until it is stopped or its task is aborted.
pub(super) async fn follow(shared: Arc<Shared>, link: Link) {
    let mut pause = PAUSE_FIRST;
    let mut told = false;
    while !shared.stopping.load(Ordering::SeqCst) {
        let ended = match Session::open(&shared, &link).await {
            Ok(session) => {
                if std::mem::take(&mut told) {
                    tracing::info!("the catalog is back");
                }
                pause = PAUSE_FIRST;
                session.run(&link).await
            }
            Err(error) => Err(error),
        };
        shared.state.send_modify(|state| state.connected = false);
        let Err(error) = ended else { break };
        // Told once per outage, not once per attempt.
        if !std::mem::replace(&mut told, true) {
            let source = std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
            let snapshot_age_ms = shared.age().as_millis();
            tracing::warn!(%error, source, snapshot_age_ms, "lost the catalog; serving from memory");
        }
        wait_or_stop(&shared, jittered(pause)).await;
        pause = (pause * 2).min(PAUSE_LAST);
    }
    shared.state.send_modify(|state| state.stopped = true);
}

/// Between a half and the whole of a pause, so that proxies do not come back in step.
fn jittered(pause: Duration) -> Duration {
    let mut byte = [0u8; 1];
    // Without random numbers the pause is merely not jittered.
    let _ = crate::seal::random_bytes(&mut byte);
    pause / 2 + pause / 2 * u32::from(byte[0]) / 255
}

async fn wait_or_stop(shared: &Shared, pause: Duration) {
    let end = Instant::now() + pause;
    while !shared.stopping.load(Ordering::SeqCst) {
        tokio::select! {
            () = sleep_until(end) => return,
            // Notes stay in the outbox until there is a connection again.
            () = shared.wake.notified() => {}
        }
    }
}

/// One connection, registered and listening.
struct Session<'a> {
    shared: &'a Shared,
    client: Client,
    /// One place: an announcement that finds it taken is covered by the load that is due anyway.
    announced: mpsc::Receiver<()>,
    connection: AbortHandle,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl<'a> Session<'a> {
    async fn open(shared: &'a Shared, link: &Link) -> Result<Self> {
        let connect = Box::pin(link.config.connect(link.tls.clone()));
        let (client, mut connection) = within(ANSWER_WAIT, async { Ok(connect.await?) }).await?;
        let (announce, announced) = mpsc::channel(1);
        let connection = tokio::spawn(async move {
            let mut messages = futures_util::stream::poll_fn(|cx| connection.poll_message(cx));
            while let Some(Ok(message)) = messages.next().await {
                if let AsyncMessage::Notification(_) = message {
                    // A full channel means that a load is due already.
                    let _ = announce.try_send(());
                }
            }
        })
        .abort_handle();
        let mut session = Self { shared, client, announced, connection };
        within(ANSWER_WAIT, session.register(link)).await?;
        session.load().await?;
        session.shared.state.send_modify(|state| {
            state.loaded = true;
            state.connected = true;
        });
        Ok(session)
    }

    /// Listens before it loads, so that no change falls between the two. Acknowledgements need not survive a crash of
    /// the catalog, so they do not wait for its disk.
    async fn register(&self, link: &Link) -> Result<()> {
        let setup = format!("SET synchronous_commit = off; SET statement_timeout = '30s'; LISTEN {CHANNEL}");
        self.client.batch_execute(&setup).await?;
        let acknowledged = self.shared.snapshot.load().revision();
        self.client
            .execute_typed(
                "INSERT INTO observed.proxy (id, name, version, revision) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (id) DO UPDATE SET heartbeat_at = now(), stopped_at = NULL",
                &[
                    (&link.id, Type::TEXT),
                    (&link.name.chars().take(100).collect::<String>(), Type::TEXT),
                    (&env!("CARGO_PKG_VERSION"), Type::TEXT),
                    (&acknowledged.0, Type::INT8),
                ],
            )
            .await?;
        Ok(())
    }

    /// `Ok` means stopped on request.
    async fn run(mut self, link: &Link) -> Result<()> {
        let mut poll = interval(link.poll);
        let mut heartbeat = interval(HEARTBEAT);
        poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut looked = Instant::now();
        let mut look_at = None;
        loop {
            self.write(&link.id, false).await?;
            if self.shared.stopping.load(Ordering::SeqCst) {
                return self.farewell(&link.id).await;
            }
            if self.shared.refresh_wanted.swap(false, Ordering::SeqCst) {
                look_at = Some(look_at.unwrap_or(looked + REFRESH_GAP));
            }
            tokio::select! {
                announced = self.announced.recv() => {
                    announced.ok_or(CatalogError::timeout("the connection ended"))?;
                    self.load().await?;
                }
                _ = poll.tick() => self.load().await?,
                () = at(look_at) => {
                    (looked, look_at) = (Instant::now(), None);
                    self.load().await?;
                }
                _ = heartbeat.tick() => {
                    self.write(&link.id, true).await?;
                    let sql = "UPDATE observed.proxy SET heartbeat_at = now() WHERE id = $1";
                    self.execute(sql, &[(&link.id, Type::TEXT)]).await?;
                }
                () = self.shared.wake.notified() => {}
            }
        }
    }

    /// One look: afterwards the snapshot is no older than its beginning.
    async fn load(&mut self) -> Result<()> {
        let number = self.shared.loads_started.fetch_add(1, Ordering::SeqCst) + 1;
        let heard_ms = self.shared.since_start_ms();
        let snapshot = self.shared.snapshot.load_full();
        if let Some(delta) = within(LOAD_WAIT, load::changes(&mut self.client, &snapshot)).await? {
            let next = match snapshot.apply(delta) {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(%error, "the changes do not fit the snapshot; loading everything");
                    let everything: Delta = within(LOAD_WAIT, load::everything(&mut self.client)).await?;
                    snapshot.apply(everything)?
                }
            };
            let revision = next.revision();
            tracing::debug!(%revision, "loaded a revision of the catalog");
            self.shared.snapshot.store(Arc::new(next));
            self.shared.revision.send_replace(revision);
            if snapshot.revision() == Revision(0) {
                self.shared.outbox().acknowledged = Some(revision);
            }
        }
        self.shared.heard_ms.store(heard_ms, Ordering::Relaxed);
        self.shared.state.send_modify(|state| state.loads_done = number);
        Ok(())
    }

    /// Writes acknowledgements, and with `all` the uses as well. What could not be written goes back.
    async fn write(&self, id: &str, all: bool) -> Result<()> {
        let mut notes = std::mem::take(&mut *self.shared.outbox());
        if !all {
            std::mem::swap(&mut notes.last_used, &mut self.shared.outbox().last_used);
        }
        let written = self.write_notes(id, &notes).await;
        if written.is_err() {
            put_back(&mut self.shared.outbox(), notes);
        }
        written
    }

    /// Terminations come first: who sees the acknowledgement sees them too.
    async fn write_notes(&self, id: &str, notes: &Outbox) -> Result<()> {
        for Termination { login, epoch, sessions } in &notes.terminations {
            let sql = "INSERT INTO observed.termination AS t (proxy_id, login_id, epoch, sessions) VALUES ($1, $2, $3, $4) \
                       ON CONFLICT (login_id, epoch, proxy_id) DO UPDATE SET sessions = t.sessions + excluded.sessions";
            let sessions = i64::try_from(*sessions).unwrap_or(i64::MAX);
            let values: [Value<'_>; 4] =
                [(&id, Type::TEXT), (&login.as_str(), Type::TEXT), (epoch, Type::INT8), (&sessions, Type::INT8)];
            self.execute(sql, &values).await?;
        }
        if let Some(revision) = notes.acknowledged {
            let sql = "UPDATE observed.proxy SET revision = greatest(revision, $2), heartbeat_at = now() WHERE id = $1";
            self.execute(sql, &[(&id, Type::TEXT), (&revision.0, Type::INT8)]).await?;
        }
        if notes.last_used.is_empty() {
            return Ok(());
        }
        let times: Vec<_> = notes.last_used.values().collect();
        let (logins, versions): (Vec<_>, Vec<_>) = notes.last_used.keys().map(|key| (key.0.as_str(), key.1)).unzip();
        let sql = "INSERT INTO observed.last_used AS u (login_id, version, at) \
                   SELECT * FROM unnest($1, $2, $3) ORDER BY 1, 2 \
                   ON CONFLICT (login_id, version) DO UPDATE SET at = greatest(u.at, excluded.at)";
        let values: [Value<'_>; 3] =
            [(&logins, Type::TEXT_ARRAY), (&versions, Type::INT4_ARRAY), (&times, Type::TIMESTAMPTZ_ARRAY)];
        self.execute(sql, &values).await
    }

    async fn farewell(&self, id: &str) -> Result<()> {
        self.write(id, true).await?;
        self.execute("UPDATE observed.proxy SET stopped_at = now() WHERE id = $1", &[(&id, Type::TEXT)]).await
    }

    async fn execute(&self, sql: &str, values: &[Value<'_>]) -> Result<()> {
        within(ANSWER_WAIT, async { Ok(self.client.execute_typed(sql, values).await?) }).await.map(|_| ())
    }
}

/// A parameter and its type, which spares asking the server for it.
type Value<'a> = (&'a (dyn tokio_postgres::types::ToSql + Sync), Type);

fn put_back(outbox: &mut Outbox, notes: Outbox) {
    outbox.acknowledged = outbox.acknowledged.max(notes.acknowledged);
    outbox.terminations.extend(notes.terminations);
    for (key, at) in notes.last_used {
        let noted = outbox.last_used.entry(key).or_insert(at);
        *noted = at.max(*noted);
    }
}

/// Until `moment`; for ever without one.
async fn at(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(limit, work).await.unwrap_or(Err(CatalogError::timeout("it did not answer in time")))
}
