//! The format of policy documents: the annotated example has every key, mistakes are all told, and what can be switched makes
//! a difference to a verdict.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use portcullis_policy::{Policy, Surface, Target, Verdict, grants, judge, judge_setting};

const EXAMPLE: &str = include_str!("../../provisioner/profiles/policy.example.toml");
const HEAD: &str = "name = \"x\"\nmanaged_schemas = [\"m\", \"n\"]\ncustomer_schemas = [\"s\"]\n[[kind]]\nkind = \"k\"\nrole = \"r\"\n\
                    primary = true\nread = [\"m\"]\nwrite = [\"s\"]\ntruncate = [\"s\"]\ndefine = [\"s\"]\n\
                    define_objects = [\"table\", \"view\"]\n";

fn parsed(document: &str) -> Policy {
    Policy::parse(document).unwrap_or_else(|errors| panic!("{errors}\n{document}"))
}

/// `ok`, or the rule that refuses `sql` under `HEAD` with `more`.
fn outcome(more: &str, sql: &str) -> String {
    let policy = parsed(&format!("{HEAD}{more}"));
    match judge(policy.kind("k").unwrap(), Surface::SimpleQuery, sql.as_bytes(), &Target { database_names: &[] }) {
        Verdict::Allow(_) => "ok".to_owned(),
        Verdict::Deny(denial) => denial.rule.to_string(),
    }
}

/// The parser itself says which keys a table has: each must stand in the example.
#[test]
fn the_example_has_every_key() {
    let policy = parsed(EXAMPLE);
    let role = policy.kind("customer_db").unwrap();
    assert_eq!((role.rows_max(), role.bytes_max()), (Some(1_000), Some(67_108_864)));
    assert_eq!(role.search_path().as_deref(), Some("\"storage\", \"crm\""));
    let mut keys = 0;
    for place in ["name = ", "kind = \"customer_db\"", "name = \"crm.people\"", "allow = [", "query_timeout_ms = "] {
        let document = EXAMPLE.replacen(place, &format!("no_such_key = 1\n{place}"), 1);
        let errors = Policy::parse(&document).unwrap_err();
        let unknown = errors.0.iter().find(|error| error.message.contains("no_such_key")).expect(place);
        let (_, known) = unknown.message.split_once("here stand ").unwrap();
        for key in known.split(", ").map(|key| key.trim_matches('`')) {
            let there = |line: &str| {
                let line = line.trim_start();
                let table = [format!("[[kind.{key}]]"), format!("[kind.{key}]"), format!("[kind.settings.{key}]")];
                line.starts_with(&format!("{key} = "))
                    || line.starts_with(&format!("[[{key}]]"))
                    || table.iter().any(|head| line.starts_with(head))
            };
            assert!(EXAMPLE.lines().any(there), "{key} is not in the example");
            keys += 1;
        }
    }
    assert!(keys >= 39, "{keys}");
}

#[test]
fn all_mistakes_are_told_with_place_and_remedy() {
    let document = r#"name = "X"
managed_schemas = ["m", "pg_toast", "m"]
customer_schemas = ["s", "m"]
[[kind]]
kind = "owner"
role = "r"
primary = true
username_suffix = "x"
read = ["m", "other"]
define = ["z"]
define_objects = ["table", "function"]
truncate = ["s"]
statements = { only = ["SELECT", "select", "VACUUM"] }
functions = ["similarity", "pg_catalog.pg_sleep", "public.f", "public.f"]
unqualified_target = "s"
copy = "yes"

[[kind.table]]
name = "m.t"
[[kind.table]]
name = "s.t"
read = false
[[kind.table]]
name = "t"
write = 1
[[kind.table]]
name = "m.u"
read = { only = [] }
write = { only = ["a"], except = ["b"] }
[[kind.table]]
name = "m.u"
read = { all = true }
colour = "red"

[kind.settings]
allow = ["role", "jit", "app.x", "App.y"]
deny = ["maintenance_work_mem"]
search_path = ["n"]

[kind.settings.max]
work_mem = "many"
maintenance_work_mem = "1GB"
application_name = 3
statement_timeout = 0

[kind.limits]
rows_max = -1
bytes_max = 1.5
query_timeout_ms = 86400001

[[kind]]
role = 7
"#;
    let errors = Policy::parse(document).unwrap_err();
    let all = errors.to_string();
    for (line, words) in [
        (1, "`X` must be 1 to 32 of a-z"),
        (2, "schema `pg_toast` must be"),
        (2, "`m` stands here twice"),
        (3, "cannot be both managed and the customer's"),
        (5, "a kind is not called owner"),
        (8, "a primary kind has no username_suffix"),
        (9, "schema `other` is not declared for this; at the top stand: m, s"),
        (10, "schema `z` is not declared for this; at the top stand: s"),
        (11, "`function` is not one of `table`"),
        (12, "schema `s` must be in `write` too"),
        (13, "`select` is not one of SELECT, EXPLAIN"),
        (13, "`VACUUM` is not one of"),
        (14, "`similarity`: must be schema.function"),
        (14, "only an extension's can be added"),
        (14, "`public.f` stands here twice"),
        (15, "first in settings.search_path"),
        (16, "`copy` must be true or false, not string"),
        (18, "a table needs `read`, `write` or both"),
        (21, "`s` is not among managed_schemas (m)"),
        (24, "`t` must be schema.table"),
        (25, "`write` must be true, false, { only = […] } or { except = […] }, not integer"),
        (28, "must name something"),
        (29, "needs either `only` or `except`"),
        (31, "table `m.u` stands here twice"),
        (32, "unknown key `all`; here stand `except`, `only`"),
        (33, "unknown key `colour`; here stand `name`, `read`, `write`"),
        (36, "`role` cannot be added"),
        (36, "`jit` may be set anyway"),
        (36, "`App.y` cannot be added"),
        (37, "not among the parameters that may be set anyway"),
        (38, "schema `n` must be"),
        (41, "in kB or with a unit"),
        (42, "must be in `allow` too"),
        (43, "has no cap; these can have one: commit_delay"),
        (44, "must be more than 0, in ms"),
        (47, "must be from 1 to"),
        (48, "must be a whole number, not float"),
        (49, "must be from 1 to 86400000"),
        (51, "`kind` is missing"),
        (51, "needs a `username_suffix`"),
        (52, "`role` must be a string, not integer"),
    ] {
        let hit = errors.0.iter().any(|error| error.line == line && error.message.contains(words));
        assert!(hit, "line {line}: {words}\n{all}");
    }
    assert!(errors.0.iter().all(|error| error.column >= 1 && error.message.len() > 10), "{all}");
    assert!(errors.0.windows(2).all(|pair| pair[0].line <= pair[1].line), "in the order of the document\n{all}");
    let broken = Policy::parse("name = \"x\nmanaged_schemas = [\"pg_x\"]\nnope = 1\n").unwrap_err().to_string();
    assert!(broken.contains("line 1") && broken.contains("`pg_x`") && broken.contains("`nope`"), "{broken}");
}

/// What a key switches: the document's lines, a statement, and what becomes of it without and with them.
#[test]
fn every_switch_changes_a_verdict() {
    let no = "statement.not_allowed";
    let mut wrong = Vec::new();
    for (more, sql, without, with) in [
        ("statements = { except = [\"DELETE\"] }", "DELETE FROM s.t", "ok", no),
        ("statements = { except = [\"DELETE\"] }", "WITH d AS (DELETE FROM s.t RETURNING 1) SELECT 1", "ok", no),
        ("statements = { except = [\"DELETE\"] }", "EXPLAIN DELETE FROM s.t", "ok", no),
        ("statements = { except = [\"DELETE\"] }", "PREPARE p AS DELETE FROM s.t", "ok", no),
        ("statements = { except = [\"DELETE\"] }", "COPY (DELETE FROM s.t RETURNING 1) TO STDOUT", "ok", no),
        (
            "statements = { except = [\"DELETE\"] }",
            "MERGE INTO s.t USING m.u ON true WHEN MATCHED THEN DELETE",
            "ok",
            no,
        ),
        ("statements = { except = [\"DELETE\"] }", "UPDATE s.t SET a = 1", "ok", "ok"),
        (
            "statements = { except = [\"UPDATE\"] }",
            "INSERT INTO s.t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = 2",
            "ok",
            no,
        ),
        ("statements = { except = [\"UPDATE\"] }", "INSERT INTO s.t VALUES (1) ON CONFLICT DO NOTHING", "ok", "ok"),
        ("statements = { except = [\"CREATE TABLE AS\"] }", "SELECT 1 INTO s.t", "ok", no),
        ("statements = { except = [\"CREATE TABLE AS\"] }", "EXPLAIN CREATE TABLE s.t AS SELECT 1", "ok", no),
        ("statements = { except = [\"COPY TO\"] }", "COPY m.t TO STDOUT", "ok", no),
        ("statements = { except = [\"EXECUTE\"] }", "EXPLAIN EXECUTE p", "ok", no),
        ("statements = { only = [\"SELECT\"] }", "SELECT 1", "ok", "ok"),
        ("statements = { only = [\"SELECT\"] }", "INSERT INTO s.t VALUES (1)", "ok", no),
        ("statements = { only = [\"SELECT\"] }", "BEGIN", "ok", "ok"),
        ("statements = { only = [\"SELECT\"] }", "SET timezone = 'UTC'", "ok", "ok"),
        ("statements = { only = [\"SELECT\"] }", "DISCARD ALL", "ok", "ok"),
        ("statements = { only = [\"SELECT\"] }", "DECLARE c CURSOR FOR SELECT 1", "ok", no),
        ("statements = { only = [\"SELECT\"] }", "LOCK TABLE s.t", "ok", no),
        ("copy = false", "COPY m.t TO STDOUT", "ok", no),
        ("listen = true", "LISTEN a", no, "ok"),
        ("listen = true", "SELECT pg_notify('a', '')", "function.not_allowed", "ok"),
        ("advisory_locks = true", "SELECT pg_advisory_xact_lock(1)", "function.not_allowed", "ok"),
        ("temporary_tables = true", "CREATE TEMPORARY TABLE t (a int)", "target.temporary", "ok"),
        ("temporary_tables = true", "INSERT INTO pg_temp.t SELECT 1 FROM m.t", "target.schema", "ok"),
        ("temporary_tables = true", "SELECT * FROM pg_temp.t", "relation.not_readable", "ok"),
        ("temporary_tables = true", "DROP TABLE pg_temp.t", "target.schema", "ok"),
        ("temporary_tables = true", "CREATE VIEW pg_temp.v AS SELECT 1", "target.schema", "target.temporary"),
        ("temporary_tables = true", "INSERT INTO pg_temp_3.t VALUES (1)", "target.schema", "target.schema"),
        ("functions = [\"public.similarity\"]", "SELECT similarity('a', 'b')", "function.not_allowed", "ok"),
        (
            "functions = [\"public.similarity\"]",
            "SELECT m.similarity('a', 'b')",
            "function.not_allowed",
            "function.not_allowed",
        ),
        ("[kind.settings]\nallow = [\"app.x\"]", "SET app.x = '1'", "setting.not_allowed", "ok"),
        ("[kind.settings]\nallow = [\"app.x\"]", "SET app.y = '1'", "setting.not_allowed", "setting.not_allowed"),
        ("[kind.settings]\nallow = [\"app.x\"]", "SELECT set_config('app.x', $1, true)", "setting.not_allowed", "ok"),
        ("[kind.settings]\ndeny = [\"jit\"]", "SET jit = off", "ok", "setting.not_allowed"),
        ("[kind.settings]\ndeny = [\"jit\"]", "SELECT set_config('jit', $1, true)", "ok", "setting.not_allowed"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout = '61s'", "ok", "setting.value"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout = 0", "ok", "setting.value"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout = '400us'", "ok", "setting.value"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout = 0.4", "ok", "setting.value"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout = 60000", "ok", "ok"),
        ("[kind.settings.max]\nstatement_timeout = \"1min\"", "SET statement_timeout TO DEFAULT", "ok", "ok"),
        (
            "[kind.settings.max]\nstatement_timeout = \"1min\"",
            "SELECT set_config('statement_timeout', $1, true)",
            "ok",
            "setting.value",
        ),
        ("[kind.settings.max]\nwork_mem = \"1GB\"", "SET work_mem = '512MB'", "setting.value", "ok"),
        ("[[kind.table]]\nname = \"n.t\"\nread = true", "SELECT * FROM n.t", "relation.not_readable", "ok"),
        (
            "[[kind.table]]\nname = \"n.t\"\nread = true",
            "SELECT * FROM n.u",
            "relation.not_readable",
            "relation.not_readable",
        ),
        ("[[kind.table]]\nname = \"m.t\"\nread = false", "SELECT * FROM m.t", "ok", "relation.not_readable"),
        ("[[kind.table]]\nname = \"m.T t\"\nread = false", "SELECT * FROM m.\"T t\"", "ok", "relation.not_readable"),
        ("[[kind.table]]\nname = \"m.t\"\nwrite = true", "DELETE FROM m.t", "target.schema", "ok"),
        ("[[kind.table]]\nname = \"m.t\"\nwrite = true", "DELETE FROM m.u", "target.schema", "target.schema"),
    ] {
        let found = (outcome("", sql), outcome(more, sql));
        if (found.0.as_str(), found.1.as_str()) != (without, with) {
            wrong.push(format!("{more}: {sql}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A parameter at start is the same door as SET.
#[test]
fn settings_of_a_document_hold_at_start_too() {
    let more = "[kind.settings]\nallow = [\"app.x\"]\ndeny = [\"jit\"]\nmax = { lock_timeout = 5 }\n";
    let policy = parsed(&format!("{HEAD}{more}"));
    let role = policy.kind("k").unwrap();
    for (name, value, passes) in [
        ("app.x", "1", true),
        ("APP.X", "1", true),
        ("app.y", "1", false),
        ("jit", "off", false),
        ("lock_timeout", "5ms", true),
        ("lock_timeout", "6", false),
        ("work_mem", "64MB", true),
        ("work_mem", "65MB", false),
    ] {
        assert_eq!(judge_setting(role, name, value).is_ok(), passes, "{name} = {value}");
    }
}

/// What a session leaves behind keeps it on its connection.
#[test]
fn a_temporary_table_pins() {
    let policy = parsed(&format!("{HEAD}temporary_tables = true\n"));
    for (sql, pins) in [
        ("CREATE TEMP TABLE t AS SELECT 1", true),
        ("SELECT 1 INTO TEMP t", true),
        ("CREATE TABLE pg_temp.t (a int)", true),
        ("INSERT INTO s.t VALUES (1)", false),
    ] {
        let verdict = judge(policy.kind("k").unwrap(), Surface::Parse, sql.as_bytes(), &Target { database_names: &[] });
        let Verdict::Allow(permit) = verdict else { panic!("{sql}: {verdict:?}") };
        let pin = portcullis_policy::Effect::Pin(portcullis_policy::PinReason::TemporaryTable);
        assert_eq!(permit.effects().contains(&pin), pins, "{sql}");
    }
}

/// The GRANTs know what the statements say, and quote every name.
#[test]
fn statements_and_odd_names_reach_the_grants() {
    let more = "statements = { except = [\"DELETE\", \"UPDATE\"] }\n[[kind.table]]\nname = \"m.a'b\\\"c%\"\nread = { only = [\"x'y\\\"\"] }\nwrite = true\n";
    let policy = parsed(&format!("{HEAD}{more}"));
    let sql = grants::grants(policy.kind("k").unwrap(), "g").join("\n");
    assert!(sql.contains("GRANT INSERT ON TABLE \"m\".\"a'b\"\"c%\" TO \"g\""), "{sql}");
    assert!(sql.contains("ARRAY['x''y\"']") && sql.contains("''b\"\"c%%\" TO \"g\"', columns"), "{sql}");
    assert!(!sql.contains("UPDATE") && !sql.contains("DELETE"), "{sql}");
}
