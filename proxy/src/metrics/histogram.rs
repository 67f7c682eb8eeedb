//! A histogram of durations with fixed bounds: two relaxed adds per observation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds, in microseconds, for what clients wait for: a quarter of a millisecond to five minutes.
pub const SECONDS: &[u64] = &[
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Upper bounds, in microseconds, for what the proxy itself computes: two microseconds to a quarter of a second.
pub const MICROS: &[u64] = &[2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 25_000, 250_000];

/// Durations by bucket. Buckets are kept apart here and summed up (`le`) when rendered.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    buckets: Box<[AtomicU64]>,
    sum_nanos: AtomicU64,
}

/// A reading of one or several histograms with the same bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Upper bounds in microseconds; the last bucket has none.
    pub bounds: &'static [u64],
    /// One more than there are bounds.
    pub buckets: Vec<u64>,
    /// Nanoseconds.
    pub sum_nanos: u64,
}

impl Histogram {
    /// An empty histogram with ascending upper bounds in microseconds.
    pub fn new(bounds: &'static [u64]) -> Self {
        Self { bounds, buckets: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(), sum_nanos: AtomicU64::new(0) }
    }

    /// Counts one duration. A duration equal to a bound belongs to that bound's bucket.
    pub fn observe(&self, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let bucket = self.bounds.iter().position(|bound| nanos <= bound * 1_000).unwrap_or(self.bounds.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.sum_nanos.fetch_add(nanos, Relaxed);
    }

    /// What was counted so far.
    pub fn read(&self) -> Reading {
        Reading {
            bounds: self.bounds,
            buckets: self.buckets.iter().map(|bucket| bucket.load(Relaxed)).collect(),
            sum_nanos: self.sum_nanos.load(Relaxed),
        }
    }
}

impl Reading {
    /// Adds another reading of the same bounds.
    pub fn add(&mut self, other: &Reading) {
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
        self.sum_nanos = self.sum_nanos.wrapping_add(other.sum_nanos);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_holds_it() {
        for (nanos, bucket) in
            [(0, 0), (250_000, 0), (250_001, 1), (1_000_000, 2), (300_000_000_000, 17), (300_000_000_001, 18)]
        {
            let histogram = Histogram::new(SECONDS);
            histogram.observe(Duration::from_nanos(nanos));
            let reading = histogram.read();
            assert_eq!(reading.buckets.iter().position(|count| *count == 1), Some(bucket), "{nanos} ns");
            assert_eq!(reading.sum_nanos, nanos);
        }
    }

    #[test]
    fn bounds_ascend() {
        for bounds in [SECONDS, MICROS] {
            assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
