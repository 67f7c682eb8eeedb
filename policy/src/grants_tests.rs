//! What the documents compile to. Whether PostgreSQL then refuses is for the tests with a server.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;
use crate::Policy;

fn compiled(document: &str, kind: &str) -> Vec<String> {
    grants(Policy::parse(document).unwrap().kind(kind).unwrap(), "g\"r")
}

#[test]
fn grants_as_a_table() {
    let storage = include_str!("../../provisioner/profiles/storage/policy.toml");
    let over = include_str!("../../provisioner/profiles/override/policy.toml");
    let to = "TO \"g\"\"r\"";
    assert_eq!(
        compiled(storage, "customer_db"),
        [
            format!("GRANT USAGE ON SCHEMA \"dl_cache\" {to}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA \"dl_cache\" {to}"),
            format!("GRANT USAGE ON SCHEMA \"dl_override\" {to}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA \"dl_override\" {to}"),
            format!("GRANT USAGE ON SCHEMA \"dl_resolved\" {to}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA \"dl_resolved\" {to}"),
            format!("GRANT USAGE, CREATE ON SCHEMA \"storage\" {to}"),
        ]
    );
    assert_eq!(
        compiled(over, "read"),
        [
            format!("GRANT USAGE ON SCHEMA \"dl_resolved\" {to}"),
            format!("GRANT SELECT ON ALL TABLES IN SCHEMA \"dl_resolved\" {to}"),
        ]
    );
    let runtime = compiled(over, "runtime");
    assert!(
        runtime.contains(&format!("GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA \"dl_override\" {to}"))
    );
    assert!(runtime.iter().all(|sql| !sql.contains("TRUNCATE") && !sql.contains("REFERENCES")));
}

#[test]
fn names_are_quoted_in_event_triggers() {
    let sql = event_trigger_sql(&["stor'age".to_owned()], &[], &["o'wner"]).join(";\n");
    assert!(sql.contains("ARRAY['stor''age']::text[]") && sql.contains("ARRAY['o''wner']::text[]"));
}

/// `pg_temp` is searched before every schema of a path that does not name it.
#[test]
fn no_temporary_table_stands_before_a_catalog_in_the_event_triggers() {
    let sql = event_trigger_sql(&["storage".to_owned(), "pg_temp".to_owned()], &[], &["owner"]);
    let functions: Vec<&String> = sql.iter().filter(|sql| sql.contains("RETURNS event_trigger")).collect();
    assert_eq!(functions.len(), 2);
    assert!(functions.iter().all(|sql| sql.contains("\nSET search_path = pg_catalog, pg_temp AS")));
}

#[test]
fn event_triggers_know_what_the_kinds_define() {
    let sql = |document: &str| {
        let policy = Policy::parse(document).unwrap();
        event_trigger_sql(policy.customer_schemas(), policy.kinds(), &[]).join(";\n")
    };
    let storage = sql(include_str!("../../provisioner/profiles/storage/policy.toml"));
    let over = sql(include_str!("../../provisioner/profiles/override/policy.toml"));
    for (tag, everywhere) in
        [("CREATE TABLE", true), ("CREATE SEQUENCE", true), ("COMMENT", true), ("CREATE VIEW", false)]
    {
        let tag = format!("'{tag}'");
        assert!(over.contains(&tag) && storage.contains(&tag) == everywhere, "{tag}");
    }
}
