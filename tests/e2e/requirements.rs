//! The contract over plain HTTP, by requirement.

use portcullis_tests::{
    Access, Stack, Workspace,
    api::Answer,
    customer::{Credentials, sqlstate},
};
use serde_json::{Value, json};

const INGESTION: &str = "/api/v2/ingestion";

async fn ingestion(workspace: &Workspace, method: &str, path: &str, body: &Value) -> Answer {
    let path = format!("{INGESTION}/{path}");
    let call = if method == "GET" { workspace.access.get(&path) } else { workspace.access.post(&path, body) };
    call.workspace(&workspace.name).send().await
}

/// The body of an error, whose shape is one for all families.
fn problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!((answer.status, answer.body["code"].as_str()), (status, Some(code)), "{}", answer.text);
    let kind = answer.headers.get("content-type").and_then(|value| value.to_str().ok()).unwrap_or_default();
    assert!(kind.starts_with("application/problem+json"), "{kind}");
    assert_eq!(answer.body["success"], false, "{}", answer.text);
    assert_eq!(answer.body["http_status"], status, "{}", answer.text);
    for member in ["error", "request_id"] {
        assert!(answer.body[member].is_string(), "no {member}: {}", answer.text);
    }
}

#[tokio::test]
async fn d12_status_tells_whether_it_is_provisioned_and_active() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let body = ingestion(&workspace, "GET", "status", &Value::Null).await.expect(200);
    assert_eq!(body["provisioned"], true, "{body}");
    assert_eq!(body["plane"]["status"], "active", "{body}");
    assert_eq!(body["workspace_id"], workspace.id, "{body}");
    assert_eq!(body["profile"], "storage", "{body}");
    assert_eq!(body["writable_schemas"], json!(["storage"]), "{body}");
    assert!(body["fork"].is_null() && body["plane"]["since"].is_string(), "{body}");
    let wanted = ["provisioned", "plane", "workspace_id", "profile", "writable_schemas", "fork"];
    assert!(wanted.iter().all(|key| body.get(key).is_some()), "{body}");
    let body =
        ingestion(&Stack::shared().await.workspace("override").await, "GET", "status", &Value::Null).await.expect(200);
    let mut schemas: Vec<&str> =
        body["writable_schemas"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    schemas.sort_unstable();
    assert_eq!(schemas, ["dl_override", "tenant_custom"], "{body}");
}

#[tokio::test]
async fn d13_provision_is_idempotent() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let body = ingestion(&workspace, "POST", "provision", &json!({})).await.expect(200);
    assert_eq!(body["created"], false, "{body}");
}

#[tokio::test]
async fn d14_metadata_describes_project_database_and_roles() {
    let stack = Stack::shared().await;
    for (profile, kinds) in [("storage", vec!["customer_db"]), ("override", vec!["read", "runtime"])] {
        let workspace = stack.workspace(profile).await;
        let credentials = workspace.reveal(kinds[0]).await;
        let body = ingestion(&workspace, "GET", "connection-uris/metadata", &Value::Null).await.expect(200);
        assert!(body["project"]["id"].is_string() && body["project"]["name"].is_string(), "{body}");
        let database = &body["database"];
        assert_eq!(database["name"], credentials.database, "{body}");
        assert_eq!(
            (&database["host"], &database["port"]),
            (&json!(credentials.host), &json!(credentials.port)),
            "{body}"
        );
        assert_eq!(database["sslmode"], "require", "{body}");
        let roles = body["roles"].as_array().unwrap();
        let mut listed: Vec<&str> = roles.iter().filter_map(|role| role["kind"].as_str()).collect();
        listed.sort_unstable();
        assert_eq!(listed, kinds, "{body}");
        for role in roles {
            assert!(
                role["role"].is_string() && role["username"].is_string() && role["created_at"].is_string(),
                "{role}"
            );
            assert_eq!(role["credential_version"], 1, "{role}");
            for key in ["rotated_at", "previous_valid_until", "last_used_at"] {
                assert!(role.get(key).is_some(), "no {key}: {role}");
            }
        }
        assert!(!body.to_string().contains(&credentials.password), "the password is in the metadata");
    }
}

#[tokio::test]
async fn d15_reveal_returns_a_pooled_uri() {
    let workspace = Stack::shared().await.workspace("override").await;
    for kind in ["read", "runtime"] {
        let answer = ingestion(&workspace, "POST", "connection-uris/reveal", &json!({"kind": kind})).await;
        assert_eq!(answer.headers.get("cache-control").and_then(|value| value.to_str().ok()), Some("no-store"));
        let body = answer.expect(200);
        assert_eq!((&body["kind"], &body["pooled"]), (&json!(kind), &json!(true)), "{kind}");
        assert_eq!(body["credential_version"], 1);
        let credentials = Credentials::from_body(&body, &workspace.access.ca_pem);
        assert!(
            credentials.password.len() >= 32 && credentials.password.bytes().all(|byte| byte.is_ascii_alphanumeric())
        );
        let wanted = format!(
            "postgresql://{}:{}@{}:{}/{}?sslmode=require",
            credentials.username, credentials.password, credentials.host, credentials.port, credentials.database
        );
        assert!(credentials.uri == wanted, "the URI has another form");
        credentials.connect().await.batch_execute("SELECT 1").await.unwrap();
        // Revealing again gives the same.
        assert!(workspace.reveal(kind).await.password == credentials.password);
    }
}

#[tokio::test]
async fn d15_unknown_kinds_are_refused_with_the_allowed_ones() {
    let stack = Stack::shared().await;
    for (profile, kind, status) in
        [("storage", "runtime", 400), ("override", "customer_db", 400), ("override", "dl_platform_runtime", 403)]
    {
        let workspace = stack.workspace(profile).await;
        for path in ["connection-uris/reveal", "connection-uris/rotate"] {
            let answer = ingestion(&workspace, "POST", path, &json!({"kind": kind})).await;
            problem(&answer, status, if status == 400 { "bad_request" } else { "forbidden" });
            let allowed = if profile == "storage" { "customer_db" } else { "runtime" };
            assert!(status == 403 || answer.text.contains(allowed), "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn d16_rotate_changes_the_password_and_not_the_user() {
    let workspace = Stack::shared().await.workspace("override").await;
    for kind in ["read", "runtime"] {
        let old = workspace.reveal(kind).await;
        let (new, body) = workspace.rotate(kind, 0, false).await;
        assert_eq!(body["credential_version"], 2, "version");
        assert!(new.username == old.username && new.password != old.password);
        assert!(body["previous_valid_until"].is_null() && body["sessions_terminated"] == 0);
        new.connect().await;
        assert_eq!(sqlstate(&old.try_connect().await.expect_err("refused")), "28P01");
    }
}

#[tokio::test]
async fn d16_grace_is_bounded() {
    let workspace = Stack::shared().await.workspace("storage").await;
    for body in [
        json!({"kind": "customer_db", "grace_seconds": 604_801}),
        json!({"kind": "customer_db", "grace_seconds": -1}),
        json!({"kind": "customer_db", "grace_seconds": "soon"}),
        json!({"kind": "customer_db", "grace": 5}),
        json!({"grace_seconds": 5}),
    ] {
        let answer = ingestion(&workspace, "POST", "connection-uris/rotate", &body).await;
        assert!(matches!(answer.status, 400 | 422), "{body}: {}", answer.text);
        assert_eq!(answer.body["success"], false, "{}", answer.text);
    }
    assert_eq!(
        workspace.reveal("customer_db").await.connect().await.query_one("SELECT 1", &[]).await.unwrap().len(),
        1
    );
}

#[tokio::test]
async fn d17_the_customer_db_login_is_revealed_and_rotated() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let old = workspace.reveal("customer_db").await;
    let hex = old.username.strip_prefix("tdb_").expect("C13");
    assert!(hex.len() == 16 && hex.bytes().all(|byte| byte.is_ascii_hexdigit()), "{}", old.username);
    let (new, _) = workspace.rotate("customer_db", 0, false).await;
    new.connect().await;
    assert_eq!(sqlstate(&old.try_connect().await.expect_err("refused")), "28P01");
}

#[tokio::test]
async fn d10_an_override_wins_column_by_column() {
    let workspace = Stack::shared().await.workspace("override").await;
    workspace.fill().await;
    let runtime = workspace.reveal("runtime").await.connect().await;
    let insert = "INSERT INTO dl_override.person_overrides (person_id, title, attrs) VALUES ('pe_000001', 'Präsidentin', '{\"vip\": true}')";
    runtime.batch_execute(insert).await.unwrap();
    let read = workspace.reveal("read").await.connect().await;
    let person = "SELECT title, full_name, attrs->>'vip', attrs->>'source' FROM dl_resolved.people WHERE person_id = 'pe_000001'";
    let row = read.query_one(person, &[]).await.unwrap();
    assert_eq!((row.get::<_, &str>(0), row.get::<_, &str>(2), row.get::<_, &str>(3)), ("Präsidentin", "true", "crm"));
    assert!(!row.get::<_, &str>(1).is_empty());
    runtime.batch_execute("DELETE FROM dl_override.person_overrides WHERE person_id = 'pe_000001'").await.unwrap();
    assert_ne!(read.query_one(person, &[]).await.unwrap().get::<_, Option<&str>>(0), Some("Präsidentin"));
}

#[tokio::test]
async fn d20_d21_roles_of_the_override_profile() {
    let workspace = Stack::shared().await.workspace("override").await;
    let read = workspace.reveal("read").await.connect().await;
    let runtime = workspace.reveal("runtime").await.connect().await;
    for (statement, may_read, may_run) in [
        ("SELECT count(*) FROM dl_resolved.people", true, true),
        ("SELECT count(*) FROM dl_override.person_overrides", false, true),
        ("SELECT count(*) FROM dl_cache.person_enrichments", false, false),
        ("SELECT count(*) FROM dl_meta.tenant_settings", false, false),
        ("UPDATE dl_override.person_overrides SET title = 'x'", false, true),
        ("DELETE FROM dl_override.company_overrides", false, true),
        ("TRUNCATE dl_override.person_overrides", false, false),
        ("DROP TABLE dl_override.person_overrides", false, false),
        ("CREATE TABLE tenant_custom.t (id int)", false, true),
        ("CREATE VIEW tenant_custom.v AS SELECT id FROM tenant_custom.t", false, true),
        ("CREATE TABLE storage.t (id int)", false, false),
        ("CREATE TABLE t (id int)", false, false),
    ] {
        for (who, client, may) in [("read", &read, may_read), ("runtime", &runtime, may_run)] {
            let answer = client.batch_execute(statement).await;
            assert_eq!(answer.is_ok(), may, "{who}: {statement}: {answer:?}");
            if let Err(error) = answer {
                assert_eq!(sqlstate(&error), "42501", "{who}: {statement}: {error:?}");
            }
        }
    }
}

#[tokio::test]
async fn t4_t10_workspaces_are_created_and_listed() {
    let stack = Stack::shared().await;
    let name = format!("t10-{}", portcullis_tests::cluster::random_hex().get(..8).unwrap());
    let body = json!({"name": name, "database": "PostgreSQL", "mode": "tenant"});
    let body = stack.access.post("/workspaces", &body).send().await.expect(201);
    assert_eq!((&body["success"], &body["http_status"], &body["code"]), (&json!(true), &json!(201), &json!("created")));
    assert_eq!(body["mode"], "tenant");
    for key in ["id", "database", "connection_string"] {
        assert!(body[key].is_string(), "no {key}");
    }
    let connection = &body["connection"];
    for key in ["host", "database", "user", "password"] {
        assert!(connection[key].is_string(), "no connection.{key}");
    }
    // T12: the database is called after the workspace; the string ends in sslmode=require.
    assert_eq!(connection["database"], format!("{name}_workspace"));
    assert!(body["connection_string"].as_str().unwrap().ends_with("?sslmode=require"));
    // T3, C14: a workspace with a mode and no profile is of profile `design`.
    let mut config = tokio_postgres::Config::new();
    config.host("localhost").hostaddr([127, 0, 0, 1].into()).port(stack.access.wire_port);
    config.user(connection["user"].as_str().unwrap()).password(connection["password"].as_str().unwrap());
    config.dbname(connection["database"].as_str().unwrap());
    let client = portcullis_tests::customer::connect(&config, &stack.access.ca_pem).await.unwrap();
    client.batch_execute("CREATE TABLE users (id int PRIMARY KEY, name text)").await.unwrap();
    client.batch_execute("INSERT INTO users VALUES (1, 'a')").await.unwrap();
    let list = stack.access.get("/workspaces").send().await.expect(200);
    let workspaces = list["workspaces"].as_array().unwrap();
    assert_eq!(list["count"], workspaces.len());
    let listed = workspaces.iter().find(|workspace| workspace["name"] == name.as_str()).expect("listed");
    for key in ["id", "name", "mode", "database", "created_at"] {
        assert!(listed[key].is_string(), "no {key}: {listed}");
    }
}

#[tokio::test]
async fn t7_t8_t9_bad_workspaces_are_refused() {
    let stack = Stack::shared().await;
    for body in [
        json!({"database": "PostgreSQL", "mode": "control"}),
        json!({"name": "a__b", "database": "PostgreSQL", "mode": "control"}),
        json!({"name": "", "database": "PostgreSQL", "mode": "control"}),
        json!({"name": "x".repeat(54), "database": "PostgreSQL", "mode": "control"}),
        json!({"name": "mine", "mode": "control"}),
        json!({"name": "mine", "database": "MySQL", "mode": "control"}),
        json!({"name": "mine", "database": "PostgreSQL", "mode": "other"}),
        json!({"name": "mine", "database": "PostgreSQL", "mode": "control", "profile": "none"}),
        json!({"name": "mine", "database": "PostgreSQL", "mode": "control", "colour": "red"}),
    ] {
        let answer = stack.access.post("/workspaces", &body).send().await;
        assert!(matches!(answer.status, 400 | 422), "{body}: {} {}", answer.status, answer.text);
        assert_eq!(answer.body["success"], false, "{}", answer.text);
    }
    let workspace = stack.workspace("storage").await;
    let again = json!({"name": workspace.name, "database": "PostgreSQL", "mode": "control"});
    problem(&stack.access.post("/workspaces", &again).send().await, 409, "conflict");
}

/// Every endpoint wants a key, a right one, and a workspace that exists.
#[tokio::test]
async fn d12_to_d17_need_a_key_and_a_workspace() {
    let access: Access = Stack::shared().await.access;
    for (method, path) in [
        ("GET", "status"),
        ("POST", "provision"),
        ("GET", "connection-uris/metadata"),
        ("POST", "connection-uris/reveal"),
        ("POST", "connection-uris/rotate"),
    ] {
        let path = format!("{INGESTION}/{path}");
        let body = if path.ends_with("provision") { json!({}) } else { json!({"kind": "customer_db"}) };
        let call = || if method == "GET" { access.get(&path) } else { access.post(&path, &body) };
        problem(&call().without_key().send().await, 401, "auth_required");
        let wrong = call().without_key().header("authorization", "Bearer pk_0123456789abcdef_wrong");
        assert_eq!(wrong.send().await.status, 401, "{path}");
        problem(&call().send().await, 400, "bad_request");
        problem(&call().workspace("there_is_none").send().await, 404, "not_found");
    }
    let bad = access.post(&format!("{INGESTION}/connection-uris/reveal"), &Value::Null).raw_body("{\"kind\":");
    assert_eq!(bad.workspace("x").send().await.body["success"], false);
    assert_eq!(access.get("/no/such/path").send().await.status, 404);
}
