//! Limits of time and number, by the proxy's own clock and counters.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    between::Between,
    customer::{Credentials, explain, sqlstate},
    raw::{Message, Pipeline, Wire, tags},
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

/// One more session must be one too many.
async fn is_full(credentials: &Credentials, most: u32) {
    let error = credentials.try_connect().await.expect_err("one too many");
    assert_eq!(sqlstate(&error), "53300", "{}", explain(&error));
    let message = format!("the workspace already has {most} sessions, as many as it may have");
    assert_eq!(error.as_db_error().unwrap().message(), message);
}

#[tokio::test]
async fn a_workspaces_own_number_of_sessions() {
    let stack = Stack::shared().await;
    let (workspace, other) = (stack.workspace("storage").await, stack.workspace("storage").await);
    let (credentials, others) = (workspace.reveal("customer_db").await, other.reveal("customer_db").await);
    workspace.set_limits("max_connections = 2").await;
    let mut sessions = vec![credentials.connect().await, credentials.connect().await];
    is_full(&credentials, 2).await;
    for _ in 0..3 {
        sessions.push(others.connect().await);
    }
    sessions.remove(0);
    sessions.push(until("the free place", async || credentials.try_connect().await.ok()).await);
    is_full(&credentials, 2).await;
    for session in &sessions {
        session.batch_execute("SELECT 1").await.unwrap();
    }
}

#[tokio::test]
async fn a_workspaces_number_of_sessions_changes_while_they_run() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    workspace.set_limits("max_connections = 1").await;
    let first = credentials.connect().await;
    is_full(&credentials, 1).await;
    workspace.set_limits("max_connections = 3").await;
    let (second, third) = (credentials.connect().await, credentials.connect().await);
    is_full(&credentials, 3).await;
    // Fewer than there are: nobody new, and nobody is sent away, not even when the sidecar has looked and the pool
    // has no connection left from before.
    workspace.set_limits("max_connections = 1").await;
    is_full(&credentials, 1).await;
    let provision = workspace.access.post("/api/v2/ingestion/provision", &serde_json::json!({}));
    let _ = provision.workspace(&workspace.name).send().await.expect(200);
    let close = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = $1";
    stack.access.superuser("postgres").await.execute(close, &[&credentials.database]).await.unwrap();
    for session in [&first, &second, &third] {
        session.batch_execute("BEGIN; SELECT 1").await.unwrap();
    }
    for session in [first, second, third] {
        session.batch_execute("COMMIT").await.unwrap();
        is_full(&credentials, 1).await;
    }
    until("the free place", async || credentials.try_connect().await.ok()).await;
    workspace.set_limits("max_connections = NULL").await;
    let (one, two) = (credentials.connect().await, credentials.connect().await);
    for session in [one, two] {
        session.batch_execute("SELECT 1").await.unwrap();
    }
}

/// The statement ends in the error of a limit of `ms` milliseconds.
fn timed_out(messages: &[Message], ms: u64) {
    let error = messages.iter().find(|message| message.tag == b'E').unwrap_or_else(|| panic!("{messages:?}"));
    let field = |code| error.field(code).unwrap_or_default();
    assert_eq!(field(b'C'), "57014", "{messages:?}");
    assert_eq!(field(b'M'), "canceling statement due to statement timeout");
    assert_eq!(field(b'D'), format!("The gate's limit for one statement is {ms} ms."));
    assert_eq!(field(b'H'), "Make the statement smaller, or have query_timeout_ms raised for the workspace.");
}

/// `LONG` as one Query, and in the extended protocol with more behind it in the pipeline.
async fn stops_long_statements(wire: &mut Wire, ms: u64) {
    let heard = within(PATIENCE, "a Query", wire.query(LONG)).await;
    timed_out(&heard, ms);
    assert_eq!(tags(&heard), "TEZ", "{heard:?}");
    let mut pipeline = Pipeline::new();
    pipeline.statement("SELECT 1", &[]).statement(LONG, &[]).statement("SELECT 2", &[]).sync();
    pipeline.statement("SELECT 3", &[]).sync();
    let heard = within(PATIENCE, "a pipeline", wire.run(&pipeline)).await;
    timed_out(&heard, ms);
    assert_eq!(tags(&heard), "12TDC12TEZ12TDCZ", "{heard:?}");
}

#[tokio::test]
async fn a_workspaces_own_limit_on_statements() {
    let stack = Stack::shared().await;
    let (workspace, other) = (stack.workspace("storage").await, stack.workspace("storage").await);
    let mut before = Wire::login(&workspace.reveal("customer_db").await).await;
    workspace.set_limits(&format!("query_timeout_ms = {SHORT_MS}")).await;
    let mut after = Wire::login(&workspace.reveal("customer_db").await).await;
    // Another workspace's statement runs all the while.
    let mut others = Wire::login(&other.reveal("customer_db").await).await;
    others.send(&portcullis_tests::script::bytes(&format!("Q {LONG}"))).await.unwrap();
    for wire in [&mut before, &mut after] {
        stops_long_statements(wire, SHORT_MS).await;
        assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
        // In a transaction it fails the transaction, as the server's own limit does.
        wire.query("BEGIN").await;
        timed_out(&within(PATIENCE, "in a transaction", wire.query(LONG)).await, SHORT_MS);
        assert_eq!(wire.query("SELECT 1").await[0].field(b'C').as_deref(), Some("25P02"));
        assert_eq!(tags(&wire.query("ROLLBACK").await), "CZ");
        // What the client sets for itself does not lift it.
        wire.query("SET statement_timeout = 0").await;
        timed_out(&within(PATIENCE, "with its own setting", wire.query(LONG)).await, SHORT_MS);
    }
    let key = others.cancel_key.clone().unwrap();
    crate::protocol::cancel(stack.access.wire_port, &key).await;
    let heard = within(PATIENCE, "the other workspace's statement", others.until_ready()).await;
    assert_eq!(heard[1].field(b'M').as_deref(), Some("canceling statement due to user request"), "{heard:?}");
}

#[tokio::test]
async fn a_workspaces_limit_on_statements_changes_while_sessions_run() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let mut wire = Wire::login(&workspace.reveal("customer_db").await).await;
    for ms in [300, 900, 200] {
        workspace.set_limits(&format!("query_timeout_ms = {ms}")).await;
        stops_long_statements(&mut wire, ms).await;
    }
    // Inside a transaction the limit stays what it was when the transaction began; the next one has the new limit.
    wire.query("BEGIN").await;
    workspace.set_limits("query_timeout_ms = 400").await;
    timed_out(&within(PATIENCE, "in a transaction", wire.query(LONG)).await, 200);
    wire.query("ROLLBACK").await;
    stops_long_statements(&mut wire, 400).await;
    // Without a limit of its own the configured one holds, which is longer than this takes.
    let work = "SELECT count(*) FROM (SELECT generate_series(1, 5000000)) AS s";
    workspace.set_limits("query_timeout_ms = 1").await;
    timed_out(&wire.query(work).await, 1);
    workspace.set_limits("query_timeout_ms = NULL").await;
    assert_eq!(tags(&within(PATIENCE, "the work", wire.query(work)).await), "TDCZ");
}

/// How many rows there are, and what comes after them.
fn shape(heard: &[Message]) -> (usize, String) {
    let rest: Vec<Message> = heard.iter().filter(|message| !matches!(message.tag, b'D' | b'd')).cloned().collect();
    (heard.len() - rest.len(), tags(&rest))
}

fn status(heard: &[Message]) -> &[u8] {
    &heard.last().expect("an answer").body
}

#[tokio::test]
async fn rows_of_one_statement() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    workspace.set_limits("max_rows_per_query = 1000").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int)").await;

    // In the list of targets, so that rows come at once.
    let rows = |count: u64| format!("SELECT generate_series(1, {count}) AS id");
    assert_eq!(shape(&wire.query(&rows(1_000)).await), (1_000, "TCZ".to_owned()));
    // One too many, which the server has sent long before it could be stopped; and so many that it has to be.
    for count in [1_001, 2_000_000_000] {
        let heard = within(PATIENCE, "a cut result", wire.query(&rows(count))).await;
        assert_eq!(shape(&heard), (1_000, "TEZ".to_owned()), "{count}");
        let error = &heard[heard.len() - 2];
        assert_eq!(error.field(b'C').as_deref(), Some("54000"));
        assert_eq!(
            error.field(b'M').as_deref(),
            Some("the result has more than 1000 rows, the limit for one statement")
        );
        assert!(error.field(b'H').unwrap().contains("max_rows_per_query"));
        assert_eq!(status(&heard), b"I");
        // In a transaction it is the transaction's failure, as any error.
        wire.query("BEGIN").await;
        let heard = within(PATIENCE, "a cut result", wire.query(&rows(count))).await;
        assert_eq!((shape(&heard), status(&heard)), ((1_000, "TEZ".to_owned()), &b"E"[..]), "{count}");
        assert_eq!(wire.query("SELECT 1").await[0].field(b'C').as_deref(), Some("25P02"));
        assert_eq!(tags(&wire.query("ROLLBACK").await), "CZ");
        // By the extended protocol.
        let heard = wire.run(Pipeline::new().statement(&rows(count), &[]).sync()).await;
        assert_eq!(shape(&heard), (1_000, "12TEZ".to_owned()), "{count}");
        let heard = wire.query(&format!("COPY ({}) TO STDOUT", rows(count))).await;
        assert_eq!(shape(&heard), (1_000, "HEZ".to_owned()), "{count}");
    }
    // Fetched in parts, it is still one result.
    wire.query("BEGIN").await;
    let part = Pipeline::new().parse("", &rows(5_000)).bind("", "", &[]).execute("", 700).sync().bytes.clone();
    wire.send(&part).await.unwrap();
    assert_eq!(shape(&wire.until_ready().await), (700, "12sZ".to_owned()));
    let heard = wire.run(Pipeline::new().execute("", 700).sync()).await;
    assert_eq!((shape(&heard), status(&heard)), ((300, "EZ".to_owned()), &b"E"[..]));
    wire.query("ROLLBACK").await;

    // What a write returns is not cut: it could not be undone.
    let insert = format!("INSERT INTO storage.t {} RETURNING id", rows(3_000));
    assert_eq!(shape(&wire.query(&insert).await), (3_000, "TCZ".to_owned()));

    // A driver's view, and another limit while the session runs.
    let client = credentials.connect().await;
    let error = client.query(&rows(1_001), &[]).await.expect_err("too many");
    assert_eq!(sqlstate(&error), "54000", "{}", explain(&error));
    workspace.set_limits("max_rows_per_query = NULL").await;
    assert_eq!(client.query(&rows(1_001), &[]).await.unwrap().len(), 1_001);
    assert_eq!(shape(&wire.query(&rows(20_000)).await), (20_000, "TCZ".to_owned()));
}

/// A statement runs into its limit and ends by itself before the cancel arrives: what the session runs next must not meet
/// that cancel (P31).
#[tokio::test]
async fn a_late_cancel_for_a_time_limit_hits_no_other_statement() {
    let mut stack = Stack::private(Options::default()).await;
    let workspace = stack.workspace("storage").await;
    workspace.set_limits("query_timeout_ms = 500").await;
    let between = Between::stand(&mut stack).await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int)").await;
    let superuser = workspace.superuser().await;
    let read = portcullis_tests::script::bytes("Q SELECT count(*) FROM storage.t");
    superuser.batch_execute("BEGIN; LOCK TABLE storage.t").await.unwrap();
    wire.send(&read).await.unwrap();
    between.cancels(1).await;
    superuser.batch_execute("COMMIT").await.unwrap();
    let heard = within(PATIENCE, "the statement that ended by itself", wire.until_ready()).await;
    assert_eq!(tags(&heard), "TDCZ", "{heard:?}");
    // The next one would wait for the lock, and be there when the cancel comes. It must not be there yet.
    superuser.batch_execute("BEGIN; LOCK TABLE storage.t").await.unwrap();
    wire.send(&read).await.unwrap();
    let other = stack.access.superuser("postgres").await;
    let waits = "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND wait_event_type = 'Lock'";
    let sent = async {
        until("it to be sent", async || other.query_opt(waits, &[&credentials.database]).await.unwrap()).await;
    };
    let sent = tokio::time::timeout(Duration::from_millis(400), sent).await.is_ok();
    between.let_go();
    if !sent {
        until("it to be sent", async || other.query_opt(waits, &[&credentials.database]).await.unwrap()).await;
    }
    superuser.batch_execute("COMMIT").await.unwrap();
    let heard = within(PATIENCE, "the next statement", wire.until_ready()).await;
    assert_eq!(tags(&heard), "TDCZ", "{heard:?}");
    assert!(!sent, "it was sent while a cancel was on its way");
}

/// A cancel that was given up may still arrive: the connection is not used again.
#[tokio::test]
async fn a_lost_cancel_ends_its_connection() {
    let mut stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let workspace = stack.workspace("storage").await;
    workspace.set_limits("query_timeout_ms = 500").await;
    let between = Between::stand(&mut stack).await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    wire.query("CREATE TABLE storage.t (id int)").await;
    let superuser = workspace.superuser().await;
    superuser.batch_execute("BEGIN; LOCK TABLE storage.t").await.unwrap();
    wire.send(&portcullis_tests::script::bytes("Q SELECT count(*) FROM storage.t")).await.unwrap();
    between.cancels(1).await;
    superuser.batch_execute("COMMIT").await.unwrap();
    let heard = within(PATIENCE, "the statement that ended by itself", wire.until_ready()).await;
    assert_eq!(tags(&heard), "TDCZ", "{heard:?}");
    // Only another connection is safe; the next session gets one.
    let mut next = Wire::login(&credentials).await;
    let heard = within(PATIENCE, "another connection", next.query("SELECT pg_backend_pid()")).await;
    assert!(tags(&heard).ends_with("CZ"), "{heard:?}");
    let closed = "portcullis_upstream_resets_total{outcome=\"closed\"}";
    let metrics = stack.access.get("/metrics").without_key().send().await.text;
    assert!(metrics.lines().any(|line| line.starts_with(closed)), "{metrics}");
    between.let_go();
}

/// A policy's limits on transactions and idle sessions hold, and change while sessions run (T17, T35).
#[tokio::test]
async fn a_policys_limits_on_idle_sessions_and_transactions() {
    let stack = Stack::shared().await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let limits = "[kind.limits]\n";
    for (limit, busy, in_transaction, code) in [
        ("idle_timeout_ms", false, false, "57P05"),
        ("idle_in_transaction_timeout_ms", false, true, "25P03"),
        ("transaction_timeout_ms", true, true, "25P04"),
    ] {
        workspace.set_policy(&[]).await;
        let mut wire = Wire::login(&credentials).await;
        if in_transaction {
            wire.query("BEGIN").await;
        }
        // The limit comes while the session is there, and holds from its next idle point on.
        workspace.set_policy(&[(limits, &format!("{limits}{limit} = 600\n"))]).await;
        if in_transaction {
            wire.query("COMMIT").await;
            wire.query("BEGIN").await;
        }
        if busy {
            // It is no matter how busy the transaction is.
            let end = within(PATIENCE, limit, async {
                let _ = wire.send(&portcullis_tests::script::bytes("Q SELECT 1")).await;
                loop {
                    let message = wire.next().await;
                    match message.unwrap_or_else(|error| panic!("{limit}: {error}")) {
                        message if message.tag == b'E' => break message,
                        message if message.tag == b'Z' => {}
                        _ => continue,
                    }
                    let _ = wire.send(&portcullis_tests::script::bytes("Q SELECT 1")).await;
                }
            });
            assert_eq!(end.await.field(b'C').as_deref(), Some(code), "{limit}");
        } else {
            let heard = within(PATIENCE, limit, wire.until_closed()).await;
            assert_eq!(tags(&heard), "E", "{limit}: {heard:?}");
            assert_eq!(heard[0].field(b'C').as_deref(), Some(code), "{limit}");
        }
    }
}

/// Bytes of a result, by the policy, changed while the session runs.
#[tokio::test]
async fn a_policys_limit_on_bytes_changes_while_sessions_run() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let mut wire = Wire::login(&workspace.reveal("customer_db").await).await;
    let sql = "SELECT repeat('x', 1000) FROM generate_series(1, 100)";
    for (most, passes) in [(1_000_000, true), (50_000, false), (200_000, true)] {
        let limits = "[kind.limits]\n";
        workspace.set_policy(&[(limits, &format!("{limits}bytes_max = {most}\n"))]).await;
        let heard = wire.query(sql).await;
        let error = heard.iter().find(|message| message.tag == b'E').and_then(|error| error.field(b'C'));
        assert_eq!(error.as_deref(), (!passes).then_some("54000"), "{most}");
    }
}
