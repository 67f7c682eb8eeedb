//! Tables and columns that a policy opens or closes one by one: every row of `corpus/columns.jsonl`, judged by
//! `corpus/columns.toml`. What a server answers to the same rows, with the GRANTs alone, is for the provisioner's tests.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use portcullis_policy::{Policy, RolePolicy, Surface, Target, Verdict, judge};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    class: String,
    /// `allow`, or the rule that refuses it.
    judge: String,
    /// `ok`, or the SQLSTATE of the server.
    server: String,
    sql: String,
}

fn rows() -> Vec<Row> {
    let text = include_str!("../corpus/columns.jsonl");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"))).collect()
}

fn outcome(role: &RolePolicy, surface: Surface, sql: &str) -> (String, String) {
    match judge(role, surface, sql.as_bytes(), &Target { database_names: &["ws_0123456789abcdef"] }) {
        Verdict::Allow(_) => ("allow".to_owned(), String::new()),
        Verdict::Deny(denial) => {
            assert!(!denial.hint.is_empty() && denial.object.is_some(), "{sql}: {denial:?}");
            (denial.rule.to_string(), format!("{} | {}", denial.detail, denial.hint))
        }
    }
}

fn policy() -> Policy {
    Policy::parse(include_str!("../corpus/columns.toml")).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn a_closed_column_is_out_of_reach_and_an_open_one_is_not() {
    let policy = policy();
    let role = policy.kind("customer_db").unwrap();
    let rows = rows();
    let mut wrong = Vec::new();
    for row in &rows {
        for surface in [Surface::SimpleQuery, Surface::Parse] {
            let (found, why) = outcome(role, surface, &row.sql);
            if found != row.judge {
                wrong.push(format!("{}: {} expected, {found}: {}\n    {why}", row.class, row.judge, row.sql));
            }
        }
        // The judge may be more careful than the server, never less.
        let open = row.judge == "allow" && row.server == "42501";
        assert!(!open, "passes the judge, and the server alone stops it: {}", row.sql);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(rows.iter().filter(|row| row.judge != "allow").count() >= 150, "rows were lost");
    assert!(rows.iter().filter(|row| row.judge == "allow").count() >= 50, "rows were lost");
}

/// A refusal names what may be read instead, where it stands in the text.
#[test]
fn a_refusal_names_the_columns_that_pass() {
    let policy = policy();
    let role = policy.kind("customer_db").unwrap();
    for (sql, object, hint, position) in [
        (
            "SELECT name, revenue FROM dl_resolved.companies",
            "dl_resolved.companies.revenue",
            "reads company_id, id, industry, name",
            14,
        ),
        ("SELECT * FROM dl_resolved.people", "dl_resolved.people", "reads all but salary, score", 8),
        (
            "UPDATE dl_override.person_overrides SET email = ''",
            "dl_override.person_overrides.email",
            "writes full_name, note, person_id",
            8,
        ),
    ] {
        let target = Target { database_names: &[] };
        let Verdict::Deny(denial) = judge(role, Surface::SimpleQuery, sql.as_bytes(), &target) else { panic!("{sql}") };
        assert_eq!((denial.sqlstate, denial.object.as_deref()), ("42501", Some(object)), "{sql}");
        assert!(denial.hint.contains(hint), "{sql}: {}", denial.hint);
        assert_eq!(denial.position, Some(position), "{sql}");
        assert!(denial.message.starts_with("permission denied for table "), "{}", denial.message);
    }
}

/// Many tables, many references: bounded, since each reference looks at every visible table.
#[test]
fn the_number_of_watched_tables_in_a_statement_is_bounded() {
    let policy = policy();
    let role = policy.kind("customer_db").unwrap();
    let from = |count: usize| {
        let tables: Vec<String> = (0..count).map(|n| format!("dl_resolved.people p{n}")).collect();
        format!("SELECT p0.id FROM {}", tables.join(", "))
    };
    assert_eq!(outcome(role, Surface::Parse, &from(200)).0, "allow");
    assert_eq!(outcome(role, Surface::Parse, &from(201)).0, "clause.not_allowed");
}
