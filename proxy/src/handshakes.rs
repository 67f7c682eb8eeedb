//! Places for connections that have said something and have not logged in yet.
//!
//! Handshakes cost most of what a connection costs, so their number is bounded; and the number from one network is bounded
//! below that, so that whoever opens many of them, or lets them hang, leaves room for everybody else. One that finds no place
//! waits, first come first served; its deadline is the caller's.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::throttle::Network;

/// The places of one process.
pub struct Handshakes {
    all: Arc<Semaphore>,
    of_network_max: usize,
    of_network: Mutex<HashMap<Network, Arc<Semaphore>>>,
}

/// A place; given back when it is dropped.
pub struct Place {
    handshakes: Arc<Handshakes>,
    network: Network,
    permits: Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)>,
}

impl Handshakes {
    /// `all_max` places, at most `of_network_max` of them for one network.
    pub fn new(all_max: usize, of_network_max: usize) -> Arc<Self> {
        Arc::new(Self { all: Arc::new(Semaphore::new(all_max)), of_network_max, of_network: Mutex::default() })
    }

    /// Waits for a place.
    pub async fn place(self: &Arc<Self>, network: Network) -> Place {
        let own = self.lock().entry(network).or_insert_with(|| Arc::new(Semaphore::new(self.of_network_max))).clone();
        // Names the network from here on, so that it is forgotten even when the wait is given up.
        let mut place = Place { handshakes: self.clone(), network, permits: None };
        // The network's own first: who waits for that holds no place of anybody else's. Neither is ever closed.
        if let Ok(own) = own.acquire_owned().await
            && let Ok(all) = self.all.clone().acquire_owned().await
        {
            place.permits = Some((own, all));
        }
        place
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Network, Arc<Semaphore>>> {
        self.of_network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.permits = None;
        let mut networks = self.handshakes.lock();
        // Whoever waits or holds a place has a share in it, beside the map's.
        if networks.get(&self.network).is_some_and(|own| Arc::strong_count(own) == 1) {
            networks.remove(&self.network);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::task::{Context, Poll, Waker};

    fn now(waiting: impl Future<Output = Place>) -> Option<Place> {
        match std::pin::pin!(waiting).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(place) => Some(place),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_network_waits_for_itself_and_all_for_the_bound() {
        let handshakes = Handshakes::new(3, 2);
        let (here, there) = (Network::V4([192, 0, 2]), Network::V4([198, 51, 100]));
        let first = now(handshakes.place(here)).unwrap();
        let _second = now(handshakes.place(here)).unwrap();
        assert!(now(handshakes.place(here)).is_none(), "its share is taken");
        let third = now(handshakes.place(there)).unwrap();
        assert!(now(handshakes.place(there)).is_none() && now(handshakes.place(Network::Local)).is_none(), "all are");
        drop(first);
        let fourth = now(handshakes.place(there)).unwrap();
        assert_eq!(handshakes.lock().len(), 2, "those who gave up are forgotten");
        drop((third, fourth));
        assert_eq!(handshakes.lock().keys().collect::<Vec<_>>(), [&here]);
    }

    #[tokio::test]
    async fn whoever_waits_is_served_in_turn() {
        let handshakes = Handshakes::new(1, 1);
        let here = Network::Local;
        let first = handshakes.place(here).await;
        let mut second = Box::pin(handshakes.place(here));
        assert!(std::future::poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending())).await);
        drop(first);
        let second = second.await;
        assert!(second.permits.is_some() && handshakes.lock().len() == 1);
        drop(second);
        assert!(handshakes.lock().is_empty());
    }
}
