//! D1, D2, D5, D6, D10, D12, D13, D18, D22: what there is after provisioning.

use futures_util::future::join_all;
use portcullis_provisioner::ops::credentials::backend_verifier;
use serde_json::{Value, json};

use crate::fixture::{Sidecar, rows};

#[tokio::test]
async fn d5_d12_d13_status_provision_active() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.record("acme", "storage").await;
    let status = async || sidecar.ingestion("acme", "GET", "/status", Value::Null).await.expect(200);
    let before = status().await;
    assert_eq!((&before["provisioned"], &before["plane"]["status"]), (&json!(false), &json!("provisioning")));
    let made = sidecar.provision("acme").await.expect(201);
    assert_eq!((&made["created"], made.get("repaired")), (&json!(true), None));
    let after = status().await;
    assert!(after["plane"]["since"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
    let want = json!({
        "provisioned": true, "workspace_id": workspace.id, "profile": "storage", "writable_schemas": ["storage"],
        "fork": null,
        "plane": {"status": "active", "since": after["plane"]["since"], "schema_version": "0002_storage", "last_error": null},
    });
    assert_eq!(after, want);
    let again = sidecar.provision("acme").await.expect(200);
    assert_eq!((&again["created"], again.get("repaired")), (&json!(false), None));
    assert_eq!(again["walls"], "full");
    // D12: any key will do for status, D13: not for provision.
    let viewer = format!("Bearer {}", sidecar.key(&[], Some(&workspace.id)).await);
    let headers = [("authorization", viewer.as_str())];
    sidecar.call("GET", "/api/v2/ingestion/status", &headers, "").await.expect(200);
    sidecar.call("POST", "/api/v2/ingestion/provision", &headers, "").await.refused(403, "session_required");
    sidecar.ingestion("acme", "POST", "/provision", json!({"force": true})).await.refused(400, "bad_request");
}

#[tokio::test]
async fn d13_provisioning_again_changes_nothing() {
    let sidecar = Sidecar::start().await;
    for profile in ["storage", "override", "design"] {
        let workspace = sidecar.create(profile, profile).await;
        let maintenance = sidecar.superuser("postgres").await;
        let database = sidecar.superuser(&workspace.database).await;
        let id = workspace.id.as_str();
        // xmin is the transaction that last wrote a row: nothing may be written, not even the same thing again.
        let shared = format!(
            "SELECT 'role', rolname, xmin::text FROM pg_authid WHERE rolname LIKE '{id}%'
             UNION ALL SELECT 'database', datname, xmin::text FROM pg_database WHERE datname = '{id}' ORDER BY 1, 2"
        );
        let inside = "SELECT relname, xmin::text FROM pg_class UNION ALL SELECT nspname, xmin::text FROM pg_namespace
                      UNION ALL SELECT oid::text, xmin::text FROM pg_proc ORDER BY 1, 2";
        let before = (rows(&maintenance, &shared).await, rows(&database, inside).await);
        let answer = sidecar.provision(profile).await.expect(200);
        assert_eq!(answer.get("repaired"), None);
        let after = (rows(&maintenance, &shared).await, rows(&database, inside).await);
        assert!(before.0.len() > 4);
        assert_eq!(before, after, "{profile}");
    }
}

#[tokio::test]
async fn d18_the_managed_schemas() {
    let sidecar = Sidecar::start().await;
    for (profile, own) in [("storage", "storage"), ("override", "tenant_custom")] {
        let workspace = sidecar.create(profile, profile).await;
        let client = sidecar.superuser(&workspace.database).await;
        let columns = "SELECT table_schema || '.' || table_name, string_agg(column_name, ' ' ORDER BY ordinal_position)
                         FROM information_schema.columns WHERE table_schema LIKE 'dl\\_%' GROUP BY 1 ORDER BY 1";
        let want = [
            "dl_cache.company_enrichments|id company_id domain name industry employees revenue founded hq tech tags \
             parent_company_id updated_at",
            "dl_cache.person_enrichments|id person_id email full_name title company_domain location skills attrs score \
             salary active linkedin_xml opted_out updated_at tsv",
            "dl_meta.schema_migrations|version applied_at",
            "dl_meta.tenant_settings|key value",
            "dl_override.company_overrides|company_id name industry employees attrs note updated_by updated_at",
            "dl_override.person_overrides|person_id full_name title email attrs note updated_by updated_at",
            "dl_resolved.companies|id company_id domain name industry employees revenue founded hq tech tags \
             parent_company_id updated_at",
            "dl_resolved.people|id person_id email full_name title company_domain location skills attrs score salary \
             active tsv updated_at",
        ];
        assert_eq!(rows(&client, columns).await, want, "{profile}");
        let owners =
            "SELECT DISTINCT pg_get_userbyid(relowner) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
                       WHERE nspname LIKE 'dl\\_%' UNION SELECT pg_get_userbyid(nspowner) FROM pg_namespace
                       WHERE nspname LIKE 'dl\\_%' OR nspname IN ('storage', 'tenant_custom')";
        assert_eq!(rows(&client, owners).await, [format!("{}_owner", workspace.id)]);
        let barriers =
            "SELECT relname FROM pg_class WHERE relkind = 'v' AND reloptions::text LIKE '%security_barrier=true%'
                           AND relnamespace = 'dl_resolved'::regnamespace
                         ORDER BY 1";
        assert_eq!(rows(&client, barriers).await, ["companies", "people"]);
        let schemas = "SELECT nspname FROM pg_namespace WHERE nspname IN ('storage', 'tenant_custom')";
        assert_eq!(rows(&client, schemas).await, [own]);
        let versions = "SELECT version FROM dl_meta.schema_migrations ORDER BY 1";
        assert_eq!(rows(&client, versions).await.len(), 2);
    }
}

#[tokio::test]
async fn d10_an_override_wins_column_by_column() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let client = sidecar.superuser(&workspace.database).await;
    client
        .batch_execute(
            "INSERT INTO dl_cache.person_enrichments (person_id, email, full_name, title, skills, attrs, opted_out) VALUES
               ('p1', 'a@x', 'Ana Müller', 'Engineer', '{sql}', '{\"a\": 1, \"b\": 1}', false),
               ('p2', 'b@x', 'Bo', NULL, '{}', '{\"a\": 1}', false),
               ('p3', 'c@x', 'Gone', NULL, '{}', '{}', true),
               ('p4', 'd@x', 'Dee', NULL, '{}', '{\"a\": 1}', false);
             INSERT INTO dl_override.person_overrides (person_id, full_name, attrs) VALUES
               ('p1', 'Anna Müller', '{\"b\": 2, \"c\": 2}'), ('p3', 'Back', NULL), ('p4', NULL, '[1]');
             INSERT INTO dl_cache.company_enrichments (company_id, domain, name, industry, employees, tech, tags) VALUES
               ('c1', 'x.com', 'X', 'it', 7, '[]', '{}');
             INSERT INTO dl_override.company_overrides (company_id, employees) VALUES ('c1', 8)",
        )
        .await
        .unwrap();
    let people = "SELECT person_id, email, full_name, title, attrs FROM dl_resolved.people ORDER BY 1";
    let want = [
        r#"p1|a@x|Anna Müller|Engineer|{"a": 1, "b": 2, "c": 2}"#,
        r#"p2|b@x|Bo|∅|{"a": 1}"#,
        r#"p4|d@x|Dee|∅|{"a": 1}"#,
    ];
    assert_eq!(rows(&client, people).await, want);
    let found = "SELECT person_id FROM dl_resolved.people WHERE tsv @@ to_tsquery('simple', 'anna & engineer')";
    assert_eq!(rows(&client, found).await, ["p1"], "the search sees the corrected name");
    let companies = "SELECT company_id, name, industry, employees FROM dl_resolved.companies";
    assert_eq!(rows(&client, companies).await, ["c1|X|it|8"]);
}

#[tokio::test]
async fn d1_one_database_with_roles_of_its_own() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "override").await;
    let client = sidecar.superuser("postgres").await;
    let id = workspace.id.as_str();
    assert_eq!(workspace.database, id, "the real name tells nothing of the customer");
    let roles = format!(
        "SELECT substr(rolname, 21), rolcanlogin, rolinherit, rolconnlimit, rolpassword IS NOT NULL,
                rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls
           FROM pg_authid WHERE rolname LIKE '{id}%' ORDER BY 1"
    );
    let want = [
        "owner|f|t|-1|f|f",
        "platform|f|t|-1|f|f",
        "read|f|t|-1|f|f",
        "read_a|t|f|100|t|f",
        "read_b|f|f|100|f|f",
        "runtime|f|t|-1|f|f",
        "runtime_a|t|f|100|t|f",
        "runtime_b|f|f|100|f|f",
    ];
    assert_eq!(rows(&client, &roles).await, want);
    let members = format!(
        "SELECT substr(pg_get_userbyid(roleid), 21), substr(pg_get_userbyid(member), 21)
           FROM pg_auth_members WHERE pg_get_userbyid(member) LIKE '{id}%' ORDER BY 2"
    );
    assert_eq!(rows(&client, &members).await, ["read|read_a", "read|read_b", "runtime|runtime_a", "runtime|runtime_b"]);
    let access = format!(
        "SELECT coalesce(substr(rolname, 21), 'PUBLIC'), string_agg(privilege_type, ',')
           FROM pg_database, aclexplode(datacl) LEFT JOIN pg_roles r ON r.oid = grantee
          WHERE datname = '{id}' AND grantee <> datdba GROUP BY 1 ORDER BY 1"
    );
    let want = ["read", "read_a", "read_b", "runtime", "runtime_a", "runtime_b"].map(|role| format!("{role}|CONNECT"));
    assert_eq!(rows(&client, &access).await, want);
    let open = "SELECT datname FROM pg_database, aclexplode(coalesce(datacl, acldefault('d', datdba)))
                 WHERE grantee = 0 AND datname IN ('postgres', 'template1')";
    assert_eq!(rows(&client, open).await, [""; 0]);
    let limit = format!(
        "SELECT setconfig FROM pg_db_role_setting JOIN pg_roles r ON r.oid = setrole WHERE rolname = '{id}_read_a'"
    );
    assert_eq!(rows(&client, &limit).await, ["{temp_file_limit=1048576kB}"]);
}

#[tokio::test]
async fn the_server_holds_the_verifier_of_the_sealed_keys() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let client = sidecar.superuser("postgres").await;
    for role in sidecar.provisioner.store.backend_roles(&workspace.id).await.unwrap() {
        assert_eq!(role.generation.0, 1);
        let verifier = backend_verifier(&sidecar.provisioner.proxy_key, &role).unwrap();
        let stored = format!("SELECT rolpassword FROM pg_authid WHERE rolname = '{}'", role.login);
        assert_eq!(rows(&client, &stored).await, [verifier]);
    }
}

#[tokio::test]
async fn the_walls_stand_against_public() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let client = sidecar.superuser(&workspace.database).await;
    for (what, sql) in [
        ("languages", "SELECT lanname FROM pg_language, aclexplode(coalesce(lanacl, acldefault('l', lanowner)))
                        WHERE grantee = 0 AND lanname IN ('sql', 'plpgsql')"),
        ("public", "SELECT privilege_type FROM pg_namespace, aclexplode(coalesce(nspacl, acldefault('n', nspowner)))
                     WHERE grantee = 0 AND nspname = 'public'"),
        ("functions", "SELECT oid::regprocedure FROM pg_proc, aclexplode(coalesce(proacl, acldefault('f', proowner)))
                        WHERE grantee = 0 AND pronamespace = 'pg_catalog'::regnamespace
                          AND proname IN ('pg_sleep', 'query_to_xml', 'lo_import', 'pg_terminate_backend', 'pg_notify')"),
        ("settings", "SELECT privilege_type FROM pg_class, aclexplode(relacl)
                       WHERE grantee = 0 AND relname = 'pg_settings' AND privilege_type <> 'SELECT'"),
    ] {
        assert_eq!(rows(&client, sql).await, [""; 0], "{what}");
    }
    let kept = "SELECT has_function_privilege('public', 'set_config(text, text, bool)', 'EXECUTE')";
    assert_eq!(rows(&client, kept).await, ["t"], "drivers call it");
}

#[tokio::test]
async fn many_at_once_and_one_from_two_sidecars() {
    let sidecar = Sidecar::start().await;
    let many = (0..6).map(|n| {
        let sidecar = &sidecar;
        async move { sidecar.create(&format!("many{n}"), "storage").await }
    });
    assert_eq!(join_all(many).await.len(), 6);

    let other = Sidecar::again(sidecar.home.clone(), sidecar.catalog.clone(), sidecar.cluster, "postgres").await;
    let workspace = sidecar.record("one", "override").await;
    let both = join_all([&sidecar, &other, &sidecar, &other].map(|sidecar| sidecar.provision("one"))).await;
    let mut created: Vec<bool> = both
        .iter()
        .map(|answer| {
            assert!(matches!(answer.status, 200 | 201), "{}", answer.text);
            let body = answer.json();
            assert_eq!(body.get("repaired"), None, "{body}");
            body["created"].as_bool().unwrap()
        })
        .collect();
    created.sort_unstable();
    assert_eq!(created, [false, false, false, true], "one made it, the others waited for it");
    let roles = sidecar.provisioner.store.backend_roles(&workspace.id).await.unwrap();
    assert!(roles.iter().all(|role| role.generation.0 == 1));
}
