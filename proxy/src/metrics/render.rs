//! The text format of a scrape (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use std::fmt::{Display, Write as _};
use std::sync::atomic::Ordering::Relaxed;

use portcullis_policy::CacheSize;

use super::histogram::Reading;
use super::{Family, Metrics};
use crate::budget::Held;

/// What a scrape shows beside the counters: states that others own, read at the time of the scrape.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observed {
    /// `clients_max`.
    pub clients_max: u64,
    /// Whether the process is draining.
    pub draining: bool,
    /// Whether `/readyz` would say yes.
    pub ready: bool,
    /// Pools that exist.
    pub pools: u64,
    /// Upstream connections that sessions hold.
    pub upstream_active: u64,
    /// Upstream connections that wait for work.
    pub upstream_idle: u64,
    /// Upstream connections being opened.
    pub upstream_connecting: u64,
    /// Sessions waiting for a connection.
    pub waiters: u64,
    /// Workspaces that are paused.
    pub paused: u64,
    /// What the cache of verdicts holds.
    pub verdicts: CacheSize,
    /// What is held of the memory budget.
    pub memory: Memory,
    /// Seconds since the catalog was last heard.
    pub catalog_age_seconds: f64,
    /// The revision that is served; 0 before the first snapshot.
    pub catalog_revision: i64,
    /// When the certificate that is shown ends, seconds since 1970.
    pub certificate_not_after: i64,
    /// When the process started, seconds since 1970.
    pub started_at: i64,
    /// Resident memory in bytes; none where the kernel does not tell.
    pub resident_bytes: Option<u64>,
}

/// The memory budget at the time of the scrape.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// The bound, bytes.
    pub bytes_max: u64,
    /// What each kind of holder has, bytes.
    pub held: [(&'static str, u64); Held::ALL.len()],
}

impl Default for Memory {
    fn default() -> Self {
        Self { bytes_max: 0, held: Held::ALL.map(|held| (held.label(), 0)) }
    }
}

/// Writes every metric once, each under its HELP and TYPE.
pub fn render(metrics: &Metrics, observed: &Observed) -> String {
    let mut page = Page(String::with_capacity(16 * 1024));
    connections(&mut page, metrics, observed);
    statements(&mut page, metrics, observed);
    pooling(&mut page, metrics, observed);
    shell(&mut page, metrics, observed);
    page.0
}

fn connections(page: &mut Page, m: &Metrics, o: &Observed) {
    page.gauge("client_connections", "Client connections open now, handshakes included.", m.connections.load(Relaxed));
    page.gauge("client_connections_max", "The bound clients_max.", o.clients_max);
    page.counter("client_connections_total", "Client connections accepted.", m.connections_accepted.load(Relaxed));
    page.family(
        "client_connections_refused_total",
        "Client connections turned away unread.",
        "reason",
        &m.connections_refused,
    );
    page.counter("accept_errors_total", "Failures of accept(2).", m.accept_errors.load(Relaxed));
    page.family(
        "handshake_failures_total",
        "Connections that ended before authentication.",
        "reason",
        &m.handshake_failures,
    );
    page.histogram("handshake_seconds", "From accept to the first ReadyForQuery.", &m.handshake_seconds.read());
    page.counter("logins_total", "Logins that succeeded.", m.logins.load(Relaxed));
    page.family("login_failures_total", "Logins that were refused.", "reason", &m.login_failures);
    page.gauge("sessions", "Sessions open now.", m.sessions.load(Relaxed));
    page.counter(
        "sessions_opened_total",
        "Sessions that reached their first ReadyForQuery.",
        m.sessions_opened.load(Relaxed),
    );
    page.family("sessions_ended_total", "Sessions that ended.", "reason", &m.sessions_ended);
}

fn statements(page: &mut Page, m: &Metrics, o: &Observed) {
    let name = "statements_total";
    page.head(name, "counter", "Texts judged, by verdict.");
    page.sample(name, "verdict=\"allowed\"", m.hot.sum(|slot| &slot.allowed));
    page.sample(name, "verdict=\"refused\"", m.statements_refused.total());
    page.family("statements_refused_total", "Texts refused, by rule.", "rule", &m.statements_refused);
    page.histogram("query_seconds", "From forwarding to ReadyForQuery.", &m.hot.read(|slot| &slot.query_seconds));
    page.histogram(
        "verdict_seconds",
        "Time for a verdict over a text that was not remembered word for word.",
        &m.hot.read(|slot| &slot.verdict_seconds),
    );
    let name = "verdicts_total";
    page.head(name, "counter", "Verdicts, by where they came from: remembered by text or by shape, or the judge.");
    page.sample(name, "from=\"text\"", m.hot.sum(|slot| &slot.verdicts_by_text));
    page.sample(name, "from=\"shape\"", m.hot.sum(|slot| &slot.verdicts_by_shape));
    page.sample(name, "from=\"judge\"", m.hot.sum(|slot| &slot.verdicts_judged));
    let name = "verdict_cache_entries";
    page.head(name, "gauge", "Verdicts that are remembered.");
    page.sample(name, "by=\"text\"", o.verdicts.texts);
    page.sample(name, "by=\"shape\"", o.verdicts.shapes);
    page.gauge("verdict_cache_bytes", "Memory of the verdicts that are remembered, roughly.", o.verdicts.bytes);
    let name = "client_bytes_total";
    page.head(name, "counter", "Protocol bytes exchanged with clients.");
    page.sample(name, "direction=\"in\"", m.hot.sum(|slot| &slot.bytes_from_clients));
    page.sample(name, "direction=\"out\"", m.hot.sum(|slot| &slot.bytes_to_clients));
    page.family("limits_hit_total", "Statements, transactions and sessions ended by a limit.", "limit", &m.limits_hit);
    page.family("cancels_total", "Cancel requests, by outcome.", "kind", &m.cancels);
}

fn pooling(page: &mut Page, m: &Metrics, o: &Observed) {
    page.gauge("pinned_sessions", "Sessions pinned to their upstream connection now.", m.pinned.load(Relaxed));
    page.family("pins_total", "Sessions that were pinned.", "reason", &m.pins);
    page.family("upstream_resets_total", "Connections cleaned between sessions.", "outcome", &m.resets);
    page.histogram("wait_seconds", "Wait for an upstream connection.", &m.wait_seconds.read());
    page.counter(
        "wait_notices_total",
        "Clients that were told by a NOTICE that they wait for a connection.",
        m.wait_notices.load(Relaxed),
    );
    page.gauge("pools", "Pools that exist.", o.pools);
    let name = "upstream_connections";
    page.head(name, "gauge", "Upstream connections now.");
    page.sample(name, "state=\"active\"", o.upstream_active);
    page.sample(name, "state=\"idle\"", o.upstream_idle);
    page.sample(name, "state=\"connecting\"", o.upstream_connecting);
    page.gauge("pool_waiters", "Sessions waiting for an upstream connection now.", o.waiters);
    page.gauge("paused_workspaces", "Workspaces that an operator has paused.", o.paused);
    page.counter("upstream_connects_total", "Upstream connections opened.", m.upstream_connects.load(Relaxed));
    page.histogram("upstream_connect_seconds", "Opening an upstream connection.", &m.upstream_connect_seconds.read());
    page.family("upstream_failures_total", "Upstream connections that failed to open.", "reason", &m.upstream_failures);
    page.family("upstream_closed_total", "Upstream connections closed.", "reason", &m.upstream_closed);
}

fn shell(page: &mut Page, m: &Metrics, o: &Observed) {
    page.gauge("ready", "1 if /readyz says yes.", u8::from(o.ready));
    page.gauge("draining", "1 while the process drains.", u8::from(o.draining));
    page.gauge("catalog_age_seconds", "Seconds since the catalog was last heard.", o.catalog_age_seconds);
    page.gauge("catalog_revision", "The revision of the catalog that is served.", o.catalog_revision);
    page.gauge(
        "tls_certificate_not_after_timestamp_seconds",
        "When the certificate that is shown ends.",
        o.certificate_not_after,
    );
    page.family("tls_reloads_total", "Reloads of the certificate.", "outcome", &m.tls_reloads);
    page.family("admin_requests_total", "Requests to the admin port.", "status", &m.admin_requests);
    page.family("sidecar_failures_total", "Requests that the sidecar could not take.", "reason", &m.sidecar_failures);
    let name = "memory_budget_bytes";
    page.head(name, "gauge", "Memory that is held, by what for; new work is refused when the sum reaches the bound.");
    for (held, bytes) in o.memory.held {
        page.sample(name, &format!("held=\"{held}\""), bytes);
    }
    page.gauge("memory_budget_max_bytes", "The bound memory_bytes_max, or what it stands for.", o.memory.bytes_max);
    page.head("build_info", "gauge", "The version that runs.");
    page.sample("build_info", concat!("version=\"", env!("CARGO_PKG_VERSION"), "\""), 1);
    page.gauge("process_start_time_seconds", "When the process started.", o.started_at);
    if let Some(bytes) = o.resident_bytes {
        page.gauge("process_resident_memory_bytes", "Resident memory.", bytes);
    }
}

struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.0, "# HELP portcullis_{name} {help}\n# TYPE portcullis_{name} {kind}");
    }

    /// `labels` is a constant of the source or a [`Family`]'s label: nothing in it needs escaping.
    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "portcullis_{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head(name, "gauge", help);
        let _ = writeln!(self.0, "portcullis_{name} {value}");
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.head(name, "counter", help);
        let _ = writeln!(self.0, "portcullis_{name} {value}");
    }

    fn family(&mut self, name: &str, help: &str, label: &str, family: &Family) {
        self.head(name, "counter", help);
        for (value, count) in family.counts() {
            self.sample(name, &format!("{label}=\"{value}\""), count);
        }
    }

    fn histogram(&mut self, name: &str, help: &str, reading: &Reading) {
        self.head(name, "histogram", help);
        let mut below = 0;
        for (count, bound) in reading.buckets.iter().zip(reading.bounds) {
            below += count;
            self.sample(&format!("{name}_bucket"), &format!("le=\"{}\"", seconds(*bound as f64 / 1e6)), below);
        }
        below += reading.buckets.last().copied().unwrap_or_default();
        self.sample(&format!("{name}_bucket"), "le=\"+Inf\"", below);
        let _ = writeln!(self.0, "portcullis_{name}_sum {}", seconds(reading.sum_nanos as f64 / 1e9));
        let _ = writeln!(self.0, "portcullis_{name}_count {below}");
    }
}

/// Rust prints no exponent for these magnitudes, which is what every parser of the format understands.
fn seconds(value: f64) -> impl Display {
    value
}
