//! The judge against its corpora: what clients send, what must pass, what must not, and what a refusal says.
//!
//! Every row is one text in `policy/corpus/*.jsonl`; see the README there. `UPDATE=1 cargo test -p portcullis-policy --test
//! corpora` rewrites the expectations (never the reasons that people wrote), so that a change of the policy is read in
//! the diff. An attack that passes and a benign text that does not are failures with or without it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use portcullis_policy::{Denial, Permit, Policy, RolePolicy, Rule, Surface, Target, Verdict};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

const D33: &str = "Only read statements or schema-qualified storage tables are supported.";
const D34: &str = "Customer DB writes are only allowed for schema-qualified storage tables.";

/// The profiles as they ship and the one of `columns.toml`, by `profile/kind`.
struct Roles(HashMap<String, Arc<RolePolicy>>);

impl Roles {
    fn load() -> Self {
        let mut roles = HashMap::new();
        for profile in ["storage", "override", "design", "columns"] {
            let path = match profile {
                "columns" => corpus("columns.toml"),
                _ => root().join("provisioner/profiles").join(profile).join("policy.toml"),
            };
            let policy = Policy::parse(&std::fs::read_to_string(path).unwrap()).unwrap();
            for kind in policy.kinds() {
                roles.insert(format!("{profile}/{}", kind.kind()), kind.clone());
            }
        }
        Self(roles)
    }

    fn judge(&self, role: &str, surface: &str, sql: &str) -> Result<Permit, Arc<Denial>> {
        self.judge_bytes(role, surface, sql.as_bytes())
    }

    fn judge_bytes(&self, role: &str, surface: &str, sql: &[u8]) -> Result<Permit, Arc<Denial>> {
        let role = self.0.get(role).unwrap_or_else(|| panic!("no role {role}"));
        let surface = match surface {
            "simple" => Surface::SimpleQuery,
            "parse" | "extended" => Surface::Parse,
            "http" => Surface::Http,
            other => panic!("no surface {other}"),
        };
        let target = Target { database_names: &["own_database", "ws_0123456789abcdef"] };
        match portcullis_policy::judge(role, surface, sql, &target) {
            Verdict::Allow(permit) => {
                assert_eq!(permit.text().as_bytes(), sql, "exactly the text that was judged is forwarded");
                Ok(permit)
            }
            Verdict::Deny(denial) => {
                check_denial(&String::from_utf8_lossy(sql), &denial);
                Err(denial)
            }
        }
    }

    fn outcome(&self, role: &str, surface: &str, sql: &str) -> String {
        self.judge(role, surface, sql).map_or_else(|denial| denial.rule.to_string(), |_| "allow".to_owned())
    }
}

/// Every refusal is complete: a code, a message, the rule in DETAIL, a remedy (PostgreSQL has none for a syntax error
/// either), and a position inside the text.
fn check_denial(sql: &str, denial: &Denial) {
    let shown: String = sql.chars().take(200).collect();
    assert_eq!(denial.sqlstate.len(), 5, "{shown}");
    assert!(!denial.message.is_empty(), "{shown}");
    assert!(denial.detail.contains(denial.rule.id()), "{shown}: DETAIL does not name the rule: {}", denial.detail);
    let unreadable = denial.rule == Rule::SyntaxError;
    assert!(unreadable || !denial.hint.is_empty(), "{shown}: no hint for {}", denial.rule);
    if let Some(position) = denial.position {
        assert!(position >= 1 && position as usize <= sql.chars().count() + 1, "{shown}: position {position}");
    }
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_path_buf()
}

fn corpus(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name)
}

fn read<T: DeserializeOwned>(name: &str) -> Vec<T> {
    let text = std::fs::read_to_string(corpus(name)).unwrap();
    text.lines().enumerate().map(|(at, line)| parse(name, at, line)).collect()
}

fn parse<T: DeserializeOwned>(name: &str, at: usize, line: &str) -> T {
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}:{}: {error}", at + 1))
}

fn write<T: Serialize>(name: &str, rows: &[T]) {
    let lines: Vec<String> = rows.iter().map(|row| serde_json::to_string(row).unwrap() + "\n").collect();
    std::fs::write(corpus(name), lines.concat()).unwrap();
}

fn updating() -> bool {
    std::env::var_os("UPDATE").is_some()
}

/// Rewrites the file, or fails with every row that is not as expected.
fn settle<T: Serialize>(name: &str, rows: &[T], wrong: &[String], fatal: &[String]) {
    if updating() {
        write(name, rows);
    } else {
        assert!(wrong.is_empty(), "{name}: {} rows differ (UPDATE=1 accepts):\n{}", wrong.len(), wrong.join("\n"));
    }
    assert!(fatal.is_empty(), "{name}: {} rows:\n{}", fatal.len(), fatal.join("\n"));
}

/// The proxy's workers have 64 MB stacks; a test has 2.
fn on_a_big_stack(test: impl FnOnce() + Send + 'static) {
    let worker = std::thread::Builder::new().stack_size(64 << 20).spawn(test).unwrap();
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

fn short(sql: &str) -> String {
    sql.chars().take(160).collect::<String>().replace('\n', " ")
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ClientRow {
    client: String,
    version: String,
    phase: String,
    protocol: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<String>,
    sql: String,
    customer_db: String,
    runtime: String,
    /// Why a refusal is right, and what becomes of the client. Written by people.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

#[test]
fn what_clients_send_passes_or_is_refused_for_a_written_reason() {
    on_a_big_stack(|| {
        let roles = Roles::load();
        let mut rows: Vec<ClientRow> = read("clients.jsonl");
        let (mut wrong, mut fatal) = (Vec::new(), Vec::new());
        for row in &mut rows {
            let customer_db = roles.outcome("storage/customer_db", &row.protocol, &row.sql);
            let runtime = roles.outcome("override/runtime", &row.protocol, &for_override(&row.sql));
            for (kind, expect, got) in
                [("customer_db", &mut row.customer_db, customer_db), ("runtime", &mut row.runtime, runtime)]
            {
                if *expect != got {
                    wrong.push(format!("{}: {kind}: {expect} expected, {got}: {}", row.client, short(&row.sql)));
                    *expect = got;
                }
            }
            let refused = row.customer_db != "allow" || row.runtime != "allow";
            match &row.why {
                None if refused => fatal.push(format!(
                    "{}: refused ({}, {}) without a why: {}",
                    row.client,
                    row.customer_db,
                    row.runtime,
                    short(&row.sql)
                )),
                Some(_) if !refused => {
                    fatal.push(format!("{}: passes, yet has a why: {}", row.client, short(&row.sql)))
                }
                _ => {}
            }
        }
        assert!(rows.len() >= 1_415, "rows were lost");
        settle("clients.jsonl", &rows, &wrong, &fatal);
    });
}

/// The clients were recorded against `storage`; the override profile's own schema is `tenant_custom`.
fn for_override(sql: &str) -> String {
    let word = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let mut out = String::with_capacity(sql.len());
    let mut rest = sql;
    while let Some(at) = rest.find("storage") {
        let (before, after) = (&rest[..at], &rest[at + "storage".len()..]);
        out.push_str(before);
        let part_of_a_word = word(out.chars().next_back()) || word(after.chars().next());
        out.push_str(if part_of_a_word { "storage" } else { "tenant_custom" });
        rest = after;
    }
    out + rest
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttackRow {
    class: String,
    role: String,
    surface: String,
    sql: String,
    /// The rule that refuses it.
    rule: String,
}

#[test]
fn no_attack_passes() {
    on_a_big_stack(|| {
        let roles = Roles::load();
        let mut rows: Vec<AttackRow> = read("attack.jsonl");
        let (mut wrong, mut fatal) = (Vec::new(), Vec::new());
        for row in &mut rows {
            let got = roles.outcome(&row.role, &row.surface, &row.sql);
            if got == "allow" {
                fatal.push(format!("passes: {} ({}): {}", row.class, row.role, short(&row.sql)));
            } else if row.rule != got {
                wrong.push(format!("{}: {} expected, {got}: {}", row.class, row.rule, short(&row.sql)));
                row.rule = got;
            }
        }
        assert!(rows.len() >= 1_000, "rows were lost");
        settle("attack.jsonl", &rows, &wrong, &fatal);
    });
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct BenignRow {
    class: String,
    role: String,
    surface: String,
    sql: String,
    /// What the row needs to run on a server; the end-to-end tests read it.
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<serde_json::Value>,
}

#[test]
fn ordinary_work_passes() {
    on_a_big_stack(|| {
        let roles = Roles::load();
        let rows: Vec<BenignRow> = read("benign.jsonl");
        let mut fatal = Vec::new();
        for row in &rows {
            if let Err(denial) = roles.judge(&row.role, &row.surface, &row.sql) {
                fatal.push(format!(
                    "{}: {}: {}: {} | {}",
                    row.class,
                    row.role,
                    denial.rule,
                    short(&row.sql),
                    denial.detail
                ));
            }
        }
        assert!(rows.len() >= 900, "rows were lost");
        settle("benign.jsonl", &rows, &[], &fatal);
    });
}

#[derive(Serialize, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct MessageRow {
    role: String,
    surface: String,
    sql: String,
    /// What follows `sql` and is too long or no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    tail: Option<Tail>,
    sqlstate: String,
    rule: String,
    object: Option<String>,
    message: String,
    detail: String,
    hint: String,
    position: Option<u32>,
}

#[derive(Clone, Serialize, Deserialize, PartialEq)]
#[serde(untagged, deny_unknown_fields)]
enum Tail {
    Repeat { repeat: String, times: usize },
    Hex { hex: String },
}

impl MessageRow {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.sql.clone().into_bytes();
        match &self.tail {
            None => {}
            Some(Tail::Repeat { repeat, times }) => bytes.extend(repeat.repeat(*times).bytes()),
            Some(Tail::Hex { hex }) => {
                bytes.extend((0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()));
            }
        }
        bytes
    }
}

#[test]
fn every_rule_has_a_message_that_names_object_place_and_remedy() {
    let rows: Vec<MessageRow> = read("messages.jsonl");
    // What is about a text as a whole has no object, and no place where it is too long or nothing.
    let whole = |rule: Rule| rule.id().starts_with("text.") || rule == Rule::StatementEmpty;
    for rule in Rule::ALL {
        let of_rule: Vec<&MessageRow> = rows.iter().filter(|row| row.rule == rule.id()).collect();
        assert!(!of_rule.is_empty(), "{rule} has no row in messages.jsonl");
        for row in of_rule {
            let sql = short(&row.sql);
            assert!(row.detail.starts_with(&format!("Rule {rule}: ")), "{sql}: {}", row.detail);
            assert!(*rule == Rule::SyntaxError || !row.hint.is_empty(), "{sql}: no remedy");
            assert!(row.object.is_some() || whole(*rule), "{sql}: no object");
            let nowhere = matches!(rule, Rule::TextTooLong | Rule::StatementEmpty);
            assert!(row.position.is_some() || nowhere, "{sql}: no position");
        }
    }
    let known = |row: &&MessageRow| Rule::ALL.iter().any(|rule| rule.id() == row.rule);
    assert!(rows.iter().all(|row| known(&row)), "a rule that does not exist");
}

/// The statements that hints show can be sent as they are.
#[test]
fn the_statement_in_a_hint_passes() {
    on_a_big_stack(|| {
        let roles = Roles::load();
        let mut tried = 0;
        let messages: Vec<MessageRow> = read("messages.jsonl");
        let attacks: Vec<AttackRow> = read("attack.jsonl");
        let texts = messages.iter().map(|row| (&row.role, &row.surface, &row.sql));
        for (role, surface, sql) in texts.chain(attacks.iter().map(|row| (&row.role, &row.surface, &row.sql))) {
            let Err(denial) = roles.judge(role, surface, sql) else { continue };
            let Some((_, example)) = denial.hint.split_once(" For example: ") else { continue };
            if example.ends_with('…') {
                continue;
            }
            tried += 1;
            if let Err(again) = roles.judge(role, surface, example) {
                // The rest of the text may be an attack; its targets are not what is wrong with it any more.
                assert_ne!(again.rule, Rule::TargetUnqualified, "{sql}\n{example}\n{}", again.detail);
                assert_ne!(again.rule, Rule::SyntaxError, "{sql}\n{example}\n{}", again.detail);
            }
        }
        assert!(tried >= 60, "only {tried} statements");
    });
}

#[test]
fn a_refusal_says_what_the_contract_says() {
    on_a_big_stack(|| {
        let roles = Roles::load();
        let mut rows: Vec<MessageRow> = read("messages.jsonl");
        let (mut wrong, mut fatal) = (Vec::new(), Vec::new());
        for row in &mut rows {
            let Err(denial) = roles.judge_bytes(&row.role, &row.surface, &row.bytes()) else {
                fatal.push(format!("passes: {}", short(&row.sql)));
                continue;
            };
            let got = MessageRow {
                role: row.role.clone(),
                surface: row.surface.clone(),
                sql: row.sql.clone(),
                tail: row.tail.clone(),
                sqlstate: denial.sqlstate.to_owned(),
                rule: denial.rule.to_string(),
                object: denial.object.clone(),
                message: denial.message.clone(),
                detail: denial.detail.clone(),
                hint: denial.hint.clone(),
                position: denial.position,
            };
            if *row != got {
                wrong.push(format!("{}\n    is {}", short(&row.sql), serde_json::to_string(&got).unwrap()));
                *row = got;
            }
        }
        settle("messages.jsonl", &rows, &wrong, &fatal);
    });
}

fn message(roles: &Roles, role: &str, sql: &str) -> Arc<Denial> {
    roles.judge(role, "simple", sql).expect_err(sql)
}

#[test]
fn d33_other_kinds_get_the_message_about_kinds() {
    let roles = Roles::load();
    for sql in [
        "CREATE SCHEMA x",
        "CREATE VIEW storage.v AS SELECT 1",
        "CREATE FUNCTION storage.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "CREATE EXTENSION dblink",
        "CREATE ROLE x",
        "GRANT SELECT ON storage.t TO PUBLIC",
        "DO $$BEGIN NULL; END$$",
        "CALL storage.p()",
        "VACUUM storage.t",
        "LISTEN x",
        "COPY storage.t TO PROGRAM 'id'",
    ] {
        let denial = message(&roles, "storage/customer_db", sql);
        assert_eq!((denial.sqlstate, denial.message.as_str()), ("42501", D33), "{sql}");
    }
}

#[test]
fn d34_listed_kinds_with_another_target_get_the_message_about_targets() {
    let roles = Roles::load();
    for sql in [
        "INSERT INTO notes VALUES (1)",
        "UPDATE notes SET body = ''",
        "DELETE FROM dl_cache.person_enrichments",
        "CREATE TABLE notes (id int)",
        "CREATE INDEX ON notes (id)",
        "ALTER TABLE dl_cache.person_enrichments ADD COLUMN x int",
        "DROP TABLE public.notes",
        "TRUNCATE notes",
    ] {
        let denial = message(&roles, "storage/customer_db", sql);
        assert_eq!((denial.sqlstate, denial.message.as_str()), ("42501", D34), "{sql}");
        assert!(denial.hint.contains("storage."), "D35: the remedy names storage.<table>: {}", denial.hint);
        assert!(denial.position.is_some(), "{sql}");
    }
}

#[test]
fn d35_the_override_role_is_told_of_its_own_schema() {
    let roles = Roles::load();
    for sql in
        ["INSERT INTO notes VALUES (1)", "CREATE TABLE notes (id int)", "DELETE FROM dl_cache.person_enrichments"]
    {
        let denial = message(&roles, "override/runtime", sql);
        assert_eq!(denial.message, D34, "{sql}");
        assert!(denial.hint.contains("tenant_custom"), "{}", denial.hint);
    }
}
