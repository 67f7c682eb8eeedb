//! The threads that sessions run on: one event loop each, and a session stays where it began.
//!
//! Two threads that take turns at one session pay for it with wake-ups and cold caches, which is most of what a proxy
//! costs beyond its system calls. A new connection goes to the thread with the fewest. What is not a session (the
//! catalog, the admin port, timers of the process) runs elsewhere.

use std::cell::Cell;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

thread_local! {
    static HERE: Cell<Option<u16>> = const { Cell::new(None) };
}

/// Which thread of [`Workers`] this is, if it is one.
pub fn here() -> Option<u16> {
    HERE.with(Cell::get)
}

/// The threads; dropping them ends them with whatever runs there.
pub struct Workers {
    workers: Vec<Worker>,
    stop: CancellationToken,
}

struct Worker {
    handle: Handle,
    load: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

/// A session's place on a thread; dropping it gives the place up.
pub struct Assigned {
    handle: Handle,
    load: Arc<AtomicUsize>,
}

impl Assigned {
    /// Where to spawn.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts `count` threads (at least one) with stacks of `stack_bytes`, which is also what their blocking tasks get.
    ///
    /// # Errors
    /// When the system gives no thread or event queue.
    pub fn start(count: u16, stack_bytes: usize) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let start = |at| Worker::start(at, stack_bytes, stop.clone());
        let workers = (0..count.max(1)).map(start).collect::<io::Result<_>>()?;
        Ok(Self { workers, stop })
    }

    /// The thread that has the fewest sessions.
    pub fn assign(&self) -> Option<Assigned> {
        let worker = self.workers.iter().min_by_key(|worker| worker.load.load(Ordering::Relaxed))?;
        worker.load.fetch_add(1, Ordering::Relaxed);
        Some(Assigned { handle: worker.handle.clone(), load: worker.load.clone() })
    }
}

impl Worker {
    fn start(at: u16, stack_bytes: usize, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().thread_stack_size(stack_bytes).enable_all().build()?;
        let handle = runtime.handle().clone();
        let thread =
            std::thread::Builder::new().name(format!("sessions-{at}")).stack_size(stack_bytes).spawn(move || {
                HERE.with(|here| here.set(Some(at)));
                runtime.block_on(stop.cancelled());
                runtime.shutdown_background();
            })?;
        Ok(Self { handle, load: Arc::default(), thread: Some(thread) })
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.stop.cancel();
        for worker in &mut self.workers {
            if let Some(thread) = worker.thread.take() {
                let _ = thread.join(); // a panic there has been reported there
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sessions_are_spread_and_stay() {
        let workers = Workers::start(3, 1 << 20).unwrap();
        let assigned: Vec<_> = (0..6).map(|_| workers.assign().unwrap()).collect();
        let mut seen: Vec<u16> = assigned
            .iter()
            .map(|assigned| {
                let (tell, told) = std::sync::mpsc::channel();
                assigned.handle().spawn(async move {
                    let before = here();
                    tokio::task::yield_now().await;
                    assert_eq!(before, here());
                    tell.send(here()).unwrap();
                });
                told.recv().unwrap().unwrap()
            })
            .collect();
        seen.sort_unstable();
        assert_eq!(seen, [0, 0, 1, 1, 2, 2]);
        assert_eq!(here(), None);

        drop(assigned);
        assert!(workers.workers.iter().all(|worker| worker.load.load(Ordering::Relaxed) == 0));
    }
}
