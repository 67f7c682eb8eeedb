//! What is counted for every query: a block per thread slot, each on cache lines of its own.

use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::sync::atomic::AtomicU64;

use super::histogram::{Histogram, MICROS, Reading, SECONDS};

/// Slots; a power of two. Threads that share one still count correctly, only slower.
const SLOTS: usize = 16;

thread_local! {
    /// Which slot this thread counts in: derived from its id, so there is nothing to hand out or give back.
    static SLOT: usize = {
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(std::thread::current().id());
        (hash % SLOTS as u64) as usize
    };
}

/// The blocks of all slots.
#[derive(Debug)]
pub struct Slots(Box<[Slot]>);

/// One thread's counters. 128: adjacent lines are fetched in pairs.
#[derive(Debug)]
#[repr(align(128))]
pub struct Slot {
    /// Texts that passed.
    pub allowed: AtomicU64,
    /// Verdicts found by the exact text.
    pub verdicts_by_text: AtomicU64,
    /// Verdicts found by the text's shape.
    pub verdicts_by_shape: AtomicU64,
    /// Verdicts that took the judge.
    pub verdicts_judged: AtomicU64,
    /// Bytes read from clients.
    pub bytes_from_clients: AtomicU64,
    /// Bytes written to clients.
    pub bytes_to_clients: AtomicU64,
    /// Forwarded to `ReadyForQuery`.
    pub query_seconds: Histogram,
    /// Time in the judge.
    pub verdict_seconds: Histogram,
}

impl Slots {
    /// All at zero.
    pub fn new() -> Self {
        Self((0..SLOTS).map(|_| Slot::new()).collect())
    }

    /// The block of the calling thread.
    pub fn mine(&self) -> &Slot {
        &self.0[SLOT.with(|slot| *slot)]
    }

    /// The sum of a counter over all slots.
    pub fn sum(&self, counter: impl Fn(&Slot) -> &AtomicU64) -> u64 {
        self.0.iter().map(|slot| counter(slot).load(std::sync::atomic::Ordering::Relaxed)).sum()
    }

    /// The sum of a histogram over all slots.
    pub fn read(&self, histogram: impl Fn(&Slot) -> &Histogram) -> Reading {
        let mut sum = histogram(&self.0[0]).read();
        self.0[1..].iter().for_each(|slot| sum.add(&histogram(slot).read()));
        sum
    }
}

impl Slot {
    fn new() -> Self {
        Self {
            allowed: AtomicU64::new(0),
            verdicts_by_text: AtomicU64::new(0),
            verdicts_by_shape: AtomicU64::new(0),
            verdicts_judged: AtomicU64::new(0),
            bytes_from_clients: AtomicU64::new(0),
            bytes_to_clients: AtomicU64::new(0),
            query_seconds: Histogram::new(SECONDS),
            verdict_seconds: Histogram::new(MICROS),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::Relaxed;

    #[test]
    fn threads_count_apart_and_sum_up() {
        let slots = Slots::new();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        slots.mine().allowed.fetch_add(1, Relaxed);
                        slots.mine().verdict_seconds.observe(std::time::Duration::from_micros(3));
                    }
                });
            }
        });
        assert_eq!(slots.sum(|slot| &slot.allowed), 8000);
        let verdicts = slots.read(|slot| &slot.verdict_seconds);
        assert_eq!((verdicts.buckets[1], verdicts.sum_nanos), (8000, 24_000_000));
    }
}
