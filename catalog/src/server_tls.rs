//! TLS towards a workspace's server, for both processes that connect there.
//!
//! `verify-full` checks the certificate against the catalog's authorities and the host's name; `require` encrypts and
//! makes no statement about who is at the other end, as libpq's mode of that name
//! (<https://www.postgresql.org/docs/current/libpq-ssl.html#LIBPQ-SSL-PROTECTION>). Where the server offers
//! SCRAM-SHA-256-PLUS both processes bind their login to the certificate that they saw, so that nobody in between can
//! pass it on.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use crate::workspace::UpstreamTls;

/// Why TLS towards a server cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum ServerTlsError {
    /// The library does not take the parameters.
    #[error("TLS cannot be set up")]
    Rustls(#[from] rustls::Error),
    /// The authorities' text is not PEM.
    #[error("the authorities' PEM text cannot be read")]
    Pem(#[from] rustls::pki_types::pem::Error),
    /// It has no certificate in it.
    #[error("the authorities' PEM text holds no certificate")]
    NoAuthority,
}

impl UpstreamTls {
    /// What a connection to the server begins TLS with; `None` when it has none.
    ///
    /// # Errors
    /// When the authorities cannot be used.
    pub fn client_config(&self) -> Result<Option<Arc<ClientConfig>>, ServerTlsError> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions()?;
        let config = match self {
            Self::Disable => return Ok(None),
            Self::Require => {
                let verifier = Arc::new(AnyCertificate(provider));
                builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
            }
            Self::VerifyFull { ca_pem } => builder.with_root_certificates(authorities(ca_pem)?).with_no_client_auth(),
        };
        Ok(Some(Arc::new(config)))
    }
}

fn authorities(ca_pem: &str) -> Result<RootCertStore, ServerTlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate?)?;
    }
    if roots.is_empty() { Err(ServerTlsError::NoAuthority) } else { Ok(roots) }
}

/// Takes any certificate; signatures are still verified.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn authorities_that_are_none_are_an_error() {
        let of = |pem: &str| UpstreamTls::VerifyFull { ca_pem: pem.to_owned() }.client_config();
        assert!(matches!(of(""), Err(ServerTlsError::NoAuthority)));
        assert!(matches!(of("not PEM"), Err(ServerTlsError::NoAuthority)));
        let broken = "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n";
        assert!(matches!(of(broken), Err(ServerTlsError::Pem(_))));
        assert!(UpstreamTls::Disable.client_config().unwrap().is_none());
        assert!(UpstreamTls::Require.client_config().unwrap().is_some());
    }
}
