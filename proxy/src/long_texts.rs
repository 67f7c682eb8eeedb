//! Who may have a long text judged, and when.
//!
//! The longest text that the judge's bounds let through costs seconds and some hundred megabytes, so long texts are judged
//! apart from the workers, a few at a time, and no workspace has more than one of them under way: a tenant that sends
//! many waits for itself. Large ones have places of their own, so that whoever sends a medium one does not wait for them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use portcullis_catalog::WorkspaceId;
use portcullis_policy::Effort;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Large texts at once, at most: each may take half a gigabyte.
const LARGE_MAX: usize = 4;

/// The most that a byte of text costs in the judge, bytes: 690 kB of VALUES take 510 MB.
const BYTES_PER_BYTE: usize = 768;

/// What judging a text of this length may take in memory, bytes.
pub fn judging_bytes(text_len: usize, effort: Effort) -> usize {
    let most = match effort {
        Effort::Small => 4 << 20,
        Effort::Medium => 64 << 20,
        Effort::Large => 550 << 20,
    };
    text_len.saturating_mul(BYTES_PER_BYTE).min(most)
}

/// Places for judging long texts.
pub struct LongTexts {
    medium: Places,
    large: Places,
}

struct Places {
    all: Arc<Semaphore>,
    of_workspace: Mutex<HashMap<WorkspaceId, Arc<Semaphore>>>,
}

/// The right to have one judged; it ends with the value.
pub struct Turn {
    _of_workspace: OwnedSemaphorePermit,
    _of_all: OwnedSemaphorePermit,
}

impl LongTexts {
    /// As many medium ones at once as there are processors, and half as many large ones.
    pub fn new(processors: usize) -> Self {
        let large = (processors / 2).clamp(1, LARGE_MAX);
        Self { medium: Places::new(processors.max(1)), large: Places::new(large) }
    }

    /// Waits for this workspace's turn, first come first served; `None` when the process ends.
    pub async fn turn(&self, workspace: &WorkspaceId, effort: Effort) -> Option<Turn> {
        match effort {
            Effort::Large => self.large.turn(workspace).await,
            Effort::Small | Effort::Medium => self.medium.turn(workspace).await,
        }
    }
}

impl Places {
    fn new(most: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(most)), of_workspace: Mutex::default() }
    }

    async fn turn(&self, workspace: &WorkspaceId) -> Option<Turn> {
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

    fn has_turn(texts: &LongTexts, workspace: &WorkspaceId, effort: Effort) -> Option<Turn> {
        let waiting = std::pin::pin!(texts.turn(workspace, effort));
        match waiting.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => turn,
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_workspace_waits_for_itself_and_all_for_the_bound() {
        let texts = LongTexts::new(4);
        for (effort, places) in [(Effort::Medium, 4), (Effort::Large, 2)] {
            let first = has_turn(&texts, &workspace('a'), effort);
            assert!(first.is_some());
            assert!(has_turn(&texts, &workspace('a'), effort).is_none(), "one at a time");
            let others: Vec<_> = "bcdef".chars().filter_map(|c| has_turn(&texts, &workspace(c), effort)).collect();
            assert_eq!(others.len() + 1, places);
            drop(first);
            let last = has_turn(&texts, &workspace('f'), effort);
            assert!(last.is_some());
        }
        assert!(texts.medium.of_workspace.lock().unwrap().len() <= 6, "names are forgotten");
    }

    #[test]
    fn nobody_waits_for_large_texts_with_a_medium_one() {
        let texts = LongTexts::new(1);
        let large = has_turn(&texts, &workspace('a'), Effort::Large);
        assert!(large.is_some() && has_turn(&texts, &workspace('b'), Effort::Large).is_none());
        assert!(has_turn(&texts, &workspace('a'), Effort::Medium).is_some());
        assert!(has_turn(&texts, &workspace('b'), Effort::Medium).is_some());
    }
}
