//! psql with a printed URI: the commands that people type first, what they may do, and what they are told when not.

use std::process::Stdio;

use portcullis_tests::{Stack, Workspace, customer::Credentials};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::{D33, D34, PEOPLE};

struct Output {
    ok: bool,
    text: String,
}

/// Runs psql with `input` on its standard input, as a customer would: no ~/.psqlrc, errors with their SQLSTATE.
async fn psql(uri: &str, arguments: &[&str], input: &str) -> Output {
    let mut child = Command::new("psql")
        .args(["-X", "-v", "ON_ERROR_STOP=1", "-v", "VERBOSITY=verbose", "-P", "pager=off", uri])
        .args(arguments)
        .env_remove("PGOPTIONS")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("psql starts");
    let mut stdin = child.stdin.take().expect("standard input");
    stdin.write_all(input.as_bytes()).await.expect("psql reads");
    drop(stdin);
    let output = child.wait_with_output().await.expect("psql ends");
    let text = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Output { ok: output.status.success(), text }
}

/// The URI with the server's certificate checked against the authority.
fn verify_full(credentials: &Credentials, workspace: &Workspace) -> String {
    let ca = workspace.access.home.join("ca.crt");
    std::fs::write(&ca, &credentials.ca_pem).expect("the authority is written");
    assert!(credentials.uri.contains("sslmode=require"), "{}", credentials.uri.replace(&credentials.password, "***"));
    credentials.uri.replace("sslmode=require", &format!("sslmode=verify-full&sslrootcert={}", ca.display()))
}

#[tokio::test]
async fn the_printed_uri_opens_the_workspace() {
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let full = verify_full(&credentials, &workspace);
    let binding = format!("{full}&channel_binding=require");
    let alias =
        credentials.uri.replace(&format!("/{}?", credentials.database), &format!("/{}_workspace?", workspace.name));
    for uri in [&credentials.uri, &full, &binding, &alias] {
        let output = psql(uri, &["-At", "-c", "SELECT count(*) FROM dl_resolved.people"], "").await;
        assert_eq!((output.ok, output.text.trim()), (true, PEOPLE.to_string().as_str()), "{}", output.text);
    }
    let info = psql(&credentials.uri, &["-c", "\\conninfo"], "").await;
    assert!(info.text.contains("SSL connection (protocol: TLSv1.3"), "{}", info.text);
    let plain = credentials.uri.replace("sslmode=require", "sslmode=disable");
    let output = psql(&plain, &["-c", "SELECT 1"], "").await;
    assert!(!output.ok, "a connection without TLS: {}", output.text);
}

#[tokio::test]
async fn backslash_commands_work() {
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let table = "CREATE TABLE storage.notes (id int PRIMARY KEY, body text)";
    assert!(psql(&credentials.uri, &["-c", table], "").await.ok);
    for (command, wanted) in [
        ("\\d", ""),
        ("\\dt *.*", "person_enrichments"),
        ("\\dn+", "dl_resolved"),
        ("\\df", "List of functions"),
        ("\\l", "ws_"),
        ("\\dt storage.*", "notes"),
        ("\\dv dl_resolved.*", "companies"),
        ("\\d dl_resolved.people", "person_id"),
        ("\\d+ storage.notes", "notes_pkey"),
        ("\\di storage.*", "notes_pkey"),
        ("\\ds *.*", "sequence"),
        ("\\du", "ws_"),
        ("\\dp dl_resolved.*", "people"),
        ("\\dT", ""),
        ("\\dx", "plpgsql"),
        ("\\dO", ""),
        ("\\encoding", "UTF8"),
        ("\\sf now", "FUNCTION"),
        ("\\d nothing.at_all", "Did not find"),
        ("\\conninfo", "You are connected"),
    ] {
        let output = psql(&credentials.uri, &["-c", command], "").await;
        if output.text.contains("ERROR:  42703: column") {
            // This psql is older than the server and asks for a column that is gone; it would without us.
            continue;
        }
        assert!(output.text.contains(wanted) && !output.text.contains("ERROR"), "{command}:\n{}", output.text);
    }
}

#[tokio::test]
async fn storage_is_the_customers_own() {
    let workspace = Stack::shared().await.filled().await;
    let uri = workspace.reveal("customer_db").await.uri;
    let script = "CREATE TABLE storage.notes (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, person_id text, body text);\n\
        INSERT INTO storage.notes (person_id, body) VALUES ('pe_000007', 'met in Kraków') RETURNING id, body;\n\
        COPY storage.notes (person_id, body) FROM STDIN;\npe_000001\tcalled\npe_000002\t日本語\n\\.\n\
        UPDATE storage.notes SET body = body || '!' WHERE person_id = 'pe_000001' RETURNING body;\n\
        SELECT count(*) FROM storage.notes n JOIN dl_resolved.people p USING (person_id);\n\
        COPY (SELECT body FROM storage.notes ORDER BY id) TO STDOUT;\n\
        ALTER TABLE storage.notes ADD COLUMN done boolean DEFAULT false;\n\
        CREATE INDEX ON storage.notes (person_id);\n\
        TRUNCATE storage.notes;\nDROP TABLE storage.notes;\n";
    let output = psql(&uri, &["-At", "-f", "-"], script).await;
    let wanted =
        "CREATE TABLE\n1|met in Kraków\nINSERT 0 1\nCOPY 2\ncalled!\nUPDATE 1\n3\nmet in Kraków\n日本語\ncalled!\n";
    assert!(output.ok, "{}", output.text);
    let lines: std::collections::BTreeSet<&str> = output.text.lines().collect();
    for line in wanted.lines().chain(["ALTER TABLE", "CREATE INDEX", "TRUNCATE TABLE", "DROP TABLE"]) {
        assert!(lines.contains(line), "no {line:?} in:\n{}", output.text);
    }
}

/// What the gate refuses, by the profile's and role's document, and the beginning of what it says.
const REFUSALS: &[(&str, &str)] = &[
    ("DELETE FROM dl_cache.person_enrichments", D34),
    ("CREATE TABLE notes (id int)", D34),
    ("INSERT INTO dl_override.person_overrides (person_id) VALUES ('x')", D34),
    ("UPDATE dl_resolved.people SET title = 'x'", D34),
    ("TRUNCATE dl_cache.person_enrichments", D34),
    ("DROP TABLE dl_cache.person_enrichments", D34),
    ("ALTER TABLE dl_cache.person_enrichments ADD COLUMN x int", D34),
    ("CREATE INDEX ON dl_cache.person_enrichments (email)", D34),
    ("CREATE TABLE pg_catalog.mine (id int)", D34),
    ("DO $$BEGIN END$$", D33),
    ("CREATE SCHEMA mine", D33),
    ("CREATE EXTENSION dblink", D33),
    ("CREATE FUNCTION storage.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", D33),
    ("GRANT ALL ON SCHEMA storage TO PUBLIC", D33),
    ("VACUUM", D33),
    ("CALL storage.p()", D33),
    ("ALTER SYSTEM SET work_mem = '1GB'", D33),
    ("CREATE ROLE mine", D33),
    ("SET ROLE postgres", ""),
    ("SET SESSION AUTHORIZATION postgres", ""),
    ("RESET ROLE", ""),
    ("SELECT set_config('role', 'postgres', false)", ""),
    ("SET session_replication_role = replica", ""),
    ("SELECT pg_read_file('/etc/passwd')", ""),
    ("SELECT pg_sleep(10)", ""),
    ("SELECT pg_terminate_backend(1)", ""),
    ("SELECT x.pg_terminate_backend FROM pg_backend_pid() AS x", ""),
    ("SELECT lo_import('/etc/passwd')", ""),
    ("SELECT query_to_xml('SELECT 1', true, true, '')", ""),
    ("SELECT 1; SELECT 2", ""),
    ("SELECT 1; DELETE FROM storage.nothing", ""),
    ("COPY (SELECT 1) TO PROGRAM 'id'", ""),
    ("COPY storage.nothing FROM PROGRAM 'id'", ""),
    ("COPY (SELECT 1) TO '/tmp/portcullis'", ""),
    ("COPY dl_cache.person_enrichments FROM '/etc/passwd'", ""),
    ("LISTEN everything", ""),
    ("PREPARE TRANSACTION 'x'", ""),
    ("WITH gone AS (DELETE FROM dl_cache.person_enrichments RETURNING 1) SELECT * FROM gone", D34),
    ("EXPLAIN ANALYZE DELETE FROM dl_cache.person_enrichments", D34),
    ("SELECT * INTO mine FROM dl_resolved.people", ""),
    ("SELECT value FROM dl_meta.tenant_settings", ""),
    ("SELECT rolpassword FROM pg_authid", ""),
];

#[tokio::test]
async fn refusals_say_what_to_do_instead() {
    let workspace = Stack::shared().await.filled().await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wrong = Vec::new();
    for (statement, message) in REFUSALS {
        let output = psql(&credentials.uri, &["-c", statement], "").await;
        let refused = ["42501", "0A000"].iter().any(|code| output.text.contains(&format!("ERROR:  {code}: {message}")));
        let remedy = output.text.contains("\nHINT:  ") && output.text.contains("\nDETAIL:  ");
        if output.ok || !refused || !remedy {
            wrong.push(format!("{statement}\n{}", output.text));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), REFUSALS.len(), wrong.join("\n"));
    let people = psql(&credentials.uri, &["-At", "-c", "SELECT count(*) FROM dl_resolved.people"], "").await;
    assert_eq!(people.text.trim(), PEOPLE.to_string());
}

#[tokio::test]
async fn a_refusal_in_a_transaction_fails_it_and_rollback_goes_on() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let uri = workspace.reveal("customer_db").await.uri;
    let script = "CREATE TABLE storage.t (id int);\nBEGIN;\nINSERT INTO storage.t VALUES (1);\nDELETE FROM dl_cache.person_enrichments;\n\
        SELECT 1;\nCOMMIT;\nSELECT 'rows', count(*) FROM storage.t;\nBEGIN;\nINSERT INTO storage.t VALUES (2);\nSAVEPOINT s;\n\
        CREATE TABLE elsewhere (id int);\nROLLBACK TO s;\nINSERT INTO storage.t VALUES (3);\nCOMMIT;\nSELECT 'rows', count(*) FROM storage.t;\n";
    let output = psql(&uri, &["-At", "-v", "ON_ERROR_STOP=0", "-f", "-"], script).await;
    assert!(output.text.contains("rows|0\n") && output.text.contains("rows|2\n"), "{}", output.text);
    assert!(output.text.contains("25P02") && output.text.contains(D34), "{}", output.text);
}
