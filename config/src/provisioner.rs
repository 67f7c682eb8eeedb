//! The configuration of `portcullis-provisioner`; `provisioner.toml` beside this crate is its annotated form.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    error::ConfigError,
    keys::Keys,
    secret::Secret,
    source::Environment,
    types::{LogConfig, PublicSslMode, SidecarAddress, UpstreamTlsMode},
};

/// Everything that `portcullis-provisioner` reads at start.
#[derive(Clone, Debug)]
pub struct ProvisionerConfig {
    /// The HTTP API.
    pub api: ApiConfig,
    /// Where the catalog is.
    pub catalog: ProvisionerCatalogConfig,
    /// Keys that seal what the catalog holds.
    pub keys: ProvisionerKeysConfig,
    /// How customers reach the gate: what issued URIs say.
    pub public: PublicConfig,
    /// PostgreSQL servers by name; new workspaces go to the first in the order of names.
    pub servers: BTreeMap<String, ServerConfig>,
    /// The first start.
    pub bootstrap: BootstrapConfig,
    /// What `metadata` tells of the project.
    pub project: ProjectConfig,
    /// The reconciler.
    pub reconcile: ReconcileConfig,
    /// Log lines.
    pub log: LogConfig,
}

/// `[api]`
#[derive(Clone, Debug)]
pub struct ApiConfig {
    /// A Unix socket or an address; plain HTTP, so loopback as a rule.
    pub listen: SidecarAddress,
    /// Bytes of a request's body at most.
    pub body_bytes_max: usize,
    /// One request, from its first byte to the answer.
    pub request_timeout_ms: u64,
    /// Requests at once.
    pub requests_max: usize,
}

/// `[catalog]`
#[derive(Clone, Debug)]
pub struct ProvisionerCatalogConfig {
    /// A libpq URL or `key=value` text of the catalog's owner. `sslmode` is `disable` (default), `require` or
    /// `verify-full`; both of the latter verify the server's certificate.
    pub url: Secret<String>,
    /// The password, if the URL has none.
    pub password: Option<Secret<String>>,
    /// PEM: the authorities that may sign the catalog's certificate; without it the public ones.
    pub ca_file: Option<PathBuf>,
    /// The role as which proxies read the catalog; migrations grant it what it needs. It must exist.
    pub proxy_role: String,
    /// Connections to the catalog.
    pub connections_max: usize,
}

/// `[keys]`
#[derive(Clone, Debug)]
pub struct ProvisionerKeysConfig {
    /// Wraps the key of each workspace, which seals the passwords of its logins. Never given to a proxy.
    pub key_of_keys: Secret<[u8; 32]>,
    /// Seals the backend roles' keys; proxies have the same.
    pub proxy_key: Secret<[u8; 32]>,
}

/// `[public]`
#[derive(Clone, Debug)]
pub struct PublicConfig {
    /// The host in issued URIs.
    pub host: String,
    /// The port in issued URIs.
    pub port: u16,
    /// The `sslmode` in issued URIs.
    pub sslmode: PublicSslMode,
    /// PEM: the authority that signed the gate's certificate, for customers who verify it.
    pub ca_file: Option<PathBuf>,
}

/// `[servers.<name>]`
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// A host name, an address, or the directory of a Unix socket.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The database in which server-wide work is done.
    pub database: String,
    /// The provisioner's role there: a superuser, or one with CREATEDB and CREATEROLE.
    pub user: String,
    /// Its password, where the server asks for one.
    pub password: Option<Secret<String>>,
    /// How provisioner and proxies protect their connections to it.
    pub tls: UpstreamTlsMode,
    /// PEM: the authorities that may sign its certificate; required by `verify-full`.
    pub ca_file: Option<PathBuf>,
    /// How proxies reach it, where that differs from `host`.
    pub proxy_host: Option<String>,
    /// How proxies reach it, where that differs from `port`.
    pub proxy_port: Option<u16>,
}

/// `[bootstrap]`
#[derive(Clone, Debug)]
pub struct BootstrapConfig {
    /// Where the admin key that the first start mints is written (mode 0600); without it, it is shown once on standard
    /// error.
    pub admin_key_file: Option<PathBuf>,
}

/// `[project]`
#[derive(Clone, Debug)]
pub struct ProjectConfig {
    /// The identifier that `metadata` reports.
    pub id: String,
    /// The name that `metadata` reports.
    pub name: String,
}

/// `[reconcile]`
#[derive(Clone, Debug)]
pub struct ReconcileConfig {
    /// How often everything is looked at without being woken.
    pub tick_ms: u64,
}

impl ProvisionerConfig {
    /// Reads the file, if one is named, and the environment over it.
    ///
    /// # Errors
    /// Every mistake at once, each with its key and line.
    pub fn load(path: Option<&Path>, environment: &Environment) -> Result<Self, ConfigError> {
        Keys::load(path, environment, Self::read)
    }

    fn read(keys: &mut Keys) -> Option<Self> {
        let (catalog, sealing) = (ProvisionerCatalogConfig::read(keys), ProvisionerKeysConfig::read(keys));
        let (public, servers, api) = (PublicConfig::read(keys), read_servers(keys), ApiConfig::read(keys));
        let bootstrap = BootstrapConfig { admin_key_file: keys.file("bootstrap.admin_key_file") };
        let project = ProjectConfig {
            id: keys.text("project.id").unwrap_or_else(|| "portcullis".to_owned()),
            name: keys.text("project.name").unwrap_or_else(|| "Portcullis".to_owned()),
        };
        let reconcile = ReconcileConfig { tick_ms: keys.number("reconcile.tick_ms", 100..=86_400_000, 30_000) };
        let log = LogConfig::read(keys);
        let (catalog, sealing, public, servers) = (catalog?, sealing?, public?, servers?);
        Some(Self { api, catalog, keys: sealing, public, servers, bootstrap, project, reconcile, log })
    }
}

impl ApiConfig {
    fn read(keys: &mut Keys) -> Self {
        let listen = keys.parsed("api.listen", SidecarAddress::EXPECTED, |text| text.parse().ok());
        Self {
            listen: listen.unwrap_or_else(|| SidecarAddress::Tcp { host: "127.0.0.1".to_owned(), port: 6434 }),
            body_bytes_max: keys.number("api.body_bytes_max", 1_024..=1_073_741_824, 1_048_576),
            request_timeout_ms: keys.number("api.request_timeout_ms", 1_000..=3_600_000, 60_000),
            requests_max: keys.number("api.requests_max", 1..=100_000, 256),
        }
    }
}

impl ProvisionerCatalogConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let url = keys.secret("catalog.url");
        let url = keys.required_secret("catalog.url", url);
        let (password, ca_file) = (keys.secret("catalog.password"), keys.file("catalog.ca_file"));
        let proxy_role = keys.parsed("catalog.proxy_role", "a role name of 1 to 63 bytes", |text| {
            (1..=63).contains(&text.len()).then(|| text.to_owned())
        });
        let proxy_role = proxy_role.unwrap_or_else(|| "portcullis_proxy".to_owned());
        let connections_max = keys.number("catalog.connections_max", 2..=1_000, 8);
        Some(Self { url: url?, password, ca_file, proxy_role, connections_max })
    }
}

impl ProvisionerKeysConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let key_of_keys = keys.secret_32_bytes("keys.key_of_keys");
        let key_of_keys = keys.required_secret("keys.key_of_keys", key_of_keys);
        let proxy_key = keys.secret_32_bytes("keys.proxy_key");
        let proxy_key = keys.required_secret("keys.proxy_key", proxy_key);
        Some(Self { key_of_keys: key_of_keys?, proxy_key: proxy_key? })
    }
}

impl PublicConfig {
    fn read(keys: &mut Keys) -> Option<Self> {
        let host = keys.text("public.host");
        let host = keys.required("public.host", host);
        let port = keys.number("public.port", 1..=65_535, 6432);
        let sslmode = keys.parsed("public.sslmode", "require, verify-ca or verify-full", PublicSslMode::parse);
        let ca_file = keys.file("public.ca_file");
        Some(Self { host: host?, port, sslmode: sslmode.unwrap_or_default(), ca_file })
    }
}

fn read_servers(keys: &mut Keys) -> Option<BTreeMap<String, ServerConfig>> {
    let names = keys.names_below("servers");
    let mut servers = Some(BTreeMap::new());
    for name in &names {
        let server = ServerConfig::read(keys, name);
        servers = servers.zip(server).map(|(mut servers, server)| {
            servers.insert(name.clone(), server);
            servers
        });
    }
    if names.is_empty() { keys.required("servers.main.host", None) } else { servers }
}

impl ServerConfig {
    fn read(keys: &mut Keys, name: &str) -> Option<Self> {
        let key = |field: &str| format!("servers.{name}.{field}");
        if !is_server_name(name) {
            keys.refuse(&format!("servers.{name}"), name, "a name of 1 to 40 of a-z, 0-9, _ and -");
        }
        let host = keys.text(&key("host"));
        let host = keys.required(&key("host"), host);
        let user = keys.text(&key("user"));
        let user = keys.required(&key("user"), user);
        let tls = keys.parsed(&key("tls"), "disable, require or verify-full", UpstreamTlsMode::parse);
        let tls = keys.required(&key("tls"), tls);
        let port = keys.number(&key("port"), 1..=65_535, 5432);
        let database = keys.text(&key("database")).unwrap_or_else(|| "postgres".to_owned());
        let (password, proxy_host) = (keys.secret(&key("password")), keys.text(&key("proxy_host")));
        // 0 is no port: it stands for "not given".
        let proxy_port = Some(keys.number(&key("proxy_port"), 1..=65_535, 0)).filter(|port| *port != 0);
        let mut ca_file = keys.file(&key("ca_file"));
        if tls == Some(UpstreamTlsMode::VerifyFull) {
            ca_file = Some(keys.required(&key("ca_file"), ca_file)?);
        }
        Some(Self { host: host?, port, database, user: user?, password, tls: tls?, ca_file, proxy_host, proxy_port })
    }
}

fn is_server_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-';
    (1..=40).contains(&name.len()) && name.bytes().all(allowed) && !name.contains("__")
}
