//! A certificate authority of the tests' own, and certificates that it signs (ECDSA P-256).

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SanType,
    date_time_ymd,
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
        Authority::named("Portcullis test CA")
    }

    /// A new authority under another name: one of the same name is tried first, and found wrong later.
    #[must_use]
    pub fn named(name: &str) -> Authority {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
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

    /// A client's certificate with this URI and serial number.
    #[must_use]
    pub fn issue_client(&self, uri: &str, serial: u64) -> Pem {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, "client");
        params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("ASCII"))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial.into());
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
        Pem { certificate, key: key.serialize_pem() }
    }

    /// A revocation list with these serial numbers.
    #[must_use]
    pub fn revoke(&self, serials: &[u64]) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(2090, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).expect("a list").pem().expect("PEM")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Authority::new()
    }
}
