//! `kill -9` of each part, and a restart: it works again without help, and nothing that was acknowledged is lost.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    customer::explain,
    wait::{until, within},
};

#[tokio::test]
async fn the_sidecar_dies() {
    let mut stack = Stack::private(Options::default()).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let session = credentials.connect().await;
    let (rotated, _) = workspace.rotate("customer_db", 600, false).await;
    stack.kill_sidecar();
    // Sessions and logins go on; what needs the sidecar says so.
    session.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    credentials.connect().await;
    rotated.connect().await;
    let answer = stack.access.get("/workspaces").send().await;
    assert!((502..=504).contains(&answer.status), "{} {}", answer.status, answer.text);
    stack.start_sidecar().await;
    stack.ready().await;
    assert_eq!(workspace.reveal("customer_db").await.password, rotated.password);
    workspace.rotate("customer_db", 0, false).await.0.connect().await;
}

#[tokio::test]
async fn the_sidecar_dies_while_it_creates_workspaces() {
    let mut stack = Stack::private(Options::default()).await;
    let access = stack.access.clone();
    let creating = tokio::spawn(async move {
        let mut created = Vec::new();
        for i in 0..1000 {
            let body = serde_json::json!({"name": format!("w{i}"), "database": "PostgreSQL", "profile": "storage"});
            match access.post("/workspaces", &body).try_send().await {
                Ok(answer) if answer.status == 201 => created.push(format!("w{i}")),
                _ => break,
            }
        }
        created
    });
    let access = stack.access.clone();
    until("some workspaces", async || {
        let count = access.get("/workspaces").send().await.body["count"].as_u64()?;
        (count >= 3).then_some(())
    })
    .await;
    stack.kill_sidecar();
    let created = creating.await.unwrap();
    stack.start_sidecar().await;
    stack.ready().await;
    // Everything acknowledged is there and opens; the one that was under way can be provisioned.
    let listed = stack.access.get("/workspaces").send().await.expect(200);
    let names: Vec<&str> = listed["workspaces"].as_array().unwrap().iter().filter_map(|w| w["name"].as_str()).collect();
    for name in &created {
        assert!(names.contains(&name.as_str()), "{name} was acknowledged and is gone");
    }
    for name in names {
        let none = serde_json::json!({});
        let answer = stack.access.post("/api/v2/ingestion/provision", &none).workspace(name).send().await;
        assert!(answer.status == 200 || answer.status == 201, "{name}: {}", answer.text);
        let reveal = serde_json::json!({"kind": "customer_db"});
        let body = stack.access.post("/api/v2/ingestion/connection-uris/reveal", &reveal).workspace(name).send().await;
        let body = body.expect(200);
        portcullis_tests::customer::Credentials::from_body(&body, &stack.access.ca_pem).connect().await;
    }
}

#[tokio::test]
async fn the_proxy_dies() {
    let mut stack = Stack::private(Options::default()).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let session = credentials.connect().await;
    session.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    session.batch_execute("INSERT INTO storage.t VALUES (1)").await.unwrap();
    session.batch_execute("BEGIN; INSERT INTO storage.t VALUES (2)").await.unwrap();
    stack.kill_proxy();
    until("the session's end", async || session.batch_execute("SELECT 1").await.err()).await;
    stack.start_proxy().await;
    stack.ready().await;
    let session = credentials.connect().await;
    // What was committed is there; the open transaction ended with its connection and holds no lock.
    let lock = session.batch_execute("LOCK TABLE storage.t IN ACCESS EXCLUSIVE MODE");
    let _ = within(Duration::from_secs(10), "the lock of a dead session", lock).await;
    let count: i64 = session.query_one("SELECT count(*) FROM storage.t", &[]).await.unwrap().get(0);
    assert_eq!(count, 1);
}

#[tokio::test]
async fn postgresql_dies() {
    let mut stack = Stack::private(Options::default()).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let session = credentials.connect().await;
    session.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    session.batch_execute("INSERT INTO storage.t VALUES (1)").await.unwrap();
    let (rotated, _) = workspace.rotate("customer_db", 600, false).await;
    stack.cluster().kill();
    let error =
        within(Duration::from_secs(30), "an answer without PostgreSQL", session.batch_execute("SELECT 1")).await;
    assert!(error.is_err());
    stack.cluster().restart().await;
    stack.ready().await;
    for credentials in [&credentials, &rotated] {
        let count = until("PostgreSQL through the gate", async || {
            let client = credentials.try_connect().await.ok()?;
            client.query_one("SELECT count(*) FROM storage.t", &[]).await.ok().map(|row| row.get::<_, i64>(0))
        })
        .await;
        assert_eq!(count, 1);
    }
    // The catalog was in the same cluster: changes go through again as well.
    let access = stack.access.clone();
    until("the sidecar's catalog", async || {
        let reveal = serde_json::json!({"kind": "customer_db"});
        let path = "/api/v2/ingestion/connection-uris/rotate";
        (access.post(path, &reveal).workspace(&workspace.name).send().await.status == 200).then_some(())
    })
    .await;
    let client = workspace.reveal("customer_db").await.connect().await;
    client.batch_execute("SELECT 1").await.unwrap_or_else(|error| panic!("{}", explain(&error)));
}

#[tokio::test]
async fn what_was_dropped_by_hand_is_repaired() {
    let stack = Stack::shared().await;
    let workspace = stack.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    credentials.connect().await.batch_execute("CREATE TABLE storage.kept AS SELECT 1 AS id").await.unwrap();
    let superuser = workspace.superuser().await;
    superuser.batch_execute("DROP SCHEMA dl_resolved CASCADE; DROP TABLE dl_override.person_overrides").await.unwrap();
    drop(superuser);
    let none = serde_json::json!({});
    let body =
        stack.access.post("/api/v2/ingestion/provision", &none).workspace(&workspace.name).send().await.expect(200);
    assert!(body["repaired"].as_array().is_some_and(|repaired| !repaired.is_empty()), "{body}");
    let client = credentials.connect().await;
    let people: i64 = client.query_one("SELECT count(*) FROM dl_resolved.people", &[]).await.unwrap().get(0);
    assert_eq!(people, crate::PEOPLE);
    assert_eq!(client.query_one("SELECT id FROM storage.kept", &[]).await.unwrap().get::<_, i32>(0), 1);
}

#[tokio::test]
async fn a_database_dropped_by_hand_is_made_again() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let server = workspace.access.superuser("postgres").await;
    server.batch_execute(&format!("DROP DATABASE \"{}\" WITH (FORCE)", credentials.database)).await.unwrap();
    let none = serde_json::json!({});
    let answer = stack.access.post("/api/v2/ingestion/provision", &none).workspace(&workspace.name).send().await;
    assert!(answer.status == 200 || answer.status == 201, "{}", answer.text);
    let client = credentials.connect().await;
    let people: i64 = client.query_one("SELECT count(*) FROM dl_resolved.people", &[]).await.unwrap().get(0);
    assert_eq!(people, 0);
    client.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
}
