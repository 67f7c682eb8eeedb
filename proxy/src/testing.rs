//! What the shell's tests share: temporary directories and certificates made on the spot.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use portcullis_config::TlsConfig;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType, SignatureAlgorithm, date_time_ymd,
};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use rustls_pki_types::CertificateDer;

/// A directory that goes with its owner.
#[derive(Debug)]
pub struct Dir(PathBuf);

impl Dir {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(format!("portcullis-{}-{}", std::process::id(), random()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn random() -> u64 {
    let mut bytes = [0; 8];
    aws_lc_rs::rand::fill(&mut bytes).unwrap();
    u64::from_be_bytes(bytes)
}

/// A root, an intermediate and a leaf for `localhost`.
pub struct Chain {
    pub root: CertificateDer<'static>,
    pub intermediate: rcgen::Certificate,
    pub leaf: rcgen::Certificate,
    pub leaf_key: KeyPair,
}

impl Chain {
    /// The intermediate signs with `issuer`, the leaf holds a key of kind `leaf`.
    pub fn new(issuer: &'static SignatureAlgorithm, leaf: &'static SignatureAlgorithm) -> Self {
        Self::valid(issuer, leaf, (2020, 2090))
    }

    /// As [`Chain::new`], the leaf valid between the starts of these years.
    pub fn valid(issuer: &'static SignatureAlgorithm, leaf: &'static SignatureAlgorithm, years: (i32, i32)) -> Self {
        let root_key = KeyPair::generate().unwrap();
        let root_params = authority("Test Root");
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let root = (root, Issuer::new(root_params, root_key));

        let intermediate_key = KeyPair::generate_for(issuer).unwrap();
        let intermediate_params = authority("Test Intermediate");
        let intermediate = intermediate_params.signed_by(&intermediate_key, &root.1).unwrap();
        let intermediate_issuer = Issuer::new(intermediate_params, intermediate_key);

        let leaf_key = KeyPair::generate_for(leaf).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, "localhost");
        params.not_before = date_time_ymd(years.0, 1, 1);
        params.not_after = date_time_ymd(years.1, 1, 1);
        let leaf = params.signed_by(&leaf_key, &intermediate_issuer).unwrap();
        Self { root: root.0, intermediate, leaf, leaf_key }
    }

    /// What belongs into `certificate_file`.
    pub fn pem(&self) -> String {
        self.leaf.pem() + &self.intermediate.pem()
    }

    /// Writes `server.crt` and `server.key`.
    pub fn write(&self, dir: &Dir) -> TlsConfig {
        TlsConfig::new(dir.write("server.crt", self.pem()), dir.write("server.key", self.leaf_key.serialize_pem()))
    }

    /// A client that trusts the root alone and offers `alpn`.
    pub fn client(&self, alpn: &[&[u8]]) -> Arc<ClientConfig> {
        self.client_of(rustls::ALL_VERSIONS, alpn)
    }

    /// As [`Chain::client`], with these versions of TLS.
    pub fn client_of(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&[u8]]) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Arc::new(config)
    }
}

/// An authority that signs certificates of whatever kind a test needs.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: rcgen::Certificate,
}

/// A certificate with its key.
pub struct Issued {
    pub certificate: rcgen::Certificate,
    pub key: KeyPair,
}

impl Ca {
    pub fn new() -> Self {
        let (mut params, key) = (authority("Test CA"), KeyPair::generate().unwrap());
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { issuer: Issuer::new(params, key), certificate }
    }

    /// A server's certificate for these names.
    pub fn server(&self, names: &[&str]) -> Issued {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.sign(CertificateParams::new(names).unwrap())
    }

    /// A client's certificate with this common name, URI and serial number.
    pub fn client(&self, common_name: &str, uri: &str, serial: u64) -> Issued {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.serial_number = Some(serial.into());
        self.sign(params)
    }

    /// A list that revokes these serial numbers and is valid until the start of `year`.
    pub fn revoke(&self, serials: &[u64], year: i32) -> String {
        let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: date_time_ymd(2021, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: 1.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }

    fn sign(&self, params: CertificateParams) -> Issued {
        let key = KeyPair::generate().unwrap();
        Issued { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }
}

impl Issued {
    /// Writes `<name>.crt` and `<name>.key`; gives both paths.
    pub fn write(&self, dir: &Dir, name: &str) -> (PathBuf, PathBuf) {
        let certificate = dir.write(&format!("{name}.crt"), self.certificate.pem());
        (certificate, dir.write(&format!("{name}.key"), self.key.serialize_pem()))
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    params
}
