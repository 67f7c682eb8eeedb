//! The second wall: the same attacks sent straight to PostgreSQL, with the very login and role that the proxy uses. What
//! the validator refuses, the grants refuse too.

use portcullis_tests::{
    Stack,
    customer::{explain, sqlstate},
};

/// Statements, and the role kinds for which the grants must refuse them (`*` for every kind).
const WALLED: &[(&str, &str)] = &[
    ("DELETE FROM dl_cache.person_enrichments", "*"),
    ("UPDATE dl_cache.company_enrichments SET name = 'x'", "*"),
    ("INSERT INTO dl_meta.tenant_settings VALUES ('a', 'b')", "*"),
    ("SELECT value FROM dl_meta.tenant_settings", "*"),
    ("TRUNCATE dl_cache.person_enrichments", "*"),
    ("DROP VIEW dl_resolved.people", "*"),
    ("DROP SCHEMA dl_cache CASCADE", "*"),
    ("CREATE TABLE public.notes (id int)", "*"),
    ("CREATE TABLE notes (id int)", "*"),
    ("CREATE TABLE dl_cache.mine (id int)", "*"),
    ("CREATE SCHEMA mine", "*"),
    ("CREATE TEMP TABLE mine (id int)", "*"),
    ("SET ROLE postgres", "*"),
    ("SET SESSION AUTHORIZATION postgres", "*"),
    ("SELECT pg_read_file('/etc/passwd')", "*"),
    ("SELECT pg_ls_dir('/')", "*"),
    ("SELECT pg_sleep(0)", "*"),
    ("SELECT pg_terminate_backend(pg_backend_pid())", "*"),
    ("SELECT lo_create(0)", "*"),
    ("SELECT lo_import('/etc/passwd')", "*"),
    ("SELECT query_to_xml('SELECT 1', true, true, '')", "*"),
    ("SELECT pg_advisory_lock(1)", "*"),
    ("SELECT pg_notify('a', 'b')", "*"),
    ("SELECT rolpassword FROM pg_authid", "*"),
    ("COPY (SELECT 1) TO PROGRAM 'id'", "*"),
    ("COPY (SELECT 1) TO '/tmp/portcullis-wall'", "*"),
    ("DO $$BEGIN END$$", "*"),
    ("CREATE EXTENSION dblink", "*"),
    ("ALTER SYSTEM SET work_mem = '1GB'", "*"),
    ("CREATE ROLE mine", "*"),
    ("CREATE DATABASE mine", "*"),
    ("SET session_replication_role = replica", "*"),
    ("CREATE FUNCTION storage.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "customer_db"),
    ("INSERT INTO dl_override.person_overrides (person_id) VALUES ('x')", "customer_db read"),
    ("SELECT * FROM dl_cache.person_enrichments", "read runtime"),
    ("SELECT * FROM dl_override.person_overrides", "read"),
    ("TRUNCATE dl_override.person_overrides", "runtime"),
    ("ALTER TABLE dl_override.person_overrides ADD COLUMN x int", "runtime"),
    ("CREATE TABLE tenant_custom.mine (id int)", "read"),
    ("CREATE FUNCTION tenant_custom.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "runtime"),
];

/// What each kind may do around the gate as well: the wall is not simply shut.
const OPEN: &[(&str, &str)] = &[
    ("customer_db", "SELECT count(*) FROM dl_resolved.people"),
    ("customer_db", "SELECT count(*) FROM dl_cache.person_enrichments"),
    ("customer_db", "CREATE TABLE storage.walls (id int)"),
    ("customer_db", "INSERT INTO storage.walls VALUES (1)"),
    ("read", "SELECT count(*) FROM dl_resolved.companies"),
    ("runtime", "INSERT INTO dl_override.person_overrides (person_id, title) VALUES ('pe_000001', 'x')"),
    ("runtime", "CREATE TABLE tenant_custom.walls (id int)"),
];

#[tokio::test]
async fn grants_refuse_what_the_gate_refuses() {
    let stack = Stack::shared().await;
    let mut wrong = Vec::new();
    for (profile, kinds) in [("storage", &["customer_db"][..]), ("override", &["read", "runtime"])] {
        let workspace = stack.workspace(profile).await;
        for kind in kinds {
            let backend = workspace.backend(kind).await;
            for (_, statement) in OPEN.iter().filter(|(of, _)| of == kind) {
                if let Err(error) = backend.batch_execute(statement).await {
                    wrong.push(format!("{kind} should: {statement}: {}", explain(&error)));
                }
            }
            for (statement, kinds) in WALLED {
                if *kinds != "*" && !kinds.split(' ').any(|of| of == *kind) {
                    continue;
                }
                // In a transaction, so that what should not have run leaves nothing; some may not run in one.
                let alone = ["ALTER SYSTEM", "CREATE DATABASE"].iter().any(|start| statement.starts_with(start));
                let text = if alone { (*statement).to_owned() } else { format!("BEGIN; {statement}; ROLLBACK") };
                match backend.batch_execute(&text).await {
                    Err(error) if sqlstate(&error) == "42501" => {}
                    // Without a schema in which it may create, an unqualified name has nowhere to go.
                    Err(error) if sqlstate(&error) == "3F000" && !statement.contains('.') => {}
                    Err(error) => wrong.push(format!("{kind}: {statement}: {}", explain(&error))),
                    Ok(()) => wrong.push(format!("{kind}: {statement}: ran")),
                }
                let _ = backend.batch_execute("ROLLBACK").await;
            }
        }
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test]
async fn a_workspace_cannot_reach_another_ones_database() {
    let stack = Stack::shared().await;
    let (mine, other) = (stack.workspace("storage").await, stack.workspace("storage").await);
    let (mine, other) = (mine.reveal("customer_db").await, other.reveal("customer_db").await);
    let mut config = mine.config();
    config.dbname(&other.database);
    let error = portcullis_tests::customer::connect(&config, &mine.ca_pem).await.expect_err("refused");
    assert_eq!(sqlstate(&error), "3D000", "{}", explain(&error));
}

#[tokio::test]
async fn what_customers_create_has_one_owner_through_a_rotation() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let client = workspace.reveal("customer_db").await.connect().await;
    client.batch_execute("CREATE TABLE storage.before (id int)").await.unwrap();
    let (credentials, _) = workspace.rotate("customer_db", 0, false).await;
    let client = credentials.connect().await;
    client.batch_execute("CREATE TABLE storage.after (id int)").await.unwrap();
    client.batch_execute("DROP TABLE storage.before").await.unwrap();
    let owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'storage'";
    let rows = workspace.superuser().await.query(owners, &[]).await.unwrap();
    let owners: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(owners, [format!("{}_customer_db", workspace.id)]);
}
