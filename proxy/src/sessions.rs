//! The sessions that are open: how many a workspace has, and how to tell one that something has changed.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Instant;

use futures_util::task::AtomicWaker;
use jiff::Timestamp;
use portcullis_catalog::{LoginId, WorkspaceId};
use tokio::sync::Notify;

use crate::admin::SessionRow;
use crate::door::Peer;

/// What a session may be told; it looks when it is woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// A newer snapshot: look up the route again at the next idle point.
    Refresh = 1,
    /// The process stops: end at the next idle point.
    Drain = 2,
    /// The login's sessions are ended: end now.
    End = 4,
    /// The process will not wait any longer: end now.
    Hurry = 8,
    /// An operator ends the sessions of the workspace: end now.
    Kill = 16,
}

/// One open session, as others see it.
pub struct SessionHandle {
    /// Its number in this process.
    pub id: u64,
    /// The login that it began with.
    pub login: LoginId,
    /// The login's epoch then.
    pub epoch: i64,
    /// The login's user name.
    pub username: String,
    /// The workspace.
    pub workspace: WorkspaceId,
    /// The login's kind.
    pub kind: String,
    /// The client's address.
    pub client: Peer,
    /// When it began.
    pub since: Timestamp,
    signals: AtomicU8,
    waker: AtomicWaker,
    began: Instant,
    /// What it does, and since when: milliseconds from its beginning, times four, and a [`Doing`].
    state: AtomicU64,
    statements: AtomicU64,
    pin: Mutex<Option<&'static str>>,
}

/// What a session is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doing {
    /// Between transactions.
    Idle,
    /// Waiting for a connection.
    Waiting,
    /// A statement runs.
    Active,
    /// In a transaction, between statements.
    IdleInTransaction,
}

impl Doing {
    const ALL: [Self; 4] = [Self::Idle, Self::Waiting, Self::Active, Self::IdleInTransaction];

    /// The word for `/sessions`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Active => "active",
            Self::IdleInTransaction => "idle_in_transaction",
        }
    }
}

impl SessionHandle {
    /// Tells the session.
    pub fn signal(&self, signal: Signal) {
        self.signals.fetch_or(signal as u8, Ordering::AcqRel);
        self.waker.wake();
    }

    /// Whether it was told anything at all.
    pub fn has_any(&self) -> bool {
        self.signals.load(Ordering::Acquire) != 0
    }

    /// Whether it was told so; `Refresh` is forgotten by asking, the others stay.
    pub fn has(&self, signal: Signal) -> bool {
        let bit = signal as u8;
        if signal == Signal::Refresh {
            return self.signals.fetch_and(!bit, Ordering::AcqRel) & bit != 0;
        }
        self.signals.load(Ordering::Acquire) & bit != 0
    }

    /// Has the session's task woken by the next signal.
    pub fn listen(&self, cx: &mut Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Notes what the session does from `now` on.
    pub fn set_doing(&self, doing: Doing, now: Instant) {
        let since = self.milliseconds(now);
        self.state.store(since << 2 | doing as u64, Ordering::Relaxed);
    }

    fn milliseconds(&self, now: Instant) -> u64 {
        let since = now.saturating_duration_since(self.began).as_millis();
        u64::try_from(since).unwrap_or(u64::MAX) & (u64::MAX >> 2)
    }

    /// Counts a statement.
    pub fn count_statement(&self) {
        self.statements.fetch_add(1, Ordering::Relaxed);
    }

    fn row(&self) -> SessionRow {
        let state = self.state.load(Ordering::Relaxed);
        let doing = Doing::ALL[(state & 3) as usize];
        SessionRow {
            id: self.id,
            workspace: self.workspace.to_string(),
            username: self.username.clone(),
            kind: self.kind.clone(),
            client: self.client.to_string(),
            state: doing.as_str(),
            state_ms: self.milliseconds(Instant::now()).saturating_sub(state >> 2),
            pinned: self.pin(),
            opened_at: self.since.to_string(),
            statements: self.statements.load(Ordering::Relaxed),
        }
    }

    /// Notes why the session stays on its connection, or that it does not.
    pub fn set_pin(&self, pin: Option<&'static str>) {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = pin;
    }

    /// Why the session stays on its connection.
    pub fn pin(&self) -> Option<&'static str> {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All open sessions of the process.
#[derive(Default)]
pub struct Sessions {
    inner: Mutex<Inner>,
    ended: Notify,
}

#[derive(Default)]
struct Inner {
    next: u64,
    open: HashMap<u64, Arc<SessionHandle>>,
    of_workspace: HashMap<WorkspaceId, u32>,
}

/// A session's place; dropping it gives the place up.
pub struct Registration {
    sessions: Arc<Sessions>,
    handle: Arc<SessionHandle>,
}

impl Registration {
    /// The session as others see it.
    pub fn handle(&self) -> &Arc<SessionHandle> {
        &self.handle
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut inner = self.sessions.lock();
        inner.open.remove(&self.handle.id);
        if let Some(count) = inner.of_workspace.get_mut(&self.handle.workspace) {
            *count -= 1;
            if *count == 0 {
                inner.of_workspace.remove(&self.handle.workspace);
            }
        }
        drop(inner);
        self.sessions.ended.notify_waiters();
    }
}

impl Sessions {
    /// Opens a session unless its workspace has `most` already.
    pub fn register(
        self: &Arc<Self>,
        login: &portcullis_catalog::Login,
        workspace: &WorkspaceId,
        client: Peer,
        most: u32,
    ) -> Option<Registration> {
        let mut inner = self.lock();
        let count = inner.of_workspace.entry(workspace.clone()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        inner.next += 1;
        let handle = Arc::new(SessionHandle {
            id: inner.next,
            login: login.id.clone(),
            epoch: login.session_epoch,
            username: login.username.clone(),
            workspace: workspace.clone(),
            kind: login.kind.clone(),
            client,
            since: Timestamp::now(),
            signals: AtomicU8::new(0),
            waker: AtomicWaker::new(),
            began: Instant::now(),
            state: AtomicU64::new(Doing::Idle as u64),
            statements: AtomicU64::new(0),
            pin: Mutex::new(None),
        });
        inner.open.insert(handle.id, handle.clone());
        drop(inner);
        Some(Registration { sessions: self.clone(), handle })
    }

    /// Ends all sessions of a workspace; gives those that are told so.
    pub fn end_those_of(&self, workspace: &WorkspaceId) -> Vec<u64> {
        let of_workspace = self.all().into_iter().filter(|session| session.workspace == *workspace);
        of_workspace
            .map(|session| {
                session.signal(Signal::Kill);
                session.id
            })
            .collect()
    }

    /// Waits until none of these sessions is open any more; `false` at the deadline.
    pub async fn wait_for_the_end_of(&self, sessions: &[u64], deadline: Instant) -> bool {
        let wait = async {
            loop {
                let ended = self.ended.notified();
                tokio::pin!(ended);
                ended.as_mut().enable(); // before the question, so that no word is missed
                let any_open = {
                    let inner = self.lock();
                    sessions.iter().any(|id| inner.open.contains_key(id))
                };
                if !any_open {
                    return;
                }
                ended.await;
            }
        };
        tokio::time::timeout_at(deadline.into(), wait).await.is_ok()
    }

    /// How many sessions a workspace has.
    pub fn count_of(&self, workspace: &WorkspaceId) -> usize {
        self.lock().of_workspace.get(workspace).map_or(0, |count| *count as usize)
    }

    /// Every open session.
    pub fn all(&self) -> Vec<Arc<SessionHandle>> {
        self.lock().open.values().cloned().collect()
    }

    /// One row per session.
    pub fn rows(&self) -> Vec<SessionRow> {
        self.all().iter().map(|session| session.row()).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
