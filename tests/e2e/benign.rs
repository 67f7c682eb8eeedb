//! The benign corpus, run: each row goes through the gate to PostgreSQL, by the simple protocol and, where it is one
//! statement, by the extended one, as its role, and nothing errs. (Crate `policy` judges the same rows without a server.)
//!
//! A row runs in a transaction that is rolled back, so rows neither depend on each other nor clean up; what cannot run in
//! one (`run.fresh`) has a session of its own. `policy/corpus/README.md` describes the columns and fixtures.

use std::time::Duration;

use bytes::{BufMut, BytesMut};
use portcullis_tests::{
    Stack,
    customer::Credentials,
    programs,
    raw::{Message, Pipeline, Wire},
    wait::within,
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Row {
    role: String,
    surface: String,
    sql: String,
    #[serde(default)]
    run: Run,
}

/// What a row needs to run beyond its profile's fixture.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Run {
    /// Sent before, in the same transaction (or session, when fresh).
    setup: Vec<String>,
    /// Sent after. For fresh rows alone; the others are rolled back.
    teardown: Vec<String>,
    /// In a session of its own, outside a transaction.
    fresh: bool,
    /// The values of $1, $2, …, as text.
    values: Vec<Option<String>>,
    /// What is sent when the server asks for COPY data; each character is a byte.
    copy: String,
    /// Servers before this major version do not have the syntax or function.
    min_major: u32,
    /// Servers after this major version no longer have it.
    max_major: Option<u32>,
}

fn corpus(name: &str) -> String {
    let path = programs::root().join("policy/corpus").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn rows(role: &str) -> Vec<Row> {
    let rows = corpus("benign.jsonl");
    let rows = rows.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")));
    rows.filter(|row: &Row| row.role == role).collect()
}

/// What came of a row.
struct Outcome {
    errors: Vec<String>,
    /// How many statements were answered.
    statements: usize,
}

/// A session and what it takes to replace it.
struct Runner {
    credentials: Credentials,
    wire: Wire,
    major: u32,
}

impl Runner {
    async fn new(credentials: Credentials) -> Runner {
        let mut wire = Wire::login(&credentials).await;
        let number = wire.query("SHOW server_version_num").await;
        let number = number.iter().find(|message| message.tag == b'D').and_then(|row| row.columns()[0].clone());
        let major = number.and_then(|number| number.parse::<u32>().ok()).expect("a version") / 10_000;
        Runner { credentials, wire, major }
    }

    /// Runs a row by one protocol.
    async fn row(&mut self, row: &Row, extended: bool) -> Outcome {
        let mut around = (Some("BEGIN"), Some("ROLLBACK"));
        if row.run.fresh {
            self.wire = Wire::login(&self.credentials).await;
            around = (None, None);
        }
        let mut errors = Vec::new();
        for sql in around.0.into_iter().chain(row.run.setup.iter().map(String::as_str)) {
            let sql = self.own_name(sql);
            errors.extend(errors_in(&self.wire.query(&sql).await, &sql));
        }
        let answer = self.statement(row, extended).await;
        errors.extend(errors_in(&answer, "it"));
        for sql in around.1.into_iter().chain(row.run.teardown.iter().map(String::as_str)) {
            errors.extend(errors_in(&self.wire.query(sql).await, sql));
        }
        Outcome { errors, statements: answer.iter().filter(|message| matches!(message.tag, b'C' | b'I')).count() }
    }

    async fn statement(&mut self, row: &Row, extended: bool) -> Vec<Message> {
        let sql = self.own_name(&row.sql);
        let mut pipeline = Pipeline::new();
        if extended {
            let values: Vec<Option<&str>> = row.run.values.iter().map(Option::as_deref).collect();
            pipeline.statement(&sql, &values).sync();
        } else {
            pipeline.query(&sql);
        }
        self.wire.send(&pipeline.bytes).await.expect("sent");
        let mut messages = Vec::new();
        loop {
            let message = self.wire.next().await.unwrap_or_else(|error| panic!("the session broke ({error}): {sql}"));
            if message.tag == b'G' {
                // The Sync that came with the Execute was swallowed by the COPY.
                self.wire.send(&copy_data(&row.run.copy, extended)).await.expect("sent");
            }
            let done = message.tag == b'Z';
            messages.push(message);
            if done {
                return messages;
            }
        }
    }

    /// The corpus calls the session's database `own_database`.
    fn own_name(&self, sql: &str) -> String {
        sql.replace("own_database", &self.credentials.database)
    }
}

fn copy_data(text: &str, sync: bool) -> BytesMut {
    let data: Vec<u8> = text.chars().map(|byte| u8::try_from(u32::from(byte)).expect("a byte")).collect();
    let mut out = BytesMut::new();
    out.put_u8(b'd');
    out.put_u32(u32::try_from(data.len()).expect("short") + 4);
    out.put_slice(&data);
    out.put_slice(b"c\0\0\0\x04");
    if sync {
        out.put_slice(b"S\0\0\0\x04");
    }
    out
}

fn errors_in(messages: &[Message], of: &str) -> Vec<String> {
    let errors = messages.iter().filter(|message| message.tag == b'E');
    let said = |error: &Message| [b'C', b'M', b'D', b'P'].map(|field| error.field(field).unwrap_or_default()).join(" ");
    errors.map(|error| format!("{of}: {}", said(error))).collect()
}

/// Makes a workspace of the profile and what its rows use: the platform's data and the role's own fixture.
async fn prepared(profile: &str, kind: &str) -> Runner {
    let workspace = Stack::shared().await.workspace(profile).await;
    if profile != "design" {
        workspace.fill().await;
    }
    let mut runner = Runner::new(workspace.reveal(kind).await).await;
    let fixture = corpus(&format!("fixtures/{profile}_{kind}.sql"));
    for statement in fixture.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
        let errors = errors_in(&runner.wire.query(statement).await, statement);
        assert!(errors.is_empty(), "the fixture of {profile}/{kind}: {errors:?}");
    }
    runner
}

/// Runs the role's rows, of which there are at least `expected` for this server.
async fn runs(profile: &str, kind: &str, expected: usize) {
    let mut runner = prepared(profile, kind).await;
    let (mut wrong, mut ran) = (Vec::new(), 0);
    for row in rows(&format!("{profile}/{kind}")) {
        let gone = row.run.max_major.is_some_and(|last| last < runner.major);
        if gone || row.run.min_major > runner.major {
            continue;
        }
        ran += 1;
        // A text of several statements goes by the simple protocol alone, one with parameters by the extended one.
        let protocols: &[bool] = if row.surface == "parse" { &[true] } else { &[false, true] };
        for extended in protocols {
            let what = format!("{} ({}): {}", row.role, if *extended { "extended" } else { "simple" }, row.sql);
            let outcome = within(Duration::from_secs(30), &what, runner.row(&row, *extended)).await;
            if !outcome.errors.is_empty() {
                wrong.push(format!("{what}\n    {}", outcome.errors.join("\n    ")));
            }
            if outcome.statements > 1 || !outcome.errors.is_empty() {
                break;
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {ran}:\n{}", wrong.len(), wrong.join("\n"));
    assert!(ran >= expected, "only {ran} rows ran");
}

#[tokio::test]
async fn what_a_customer_does_runs() {
    runs("storage", "customer_db", 700).await;
}

#[tokio::test]
async fn what_an_override_login_does_runs() {
    runs("override", "runtime", 70).await;
}

#[tokio::test]
async fn what_a_reading_login_does_runs() {
    runs("override", "read", 25).await;
}

#[tokio::test]
async fn what_a_developer_does_runs() {
    runs("design", "developer", 75).await;
}
