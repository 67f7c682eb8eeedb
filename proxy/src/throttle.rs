//! Who has failed to log in too often, by network (/24, /64) and by user name, in memory that never grows.
//!
//! Failures are limited, not successes: a storm of reconnects with right passwords is never touched. A failure is charged
//! to its network and to the name that was tried, whether or not there is such a login. Where either account is used up,
//! attempts still go through the whole exchange and all end with the same answer, so that it tells nothing of who exists;
//! only a right password from a network that this login has come from before still opens (whoever guesses, or runs a pool
//! with an old password, must not lock the customer out of a network that is theirs).
//!
//! An account is a moment in time (the generic cell rate algorithm): each failure moves it on by `window / limit`, and it is
//! used up when it is a whole window ahead. Accounts live in a count-min sketch: a key has a cell in each of [`ROWS`] rows
//! and is used up when all of them are, so memory is fixed and a flood of other keys can evict nothing; it can only, beyond
//! some ten thousand failures a second, refuse strangers that share all their cells with it. The hashes are keyed anew in
//! every process. `now` is an argument.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::door::Peer;

/// Rows of a sketch.
const ROWS: usize = 4;
/// Cells of a row; a power of two. 512 kB for a sketch.
const CELLS: usize = 1 << 14;
/// Sets of [`Homes`]; a power of two.
const SETS: usize = 1 << 12;
/// Pairs in a set; the one that was used longest ago goes first. 256 kB in all.
const WAYS: usize = 4;
/// How long a network is known to be a login's own after its last success there.
const HOME_MS: u64 = 24 * 3600 * 1000;

/// Where a client comes from, as far as limits are concerned: what one customer can easily have many addresses of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Network {
    /// An IPv4 /24.
    V4([u8; 3]),
    /// An IPv6 /64.
    V6([u8; 8]),
    /// This machine, through the Unix socket.
    Local,
}

impl Network {
    /// The network of a client.
    pub fn of(peer: Peer) -> Self {
        let Peer::Tcp(address) = peer else { return Self::Local };
        match address.ip().to_canonical() {
            IpAddr::V4(address) => {
                let [a, b, c, _] = address.octets();
                Self::V4([a, b, c])
            }
            IpAddr::V6(address) => {
                let [a, b, c, d, e, f, g, h, ..] = address.octets();
                Self::V6([a, b, c, d, e, f, g, h])
            }
        }
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4([a, b, c]) => write!(f, "{a}.{b}.{c}.0/24"),
            Self::V6(octets) => {
                let mut whole = [0; 16];
                whole[..8].copy_from_slice(octets);
                write!(f, "{}/64", std::net::Ipv6Addr::from(whole))
            }
            Self::Local => f.write_str("unix"),
        }
    }
}

/// Whose account is used up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Throttled {
    /// The network's.
    Network,
    /// The user name's.
    Login,
}

impl Throttled {
    /// The metric label.
    pub fn label(self) -> &'static str {
        match self {
            Self::Network => "throttled_network",
            Self::Login => "throttled_login",
        }
    }
}

/// How many failures there may be; 0 is no limit.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Of one network within the window.
    pub network: u32,
    /// With one user name within the window.
    pub login: u32,
    /// The window.
    pub window: Duration,
}

/// The accounts of one process.
pub struct Throttle {
    networks: Sketch,
    logins: Sketch,
    cancels: Sketch,
    homes: Homes,
    hasher: RandomState,
}

/// Where an attempt stands before it has proved anything.
#[derive(Debug, Clone, Copy)]
pub struct Standing {
    throttled: Option<Throttled>,
    at_home: bool,
}

impl Standing {
    /// Whose account is used up. Such an attempt must cost no look into the catalog, and ends alike whatever was wrong.
    pub fn throttled(self) -> Option<Throttled> {
        self.throttled
    }

    /// Why not even a right password opens, if so.
    pub fn refuses_a_right_password(self) -> Option<Throttled> {
        self.throttled.filter(|_| !self.at_home)
    }
}

impl Throttle {
    /// Empty accounts.
    pub fn new(limits: Limits) -> Self {
        Self {
            networks: Sketch::new(limits.network, limits.window),
            logins: Sketch::new(limits.login, limits.window),
            cancels: Sketch::new(limits.network, limits.window),
            homes: Homes::new(),
            hasher: RandomState::new(),
        }
    }

    /// Where an attempt of `user` from `network` stands. `now` is the time since the process began.
    pub fn standing(&self, network: Network, user: &str, now: Duration) -> Standing {
        let throttled = if self.networks.is_used_up(self.hasher.hash_one(network), now) {
            Some(Throttled::Network)
        } else {
            self.logins.is_used_up(self.hasher.hash_one(user), now).then_some(Throttled::Login)
        };
        Standing { throttled, at_home: self.homes.knows(self.hasher.hash_one((network, user)), now) }
    }

    /// Charges a failure; says whose account it has used up just now, which is the moment to say so in the log.
    pub fn failed(&self, network: Network, user: &str, now: Duration) -> Option<Throttled> {
        let network = self.networks.charge(self.hasher.hash_one(network), now);
        let login = self.logins.charge(self.hasher.hash_one(user), now);
        if network { Some(Throttled::Network) } else { login.then_some(Throttled::Login) }
    }

    /// Notes where a login has come from. Accounts stay as they are: whoever has one password must not buy guesses at
    /// another with it.
    pub fn succeeded(&self, network: Network, user: &str, now: Duration) {
        self.homes.remember(self.hasher.hash_one((network, user)), now);
    }

    /// Whether `network` has sent too many cancel requests with keys that nobody has.
    pub fn cancels_are_used_up(&self, network: Network, now: Duration) -> bool {
        self.cancels.is_used_up(self.hasher.hash_one(network), now)
    }

    /// Charges a cancel request whose key nobody has; `true` when it has used up the account just now.
    pub fn cancel_failed(&self, network: Network, now: Duration) -> bool {
        self.cancels.charge(self.hasher.hash_one(network), now)
    }
}

/// Accounts by hash, in fixed memory.
struct Sketch {
    /// What a failure costs, milliseconds; 0 where there is no limit.
    cost_ms: u64,
    window_ms: u64,
    cells: Box<[AtomicU64]>,
}

impl Sketch {
    fn new(limit: u32, window: Duration) -> Self {
        let window_ms = millis(window);
        let cost_ms = if limit == 0 { 0 } else { (window_ms / u64::from(limit)).max(1) };
        let cells = if limit == 0 { 0 } else { ROWS * CELLS };
        Self { cost_ms, window_ms, cells: (0..cells).map(|_| AtomicU64::new(0)).collect() }
    }

    /// The cells of a key: 14 bits of its hash for each row.
    fn cells_of(&self, hash: u64) -> impl Iterator<Item = &AtomicU64> {
        (0..ROWS).filter_map(move |row| {
            let column = (hash >> (row * 14)) as usize & (CELLS - 1);
            self.cells.get(row * CELLS + column)
        })
    }

    /// Whether one more failure would not fit: true when it does not in the cell that is least used up.
    fn is_used_up(&self, hash: u64, now: Duration) -> bool {
        let horizon = millis(now) + self.window_ms;
        let least = self.cells_of(hash).map(|cell| cell.load(Relaxed)).min();
        least.is_some_and(|until| until + self.cost_ms > horizon)
    }

    fn charge(&self, hash: u64, now: Duration) -> bool {
        if self.is_used_up(hash, now) {
            // Nothing more to take: while everything is refused, the account recovers.
            return false;
        }
        let now_ms = millis(now);
        for cell in self.cells_of(hash) {
            // Two at once may both fit where one would have: a failure more, never a lost one.
            let _ = cell.fetch_update(Relaxed, Relaxed, |until| Some(until.max(now_ms) + self.cost_ms));
        }
        self.is_used_up(hash, now)
    }
}

/// Pairs of network and login that have succeeded lately: a set-associative table of hashes.
struct Homes {
    /// Hash and last success (milliseconds), pair after pair.
    slots: Box<[(AtomicU64, AtomicU64)]>,
}

impl Homes {
    fn new() -> Self {
        Self { slots: (0..SETS * WAYS).map(|_| (AtomicU64::new(0), AtomicU64::new(0))).collect() }
    }

    fn set(&self, hash: u64) -> &[(AtomicU64, AtomicU64)] {
        let first = (hash as usize & (SETS - 1)) * WAYS;
        &self.slots[first..first + WAYS]
    }

    fn knows(&self, hash: u64, now: Duration) -> bool {
        let hash = tagged(hash);
        self.set(hash).iter().any(|(of, at)| of.load(Relaxed) == hash && millis(now) <= at.load(Relaxed) + HOME_MS)
    }

    fn remember(&self, hash: u64, now: Duration) {
        let hash = tagged(hash);
        let set = self.set(hash);
        let mine = set.iter().find(|(of, _)| of.load(Relaxed) == hash);
        let Some((of, at)) = mine.or_else(|| set.iter().min_by_key(|(_, at)| at.load(Relaxed))) else { return };
        at.store(millis(now), Relaxed);
        of.store(hash, Relaxed);
    }
}

/// 0 stands for an empty slot.
fn tagged(hash: u64) -> u64 {
    hash | 1 << 63
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX / 4)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn throttle(network: u32, login: u32) -> Throttle {
        Throttle::new(Limits { network, login, window: MINUTE })
    }

    fn network(text: &str) -> Network {
        Network::of(Peer::Tcp(format!("{text}:1").parse().unwrap()))
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000_000 + seconds)
    }

    fn fail(throttle: &Throttle, times: usize, network: Network, user: &str, now: Duration) {
        for _ in 0..times {
            throttle.failed(network, user, now);
        }
    }

    #[test]
    fn networks_are_24_and_64_bits_long() {
        for (one, other, same) in [
            ("192.0.2.1", "192.0.2.255", true),
            ("192.0.2.1", "192.0.3.1", false),
            ("[2001:db8:1:2::1]", "[2001:db8:1:2:ffff::]", true),
            ("[2001:db8:1:2::1]", "[2001:db8:1:3::1]", false),
            ("[::ffff:192.0.2.7]", "192.0.2.1", true),
        ] {
            assert_eq!(network(one) == network(other), same, "{one} {other}");
        }
        assert_eq!(network("[::ffff:192.0.2.7]").to_string(), "192.0.2.0/24");
        assert_eq!(network("[2001:db8:1:2::7]").to_string(), "2001:db8:1:2::/64");
        assert_eq!(Network::of(Peer::Unix).to_string(), "unix");
    }

    #[test]
    fn a_network_that_failed_too_often_waits_and_recovers() {
        let (throttle, here) = (throttle(3, 100), network("192.0.2.1"));
        let failures: Vec<_> = (0..5).map(|n| throttle.failed(here, &format!("user{n}"), at(0))).collect();
        assert_eq!(failures, [None, None, Some(Throttled::Network), None, None], "told once");
        assert_eq!(throttle.standing(here, "anyone", at(0)).throttled(), Some(Throttled::Network));
        assert_eq!(throttle.standing(network("198.51.100.1"), "anyone", at(0)).throttled(), None);
        // Three in a minute are one in twenty seconds.
        assert!(throttle.standing(here, "anyone", at(19)).throttled().is_some());
        assert!(throttle.standing(here, "anyone", at(20)).throttled().is_none());
        assert_eq!(throttle.failed(here, "user", at(20)), Some(Throttled::Network));
        assert!(throttle.standing(here, "anyone", at(500)).throttled().is_none());
    }

    #[test]
    fn a_login_that_was_tried_from_everywhere_waits() {
        let throttle = throttle(100, 10);
        let told: Vec<_> =
            (0..20).map(|n| throttle.failed(network(&format!("192.0.{n}.1")), "victim", at(0))).collect();
        assert_eq!(told.iter().flatten().collect::<Vec<_>>(), [&Throttled::Login]);
        let stranger = throttle.standing(network("203.0.113.1"), "victim", at(0));
        assert_eq!(stranger.refuses_a_right_password(), Some(Throttled::Login));
        assert_eq!(throttle.standing(network("203.0.113.1"), "another", at(0)).throttled(), None);
    }

    #[test]
    fn a_login_is_not_locked_out_of_its_own_network() {
        let (throttle, home) = (throttle(3, 3), network("192.0.2.1"));
        throttle.succeeded(home, "owner", at(0));
        fail(&throttle, 100, home, "owner", at(1));
        let owner = throttle.standing(home, "owner", at(1));
        assert_eq!((owner.throttled(), owner.refuses_a_right_password()), (Some(Throttled::Network), None));
        let other = throttle.standing(home, "other", at(1));
        assert_eq!(other.refuses_a_right_password(), Some(Throttled::Network));
        let elsewhere = throttle.standing(network("198.51.100.1"), "owner", at(1));
        assert_eq!(elsewhere.refuses_a_right_password(), Some(Throttled::Login));
        // A day later nobody knows any more.
        fail(&throttle, 100, home, "owner", at(90_000));
        assert!(throttle.standing(home, "owner", at(90_000)).refuses_a_right_password().is_some());
    }

    #[test]
    fn successes_cost_nothing_and_buy_nothing() {
        let (throttle, here) = (throttle(3, 3), network("192.0.2.1"));
        (0..10_000).for_each(|_| throttle.succeeded(here, "owner", at(0)));
        assert!(throttle.standing(here, "owner", at(0)).throttled().is_none());
        fail(&throttle, 3, here, "victim", at(0));
        throttle.succeeded(here, "owner", at(0));
        assert!(throttle.standing(here, "victim", at(0)).refuses_a_right_password().is_some());
    }

    #[test]
    fn no_limit_is_no_limit() {
        let (throttle, here) = (throttle(0, 0), network("192.0.2.1"));
        (0..10_000).for_each(|_| assert_eq!(throttle.failed(here, "user", at(0)), None));
        assert!(throttle.standing(here, "user", at(0)).throttled().is_none());
    }

    /// Memory is fixed, so what a flood can do is what has to be known: it evicts nobody, and its strangers' failures
    /// hardly ever meet an innocent one.
    #[test]
    fn a_flood_of_networks_frees_nobody_and_refuses_hardly_anybody() {
        let (throttle, guesser) = (throttle(10, 10), network("192.0.2.1"));
        throttle.succeeded(network("198.18.0.1"), "owner", at(0));
        fail(&throttle, 10, guesser, "victim", at(0));
        for n in 0..10_000_u32 {
            let [_, b, c, d] = n.to_be_bytes();
            throttle.failed(Network::V4([b, c, d]), &format!("u{n}"), at(0));
        }
        assert!(throttle.standing(guesser, "victim", at(0)).throttled().is_some());
        let refused = (0..1_000_u32).filter(|n| {
            throttle.standing(Network::V4([250, (n >> 8) as u8, *n as u8]), "new", at(0)).throttled().is_some()
        });
        assert_eq!(refused.count(), 0);
        assert!(throttle.homes.knows(throttle.hasher.hash_one((network("198.18.0.1"), "owner")), at(0)));
    }

    #[test]
    fn cancels_have_an_account_of_their_own() {
        let (throttle, here) = (throttle(2, 2), network("192.0.2.1"));
        assert_eq!([(); 3].map(|()| throttle.cancel_failed(here, at(0))), [false, true, false]);
        assert!(throttle.cancels_are_used_up(here, at(0)) && !throttle.cancels_are_used_up(here, at(30)));
        assert!(throttle.standing(here, "user", at(0)).throttled().is_none());
    }
}
