//! The settings list as a table.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::*;

fn role() -> RolePolicy {
    let text = r#"
name = "t"
customer_schemas = ["storage"]
[[kind]]
kind = "k"
role = "k"
primary = true
read = ["storage"]
write = ["storage"]
"#;
    (**crate::Policy::parse(text).unwrap().primary().unwrap()).clone()
}

#[test]
fn settings_as_a_table() {
    let role = role();
    let rows: &[(&str, &str, bool)] = &[
        ("application_name", "x", true),
        ("TimeZone", "Europe/Vienna", true),
        ("client_encoding", "UTF8", true),
        ("client_encoding", "utf-8", true),
        ("client_encoding", "'utf-8'", true),
        ("client_encoding", "SJIS", false),
        ("client_encoding", "SQL_ASCII", false),
        ("standard_conforming_strings", "on", true),
        ("standard_conforming_strings", "off", false),
        ("work_mem", "64MB", true),
        ("work_mem", "65537", false),
        ("work_mem", "1GB", false),
        ("work_mem", "-1", false),
        ("sort_mem", "10GB", false),
        ("default_tablespace", "", true),
        ("default_tablespace", "fast", false),
        ("search_path", "", true),
        ("search_path", "storage, public", true),
        ("search_path", "\"$user\", public", true),
        ("search_path", "STORAGE", true),
        ("search_path", "\"STORAGE\"", false),
        ("search_path", "dl_meta", false),
        ("search_path", "pg_catalog, storage", true),
        ("search_path", "storage, pg_catalog", false),
        ("search_path", "pg_temp", false),
        ("search_path", "storage,,public", false),
        ("search_path", "storage public", false),
        ("role", "postgres", false),
        ("session_authorization", "default", false),
        ("log_statement", "none", false),
        ("session_replication_role", "replica", false),
        ("app.user", "1", false),
        ("statement_timeout", "0", true),
    ];
    for (name, value, pass) in rows {
        assert_eq!(judge_setting(&role, name, value).is_ok(), *pass, "{name} = {value}");
    }
}

#[test]
fn the_list_is_sorted() {
    assert!(SETTINGS.is_sorted_by(|a, b| a.0 < b.0));
}
