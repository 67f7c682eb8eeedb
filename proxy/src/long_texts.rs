//! Who may have a long text judged, and when.
//!
//! The longest text that the judge's bounds let through costs seconds and some hundred megabytes, so such texts are
//! judged apart from the workers, a few at a time, and no workspace has more than one of them under way: a tenant that
//! sends many waits for itself.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_catalog::WorkspaceId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for judging long texts.
pub struct LongTexts {
    all: Arc<Semaphore>,
    of_workspace: Mutex<HashMap<WorkspaceId, Arc<Semaphore>>>,
}

/// The right to have one judged; it ends with the value.
pub struct Turn {
    _of_workspace: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl LongTexts {
    /// At most `most` at once.
    pub fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), of_workspace: Mutex::default() }
    }

    /// Waits for this workspace's turn, first come first served; `None` when the process ends.
    pub async fn turn(&self, workspace: &WorkspaceId) -> Option<Turn> {
        let own = {
            let mut map = self.of_workspace.lock().unwrap_or_else(PoisonError::into_inner);
            // Nobody waits for or holds what only the map knows.
            map.retain(|_, own| Arc::strong_count(own) > 1);
            map.entry(workspace.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
        };
        let of_workspace = own.acquire_owned().await.ok()?;
        let of_all = self.all.clone().acquire_owned().await.ok()?;
        Some(Turn { _of_workspace: of_workspace, _of_all: of_all })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn workspace(digit: char) -> WorkspaceId {
        WorkspaceId::parse(&format!("ws_{}", digit.to_string().repeat(16))).unwrap()
    }

    fn has_turn(texts: &LongTexts, workspace: &WorkspaceId) -> Option<Turn> {
        let waiting = std::pin::pin!(texts.turn(workspace));
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_workspace_waits_for_itself_and_all_for_the_bound() {
        let texts = LongTexts::new(2);
        let first = has_turn(&texts, &workspace('a'));
        assert!(first.is_some());
        assert!(has_turn(&texts, &workspace('a')).is_none(), "one at a time");
        let second = has_turn(&texts, &workspace('b'));
        assert!(second.is_some());
        assert!(has_turn(&texts, &workspace('c')).is_none(), "two in all");
        drop(first);
        assert!(has_turn(&texts, &workspace('c')).is_some());
        drop(second);
        assert!(has_turn(&texts, &workspace('a')).is_some());
        assert!(texts.of_workspace.lock().unwrap().len() <= 3, "names are forgotten");
    }
}
