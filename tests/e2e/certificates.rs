//! Certificates: those that the proxy shows by name, and those of clients, which may be needed to log in.

use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf, process::Stdio};

use portcullis_tests::{
    Options, Stack,
    certificates::{Authority, Pem},
    customer::{Credentials, connect, explain, tls},
    raw::{Wire, tags},
    wait::until,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use tokio::process::Command;
use tokio_postgres::config::ChannelBinding;

use crate::doors::Place;

fn write(place: &Place, name: &str, text: &str) -> PathBuf {
    let path = place.0.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path
}

fn quoted(path: &std::path::Path) -> String {
    format!("{:?}", path.display().to_string())
}

fn der(pem: &str) -> Vec<u8> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).next().unwrap().unwrap().to_vec()
}

/// P7, P11: with TLS for a name of its own, and SCRAM bound to the certificate that was shown.
#[tokio::test]
async fn the_name_that_a_client_asks_for_chooses_the_certificate() {
    let (place, authority) = (Place::new(), Authority::new());
    let eu = authority.issue_for(&["eu.example", "*.eu.example"]);
    let (certificate, key) = (write(&place, "eu.crt", &eu.certificate), write(&place, "eu.key", &eu.key));
    let options = Options::default()
        .proxy("tls.certificates.eu.certificate_file", quoted(&certificate))
        .proxy("tls.certificates.eu.key_file", quoted(&key));
    let mut stack = Stack::private(options).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let default = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap().certificate;
    assert_ne!(default, der(&eu.certificate));

    let mut config = credentials.config();
    config.channel_binding(ChannelBinding::Require);
    for (name, ca) in [
        ("localhost", &credentials.ca_pem),
        ("eu.example", &authority.certificate),
        ("a.eu.example", &authority.certificate),
    ] {
        let mut config = tokio_postgres::Config::clone(&config);
        config = named(&config, &credentials, name);
        let client = connect(&config, ca).await.unwrap_or_else(|error| panic!("{name}: {}", explain(&error)));
        client.batch_execute("SELECT 1").await.unwrap();
    }
    let presented = async |name| {
        let wire = Wire::direct_with(credentials.port, tls(&authority.certificate, &[b"postgresql"]), name).await;
        wire.ok().map(|wire| wire.certificate)
    };
    assert_eq!(presented("eu.example").await, Some(der(&eu.certificate)));
    assert_eq!(presented("elsewhere.example").await, None, "that is the default one, which this client does not trust");

    // Reloaded with the rest.
    let next = authority.issue_for(&["eu.example"]);
    write(&place, "eu.crt", &next.certificate);
    write(&place, "eu.key", &next.key);
    stack.proxy().signal("HUP");
    until("the new certificate", async || (presented("eu.example").await? == der(&next.certificate)).then_some(()))
        .await;
}

fn named(config: &tokio_postgres::Config, credentials: &Credentials, name: &str) -> tokio_postgres::Config {
    let mut named = tokio_postgres::Config::new();
    named.host(name).hostaddr([127, 0, 0, 1].into()).port(credentials.port);
    named.user(&credentials.username).password(&credentials.password).dbname(&credentials.database);
    named.ssl_mode(tokio_postgres::config::SslMode::Require).channel_binding(config.get_channel_binding());
    named
}

/// TLS with a client certificate.
fn showing(ca_pem: &str, own: &Pem) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let chain = CertificateDer::pem_slice_iter(own.certificate.as_bytes()).map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_slice(own.key.as_bytes()).unwrap();
    let mut config = builder.with_root_certificates(roots).with_client_auth_cert(chain, key).unwrap();
    config.alpn_protocols = vec![b"postgresql".to_vec()];
    config
}

/// Logs in with this certificate, or without; an error is the server's.
async fn login(credentials: &Credentials, own: Option<&Pem>) -> Result<Wire, String> {
    let config =
        own.map_or_else(|| tls(&credentials.ca_pem, &[b"postgresql"]), |own| showing(&credentials.ca_pem, own));
    let mut wire = Wire::direct_with(credentials.port, config, "localhost").await.map_err(|error| error.to_string())?;
    wire.authenticate(credentials, &[]).await?;
    Ok(wire)
}

#[tokio::test]
async fn certificates_of_clients_open_the_logins_that_they_are_mapped_to() {
    let (place, authority) = (Place::new(), Authority::new());
    let (right, other) = (authority.issue_client("urn:reporting", 7), authority.issue_client("urn:other", 8));
    let foreign = Authority::new().issue_client("urn:reporting", 7);
    let ca = write(&place, "ca.crt", &authority.certificate);
    let (map, list) = (write(&place, "map.toml", ""), write(&place, "list.crl", &authority.revoke(&[])));
    let options = Options::default()
        .proxy("tls.client_ca_file", quoted(&ca))
        .proxy("tls.client_map_file", quoted(&map))
        .proxy("tls.client_crl_file", quoted(&list));
    let mut stack = Stack::private(options).await;
    let workspace = stack.workspace("override").await;
    let (bound, free) = (workspace.reveal("read").await, workspace.reveal("runtime").await);
    let wrong = Credentials { password: "wrong".to_owned(), ..bound.clone() };
    let unknown = Credentials { username: "tdb_0123456789abcdef".to_owned(), ..bound.clone() };

    // Nothing is mapped yet: a certificate of the authority is no harm and no use.
    login(&bound, None).await.unwrap();
    login(&bound, Some(&right)).await.unwrap();
    assert!(login(&bound, Some(&foreign)).await.is_err(), "of another authority");

    // Instead of the password. Without the certificate the password is worth nothing, and the answer is anybody's.
    let rule = |auth| format!("[reporting]\nuri = 'urn:reporting'\nlogins = ['{}']\nauth = '{auth}'\n", bound.username);
    fs::write(&map, rule("cert")).unwrap();
    stack.proxy().signal("HUP");
    let refused = until("the map", async || login(&bound, None).await.err()).await;
    assert_eq!(refused, format!("28P01: password authentication failed for user \"{}\"", bound.username));
    let stranger = login(&unknown, None).await.unwrap_err();
    assert_eq!(stranger.replace(&unknown.username, ""), refused.replace(&bound.username, ""));
    assert_eq!(login(&bound, Some(&other)).await.err(), Some(refused.clone()));
    let mut wire = login(&wrong, Some(&right)).await.unwrap();
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    login(&free, None).await.unwrap();
    assert!(login(&unknown, Some(&right)).await.is_err());

    // libpq.
    let (certificate, key) = (write(&place, "own.crt", &right.certificate), write(&place, "own.key", &right.key));
    let output = Command::new("psql")
        .args(["-X", "-w", "-At", "-c", "SELECT 'here'", "-h", "localhost", "-U", &bound.username, &bound.database])
        .envs([("PGPORT", bound.port.to_string()), ("PGSSLMODE", "require".to_owned())])
        .envs([("PGSSLCERT", &certificate), ("PGSSLKEY", &key)])
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "here", "{output:?}");

    // Beside the password.
    fs::write(&map, rule("cert+scram")).unwrap();
    stack.proxy().signal("HUP");
    until("the other rule", async || login(&wrong, Some(&right)).await.err()).await;
    login(&bound, Some(&right)).await.unwrap();
    assert!(login(&bound, None).await.is_err() && login(&bound, Some(&other)).await.is_err());

    // A map that is not understood changes nothing.
    fs::write(&map, "[reporting]\nlogins = 1\n").unwrap();
    stack.proxy().signal("HUP");
    until("word of the bad map", async || stack.proxy_log().contains("[reporting]").then_some(())).await;
    assert!(login(&bound, None).await.is_err() && login(&bound, Some(&right)).await.is_ok());

    // Revoked: the certificate, and then the login itself.
    fs::write(&map, rule("cert")).unwrap();
    fs::write(&list, authority.revoke(&[8])).unwrap();
    stack.proxy().signal("HUP");
    until("the revocation", async || {
        let error = login(&free, Some(&other)).await.err()?;
        (!error.starts_with("28")).then_some(())
    })
    .await;
    login(&wrong, Some(&right)).await.unwrap();
    let catalog = stack.access.superuser("portcullis").await;
    let end = "WITH next AS (UPDATE catalog.revision SET value = value + 1 RETURNING value), \
                    login AS (UPDATE catalog.login SET revision = value FROM next WHERE username = $1 RETURNING id), \
                    ended AS (UPDATE catalog.login_version SET valid_until = now() - interval '1 s' FROM login WHERE login_id = id) \
               SELECT pg_notify('portcullis', value::text) FROM next";
    catalog.execute(end, &[&bound.username]).await.unwrap();
    stack.access.followed().await;
    assert_eq!(login(&wrong, Some(&right)).await.err(), Some(refused));
}

#[tokio::test]
async fn where_a_certificate_is_required_nobody_gets_in_without() {
    let (place, authority) = (Place::new(), Authority::new());
    let own = authority.issue_client("urn:anyone", 1);
    let ca = write(&place, "ca.crt", &authority.certificate);
    let options =
        Options::default().proxy("tls.client_ca_file", quoted(&ca)).proxy("tls.client_certificates", "\"require\"");
    let stack = Stack::private(options).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    assert!(login(&credentials, None).await.is_err());
    let mut wire = login(&credentials, Some(&own)).await.unwrap();
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    let wrong = Credentials { password: "wrong".to_owned(), ..credentials };
    assert!(login(&wrong, Some(&own)).await.err().is_some_and(|error| error.starts_with("28P01")));
}
