//! Process configuration: what needs a restart to change. (What the API changes lives in the catalog.)
//!
//! A configuration is read once, at start, from a TOML file and from the environment, into types that cannot be
//! wrong: [`ProxyConfig`] and [`ProvisionerConfig`]. Every key of the file can be overridden by an environment variable
//! (`listen.address` by `PORTCULLIS__LISTEN__ADDRESS`), and every secret can come from a file of its own
//! (`keys.proxy_key` by the key `keys.proxy_key_file` or the variable `PORTCULLIS__KEYS__PROXY_KEY_FILE`).
//! What is not understood is an error that names the key and its line; all mistakes are reported at once.
//!
//! This crate must not open sockets, start tasks or look at the database, and it never prints a secret.

mod client_map;
mod error;
mod keys;
mod provisioner;
mod proxy;
mod secret;
mod source;
mod types;

pub use client_map::{ClientAuth, ClientMapError, ClientRule, Holder, read_client_map};
pub use error::{ConfigError, Origin, Problem};
pub use provisioner::{
    ApiConfig, BootstrapConfig, ProjectConfig, ProvisionerCatalogConfig, ProvisionerConfig, ProvisionerKeysConfig,
    PublicConfig, ReconcileConfig, ServerConfig,
};
pub use proxy::{
    AdminConfig, CertificateConfig, ClientCertificates, ClientCertificatesConfig, LimitsConfig, ListenConfig,
    PoolConfig, ProxyCatalogConfig, ProxyConfig, ProxyKeysConfig, ThrottleConfig, TlsConfig,
};
pub use secret::Secret;
pub use source::Environment;
pub use types::{LogConfig, LogFormat, PublicSslMode, SidecarAddress, TcpConfig, UpstreamTlsMode};
