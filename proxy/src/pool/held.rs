//! The workspaces that are paused: their sessions wait, and their connections are closed when they are released.
//!
//! Kept by this process alone and in memory: a restart lifts every pause, and each proxy is paused by itself.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use portcullis_catalog::WorkspaceId;
use tokio::sync::Notify;

/// The paused workspaces, and a word to those who wait for connections to close.
#[derive(Default)]
pub struct Held {
    paused: Mutex<HashMap<WorkspaceId, Instant>>,
    /// How many there are, so that nobody takes the lock while there is none.
    count: AtomicUsize,
    closed: Notify,
}

impl Held {
    /// Whether the workspace is paused.
    pub fn has(&self, workspace: &WorkspaceId) -> bool {
        self.count.load(Ordering::Acquire) > 0 && self.lock().contains_key(workspace)
    }

    /// How many workspaces are paused.
    pub fn len(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Pauses it; a second time changes nothing.
    pub fn pause(&self, workspace: &WorkspaceId) {
        let mut paused = self.lock();
        paused.entry(workspace.clone()).or_insert_with(Instant::now);
        self.count.store(paused.len(), Ordering::Release);
    }

    /// Resumes it, and those of which `exists` knows nothing any more.
    pub fn resume(&self, workspace: &WorkspaceId, exists: impl Fn(&WorkspaceId) -> bool) {
        let mut paused = self.lock();
        paused.retain(|paused, _| paused != workspace && exists(paused));
        self.count.store(paused.len(), Ordering::Release);
    }

    /// A connection was closed.
    pub fn changed(&self) {
        self.closed.notify_waiters();
    }

    /// Waits until `done`, which is asked again after every connection that was closed; `false` at the deadline.
    pub async fn wait_until(&self, done: impl Fn() -> bool, deadline: Instant) -> bool {
        let wait = async {
            loop {
                let closed = self.closed.notified();
                tokio::pin!(closed);
                closed.as_mut().enable(); // before the question, so that no word is missed
                if done() {
                    return;
                }
                closed.await;
            }
        };
        tokio::time::timeout_at(deadline.into(), wait).await.is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<WorkspaceId, Instant>> {
        self.paused.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
