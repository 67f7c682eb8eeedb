//! A counter with one label, whose values are constants of the source text.
//!
//! Slots are claimed on first use and never freed; past the last slot everything counts as `other`, so a family cannot
//! grow whatever callers pass.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Labels that one family can hold beside `other`.
pub const SLOTS: usize = 64;

/// A counter family. Adding looks through the claimed slots: meant for what happens per session or per refusal, not
/// for what happens per query.
#[derive(Debug)]
pub struct Family {
    slots: Box<[Slot]>,
    other: AtomicU64,
}

#[derive(Debug, Default)]
struct Slot {
    label: OnceLock<&'static str>,
    count: AtomicU64,
}

impl Family {
    /// A family without labels yet.
    pub fn new() -> Self {
        Self { slots: (0..SLOTS).map(|_| Slot::default()).collect(), other: AtomicU64::new(0) }
    }

    /// Counts one under `label`.
    pub fn add(&self, label: &'static str) {
        for slot in &self.slots {
            if *slot.label.get_or_init(|| label) == label {
                slot.count.fetch_add(1, Relaxed);
                return;
            }
        }
        self.other.fetch_add(1, Relaxed);
    }

    /// The labels that were used, with their counts, in the order of first use.
    pub fn counts(&self) -> Vec<(&'static str, u64)> {
        let mut counts: Vec<_> = self
            .slots
            .iter()
            .map_while(|slot| slot.label.get().map(|label| (*label, slot.count.load(Relaxed))))
            .collect();
        let other = self.other.load(Relaxed);
        if other > 0 {
            counts.push(("other", other));
        }
        counts
    }

    /// The sum over all labels.
    pub fn total(&self) -> u64 {
        self.counts().iter().map(|(_, count)| count).sum()
    }
}

impl Default for Family {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_label_and_never_grows() {
        let family = Family::new();
        family.add("b");
        family.add("a");
        family.add("b");
        assert_eq!(family.counts(), [("b", 2), ("a", 1)]);

        let labels: Vec<&'static str> = (0..200).map(|n| &*Box::leak(format!("label_{n}").into_boxed_str())).collect();
        labels.iter().for_each(|label| family.add(label));
        assert_eq!(family.counts().len(), SLOTS + 1);
        assert_eq!(family.counts().last(), Some(&("other", 200 + 2 - SLOTS as u64)));
        assert_eq!(family.total(), 203);
    }

    #[test]
    fn loses_nothing_when_threads_claim_the_same_label() {
        let family = Family::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..1000 {
                        family.add("x");
                        family.add("y");
                    }
                });
            }
        });
        let mut counts = family.counts();
        counts.sort_unstable();
        assert_eq!(counts, [("x", 4000), ("y", 4000)]);
    }
}
