//! What the proxy counts, and how a scrape reads it.
//!
//! One function per fact; the name of the function is the name of the fact. Every number is an atomic that is added to
//! with relaxed ordering, so that counting never waits; what is counted once per query or per read lives in a block
//! per thread slot ([`hot`]), so that workers do not share cache lines.
//!
//! Names follow the Prometheus conventions (<https://prometheus.io/docs/practices/naming/>): prefix `portcullis_`, base
//! units, `_total` for counters. Labels are `&'static str`, at most [`family::SLOTS`] per family: nothing here
//! may ever carry a user name, a workspace, an address or SQL.

mod family;
mod histogram;
mod hot;
mod render;

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

pub use family::Family;
pub use histogram::Histogram;
pub use render::{Memory, Observed};

/// Which way bytes went, seen from the socket that they crossed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Read from clients.
    FromClient,
    /// Written to clients.
    ToClient,
}

/// Where the verdict over a text came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VerdictFrom {
    /// Remembered for exactly this text.
    Text,
    /// Remembered for texts that differ in literals alone.
    Shape,
    /// The judge.
    Judge,
}

/// All counters of one proxy process. Shared by reference; no method blocks or allocates after the first use of a label.
#[derive(Debug)]
pub struct Metrics {
    hot: hot::Slots,
    connections: AtomicI64,
    connections_accepted: AtomicU64,
    connections_refused: Family,
    accept_errors: AtomicU64,
    handshake_failures: Family,
    handshake_seconds: Histogram,
    logins: AtomicU64,
    login_failures: Family,
    sessions: AtomicI64,
    sessions_opened: AtomicU64,
    sessions_ended: Family,
    statements_refused: Family,
    limits_hit: Family,
    cancels: Family,
    pinned: AtomicI64,
    pins: Family,
    resets: Family,
    wait_seconds: Histogram,
    wait_notices: AtomicU64,
    upstream_connects: AtomicU64,
    upstream_connect_seconds: Histogram,
    upstream_failures: Family,
    upstream_closed: Family,
    tls_reloads: Family,
    admin_requests: Family,
    sidecar_failures: Family,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All counters at zero.
    pub fn new() -> Self {
        Self {
            hot: hot::Slots::new(),
            connections: AtomicI64::new(0),
            connections_accepted: AtomicU64::new(0),
            connections_refused: Family::new(),
            accept_errors: AtomicU64::new(0),
            handshake_failures: Family::new(),
            handshake_seconds: Histogram::new(histogram::SECONDS),
            logins: AtomicU64::new(0),
            login_failures: Family::new(),
            sessions: AtomicI64::new(0),
            sessions_opened: AtomicU64::new(0),
            sessions_ended: Family::new(),
            statements_refused: Family::new(),
            limits_hit: Family::new(),
            cancels: Family::new(),
            pinned: AtomicI64::new(0),
            pins: Family::new(),
            resets: Family::new(),
            wait_seconds: Histogram::new(histogram::SECONDS),
            wait_notices: AtomicU64::new(0),
            upstream_connects: AtomicU64::new(0),
            upstream_connect_seconds: Histogram::new(histogram::SECONDS),
            upstream_failures: Family::new(),
            upstream_closed: Family::new(),
            tls_reloads: Family::new(),
            admin_requests: Family::new(),
            sidecar_failures: Family::new(),
        }
    }

    // ---- the listener

    /// A client's socket was accepted and has a permit. Pair it with [`Metrics::connection_closed`].
    pub fn connection_accepted(&self) {
        self.connections_accepted.fetch_add(1, Relaxed);
        self.connections.fetch_add(1, Relaxed);
    }

    /// The task of an accepted socket ended, for whatever reason.
    pub fn connection_closed(&self) {
        self.connections.fetch_sub(1, Relaxed);
    }

    /// A socket was turned away before anything was read from it, e.g. `clients_max`.
    pub fn connection_refused(&self, reason: &'static str) {
        self.connections_refused.add(reason);
    }

    /// `accept(2)` itself failed, e.g. for want of file descriptors.
    pub fn accept_failed(&self) {
        self.accept_errors.fetch_add(1, Relaxed);
    }

    /// Client connections that are open now, those in their handshake included.
    pub fn connections_open(&self) -> i64 {
        self.connections.load(Relaxed)
    }

    // ---- handshake and login

    /// A connection ended before it could authenticate: startup packet, TLS, deadline.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.handshake_failures.add(reason);
    }

    /// From accept to the first `ReadyForQuery`.
    pub fn handshake_seconds(&self, took: Duration) {
        self.handshake_seconds.observe(took);
    }

    /// A login whose proof was right.
    pub fn login_succeeded(&self) {
        self.logins.fetch_add(1, Relaxed);
    }

    /// A login that was refused. `reason` is ours and never tells which user.
    pub fn login_failed(&self, reason: &'static str) {
        self.login_failures.add(reason);
    }

    // ---- sessions

    /// A session reached its first `ReadyForQuery`. Pair it with [`Metrics::session_ended`].
    pub fn session_opened(&self) {
        self.sessions_opened.fetch_add(1, Relaxed);
        self.sessions.fetch_add(1, Relaxed);
    }

    /// An opened session is over.
    pub fn session_ended(&self, reason: &'static str) {
        self.sessions.fetch_sub(1, Relaxed);
        self.sessions_ended.add(reason);
    }

    /// Sessions that are open now.
    pub fn sessions_open(&self) -> i64 {
        self.sessions.load(Relaxed)
    }

    // ---- statements

    /// A text was judged and forwarded.
    pub fn statement_allowed(&self) {
        self.hot.mine().allowed.fetch_add(1, Relaxed);
    }

    /// A verdict was found.
    pub fn verdict_found(&self, from: VerdictFrom) {
        let slot = self.hot.mine();
        match from {
            VerdictFrom::Text => &slot.verdicts_by_text,
            VerdictFrom::Shape => &slot.verdicts_by_shape,
            VerdictFrom::Judge => &slot.verdicts_judged,
        }
        .fetch_add(1, Relaxed);
    }

    /// A text was refused by the rule with this stable id (`Denial::rule`).
    pub fn statement_refused(&self, rule: &'static str) {
        self.statements_refused.add(rule);
    }

    /// From the forwarding of a query's first byte to its `ReadyForQuery`.
    pub fn query_seconds(&self, took: Duration) {
        self.hot.mine().query_seconds.observe(took);
    }

    /// How long the judge took over one text (a hit in the cache of verdicts counts too).
    pub fn verdict_seconds(&self, took: Duration) {
        self.hot.mine().verdict_seconds.observe(took);
    }

    /// Bytes of the protocol (inside TLS) that crossed a client's socket.
    pub fn bytes(&self, direction: Direction, count: u64) {
        let slot = self.hot.mine();
        match direction {
            Direction::FromClient => slot.bytes_from_clients.fetch_add(count, Relaxed),
            Direction::ToClient => slot.bytes_to_clients.fetch_add(count, Relaxed),
        };
    }

    /// A limit ended a statement, a transaction or a session: `statement_timeout`, `idle_in_transaction`, `rows`, …
    pub fn limit_hit(&self, limit: &'static str) {
        self.limits_hit.add(limit);
    }

    /// A cancel request, by what became of it: `forwarded`, `no_query`, `unknown_key`, `failed`, or `own` for ours.
    pub fn cancel(&self, kind: &'static str) {
        self.cancels.add(kind);
    }

    // ---- pooling

    /// A session was pinned to its upstream connection. Pair it with [`Metrics::unpinned`].
    pub fn pinned(&self, reason: &'static str) {
        self.pinned.fetch_add(1, Relaxed);
        self.pins.add(reason);
    }

    /// A pinned session gave its connection back, or ended.
    pub fn unpinned(&self) {
        self.pinned.fetch_sub(1, Relaxed);
    }

    /// A connection had to be cleaned between two sessions; `outcome` is `clean` or `closed`.
    pub fn upstream_reset(&self, outcome: &'static str) {
        self.resets.add(outcome);
    }

    /// How long a session waited for a connection (zero waits count).
    pub fn wait_seconds(&self, took: Duration) {
        self.wait_seconds.observe(took);
    }

    /// A client was told by a NOTICE that it waits for a connection.
    pub fn wait_told(&self) {
        self.wait_notices.fetch_add(1, Relaxed);
    }

    /// A connection to a server was opened and is logged in.
    pub fn upstream_connected(&self, took: Duration) {
        self.upstream_connects.fetch_add(1, Relaxed);
        self.upstream_connect_seconds.observe(took);
    }

    /// A connection to a server could not be opened: `refused`, `timeout`, `tls`, `auth`, `protocol`, …
    pub fn upstream_failed(&self, reason: &'static str) {
        self.upstream_failures.add(reason);
    }

    /// A connection to a server was closed: `idle`, `lifetime`, `evicted`, `broken`, `generation`, `drain`, …
    pub fn upstream_closed(&self, reason: &'static str) {
        self.upstream_closed.add(reason);
    }

    // ---- the shell

    /// SIGHUP read the certificate again; `outcome` is `ok` or `failed`.
    pub fn tls_reloaded(&self, outcome: &'static str) {
        self.tls_reloads.add(outcome);
    }

    /// A request to the admin port was answered, by class of status (`2xx`, …).
    pub fn admin_request(&self, status_class: &'static str) {
        self.admin_requests.add(status_class);
    }

    /// A request could not be forwarded to the sidecar: `connect`, `timeout`, `broken`.
    pub fn sidecar_failed(&self, reason: &'static str) {
        self.sidecar_failures.add(reason);
    }

    /// The text of a scrape, format 0.0.4
    /// (<https://prometheus.io/docs/instrumenting/exposition_formats/>). `observed` is what others know at this moment.
    pub fn render(&self, observed: &Observed) -> String {
        render::render(self, observed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use portcullis_policy::CacheSize;
    use std::collections::{BTreeMap, BTreeSet};

    /// One of everything, so that no metric is left at "never shown".
    fn exercised() -> Metrics {
        let metrics = Metrics::new();
        let took = Duration::from_micros(300);
        metrics.connection_accepted();
        metrics.connection_refused("clients_max");
        metrics.accept_failed();
        metrics.handshake_failed("deadline");
        metrics.handshake_seconds(took);
        metrics.login_succeeded();
        metrics.login_failed("password");
        metrics.session_opened();
        metrics.session_opened();
        metrics.session_ended("terminate");
        metrics.statement_allowed();
        metrics.statement_refused("function.not_allowed");
        metrics.verdict_found(VerdictFrom::Text);
        metrics.verdict_found(VerdictFrom::Shape);
        metrics.verdict_found(VerdictFrom::Judge);
        metrics.query_seconds(took);
        metrics.verdict_seconds(took);
        metrics.bytes(Direction::FromClient, 10);
        metrics.bytes(Direction::ToClient, 20);
        metrics.limit_hit("statement_timeout");
        metrics.cancel("forwarded");
        metrics.pinned("with_hold");
        metrics.unpinned();
        metrics.upstream_reset("clean");
        metrics.wait_seconds(took);
        metrics.wait_told();
        metrics.upstream_connected(took);
        metrics.upstream_failed("refused");
        metrics.upstream_closed("idle");
        metrics.tls_reloaded("ok");
        metrics.admin_request("2xx");
        metrics.sidecar_failed("connect");
        metrics
    }

    /// Reads the text format strictly: HELP and TYPE once and first, samples of that name only, no sample twice.
    fn parse(text: &str) -> BTreeMap<String, f64> {
        let mut samples = BTreeMap::new();
        let mut names = BTreeSet::new();
        let (mut name, mut kind) = (String::new(), String::new());
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (new, help) = rest.split_once(' ').unwrap();
                assert!(names.insert(new.to_owned()), "{new} twice");
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                name = new.to_owned();
                kind.clear();
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (of, new) = rest.split_once(' ').unwrap();
                assert_eq!(of, name, "TYPE follows HELP");
                new.clone_into(&mut kind);
            } else {
                let (series, value) = line.rsplit_once(' ').unwrap();
                let of = series.split('{').next().unwrap();
                let suffixes: &[&str] = if kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
                assert!(suffixes.iter().any(|suffix| of == format!("{name}{suffix}")), "{line} under {name} {kind}");
                assert!(of.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
                assert_eq!(kind == "counter", of.ends_with("_total"), "{line}");
                assert!(samples.insert(series.to_owned(), value.parse().unwrap()).is_none(), "{line} twice");
            }
        }
        assert!(text.ends_with('\n'));
        samples
    }

    #[test]
    fn a_scrape_is_valid_and_shows_every_fact() {
        let verdicts = CacheSize { texts: 6, shapes: 7, bytes: 8 };
        let mut memory = Memory { bytes_max: 99, ..Memory::default() };
        memory.held[1].1 = 9;
        let observed = Observed {
            ready: true,
            upstream_idle: 3,
            verdicts,
            memory,
            resident_bytes: Some(4096),
            ..Observed::default()
        };
        let samples = parse(&exercised().render(&observed));
        for (series, value) in [
            ("client_connections", 1.0),
            ("client_connections_total", 1.0),
            ("client_connections_refused_total{reason=\"clients_max\"}", 1.0),
            ("accept_errors_total", 1.0),
            ("handshake_failures_total{reason=\"deadline\"}", 1.0),
            ("handshake_seconds_count", 1.0),
            ("logins_total", 1.0),
            ("login_failures_total{reason=\"password\"}", 1.0),
            ("sessions", 1.0),
            ("sessions_opened_total", 2.0),
            ("sessions_ended_total{reason=\"terminate\"}", 1.0),
            ("statements_total{verdict=\"allowed\"}", 1.0),
            ("statements_total{verdict=\"refused\"}", 1.0),
            ("statements_refused_total{rule=\"function.not_allowed\"}", 1.0),
            ("verdicts_total{from=\"text\"}", 1.0),
            ("verdicts_total{from=\"shape\"}", 1.0),
            ("verdicts_total{from=\"judge\"}", 1.0),
            ("verdict_cache_entries{by=\"text\"}", 6.0),
            ("verdict_cache_entries{by=\"shape\"}", 7.0),
            ("verdict_cache_bytes", 8.0),
            ("query_seconds_bucket{le=\"0.00025\"}", 0.0),
            ("query_seconds_bucket{le=\"0.0005\"}", 1.0),
            ("query_seconds_bucket{le=\"+Inf\"}", 1.0),
            ("query_seconds_sum", 0.0003),
            ("verdict_seconds_count", 1.0),
            ("client_bytes_total{direction=\"in\"}", 10.0),
            ("client_bytes_total{direction=\"out\"}", 20.0),
            ("limits_hit_total{limit=\"statement_timeout\"}", 1.0),
            ("cancels_total{kind=\"forwarded\"}", 1.0),
            ("pinned_sessions", 0.0),
            ("pins_total{reason=\"with_hold\"}", 1.0),
            ("upstream_resets_total{outcome=\"clean\"}", 1.0),
            ("wait_seconds_count", 1.0),
            ("wait_notices_total", 1.0),
            ("upstream_connects_total", 1.0),
            ("upstream_connections{state=\"idle\"}", 3.0),
            ("upstream_connect_seconds_count", 1.0),
            ("upstream_failures_total{reason=\"refused\"}", 1.0),
            ("upstream_closed_total{reason=\"idle\"}", 1.0),
            ("tls_reloads_total{outcome=\"ok\"}", 1.0),
            ("admin_requests_total{status=\"2xx\"}", 1.0),
            ("sidecar_failures_total{reason=\"connect\"}", 1.0),
            ("memory_budget_bytes{held=\"buffers\"}", 9.0),
            ("memory_budget_max_bytes", 99.0),
            ("ready", 1.0),
            ("process_resident_memory_bytes", 4096.0),
        ] {
            assert_eq!(samples.get(&format!("portcullis_{series}")), Some(&value), "{series}");
        }
    }

    /// A number that nobody moves is a lie: every fact has its place in the proxy where it is told.
    #[test]
    fn every_fact_is_told_by_somebody() {
        let own = include_str!("metrics.rs");
        let heads = own.split("\n    pub fn ").skip(1).filter_map(|text| text.split_once(" {"));
        // What gives a value reads.
        let facts = heads.filter(|(head, _)| !head.contains("->")).filter_map(|(head, _)| head.split_once("(&self"));
        let facts: Vec<&str> = facts.map(|(name, _)| name).collect();
        assert!(facts.len() > 25, "{facts:?}");
        let (mut code, mut folders) = (String::new(), vec![format!("{}/src", env!("CARGO_MANIFEST_DIR"))]);
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
                let path = entry.path();
                match path.extension() {
                    _ if path.is_dir() => folders.push(path.display().to_string()),
                    Some(_) if !path.ends_with("metrics.rs") && !path.ends_with("tests.rs") => {
                        let text = std::fs::read_to_string(path).unwrap();
                        code += text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                    }
                    _ => {}
                }
            }
        }
        let untold: Vec<&str> = facts.into_iter().filter(|name| !code.contains(&format!(".{name}("))).collect();
        assert!(untold.is_empty(), "{untold:?}");
    }

    #[test]
    fn buckets_are_cumulative_and_end_with_the_count() {
        let metrics = Metrics::new();
        for millis in [0, 1, 3, 40, 400_000] {
            metrics.wait_seconds(Duration::from_millis(millis));
        }
        let samples = parse(&metrics.render(&Observed::default()));
        let mut buckets: Vec<(f64, f64)> = samples
            .iter()
            .filter_map(|(series, count)| {
                let bound = series.strip_prefix("portcullis_wait_seconds_bucket{le=\"")?.strip_suffix("\"}")?;
                Some((bound.replace("+Inf", "inf").parse().unwrap(), *count))
            })
            .collect();
        buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1), "{buckets:?}");
        assert_eq!(buckets.last().map(|last| last.1), Some(5.0));
        assert_eq!(buckets[buckets.len() - 2].1, 4.0, "400 s is beyond the last bound");
        assert_eq!(samples["portcullis_wait_seconds_count"], 5.0);
    }

    /// The alerts of the runbook would be silent for ever over a name that does not exist.
    #[test]
    fn the_runbook_names_only_metrics_that_exist() {
        let page = exercised().render(&Observed::default());
        let runbook = include_str!("../../deploy/README.md");
        let words = runbook.split(|c: char| !(c.is_ascii_lowercase() || c == '_'));
        let named: BTreeSet<&str> =
            words.filter(|word| word.starts_with("portcullis_") && *word != "portcullis_proxy").collect();
        assert!(named.len() > 15, "{named:?}");
        for name in named {
            // A family by its TYPE, a histogram's series by its samples.
            let shown = [
                format!("# TYPE {name} "),
                format!(
                    "
{name}{{"
                ),
                format!(
                    "
{name} "
                ),
            ];
            assert!(shown.iter().any(|text| page.contains(text)), "{name}");
        }
    }
}
