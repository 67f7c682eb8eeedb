//! A certificate authority of the tests' own, and certificates that it signs (ECDSA P-256).

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// A certificate with its key, both as PEM.
#[derive(Debug)]
pub struct Pem {
    /// The certificate, followed by the chain above it.
    pub certificate: String,
    /// The private key, PKCS#8.
    pub key: String,
}

/// An authority that signs certificates.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    /// The authority's own certificate, PEM: what clients trust.
    pub certificate: String,
}

impl Authority {
    /// A new authority.
    #[must_use]
    pub fn new() -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "Portcullis test CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("a certificate").pem();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    /// A server certificate for `localhost` and the loopback addresses.
    #[must_use]
    pub fn issue(&self) -> Pem {
        self.issue_for(&["localhost", "127.0.0.1", "::1"])
    }

    /// A server certificate for these names and addresses.
    #[must_use]
    pub fn issue_for(&self, names: &[&str]) -> Pem {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("valid names");
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let key = KeyPair::generate().expect("a key");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pem { certificate: format!("{leaf}{}", self.certificate), key: key.serialize_pem() }
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
