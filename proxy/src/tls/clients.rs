//! Certificates of clients: who may sign them, and which logins they open.
//!
//! rustls verifies chain, purpose, validity and revocation in the handshake; here is what the certificate says about its
//! holder, and what that is worth for a login. It must not decide whether the login itself is alive.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use aws_lc_rs::digest;
use portcullis_config::{
    ClientAuth, ClientCertificates, ClientCertificatesConfig, ClientRule, Holder, read_client_map,
};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::CertificateRevocationListDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::{TlsError, read_bounded, read_chain};

/// What a client's verified certificate says about its holder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    uris: Vec<String>,
    dns: Vec<String>,
    common_name: Option<String>,
    sha256: [u8; 32],
}

impl ClientCertificate {
    /// Reads a leaf that rustls has verified. What cannot be read says nothing: the fingerprint alone is left then.
    pub fn read(der: &[u8]) -> Self {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(digest::digest(&digest::SHA256, der).as_ref());
        let mut this = Self { uris: Vec::new(), dns: Vec::new(), common_name: None, sha256 };
        let Ok(([], leaf)) = X509Certificate::from_der(der) else { return this };
        if let Ok(Some(names)) = leaf.subject_alternative_name() {
            for name in &names.value.general_names {
                match name {
                    GeneralName::URI(uri) => this.uris.push((*uri).to_owned()),
                    GeneralName::DNSName(name) => this.dns.push(name.to_ascii_lowercase()),
                    _ => {}
                }
            }
        }
        // Of two common names nobody could say which is meant.
        let mut names = leaf.subject().iter_common_name();
        if let (Some(name), None) = (names.next(), names.next()) {
            this.common_name = name.as_str().ok().map(str::to_owned);
        }
        this
    }

    fn is(&self, holder: &Holder) -> bool {
        match holder {
            Holder::Uri(uri) => self.uris.contains(uri),
            Holder::Dns(name) => self.dns.contains(name),
            Holder::CommonName(name) => self.common_name.as_ref() == Some(name),
            Holder::Sha256(digest) => self.sha256 == *digest,
        }
    }
}

/// What has to be proved to open a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Demand {
    /// The password: the login is bound to no certificate, or to this one beside the password.
    Password,
    /// Nothing more: the certificate stands for it.
    Nothing,
    /// What cannot be proved on this connection: the login is bound to another certificate.
    Impossible,
}

/// Which certificates open which logins.
#[derive(Debug, Default)]
pub struct Bindings {
    by_login: HashMap<String, Vec<(Holder, ClientAuth)>>,
}

impl Bindings {
    fn new(rules: Vec<ClientRule>) -> Self {
        let mut by_login: HashMap<String, Vec<(Holder, ClientAuth)>> = HashMap::new();
        for rule in rules {
            for login in rule.logins {
                by_login.entry(login).or_default().push((rule.holder.clone(), rule.auth));
            }
        }
        Self { by_login }
    }

    /// What `user` has to prove on a connection with this certificate. Of two rules that fit, the stricter one counts.
    pub fn demand(&self, user: &str, certificate: Option<&ClientCertificate>) -> Demand {
        let Some(rules) = self.by_login.get(user) else { return Demand::Password };
        let Some(certificate) = certificate else { return Demand::Impossible };
        let mut fitting = rules.iter().filter(|(holder, _)| certificate.is(holder)).peekable();
        if fitting.peek().is_none() {
            Demand::Impossible
        } else if fitting.all(|(_, auth)| *auth == ClientAuth::Cert) {
            Demand::Nothing
        } else {
            Demand::Password
        }
    }
}

/// Everything that `[tls]` says about certificates of clients, read.
pub struct Clients {
    /// None where none are asked for.
    pub verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Empty where no file maps any.
    pub bindings: Bindings,
}

impl Clients {
    /// Reads the files that the configuration names.
    ///
    /// # Errors
    /// The first file that cannot be used.
    pub fn read(config: Option<&ClientCertificatesConfig>, provider: &Arc<CryptoProvider>) -> Result<Self, TlsError> {
        let Some(config) = config else { return Ok(Self { verifier: None, bindings: Bindings::default() }) };
        let file = &config.client_ca_file;
        let mut roots = RootCertStore::empty();
        for (index, certificate) in read_chain(file)?.into_iter().enumerate() {
            roots.add(certificate).map_err(|_| TlsError::Certificate { file: file.clone(), position: index + 1 })?;
        }
        let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        if let Some(file) = &config.client_crl_file {
            // A list that is over says nothing about what was revoked since: better nobody than anybody.
            builder = builder.with_crls(read_crls(file)?).enforce_revocation_expiration();
        }
        if config.client_certificates == ClientCertificates::Optional {
            builder = builder.allow_unauthenticated();
        }
        let verifier = builder.build().map_err(|source| TlsError::Clients { file: file.clone(), source })?;
        let rules = config.client_map_file.as_deref().map(read_client_map).transpose()?;
        Ok(Self { verifier: Some(verifier), bindings: Bindings::new(rules.unwrap_or_default()) })
    }
}

fn read_crls(file: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let pem = read_bounded(file)?;
    let lists: Vec<_> = CertificateRevocationListDer::pem_slice_iter(&pem)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::Pem { file: file.to_owned() })?;
    if lists.is_empty() { Err(TlsError::NoRevocationList { file: file.to_owned() }) } else { Ok(lists) }
}
