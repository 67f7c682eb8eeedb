//! `portcullis-proxy check` as people and scripts meet it: what goes in, what comes out, and the exit code.

#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "../src/testing.rs"]
#[allow(dead_code)]
mod testing;

use std::io::Write as _;
use std::process::{Command, Stdio};

use portcullis_policy::Rule;
use testing::Dir;

struct Ran {
    code: i32,
    output: String,
    errors: String,
}

fn check(arguments: &[&str], input: &[u8]) -> Ran {
    let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis-proxy"))
        .env_clear()
        .arg("check")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    // It may answer without having read all, or anything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    Ran {
        code: output.status.code().expect("no signal ended it"),
        output: String::from_utf8(output.stdout).unwrap(),
        errors: String::from_utf8(output.stderr).unwrap(),
    }
}

const CUSTOMER: [&str; 4] = ["--policy", "storage", "--role", "customer_db"];

fn customer(more: &[&str], input: &[u8]) -> Ran {
    check(&[&CUSTOMER[..], more].concat(), input)
}

#[test]
fn what_may_pass_is_outlined() {
    let ran = customer(&[], b"SELECT count(*) FROM dl_resolved.people;\n");
    assert_eq!(ran.output, "allowed    SELECT\nreads      dl_resolved.people\nfunctions  count\n");
    assert_eq!((ran.code, ran.errors.as_str()), (0, ""));
}

#[test]
fn a_refusal_reads_as_in_psql() {
    let ran = customer(&[], "BEGIN;\n\tCREATE TABLE \"Über\" (id int); COMMIT".as_bytes());
    let expect = "\
ERROR:  Customer DB writes are only allowed for schema-qualified storage tables.
LINE 2:  CREATE TABLE \"Über\" (id int); COMMIT
                      ^
DETAIL:  Rule target.unqualified: CREATE TABLE: target Über is not schema-qualified.
HINT:  Rewrite the target as storage.\"Über\", or make the query read-only. For example: CREATE TABLE storage.\"Über\" (id int)

refused    CREATE TABLE
rule       target.unqualified
object     Über
sqlstate   42501
writes     Über
";
    assert_eq!(ran.output, expect);
    assert_eq!((ran.code, ran.errors.as_str()), (1, ""));
}

#[test]
fn the_readme_shows_a_real_run() {
    let ran = customer(&[], b"CREATE TABLE notes (id int, body text);\n");
    assert!(include_str!("../../README.md").contains(&ran.output), "README.md must contain:\n{}", ran.output);
}

#[test]
fn json_has_an_object_per_text() {
    let ran = customer(&["--each", "nul", "--json"], b"SELECT 1\0DELETE FROM notes\0SELEC\0");
    let rows: Vec<serde_json::Value> = ran.output.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 3, "{}", ran.output);
    assert_eq!((&rows[0]["number"], &rows[0]["verdict"], &rows[0]["rule"]), (&1.into(), &"allow".into(), &().into()));
    assert_eq!((&rows[1]["kind"], &rows[1]["writes"][0]), (&"DELETE".into(), &"notes".into()));
    assert_eq!((&rows[1]["verdict"], &rows[1]["rule"]), (&"deny".into(), &"target.unqualified".into()));
    assert_eq!((&rows[1]["position"], &rows[1]["sqlstate"]), (&13.into(), &"42501".into()));
    assert_eq!((&rows[2]["kind"], &rows[2]["rule"]), (&().into(), &"syntax.error".into()));
    assert_eq!(ran.code, 1);
}

#[test]
fn lines_are_numbered_and_counted() {
    let ran = customer(&["--each", "line"], b"SELECT 1\n\nVACUUM\n");
    assert!(ran.output.starts_with("-- 1\nallowed    SELECT\n\n-- 3\nERROR:  "), "{}", ran.output);
    assert!(ran.output.ends_with("\n1 allowed, 1 refused\n"), "{}", ran.output);
    assert_eq!(ran.code, 1);
}

#[test]
fn the_surface_and_the_database_s_names_count() {
    let two = b"BEGIN; SELECT 1";
    for (surface, code) in [("simple", 0), ("parse", 1), ("http", 1)] {
        assert_eq!(customer(&["--surface", surface], two).code, code, "{surface}");
    }
    let three_parts = b"SELECT * FROM ws_1.storage.notes";
    assert_eq!(customer(&[], three_parts).code, 1);
    assert_eq!(customer(&["--database", "acme", "--database", "ws_1"], three_parts).code, 0);
}

#[test]
fn bytes_of_any_kind_and_length_are_answered() {
    let deep = format!("SELECT {}1{}", "(".repeat(600), ")".repeat(600));
    let chain = format!("SELECT 1{}", "+1".repeat(1_900));
    for (input, code) in [
        (deep.into_bytes(), 0),
        (chain.into_bytes(), 0),
        (vec![b'('; 1 << 20], 1),
        (vec![b' '; (1 << 20) + 1], 1),
        (vec![b'x'; 3 << 20], 1),
        ((0..=255).collect(), 1),
        (vec![0xff], 1),
        (vec![0], 1),
        (Vec::new(), 0),
    ] {
        let start = String::from_utf8_lossy(&input[..input.len().min(20)]).into_owned();
        for json in [&[][..], &["--json"]] {
            let ran = customer(json, &input);
            assert_eq!((ran.code, ran.errors.as_str()), (code, ""), "{start:?}: {}", ran.output);
        }
    }
}

#[test]
fn a_role_that_is_not_there_is_told_which_are() {
    let missing = check(&["--policy", "override"], b"SELECT 1");
    assert_eq!(missing.errors, "--role is missing; the kinds of policy override are runtime, read, platform\n");
    let unknown = check(&["--policy", "override", "--role", "x"], b"SELECT 1");
    assert_eq!(unknown.errors, "--role is \"x\"; the kinds of policy override are runtime, read, platform\n");
    assert_eq!((missing.code, unknown.code), (2, 2));
    assert_eq!(check(&[], b"SELECT 1").code, 2);
    assert_eq!(customer(&["--surface", "telnet"], b"SELECT 1").code, 2);
}

#[test]
fn every_mistake_of_a_policy_has_its_place() {
    let dir = Dir::new();
    let file = dir.write("p.toml", "name = \"p\"\nmanaged_schemas = []\ncustomer_schemas = 3\nnonsense = 1\n");
    let file = file.to_str().unwrap();
    let ran = check(&["--policy", file, "--role", "x"], b"SELECT 1");
    assert_eq!((ran.code, ran.output.as_str()), (2, ""));
    let lines: Vec<&str> = ran.errors.lines().collect();
    assert!(lines.len() >= 2, "{}", ran.errors);
    for line in [3, 4] {
        assert!(lines.iter().any(|text| text.starts_with(&format!("{file}:{line}:"))), "{}", ran.errors);
    }
    let absent = check(&["--policy", "/nonexistent.toml", "--role", "x"], b"");
    assert_eq!(absent.code, 2);
    assert!(absent.errors.contains("/nonexistent.toml") && absent.errors.contains("storage"), "{}", absent.errors);
}

#[test]
fn grants_are_sql_for_the_grantee() {
    let ran = customer(&["--grants", "--grantee", "ws_1_customer_db"], b"");
    assert_eq!(ran.code, 0);
    assert!(
        ran.output.contains("\nGRANT USAGE, CREATE ON SCHEMA \"storage\" TO \"ws_1_customer_db\";\n"),
        "{}",
        ran.output
    );
    let all = check(&["--policy", "override", "--grants"], b"");
    let kinds: Vec<&str> = all.output.lines().filter(|line| line.starts_with("-- ")).collect();
    assert_eq!(kinds, ["-- override, kind runtime", "-- override, kind read", "-- override, kind platform"]);
}

#[test]
fn every_rule_is_listed() {
    let ran = check(&["--rules"], b"");
    assert_eq!(ran.code, 0);
    let ids: Vec<&str> = ran.output.lines().filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids, Rule::ALL.iter().map(|rule| rule.id()).collect::<Vec<_>>());
}
