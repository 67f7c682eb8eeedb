//! D24 and crashes: whatever was dropped or altered by hand is seen, put right, and named.

use portcullis_catalog::Workspace;
use portcullis_provisioner::reconcile::{self, IfMissing, apply, plan};
use portcullis_provisioner::server::Session;
use serde_json::{Value, json};

use crate::fixture::{Sidecar, rows};

/// Runs in the workspace's database as the superuser; `$w` stands for the workspace's id.
async fn by_hand(sidecar: &Sidecar, workspace: &Workspace, sql: &str) {
    let client = sidecar.superuser(&workspace.database).await;
    let sql = sql.replace("$w", workspace.id.as_str());
    client.batch_execute(&sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test]
async fn d24_what_was_altered_by_hand_is_repaired_and_named() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    by_hand(&sidecar, &workspace, "INSERT INTO dl_meta.tenant_settings VALUES ('kept', 'yes')").await;
    for (sql, want) in [
        ("DROP VIEW dl_resolved.people", vec!["view dl_resolved.people"]),
        ("DROP SCHEMA dl_resolved CASCADE", vec!["schema dl_resolved"]),
        ("DROP SCHEMA storage", vec!["schema storage"]),
        ("DROP SCHEMA public", vec!["schema public"]),
        (
            "DROP TABLE dl_override.company_overrides CASCADE",
            vec!["table dl_override.company_overrides", "view dl_resolved.companies"],
        ),
        (
            "CREATE OR REPLACE VIEW dl_resolved.companies WITH (security_barrier = true) AS
            SELECT id, company_id, domain, name, industry, employees, revenue, founded, hq, tech, tags,
                   parent_company_id, updated_at FROM dl_cache.company_enrichments",
            vec!["view dl_resolved.companies"],
        ),
        (
            "DROP VIEW dl_resolved.people; CREATE VIEW dl_resolved.people AS SELECT 1 AS x",
            vec!["view dl_resolved.people"],
        ),
        ("ALTER VIEW dl_resolved.people RESET (security_barrier)", vec!["view dl_resolved.people"]),
        ("ALTER TABLE dl_cache.person_enrichments OWNER TO postgres", vec!["table dl_cache.person_enrichments"]),
        ("ALTER SCHEMA dl_cache OWNER TO postgres", vec!["schema dl_cache"]),
        ("GRANT SELECT ON dl_meta.tenant_settings TO PUBLIC", vec!["grants on table dl_meta.tenant_settings"]),
        (
            "GRANT SELECT (value) ON dl_meta.tenant_settings TO $w_customer_db",
            vec!["grants on table dl_meta.tenant_settings"],
        ),
        ("REVOKE ALL ON SCHEMA storage FROM $w_customer_db", vec!["grants on schema storage"]),
        ("GRANT ALL ON SCHEMA public TO PUBLIC", vec!["grants on schema public"]),
        ("GRANT USAGE ON LANGUAGE plpgsql TO PUBLIC", vec!["grants on languages"]),
        ("GRANT EXECUTE ON FUNCTION pg_sleep(float8) TO PUBLIC", vec!["grants on functions of pg_catalog"]),
        ("GRANT EXECUTE ON FUNCTION pg_read_file(text) TO $w_customer_db", vec!["grants on functions of pg_catalog"]),
        ("GRANT SELECT ON pg_authid TO $w_customer_db", vec!["grants on relations of pg_catalog"]),
        ("GRANT CONNECT, TEMPORARY ON DATABASE $w TO PUBLIC", vec!["grants on database $w"]),
        ("REVOKE CONNECT ON DATABASE $w FROM $w_customer_db_a", vec!["grants on database $w"]),
        ("ALTER DATABASE $w OWNER TO postgres", vec!["owner of database $w"]),
        ("ALTER ROLE $w_customer_db_a SUPERUSER CREATEDB", vec!["role $w_customer_db_a"]),
        ("ALTER ROLE $w_customer_db_a PASSWORD 'x'", vec!["role $w_customer_db_a"]),
        ("ALTER ROLE $w_customer_db_b LOGIN PASSWORD 'x'", vec!["role $w_customer_db_b"]),
        ("ALTER ROLE $w_customer_db_a VALID UNTIL '2020-01-01'", vec!["role $w_customer_db_a"]),
        ("ALTER ROLE $w_customer_db_a SET search_path = 'x'", vec!["role $w_customer_db_a"]),
        ("ALTER ROLE $w_customer_db_a IN DATABASE $w SET work_mem = '1GB'", vec!["role $w_customer_db_a"]),
        ("ALTER ROLE $w_customer_db INHERIT LOGIN", vec!["role $w_customer_db"]),
        ("GRANT pg_read_all_data TO $w_customer_db", vec!["membership of $w_customer_db in pg_read_all_data"]),
        ("GRANT $w_owner TO $w_customer_db_a", vec!["membership of $w_customer_db_a in $w_owner"]),
        ("REVOKE $w_customer_db FROM $w_customer_db_a", vec!["membership of $w_customer_db_a in $w_customer_db"]),
        (
            "REVOKE $w_customer_db FROM $w_customer_db_a; GRANT $w_customer_db TO $w_customer_db_a WITH ADMIN OPTION",
            vec!["membership of $w_customer_db_a in $w_customer_db"],
        ),
        (
            "REVOKE CONNECT ON DATABASE $w FROM $w_customer_db_a; DROP ROLE $w_customer_db_a",
            vec!["role $w_customer_db_a"],
        ),
        (
            "DROP OWNED BY $w_customer_db; DROP ROLE $w_customer_db",
            vec!["role $w_customer_db", "grants on schema storage"],
        ),
        ("ALTER EVENT TRIGGER portcullis_sql_drop DISABLE", vec!["event trigger portcullis_sql_drop"]),
        ("DROP EVENT TRIGGER portcullis_ddl_command_end", vec!["event trigger portcullis_ddl_command_end"]),
        (
            "DROP EVENT TRIGGER portcullis_sql_drop;
             CREATE EVENT TRIGGER portcullis_sql_drop ON sql_drop WHEN TAG IN ('DROP TABLE')
                 EXECUTE FUNCTION portcullis_guard.sql_drop()",
            vec!["event trigger portcullis_sql_drop"],
        ),
        (
            "CREATE OR REPLACE FUNCTION portcullis_guard.sql_drop() RETURNS event_trigger LANGUAGE plpgsql
                 AS 'BEGIN END'",
            vec!["function portcullis_guard.sql_drop()"],
        ),
        ("DROP SCHEMA portcullis_guard CASCADE", vec!["schema portcullis_guard"]),
        ("GRANT CONNECT ON DATABASE template1 TO PUBLIC", vec!["grants on database template1"]),
    ] {
        by_hand(&sidecar, &workspace, sql).await;
        let body = sidecar.provision("acme").await.expect(200);
        let repaired: Vec<&str> = body["repaired"]
            .as_array()
            .unwrap_or_else(|| panic!("{sql}: {body}"))
            .iter()
            .filter_map(Value::as_str)
            .collect();
        for want in want {
            let want = want.replace("$w", workspace.id.as_str());
            assert!(repaired.contains(&want.as_str()), "{sql}: {want} is not in {repaired:?}");
        }
        assert_eq!(body["plane"]["status"], "active", "{sql}");
        assert_eq!(body.get("unrepaired"), None, "{sql}");
        let again = sidecar.provision("acme").await.expect(200);
        assert_eq!(again.get("repaired"), None, "{sql}");
    }
    let client = sidecar.superuser(&workspace.database).await;
    let kept = rows(&client, "SELECT value FROM dl_meta.tenant_settings").await;
    assert_eq!(kept, ["yes"], "a repair takes nothing away");
}

#[tokio::test]
async fn what_customers_made_is_left_alone() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "override").await;
    by_hand(
        &sidecar,
        &workspace,
        "CREATE TABLE tenant_custom.t (n int); INSERT INTO tenant_custom.t VALUES (7);
         ALTER TABLE tenant_custom.t OWNER TO $w_runtime; GRANT SELECT ON tenant_custom.t TO $w_read;
         CREATE VIEW tenant_custom.mine AS SELECT person_id FROM dl_resolved.people;
         ALTER VIEW dl_resolved.people RESET (security_barrier); GRANT SELECT ON dl_resolved.people TO PUBLIC",
    )
    .await;
    let body = sidecar.provision("acme").await.expect(200);
    assert_eq!(body["repaired"], json!(["grants on view dl_resolved.people", "view dl_resolved.people"]));
    let client = sidecar.superuser(&workspace.database).await;
    let table = "SELECT n, has_table_privilege(current_database() || '_read', 'tenant_custom.t', 'SELECT') FROM tenant_custom.t";
    assert_eq!(rows(&client, table).await, ["7|t"]);
    assert_eq!(rows(&client, "SELECT count(*) FROM tenant_custom.mine").await, ["0"]);
}

#[tokio::test]
async fn d24_a_dropped_database_is_missing_until_provision_restores_it() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let client = sidecar.superuser("postgres").await;
    let drop = format!("DROP DATABASE {} WITH (FORCE)", workspace.database);
    client.batch_execute(&drop).await.unwrap();
    let status = sidecar.ingestion("acme", "GET", "/status", Value::Null).await.expect(200);
    assert_eq!((&status["provisioned"], &status["plane"]["status"]), (&json!(false), &json!("missing")));
    sidecar
        .ingestion("acme", "GET", "/connection-uris/metadata", Value::Null)
        .await
        .refused(409, "workspace_not_active");
    // The tick leaves it to a person: what customers kept in it does not come back with it.
    reconcile::everything(&sidecar.provisioner).await;
    assert_eq!(sidecar.workspace("acme").await.plane.status.as_str(), "missing");
    let body = sidecar.provision("acme").await.expect(200);
    assert_eq!(
        body["repaired"],
        json!([format!("database {}", workspace.database), format!("grants on database {}", workspace.database)])
    );
    let status = sidecar.ingestion("acme", "GET", "/status", Value::Null).await.expect(200);
    assert_eq!((&status["provisioned"], &status["plane"]["status"]), (&json!(true), &json!("active")));
    assert_eq!(sidecar.provision("acme").await.expect(200).get("repaired"), None);
}

#[tokio::test]
async fn the_tick_repairs_what_was_altered() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    by_hand(&sidecar, &workspace, "DROP VIEW dl_resolved.people; ALTER ROLE $w_customer_db CREATEROLE").await;
    reconcile::everything(&sidecar.provisioner).await;
    assert_eq!(sidecar.workspace("acme").await.plane.status.as_str(), "active");
    assert_eq!(sidecar.provision("acme").await.expect(200).get("repaired"), None);
}

/// A crash leaves what the steps before it did. From every such point the next run must come to the same end.
#[tokio::test]
async fn a_crash_after_any_step_is_finished_by_the_next_tick() {
    let sidecar = Sidecar::start().await;
    let provisioner = &sidecar.provisioner;
    let mut done = 0;
    loop {
        let name = format!("crash{done}");
        let workspace = sidecar.record(&name, "override").await;
        portcullis_provisioner::ops::credentials::ensure(provisioner, &workspace).await.unwrap();
        let server = provisioner.server(&workspace).unwrap();
        let maintenance = Session::open(server, &server.database).await.unwrap();
        let intent = reconcile::intent_of(provisioner, &workspace).await.unwrap();
        let observed = reconcile::observe(provisioner, server, &maintenance, &workspace, &intent).await.unwrap();
        let steps = plan::plan(&intent, &observed);
        let before = &steps[..done.min(steps.len())];
        apply::apply(server, &maintenance, &intent, before).await.unwrap();
        // What was laid out was not remembered: the process is gone.
        drop(maintenance);
        reconcile::everything(provisioner).await;
        let finished = sidecar.workspace(&name).await;
        assert_eq!(finished.plane.status.as_str(), "active", "after {done} steps: {:?}", finished.plane.last_error);
        let outcome = reconcile::reconcile(provisioner, &finished, IfMissing::Report).await.unwrap();
        assert!(outcome.repaired.is_empty() && !outcome.created, "after {done} steps");
        if done >= steps.len() {
            break;
        }
        done += 1;
    }
    assert!(done > 10);
}

#[tokio::test]
async fn what_a_repair_would_lose_is_told_and_left() {
    let sidecar = Sidecar::start().await;
    let workspace = sidecar.create("acme", "storage").await;
    let table = json!(["table dl_override.person_overrides"]);
    by_hand(&sidecar, &workspace, "ALTER TABLE dl_override.person_overrides ADD COLUMN extra int").await;
    for _ in 0..2 {
        let body = sidecar.provision("acme").await.expect(200);
        assert_eq!((&body["unrepaired"], body.get("repaired")), (&table, None), "{body}");
        assert_eq!(body["plane"]["status"], "active");
        let error = body["plane"]["last_error"].as_str().unwrap();
        assert!(error.contains("table dl_override.person_overrides"), "{error}");
    }
    // Something else is repaired meanwhile, and the first is not forgotten.
    by_hand(&sidecar, &workspace, "DROP VIEW dl_resolved.companies").await;
    let body = sidecar.provision("acme").await.expect(200);
    assert_eq!((&body["unrepaired"], &body["repaired"]), (&table, &json!(["view dl_resolved.companies"])));
    by_hand(&sidecar, &workspace, "ALTER TABLE dl_override.person_overrides DROP COLUMN extra").await;
    // Seen as a change first, then as what it should be.
    sidecar.provision("acme").await.expect(200);
    let body = sidecar.provision("acme").await.expect(200);
    assert_eq!((body.get("unrepaired"), body.get("repaired")), (None, None), "{body}");
    assert_eq!(body["plane"]["last_error"], Value::Null);
}
