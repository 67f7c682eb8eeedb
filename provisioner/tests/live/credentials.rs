//! D14–D17: what is told, revealed and rotated.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use portcullis_catalog::{VersionState, Workspace};
use portcullis_tests::cluster::Cluster;
use portcullis_wire::scram;
use serde_json::{Value, json};

use crate::fixture::{Sidecar, rows};

/// Which live versions of the kind's login this password opens now.
async fn opens(sidecar: &Sidecar, workspace: &Workspace, kind: &str, password: &str) -> Vec<i32> {
    let record = sidecar.provisioner.store.login(&workspace.id, kind).await.unwrap().unwrap();
    let keys = scram::derive(password, &record.login.salt, record.login.iterations);
    let live = record.login.accepted(Timestamp::now());
    live.filter(|version| version.stored_key == keys.stored_key).map(|version| version.version).collect()
}

#[tokio::test]
async fn d14_metadata() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "override").await;
    let answer = sidecar.ingestion("acme", "GET", "/connection-uris/metadata", Value::Null).await.expect(200);
    assert_eq!(answer["project"], json!({"id": "p1", "name": "Test"}));
    let database = json!({"name": workspace.database, "host": "gate.example.com", "port": 6432, "sslmode": "require"});
    assert_eq!(answer["database"], database);
    let digits = workspace.id.digits();
    let seen: Vec<Value> = answer["roles"]
        .as_array()
        .unwrap()
        .iter()
        .map(|role| {
            assert!(role["created_at"].is_string() && role["rotated_at"].is_null() && role["last_used_at"].is_null());
            json!([role["kind"], role["role"], role["username"], role["credential_version"]])
        })
        .collect();
    let want = [
        json!(["read", "dl_tenant_read", format!("tdb_{digits}_read"), 1]),
        json!(["runtime", "dl_tenant_override", format!("tdb_{digits}"), 1]),
    ];
    assert_eq!(seen, want);
}

#[tokio::test]
async fn d14_d15_only_when_active() {
    let sidecar = Sidecar::start().await;
    sidecar.record("acme", "storage").await;
    for (method, path, body) in [
        ("GET", "/connection-uris/metadata", Value::Null),
        ("POST", "/connection-uris/reveal", json!({"kind": "customer_db"})),
        ("POST", "/connection-uris/rotate", json!({"kind": "customer_db"})),
    ] {
        sidecar.ingestion("acme", method, path, body).await.refused(409, "workspace_not_active");
    }
}

#[tokio::test]
async fn d15_d17_reveal_returns_a_pooled_uri() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let reveal = async |body: Value| sidecar.ingestion("acme", "POST", "/connection-uris/reveal", body).await;
    let answer = reveal(json!({"kind": "customer_db"})).await;
    assert_eq!(answer.headers["cache-control"], "no-store");
    let body = answer.expect(200);
    let (user, password) = (format!("tdb_{}", workspace.id.digits()), body["password"].as_str().unwrap());
    let want = json!({
        "kind": "customer_db", "pooled": true, "username": user, "password": password, "host": "gate.example.com",
        "port": 6432, "database": workspace.database, "credential_version": 1,
        "uri": format!("postgresql://{user}:{password}@gate.example.com:6432/{}?sslmode=require", workspace.database),
    });
    assert_eq!(body, want);
    assert_eq!(opens(&sidecar, &workspace, "customer_db", password).await, [1]);
    assert_eq!(reveal(json!({"kind": "customer_db"})).await.expect(200), want, "it can be revealed again");
    for format in ["libpq", "psql", "jdbc", "dotnet", "sqlalchemy", "env", "pgpass", "service", "kubernetes"] {
        let body = reveal(json!({"kind": "customer_db", "format": format})).await.expect(200);
        let text = body["text"].as_str().unwrap();
        assert!(text.contains(password) && text.contains(&user) && text.contains("gate.example.com"), "{format}");
    }
    for (body, status, code) in [
        (json!({}), 400, "bad_request"),
        (json!({"kind": "customer_db", "format": "yaml"}), 400, "bad_request"),
        (json!({"kind": "customer_db", "fromat": "jdbc"}), 400, "bad_request"),
        (json!({"kind": "runtime"}), 400, "bad_request"),
        (json!({"kind": "dl_platform_runtime"}), 403, "forbidden"),
    ] {
        let refused = reveal(body.clone()).await.refused(status, code);
        if body["kind"] == "runtime" {
            assert_eq!(refused["allowed"], json!(["customer_db"]), "C1: the allowed ones are listed");
        }
    }
    let catalog = Cluster::shared().client("postgres", &sidecar.catalog).await;
    let audit = rows(&catalog, "SELECT action || detail FROM observed.audit").await.concat();
    assert!(audit.contains("login.reveal") && !audit.contains(password));
}

#[tokio::test]
async fn c2_the_platform_role_is_never_revealed() {
    let sidecar = Sidecar::start().await;
    sidecar.create("acme", "override").await;
    for kind in ["dl_platform_runtime", "platform"] {
        for path in ["/connection-uris/reveal", "/connection-uris/rotate"] {
            sidecar.ingestion("acme", "POST", path, json!({"kind": kind})).await.refused(403, "forbidden");
        }
    }
    for kind in ["read", "runtime"] {
        sidecar.ingestion("acme", "POST", "/connection-uris/reveal", json!({"kind": kind})).await.expect(200);
    }
}

#[tokio::test]
async fn d16_d17_rotate() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let rotate = async |body: Value| sidecar.ingestion("acme", "POST", "/connection-uris/rotate", body).await;
    let password = |body: &Value| body["password"].as_str().unwrap().to_owned();
    let revealed = sidecar.ingestion("acme", "POST", "/connection-uris/reveal", json!({"kind": "customer_db"})).await;
    let first = password(&revealed.expect(200));

    let before = Timestamp::now();
    let body = rotate(json!({"kind": "customer_db", "grace_seconds": 600})).await.expect(200);
    let (second, until) = (password(&body), body["previous_valid_until"].as_str().unwrap());
    assert_eq!((&body["credential_version"], &body["sessions_terminated"]), (&json!(2), &json!(0)));
    assert_eq!(body["acknowledged"], json!({"all": true, "proxies": 0, "missing": []}));
    let grace = until.parse::<Timestamp>().unwrap().duration_since(before).as_secs();
    assert!((599..=601).contains(&grace), "{grace}");
    assert_eq!(opens(&sidecar, &workspace, "customer_db", &first).await, [1]);
    assert_eq!(opens(&sidecar, &workspace, "customer_db", &second).await, [2]);
    let metadata = sidecar.ingestion("acme", "GET", "/connection-uris/metadata", Value::Null).await.expect(200);
    let role = &metadata["roles"][0];
    assert_eq!((&role["credential_version"], &role["previous_valid_until"]), (&json!(2), &json!(until)));
    assert!(role["rotated_at"].is_string());

    // A second rotation during a grace revokes the oldest at once.
    let third = password(&rotate(json!({"kind": "customer_db", "grace_seconds": 600})).await.expect(200));
    for (password, want) in [(&first, vec![]), (&second, vec![2]), (&third, vec![3])] {
        assert_eq!(opens(&sidecar, &workspace, "customer_db", password).await, want);
    }

    // Without a grace only the new one is left.
    let body = rotate(json!({"kind": "customer_db", "terminate_sessions": true})).await.expect(200);
    assert_eq!(body["previous_valid_until"], Value::Null);
    assert_eq!(opens(&sidecar, &workspace, "customer_db", &third).await, [0; 0]);
    let record = sidecar.provisioner.store.login(&workspace.id, "customer_db").await.unwrap().unwrap();
    assert_eq!(record.login.session_epoch, 1, "terminate_sessions raises the epoch");
    assert_eq!(record.versions.iter().filter(|version| version.state != VersionState::Revoked).count(), 1);

    for (body, status, code) in [
        (json!({"kind": "customer_db", "grace_seconds": 604_801}), 422, "invalid"),
        (json!({"kind": "customer_db", "grace_seconds": -1}), 422, "invalid"),
        (json!({"kind": "customer_db", "grace_seconds": 1.5}), 422, "invalid"),
        (json!({"kind": "customer_db", "grace_seconds": "60"}), 422, "invalid"),
        (json!({"kind": "customer_db", "terminate_sessions": "yes"}), 400, "bad_request"),
        (json!({"kind": "customer_db", "grace": 1}), 400, "bad_request"),
    ] {
        rotate(body).await.refused(status, code);
    }
    rotate(json!({"kind": "customer_db", "grace_seconds": 604_800})).await.expect(200);
}

#[tokio::test]
async fn d16_rotations_at_the_same_time_all_succeed() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let rotate = || sidecar.ingestion("acme", "POST", "/connection-uris/rotate", json!({"kind": "customer_db"}));
    let (a, b, c) = tokio::join!(rotate(), rotate(), rotate());
    let mut versions: Vec<i64> =
        [a, b, c].iter().map(|answer| answer.expect(200)["credential_version"].as_i64().unwrap()).collect();
    versions.sort_unstable();
    assert_eq!(versions, [2, 3, 4]);
    let record = sidecar.provisioner.store.login(&workspace.id, "customer_db").await.unwrap().unwrap();
    assert_eq!(record.login.versions.len(), 1);
}

#[tokio::test]
async fn rotate_waits_a_second_for_a_proxy_that_does_not_answer_and_says_so() {
    let sidecar = Sidecar::start().await;
    sidecar.create("acme", "storage").await;
    let catalog = Cluster::shared().client("postgres", &sidecar.catalog).await;
    catalog.batch_execute("INSERT INTO observed.proxy (id, name, version) VALUES ('p', 'deaf', '1')").await.unwrap();
    let started = Instant::now();
    let body = json!({"kind": "customer_db"});
    let body = sidecar.ingestion("acme", "POST", "/connection-uris/rotate", body).await.expect(200);
    assert!(started.elapsed() >= Duration::from_millis(900), "{:?}", started.elapsed());
    assert_eq!(body["acknowledged"], json!({"all": false, "proxies": 1, "missing": ["deaf"]}));
}
