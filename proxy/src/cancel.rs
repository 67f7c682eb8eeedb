//! Cancel requests: which upstream query a client's key may stop, and for how long.
//!
//! A client holds a key that the proxy made; the server's own key never leaves the proxy. The key reaches a query only
//! while its session holds the connection that runs it: a [`CancelSlot`] names that connection from lease to release,
//! and a connection is not handed on while a cancel for it is on its way, so a late cancel cannot hit the next
//! session's query. Nothing is ever answered to a CancelRequest
//! (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-CANCELING-REQUESTS>).
//!
//! A key names the process that made it, so that a request which arrives at another proxy can find its way: of the process
//! id, bit 31 is 0, bits 30 to 15 are the instance (16 bits, not 0, drawn when the process starts), bits 14 to 0 are random.
//! The secret is random, 4 bytes in protocol 3.0 (47 random bits in all) and 32 bytes from 3.2 on. A session is found by a
//! keyed hash over the whole key, and the key is then compared in constant time.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Context;
use std::time::Duration;

use aws_lc_rs::rand::SecureRandom;
use futures_util::task::AtomicWaker;
use portcullis_wire::CancelKey;
use tokio::sync::Notify;

use crate::upstream::CancelTarget;

/// How long delivering one cancel to a server may take.
const DELIVERY_MAX: Duration = Duration::from_secs(5);
/// Where in a process id the instance begins.
const INSTANCE_SHIFT: u32 = 15;

/// Cancels on their way for one session, at most: further requests are dropped, as those will do.
const IN_FLIGHT_MAX: usize = 4;

/// Every session's key, by its hash.
pub struct Cancels {
    instance: u16,
    hasher: RandomState,
    slots: Mutex<HashMap<u64, Arc<CancelSlot>>>,
}

impl Default for Cancels {
    /// For a new instance.
    fn default() -> Self {
        let hasher = RandomState::new();
        // Not 0, so that no process id is.
        let instance = (hasher.hash_one("instance") % u64::from(u16::MAX)) as u16 + 1;
        Self { instance, hasher, slots: Mutex::default() }
    }
}

/// One session's key and what it may stop at the moment.
pub struct CancelSlot {
    key: CancelKey,
    state: Mutex<State>,
    waker: AtomicWaker,
}

#[derive(Default)]
struct State {
    target: Option<Arc<CancelTarget>>,
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

    fn lock(&self) -> MutexGuard<'_, FlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a CancelRequest; for the metrics only, the client is told nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cancelled {
    /// No session has this key.
    UnknownKey,
    /// The key is of another proxy's session, or of one from before a restart.
    OtherInstance,
    /// Its network has sent too many with unknown keys.
    Throttled,
    /// There are as many on their way to the session's query as may be.
    Crowded,
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
            Self::OtherInstance => "other_instance",
            Self::Throttled => "throttled",
            Self::Crowded => "crowded",
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
            let mut low = [0_u8; 2];
            random.fill(&mut low).map_err(|_| NoRandom)?;
            let low = i32::from(u16::from_be_bytes(low)) & ((1 << INSTANCE_SHIFT) - 1);
            let key = CancelKey::new(i32::from(self.instance) << INSTANCE_SHIFT | low, secret).map_err(|_| NoRandom)?;
            let place = self.place(&key);
            let mut slots = self.lock();
            if slots.contains_key(&place) {
                continue; // ends: the sessions are bounded far below 2^64
            }
            let slot = Arc::new(CancelSlot { key, state: Mutex::default(), waker: AtomicWaker::new() });
            slots.insert(place, slot.clone());
            return Ok(Registered { cancels: self.clone(), slot, place });
        }
    }

    /// Delivers a client's request to the server whose query the key's session is running, if any.
    pub async fn cancel(&self, key: &CancelKey) -> Cancelled {
        if key.process_id >> INSTANCE_SHIFT != i32::from(self.instance) {
            return Cancelled::OtherInstance;
        }
        let slot = self.lock().get(&self.place(key)).cloned();
        let Some(slot) = slot.filter(|slot| slot.key == *key) else { return Cancelled::UnknownKey };
        if slot.in_flight() >= IN_FLIGHT_MAX {
            return Cancelled::Crowded;
        }
        match slot.aim() {
            Ok(aimed) => aimed.send().await,
            Err(outcome) => outcome,
        }
    }

    fn place(&self, key: &CancelKey) -> u64 {
        self.hasher.hash_one((key.process_id, key.secret()))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<CancelSlot>>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's registration; it ends with the session.
pub struct Registered {
    cancels: Arc<Cancels>,
    slot: Arc<CancelSlot>,
    place: u64,
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
        self.cancels.lock().remove(&self.place);
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
    pub fn attach(&self, target: Arc<CancelTarget>) -> bool {
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
                Ok(Aimed { target, flight, arrived: false })
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

    fn in_flight(&self) -> usize {
        self.lock().flight.as_ref().map_or(0, |flight| flight.lock().in_flight)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A cancel on its way to one connection; counted until it has arrived or is dropped.
pub struct Aimed {
    target: Arc<CancelTarget>,
    flight: Arc<Flight>,
    /// The server has closed, or has never heard of it.
    arrived: bool,
}

impl Aimed {
    /// Sends it.
    pub async fn send(mut self) -> Cancelled {
        let Ok(sent) = tokio::time::timeout(DELIVERY_MAX, self.target.send()).await else { return Cancelled::Failed };
        self.arrived = true;
        if sent.is_ok() { Cancelled::Delivered } else { Cancelled::Failed }
    }
}

impl Drop for Aimed {
    /// Given up on its way, by its own limit or because whoever sent it was stopped, it may still arrive.
    fn drop(&mut self) {
        let mut state = self.flight.lock();
        state.in_flight -= 1;
        state.lost |= !self.arrived;
        drop(state);
        self.flight.landed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_key_names_its_instance_and_opens_one_session() {
        let (here, there) = (Arc::new(Cancels::default()), Arc::new(Cancels::default()));
        let sessions: Vec<_> = (0..100).map(|n| here.register(n % 3).unwrap()).collect();
        for (at, session) in sessions.iter().enumerate() {
            let key = session.key();
            assert!(key.process_id > 0 && key.process_id >> 15 == i32::from(here.instance), "{key:?}");
            assert_eq!(key.secret().len(), if at % 3 == 2 { 32 } else { 4 });
            assert_eq!(here.cancel(key).await, Cancelled::Idle, "found");
            let mut forged = key.secret().to_vec();
            forged[0] ^= 1;
            let forged = CancelKey::new(key.process_id, &forged).unwrap();
            assert_eq!(here.cancel(&forged).await, Cancelled::UnknownKey);
            let longer = CancelKey::new(key.process_id, &[key.secret(), &[0]].concat()).unwrap();
            assert_eq!(here.cancel(&longer).await, Cancelled::UnknownKey);
            if here.instance != there.instance {
                assert_eq!(there.cancel(key).await, Cancelled::OtherInstance);
            }
        }
        let key = sessions[0].key().clone();
        drop(sessions);
        assert_eq!(here.cancel(&key).await, Cancelled::UnknownKey);
        assert!(here.lock().is_empty());
    }

    #[tokio::test]
    async fn a_session_that_prepares_is_told_once() {
        let cancels = Arc::new(Cancels::default());
        let session = cancels.register(0).unwrap();
        session.slot().prepare();
        assert_eq!(cancels.cancel(session.key()).await, Cancelled::Waiting);
        assert!(session.slot().was_cancelled() && !session.slot().was_cancelled());
    }
}
