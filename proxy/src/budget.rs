//! How much memory the proxy itself may hold, and what is told to new work once that is held.
//!
//! Every holder says what it has by a [`Permit`]; what exists already goes on and may grow ([`Budget::hold`],
//! [`Permit::resize`]), since taking memory from it would break a session, but new work asks first ([`Budget::take`],
//! [`Permit::grow`]) and is refused once the sum has reached the bound. So the bound is where the proxy stops to take more
//! upon itself, well before the kernel has to choose a victim; the sum is exact about what was declared, and the
//! allocator's own overhead is what the margin above the bound is for.
//!
//! Counting is one relaxed atomic per change of [`STEP_BYTES`], so that buffers may declare themselves as they grow and
//! shrink. It must not be asked per message.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Permits are counted in steps of this many bytes, rounded up: smaller changes cost nothing.
pub const STEP_BYTES: u64 = 4096;

/// What a connection takes by itself, bytes: its TLS state and task, rounded up. Buffers come on top.
pub const CONNECTION_BYTES: usize = 16 * 1024;

/// The least that a budget is, where it is derived from the machine: a proxy with less is of no use.
const MACHINE_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Who holds memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// Client connections: TLS state and task.
    Connections,
    /// What was received or waits to be sent, on both sides of every session.
    Buffers,
    /// Texts of prepared statements that sessions hold.
    Statements,
    /// Long texts that are being judged, and their trees.
    Judging,
    /// Verdicts that are remembered.
    Verdicts,
}

impl Held {
    /// All of them, in the order of the metrics.
    pub const ALL: [Self; 5] = [Self::Connections, Self::Buffers, Self::Statements, Self::Judging, Self::Verdicts];

    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Buffers => "buffers",
            Self::Statements => "statements",
            Self::Judging => "judging",
            Self::Verdicts => "verdicts",
        }
    }
}

/// There is no memory left for new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{wanted} bytes more would exceed the memory budget of {bytes_max} bytes")]
pub struct OverBudget {
    /// What was asked for, bytes.
    pub wanted: u64,
    /// The budget, bytes.
    pub bytes_max: u64,
}

/// The budget of one process.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    held: [Line; Held::ALL.len()],
}

/// A counter on a cache line of its own: every worker changes them.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Line(AtomicU64);

impl Budget {
    /// A budget of `bytes_max`; 0 stands for half of what the machine or the container has.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        let bytes_max = if bytes_max == 0 { half_of_the_machine() } else { bytes_max };
        Arc::new(Self { bytes_max, held: Default::default() })
    }

    /// The bound, bytes.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// What is held now, bytes.
    pub fn bytes(&self) -> u64 {
        Held::ALL.iter().map(|held| self.bytes_of(*held)).sum()
    }

    /// What one kind of holder has now, bytes.
    pub fn bytes_of(&self, held: Held) -> u64 {
        self.line(held).load(Relaxed)
    }

    /// Memory for new work.
    ///
    /// # Errors
    /// When it does not fit any more.
    pub fn take(self: &Arc<Self>, held: Held, bytes: usize) -> Result<Permit, OverBudget> {
        let mut permit = self.hold(held, 0);
        permit.grow(bytes)?;
        Ok(permit)
    }

    /// Whether new work may be begun at all.
    ///
    /// # Errors
    /// When what is held has reached the bound.
    pub fn has_room(&self) -> Result<(), OverBudget> {
        if self.bytes() < self.bytes_max { Ok(()) } else { Err(OverBudget { wanted: 0, bytes_max: self.bytes_max }) }
    }

    /// Memory that is held already, whether or not it fits.
    pub fn hold(self: &Arc<Self>, held: Held, bytes: usize) -> Permit {
        let mut permit = Permit { budget: self.clone(), held, counted: 0 };
        permit.resize(bytes);
        permit
    }

    /// Notes what a holder with a bound of its own has now. Not to be mixed with permits of the same kind.
    pub fn note(&self, held: Held, bytes: u64) {
        self.line(held).store(bytes, Relaxed);
    }

    fn line(&self, held: Held) -> &AtomicU64 {
        &self.held[held as usize].0
    }
}

/// Memory that somebody holds; given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    held: Held,
    counted: u64,
}

impl Permit {
    /// What it counts for, bytes.
    pub fn bytes(&self) -> u64 {
        self.counted
    }

    /// The holder has this much now; nobody is asked.
    pub fn resize(&mut self, bytes: usize) {
        let counted = steps(bytes);
        if counted > self.counted {
            self.budget.line(self.held).fetch_add(counted - self.counted, Relaxed);
        } else if counted < self.counted {
            self.budget.line(self.held).fetch_sub(self.counted - counted, Relaxed);
        }
        self.counted = counted;
    }

    /// The holder wants this much in all.
    ///
    /// # Errors
    /// When what is missing does not fit; the permit is then what it was. Shrinking always succeeds.
    pub fn grow(&mut self, bytes: usize) -> Result<(), OverBudget> {
        let before = self.counted;
        self.resize(bytes);
        // Counted first and asked afterwards: of two that come at once for the last bytes both may be refused, but they
        // never both get them.
        if self.counted > before && self.budget.bytes() > self.budget.bytes_max {
            let over = OverBudget { wanted: self.counted - before, bytes_max: self.budget.bytes_max };
            self.budget.line(self.held).fetch_sub(over.wanted, Relaxed);
            self.counted = before;
            return Err(over);
        }
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.resize(0);
    }
}

fn steps(bytes: usize) -> u64 {
    (bytes as u64).div_ceil(STEP_BYTES).saturating_mul(STEP_BYTES)
}

fn half_of_the_machine() -> u64 {
    let machine = fs::read_to_string("/proc/meminfo").ok().and_then(|text| total(&text));
    let container = fs::read_to_string("/sys/fs/cgroup/memory.max").ok().and_then(|text| text.trim().parse().ok());
    half_of_the_smaller(machine, container)
}

fn half_of_the_smaller(machine: Option<u64>, container: Option<u64>) -> u64 {
    // Where neither is told, what a small machine has.
    let has = machine.into_iter().chain(container).min().unwrap_or(2 << 30);
    (has / 2).max(MACHINE_BYTES_MIN)
}

/// `MemTotal` of /proc/meminfo, bytes (proc(5)).
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn new_work_is_refused_and_what_exists_goes_on() {
        let budget = Budget::new(4 * MIB as u64);
        let mut buffers = budget.hold(Held::Buffers, MIB);
        let session = budget.take(Held::Connections, 2 * MIB).unwrap();
        let over = budget.take(Held::Judging, MIB + 1).unwrap_err();
        assert_eq!((over.wanted, over.bytes_max), (MIB as u64 + STEP_BYTES, 4 * MIB as u64));
        assert_eq!(budget.bytes(), 3 * MIB as u64, "a refusal holds nothing");

        // What is there may grow beyond the bound; only what is new waits until it has shrunk.
        buffers.resize(8 * MIB);
        assert_eq!(budget.bytes(), 10 * MIB as u64);
        assert!(budget.take(Held::Connections, 1).is_err() && budget.has_room().is_err());
        assert!(buffers.grow(9 * MIB).is_err());
        assert_eq!(buffers.bytes(), 8 * MIB as u64, "as before");
        buffers.grow(MIB).unwrap();
        budget.take(Held::Judging, MIB).unwrap();
        budget.has_room().unwrap();
        drop((session, buffers));
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn small_changes_are_not_counted_and_rounding_never_loses() {
        let budget = Budget::new(MIB as u64);
        let mut permit = budget.hold(Held::Buffers, 1);
        for (bytes, counted) in [(0, 0), (1, 1), (4095, 1), (4096, 1), (4097, 2), (100, 1), (0, 0), (65_536, 16)] {
            permit.resize(bytes);
            assert_eq!((permit.bytes(), budget.bytes()), (counted * STEP_BYTES, counted * STEP_BYTES), "{bytes}");
        }
        permit.resize(usize::MAX / 2);
        drop(permit);
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn kinds_are_told_apart() {
        let budget = Budget::new(MIB as u64);
        let _permits: Vec<_> = Held::ALL.iter().take(4).map(|held| budget.hold(*held, *held as usize * 4096)).collect();
        budget.note(Held::Verdicts, 7);
        let read: Vec<_> = Held::ALL.iter().map(|held| (held.label(), budget.bytes_of(*held))).collect();
        let expect =
            [("connections", 0), ("buffers", 4096), ("statements", 8192), ("judging", 12_288), ("verdicts", 7)];
        assert_eq!(read, expect);
    }

    #[test]
    fn threads_that_take_at_once_never_get_more_than_there_is() {
        let budget = Budget::new(100 * STEP_BYTES);
        let got: usize = std::thread::scope(|scope| {
            let takers: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let taken: Vec<_> = (0..50).filter_map(|_| budget.take(Held::Connections, 4096).ok()).collect();
                        assert!(budget.bytes() >= taken.len() as u64 * STEP_BYTES);
                        // Kept until all have tried.
                        (taken.len(), taken)
                    })
                })
                .collect();
            let taken: Vec<_> = takers.into_iter().map(|taker| taker.join().unwrap()).collect();
            taken.iter().map(|(count, _)| count).sum()
        });
        assert!((93..=100).contains(&got), "{got} of 100");
        assert_eq!(budget.bytes(), 0);
    }

    #[test]
    fn half_of_the_machine_or_of_the_container() {
        assert_eq!(total("MemFree: 5 kB\nMemTotal:       24685312 kB\n"), Some(24_685_312 * 1024));
        assert_eq!(total("MemFree: 5 kB\n"), None);
        let gib = 1_u64 << 30;
        for (machine, container, half) in [
            (Some(8 * gib), None, 4 * gib),
            (Some(8 * gib), Some(2 * gib), gib),
            (Some(gib), Some(2 * gib), gib / 2),
            (None, None, gib),
            (Some(1 << 20), None, MACHINE_BYTES_MIN),
        ] {
            assert_eq!(half_of_the_smaller(machine, container), half, "{machine:?} {container:?}");
        }
        assert!(Budget::new(0).bytes_max() >= MACHINE_BYTES_MIN);
    }
}
