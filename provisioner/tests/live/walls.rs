//! D18–D22, D37, D39: the second wall. The statements go straight to PostgreSQL, with the very login and role that a proxy
//! uses, around every validator.

use portcullis_catalog::Workspace;
use tokio_postgres::{Client, NoTls};

use crate::fixture::Sidecar;

pub async fn backend(sidecar: &Sidecar, workspace: &Workspace, kind: &str) -> Client {
    let roles = sidecar.provisioner.store.backend_roles(&workspace.id).await.unwrap();
    let role = roles.iter().find(|role| role.kind == kind).unwrap();
    let url = format!("{} options='-c role={}'", sidecar.cluster.url(&role.login, &workspace.database), role.role);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await.unwrap();
    tokio::spawn(connection);
    client
}

/// Runs it and undoes it; the SQLSTATE of a refusal.
pub async fn attempt(client: &Client, sql: &str) -> Option<String> {
    let result = client.batch_execute(&format!("BEGIN; {sql}; ROLLBACK")).await;
    let state = result
        .err()
        .map(|error| error.code().map_or_else(|| panic!("{sql}: {error:?}"), |code| code.code().to_owned()));
    client.batch_execute("ROLLBACK").await.unwrap();
    state
}

const OPEN: &[(&str, &[&str])] = &[
    (
        "storage.customer_db",
        &[
            "SELECT * FROM dl_resolved.people; SELECT * FROM dl_resolved.companies",
            "SELECT * FROM dl_override.person_overrides; SELECT * FROM dl_cache.company_enrichments",
            "CREATE TABLE storage.t (id bigserial PRIMARY KEY, n int); INSERT INTO storage.t (n) VALUES (1); \
         CREATE INDEX ON storage.t (n); ALTER TABLE storage.t ADD m text; UPDATE storage.t SET m = 'x'; \
         DELETE FROM storage.t; TRUNCATE storage.t; DROP TABLE storage.t",
        ],
    ),
    ("override.read", &["SELECT * FROM dl_resolved.people; SELECT * FROM dl_resolved.companies"]),
    (
        "override.runtime",
        &[
            "SELECT * FROM dl_resolved.people; SELECT * FROM dl_resolved.companies",
            "INSERT INTO dl_override.person_overrides (person_id) VALUES ('p'); SELECT * FROM dl_override.person_overrides; \
         UPDATE dl_override.person_overrides SET note = 'x'; DELETE FROM dl_override.person_overrides",
            "CREATE TABLE tenant_custom.t (id int); CREATE VIEW tenant_custom.v AS SELECT * FROM tenant_custom.t; \
         CREATE TYPE tenant_custom.e AS ENUM ('a'); DROP VIEW tenant_custom.v; DROP TABLE tenant_custom.t",
        ],
    ),
    ("design.developer", &["CREATE TABLE public.t (id int); INSERT INTO public.t VALUES (1); DROP TABLE public.t"]),
];

const CLOSED: &[(&str, &[&str])] = &[
    (
        "*",
        &[
            "CREATE SCHEMA mine",
            "CREATE TEMP TABLE t (id int)",
            "CREATE TABLE dl_cache.t (id int)",
            "SET ROLE postgres",
            "SET SESSION AUTHORIZATION postgres",
            "SELECT pg_read_file('/etc/passwd')",
            "SELECT pg_sleep(0)",
            "SELECT lo_create(0)",
            "SELECT query_to_xml('SELECT 1', true, true, '')",
            "SELECT pg_notify('a', 'b')",
            "SELECT rolpassword FROM pg_authid",
            "COPY (SELECT 1) TO PROGRAM 'id'",
            "DO $$BEGIN END$$",
            "CREATE ROLE mine",
            "UPDATE pg_settings SET setting = 'off' WHERE name = 'enable_seqscan'",
            "CREATE EXTENSION dblink",
            "SET temp_file_limit = -1",
            "SELECT pg_terminate_backend(pg_backend_pid())",
        ],
    ),
    (
        "storage.customer_db",
        &[
            "DELETE FROM dl_cache.person_enrichments",
            "INSERT INTO dl_override.person_overrides VALUES ('p')",
            "SELECT * FROM dl_meta.tenant_settings",
            "DROP VIEW dl_resolved.people",
            "CREATE TABLE public.t (id int)",
            "CREATE FUNCTION storage.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
            "DROP SCHEMA storage",
            "CREATE TABLE storage.t (p text REFERENCES dl_cache.person_enrichments (person_id))",
        ],
    ),
    (
        "override.read",
        &[
            "SELECT * FROM dl_cache.person_enrichments",
            "SELECT * FROM dl_override.person_overrides",
            "SELECT * FROM dl_meta.schema_migrations",
            "CREATE TABLE tenant_custom.t (id int)",
            "INSERT INTO dl_override.person_overrides VALUES ('p')",
        ],
    ),
    (
        "override.runtime",
        &[
            "SELECT * FROM dl_cache.person_enrichments",
            "TRUNCATE dl_override.person_overrides",
            "ALTER TABLE dl_override.person_overrides ADD x int",
            "CREATE TABLE dl_override.t (id int)",
            "SELECT * FROM dl_meta.tenant_settings",
            "DROP TABLE dl_override.person_overrides",
        ],
    ),
];

#[tokio::test]
async fn d19_d20_d21_d37_d39_the_grants_allow_and_refuse() {
    let sidecar = Sidecar::start().await;
    let mut wrong = Vec::new();
    for (profile, kinds) in
        [("storage", &["customer_db"][..]), ("override", &["read", "runtime"]), ("design", &["developer"])]
    {
        let workspace = sidecar.create(profile, profile).await;
        for kind in kinds {
            let client = backend(&sidecar, &workspace, kind).await;
            let name = format!("{profile}.{kind}");
            let of = |of: &str| of == name || of == "*";
            for sql in OPEN.iter().filter(|row| of(row.0)).flat_map(|row| row.1) {
                if let Some(state) = attempt(&client, sql).await {
                    wrong.push(format!("{name}: {state} for {sql}"));
                }
            }
            for sql in CLOSED.iter().filter(|row| of(row.0)).flat_map(|row| row.1) {
                match attempt(&client, sql).await.as_deref() {
                    Some("42501") => {}
                    // What has no schema to be in, or is no longer there to be seen, is refused as missing.
                    Some("3F000" | "42P01") if profile == "design" || sql.starts_with("CREATE EXTENSION") => {}
                    state => wrong.push(format!("{name}: {state:?} for {sql}")),
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn a_backend_login_gets_into_its_own_database_only_and_owns_nothing() {
    let sidecar = Sidecar::start().await;
    let (one, two) = (sidecar.create("one", "storage").await, sidecar.create("two", "storage").await);
    let login = format!("{}_customer_db_a", one.id);
    for database in [two.database.as_str(), "postgres", "template1", sidecar.catalog.as_str()] {
        let error = tokio_postgres::connect(&sidecar.cluster.url(&login, database), NoTls).await.err().unwrap();
        assert_eq!(error.code().map(|code| code.code()), Some("42501"), "{database}: {error}");
    }
    let client = backend(&sidecar, &one, "customer_db").await;
    client.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    let owner = client.query_one("SELECT tableowner::text FROM pg_tables WHERE tablename = 't'", &[]).await.unwrap();
    assert_eq!(owner.get::<_, String>(0), format!("{}_customer_db", one.id));
    // The role outlives what a session can reset.
    for reset in ["RESET ROLE", "DISCARD ALL", "RESET ALL"] {
        client.batch_execute(reset).await.unwrap();
        let role = client.query_one("SELECT current_user::text", &[]).await.unwrap();
        assert_eq!(role.get::<_, String>(0), format!("{}_customer_db", one.id), "{reset}");
    }
    assert_eq!(sidecar.provision("one").await.expect(200).get("repaired"), None, "what customers make is no drift");
}
