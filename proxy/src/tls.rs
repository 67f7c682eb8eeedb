//! The certificates that clients and callers see, and what is asked of theirs.
//!
//! Loads PEM chains and their keys, checks them before they are used (the whole chain, the key belongs to the leaf, the
//! leaf is valid today), and swaps everything as one value: a handshake sees either the old identity or the new one, never
//! a mixture. A failed reload keeps what was there.
//!
//! Sessions are resumed by tickets, whose keys change every few hours and with every reload. Where certificates of clients are
//! asked for there are none: a ticket would carry a certificate past its revocation.
//!
//! It must not hold the key in more places than rustls needs, and must not print anything of it.

pub mod binding;
mod certificates;
pub mod clients;
mod stream;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use jiff::Timestamp;
use portcullis_config::{ClientMapError, TlsConfig};
use rustls::ServerConfig;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ProducesTickets, VerifierBuilderError};
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use certificates::{ByName, Certificate, Certificates, Noting};
use clients::{Bindings, Clients};
pub use stream::TlsStream;

/// Plaintext bytes per TLS record. libpq's asynchronous interface polls the socket while the rest of a larger record
/// is already decrypted inside OpenSSL, and waits for ever; 8 KB is what PostgreSQL itself sends.
pub const RECORD_BYTES_MAX: usize = 8192;

/// A certificate or key file larger than this is not one.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// The protocol name that direct TLS connections must offer
/// (<https://www.postgresql.org/docs/current/protocol-flow.html#PROTOCOL-FLOW-SSL>).
pub const ALPN_POSTGRESQL: &[u8] = b"postgresql";

/// Where the identity comes from, and the one in use.
pub struct Tls {
    config: TlsConfig,
    current: ArcSwap<TlsIdentity>,
}

/// Everything that was loaded, ready to accept with. Immutable.
pub struct TlsIdentity {
    /// For TLS after an SSLRequest: ALPN `postgresql` is offered, a client without ALPN is accepted, one that offers
    /// other protocols only is refused by rustls.
    negotiated: Arc<ServerConfig>,
    /// For direct TLS. The caller must close unless the handshake agreed on [`ALPN_POSTGRESQL`]: rustls cannot require
    /// that ALPN is used at all.
    direct: Arc<ServerConfig>,
    /// For the admin port: ALPN `http/1.1`, and no certificates of clients.
    pub admin: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    /// Which certificates of clients open which logins.
    pub bindings: Bindings,
    /// When the first of the certificates ends.
    pub not_after: Timestamp,
    /// The default leaf's subject, for logs.
    pub subject: String,
    /// Certificates in the default chain, leaf included.
    pub chain_len: usize,
}

/// How a TLS handshake begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// After an SSLRequest.
    Negotiated,
    /// With the first byte.
    Direct,
}

/// One handshake: what to accept with, and which certificate it came to show.
pub struct Handshake {
    /// What to accept with.
    pub config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    shown: Option<Arc<OnceLock<usize>>>,
}

impl Handshake {
    /// What SCRAM binds to: the hash of the certificate that was shown. Ask after the handshake.
    pub fn server_end_point(&self) -> Option<&[u8]> {
        let place = self.shown.as_ref().and_then(|shown| shown.get()).copied().unwrap_or(0);
        self.certificates.at(place).server_end_point.as_deref()
    }
}

/// Why an identity cannot be used. Every message names the file.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("cannot read {}", .file.display())]
    Unreadable {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is too large to be what it should be.
    #[error("{} is larger than 1 MiB: this is no certificate chain or key", .file.display())]
    TooLarge {
        /// Which file.
        file: PathBuf,
    },
    /// No `CERTIFICATE` block.
    #[error("{} holds no certificate: expected one or more PEM blocks \"BEGIN CERTIFICATE\", the server's own first", .file.display())]
    NoCertificate {
        /// Which file.
        file: PathBuf,
    },
    /// No usable key block.
    #[error("{} holds no private key: expected an unencrypted PEM block \"BEGIN PRIVATE KEY\" (or EC, or RSA)", .file.display())]
    NoKey {
        /// Which file.
        file: PathBuf,
    },
    /// A PEM block is damaged. What is wrong is said without quoting the file.
    #[error("{} is not valid PEM", .file.display())]
    Pem {
        /// Which file.
        file: PathBuf,
    },
    /// A certificate cannot be parsed.
    #[error("certificate {position} in {} is not a valid X.509 certificate", .file.display())]
    Certificate {
        /// Which file.
        file: PathBuf,
        /// 1 is the server's own.
        position: usize,
    },
    /// The key's kind is not supported.
    #[error("the private key in {} cannot be used", .file.display())]
    Key {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
    /// The key is another certificate's.
    #[error("the private key in {} does not belong to the first certificate in {}", .key_file.display(), .file.display())]
    Mismatch {
        /// The chain.
        file: PathBuf,
        /// The key.
        key_file: PathBuf,
    },
    /// The leaf is over.
    #[error("the certificate in {} expired at {not_after}", .file.display())]
    Expired {
        /// Which file.
        file: PathBuf,
        /// Its end.
        not_after: Timestamp,
    },
    /// The leaf has not begun.
    #[error("the certificate in {} is not valid before {not_before}", .file.display())]
    NotYetValid {
        /// Which file.
        file: PathBuf,
        /// Its begin.
        not_before: Timestamp,
    },
    /// Two further certificates have the same name.
    #[error("two of tls.certificates are for {name}: which of them to show could not be told")]
    NameTwice {
        /// The DNS name.
        name: String,
    },
    /// A further certificate has no name that a client could ask for.
    #[error("the certificate in {} has no DNS name, so nobody could ask for it", .file.display())]
    NoName {
        /// Which file.
        file: PathBuf,
    },
    /// No `X509 CRL` block.
    #[error("{} holds no revocation list: expected PEM blocks \"BEGIN X509 CRL\"", .file.display())]
    NoRevocationList {
        /// Which file.
        file: PathBuf,
    },
    /// The authorities or the revocation lists of clients cannot be used.
    #[error("certificates of clients cannot be verified with {}", .file.display())]
    Clients {
        /// The authorities.
        file: PathBuf,
        /// Why.
        source: VerifierBuilderError,
    },
    /// The map from certificates to logins cannot be used.
    #[error("the client map cannot be used: {0}")]
    ClientMap(#[from] ClientMapError),
    /// rustls refused the configuration.
    #[error("cannot set up TLS with {}", .file.display())]
    Setup {
        /// The chain.
        file: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

impl Tls {
    /// Reads and checks the chain and the key. The paths are kept for [`Tls::reload`].
    pub fn load(config: &TlsConfig) -> Result<Self, TlsError> {
        let identity = TlsIdentity::read(config, Timestamp::now())?;
        Ok(Self { config: config.clone(), current: ArcSwap::from_pointee(identity) })
    }

    /// Reads both files again. On failure the old identity stays in use. Sessions that run keep theirs.
    pub fn reload(&self) -> Result<(), TlsError> {
        let identity = TlsIdentity::read(&self.config, Timestamp::now())?;
        self.current.store(Arc::new(identity));
        Ok(())
    }

    /// The identity for a handshake that begins now.
    pub fn current(&self) -> Arc<TlsIdentity> {
        self.current.load_full()
    }
}

impl TlsIdentity {
    fn read(config: &TlsConfig, now: Timestamp) -> Result<Self, TlsError> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let default = Certificate::read(&config.certificate_file, &config.key_file, &provider, now)?;
        let others = config.certificates.iter().map(|other| {
            let read = Certificate::read(&other.certificate_file, &other.key_file, &provider, now)?;
            let named = !read.names.is_empty();
            named.then_some(read).ok_or_else(|| TlsError::NoName { file: other.certificate_file.clone() })
        });
        let others = others.collect::<Result<_, _>>()?;
        let certificates = Certificates::new(default, others).map_err(|name| TlsError::NameTwice { name })?;
        let certificates = Arc::new(certificates);
        let Clients { verifier, bindings } = Clients::read(config.client.as_ref(), &provider)?;

        let setup = |source| TlsError::Setup { file: config.certificate_file.clone(), source };
        // A new ticketer per identity: a client that resumed a session of the old certificate would bind its SCRAM
        // exchange to that one.
        let tickets = || aws_lc_rs::Ticketer::new().map_err(setup);
        let of_clients = if verifier.is_none() { Some(tickets()?) } else { None };
        let build = |alpn: &[u8], verifier: Option<&Arc<dyn ClientCertVerifier>>, tickets| {
            server_config(&provider, &certificates, alpn, verifier, tickets).map_err(setup)
        };
        Ok(Self {
            negotiated: build(ALPN_POSTGRESQL, verifier.as_ref(), of_clients.clone())?,
            direct: build(ALPN_POSTGRESQL, verifier.as_ref(), of_clients)?,
            admin: build(b"http/1.1", None, Some(tickets()?))?,
            bindings,
            not_after: certificates.iter().map(|one| one.not_after).min().unwrap_or(now),
            subject: certificates.default().subject.clone(),
            chain_len: certificates.default().certified.cert.len(),
            certificates,
        })
    }

    /// Begins a handshake on the wire port.
    pub fn handshake(&self, opening: Opening) -> Handshake {
        let config = match opening {
            Opening::Negotiated => &self.negotiated,
            Opening::Direct => &self.direct,
        };
        let certificates = self.certificates.clone();
        if !certificates.differ() {
            return Handshake { config: config.clone(), certificates, shown: None };
        }
        let shown = Arc::new(OnceLock::new());
        let mut noting = ServerConfig::clone(config);
        noting.cert_resolver = Arc::new(Noting { certificates: certificates.clone(), shown: shown.clone() });
        Handshake { config: Arc::new(noting), certificates, shown: Some(shown) }
    }
}

impl Certificate {
    fn read(
        certificate_file: &Path,
        key_file: &Path,
        provider: &CryptoProvider,
        now: Timestamp,
    ) -> Result<Self, TlsError> {
        let chain = read_chain(certificate_file)?;
        let leaf = Leaf::check(&chain, certificate_file, now)?;
        let key = read_key(key_file)?;
        let certified = certify(chain, key, provider, certificate_file, key_file)?;
        let Leaf { subject, not_after, server_end_point, names } = leaf;
        Ok(Self { certified, server_end_point, subject, not_after, names })
    }
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsIdentity")
            .field("subject", &self.subject)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tls").field("config", &self.config).finish_non_exhaustive()
    }
}

fn server_config(
    provider: &Arc<CryptoProvider>,
    certificates: &Arc<Certificates>,
    alpn: &[u8],
    verifier: Option<&Arc<dyn ClientCertVerifier>>,
    tickets: Option<Arc<dyn ProducesTickets>>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
    let builder = match verifier {
        Some(verifier) => builder.with_client_cert_verifier(verifier.clone()),
        None => builder.with_no_client_auth(),
    };
    let mut config = builder.with_cert_resolver(Arc::new(ByName(certificates.clone())));
    config.alpn_protocols = vec![alpn.to_vec()];
    config.max_fragment_size = Some(RECORD_BYTES_MAX);
    // One ticket is enough to resume with; each costs a record and an encryption per handshake.
    config.send_tls13_tickets = usize::from(tickets.is_some());
    if let Some(tickets) = tickets {
        config.ticketer = tickets;
    }
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(Arc::new(config))
}

fn certify(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
    certificate_file: &Path,
    key_file: &Path,
) -> Result<Arc<CertifiedKey>, TlsError> {
    match CertifiedKey::from_der(chain, key, provider) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(TlsError::Mismatch { file: certificate_file.to_owned(), key_file: key_file.to_owned() })
        }
        Err(source) => Err(TlsError::Key { file: key_file.to_owned(), source }),
    }
}

/// What the first certificate says, checked.
struct Leaf {
    subject: String,
    not_after: Timestamp,
    server_end_point: Option<Vec<u8>>,
    names: Vec<String>,
}

impl Leaf {
    fn check(chain: &[CertificateDer<'_>], file: &Path, now: Timestamp) -> Result<Self, TlsError> {
        let file = || file.to_owned();
        let mut parsed = Vec::with_capacity(chain.len());
        for (index, der) in chain.iter().enumerate() {
            match X509Certificate::from_der(der) {
                Ok(([], certificate)) => parsed.push(certificate),
                _ => return Err(TlsError::Certificate { file: file(), position: index + 1 }),
            }
        }
        let (Some(leaf), Some(der)) = (parsed.first(), chain.first()) else {
            return Err(TlsError::NoCertificate { file: file() });
        };
        let time = |seconds: i64| {
            Timestamp::from_second(seconds).map_err(|_| TlsError::Certificate { file: file(), position: 1 })
        };
        let not_before = time(leaf.validity().not_before.timestamp())?;
        let not_after = time(leaf.validity().not_after.timestamp())?;
        if now < not_before {
            return Err(TlsError::NotYetValid { file: file(), not_before });
        }
        if now > not_after {
            return Err(TlsError::Expired { file: file(), not_after });
        }
        for (index, pair) in parsed.windows(2).enumerate() {
            if pair[0].issuer() != pair[1].subject() {
                // Served as it is: cross-signed bundles look like this, and OpenSSL sorts them out.
                tracing::warn!(
                    file = %file().display(),
                    "certificate {} was not issued by certificate {}: clients that verify may miss a link",
                    index + 1, index + 2
                );
            }
        }
        Ok(Self {
            subject: leaf.subject().to_string(),
            not_after,
            server_end_point: binding::server_end_point(&leaf.signature_algorithm, der),
            names: dns_names(leaf),
        })
    }
}

fn dns_names(leaf: &X509Certificate<'_>) -> Vec<String> {
    let Ok(Some(names)) = leaf.subject_alternative_name() else { return Vec::new() };
    let names = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    names.collect()
}

fn read_chain(file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let pem = read_bounded(file)?;
    let chain: Vec<_> = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::Pem { file: file.to_owned() })?;
    if chain.is_empty() { Err(TlsError::NoCertificate { file: file.to_owned() }) } else { Ok(chain) }
}

fn read_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    use rustls_pki_types::pem::Error;
    warn_if_others_can_read(file);
    let pem = read_bounded(file)?;
    PrivateKeyDer::from_pem_slice(&pem).map_err(|error| match error {
        Error::NoItemsFound => TlsError::NoKey { file: file.to_owned() },
        // The error may quote the line it stumbled over: not passed on.
        _ => TlsError::Pem { file: file.to_owned() },
    })
}

fn read_bounded(file: &Path) -> Result<Zeroizing<Vec<u8>>, TlsError> {
    let unreadable = |source| TlsError::Unreadable { file: file.to_owned(), source };
    let handle = File::open(file).map_err(unreadable)?;
    // Reserved at once: a vector that grows would leave copies of the key behind.
    let size = handle.metadata().map_err(unreadable)?.len().min(FILE_BYTES_MAX) as usize;
    let mut content = Zeroizing::new(Vec::with_capacity(size + 1));
    handle.take(FILE_BYTES_MAX + 1).read_to_end(&mut content).map_err(unreadable)?;
    if content.len() as u64 > FILE_BYTES_MAX {
        return Err(TlsError::TooLarge { file: file.to_owned() });
    }
    Ok(content)
}

/// Only a warning: secrets mounted by orchestrators are often readable to all inside their container.
fn warn_if_others_can_read(file: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    if let Ok(metadata) = std::fs::metadata(file)
        && metadata.permissions().mode() & 0o007 != 0
    {
        tracing::warn!(file = %file.display(), "the private key is readable to every user of this machine: chmod 0640");
    }
}
