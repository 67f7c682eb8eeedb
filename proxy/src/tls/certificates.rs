//! The certificates that can be shown, and which of them is.
//!
//! A client that asks for a name (SNI) sees the certificate that has it; one that asks for none, or for an unknown one, sees
//! the default. Nothing else follows from the name: it routes nobody. Which certificate was shown is noted in the handshake
//! itself, because SCRAM binds to that one.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use jiff::Timestamp;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// One loaded chain with its key.
#[derive(Debug)]
pub struct Certificate {
    /// The chain and the key.
    pub certified: Arc<CertifiedKey>,
    /// The `tls-server-end-point` hash of the leaf (RFC 5929, section 4.1); none where the RFC defines no hash (Ed25519),
    /// and then SCRAM-SHA-256-PLUS must not be offered.
    pub server_end_point: Option<Vec<u8>>,
    /// The leaf's subject, for logs.
    pub subject: String,
    /// When the leaf ends.
    pub not_after: Timestamp,
    /// The leaf's DNS names, in lower case.
    pub names: Vec<String>,
}

/// All certificates, the default one first.
#[derive(Debug)]
pub struct Certificates {
    all: Vec<Certificate>,
    by_name: HashMap<String, usize>,
}

impl Certificates {
    /// `default` is for everybody who does not ask for a name of one of the `others`.
    ///
    /// # Errors
    /// The first name that two of the others have: whoever asks for it could see either.
    pub fn new(default: Certificate, others: Vec<Certificate>) -> Result<Self, String> {
        let mut by_name = HashMap::new();
        for (at, other) in others.iter().enumerate() {
            for name in &other.names {
                if by_name.insert(name.clone(), at + 1).is_some_and(|before| before != at + 1) {
                    return Err(name.clone());
                }
            }
        }
        let all = std::iter::once(default).chain(others).collect();
        Ok(Self { all, by_name })
    }

    /// The one that is shown to whoever asks for no name.
    pub fn default(&self) -> &Certificate {
        &self.all[0]
    }

    /// All of them, the default one first.
    pub fn iter(&self) -> impl Iterator<Item = &Certificate> {
        self.all.iter()
    }

    /// Whether the name that is asked for makes a difference.
    pub fn differ(&self) -> bool {
        self.all.len() > 1
    }

    /// The one at a place that [`Certificates::place`] gave.
    pub fn at(&self, place: usize) -> &Certificate {
        self.all.get(place).unwrap_or(&self.all[0])
    }

    /// Which one is for `name`: the name itself, or a `*` for its first label.
    pub fn place(&self, name: Option<&str>) -> usize {
        let Some(name) = name else { return 0 };
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let wildcard = || name.split_once('.').and_then(|(_, parent)| self.by_name.get(&format!("*.{parent}")));
        self.by_name.get(&name).or_else(wildcard).copied().unwrap_or(0)
    }
}

/// Shows the certificate that the client asks for.
#[derive(Debug)]
pub struct ByName(pub Arc<Certificates>);

impl ResolvesServerCert for ByName {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.at(self.0.place(hello.server_name())).certified.clone())
    }
}

/// The same in one handshake, with a note of which it was.
#[derive(Debug)]
pub struct Noting {
    /// What there is to choose from.
    pub certificates: Arc<Certificates>,
    /// The place of the chosen one.
    pub shown: Arc<OnceLock<usize>>,
}

impl ResolvesServerCert for Noting {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let place = *self.shown.get_or_init(|| self.certificates.place(hello.server_name()));
        Some(self.certificates.at(place).certified.clone())
    }
}
