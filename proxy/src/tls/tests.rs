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

use super::*;
use crate::testing::{Chain, Dir};

/// A client and a server that have shaken hands in memory, or what the one who refused said.
fn handshake(client: &Arc<ClientConfig>, server: &Arc<ServerConfig>) -> Result<(Connection, Connection), String> {
    let name = ServerName::try_from("localhost").unwrap();
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
        assert_eq!(tls.current().server_end_point, expect, "{issuer:?} over {leaf:?}");
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
        let files = TlsConfig {
            certificate_file: dir.write("server.crt", certificate),
            key_file: dir.write("server.key", key),
        };
        let error = Tls::load(&files).unwrap_err().to_string();
        assert!(error.contains(expect), "{error:?} should say {expect:?}");
        assert!(!error.contains("BEGIN EC") && error.len() < 400, "{error}");
    }
    let dir = Dir::new();
    let files = TlsConfig { certificate_file: dir.path().join("absent.crt"), key_file: dir.path().join("absent.key") };
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
    assert_ne!(tls.current().server_end_point, first.server_end_point);
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
