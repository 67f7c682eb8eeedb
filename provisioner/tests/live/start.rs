//! The first start, and who gets in.

use std::os::unix::fs::PermissionsExt as _;

use portcullis_tests::cluster::Cluster;
use serde_json::{Value, json};

use crate::fixture::{INGESTION, Sidecar, config, home, new_catalog, rows};

#[tokio::test]
async fn the_admin_key_is_minted_once_and_only_its_hash_is_kept() {
    let sidecar = Sidecar::start().await;
    let file = sidecar.home.join("admin.key");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let catalog = Cluster::shared().client("postgres", &sidecar.catalog).await;
    let stored = rows(&catalog, "SELECT k::text FROM catalog.api_key k").await;
    assert_eq!(stored.len(), 1);
    let secret = sidecar.key.rsplit('_').next().unwrap();
    assert!(secret.len() >= 40 && !stored[0].contains(secret), "{stored:?}");
    let audit = rows(&catalog, "SELECT detail::text FROM observed.audit").await.concat();
    assert!(!audit.contains(secret));

    std::fs::remove_file(&file).unwrap();
    let Cluster { port, password, .. } = sidecar.cluster;
    let server = format!("host = \"127.0.0.1\"\nport = {port}\nuser = \"postgres\"\npassword = \"{password}\"");
    portcullis_provisioner::start(&config(&sidecar.home, &sidecar.catalog, &server, "")).await.unwrap();
    assert!(!file.exists(), "a second start mints nothing");
    assert_eq!(rows(&catalog, "SELECT count(*) FROM catalog.api_key").await, ["1"]);
}

#[tokio::test]
async fn a_key_that_cannot_be_handed_over_is_not_minted() {
    let (home, catalog) = (home(), new_catalog());
    let server = "host = \"127.0.0.1\"\nport = 1\nuser = \"postgres\"";
    let mut config = config(&home, &catalog, server, "");
    let taken = home.join("missing/admin.key");
    config.bootstrap.admin_key_file = Some(taken);
    let error = portcullis_provisioner::start(&config).await.unwrap_err();
    assert!(error.to_string().contains("bootstrap.admin_key_file"), "{error}");
    let client = Cluster::shared().client("postgres", &catalog).await;
    assert_eq!(rows(&client, "SELECT count(*) FROM catalog.api_key").await, ["0"]);
}

#[tokio::test]
async fn who_gets_in() {
    let sidecar = Sidecar::start().await;
    let key = &sidecar.key;
    let mut changed = key.clone().into_bytes();
    changed[25] = if changed[25] == b'x' { b'y' } else { b'x' };
    let (other, _) = (sidecar.key(&["workspace.view"], None).await, ());
    let unknown = {
        let (_, text) = portcullis_provisioner::ops::keys::make("x", &["admin"], jiff::Timestamp::now()).unwrap();
        text.expose().clone()
    };
    let bearer = |key: &str| format!("Bearer {key}");
    for (authorization, status, code) in [
        (None, 401, "auth_required"),
        (Some(bearer("")), 401, "unauthorized"),
        (Some("Bearer".to_owned()), 401, "unauthorized"),
        (Some(format!("Basic {key}")), 401, "unauthorized"),
        (Some(bearer(&String::from_utf8(changed).unwrap())), 401, "unauthorized"),
        (Some(bearer(&unknown)), 401, "unauthorized"),
        (Some(bearer(&key[..key.len() - 1])), 401, "unauthorized"),
        (Some(bearer(&other)), 403, "session_required"),
    ] {
        let headers: Vec<(&str, &str)> = authorization.iter().map(|value| ("authorization", value.as_str())).collect();
        let answer = sidecar.call("POST", &format!("{INGESTION}/provision"), &headers, "").await;
        answer.refused(status, code);
        assert_eq!(answer.headers.contains_key("www-authenticate"), status == 401, "{authorization:?}");
    }
    let lower = format!("bearer {key}");
    assert_eq!(sidecar.call("GET", "/workspaces", &[("authorization", &lower)], "").await.status, 200);
    sidecar
        .call("GET", "/workspaces", &[("authorization", &lower), ("authorization", &lower)], "")
        .await
        .refused(401, "auth_required");
}

#[tokio::test]
async fn a_revoked_or_expired_key_is_refused() {
    let sidecar = Sidecar::start().await;
    let store = &sidecar.provisioner.store;
    let key = sidecar.key(&["admin"], None).await;
    let bearer = format!("Bearer {key}");
    assert_eq!(sidecar.call("GET", "/workspaces", &[("authorization", &bearer)], "").await.status, 200);
    let id = portcullis_catalog::ApiKeyId::parse(&key[..19]).unwrap();
    store.revoke_api_key(&crate::fixture::actor(), &id, jiff::Timestamp::now()).await.unwrap();
    sidecar.call("GET", "/workspaces", &[("authorization", &bearer)], "").await.refused(401, "unauthorized");
}

#[tokio::test]
async fn health_is_open_and_every_answer_has_a_request_id() {
    let sidecar = Sidecar::start().await;
    for (path, status) in [("/livez", 200), ("/readyz", 200), ("/nothing", 404), ("/workspaces", 401)] {
        let answer = sidecar.call("GET", path, &[("x-request-id", "mine-1")], "").await;
        assert_eq!(answer.status, status, "{path}");
        assert_eq!(answer.headers["x-request-id"], "mine-1");
        assert_eq!(answer.headers["cache-control"], "no-store");
    }
    let odd = sidecar.call("GET", "/livez", &[("x-request-id", "a b\tc")], "").await;
    assert!(odd.headers["x-request-id"].to_str().unwrap().starts_with("req_"));
    sidecar.admin("GET", "/nothing", Value::Null).await.refused(404, "not_found");
    sidecar.admin("PUT", "/workspaces", json!({})).await.refused(405, "method_not_allowed");
}

#[tokio::test]
async fn bodies_are_bounded_and_must_be_objects() {
    let sidecar = Sidecar::start().await;
    let bearer = format!("Bearer {}", sidecar.key);
    let long = format!("{{\"name\":\"{}\"}}", "n".repeat(2 << 20));
    for (body, status, code) in [
        (long.as_str(), 413, "too_long"),
        ("[]", 400, "bad_request"),
        ("{", 400, "bad_request"),
        ("\"x\"", 400, "bad_request"),
        ("{\"name\":1}", 400, "bad_request"),
    ] {
        sidecar.call("POST", "/workspaces", &[("authorization", &bearer)], body).await.refused(status, code);
    }
}
