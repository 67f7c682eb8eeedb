//! TLS to the catalog: verified whenever it is asked for.

use std::{fs, path::PathBuf, process::Command};

use portcullis_catalog::{CatalogError, Source, Store};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::{
    cluster::{Cluster, output},
    fixture::{Catalog, PROVISIONER},
};

fn authority() -> CertifiedIssuer<'static, KeyPair> {
    let mut parameters = CertificateParams::new(Vec::new()).unwrap();
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(parameters, KeyPair::generate().unwrap()).unwrap()
}

/// Lets the cluster speak TLS with a certificate for `localhost`; the authority's PEM files: right, wrong.
async fn with_tls(cluster: &Cluster) -> [PathBuf; 2] {
    let (right, wrong) = (authority(), authority());
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec!["localhost".to_owned()]).unwrap().signed_by(&key, &right).unwrap();
    let files = ["ca.pem", "wrong.pem"].map(|name| cluster.directory.join(name));
    fs::write(&files[0], right.pem()).unwrap();
    fs::write(&files[1], wrong.pem()).unwrap();
    let data = cluster.directory.join("data");
    fs::write(data.join("server.crt"), certificate.pem()).unwrap();
    fs::write(data.join("server.key"), key.serialize_pem()).unwrap();
    let owner = output(Command::new("stat").args(["-c", "%u:%g"]).arg(&data));
    output(Command::new("chown").arg(owner).arg(data.join("server.key")).arg(data.join("server.crt")));
    output(Command::new("chmod").arg("600").arg(data.join("server.key")));
    let client = cluster.client("postgres", "postgres").await;
    client.batch_execute("ALTER SYSTEM SET ssl = on").await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    crate::fixture::until("TLS is on", async || {
        let on = client.query_one("SHOW ssl", &[]).await.unwrap();
        on.get::<_, &str>(0) == "on"
    })
    .await;
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_catalogs_certificate_is_verified() {
    let cluster = Cluster::start();
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
        let source = Source { ca_file: ca_file.cloned(), ..Source::new(url) };
        let store = Store::connect(&source, 2).await;
        assert_eq!(store.is_ok(), connects, "{host} {mode} {ca_file:?}: {store:?}");
    }
    let missing = Source { ca_file: Some("/nowhere/ca.pem".into()), ..Source::new("host=h sslmode=require") };
    let error = Store::connect(&missing, 2).await.unwrap_err();
    assert!(matches!(&error, CatalogError::Address(text) if text.contains("/nowhere/ca.pem")), "{error:?}");
}
