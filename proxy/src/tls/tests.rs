#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::Write as _;
use std::sync::Arc;

use ::aws_lc_rs::digest;
use rcgen::{
    PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, PKCS_RSA_SHA384, PKCS_RSA_SHA512,
    SignatureAlgorithm,
};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, Connection, ProtocolVersion, ServerConfig};

use portcullis_config::{CertificateConfig, ClientCertificates, ClientCertificatesConfig};

use super::clients::ClientCertificate;
use super::*;
use crate::testing::{Ca, Chain, Dir, Issued};

/// A client and a server that have shaken hands in memory, or what the one who refused said.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<(Connection, Connection), String> {
    handshake_with("localhost", client, server)
}

/// The same with a server that the client calls by this name.
fn handshake_with(
    name: &'static str,
    client: &Arc<ClientConfig>,
    server: &Arc<ServerConfig>,
) -> Result<(Connection, Connection), String> {
    let name = ServerName::try_from(name).unwrap();
    let mut client = Connection::from(rustls::ClientConnection::new(client.clone(), name).unwrap());
    let mut server = Connection::from(rustls::ServerConnection::new(server.clone()).unwrap());
    while client.is_handshaking() || server.is_handshaking() {
        pass(&mut client, &mut server)?;
        pass(&mut server, &mut client)?;
    }
    Ok((client, server))
}

/// Moves what `from` wants to say; the sizes of the records that it said it in.
fn pass(from: &mut Connection, to: &mut Connection) -> Result<Vec<usize>, String> {
    let mut said = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut said).unwrap();
    }
    let mut records = Vec::new();
    let mut rest = &said[..];
    while let [_, _, _, high, low, ..] = rest {
        let record = usize::from(u16::from_be_bytes([*high, *low]));
        records.push(record);
        rest = &rest[5 + record..];
    }
    let mut rest = &said[..];
    while !rest.is_empty() {
        to.read_tls(&mut rest).unwrap();
        to.process_new_packets().map_err(|error| error.to_string())?;
        let _ = std::io::copy(&mut to.reader(), &mut std::io::sink());
    }
    Ok(records)
}

fn load(chain: &Chain) -> (Dir, Tls) {
    let dir = Dir::new();
    let tls = Tls::load(&chain.write(&dir)).unwrap();
    (dir, tls)
}

#[test]
fn the_end_point_hash_is_of_the_leafs_own_signature() {
    type Row = (&'static SignatureAlgorithm, &'static SignatureAlgorithm, Option<&'static digest::Algorithm>);
    // (the issuer signs the leaf, the leaf's own key does not matter)
    let rows: &[Row] = &[
        (&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256, Some(&digest::SHA256)),
        (&PKCS_ECDSA_P256_SHA256, &PKCS_ED25519, Some(&digest::SHA256)),
        (&PKCS_ECDSA_P384_SHA384, &PKCS_ECDSA_P256_SHA256, Some(&digest::SHA384)),
        (&PKCS_RSA_SHA256, &PKCS_ECDSA_P256_SHA256, Some(&digest::SHA256)),
        (&PKCS_RSA_SHA384, &PKCS_ECDSA_P256_SHA256, Some(&digest::SHA384)),
        (&PKCS_RSA_SHA512, &PKCS_ECDSA_P256_SHA256, Some(&digest::SHA512)),
        (&PKCS_ED25519, &PKCS_ECDSA_P256_SHA256, None),
    ];
    for (issuer, leaf, hash) in rows {
        let chain = Chain::new(issuer, leaf);
        let (_dir, tls) = load(&chain);
        let expect = hash.map(|hash| digest::digest(hash, chain.leaf.der()).as_ref().to_vec());
        assert_eq!(tls.current().certificates.default().server_end_point, expect, "{issuer:?} over {leaf:?}");
    }
}

/// Signature algorithms that rcgen does not make: names and parameters alone.
#[test]
fn the_end_point_hash_by_signature_algorithm() {
    let pss = |hash: &[u8]| {
        // AlgorithmIdentifier { id-RSASSA-PSS, [0] { hash } }
        let inner = [&[0x30, 2 + hash.len() as u8, 0x06, hash.len() as u8], hash].concat();
        let tagged = [&[0xa0, inner.len() as u8], &inner[..]].concat();
        let parameters = [&[0x30, tagged.len() as u8], &tagged[..]].concat();
        let oid = [0x06, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 10];
        [&[0x30, (oid.len() + parameters.len()) as u8], &oid[..], &parameters[..]].concat()
    };
    let plain = |oid: &[u8]| [&[0x30, 2 + oid.len() as u8, 0x06, oid.len() as u8], oid].concat();
    const RSA: [u8; 8] = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1];
    const SHA2: [u8; 8] = [0x60, 0x86, 0x48, 1, 0x65, 3, 4, 2];
    let rows: [(&str, Vec<u8>, Option<&digest::Algorithm>); 9] = [
        ("md5WithRSA", plain(&[&RSA[..], &[4]].concat()), Some(&digest::SHA256)),
        ("sha1WithRSA", plain(&[&RSA[..], &[5]].concat()), Some(&digest::SHA256)),
        ("sha224WithRSA", plain(&[&RSA[..], &[14]].concat()), Some(&digest::SHA224)),
        ("ecdsa-with-SHA1", plain(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 1]), Some(&digest::SHA256)),
        ("ecdsa-with-SHA512", plain(&[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 4]), Some(&digest::SHA512)),
        ("PSS with SHA-256", pss(&[&SHA2[..], &[1]].concat()), Some(&digest::SHA256)),
        ("PSS with SHA-512", pss(&[&SHA2[..], &[3]].concat()), Some(&digest::SHA512)),
        ("PSS with SHA3-256", pss(&[&SHA2[..], &[8]].concat()), None),
        ("Ed448", plain(&[0x2b, 0x65, 0x71]), None),
    ];
    for (name, der, hash) in rows {
        let (rest, algorithm) = x509_parser::prelude::AlgorithmIdentifier::from_der(&der).expect(name);
        assert!(rest.is_empty());
        let expect = hash.map(|hash| digest::digest(hash, b"certificate").as_ref().to_vec());
        assert_eq!(binding::server_end_point(&algorithm, b"certificate"), expect, "{name}");
    }
}

#[test]
fn the_whole_chain_is_served() {
    for kind in [&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256, &PKCS_ED25519] {
        let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, kind);
        let (_dir, tls) = load(&chain);
        assert_eq!(tls.current().chain_len, 2);
        // The client knows the root alone: without the intermediate it could not build a path.
        let (client, _) = handshake(&chain.client(&[]), &tls.current().negotiated).unwrap();
        assert_eq!(client.peer_certificates().unwrap(), [chain.leaf.der().clone(), chain.intermediate.der().clone()]);
    }
}

#[test]
fn alpn_is_as_each_port_needs_it() {
    let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let (_dir, tls) = load(&chain);
    let identity = tls.current();
    type Row<'a> = (&'a Arc<ServerConfig>, &'a [&'a [u8]], Option<Option<&'a [u8]>>);
    let rows: &[Row<'_>] = &[
        (&identity.negotiated, &[], Some(None)),
        (&identity.negotiated, &[b"postgresql"], Some(Some(b"postgresql"))),
        (&identity.negotiated, &[b"h2", b"postgresql"], Some(Some(b"postgresql"))),
        (&identity.negotiated, &[b"http/1.1"], None),
        (&identity.direct, &[b"postgresql"], Some(Some(b"postgresql"))),
        (&identity.direct, &[b"http/1.1"], None),
        (&identity.admin, &[b"h2", b"http/1.1"], Some(Some(b"http/1.1"))),
        (&identity.admin, &[b"postgresql"], None),
    ];
    for (index, (server, offered, expect)) in rows.iter().enumerate() {
        let agreed = handshake(&chain.client(offered), server);
        let agreed = agreed.as_ref().ok().map(|(_, server)| server.alpn_protocol());
        assert_eq!(agreed, *expect, "row {index}");
    }
}

#[test]
fn both_versions_and_small_records() {
    let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let (_dir, tls) = load(&chain);
    for (version, expect) in
        [(&rustls::version::TLS12, ProtocolVersion::TLSv1_2), (&rustls::version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let client = chain.client_of(&[version], &[]);
        let (mut client, mut server) = handshake(&client, &tls.current().negotiated).unwrap();
        assert_eq!(server.protocol_version(), Some(expect));
        server.writer().write_all(&[b'x'; 40_000]).unwrap();
        let records = pass(&mut server, &mut client).unwrap();
        // Ciphertext: at most 8 KB of plaintext and what the version adds.
        assert!(records.iter().all(|record| *record <= RECORD_BYTES_MAX + 64), "{records:?}");
        assert!(records.len() >= 5);
    }
}

#[test]
fn what_cannot_be_used_is_refused_with_the_file_and_the_reason() {
    let good = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let other = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_RSA_SHA256);
    let expired = Chain::valid(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256, (2010, 2011));
    let future = Chain::valid(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256, (2080, 2090));
    let key = good.leaf_key.serialize_pem();
    let damaged = good.leaf.pem().replacen("MII", "M!I", 1);
    let not_x509 = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".to_owned();
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n".to_owned();
    let large = "#".repeat(1024 * 1024 + 1);
    let rows: &[(&str, &str, &str)] = &[
        ("", &key, "server.crt holds no certificate"),
        ("hello\n", &key, "server.crt holds no certificate"),
        (&key, &key, "server.crt holds no certificate"),
        (&damaged, &key, "server.crt is not valid PEM"),
        (&not_x509, &key, "certificate 1 in "),
        (&(good.leaf.pem() + &not_x509), &key, "certificate 2 in "),
        (&large, &key, "server.crt is larger than 1 MiB"),
        (&good.pem(), "", "server.key holds no private key"),
        (&good.pem(), &good.pem(), "server.key holds no private key"),
        (&good.pem(), &encrypted, "server.key holds no private key: expected an unencrypted"),
        (&good.pem(), &key[..key.len() / 2], "server.key is not valid PEM"),
        (&good.pem(), &other.leaf_key.serialize_pem(), "server.key does not belong to the first certificate in "),
        (&(good.intermediate.pem() + &good.leaf.pem()), &key, "does not belong to the first certificate"),
        (&expired.pem(), &expired.leaf_key.serialize_pem(), "server.crt expired at 2011-01-01T00:00:00Z"),
        (&future.pem(), &future.leaf_key.serialize_pem(), "server.crt is not valid before 2080-01-01T00:00:00Z"),
    ];
    for (certificate, key, expect) in rows {
        let dir = Dir::new();
        let files = TlsConfig::new(dir.write("server.crt", certificate), dir.write("server.key", key));
        let error = Tls::load(&files).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} should say {expect:?}");
        assert!(!error.contains("BEGIN EC") && error.len() < 400, "{error}");
    }
    let dir = Dir::new();
    let files = TlsConfig::new(dir.path().join("absent.crt"), dir.path().join("absent.key"));
    let error = Tls::load(&files).unwrap_err().to_string();
    assert!(error.starts_with("cannot read ") && error.ends_with("absent.crt"), "{error}");
}

#[test]
fn a_reload_replaces_the_identity_and_a_failed_one_keeps_it() {
    let old = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let new = Chain::new(&PKCS_ECDSA_P384_SHA384, &PKCS_RSA_SHA256);
    let (dir, tls) = load(&old);
    let first = tls.current();

    // Half of a renewal: the new certificate is there, its key not yet.
    dir.write("server.crt", new.pem());
    assert!(matches!(tls.reload(), Err(TlsError::Mismatch { .. })));
    assert!(Arc::ptr_eq(&tls.current(), &first));
    handshake(&old.client(&[]), &tls.current().negotiated).unwrap();

    new.write(&dir);
    tls.reload().unwrap();
    handshake(&new.client(&[]), &tls.current().negotiated).unwrap();
    assert!(handshake(&old.client(&[]), &tls.current().negotiated).is_err());
    assert_ne!(tls.current().certificates.default().server_end_point, first.certificates.default().server_end_point);
    // A session that began before still has what it was shown.
    handshake(&old.client(&[]), &first.negotiated).unwrap();
}

#[test]
fn a_session_of_the_old_certificate_is_not_resumed_after_a_reload() {
    let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let (_dir, tls) = load(&chain);
    let client = chain.client(&[b"postgresql"]);
    let kind = |config: &Arc<ServerConfig>| {
        let (mut client, mut server) = handshake(&client, config).unwrap();
        pass(&mut server, &mut client).unwrap();
        server.handshake_kind().unwrap()
    };
    use rustls::HandshakeKind::{Full, Resumed};
    assert_eq!(kind(&tls.current().negotiated), Full);
    assert_eq!(kind(&tls.current().negotiated), Resumed);
    tls.reload().unwrap();
    assert_eq!(kind(&tls.current().negotiated), Full);
}

#[test]
fn debug_shows_no_key() {
    let chain = Chain::new(&PKCS_ECDSA_P256_SHA256, &PKCS_ECDSA_P256_SHA256);
    let (_dir, tls) = load(&chain);
    let text = format!("{tls:?} {:?}", tls.current());
    assert!(text.contains("localhost") && !text.contains("PrivateKey") && text.len() < 400, "{text}");
}

/// A client that trusts `ca` and shows a certificate of its own, or none.
fn client_with(
    ca: &Ca,
    own: Option<&Issued>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(ca.certificate.der().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let key = PrivateKeyDer::try_from(own.key.serialize_der()).unwrap();
            builder.with_client_auth_cert(vec![own.certificate.der().clone()], key).unwrap()
        }
    })
}

fn further(dir: &Dir, ca: &Ca, name: &str, names: &[&str]) -> (CertificateConfig, Vec<u8>) {
    let issued = ca.server(names);
    let (certificate_file, key_file) = issued.write(dir, name);
    let hash = digest::digest(&digest::SHA256, issued.certificate.der()).as_ref().to_vec();
    (CertificateConfig { name: name.to_owned(), certificate_file, key_file }, hash)
}

/// P7, P11: the name chooses the certificate, and SCRAM binds to the one that was really shown.
#[test]
fn each_name_has_its_certificate_and_its_hash() {
    let (dir, ca) = (Dir::new(), Ca::new());
    let default = ca.server(&["localhost", "eu.example"]);
    let (certificate_file, key_file) = default.write(&dir, "server");
    let mut config = TlsConfig::new(certificate_file, key_file);
    let (eu, eu_hash) = further(&dir, &ca, "eu", &["eu.example", "*.eu.example"]);
    let (us, us_hash) = further(&dir, &ca, "us", &["us.example"]);
    config.certificates = vec![eu, us];
    let tls = Tls::load(&config).unwrap();
    let default_hash = digest::digest(&digest::SHA256, default.certificate.der()).as_ref().to_vec();
    let (eu, us, default) = (Some(&eu_hash[..]), Some(&us_hash[..]), Some(&default_hash[..]));
    for version in rustls::ALL_VERSIONS {
        for opening in [Opening::Negotiated, Opening::Direct] {
            let client = client_with(&ca, None, &[version]);
            for (name, sni, expect, verified) in [
                ("localhost", true, default, true),
                ("eu.example", true, eu, true),
                ("db.eu.example", true, eu, true),
                ("us.example", true, us, true),
                ("a.b.eu.example", true, default, false),
                ("elsewhere.example", true, default, false),
                ("eu.example", false, default, true),
            ] {
                let mut client = ClientConfig::clone(&client);
                client.enable_sni = sni;
                client.resumption = rustls::client::Resumption::disabled();
                let handshake = tls.current().handshake(opening);
                let outcome = handshake_with(name, &Arc::new(client), &handshake.config);
                assert_eq!(outcome.is_ok(), verified, "{name} {:?}", outcome.err());
                assert_eq!(handshake.server_end_point(), expect, "{name} {sni} {version:?}");
            }
        }
    }
    // Resumed, the client still binds to what it was shown.
    let client = client_with(&ca, None, rustls::ALL_VERSIONS);
    for kind in [rustls::HandshakeKind::Full, rustls::HandshakeKind::Resumed] {
        let handshake = tls.current().handshake(Opening::Negotiated);
        let (mut client, mut server) = handshake_with("us.example", &client, &handshake.config).unwrap();
        pass(&mut server, &mut client).unwrap();
        assert_eq!((server.handshake_kind(), handshake.server_end_point()), (Some(kind), us));
    }
}

#[test]
fn names_that_cannot_be_told_apart_are_refused_and_each_file_is_reloaded() {
    let (dir, ca) = (Dir::new(), Ca::new());
    let (certificate_file, key_file) = ca.server(&["localhost"]).write(&dir, "server");
    let mut config = TlsConfig::new(certificate_file, key_file);
    config.certificates = vec![further(&dir, &ca, "a", &["x.example"]).0, further(&dir, &ca, "b", &["X.example"]).0];
    let error = Tls::load(&config).unwrap_err().to_string();
    assert_eq!(error, "two of tls.certificates are for x.example: which of them to show could not be told");
    config.certificates = vec![further(&dir, &ca, "a", &[]).0];
    let error = Tls::load(&config).unwrap_err().to_string();
    assert!(error.ends_with("a.crt has no DNS name, so nobody could ask for it"), "{error}");

    config.certificates = vec![further(&dir, &ca, "a", &["x.example"]).0];
    let tls = Tls::load(&config).unwrap();
    let shown = || tls.current().certificates.at(1).server_end_point.clone();
    let first = shown();
    further(&dir, &ca, "a", &["x.example"]);
    tls.reload().unwrap();
    let second = shown();
    assert_ne!(first, second);
    dir.write("a.key", "");
    assert!(matches!(tls.reload(), Err(TlsError::NoKey { .. })));
    assert_eq!(shown(), second);
}

/// A server that asks for certificates of `ca`, with these rules and this revocation list.
fn asking(dir: &Dir, ca: &Ca, ask: ClientCertificates, map: &str, list: Option<String>) -> TlsConfig {
    let (certificate_file, key_file) = ca.server(&["localhost"]).write(dir, "server");
    let client = ClientCertificatesConfig {
        client_ca_file: dir.write("clients-ca.crt", ca.certificate.pem()),
        client_certificates: ask,
        client_crl_file: list.map(|list| dir.write("clients.crl", list)),
        client_map_file: Some(dir.write("clients.toml", map)),
    };
    TlsConfig { client: Some(client), ..TlsConfig::new(certificate_file, key_file) }
}

#[test]
fn certificates_of_clients_are_verified() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let (one, revoked, foreign) =
        (ca.client("one", "urn:one", 7), ca.client("two", "urn:two", 8), stranger.client("one", "urn:one", 7));
    let server = ca.server(&["localhost"]);
    use ClientCertificates::{Optional, Require};
    type Row<'a> = (ClientCertificates, Option<(&'a [u64], i32)>, Option<&'a Issued>, bool);
    let rows: &[Row<'_>] = &[
        (Optional, None, None, true),
        (Optional, None, Some(&one), true),
        (Optional, None, Some(&foreign), false),
        // A server's certificate is not made for this.
        (Optional, None, Some(&server), true),
        (Require, None, None, false),
        (Require, None, Some(&one), true),
        (Require, Some((&[8], 2090)), Some(&one), true),
        (Require, Some((&[8], 2090)), Some(&revoked), false),
        (Optional, Some((&[8], 2090)), Some(&revoked), false),
        // A list that is over.
        (Optional, Some((&[8], 2022)), Some(&one), false),
        (Optional, Some((&[8], 2022)), None, true),
    ];
    for (row, (ask, list, own, passes)) in rows.iter().enumerate() {
        let dir = Dir::new();
        let list = list.map(|(serials, year)| ca.revoke(serials, year));
        let tls = Tls::load(&asking(&dir, &ca, *ask, "", list)).unwrap();
        for version in rustls::ALL_VERSIONS {
            let client = client_with(&ca, *own, &[version]);
            let outcome = handshake(&client, &tls.current().handshake(Opening::Negotiated).config);
            // In TLS 1.3 a client is done before the server has looked at its certificate.
            assert_eq!(outcome.is_ok(), *passes, "row {row} {version:?}: {:?}", outcome.err());
            // The admin port asks nobody.
            handshake(&client_with(&ca, None, &[version]), &tls.current().admin).unwrap();
        }
    }
}

/// A ticket would carry the certificate past its revocation, so there are none where certificates are asked for.
#[test]
fn nothing_is_resumed_where_certificates_of_clients_are_asked_for() {
    let (dir, ca) = (Dir::new(), Ca::new());
    let tls = Tls::load(&asking(&dir, &ca, ClientCertificates::Optional, "", None)).unwrap();
    let own = ca.client("one", "urn:one", 7);
    for version in rustls::ALL_VERSIONS {
        let client = client_with(&ca, Some(&own), &[version]);
        for _ in 0..2 {
            let (mut client, mut server) = handshake(&client, &tls.current().negotiated).unwrap();
            pass(&mut server, &mut client).unwrap();
            assert_ne!(server.handshake_kind(), Some(rustls::HandshakeKind::Resumed), "{version:?}");
            assert!(server.peer_certificates().is_some());
        }
    }
}

#[test]
fn what_a_certificate_is_worth_for_a_login() {
    let (dir, ca) = (Dir::new(), Ca::new());
    let (one, two) = (ca.client("one", "urn:one", 7), ca.client("two", "urn:two", 8));
    let digest: String = digest::digest(&digest::SHA256, two.certificate.der())
        .as_ref()
        .iter()
        .map(|byte| format!("{byte:02X}"))
        .collect();
    let map = format!(
        "[a]\nuri = 'urn:one'\nlogins = ['alone', 'both', 'either']\nauth = 'cert'\n\
         [b]\ncommon_name = 'one'\nlogins = ['both', 'with']\nauth = 'cert+scram'\n\
         [c]\nsha256 = '{digest}'\nlogins = ['either']\nauth = 'cert+scram'\n\
         [d]\ndns = 'one'\nlogins = ['never']\nauth = 'cert'\n"
    );
    let tls = Tls::load(&asking(&dir, &ca, ClientCertificates::Optional, &map, None)).unwrap();
    let [one, two] = [one, two].map(|issued| ClientCertificate::read(issued.certificate.der()));
    use clients::Demand::{Impossible, Nothing, Password};
    for (login, none, with_one, with_two) in [
        ("alone", Impossible, Nothing, Impossible),
        ("both", Impossible, Password, Impossible),
        ("with", Impossible, Password, Impossible),
        ("either", Impossible, Nothing, Password),
        ("never", Impossible, Impossible, Impossible),
        ("another", Password, Password, Password),
    ] {
        let demand = |certificate| tls.current().bindings.demand(login, certificate);
        assert_eq!([None, Some(&one), Some(&two)].map(demand), [none, with_one, with_two], "{login}");
    }
    // The map is read again with the rest, and a wrong one changes nothing.
    dir.write("clients.toml", "[a]\nurl = 'urn:one'\nlogins = ['alone']\nauth = 'cert'\n");
    let error = tls.reload().unwrap_err().to_string();
    assert!(error.contains("clients.toml: [a] needs exactly one of"), "{error}");
    assert_eq!(tls.current().bindings.demand("alone", None), Impossible);
    dir.write("clients.toml", "");
    tls.reload().unwrap();
    assert_eq!(tls.current().bindings.demand("alone", None), Password);
    // Rubbish says nothing of anybody.
    assert_eq!(tls.current().bindings.demand("another", Some(&ClientCertificate::read(b"rubbish"))), Password);
}

#[test]
fn files_about_clients_that_cannot_be_used() {
    let (dir, ca) = (Dir::new(), Ca::new());
    for (file, content, expect) in [
        ("clients-ca.crt", "", "clients-ca.crt holds no certificate"),
        ("clients.crl", "", "clients.crl holds no revocation list"),
        (
            "clients.crl",
            "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
            "certificates of clients cannot be verified",
        ),
        ("clients.toml", "[a", "the client map cannot be used: "),
    ] {
        let config = asking(&dir, &ca, ClientCertificates::Optional, "", Some(ca.revoke(&[], 2090)));
        Tls::load(&config).unwrap();
        dir.write(file, content);
        let error = Tls::load(&config).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} should say {expect:?}");
    }
}
