//! COPY both ways, by both protocols, well and badly ended: as PostgreSQL answers, and never at the cost of whoever uses
//! the connection next.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    raw::{Message, Pipeline, Wire, tags},
    script::{bytes, hold, words},
    wait::{until, within},
};

use crate::pipelines::sides;

const PATIENCE: Duration = Duration::from_secs(20);

const SCRIPTS: &[(&str, &str)] = &[
    ("a simple copy", "Q COPY T FROM STDIN\nwait G\nd 1\\ta\\n\nd 2\\tb\\n\nc\nwait Z\nQ SELECT * FROM T ORDER BY 1"),
    ("without waiting", "Q COPY T FROM STDIN\nd 1\\ta\\n\nc\nQ SELECT * FROM T"),
    ("rows across messages", "Q COPY T FROM STDIN\nd 1\nd \\ta\nd \\n2\\tb\\n\nc\nQ SELECT * FROM T ORDER BY 1"),
    ("no rows", "Q COPY T FROM STDIN\nc\nQ SELECT count(*) FROM T"),
    ("the client gives up", "Q COPY T FROM STDIN\nd 1\\ta\\n\nf enough\nQ SELECT count(*) FROM T"),
    (
        "a row that is none, and more on its way",
        "Q COPY T FROM STDIN\nwait G\nd x\\ta\\n\nd 2\\tb\\n\nd 3\\tc\\n\nc\nQ SELECT count(*) FROM T",
    ),
    (
        "a row that is none, and then the client gives up",
        "Q COPY T FROM STDIN\nwait G\nd x\\ta\\n\nwait E\nd 2\\tb\\n\nf enough\nQ SELECT count(*) FROM T",
    ),
    ("a table that is not there", "Q COPY storage.missing FROM STDIN\nd 1\\ta\\n\nc\nQ SELECT 1"),
    (
        "a batch that begins before it copies",
        "Q BEGIN; COPY T FROM STDIN\nwait G\nd 1\\ta\\n\nc\nwait Z\nQ SELECT count(*) FROM T\nQ ROLLBACK\nQ SELECT count(*) FROM T",
    ),
    ("the same without waiting", "Q BEGIN; COPY T FROM STDIN\nd 1\\ta\\n\nc\nQ COMMIT\nQ SELECT count(*) FROM T"),
    (
        "a batch that commits behind its copy",
        "Q BEGIN\nQ COPY T FROM STDIN; COMMIT\nd 1\\ta\\n\nc\nQ SELECT count(*) FROM T",
    ),
    (
        "in a transaction",
        "Q BEGIN\nQ COPY T FROM STDIN\nd 1\\ta\\n\nc\nQ SAVEPOINT s\nQ COPY T FROM STDIN\nd x\\n\nc\nQ ROLLBACK TO s\nQ COMMIT\nQ SELECT count(*) FROM T",
    ),
    (
        "by the extended protocol",
        "P | COPY T FROM STDIN\nB\nDP\nE\nS\nwait G\nd 1\\ta\\n\nc\nS\nQ SELECT count(*) FROM T",
    ),
    ("the same with Flush", "P | COPY T FROM STDIN\nB\nE\nH\nwait G\nd 1\\ta\\n\nc\nS\nQ SELECT count(*) FROM T"),
    ("the same without waiting", "P | COPY T FROM STDIN\nB\nE\nS\nd 1\\ta\\n\nc\nS\nQ SELECT count(*) FROM T"),
    (
        "the same without a Sync before the data",
        "P | COPY T FROM STDIN\nB\nE\nd 1\\ta\\n\nc\nP | SELECT count(*) FROM T\nB\nE\nS",
    ),
    (
        "several Syncs and Flushes in the data",
        "P | COPY T FROM STDIN\nB\nE\nS\nwait G\nd 1\\ta\\n\nS\nH\nd 2\\tb\\n\nS\nc\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "Sync and Flush in the data of a Query",
        "Q COPY T FROM STDIN\nwait G\nS\nd 1\\ta\\n\nH\nS\nc\nwait Z\nQ SELECT count(*) FROM T",
    ),
    (
        "extended, and the client gives up",
        "P | COPY T FROM STDIN\nB\nE\nS\nwait G\nd 1\\ta\\n\nf enough\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "extended, a row that is none, and more on its way",
        "P | COPY T FROM STDIN\nB\nE\nS\nwait G\nd x\\n\nd 2\\tb\\n\nwait E\nd 3\\tc\\n\nc\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "extended, a table that is not there",
        "P | COPY storage.missing FROM STDIN\nB\nE\nS\nd 1\\ta\\n\nc\nS\nQ SELECT 1",
    ),
    (
        "extended, behind an error",
        "P | SELECT 1/0\nB\nE\nP | COPY T FROM STDIN\nB\nE\nd 1\\ta\\n\nc\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "extended, in a transaction that has failed",
        "Q BEGIN\nQ SELECT 1/0\nP | COPY T FROM STDIN\nB\nE\nS\nd 1\\ta\\n\nc\nS\nQ ROLLBACK",
    ),
    (
        "two copies in one pipeline",
        "P | COPY T FROM STDIN\nB\nE\nd 1\\ta\\n\nc\nP | COPY T FROM STDIN\nB\nE\nd 2\\tb\\n\nc\nS\nQ SELECT count(*) FROM T",
    ),
    (
        "a named copy twice",
        "P s | COPY T FROM STDIN\nB | s\nE\nd 1\\ta\\n\nc\nS\nB | s\nE\nd 2\\ta\\n\nc\nS\nQ SELECT count(*) FROM T",
    ),
    ("what belongs to no copy", "c\nf no\nd 1\\n\nQ SELECT 1\nc\nd x\nS\nf no\nQ SELECT 2"),
    ("what belongs to no copy, in a pipeline", "P | SELECT 1\nd x\nB\nc\nE\nf x\nS"),
    (
        "out",
        "Q INSERT INTO T VALUES (1, 'a'), (2, NULL)\nQ COPY T TO STDOUT\nP | COPY T TO STDOUT\nB\nDP\nE\nS\nQ COPY (SELECT 1/x FROM generate_series(-2, 1) x) TO STDOUT",
    ),
    (
        "out, and the client sends on",
        "P | COPY (SELECT 1) TO STDOUT\nB\nE\nP | SELECT 2\nB\nE\nS\nQ COPY (SELECT 3) TO STDOUT\nQ SELECT 4",
    ),
];

#[tokio::test]
async fn the_gate_copies_as_postgresql_does() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let differences = sides(&stack).await.compare(SCRIPTS).await;
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}

/// PostgreSQL ends the session when it meets any other message inside a copy; the gate fails the copy.
#[tokio::test]
async fn another_message_inside_a_copy_fails_it() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int PRIMARY KEY, v text)").await;
    let long = format!("Q SELECT '{}'", "x".repeat(2 << 20));
    for (what, wrong) in [
        ("a Query", "Q SELECT 1"),
        ("a Query that would be refused", "Q DROP VIEW dl_resolved.people"),
        ("a Parse", "P | SELECT 1"),
        ("a Bind", "B"),
        ("a text that is too long", long.as_str()),
    ] {
        let script = format!(
            "Q COPY storage.t FROM STDIN\nwait G\nd 1\\ta\\n\n{wrong}\nwait Z\nd 2\\tb\\n\nc\nQ SELECT count(*) FROM storage.t"
        );
        let heard = within(PATIENCE, what, hold(&mut wire, &script)).await;
        assert_eq!(heard.as_deref(), Ok("G E(08P01) ZI T D(0) C(SELECT 1) ZI ZI"), "{what}");
        let script = format!(
            "P | COPY storage.t FROM STDIN\nB\nE\nS\nwait G\nd 1\\ta\\n\n{wrong}\nwait E\nd 2\\tb\\n\nc\nS\nQ SELECT count(*) FROM storage.t"
        );
        let heard = within(PATIENCE, what, hold(&mut wire, &script)).await;
        assert_eq!(heard.as_deref(), Ok("1 2 G E(08P01) ZI T D(0) C(SELECT 1) ZI ZI"), "{what}, extended");
        let script =
            format!("Q BEGIN; COPY storage.t FROM STDIN\nwait G\nd 1\\ta\\n\n{wrong}\nwait Z\nQ ROLLBACK\nQ SELECT 1");
        let heard = within(PATIENCE, what, hold(&mut wire, &script)).await;
        assert_eq!(
            heard.as_deref(),
            Ok("C(BEGIN) G E(08P01) ZE C(ROLLBACK) ZI T D(1) C(SELECT 1) ZI ZI"),
            "{what}, in a batch"
        );
    }
}

#[tokio::test]
async fn a_client_that_dies_inside_a_copy_leaves_nothing() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut witness = Wire::login(&credentials).await;
    witness.query("CREATE TABLE storage.t (id int PRIMARY KEY, v text)").await;
    for (what, begin) in [
        ("a copy that has begun", "Q COPY storage.t FROM STDIN\n"),
        ("an extended one", "P | COPY storage.t FROM STDIN\nB\nE\nS"),
        ("one in a transaction", "Q BEGIN; COPY storage.t FROM STDIN"),
    ] {
        for end in ["", "d 1\\ta\\n", "d 1\\ta\\n\nd 2\\t"] {
            let mut wire = Wire::login(&credentials).await;
            let lines = format!("{begin}\n{end}");
            let sent: Vec<u8> = lines.lines().filter(|line| !line.is_empty()).flat_map(bytes).collect();
            wire.send(&sent).await.unwrap();
            while wire.next().await.unwrap().tag != b'G' {}
            if end.ends_with("2\\t") {
                wire.send(b"d\0\0\x10\0half a message").await.unwrap();
            }
            drop(wire);
            let truncate = within(PATIENCE, what, witness.query("TRUNCATE storage.t")).await;
            assert_eq!(tags(&truncate), "CZ", "after {what}: {truncate:?}");
            assert_eq!(
                words(&witness.query("SELECT count(*) FROM storage.t").await),
                "T D(0) C(SELECT 1) ZI",
                "{what}"
            );
        }
    }
}

#[tokio::test]
async fn a_copy_that_is_cancelled_and_then_given_up() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let client = credentials.connect().await;
    client.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    let mut wire = Wire::login(&credentials).await;
    let key = wire.cancel_key.clone().unwrap();
    wire.send(&bytes("Q COPY storage.t FROM STDIN")).await.unwrap();
    while wire.next().await.unwrap().tag != b'G' {}
    crate::protocol::cancel(credentials.port, &key).await;
    // As node-postgres does: it gives the copy up, whatever has become of it.
    wire.send(&[bytes("d 1\\n"), bytes("f cancelled")].concat()).await.unwrap();
    let heard: Vec<Message> = within(PATIENCE, "the end of the copy", wire.until_ready()).await;
    assert_eq!(words(&heard), "E(57014) ZI");
    assert_eq!(words(&wire.query("SELECT count(*) FROM storage.t").await), "T D(0) C(SELECT 1) ZI");
}

/// A copy that the server does not take yet, since another transaction holds the table, must not fill the proxy.
#[tokio::test]
async fn a_copy_waits_for_a_lock_with_all_that_follows_it() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut holder = Wire::login(&credentials).await;
    holder.query("CREATE TABLE storage.t (id int)").await;
    holder.query("BEGIN").await;
    assert_eq!(tags(&holder.query("LOCK storage.t IN ACCESS EXCLUSIVE MODE").await), "CZ");
    let mut pipeline = Pipeline::new();
    pipeline.bytes.extend_from_slice(&bytes("Q COPY storage.t FROM STDIN"));
    pipeline.bytes.extend_from_slice(&bytes("d 1\\n"));
    pipeline.bytes.extend_from_slice(&bytes("c"));
    pipeline.ready_owed = 1;
    for _ in 0..20 {
        pipeline.query("SELECT count(*) FROM storage.t");
    }
    let mut wire = Wire::login(&credentials).await;
    wire.send(&pipeline.bytes).await.unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let waiting = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
    until("the copy to wait", async || superuser.query_opt(waiting, &[&credentials.database]).await.unwrap()).await;
    holder.query("COMMIT").await;
    let mut heard = Vec::new();
    for _ in 0..pipeline.ready_owed {
        heard.extend(within(PATIENCE, "the answers", wire.until_ready()).await);
    }
    assert_eq!(words(&heard), format!("G C(COPY 1) ZI{}", " T D(1) C(SELECT 1) ZI".repeat(20)));
}
