//! A second opinion: what sqlparser makes of the texts that the judge lets through.
//!
//! sqlparser is no authority here (it refuses some of PostgreSQL's grammar and reads some of it wrongly), but where it
//! understands a text and sees other statements, or a write where the judge sees a read, a person has to look. What has
//! been looked at is in `corpus/second_opinion.jsonl`; anything else fails. `UPDATE=1` rewrites that file.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use portcullis_policy::fuzz::Mutator;
use portcullis_policy::{Effort, Kind, Policy, Surface, Target, Verdict, effort, judge};
use serde::{Deserialize, Serialize};
use sqlparser::ast::{SetExpr, Statement};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// How many mutations of the corpora are shown to both.
const MUTATIONS: usize = 20_000;

#[derive(Deserialize)]
struct Row {
    sql: String,
}

#[derive(Debug, Serialize, Deserialize, PartialEq, Eq, PartialOrd, Ord)]
struct Disagreement {
    sql: String,
    judge: String,
    sqlparser: String,
}

fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn rows<T: serde::de::DeserializeOwned>(name: &str) -> Vec<T> {
    let text = fs::read_to_string(path("corpus").join(name)).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// Statements and whether one of them writes, in sqlparser's view; `None` where it does not understand the text.
fn second(sql: &str) -> Option<(usize, bool)> {
    let statements = Parser::parse_sql(&PostgreSqlDialect {}, sql).ok()?;
    Some((statements.len(), statements.iter().any(writes)))
}

fn writes(statement: &Statement) -> bool {
    match statement {
        Statement::Insert(_) | Statement::Update(_) | Statement::Delete(_) | Statement::Merge(_) => true,
        Statement::Explain { analyze, statement, .. } => *analyze && writes(statement),
        Statement::Query(query) => {
            let with = query.with.iter().flat_map(|with| &with.cte_tables);
            set_writes(&query.body) || with.into_iter().any(|cte| set_writes(&cte.query.body))
        }
        _ => false,
    }
}

fn set_writes(body: &SetExpr) -> bool {
    match body {
        SetExpr::Insert(_) | SetExpr::Update(_) | SetExpr::Delete(_) | SetExpr::Merge(_) => true,
        SetExpr::SetOperation { left, right, .. } => set_writes(left) || set_writes(right),
        _ => false,
    }
}

#[test]
fn what_passes_is_what_sqlparser_sees_too() {
    let document = fs::read_to_string(path("../provisioner/profiles/storage/policy.toml")).unwrap();
    let role = Policy::parse(&document).unwrap().kind("customer_db").unwrap().clone();
    let mut found = BTreeSet::new();
    let mut understood = 0;
    let mut texts: Vec<Row> = ["benign.jsonl", "clients.jsonl"].into_iter().flat_map(rows::<Row>).collect();
    let seeds: Vec<String> = texts.iter().map(|row| row.sql.clone()).filter(|sql| sql.len() < 4_000).collect();
    let mut mutator = Mutator::new(1, &seeds);
    let mutated = (0..MUTATIONS).map(|_| Row { sql: mutator.text() });
    // Deep ones are for bigger stacks than a test has.
    texts.extend(mutated.filter(|row| effort(row.sql.as_bytes()) == Effort::Small));
    for row in texts {
        let target = Target { database_names: &["own_database"] };
        let Verdict::Allow(permit) = judge(&role, Surface::SimpleQuery, row.sql.as_bytes(), &target) else { continue };
        let Some((statements, writes)) = second(&row.sql) else { continue };
        understood += 1;
        let judged = (permit.statements(), !permit.writes().is_empty() && permit.command() != Kind::Explain);
        // The judge counts locks and definitions as writes; only a write that it does not see is a disagreement.
        if statements != judged.0 || (writes && !judged.1 && permit.command() != Kind::Explain) {
            found.insert(Disagreement {
                sql: row.sql,
                judge: format!("{} × {}, writes {}", judged.0, permit.command(), judged.1),
                sqlparser: format!("{statements} statements, writes {writes}"),
            });
        }
    }
    assert!(understood > 1000, "sqlparser understood {understood} texts only: this test has lost its worth");
    if std::env::var_os("UPDATE").is_some() {
        let lines: Vec<String> = found.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        fs::write(path("corpus/second_opinion.jsonl"), lines.concat()).unwrap();
        return;
    }
    let known: BTreeSet<Disagreement> = rows("second_opinion.jsonl").into_iter().collect();
    assert_eq!(found, known, "look at each, then UPDATE=1");
}
