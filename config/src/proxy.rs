//! The configuration of `portcullis-proxy`; `proxy.toml` beside this crate is its annotated form.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use crate::{
    error::ConfigError,
    keys::Keys,
    secret::Secret,
    source::Environment,
    types::{LogConfig, SidecarAddress, TcpConfig, listen_address},
};

/// A day, in milliseconds: the longest time limit that makes sense for most.
const DAY_MS: i64 = 86_400_000;

/// Everything that `portcullis-proxy` reads at start.
#[derive(Clone, Debug)]
pub struct ProxyConfig {
    /// The wire port.
    pub listen: ListenConfig,
    /// Its certificate.
    pub tls: TlsConfig,
    /// The admin port.
    pub admin: AdminConfig,
    /// Where the catalog is.
    pub catalog: ProxyCatalogConfig,
    /// Keys that open what the catalog holds sealed.
    pub keys: ProxyKeysConfig,
    /// Bounds on clients.
    pub limits: LimitsConfig,
    /// Bounds on failed logins.
    pub throttle: ThrottleConfig,
    /// Bounds on connections to PostgreSQL.
    pub pool: PoolConfig,
    /// Log lines.
    pub log: LogConfig,
}

/// `[listen]`
#[derive(Clone, Debug)]
pub struct ListenConfig {
    /// The wire port.
    pub address: SocketAddr,
    /// Client connections at once; one more is refused with 53300.
    pub clients_max: usize,
    /// Connections between accept and authenticated, at once.
    pub handshakes_max: usize,
    /// The same from one network (/24, /64).
    pub handshakes_per_network_max: usize,
    /// Threads that sessions run on; 0 for one for every two processors.
    pub threads: u16,
    /// A port in the clear, on loopback.
    pub plaintext_address: Option<SocketAddr>,
    /// A Unix socket, in the clear.
    pub unix_socket: Option<PathBuf>,
    /// Who may open it: the file's permission bits.
    pub unix_socket_mode: u32,
    /// How vanished clients are noticed.
    pub tcp: TcpConfig,
}

/// `[tls]`
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// PEM: the certificate and its chain.
    pub certificate_file: PathBuf,
    /// PEM: its private key.
    pub key_file: PathBuf,
    /// Further certificates, shown to clients that ask for one of their names (SNI).
    pub certificates: Vec<CertificateConfig>,
    /// What is asked of clients' certificates; none are asked for without it.
    pub client: Option<ClientCertificatesConfig>,
}

impl TlsConfig {
    /// One certificate, and none of clients.
    pub fn new(certificate_file: impl Into<PathBuf>, key_file: impl Into<PathBuf>) -> Self {
        let (certificate_file, key_file) = (certificate_file.into(), key_file.into());
        Self { certificate_file, key_file, certificates: Vec::new(), client: None }
    }
}

/// `[tls.certificates.<name>]`
#[derive(Clone, Debug)]
pub struct CertificateConfig {
    /// What the operator calls it.
    pub name: String,
    /// PEM: the certificate and its chain. Its DNS names say when it is shown.
    pub certificate_file: PathBuf,
    /// PEM: its private key.
    pub key_file: PathBuf,
}

/// `[tls]`, as far as it is about certificates of clients.
#[derive(Clone, Debug)]
pub struct ClientCertificatesConfig {
    /// PEM: the authorities that may sign them.
    pub client_ca_file: PathBuf,
    /// Whether a client without one is turned away.
    pub client_certificates: ClientCertificates,
    /// PEM: certificates that were revoked.
    pub client_crl_file: Option<PathBuf>,
    /// Which certificates open which logins, see [`crate::read_client_map`].
    pub client_map_file: Option<PathBuf>,
}

/// Whether a client without a certificate is turned away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ClientCertificates {
    /// Only where its login is bound to one.
    #[default]
    Optional,
    /// In the TLS handshake.
    Require,
}

/// `[admin]`
#[derive(Clone, Debug)]
pub struct AdminConfig {
    /// The admin port.
    pub address: SocketAddr,
    /// Whether the admin port speaks TLS, with the certificate of `[tls]`.
    pub tls: bool,
    /// Where the sidecar's HTTP API is.
    pub sidecar: SidecarAddress,
    /// If set, `/metrics` wants it as a bearer token.
    pub metrics_token: Option<Secret<String>>,
    /// What `/pools`, `/sessions` and `/drain` want as a bearer token; without it they are closed.
    pub operator_key: Option<Secret<String>>,
    /// Bytes of a forwarded request's body at most.
    pub body_bytes_max: usize,
}

/// `[catalog]`
#[derive(Clone, Debug)]
pub struct ProxyCatalogConfig {
    /// A libpq URL or `key=value` text. `sslmode` is `disable` (default), `require` or `verify-full`; both of the latter
    /// verify the server's certificate.
    pub url: Secret<String>,
    /// The password, if the URL has none.
    pub password: Option<Secret<String>>,
    /// PEM: the authorities that may sign the catalog's certificate; without it the public ones.
    pub ca_file: Option<PathBuf>,
    /// New logins are refused when the catalog was last heard longer ago than this.
    pub snapshot_age_max_ms: u64,
    /// How often the catalog is asked for changes that no notification announced.
    pub poll_ms: u64,
}

/// `[keys]`
#[derive(Clone, Debug)]
pub struct ProxyKeysConfig {
    /// Opens the backend roles' keys.
    pub proxy_key: Secret<[u8; 32]>,
}

/// `[limits]`
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    /// From accept to the first ReadyForQuery.
    pub connect_timeout_ms: u64,
    /// A session without a transaction and without traffic.
    pub idle_timeout_ms: u64,
    /// One statement.
    pub statement_timeout_ms: u64,
    /// A session that keeps a transaction open without traffic.
    pub idle_in_transaction_timeout_ms: u64,
    /// One transaction, from the first ReadyForQuery inside it.
    pub transaction_timeout_ms: u64,
    /// The body of one frame from a client.
    pub frame_bytes_max: usize,
    /// One SQL text.
    pub sql_bytes_max: usize,
    /// What verdicts that are remembered may take in memory; 0 remembers none.
    pub verdict_cache_bytes: usize,
    /// What the process may hold before new sessions and long statements are refused with 53200; 0 is half of what the
    /// machine or the container has.
    pub memory_bytes_max: u64,
    /// Prepared statements that one session may hold.
    pub prepared_statements_max: usize,
    /// Client sessions of a workspace that sets no `max_connections` of its own.
    pub max_connections_default: u32,
    /// What a graceful stop waits for transactions to finish.
    pub drain_timeout_ms: u64,
}

/// `[throttle]`
#[derive(Clone, Debug)]
pub struct ThrottleConfig {
    /// Failed logins, and cancel requests with a wrong key, of one network (/24, /64) within the window; 0 is no limit.
    pub failures_per_network_max: u32,
    /// Failed logins under one user name within the window; 0 is no limit.
    pub failures_per_login_max: u32,
    /// The window.
    pub failures_window_ms: u64,
}

/// `[pool]`
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// Connections of one pool (server, database, role, generation).
    pub size_max: usize,
    /// Connections of one pool that are opened before they are asked for, and stay open however long they idle.
    pub size_min: usize,
    /// Connections of all pools of one workspace together.
    pub workspace_connections_max: usize,
    /// Connections to one PostgreSQL server.
    pub server_connections_max: usize,
    /// Whether an unnamed prepared statement that comes to a connection again is kept prepared there.
    pub keep_unnamed_statements: bool,
    /// Sessions that wait for a connection of one pool; one more is refused with 53300.
    pub waiters_max: usize,
    /// How long one waits.
    pub query_wait_timeout_ms: u64,
    /// Who has waited this long is told so by a NOTICE, once for each wait; 0 tells nobody.
    pub wait_notice_ms: u64,
    /// Opening a connection, authentication included.
    pub connect_timeout_ms: u64,
    /// An unused connection is closed after this.
    pub idle_timeout_ms: u64,
    /// Any connection is closed at its first idle moment after this.
    pub lifetime_ms: u64,
    /// How vanished servers are noticed.
    pub tcp: TcpConfig,
}

impl ProxyConfig {
    /// Reads the file, if one is named, and the environment over it.
    ///
    /// # Errors
    /// Every mistake at once, each with its key and line.
    pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        Keys::load(path, environment, Self::read)
    }

    fn read(keys: &mut Keys) -> Option<Self> {
        let (tls, catalog, proxy_keys) =
            (TlsConfig::read(keys), ProxyCatalogConfig::read(keys), ProxyKeysConfig::read(keys));
        let (listen, admin, limits) = (ListenConfig::read(keys), AdminConfig::read(keys), LimitsConfig::read(keys));
        let (throttle, pool, log) = (ThrottleConfig::read(keys), PoolConfig::read(keys), LogConfig::read(keys));
        Some(Self { listen, tls: tls?, admin, catalog: catalog?, keys: proxy_keys?, limits, throttle, pool, log })
    }
}

const LOOPBACK: &str = "a loopback address and a port, e.g. 127.0.0.1:6431: what is in the clear stays on the machine";
const MODE: &str = "three or four octal digits of permission bits, e.g. 0660";

fn parse_mode(text: &str) -> Option<u32> {
    let octal = (3..=4).contains(&text.len()) && text.bytes().all(|digit| digit.is_ascii_digit());
    u32::from_str_radix(text, 8).ok().filter(|mode| octal && *mode <= 0o777)
}

impl ListenConfig {
    fn read(keys: &mut Keys) -> Self {
        Self {
            address: listen_address(keys, "listen.address", SocketAddr::from((Ipv4Addr::LOCALHOST, 6432))),
            clients_max: keys.number("listen.clients_max", 1..=1_000_000, 10_000),
            handshakes_max: keys.number("listen.handshakes_max", 1..=100_000, 256),
            handshakes_per_network_max: keys.number("listen.handshakes_per_network_max", 1..=100_000, 128),
            threads: keys.number("listen.threads", 0..=1024, 0),
            plaintext_address: keys.parsed("listen.plaintext_address", LOOPBACK, |text| {
                text.parse().ok().filter(|address: &SocketAddr| address.ip().to_canonical().is_loopback())
            }),
            unix_socket: keys.parsed("listen.unix_socket", "an absolute path", |text| {
                Some(PathBuf::from(text)).filter(|path| path.is_absolute())
            }),
            unix_socket_mode: keys.parsed("listen.unix_socket_mode", MODE, parse_mode).unwrap_or(0o660),
            tcp: TcpConfig::read(keys, "listen"),
        }
    }
}

impl TlsConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let certificate_file = keys.file("tls.certificate_file");
        let certificate_file = keys.required("tls.certificate_file", certificate_file);
        let key_file = keys.file("tls.key_file");
        let key_file = keys.required("tls.key_file", key_file);
        let names = keys.names_below("tls.certificates");
        let certificates: Vec<_> = names.into_iter().map(|name| CertificateConfig::read(keys, name)).collect();
        let client = ClientCertificatesConfig::read(keys);
        let certificates = certificates.into_iter().collect::<Option<_>>();
        Some(Self { certificate_file: certificate_file?, key_file: key_file?, certificates: certificates?, client })
    }
}

impl CertificateConfig {
    fn read(keys: &mut Keys, name: String) -> Option<Self> {
        let mut file = |what: &str| {
            let key = format!("tls.certificates.{name}.{what}");
            let file = keys.file(&key);
            keys.required(&key, file)
        };
        let (certificate_file, key_file) = (file("certificate_file"), file("key_file"));
        Some(Self { name, certificate_file: certificate_file?, key_file: key_file? })
    }
}

impl ClientCertificatesConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let client_ca_file = keys.file("tls.client_ca_file");
        let client_certificates = keys.parsed("tls.client_certificates", "optional or require", |text| match text {
            "optional" => Some(ClientCertificates::Optional),
            "require" => Some(ClientCertificates::Require),
            _ => None,
        });
        let (client_crl_file, client_map_file) = (keys.file("tls.client_crl_file"), keys.file("tls.client_map_file"));
        let asks = client_certificates.is_some() || client_crl_file.is_some() || client_map_file.is_some();
        let client_ca_file = if asks { keys.required("tls.client_ca_file", client_ca_file) } else { client_ca_file };
        let client_certificates = client_certificates.unwrap_or_default();
        Some(Self { client_ca_file: client_ca_file?, client_certificates, client_crl_file, client_map_file })
    }
}

impl AdminConfig {
    fn read(keys: &mut Keys) -> Self {
        let sidecar = keys.parsed("admin.sidecar", SidecarAddress::EXPECTED, |text| text.parse().ok());
        Self {
            address: listen_address(keys, "admin.address", SocketAddr::from((Ipv4Addr::LOCALHOST, 6433))),
            tls: keys.flag("admin.tls", true),
            sidecar: sidecar.unwrap_or_else(|| SidecarAddress::Tcp { host: "127.0.0.1".to_owned(), port: 6434 }),
            metrics_token: keys.secret("admin.metrics_token"),
            operator_key: keys.secret("admin.operator_key"),
            body_bytes_max: keys.number("admin.body_bytes_max", 1_024..=1_073_741_824, 1_048_576),
        }
    }
}

impl ProxyCatalogConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let url = keys.secret("catalog.url");
        let url = keys.required_secret("catalog.url", url);
        let (password, ca_file) = (keys.secret("catalog.password"), keys.file("catalog.ca_file"));
        let snapshot_age_max_ms = keys.number("catalog.snapshot_age_max_ms", 10_000..=7 * DAY_MS, 900_000);
        let poll_ms = keys.number("catalog.poll_ms", 100..=60_000, 2_000);
        Some(Self { url: url?, password, ca_file, snapshot_age_max_ms, poll_ms })
    }
}

impl ProxyKeysConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let proxy_key = keys.secret_32_bytes("keys.proxy_key");
        Some(Self { proxy_key: keys.required_secret("keys.proxy_key", proxy_key)? })
    }
}

impl LimitsConfig {
    fn read(keys: &mut Keys) -> Self {
        Self {
            connect_timeout_ms: keys.number("limits.connect_timeout_ms", 100..=300_000, 15_000),
            idle_timeout_ms: keys.number("limits.idle_timeout_ms", 100..=7 * DAY_MS, 86_400_000),
            statement_timeout_ms: keys.number("limits.statement_timeout_ms", 100..=7 * DAY_MS, 1_800_000),
            idle_in_transaction_timeout_ms: keys.number(
                "limits.idle_in_transaction_timeout_ms",
                100..=7 * DAY_MS,
                300_000,
            ),
            transaction_timeout_ms: keys.number("limits.transaction_timeout_ms", 100..=7 * DAY_MS, 86_400_000),
            frame_bytes_max: keys.number("limits.frame_bytes_max", 16_384..=1_073_741_823, 67_108_864),
            sql_bytes_max: keys.number("limits.sql_bytes_max", 1_024..=1_048_576, 1_048_576),
            verdict_cache_bytes: keys.number("limits.verdict_cache_bytes", 0..=17_179_869_184, 33_554_432),
            memory_bytes_max: keys.number_or_zero("limits.memory_bytes_max", 67_108_864..=1_099_511_627_776),
            prepared_statements_max: keys.number("limits.prepared_statements_max", 1..=100_000, 1024),
            max_connections_default: keys.number("limits.max_connections_default", 1..=100_000, 100),
            drain_timeout_ms: keys.number("limits.drain_timeout_ms", 0..=3_600_000, 30_000),
        }
    }
}

impl ThrottleConfig {
    fn read(keys: &mut Keys) -> Self {
        Self {
            failures_per_network_max: keys.number("throttle.failures_per_network_max", 0..=1_000_000, 100),
            failures_per_login_max: keys.number("throttle.failures_per_login_max", 0..=1_000_000, 30),
            failures_window_ms: keys.number("throttle.failures_window_ms", 1_000..=3_600_000, 60_000),
        }
    }
}

impl PoolConfig {
    fn read(keys: &mut Keys) -> Self {
        Self {
            size_max: keys.number("pool.size_max", 1..=10_000, 20),
            size_min: keys.number("pool.size_min", 0..=10_000, 0),
            workspace_connections_max: keys.number("pool.workspace_connections_max", 1..=100_000, 40),
            server_connections_max: keys.number("pool.server_connections_max", 1..=100_000, 90),
            keep_unnamed_statements: keys.flag("pool.keep_unnamed_statements", true),
            waiters_max: keys.number("pool.waiters_max", 1..=1_000_000, 1_000),
            query_wait_timeout_ms: keys.number("pool.query_wait_timeout_ms", 100..=3_600_000, 30_000),
            wait_notice_ms: keys.number("pool.wait_notice_ms", 0..=3_600_000, 1_000),
            connect_timeout_ms: keys.number("pool.connect_timeout_ms", 100..=300_000, 5_000),
            idle_timeout_ms: keys.number("pool.idle_timeout_ms", 100..=7 * DAY_MS, 300_000),
            lifetime_ms: keys.number("pool.lifetime_ms", 1_000..=7 * DAY_MS, 3_600_000),
            tcp: TcpConfig::read(keys, "pool"),
        }
    }
}
