//! Limits of time and number, by the proxy's own clock and counters.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    customer::{explain, sqlstate},
    raw::{Wire, tags},
    wait::{until, within},
};

use crate::LONG;

const SHORT_MS: u64 = 700;
const PATIENCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn sessions_per_workspace() {
    let stack = Stack::private(Options::default().proxy("limits.max_connections_default", 3)).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut sessions = Vec::new();
    for _ in 0..3 {
        sessions.push(credentials.connect().await);
    }
    let error = credentials.try_connect().await.expect_err("one too many");
    assert_eq!(sqlstate(&error), "53300", "{}", explain(&error));
    // Another workspace is not concerned, and a place that becomes free is free.
    stack.workspace("storage").await.reveal("customer_db").await.connect().await;
    sessions.pop();
    until("the free place", async || credentials.try_connect().await.ok().map(drop)).await;
}

#[tokio::test]
async fn a_statement_that_takes_too_long() {
    let stack = Stack::private(Options::default().proxy("limits.statement_timeout_ms", SHORT_MS)).await;
    let client = stack.workspace("storage").await.reveal("customer_db").await.connect().await;
    let error = within(PATIENCE, "the limit on statements", client.batch_execute(LONG)).await.expect_err("stopped");
    assert_eq!(sqlstate(&error), "57014", "{}", explain(&error));
    client.batch_execute("SELECT 1").await.unwrap();
    // What the client sets for itself is its own business; the proxy's clock stays.
    client.batch_execute("SET statement_timeout = 0").await.unwrap();
    let error = within(PATIENCE, "the limit on statements", client.batch_execute(LONG)).await.expect_err("stopped");
    assert_eq!(sqlstate(&error), "57014", "{}", explain(&error));
}

#[tokio::test]
async fn idle_sessions() {
    let stack = Stack::private(Options::default().proxy("limits.idle_timeout_ms", SHORT_MS)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    let messages = within(PATIENCE, "the limit on idleness", wire.until_closed()).await;
    assert_eq!(tags(&messages), "E", "{messages:?}");
    assert_eq!(messages[0].field(b'C').as_deref(), Some("57P05"));
}

#[tokio::test]
async fn idle_transactions() {
    let stack = Stack::private(Options::default().proxy("limits.idle_in_transaction_timeout_ms", SHORT_MS)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let witness = credentials.connect().await;
    witness.batch_execute("CREATE TABLE storage.t (id int)").await.unwrap();
    let mut wire = Wire::login(&credentials).await;
    wire.query("BEGIN").await;
    wire.query("INSERT INTO storage.t VALUES (1)").await;
    let messages = within(PATIENCE, "the limit on idle transactions", wire.until_closed()).await;
    assert_eq!(tags(&messages), "E", "{messages:?}");
    assert_eq!(messages[0].field(b'C').as_deref(), Some("25P03"));
    within(PATIENCE, "the lock", witness.batch_execute("TRUNCATE storage.t")).await.unwrap();
}

#[tokio::test]
async fn more_sessions_than_connections_wait_their_turn() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut tasks = Vec::new();
    for i in 0..30_i32 {
        let credentials = credentials.clone();
        tasks.push(tokio::spawn(async move {
            let client = credentials.connect().await;
            for _ in 0..10 {
                let row = client.query_one("SELECT $1::int + 1", &[&i]).await.unwrap();
                assert_eq!(row.get::<_, i32>(0), i + 1);
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let upstream = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
    let superuser = stack.access.superuser("postgres").await;
    let count: i64 = superuser.query_one(upstream, &[&credentials.database]).await.unwrap().get(0);
    assert!(count <= 2, "{count} upstream connections");
}
