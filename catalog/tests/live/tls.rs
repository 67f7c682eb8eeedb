//! TLS to the catalog: verified whenever it is asked for.

use std::{fs, path::PathBuf};

use portcullis_catalog::{CatalogError, Secret, Source, Store};
use portcullis_tests::{
    certificates::Authority,
    cluster::{Cluster, SMALL},
};

use crate::fixture::{Catalog, PROVISIONER};

/// Lets the cluster speak TLS with a certificate for `localhost`; the authority's PEM files: right, wrong.
async fn with_tls(cluster: &Cluster) -> [PathBuf; 2] {
    let (right, wrong) = (Authority::new(), Authority::new());
    let pem = right.issue_for(&["localhost"]);
    let certificate = cluster.put("postgres.crt", &pem.certificate);
    let key = cluster.put("postgres.key", &pem.key);
    let [certificate, key] = [&certificate, &key].map(|path| path.to_str().unwrap());
    let settings = [("ssl_cert_file", certificate), ("ssl_key_file", key), ("ssl", "on")];
    cluster.reload(&settings, "host all all 127.0.0.1/32 scram-sha-256").await;
    [("ca.pem", &right), ("wrong.pem", &wrong)].map(|(name, authority)| {
        let file = cluster.home.join(name);
        fs::write(&file, &authority.certificate).unwrap();
        file
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalogs_certificate_is_verified() {
    let cluster = Cluster::start(SMALL);
    let catalog = Catalog::within(&cluster).await;
    let [right, wrong] = with_tls(&cluster).await;
    for (host, mode, ca_file, connects) in [
        ("localhost", "verify-full", Some(&right), true),
        ("localhost", "require", Some(&right), true),
        ("localhost", "verify-full", Some(&wrong), false),
        ("localhost", "verify-full", None, false),
        ("localhost", "require", None, false),
        ("127.0.0.1", "verify-full", Some(&right), false),
        ("localhost", "disable", None, true),
    ] {
        let url = format!("postgres://{PROVISIONER}@{host}:{}/{}?sslmode={mode}", cluster.port, catalog.database);
        let password = Some(Secret::new(cluster.provisioner_password.clone()));
        let source = Source { password, ca_file: ca_file.cloned(), ..Source::new(url) };
        let store = Store::connect(&source, 2).await;
        assert_eq!(store.is_ok(), connects, "{host} {mode} {ca_file:?}: {store:?}");
    }
    let missing = Source { ca_file: Some("/nowhere/ca.pem".into()), ..Source::new("host=h sslmode=require") };
    let error = Store::connect(&missing, 2).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Address(text) if text.contains("/nowhere/ca.pem")), "{error:?}");
}
