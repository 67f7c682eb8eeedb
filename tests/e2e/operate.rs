//! What an operator does to one workspace while it is in use: PAUSE, RESUME, RECONNECT, KILL.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack, Workspace,
    api::Answer,
    customer::Credentials,
    raw::{Wire, tags},
    script::{bytes, words},
    wait::{until, within},
};
use serde_json::{Value, json};

use crate::{LONG, queue::waiting};

const PATIENCE: Duration = Duration::from_secs(30);

fn options() -> Options {
    Options::default().proxy("admin.operator_key", "\"operate\"").proxy("pool.wait_notice_ms", 0)
}

async fn order(stack: &Stack, workspace: &str, order: &str) -> Answer {
    let path = format!("/workspaces/{workspace}/{order}");
    let call = stack.access.post(&path, &json!({})).without_key().header("authorization", "Bearer operate");
    within(PATIENCE, order, call.send()).await
}

async fn operator_sees(stack: &Stack, path: &str) -> Value {
    let call = stack.access.get(path).without_key().header("authorization", "Bearer operate");
    call.send().await.expect(200)
}

async fn metric(stack: &Stack, series: &str) -> Option<String> {
    let page = stack.access.get("/metrics").without_key().send().await.text;
    page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ').map(str::to_owned))
}

async fn pid(wire: &mut Wire) -> String {
    let heard = wire.query("SELECT pg_backend_pid()").await;
    heard[1].columns().swap_remove(0).unwrap()
}

async fn backends(stack: &Stack, credentials: &Credentials) -> i64 {
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1";
    stack.access.superuser("postgres").await.query_one(count, &[&credentials.database]).await.unwrap().get(0)
}

async fn with_credentials(stack: &Stack) -> (Workspace, Credentials) {
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    (workspace, credentials)
}

#[tokio::test]
async fn pause_lets_transactions_end_and_holds_new_ones_until_resume() {
    let stack = Stack::private(options()).await;
    let ((workspace, credentials), (_, others)) = (with_credentials(&stack).await, with_credentials(&stack).await);
    let mut holds = Wire::login(&credentials).await;
    let mut waits = Wire::login(&credentials).await;
    waits.query("SET timezone = 'Asia/Tokyo'").await;
    holds.query("BEGIN").await;

    let standing = order(&stack, &workspace.name, "pause?timeout_ms=0").await.expect(202);
    assert_eq!((&standing["paused"], &standing["settled"]), (&json!(true), &json!(false)), "{standing}");
    assert_eq!(standing["workspace"], json!(workspace.id));
    // What runs goes on, what is new waits, and everybody can see that.
    assert_eq!(tags(&holds.query("SELECT 1").await), "TDCZ");
    waits.send(&bytes("Q SHOW timezone")).await.unwrap();
    until("it to wait", async || (waiting(&stack).await? == 1).then_some(())).await;
    // The connection that was idle counts until the server has closed it.
    until("the pool to show it", async || {
        let pools = operator_sees(&stack, "/pools").await;
        let mine = |row: &&Value| row["workspace"] == json!(workspace.id);
        let pool = pools.as_array().unwrap().iter().find(mine).unwrap();
        let seen = (&pool["paused"], &pool["waiters"], &pool["active"]);
        (seen == (&json!(true), &json!(1), &json!(1))).then_some(())
    })
    .await;
    let sessions = operator_sees(&stack, "/sessions").await;
    let states = |state: &str| sessions.as_array().unwrap().iter().filter(|row| row["state"] == json!(state)).count();
    assert_eq!((states("waiting"), states("idle_in_transaction")), (1, 1), "{sessions}");
    assert_eq!(metric(&stack, "portcullis_paused_workspaces").await.as_deref(), Some("1"));
    // Others are not concerned, and a login needs no connection, not even with settings of its own.
    assert_eq!(tags(&Wire::login(&others).await.query("SELECT 1").await), "TDCZ");
    let mut fresh = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    let parameters = [("TimeZone", "Europe/Paris"), ("application_name", "fresh")];
    within(PATIENCE, "a login", fresh.authenticate(&credentials, &parameters)).await.unwrap();
    assert!(fresh.parameters.contains(&("TimeZone".to_owned(), "Europe/Paris".to_owned())), "{:?}", fresh.parameters);

    // The last transaction ends, and nobody is connected: as a copy of the database wants it. By the id, too.
    let (ended, standing) = tokio::join!(holds.query("COMMIT"), order(&stack, &workspace.id, "pause"));
    assert_eq!(tags(&ended), "CZ");
    let standing = standing.expect(200);
    assert_eq!((&standing["settled"], &standing["connections"]), (&json!(true), &json!(0)), "{standing}");
    assert_eq!(standing["sessions"], json!(3));
    let superuser = stack.access.superuser("postgres").await;
    let copy = format!("CREATE DATABASE the_copy TEMPLATE \"{}\"", credentials.database);
    superuser.batch_execute(&copy).await.unwrap();
    assert_eq!(waiting(&stack).await, Some(1));

    let standing = order(&stack, &workspace.name, "resume").await.expect(200);
    assert_eq!((&standing["paused"], &standing["settled"]), (&json!(false), &json!(true)), "{standing}");
    let heard = within(PATIENCE, "the waiting session", waits.until_ready()).await;
    assert_eq!(words(&heard), "T D(Asia/Tokyo) C(SHOW) ZI");
    assert_eq!(words(&fresh.query("SHOW timezone").await), "T D(Europe/Paris) C(SHOW) ZI");
    let _ = order(&stack, &workspace.name, "resume").await.expect(200);
    assert_eq!(metric(&stack, "portcullis_paused_workspaces").await.as_deref(), Some("0"));
}

#[tokio::test]
async fn a_pause_that_lasts_too_long_is_an_error_for_those_who_wait() {
    let stack = Stack::private(options().proxy("pool.query_wait_timeout_ms", 300)).await;
    let (workspace, credentials) = with_credentials(&stack).await;
    let mut wire = Wire::login(&credentials).await;
    for order_twice in [false, true] {
        let _ = order(&stack, &workspace.name, "pause").await.expect(200);
        if order_twice {
            let _ = order(&stack, &workspace.name, "pause").await.expect(200);
        }
        let heard = within(PATIENCE, "the end of the wait", wire.query("SELECT 1")).await;
        assert_eq!(words(&heard), "E(57P03) ZI");
        assert_eq!(heard[0].field(b'M').as_deref(), Some("the workspace is paused for maintenance"));
        let _ = order(&stack, &workspace.name, "resume").await.expect(200);
        assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    }
    for (workspace, expect) in [("nobody", 404), ("ws_0000000000000000", 404)] {
        assert_eq!(order(&stack, workspace, "pause").await.status, expect, "{workspace}");
    }
    let without = stack.access.post(&format!("/workspaces/{}/pause", workspace.name), &json!({}));
    assert_eq!(without.send().await.status, 401, "the sidecar's key is not the operator's");
}

#[tokio::test]
async fn reconnect_replaces_every_connection() {
    let stack = Stack::private(options().proxy("pool.size_max", 2)).await;
    let (workspace, credentials) = with_credentials(&stack).await;
    let mut holds = Wire::login(&credentials).await;
    let mut uses = Wire::login(&credentials).await;
    holds.query("BEGIN").await;
    let (held, idle) = (pid(&mut holds).await, pid(&mut uses).await);
    let standing = order(&stack, &workspace.name, "reconnect?timeout_ms=0").await.expect(202);
    assert_eq!((&standing["paused"], &standing["settled"]), (&json!(false), &json!(false)), "{standing}");
    assert_ne!(pid(&mut uses).await, idle, "the idle connection");
    assert_eq!(pid(&mut holds).await, held, "in the middle of a transaction");
    holds.query("COMMIT").await;
    assert_ne!(pid(&mut holds).await, held, "after the transaction");
    let (one, two) = (pid(&mut holds).await, pid(&mut uses).await);
    let standing = order(&stack, &workspace.name, "reconnect").await.expect(200);
    assert_eq!((&standing["settled"], &standing["connections"]), (&json!(true), &json!(0)), "{standing}");
    for wire in [&mut holds, &mut uses] {
        let now = pid(wire).await;
        assert!(now != one && now != two, "{now}");
    }
    assert!(metric(&stack, "portcullis_upstream_closed_total{reason=\"reconnect\"}").await.is_some());
}

#[tokio::test]
async fn kill_ends_sessions_with_one_error_and_their_connections() {
    let stack = Stack::private(options()).await;
    let ((workspace, credentials), (_, others)) = (with_credentials(&stack).await, with_credentials(&stack).await);
    let mut idle = Wire::login(&credentials).await;
    let mut in_transaction = Wire::login(&credentials).await;
    let mut busy = Wire::login(&credentials).await;
    let mut other = Wire::login(&others).await;
    other.query("BEGIN").await;
    idle.query("SELECT 1").await;
    in_transaction.query("BEGIN").await;
    in_transaction.query("CREATE TABLE storage.never (id int)").await;
    busy.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let running =
        "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE '%100000000000%'";
    until("the statement to run", async || superuser.query_opt(running, &[&credentials.database]).await.unwrap()).await;

    let standing = order(&stack, &workspace.name, "kill").await.expect(200);
    assert_eq!((&standing["settled"], &standing["sessions_ended"]), (&json!(true), &json!(3)), "{standing}");
    assert_eq!((&standing["connections"], &standing["sessions"]), (&json!(0), &json!(0)), "{standing}");
    assert_eq!(backends(&stack, &credentials).await, 0);
    for wire in [&mut idle, &mut in_transaction, &mut busy] {
        let heard = within(PATIENCE, "the end", wire.until_closed()).await;
        let errors: Vec<_> = heard.iter().filter(|message| message.tag == b'E').collect();
        assert_eq!(errors.len(), 1, "{heard:?}");
        assert_eq!(errors[0].field(b'C').as_deref(), Some("57P01"));
    }
    // It is no pause: whoever comes again is served, and what was not committed is not there.
    let mut again = Wire::login(&credentials).await;
    assert_eq!(words(&again.query("SELECT 1 FROM storage.never").await), "E(42P01) ZI");
    assert_eq!(tags(&other.query("COMMIT").await), "CZ");
    let _ = order(&stack, &workspace.name, "kill").await.expect(200);
    assert_eq!(tags(&within(PATIENCE, "the end", again.until_closed()).await), "E");
    let ended = metric(&stack, "portcullis_sessions_ended_total{reason=\"killed\"}").await;
    assert_eq!(ended.as_deref(), Some("4"));
}
