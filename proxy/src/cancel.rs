//! Cancel requests: which upstream query a client's key may stop, and for how long.
//!
//! A client holds a key that the proxy made; the server's own key never leaves the proxy. The key reaches a query only
//! while its session holds the connection that runs it: a [`CancelSlot`] names that connection from lease to release,
//! and a connection is not handed on while a cancel for it is on its way, so a late cancel cannot hit the next
//! session's query. Nothing is ever answered to a CancelRequest
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS>).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use aws_lc_rs::rand::SecureRandom;
use futures_util::task::AtomicWaker;
use portcullis_wire::CancelKey;
use tokio::sync::Notify;

use crate::upstream::CancelTarget;

/// How long delivering one cancel to a server may take.
const DELIVERY_MAX: Duration = Duration::from_secs(5);

/// Every session's key, by the process id that it was told.
#[derive(Default)]
pub struct Cancels {
    slots: Mutex<HashMap<i32, Arc<CancelSlot>>>,
}

/// One session's key and what it may stop at the moment.
pub struct CancelSlot {
    key: CancelKey,
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    target: Option<CancelTarget>,
    /// The session waits for a connection, or for one to have its settings.
    preparing: bool,
    /// A cancel came while it did.
    wanted: bool,
    /// The cancels that were aimed at the connection that is held.
    flight: Option<Arc<Flight>>,
}

/// The cancels that were sent to one connection while one session held it.
#[derive(Default)]
pub struct Flight {
    state: Mutex<FlightState>,
    landed: Notify,
}

#[derive(Default)]
struct FlightState {
    in_flight: usize,
    /// One was given up on its way, and may still arrive.
    lost: bool,
}

impl Flight {
    /// Waits until no cancel is on its way any more; `false` when one did not arrive in time, or may still arrive.
    pub async fn settled(&self) -> bool {
        let wait = async {
            loop {
                let landed = self.landed.notified();
                {
                    let state = self.lock();
                    if state.in_flight == 0 {
                        return !state.lost;
                    }
                }
                landed.await;
            }
        };
        // Each has a bound of its own, so this one is for a bug alone.
        tokio::time::timeout(2 * DELIVERY_MAX, wait).await.unwrap_or(false)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, FlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a CancelRequest; for the metrics only, the client is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// No session has this key.
    UnknownKey,
    /// The session runs nothing at the moment.
    Idle,
    /// The session waits for a connection, and was told.
    Waiting,
    /// The server has taken the request.
    Delivered,
    /// The server could not be reached in time.
    Failed,
}

impl Cancelled {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::UnknownKey => "unknown_key",
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
        }
    }
}

/// The operating system gave no random bytes.
#[derive(Debug, thiserror::Error)]
#[error("no random bytes for a cancel key")]
pub struct NoRandom;

impl Cancels {
    /// Makes a key for a session that speaks protocol 3.`minor`: 4 secret bytes before 3.2, 32 from then on.
    ///
    /// # Errors
    /// When no random bytes are to be had.
    pub fn register(self: &Arc<Self>, minor: u16) -> Result<Registered, NoRandom> {
        let random = aws_lc_rs::rand::SystemRandom::new();
        let mut secret = [0_u8; 32];
        random.fill(&mut secret).map_err(|_| NoRandom)?;
        let secret = if minor >= 2 { &secret[..] } else { &secret[..4] };
        loop {
            let mut id = [0_u8; 4];
            random.fill(&mut id).map_err(|_| NoRandom)?;
            let process_id = i32::from_be_bytes(id) & i32::MAX;
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            if process_id == 0 || slots.contains_key(&process_id) {
                continue; // ends: the sessions are bounded far below 2^31
            }
            let key = CancelKey::new(process_id, secret).map_err(|_| NoRandom)?;
            let slot = Arc::new(CancelSlot { key, state: Mutex::default(), waker: AtomicWaker::new() });
            slots.insert(process_id, slot.clone());
            return Ok(Registered { cancels: self.clone(), slot });
        }
    }

    /// Delivers a client's request to the server whose query the key's session is running, if any.
    pub async fn cancel(&self, key: &CancelKey) -> Cancelled {
        let slot = {
            let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.get(&key.process_id).cloned()
        };
        match slot {
            Some(slot) if slot.key == *key => match slot.aim() {
                Ok(aimed) => aimed.send().await,
                Err(outcome) => outcome,
            },
            _ => Cancelled::UnknownKey,
        }
    }
}

/// A session's registration; it ends with the session.
pub struct Registered {
    cancels: Arc<Cancels>,
    slot: Arc<CancelSlot>,
}

impl Registered {
    /// The key to tell the client in BackendKeyData.
    pub fn key(&self) -> &CancelKey {
        &self.slot.key
    }

    /// The slot to name the leased connection in.
    pub fn slot(&self) -> &Arc<CancelSlot> {
        &self.slot
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        let mut slots = self.cancels.slots.lock().unwrap_or_else(PoisonError::into_inner);
        slots.remove(&self.slot.key.process_id);
    }
}

impl CancelSlot {
    /// The session waits for a connection: a cancel is for what it waits with.
    pub fn prepare(&self) {
        let mut state = self.lock();
        state.preparing = true;
        state.wanted = false;
    }

    /// Has the session's task woken by a cancel that comes while it waits.
    pub fn listen(&self, cx: &mut Context<'_>) {
        self.waker.register(cx.waker());
    }

    /// Whether a cancel came while the session waited; forgotten by asking.
    pub fn was_cancelled(&self) -> bool {
        std::mem::take(&mut self.lock().wanted)
    }

    /// The session now runs its statements on this connection. `true`: a cancel came while it waited for that.
    #[must_use]
    pub fn attach(&self, target: CancelTarget) -> bool {
        let mut state = self.lock();
        state.target = Some(target);
        state.preparing = false;
        state.flight = None;
        std::mem::take(&mut state.wanted)
    }

    /// The session lets go of its connection. If cancels were sent there, [`Flight::settled`] must be awaited before anyone
    /// else may use it.
    pub fn detach(&self) -> Option<Arc<Flight>> {
        let mut state = self.lock();
        state.target = None;
        state.preparing = false;
        state.wanted = false;
        state.flight.take()
    }

    /// Waits until no cancel is on its way to the connection that is held; see [`Flight::settled`].
    pub async fn settled(&self) -> bool {
        let flight = self.lock().flight.clone();
        match flight {
            Some(flight) => flight.settled().await,
            None => true,
        }
    }

    /// Takes aim at what the session runs now: from here on its connection is not handed on until the cancel has arrived.
    ///
    /// # Errors
    /// When there is nothing to aim at.
    pub fn aim(&self) -> Result<Aimed, Cancelled> {
        let mut state = self.lock();
        match state.target.clone() {
            Some(target) => {
                let flight = state.flight.get_or_insert_default().clone();
                flight.lock().in_flight += 1;
                Ok(Aimed { target, flight })
            }
            None if state.preparing => {
                state.wanted = true;
                drop(state);
                self.waker.wake();
                Err(Cancelled::Waiting)
            }
            None => Err(Cancelled::Idle),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cancel on its way to one connection; counted until it has arrived or is dropped.
pub struct Aimed {
    target: CancelTarget,
    flight: Arc<Flight>,
}

impl Aimed {
    /// Sends it.
    pub async fn send(self) -> Cancelled {
        match tokio::time::timeout(DELIVERY_MAX, self.target.send()).await {
            Ok(Ok(())) => Cancelled::Delivered,
            Ok(Err(_)) => Cancelled::Failed,
            Err(_) => {
                self.flight.lock().lost = true;
                Cancelled::Failed
            }
        }
    }
}

impl Drop for Aimed {
    fn drop(&mut self) {
        self.flight.lock().in_flight -= 1;
        self.flight.landed.notify_waiters();
    }
}
