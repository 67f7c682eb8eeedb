//! A drain: what has begun is finished, every session hears exactly one 57P01, and who does not wait need not. And what
//! changes while sessions run.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    raw::{Message, Pipeline, Wire, tags},
    script::{bytes, hold, words},
    wait::{PATIENCE, until, within},
};

use crate::queue::waiting;

/// The last messages of a session: exactly one of them is an error, and it is 57P01.
fn is_one_farewell(heard: &[Message], what: &str) {
    let errors: Vec<_> = heard.iter().filter(|message| message.tag == b'E').collect();
    assert_eq!(errors.len(), 1, "{what}: {}", words(heard));
    assert_eq!(errors[0].field(b'C').as_deref(), Some("57P01"), "{what}");
    assert_eq!(errors[0].field(b'S').as_deref(), Some("FATAL"), "{what}");
    assert_eq!(heard.last().map(|message| message.tag), Some(b'E'), "{what}: {}", words(heard));
}

async fn send(wire: &mut Wire, script: &str) {
    let sent: Vec<u8> = script.lines().flat_map(bytes).collect();
    wire.send(&sent).await.expect("it is sent");
}

async fn until_draining(stack: &mut Stack, signal: &str) {
    stack.proxy().signal(signal);
    let access = stack.access.clone();
    until("the proxy to drain", async || {
        let status = access.get("/readyz").without_key().try_send().await.map_or(503, |answer| answer.status);
        (status == 503).then_some(())
    })
    .await;
}

/// P37, P38: whoever is in the middle of something finishes it.
#[tokio::test]
async fn what_has_begun_is_finished_and_every_session_hears_one_57p01() {
    let mut stack = Stack::private(Options::default().proxy("pool.size_max", 4)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut first = Wire::login(&credentials).await;
    assert_eq!(tags(&first.query("CREATE TABLE storage.t (id int)").await), "CZ");
    let mut held = Vec::new();
    for script in [
        "Q BEGIN\nwait Z\nQ INSERT INTO storage.t VALUES (1)\nwait Z",
        "Q BEGIN\nwait Z\nQ COPY storage.t FROM STDIN\nwait G\nd 2\\n",
        "P | INSERT INTO storage.t VALUES (3)\nB\nE\nH\nwait C",
        "Q BEGIN\nwait Z\nQ SELECT 1/0\nwait Z",
    ] {
        let mut wire = Wire::login(&credentials).await;
        for line in script.lines() {
            match line.strip_prefix("wait ") {
                Some(tag) => while [wire.next().await.expect("an answer").tag] != tag.as_bytes() {},
                None => send(&mut wire, line).await,
            }
        }
        held.push(wire);
    }
    // All connections are held: one more waits.
    let mut waiter = Wire::login(&credentials).await;
    send(&mut waiter, "Q SELECT 'waited'").await;
    until("it to wait", async || (waiting(&stack).await? == 1).then_some(())).await;
    until_draining(&mut stack, "TERM").await;
    is_one_farewell(&within(PATIENCE, "an idle session", first.until_closed()).await, "idle");
    for (wire, (script, heard)) in held.iter_mut().zip([
        ("Q COMMIT", "C(COMMIT) ZI E(57P01)"),
        ("c\nQ COMMIT", "C(COPY 1) ZT C(COMMIT) ZI E(57P01)"),
        ("S", "ZI E(57P01)"),
        ("Q ROLLBACK", "C(ROLLBACK) ZI E(57P01)"),
    ]) {
        send(wire, script).await;
        let last = within(PATIENCE, script, wire.until_closed()).await;
        assert!(words(&last).ends_with(heard), "{script}: {}", words(&last));
        is_one_farewell(&last, script);
    }
    let last = within(PATIENCE, "the waiter", waiter.until_closed()).await;
    assert!(words(&last).contains("T D(waited) C(SELECT 1) ZI E(57P01)"), "{}", words(&last));
    assert!(stack.proxy().wait(PATIENCE).success());
    let superuser = workspace.access.superuser(&credentials.database).await;
    let rows = superuser.query("SELECT id FROM storage.t ORDER BY id", &[]).await.unwrap();
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>(), [1, 2, 3]);
}

/// A second signal, or the end of `drain_timeout_ms`: sessions that are left end at once, with one 57P01 and a rollback.
#[tokio::test]
async fn who_does_not_wait_ends_sessions_at_once() {
    for (what, timeout_ms, second) in [("a second signal", 3_600_000, true), ("the end of the wait", 500, false)] {
        let mut stack = Stack::private(Options::default().proxy("limits.drain_timeout_ms", timeout_ms)).await;
        let workspace = stack.workspace("storage").await;
        let credentials = workspace.reveal("customer_db").await;
        let mut wire = Wire::login(&credentials).await;
        hold(&mut wire, "Q CREATE TABLE storage.t (id int)\nQ BEGIN\nQ INSERT INTO storage.t VALUES (1)")
            .await
            .unwrap();
        let mut running = Wire::login(&credentials).await;
        send(&mut running, &format!("Q {}", crate::LONG)).await;
        until_draining(&mut stack, "TERM").await;
        if second {
            stack.proxy().signal("INT");
        }
        is_one_farewell(&within(PATIENCE, what, wire.until_closed()).await, what);
        is_one_farewell(&within(PATIENCE, what, running.until_closed()).await, what);
        // It ended in order, though not by itself; nothing is left at the server.
        let _ = stack.proxy().wait(PATIENCE);
        let superuser = workspace.access.superuser("postgres").await;
        let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
        until("the server's sessions to end", async || {
            let row = superuser.query_one(left, &[&credentials.database]).await.unwrap();
            (row.get::<_, i64>(0) == 0).then_some(())
        })
        .await;
        let superuser = workspace.access.superuser(&credentials.database).await;
        assert!(superuser.query("SELECT * FROM storage.t", &[]).await.unwrap().is_empty(), "{what}");
    }
}

/// P29: a verdict belongs to the policy in force. What was prepared under another one is judged again; a transaction ends
/// under the policy that it began with.
#[tokio::test]
async fn a_policy_changes_under_prepared_statements() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let mut wire = Wire::login(&workspace.reveal("customer_db").await).await;
    let script = "Q CREATE TABLE storage.t (id int)\nP i | INSERT INTO storage.t VALUES ($1)\nS\nB | i | 1\nE\nS";
    assert!(hold(&mut wire, script).await.unwrap().ends_with("C(INSERT 0 1) ZI ZI"));
    hold(&mut wire, "Q BEGIN").await.unwrap();
    workspace
        .set_policy(&[("write = [\"storage\"]", "write = []"), ("truncate = [\"storage\"]", "truncate = []")])
        .await;
    let heard = hold(&mut wire, "B | i | 2\nE\nS\nQ COMMIT").await.unwrap();
    assert!(heard.contains("C(INSERT 0 1) ZT"), "in the transaction: {heard}");
    let heard =
        hold(&mut wire, "B | i | 3\nE\nS\nQ INSERT INTO storage.t VALUES (4)\nQ SELECT count(*) FROM storage.t").await;
    assert_eq!(heard.as_deref(), Ok("E(42501) ZI E(42501) ZI T D(2) C(SELECT 1) ZI ZI"));
    workspace.set_policy(&[]).await;
    let heard = hold(&mut wire, "B | i | 5\nE\nS").await;
    assert_eq!(heard.as_deref(), Ok("2 C(INSERT 0 1) ZI ZI"));
}

/// P16: what a server reports by itself reaches the client wherever the session is, and disturbs nothing.
#[tokio::test]
async fn reports_in_the_middle_of_a_session_pass() {
    let mut stack = Stack::private(Options::default()).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    let mut other = Wire::login(&credentials).await;
    assert_eq!(tags(&wire.query("BEGIN").await), "CZ");
    let before = wire.parameters.clone();
    stack.cluster().reload(&[("timezone", "Asia/Tokyo")], "host all all 127.0.0.1/32 scram-sha-256").await;
    // The server reports with the end of a statement that it ran after it has read its configuration again.
    let zone = |wire: &Wire| wire.parameters.iter().rev().find(|(name, _)| name == "TimeZone").unwrap().1.clone();
    until("the report", async || {
        assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
        (zone(&wire) == "Asia/Tokyo").then_some(())
    })
    .await;
    assert!(wire.parameters.len() > before.len());
    assert_eq!(tags(&wire.run(Pipeline::new().statement("SELECT 2", &[]).sync()).await), "12TDCZ");
    assert_eq!(tags(&wire.query("COMMIT").await), "CZ");
    // Whoever comes to that connection later is told as well.
    let heard = within(Duration::from_secs(10), "the other session", other.query("SHOW timezone")).await;
    assert_eq!(heard[1].columns(), [Some("Asia/Tokyo".to_owned())]);
    assert_eq!(zone(&other), "Asia/Tokyo");
}

/// A backend that is ended by an administrator: the session that holds it hears the server's own words once, the others
/// nothing at all.
#[tokio::test]
async fn an_ended_backend_is_heard_once_and_by_its_session_alone() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut idle = Wire::login(&credentials).await;
    assert_eq!(tags(&idle.query("SELECT 1").await), "TDCZ");
    let superuser = workspace.access.superuser("postgres").await;
    let end_all = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1 AND usename <> 'postgres'";
    for script in ["Q BEGIN", "Q BEGIN\nP | SELECT 1\nB\nE\nH", &format!("Q {}", crate::LONG)] {
        let mut wire = Wire::login(&credentials).await;
        send(&mut wire, script).await;
        let busy = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state IN ('active', 'idle in transaction') \
                    AND usename <> 'postgres'";
        until("it to be busy", async || superuser.query_opt(busy, &[&credentials.database]).await.unwrap()).await;
        superuser.execute(end_all, &[&credentials.database]).await.unwrap();
        is_one_farewell(&within(PATIENCE, script, wire.until_closed()).await, script);
        let left = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND usename <> 'postgres'";
        until("them to be gone", async || {
            let row = superuser.query_one(left, &[&credentials.database]).await.unwrap();
            (row.get::<_, i64>(0) == 0).then_some(())
        })
        .await;
        assert_eq!(tags(&idle.query("SELECT 1").await), "TDCZ", "after {script}");
    }
}
