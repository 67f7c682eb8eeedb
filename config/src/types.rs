//! The values that both binaries' configurations share.

use std::{net::SocketAddr, path::PathBuf, str::FromStr};

use crate::keys::Keys;

/// How log lines look. Logs go to standard error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// `text` or `json`.
    pub format: LogFormat,
    /// What is logged, in the syntax of tracing's `EnvFilter`, e.g. `info,portcullis_proxy=debug`.
    pub filter: String,
}

impl LogConfig {
    pub(crate) fn read(keys: &mut Keys) -> Self {
        let format = keys.parsed("log.format", "text or json", |text| match text {
            "text" => Some(LogFormat::Text),
            "json" => Some(LogFormat::Json),
            _ => None,
        });
        let filter = keys.text("log.filter").unwrap_or_else(|| "info".to_owned());
        Self { format: format.unwrap_or_default(), filter }
    }
}

/// How a peer that vanished without a word is noticed on a TCP connection. The kernel counts keepalive in whole seconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpConfig {
    /// Silence before the first probe.
    pub keepalive_idle_ms: u64,
    /// Between two probes.
    pub keepalive_interval_ms: u64,
    /// Probes without an answer that end the connection.
    pub keepalive_probes: u32,
    /// How long sent data may stay unacknowledged, or a full peer not make room; 0 leaves it to the kernel.
    pub user_timeout_ms: u64,
}

impl Default for TcpConfig {
    fn default() -> Self {
        Self { keepalive_idle_ms: 60_000, keepalive_interval_ms: 10_000, keepalive_probes: 4, user_timeout_ms: 0 }
    }
}

impl TcpConfig {
    pub(crate) fn read(keys: &mut Keys, section: &str) -> Self {
        let default = Self::default();
        let mut number = |name: &str, bounds: std::ops::RangeInclusive<i64>, default: u64| -> u64 {
            keys.number(&format!("{section}.tcp.{name}"), bounds, default)
        };
        Self {
            keepalive_idle_ms: number("keepalive_idle_ms", 1_000..=7_200_000, default.keepalive_idle_ms),
            keepalive_interval_ms: number("keepalive_interval_ms", 1_000..=600_000, default.keepalive_interval_ms),
            keepalive_probes: number("keepalive_probes", 1..=100, default.keepalive_probes.into())
                .try_into()
                .unwrap_or(4),
            user_timeout_ms: keys.number_or_zero(&format!("{section}.tcp.user_timeout_ms"), 1_000..=3_600_000),
        }
    }
}

/// Where the sidecar's HTTP API listens: a Unix socket, or a TCP address (loopback, as a rule: the API speaks plain HTTP).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SidecarAddress {
    /// A host name or address, and a port.
    Tcp {
        /// A name or an IP address.
        host: String,
        /// The port.
        port: u16,
    },
    /// The path of a Unix socket.
    Unix(PathBuf),
}

impl SidecarAddress {
    pub(crate) const EXPECTED: &str = "unix:/path, http://host:port or host:port";
}

impl FromStr for SidecarAddress {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if path.starts_with('/') { Ok(Self::Unix(PathBuf::from(path))) } else { Err(()) };
        }
        let address = text.strip_prefix("http://").unwrap_or(text);
        let address = address.strip_suffix('/').unwrap_or(address);
        let (host, port) = address.rsplit_once(':').ok_or(())?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        if host.is_empty() || host.contains(['/', '@', '[', ']', ' ']) {
            return Err(());
        }
        Ok(Self::Tcp { host: host.to_owned(), port: port.parse().map_err(|_| ())? })
    }
}

impl std::fmt::Display for SidecarAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp { host, port } if host.contains(':') => write!(f, "http://[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "http://{host}:{port}"),
        }
    }
}

/// How a connection to a PostgreSQL server is protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamTlsMode {
    /// No TLS: for Unix sockets and loopback.
    Disable,
    /// TLS, whoever answers.
    Require,
    /// TLS, and the certificate must be valid for the host and signed by `ca_file`.
    VerifyFull,
}

impl UpstreamTlsMode {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "disable" => Some(Self::Disable),
            "require" => Some(Self::Require),
            "verify-full" => Some(Self::VerifyFull),
            _ => None,
        }
    }
}

/// The `sslmode` that issued URIs carry; nothing below `require`, since the gate itself refuses plain text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PublicSslMode {
    /// `sslmode=require`
    #[default]
    Require,
    /// `sslmode=verify-ca`
    VerifyCa,
    /// `sslmode=verify-full`
    VerifyFull,
}

impl PublicSslMode {
    /// As libpq spells it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Require, Self::VerifyCa, Self::VerifyFull].into_iter().find(|mode| mode.as_str() == text)
    }
}

/// An address to listen on, or the default.
pub(crate) fn listen_address(keys: &mut Keys, key: &str, default: SocketAddr) -> SocketAddr {
    keys.parsed(key, "an IP address and a port, e.g. 0.0.0.0:6432", |text| text.parse().ok()).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sidecar_addresses() {
        for (text, expected) in [
            ("unix:/run/p.sock", Some("unix:/run/p.sock")),
            ("http://127.0.0.1:6434", Some("http://127.0.0.1:6434")),
            ("http://127.0.0.1:6434/", Some("http://127.0.0.1:6434")),
            ("sidecar:80", Some("http://sidecar:80")),
            ("http://[::1]:6434", Some("http://[::1]:6434")),
            ("unix:relative", None),
            ("https://127.0.0.1:6434", None),
            ("http://user@host:1", None),
            ("127.0.0.1", None),
            ("host:70000", None),
            (":1", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<SidecarAddress>().ok().map(|a| a.to_string()).as_deref(), expected, "{text}");
        }
    }
}
