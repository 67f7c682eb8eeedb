//! The SELECT, VALUES, TABLE, INSERT, UPDATE, DELETE and MERGE statements that PostgreSQL's own regression suite runs, judged
//! for a role that may do all of that in `public`: each passes, or is refused by a class that has its written reason.
//!
//! `corpus/regress/README.md` says where the statements are from. `UPDATE=1` rewrites the verdicts; reasons are people's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use portcullis_policy::{Policy, RolePolicy, Rule, Surface, Target, Verdict, functions};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// `allow`, or the rule that refuses and its object.
    verdict: String,
    sql: String,
}

fn regress(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus/regress").join(name)
}

fn developer() -> Arc<RolePolicy> {
    let profile = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../provisioner/profiles/design/policy.toml");
    let policy = Policy::parse(&std::fs::read_to_string(profile).unwrap()).unwrap();
    policy.kinds().iter().find(|kind| kind.kind() == "developer").unwrap().clone()
}

/// `allow`, or the class of the refusal: its rule and the object. Functions that the suite makes for itself are one class.
fn verdict(role: &RolePolicy, sql: &str) -> String {
    let target = Target { database_names: &["regression"] };
    match portcullis_policy::judge(role, Surface::SimpleQuery, sql.as_bytes(), &target) {
        Verdict::Allow(_) => "allow".to_owned(),
        Verdict::Deny(denial) => match &denial.object {
            Some(name) if denial.rule == Rule::FunctionNotAllowed && !functions::is_known_function(name) => {
                format!("{} other", denial.rule)
            }
            Some(object) => format!("{} {object}", denial.rule),
            None => denial.rule.to_string(),
        },
    }
}

/// Classes of refusals and why each is right. A class is a verdict, or the start of one that ends with `*`.
fn reasons() -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(regress("refusals.tsv")).unwrap();
    let rows = text.lines().filter(|line| !line.starts_with('#'));
    let split = |line: &str| line.split_once('\t').map(|(class, why)| (class.to_owned(), why.to_owned()));
    rows.map(|line| split(line).unwrap_or_else(|| panic!("refusals.tsv: {line}"))).collect()
}

fn covers(class: &str, verdict: &str) -> bool {
    class.strip_suffix('*').map_or(class == verdict, |start| verdict.starts_with(start))
}

fn judge_all() {
    let role = developer();
    let text = std::fs::read_to_string(regress("statements.jsonl")).unwrap();
    let mut rows: Vec<Row> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut wrong = Vec::new();
    for row in &mut rows {
        let got = verdict(&role, &row.sql);
        if got != row.verdict {
            wrong.push(format!("{} expected, {got}: {}", row.verdict, row.sql));
            row.verdict = got;
        }
    }
    if std::env::var_os("UPDATE").is_some() {
        let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
        std::fs::write(regress("statements.jsonl"), lines.concat()).unwrap();
    } else {
        assert!(wrong.is_empty(), "{} differ (UPDATE=1 accepts):\n{}", wrong.len(), wrong.join("\n"));
    }
    assert!(rows.len() >= 9_000, "rows were lost");
    every_refusal_has_its_reason(&rows);
}

fn every_refusal_has_its_reason(rows: &[Row]) {
    let reasons = reasons();
    let refused: Vec<&Row> = rows.iter().filter(|row| row.verdict != "allow").collect();
    let missing: Vec<String> = refused
        .iter()
        .filter(|row| !reasons.keys().any(|class| covers(class, &row.verdict)))
        .map(|row| format!("{}: {}", row.verdict, row.sql))
        .collect();
    assert!(missing.is_empty(), "{} refused without a reason:\n{}", missing.len(), missing.join("\n"));
    for (class, why) in &reasons {
        assert!(why.len() > 20, "{class}: a reason is a sentence");
        assert!(refused.iter().any(|row| covers(class, &row.verdict)), "{class} refuses nothing any more");
    }
    // What is refused stays a small part: a rule that grows shows here.
    let percent = refused.len() * 100 / rows.len();
    assert!(percent <= 12, "{percent} % of {} are refused", rows.len());
}

#[test]
fn what_the_regression_suite_runs_passes_or_is_refused_for_a_written_reason() {
    // The proxy's workers have 64 MB stacks; a test has 2.
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn(judge_all).unwrap();
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}
