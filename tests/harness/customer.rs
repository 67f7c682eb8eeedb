//! What a customer has: credentials of a login, and tokio-postgres to use them with.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use serde_json::Value;
use tokio_postgres::{Client, Config, config::ChannelBinding};
use tokio_postgres_rustls::MakeRustlsConnect;

/// The credentials that `reveal` and `rotate` answer with.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The connection URI as printed, with `sslmode=require`.
    pub uri: String,
    /// The login's name.
    pub username: String,
    /// The password in clear.
    pub password: String,
    /// The proxy's host.
    pub host: String,
    /// The wire port.
    pub port: u16,
    /// The database's real name.
    pub database: String,
    /// The authority that signed the proxy's certificate, PEM.
    pub ca_pem: String,
}

impl Credentials {
    /// Reads the answer of `reveal` or `rotate`.
    ///
    /// # Panics
    /// When a member is missing.
    #[must_use]
    pub fn from_body(body: &Value, ca_pem: &str) -> Credentials {
        let text = |key: &str| body[key].as_str().unwrap_or_else(|| panic!("no {key} in {body}")).to_owned();
        let port = body["port"].as_u64().and_then(|port| u16::try_from(port).ok()).expect("a port");
        Credentials {
            uri: text("uri"),
            username: text("username"),
            password: text("password"),
            host: text("host"),
            port,
            database: text("database"),
            ca_pem: ca_pem.to_owned(),
        }
    }

    /// The configuration of tokio-postgres for these credentials.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config::new();
        config.host("localhost").hostaddr([127, 0, 0, 1].into()).port(self.port);
        config.user(&self.username).password(&self.password).dbname(&self.database);
        config.ssl_mode(tokio_postgres::config::SslMode::Require).channel_binding(ChannelBinding::Prefer);
        config
    }

    /// Connects over verified TLS.
    pub async fn try_connect(&self) -> Result<Client, tokio_postgres::Error> {
        connect(&self.config(), &self.ca_pem).await
    }

    /// Connects over verified TLS.
    ///
    /// # Panics
    /// When that fails.
    pub async fn connect(&self) -> Client {
        self.try_connect().await.unwrap_or_else(|error| panic!("{} connects: {}", self.username, explain(&error)))
    }
}

/// Connects to the proxy with `config`, trusting `ca_pem`; the connection runs in a task of its own.
pub async fn connect(config: &Config, ca_pem: &str) -> Result<Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(connector(ca_pem)).await?;
    tokio::spawn(async move {
        let _ = connection.await;
    });
    Ok(client)
}

/// tokio-postgres's TLS, trusting `ca_pem`.
#[must_use]
pub fn connector(ca_pem: &str) -> MakeRustlsConnect {
    MakeRustlsConnect::new(tls(ca_pem, &[]))
}

/// A TLS client that trusts `ca_pem` and offers `alpn`.
///
/// # Panics
/// When the PEM is none.
#[must_use]
pub fn tls(ca_pem: &str, alpn: &[&[u8]]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.expect("a certificate")).expect("an authority");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().expect("TLS");
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config
}

/// The SQLSTATE of an error, if the server sent it.
#[must_use]
pub fn sqlstate(error: &tokio_postgres::Error) -> &str {
    error.code().map_or("", |code| code.code())
}

/// What the server said: message, detail and hint, or the error's own words.
#[must_use]
pub fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(db) => format!(
            "{} {}: {} | {} | {}",
            db.severity(),
            db.code().code(),
            db.message(),
            db.detail().unwrap_or_default(),
            db.hint().unwrap_or_default()
        ),
        None => format!("{error:?}"),
    }
}
