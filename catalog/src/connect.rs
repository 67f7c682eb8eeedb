//! How the catalog is reached: its address, TLS, and bounds on how long a dead one is believed to be alive.
//!
//! TLS, where asked for, is always verified; a catalog holds every verifier, so there is no mode that trusts anybody.

use std::{path::PathBuf, sync::Arc, time::Duration};

use portcullis_config::{ProvisionerCatalogConfig, ProxyCatalogConfig, Secret};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use tokio_postgres::config::SslMode;
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::error::{CatalogError, Result};

/// Opening a connection, per address.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A connection whose other side is silently gone is noticed after about this.
const DEAD_PEER_TIMEOUT: Duration = Duration::from_secs(15);

/// Where the catalog is.
#[derive(Clone, Debug)]
pub struct Source {
    /// A libpq URL or `key=value` text. `sslmode` is `disable` (the default), `require` or `verify-full`; the latter two
    /// mean the same here: TLS with a verified certificate.
    pub url: Secret<String>,
    /// The password, if the URL has none.
    pub password: Option<Secret<String>>,
    /// PEM: the authorities that may sign the catalog's certificate; without it the public ones.
    pub ca_file: Option<PathBuf>,
}

impl Source {
    /// An address that is complete in itself.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: Secret::new(url.into()), password: None, ca_file: None }
    }

    /// What the driver needs to connect.
    pub(crate) fn prepare(&self, application_name: &str) -> Result<(tokio_postgres::Config, MakeRustlsConnect)> {
        let (url, tls) = ssl_mode(self.url.expose())?;
        // The parser's own message may quote the address, password included.
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|_| CatalogError::Address("it is neither a URL nor key=value pairs".to_owned()))?;
        if let Some(password) = &self.password {
            config.password(password.expose());
        }
        config.ssl_mode(if tls { SslMode::Require } else { SslMode::Disable });
        config.application_name(application_name).connect_timeout(CONNECT_TIMEOUT);
        config.keepalives(true).keepalives_idle(DEAD_PEER_TIMEOUT / 3).tcp_user_timeout(DEAD_PEER_TIMEOUT);
        Ok((config, self.tls_connector()?))
    }

    fn tls_connector(&self) -> Result<MakeRustlsConnect> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let client = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| CatalogError::Address(format!("TLS: {error}")))?
            .with_root_certificates(self.authorities()?)
            .with_no_client_auth();
        Ok(MakeRustlsConnect::new(client))
    }

    fn authorities(&self) -> Result<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        let Some(path) = &self.ca_file else {
            roots.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
            return Ok(roots);
        };
        let unusable = |reason: String| CatalogError::Address(format!("ca_file {}: {reason}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))? {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() { Err(unusable("no certificate in it".to_owned())) } else { Ok(roots) }
    }
}

impl From<&ProxyCatalogConfig> for Source {
    fn from(config: &ProxyCatalogConfig) -> Self {
        Self { url: config.url.clone(), password: config.password.clone(), ca_file: config.ca_file.clone() }
    }
}

impl From<&ProvisionerCatalogConfig> for Source {
    fn from(config: &ProvisionerCatalogConfig) -> Self {
        Self { url: config.url.clone(), password: config.password.clone(), ca_file: config.ca_file.clone() }
    }
}

/// Takes `sslmode` out of an address, since the driver does not know `verify-full`; `true` means TLS.
fn ssl_mode(address: &str) -> Result<(String, bool)> {
    const NAME: &str = "sslmode=";
    let separators: &[char] = if address.contains("://") { &['?', '&'] } else { &[' ', '\t', '\n'] };
    let starts = address.match_indices(NAME).map(|(at, _)| at);
    let mut starts = starts.filter(|at| *at == 0 || address[..*at].ends_with(separators));
    let Some(start) = starts.next() else { return Ok((address.to_owned(), false)) };
    let value = address[start + NAME.len()..].split(separators).next().unwrap_or_default();
    let tls = match value.trim_matches('\'') {
        "disable" => false,
        "require" | "verify-full" => true,
        _ => return Err(CatalogError::Address("sslmode must be disable, require or verify-full".to_owned())),
    };
    let rest = &address[start + NAME.len() + value.len()..];
    let mode = if tls { "require" } else { "disable" };
    Ok((format!("{}{NAME}{mode}{rest}", &address[..start]), tls))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use super::*;

    #[test]
    fn sslmode_is_taken_from_both_forms() {
        for (address, expected) in [
            ("postgres://u@h/d", Some(("postgres://u@h/d", false))),
            ("postgres://u@h/d?sslmode=verify-full", Some(("postgres://u@h/d?sslmode=require", true))),
            (
                "postgres://u@h/d?a=b&sslmode=require&connect_timeout=3",
                Some(("postgres://u@h/d?a=b&sslmode=require&connect_timeout=3", true)),
            ),
            ("host=h sslmode=verify-full user=u", Some(("host=h sslmode=require user=u", true))),
            ("sslmode=disable host=h", Some(("sslmode=disable host=h", false))),
            ("postgres://u@h/d?sslmode=prefer", None),
            ("host=h sslmode=verify-ca", None),
        ] {
            let seen = ssl_mode(address).ok();
            assert_eq!(seen.as_ref().map(|(url, tls)| (url.as_str(), *tls)), expected, "{address}");
        }
    }

    #[test]
    fn no_error_shows_the_password() {
        for url in ["postgres://u:hunter2@h:port/d", "postgres://u:hunter2@h/d?sslmode=allow", "password=hunter2 x"] {
            let source = Source::new(url);
            let error = source.prepare("t").err().unwrap();
            assert!(!format!("{error} {error:?} {source:?}").contains("hunter2"), "{error:?}");
        }
    }
}
