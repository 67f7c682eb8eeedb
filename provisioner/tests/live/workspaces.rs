//! T4–T18, C7, C8, C13, C14.

use serde_json::{Value, json};

use crate::fixture::Sidecar;

#[tokio::test]
async fn t7_t8_t9_what_a_request_must_say() {
    let sidecar = Sidecar::start().await;
    let longest = "n".repeat(54);
    for (body, mention) in [
        (json!({}), "`name` is required"),
        (json!({"name": "a"}), "`database` is required"),
        (json!({"name": "a__b", "database": "PostgreSQL"}), "__"),
        (json!({"name": "", "database": "PostgreSQL"}), "empty"),
        (json!({"name": longest, "database": "PostgreSQL"}), "53 bytes"),
        (json!({"name": 7, "database": "PostgreSQL"}), "must be a string"),
        (json!({"name": "ws_0123456789abcdef", "database": "PostgreSQL"}), "id"),
        (json!({"name": "a", "database": "MySQL"}), "PostgreSQL"),
        (json!({"name": "a", "database": "MongoDB"}), "PostgreSQL"),
        (json!({"name": "a", "database": "Redis"}), "PostgreSQL"),
        (json!({"name": "a", "database": "PostgreSQL", "mode": "both"}), "`tenant` or `control`"),
        (json!({"name": "a", "database": "PostgreSQL", "profile": "nope"}), "storage, override, design"),
        (json!({"name": "a", "database": "PostgreSQL", "read_olny": true, "x": 1}), "read_olny, x"),
    ] {
        let refused = sidecar.admin("POST", "/workspaces", body.clone()).await.refused(400, "bad_request");
        assert!(refused["error"].as_str().unwrap().contains(mention), "{body}: {refused}");
    }
    assert_eq!(sidecar.admin("GET", "/workspaces", Value::Null).await.expect(200)["count"], 0);
}

#[tokio::test]
async fn c7_c14_mode_and_profile_by_default() {
    let sidecar = Sidecar::start().await;
    for (name, mode, profile, want) in [
        ("neither", None, None, ("tenant", "storage")),
        ("mode", Some("control"), None, ("control", "design")),
        ("profile", None, Some("override"), ("tenant", "override")),
        ("both", Some("tenant"), Some("storage"), ("tenant", "storage")),
    ] {
        let mut body = json!({"name": name, "database": "postgresql"});
        for (member, value) in [("mode", mode), ("profile", profile)] {
            if let Some(value) = value {
                body[member] = json!(value);
            }
        }
        let created = sidecar.admin("POST", "/workspaces", body).await.expect(201);
        assert_eq!(created["mode"], want.0, "{name}");
        assert_eq!(sidecar.workspace(name).await.profile, want.1, "{name}");
        // T6, T10, T11: only tenant mode has a blueprint.
        assert_eq!(created.get("blueprint").is_some(), want.0 == "tenant", "{name}");
    }
}

#[tokio::test]
async fn t10_t12_create() {
    let sidecar = Sidecar::start().await;
    let body = json!({"name": "Akmé 1", "database": "PostgreSQL", "mode": "tenant", "profile": "storage"});
    let answer = sidecar.admin("POST", "/workspaces", body.clone()).await;
    let created = answer.expect(201);
    assert_eq!(answer.headers["cache-control"], "no-store");
    let id = created["id"].as_str().unwrap();
    let (user, password) = (format!("tdb_{}", &id[3..]), created["connection"]["password"].as_str().unwrap());
    assert!(password.len() >= 32 && password.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    for (member, want) in [
        ("success", json!(true)),
        ("http_status", json!(201)),
        ("code", json!("created")),
        ("mode", json!("tenant")),
        ("database", json!("PostgreSQL")),
        (
            "connection",
            json!({"host": "gate.example.com", "port": 6432, "database": "Akmé 1_workspace", "user": user, "password": password}),
        ),
        (
            "connection_string",
            json!(format!(
                "postgresql://{user}:{password}@gate.example.com:6432/Akm%C3%A9%201_workspace?sslmode=require"
            )),
        ),
    ] {
        assert_eq!(created[member], want, "{member}");
    }
    sidecar.admin("POST", "/workspaces", body).await.refused(409, "conflict");

    // T4, T5.
    let listed = sidecar.admin("GET", "/workspaces", Value::Null).await.expect(200);
    assert_eq!(listed["count"], 1);
    let entry = &listed["workspaces"][0];
    assert_eq!((&entry["id"], &entry["mode"], &entry["version"]), (&json!(id), &json!("tenant"), &json!(0)));
    assert!(entry["created_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
}

#[tokio::test]
async fn t14_t15_t17_t18_get() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("plain", "design").await;
    let by_name = sidecar.admin("GET", "/workspaces/plain", Value::Null).await.expect(200);
    let by_id = sidecar.admin("GET", &format!("/workspaces/{}", workspace.id), Value::Null).await.expect(200);
    assert_eq!(by_name, by_id);
    let user = format!("tdb_{}", workspace.id.digits());
    assert_eq!(by_id["connection"]["password"], "••••••••");
    assert_eq!(by_id["connection"]["username"], user);
    let string = format!("postgresql://{user}:••••••••@gate.example.com:6432/plain_workspace?sslmode=require");
    assert_eq!(by_id["connection_string"], string);
    let settings = json!({"query_timeout_ms": 30000, "max_rows_per_query": 1000, "max_connections": 100});
    assert_eq!(by_id["settings"], settings);
    assert_eq!((&by_id["schema"], &by_id["schema_error"]), (&json!([]), &Value::Null));
    // T18: control mode has neither.
    assert!(by_id.get("version").is_none() && by_id.get("undeployed_changes").is_none());
    sidecar.admin("GET", "/workspaces/nobody", Value::Null).await.refused(404, "not_found");
    sidecar.admin("GET", "/workspaces/ws_0123456789abcdef", Value::Null).await.refused(404, "not_found");
}

#[tokio::test]
async fn x_workspace_names_the_current_workspace() {
    let sidecar = Sidecar::start().await;
    let (one, two) = (sidecar.record("one", "storage").await, sidecar.record("two", "storage").await);
    let bound = sidecar.key(&["admin"], Some(&one.id)).await;
    let wide = sidecar.key.clone();
    for (key, header, want) in [
        (&wide, None, Err((400, "bad_request"))),
        (&wide, Some("one"), Ok(&one)),
        (&wide, Some(two.id.as_str()), Ok(&two)),
        (&wide, Some("three"), Err((404, "not_found"))),
        (&bound, None, Ok(&one)),
        (&bound, Some("one"), Ok(&one)),
        (&bound, Some(one.id.as_str()), Ok(&one)),
        (&bound, Some("two"), Err((403, "scope_denied"))),
    ] {
        let bearer = format!("Bearer {key}");
        let mut headers = vec![("authorization", bearer.as_str())];
        headers.extend(header.map(|name| ("x-workspace", name)));
        let answer = sidecar.call("GET", "/api/v2/ingestion/status", &headers, "").await;
        match want {
            Ok(workspace) => assert_eq!(answer.expect(200)["workspace_id"], workspace.id.as_str(), "{header:?}"),
            Err((status, code)) => drop(answer.refused(status, code)),
        }
    }
    let bearer = format!("Bearer {bound}");
    let listed = sidecar.call("GET", "/workspaces", &[("authorization", &bearer)], "").await.expect(200);
    assert_eq!(listed["count"], 1, "a bound key sees its own workspace only");
    sidecar.call("GET", "/workspaces/two", &[("authorization", &bearer)], "").await.refused(404, "not_found");
}
