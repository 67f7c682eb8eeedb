//! Pipelines, portals and transactions as PostgreSQL answers them: every script is held through the gate and with
//! PostgreSQL itself, and both have to say the same. All sessions share two upstream connections, so whatever one
//! script leaves behind is the next one's trouble.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack, Workspace,
    customer::Credentials,
    raw::Wire,
    script::{bytes, hold, hold_with, step_by_step, words},
    wait::within,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// What the gate and PostgreSQL are to agree about. `T` is a table of one's own: (id int PRIMARY KEY, v text); `U` has a
/// constraint that is checked at the end of the transaction.
const SCRIPTS: &[(&str, &str)] = &[
    ("Flush gives the answers so far", "P | SELECT 1\nB\nH\nwait 2\nDP\nE\nH\nwait C\nS"),
    (
        "an error after a Flush",
        "P | SELECT 1/x FROM generate_series(0, 0) x\nB\nH\nwait 2\nE\nH\nwait E\nB\nE\nP | SELECT 2\nS\nP | SELECT 3\nB\nE\nS",
    ),
    ("an error and several Syncs", "P | SELECT 1/0\nB\nE\nP | SELECT 2\nB\nE\nS\nS\nP | SELECT 3\nB\nE\nS\nS"),
    ("Syncs alone", "S\nS\nS"),
    ("a Query inside a pipeline", "P | SELECT 1\nB\nE\nQ SELECT 2\nP | SELECT 3\nB\nE\nS"),
    ("a Query behind an error of its pipeline", "P | SELECT 1/0\nB\nE\nQ SELECT 2\nQ SELECT 3\nS\nQ SELECT 4"),
    (
        "the same, and the client waits for the error",
        "P | SELECT 1/0\nB\nE\nQ SELECT 2\nwait E\nQ SELECT 3\nS\nQ SELECT 4",
    ),
    ("an error in a Query before a pipeline", "Q SELECT 1/0\nP | SELECT 2\nB\nE\nS"),
    ("a statement that does not parse", "P | SELEC 1\nB\nE\nS\nQ SELEC\nQ SELECT 1"),
    ("a relation that is not there", "P s | SELECT * FROM storage.missing\nB | s\nE\nS\nB | s\nE\nS"),
    (
        "the same text twice, in two pipelines",
        "P s | SELECT * FROM storage.missing\nS\nS\nwait Z\nP s | SELECT 1\nB | s\nE\nS",
    ),
    (
        "a pipeline is one transaction",
        "P | INSERT INTO T VALUES (1)\nB\nE\nP | SELECT 1/0\nB\nE\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "unless it commits",
        "P | BEGIN\nB\nE\nP | INSERT INTO T VALUES (1)\nB\nE\nP | COMMIT\nB\nE\nP | SELECT 1/0\nB\nE\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "autosave as JDBC sends it",
        "P | BEGIN\nB\nE | 0\nP i | INSERT INTO T VALUES ($1::int, 'a')\nB | i | 1\nE | 1\nQ SAVEPOINT auto\nP j | INSERT INTO T VALUES ($1::int, 'b')\nB | j | 1\nDP\nE | 1\nS\nwait Z\nwait Z\nQ ROLLBACK TO SAVEPOINT auto\nB | i | 2\nE\nS\nQ COMMIT\nQ SELECT * FROM T ORDER BY 1",
    ),
    (
        "savepoints in a pipeline",
        "Q BEGIN\nQ SAVEPOINT a\nQ SELECT 1/0\nQ SELECT 1\nQ ROLLBACK TO a\nQ SELECT 2\nQ RELEASE a\nQ COMMIT",
    ),
    (
        "a failed transaction",
        "Q BEGIN\nQ SELECT 1/0\nP | SELECT 1\nB\nE\nS\nQ SELECT 2\nQ \nP | ROLLBACK\nB\nE\nS\nQ SELECT 3",
    ),
    ("COMMIT of a failed transaction", "Q BEGIN\nQ SELECT 1/0\nQ COMMIT\nQ SELECT 1"),
    (
        "COMMIT AND CHAIN",
        "Q BEGIN\nQ INSERT INTO T VALUES (1)\nQ COMMIT AND CHAIN\nQ INSERT INTO T VALUES (2)\nQ ROLLBACK AND CHAIN\nQ SELECT count(*) FROM T\nQ ROLLBACK",
    ),
    ("warnings", "Q ROLLBACK\nQ BEGIN\nQ BEGIN\nQ COMMIT\nQ COMMIT"),
    (
        "batches",
        "Q BEGIN; INSERT INTO T VALUES (1, 'a')\nQ SAVEPOINT x; SELECT count(*) FROM T\nQ ROLLBACK TO x; COMMIT\nQ SELECT count(*) FROM T",
    ),
    ("an error in a batch", "Q BEGIN; SELECT 1/0\nQ ROLLBACK\nQ BEGIN; SELECT 1\nQ COMMIT"),
    ("empty texts", "Q \nQ ;\nP | \nB\nDP\nE\nS\nQ -- nothing"),
    ("empty texts in a transaction", "Q BEGIN\nQ \nQ SELECT 1/0\nQ \nQ ROLLBACK"),
    ("a constraint that fails at Sync", "P | INSERT INTO U VALUES (1), (1)\nB\nE\nS\nQ SELECT count(*) FROM U"),
    (
        "a constraint that fails at COMMIT",
        "Q BEGIN\nQ INSERT INTO U VALUES (1), (1)\nQ COMMIT\nQ SELECT count(*) FROM U",
    ),
    (
        "a constraint that fails when a Query ends the pipeline",
        "P | INSERT INTO U VALUES (1), (1)\nB\nE\nQ SELECT 1\nS\nQ SELECT count(*) FROM U",
    ),
    ("a Bind with too few values", "P s | SELECT $1::int\nB | s\nE\nS\nB | s | 1\nE\nS"),
    ("a Bind with a value that is none", "P s | SELECT $1::int\nB | s | x\nE\nS\nB | s | NULL\nE\nS"),
    ("a portal's name twice", "Q BEGIN\nP s | SELECT 1\nB p | s\nB p | s\nS\nQ ROLLBACK\nB p | s\nE p\nS"),
    ("portals that are not there", "E nope\nS\nDP nope\nS\nCP nope\nS\nQ BEGIN\nE nope\nS\nQ ROLLBACK"),
    (
        "statements that are not there",
        "B | nope\nS\nDS nope\nS\nCS nope\nS\nQ BEGIN\nDS nope\nS\nQ ROLLBACK\nQ DEALLOCATE nope\nQ EXECUTE nope",
    ),
    (
        "a portal in pieces over several Syncs",
        "Q BEGIN\nP s | SELECT * FROM generate_series(1, 5)\nB p | s\nE p | 2\nS\nE p | 2\nS\nE p | 2\nS\nE p | 2\nS\nQ COMMIT\nE p | 1\nS",
    ),
    (
        "a portal in pieces outside a transaction",
        "P s | SELECT * FROM generate_series(1, 5)\nB p | s\nE p | 2\nE p | 2\nS\nE p | 2\nS",
    ),
    (
        "two portals at once",
        "Q BEGIN\nP s | SELECT * FROM generate_series(1, 3)\nB p | s\nB q | s\nE p | 1\nE q | 2\nE p\nCP p\nE p\nS\nQ ROLLBACK",
    ),
    ("a closed portal leaves its statement", "P s | SELECT 1\nB p | s\nCP p\nB p | s\nE p\nS\nB | s\nE\nS"),
    (
        "a cursor of SQL by the protocol",
        "Q BEGIN\nQ DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 5)\nwait Z\nwait Z\nDP c\nE c | 2\nE c | 2\nS\nQ FETCH 1 FROM c\nCP c\nS\nQ FETCH 1 FROM c\nQ ROLLBACK",
    ),
    (
        "a cursor of SQL by the protocol, without waiting",
        "Q BEGIN\nQ DECLARE c CURSOR FOR SELECT * FROM generate_series(1, 5)\nDP c\nE c | 2\nS\nQ CLOSE c\nQ COMMIT",
    ),
    (
        "a portal of the protocol by SQL",
        "Q BEGIN\nP s | SELECT * FROM generate_series(1, 5)\nB p | s\nE p | 1\nS\nQ FETCH 2 FROM p\nQ CLOSE p\nE p\nS\nQ ROLLBACK",
    ),
    ("the unnamed statement over Sync", "P | SELECT 1\nS\nB\nE\nS\nB\nE\nS"),
    ("the unnamed statement, described first", "P | SELECT $1::int\nDS \nS\nwait Z\nB | | 5\nE\nS\nB | | 6\nE\nS"),
    (
        "the unnamed statement after one that does not parse",
        "P | SELECT 1\nS\nP | SELECT * FROM storage.missing\nS\nB\nE\nS",
    ),
    ("Close, then the name again", "P s | SELECT 1\nCS s\nP s | SELECT 2\nB | s\nE\nS\nCS s\nS\nB | s\nE\nS"),
    ("a name in use", "P s | SELECT 1\nS\nP s | SELECT 2\nS\nB | s\nE\nS"),
    (
        "a Parse that is skipped has not happened",
        "P | SELECT 1/0\nB\nE\nP s | SELECT 1\nS\nwait Z\nB | s\nE\nS\nP s | SELECT 2\nB | s\nE\nS",
    ),
    (
        "a Close that is skipped has not happened",
        "P s | SELECT 1\nS\nP | SELECT 1/0\nB\nE\nCS s\nS\nwait Z\nwait Z\nB | s\nE\nS",
    ),
    ("DEALLOCATE of the protocol's statement", "P s | SELECT 1\nS\nQ DEALLOCATE s\nB | s\nE\nS"),
    ("DEALLOCATE by the protocol", "P s | SELECT 1\nS\nP d | DEALLOCATE s\nB | d\nE\nS\nB | s\nE\nS"),
    (
        "DEALLOCATE of the protocol's statement in a failed transaction",
        "P s | SELECT 1\nS\nQ BEGIN\nQ SELECT 1/0\nQ DEALLOCATE s\nQ ROLLBACK\nB | s\nE\nS",
    ),
    (
        "PREPARE by SQL, Bind by the protocol",
        "Q PREPARE x AS SELECT $1::int\nwait Z\nDS x\nB | x | 5\nE\nS\nQ EXECUTE x(6)\nwait Z\nCS x\nS\nQ EXECUTE x(7)\nQ PREPARE x AS SELECT 8\nQ EXECUTE x",
    ),
    (
        "PREPARE and EXECUTE by the protocol",
        "P a | PREPARE x AS SELECT 8\nB | a\nE\nS\nwait Z\nP b | EXECUTE x\nB | b\nE\nS\nQ DEALLOCATE x\nB | b\nE\nS",
    ),
    ("DEALLOCATE ALL in a transaction", "P s | SELECT 1\nS\nQ BEGIN\nQ DEALLOCATE ALL\nQ ROLLBACK\nB | s\nE\nS"),
    (
        "DEALLOCATE ALL by the protocol",
        "P s | SELECT 1\nP d | DEALLOCATE ALL\nB | d\nE\nS\nB | s\nE\nS\nP s | SELECT 2\nB | s\nE\nS",
    ),
    (
        "DISCARD ALL",
        "P s | SELECT 1\nS\nQ SET extra_float_digits = 0\nQ DISCARD ALL\nQ SHOW extra_float_digits\nB | s\nE\nS",
    ),
    ("DISCARD ALL in a transaction", "P s | SELECT 1\nS\nQ BEGIN\nQ DISCARD ALL\nQ ROLLBACK\nB | s\nE\nS"),
    (
        "DISCARD ALL by the protocol",
        "P s | SELECT 1\nS\nQ SET extra_float_digits = 0\nP | DISCARD ALL\nB\nE\nS\nwait Z\nwait Z\nwait Z\nQ SHOW extra_float_digits\nB | s\nE\nS\nP s | SELECT 2\nB | s\nE\nS",
    ),
    (
        "RESET ALL",
        "Q SET extra_float_digits = 0\nQ SET work_mem = '1MB'\nQ RESET ALL\nQ SHOW extra_float_digits\nQ SHOW work_mem",
    ),
    (
        "SET in a pipeline",
        "P | SET extra_float_digits = 0\nB\nE\nS\nQ SHOW extra_float_digits\nP | SET extra_float_digits = 2\nB\nE\nP | SELECT 1/0\nB\nE\nS\nQ SHOW extra_float_digits",
    ),
    (
        "a style of dates in parts",
        "Q SET datestyle = 'SQL'\nQ SET datestyle = DMY\nQ SHOW datestyle\nQ SET datestyle = ISO\nQ SHOW datestyle",
    ),
    (
        "a time zone by its distance",
        "Q SET TIME ZONE 5\nQ SHOW timezone\nQ SET TIME ZONE INTERVAL '-03:30' HOUR TO MINUTE\nQ SHOW timezone\nQ SET TIME ZONE LOCAL\nQ SET timezone = 'utc'\nQ SHOW timezone",
    ),
    (
        "settings and savepoints",
        "Q BEGIN\nQ SET work_mem = '1MB'\nQ SAVEPOINT a\nQ SET work_mem = '2MB'\nQ SAVEPOINT b\nQ SET LOCAL work_mem = '3MB'\nQ SHOW work_mem\nQ ROLLBACK TO b\nQ SHOW work_mem\nQ RELEASE a\nQ COMMIT\nQ SHOW work_mem",
    ),
    (
        "settings of a transaction that fails",
        "Q SET work_mem = '1MB'\nQ BEGIN\nQ SET work_mem = '2MB'\nQ SELECT 1/0\nQ COMMIT\nQ SHOW work_mem",
    ),
    (
        "settings of a savepoint that fails",
        "Q BEGIN\nQ SAVEPOINT a\nQ SET work_mem = '2MB'\nQ SELECT 1/0\nQ ROLLBACK TO a\nQ SET extra_float_digits = 0\nQ COMMIT\nQ SHOW work_mem\nQ SHOW extra_float_digits",
    ),
    (
        "a session that reads only",
        "Q SET default_transaction_read_only = on\nQ INSERT INTO T VALUES (1)\nQ SET default_transaction_read_only = off\nQ INSERT INTO T VALUES (1)\nQ SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY\nQ INSERT INTO T VALUES (2)",
    ),
    (
        "set_config with a bound value",
        "P | SELECT set_config('extra_float_digits', $1, false)\nB | | 0\nE\nS\nQ SHOW extra_float_digits",
    ),
    (
        "a transaction by its modes",
        "Q BEGIN ISOLATION LEVEL SERIALIZABLE READ ONLY\nQ SHOW transaction_isolation\nQ INSERT INTO T VALUES (1)\nQ ROLLBACK\nQ SHOW transaction_isolation",
    ),
    (
        "rows that come back",
        "Q INSERT INTO T VALUES (1, 'a'), (2, NULL) RETURNING id, v\nP | UPDATE T SET v = $1 WHERE id = $2::int RETURNING *\nB | | x | 2\nDP\nE | 1\nS\nQ DELETE FROM T",
    ),
];

/// One workspace, through the gate and around it.
pub struct Sides {
    credentials: Credentials,
    workspace: Workspace,
}

impl Sides {
    /// Holds every script on both sides, at once and step by step; in the steps' pauses other sessions use the gate's
    /// connections for what they want of them.
    pub async fn compare(&self, scripts: &[(&str, &str)]) -> Vec<String> {
        let mut differences = Vec::new();
        let mut others = [self.other("Asia/Tokyo", "SQL, DMY").await, self.other("UTC", "German").await];
        for (what, script) in scripts {
            let steps = step_by_step(script);
            for (how, script) in [("", Some(*script)), (", step by step", steps.as_deref())] {
                let Some(script) = script else { continue };
                let expected = self.direct(script).await;
                let mut wire = Wire::login(&self.credentials).await;
                let script = on_table(script, "gate");
                let pause = async || {
                    for other in &mut others {
                        hold(other, "P | SHOW extra_float_digits\nB\nE\nS\nQ SHOW datestyle").await.unwrap();
                    }
                };
                let heard = tokio::time::timeout(PATIENCE, hold_with(&mut wire, &script, pause)).await;
                let heard = heard.unwrap_or_else(|_| Err("a hang".to_owned()));
                if heard != expected {
                    differences.push(format!("{what}{how}:\n  PostgreSQL: {expected:?}\n  the gate:   {heard:?}"));
                }
                // Whoever comes next finds the connections in order.
                drop(wire);
                let mut next = Wire::login(&self.credentials).await;
                let after = "P | SELECT 1\nB\nE\nQ DELETE FROM storage.t_gate\nQ SHOW work_mem\nQ SHOW datestyle";
                let after = tokio::time::timeout(PATIENCE, hold(&mut next, after)).await;
                let fine = |after: &Result<String, String>| {
                    after.as_ref().is_ok_and(|after| after.ends_with("D(4MB) C(SHOW) ZI T D(ISO, MDY) C(SHOW) ZI ZI"))
                };
                if !after.as_ref().is_ok_and(fine) {
                    differences.push(format!("after {what}{how}: {after:?}"));
                }
            }
        }
        differences
    }

    async fn direct(&self, script: &str) -> Result<String, String> {
        let mut direct = self.workspace.backend_wire("customer_db").await;
        let heard = tokio::time::timeout(PATIENCE, hold(&mut direct, &on_table(script, "direct"))).await;
        drop(direct);
        let mut cleaner = self.workspace.backend_wire("customer_db").await;
        hold(&mut cleaner, "Q DELETE FROM storage.t_direct").await.unwrap();
        heard.unwrap_or_else(|_| Err("a hang of PostgreSQL itself".to_owned()))
    }

    async fn other(&self, zone: &str, style: &str) -> Wire {
        let mut wire = Wire::negotiate(self.credentials.port, &self.credentials.ca_pem).await.unwrap();
        wire.authenticate(&self.credentials, &[("TimeZone", zone), ("DateStyle", style)]).await.unwrap();
        wire
    }
}

fn on_table(script: &str, side: &str) -> String {
    let table = |text: String, letter: &str| {
        text.replace(&format!(" {letter} "), &format!(" storage.{letter}_{side} ").to_lowercase())
            .replace(&format!(" {letter}\n"), &format!(" storage.{letter}_{side}\n").to_lowercase())
    };
    table(table(format!("{script}\n"), "T"), "U")
}

/// The sides, with the tables of the scripts.
pub async fn sides(stack: &Stack) -> Sides {
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let client = credentials.connect().await;
    for side in ["gate", "direct"] {
        let tables = format!(
            "CREATE TABLE storage.t_{side} (id int PRIMARY KEY, v text);\
             CREATE TABLE storage.u_{side} (id int UNIQUE DEFERRABLE INITIALLY DEFERRED)"
        );
        for table in tables.split(';') {
            client.batch_execute(table).await.unwrap();
        }
    }
    Sides { credentials, workspace }
}

#[tokio::test]
async fn the_gate_says_what_postgresql_says() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let differences = sides(&stack).await.compare(SCRIPTS).await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// A refusal behaves as an error of the server: script by script, what is heard.
const REFUSALS: &[(&str, &str, &str)] = &[
    ("alone", "P | X\nB\nE\nS\nQ X\nQ SELECT 1", "E(42501) ZI E(42501) ZI T D(1) C(SELECT 1) ZI ZI"),
    ("behind work", "P | SELECT 1\nB\nE\nP | X\nB\nE\nS", "1 2 D(1) C(SELECT 1) E(42501) ZI ZI"),
    (
        "behind work, and the client waits for the error",
        "P | SELECT 1\nB\nE\nP | X\nH\nwait E\nB\nE\nS\nQ SELECT 2",
        "1 2 D(1) C(SELECT 1) E(42501) ZI T D(2) C(SELECT 1) ZI ZI",
    ),
    ("behind an error", "P | SELECT 1/0\nB\nE\nP | X\nQ X\nS\nQ X", "1 E(22012) ZI E(42501) ZI ZI"),
    (
        "before a Query of its pipeline",
        "P | SELECT 1\nB\nE\nP | X\nQ SELECT 2\nQ X\nS\nQ SELECT 3",
        "1 2 D(1) C(SELECT 1) E(42501) ZI T D(3) C(SELECT 1) ZI ZI",
    ),
    ("a Query inside a pipeline", "P | SELECT 1\nB\nE\nQ X\nS", "1 2 D(1) C(SELECT 1) E(42501) ZI ZI ZI"),
    (
        "in a transaction",
        "Q BEGIN\nP | X\nB\nE\nS\nQ X\nP | SELECT 1\nB\nS\nQ COMMIT",
        "C(BEGIN) ZT E(42501) ZE E(42501) ZE E(25P02) ZE C(ROLLBACK) ZI ZI",
    ),
    (
        "behind a savepoint",
        "Q BEGIN\nQ SAVEPOINT a\nQ X\nQ ROLLBACK TO a\nP | X\nS\nQ ROLLBACK TO a\nQ SELECT 1\nQ COMMIT",
        "C(BEGIN) ZT C(SAVEPOINT) ZT E(42501) ZE C(ROLLBACK) ZT E(42501) ZE C(ROLLBACK) ZT T D(1) C(SELECT 1) ZT C(COMMIT) ZI ZI",
    ),
    (
        "over several Syncs",
        "P | X\nS\nS\nP | X\nS\nP | SELECT 1\nB\nE\nS",
        "E(42501) ZI ZI E(42501) ZI 1 2 D(1) C(SELECT 1) ZI ZI",
    ),
    ("two statements at once", "Q SELECT 1; SELECT 2\nP | SELECT 1; SELECT 2\nS", "E(42501) ZI E(42601) ZI ZI"),
    ("a name that was refused", "P s | X\nS\nP s | SELECT 1\nB | s\nE\nS", "E(42501) ZI 1 2 D(1) C(SELECT 1) ZI ZI"),
    ("of the unnamed statement", "P | SELECT 1\nS\nP | X\nS\nB\nE\nS", "1 ZI E(42501) ZI E(26000) ZI ZI"),
    (
        "autosave",
        "P | BEGIN\nB\nE\nP | X\nB\nE\nQ SAVEPOINT a\nP | SELECT 1\nB\nE\nS\nQ ROLLBACK",
        "1 2 C(BEGIN) E(42501) ZE C(ROLLBACK) ZI ZI",
    ),
];

#[tokio::test]
async fn a_refusal_behaves_as_an_error_of_the_server() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wrong = Vec::new();
    for (what, script, expected) in REFUSALS {
        let script = script.replace("X", "DROP VIEW dl_resolved.people");
        let mut wire = Wire::login(&credentials).await;
        for (time, wire) in [("first", &mut wire), ("another", &mut Wire::login(&credentials).await)] {
            let heard = tokio::time::timeout(PATIENCE, hold(wire, &script)).await;
            let heard = heard.unwrap_or_else(|_| Err("a hang".to_owned()));
            if heard.as_deref() != Ok(expected) {
                wrong.push(format!("{what}, the {time} session:\n  expected {expected}\n  heard    {heard:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What is no text in UTF-8 runs nowhere, and the session goes on.
#[tokio::test]
async fn bytes_that_are_no_text_are_refused() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    for (what, text) in [
        ("a byte that is none", &b"SELECT '\xff'"[..]),
        ("a sequence cut short", b"SELECT '\xc3'"),
        ("a surrogate", b"SELECT '\xed\xa0\x80'"),
        ("an overlong form", b"SELECT '\xc0\xa7'"),
        ("in a comment", b"SELECT 1 -- \xf5"),
    ] {
        let length = |extra: usize| u32::try_from(4 + text.len() + extra).unwrap().to_be_bytes();
        wire.send(&[&b"Q"[..], &length(1), text, b"\0"].concat()).await.unwrap();
        assert_eq!(words(&wire.until_ready().await), "E(22021) ZI", "{what}");
        wire.send(&[&b"P"[..], &length(4), b"\0", text, b"\0\0\0S\0\0\0\x04"].concat()).await.unwrap();
        assert_eq!(words(&wire.until_ready().await), "E(22021) ZI", "{what}, Parse");
    }
    assert_eq!(words(&wire.query("SELECT 1").await), "T D(1) C(SELECT 1) ZI");
}

/// What was sent before Terminate may or may not have run; whoever comes next is served.
#[tokio::test]
async fn a_session_that_ends_in_the_middle() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    for before in [
        "",
        "P | SELECT 1",
        "P | SELECT 1\nB\nE",
        "P | SELECT 1/0\nB\nE",
        "P | SELECT count(*) FROM generate_series(1, 300000)\nB\nE\nS",
        "Q BEGIN",
        "Q BEGIN\nQ SELECT 1/0",
        "Q SELECT repeat('x', 10000) FROM generate_series(1, 10000)",
        "P | DROP VIEW dl_resolved.people",
        "Q COPY (SELECT repeat('x', 10000) FROM generate_series(1, 10000)) TO STDOUT",
    ] {
        let mut wire = Wire::login(&credentials).await;
        let mut sent: Vec<u8> = before.lines().flat_map(bytes).collect();
        sent.extend_from_slice(b"X\0\0\0\x04");
        wire.send(&sent).await.unwrap();
        within(PATIENCE, before, wire.until_closed()).await;
        let mut next = Wire::login(&credentials).await;
        let heard = within(PATIENCE, before, hold(&mut next, "Q SELECT 1\nP | SELECT 2\nB\nE\nS")).await;
        assert_eq!(heard.as_deref(), Ok("T D(1) C(SELECT 1) ZI 1 2 D(2) C(SELECT 1) ZI ZI"), "after {before}");
    }
}
