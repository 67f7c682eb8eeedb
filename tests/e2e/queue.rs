//! Waiting for a connection: in order, not for ever, and not behind one workspace alone.

use std::{sync::Arc, time::Duration};

use portcullis_tests::{
    Options, Stack,
    raw::{Wire, tags},
    script::{bytes, hold, words},
    wait::{until, within},
};
use tokio::sync::Mutex;

const PATIENCE: Duration = Duration::from_secs(30);

/// How many sessions wait for a connection, as the proxy counts them.
pub async fn waiting(stack: &Stack) -> Option<u64> {
    let metrics = stack.access.get("/metrics").without_key().try_send().await.ok()?;
    let line = metrics.text.lines().find(|line| line.starts_with("portcullis_pool_waiters"))?.to_owned();
    line.split_whitespace().last()?.parse().ok()
}

#[tokio::test]
async fn twenty_sessions_wait_for_one_connection_in_order() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut holder = Wire::login(&credentials).await;
    holder.query("BEGIN").await;
    let served = Arc::new(Mutex::new(Vec::new()));
    let mut tasks = Vec::new();
    for i in 0..20_u64 {
        let mut wire = Wire::login(&credentials).await;
        wire.send(&bytes("Q SELECT 1")).await.unwrap();
        until("one more to wait", async || (waiting(&stack).await? == i + 1).then_some(())).await;
        let served = served.clone();
        tasks.push(tokio::spawn(async move {
            let heard = wire.until_ready().await;
            served.lock().await.push(i);
            assert_eq!(tags(&heard), "TDCZ");
            // It goes on at once, and has to stand behind the others again.
            for _ in 0..20 {
                wire.query("SELECT 1").await;
            }
        }));
    }
    assert_eq!(tags(&holder.query("COMMIT").await), "CZ");
    for task in tasks {
        within(PATIENCE, "a waiter", task).await.unwrap();
    }
    let served = served.lock().await;
    // The answers travel through twenty sockets, so neighbours may overtake each other here.
    let far = served.iter().enumerate().filter(|(at, i)| i.abs_diff(*at as u64) > 4).count();
    assert_eq!(far, 0, "{served:?}");
}

#[tokio::test]
async fn a_wait_that_is_too_long_is_an_error_and_the_session_goes_on() {
    let options = Options::default().proxy("pool.size_max", 1).proxy("pool.query_wait_timeout_ms", 600);
    let stack = Stack::private(options.proxy("pool.wait_notice_ms", 100)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut holder = Wire::login(&credentials).await;
    let mut waiter = Wire::login(&credentials).await;
    hold(&mut waiter, "P s | SELECT 7\nS").await.unwrap();
    holder.query("BEGIN").await;
    for (what, script, expected) in [
        // Long enough for many notices; there is one.
        ("a Query", "Q SELECT 1", "N(00000) E(53300) ZI"),
        ("a pipeline", "P | SELECT 1\nB\nE\nP t | SELECT 2\nS", "N(00000) E(53300) ZI"),
        ("a prepared statement", "B | s\nE\nS", "N(00000) E(53300) ZI"),
        ("BEGIN", "Q BEGIN", "N(00000) E(53300) ZI"),
        ("a copy", "Q COPY storage.t FROM STDIN\nd 1\\n\nc", "N(00000) E(53300) ZI"),
    ] {
        let sent: Vec<u8> = script.lines().flat_map(bytes).collect();
        waiter.send(&sent).await.unwrap();
        let heard = within(PATIENCE, what, waiter.until_ready()).await;
        assert_eq!(words(&heard), expected, "{what}");
        let field = |code| heard[0].field(code).unwrap_or_default();
        assert_eq!((field(b'S').as_str(), field(b'V').as_str()), ("NOTICE", "NOTICE"), "{what}");
        assert_eq!(field(b'M'), "waiting for a connection to the workspace's database", "{what}");
        assert!(field(b'D').ends_with("at most 600 ms."), "{what}: {heard:?}");
    }
    holder.query("COMMIT").await;
    // Who wants no notices gets none; who gets his connection in time hears nothing of it either.
    waiter.query("SET client_min_messages = warning").await;
    holder.query("BEGIN").await;
    assert_eq!(words(&waiter.query("SELECT 1").await), "E(53300) ZI");
    holder.query("COMMIT").await;
    waiter.query("RESET client_min_messages").await;
    assert_eq!(words(&waiter.query("SELECT 1").await), "T D(1) C(SELECT 1) ZI");
    let heard = hold(&mut waiter, "B | s\nE\nS\nP t | SELECT 3\nB | t\nE\nS").await;
    assert_eq!(heard.as_deref(), Ok("2 D(7) C(SELECT 1) ZI 1 2 D(3) C(SELECT 1) ZI ZI"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_workspace_does_not_starve_the_others() {
    let options = Options::default().proxy("pool.server_connections_max", 2).proxy("pool.wait_notice_ms", 0);
    let stack = Stack::private(options).await;
    let busy = stack.workspace("storage").await.reveal("customer_db").await;
    let quiet = stack.workspace("storage").await.reveal("customer_db").await;
    // An idle connection makes room at once.
    for credentials in [&busy, &quiet, &busy, &quiet] {
        let mut wire = Wire::login(credentials).await;
        assert_eq!(tags(&within(PATIENCE, "an eviction", wire.query("SELECT 1")).await), "TDCZ");
    }
    let mut session = Wire::login(&quiet).await;
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let (busy, stop) = (busy.clone(), stop.clone());
        tasks.push(tokio::spawn(async move {
            let mut wire = Wire::login(&busy).await;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(tags(&wire.query("SELECT count(*) FROM generate_series(1, 30000)").await), "TDCZ");
            }
        }));
    }
    until("a queue", async || (waiting(&stack).await? > 2).then_some(())).await;
    for _ in 0..3 {
        let heard = within(Duration::from_secs(10), "the quiet workspace's turn", session.query("SELECT 1")).await;
        assert_eq!(tags(&heard), "TDCZ", "{heard:?}");
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    for task in tasks {
        within(PATIENCE, "the busy workspace", task).await.unwrap();
    }
    let upstream =
        "SELECT count(*) FROM pg_stat_activity WHERE datname IN ($1, $2) AND backend_type = 'client backend'";
    let superuser = stack.access.superuser("postgres").await;
    let count: i64 = superuser.query_one(upstream, &[&busy.database, &quiet.database]).await.unwrap().get(0);
    assert!(count <= 2, "{count} connections");
}

#[tokio::test]
async fn a_restart_of_postgresql_heals() {
    let mut stack = Stack::private(Options::default().proxy("pool.size_max", 2)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut idle = Wire::login(&credentials).await;
    let mut busy = Wire::login(&credentials).await;
    hold(&mut idle, "P s | SELECT 7\nB | s\nE\nS\nQ SET timezone = 'Asia/Tokyo'").await.unwrap();
    busy.query("BEGIN").await;
    stack.cluster().kill();
    let heard = within(PATIENCE, "the end of the transaction's session", busy.until_closed()).await;
    assert!(heard.len() <= 1, "{heard:?}");
    // The idle session hears an error and lives.
    let heard = within(PATIENCE, "an error", idle.query("SELECT 1")).await;
    assert_eq!(words(&heard), "E(57P03) ZI");
    stack.cluster().restart().await;
    let heard = within(PATIENCE, "healing", hold(&mut idle, "B | s\nE\nS\nQ SHOW timezone")).await;
    assert_eq!(heard.as_deref(), Ok("2 D(7) C(SELECT 1) ZI T D(Asia/Tokyo) C(SHOW) ZI ZI"));
}

/// All kinds of logins of a workspace together have no more connections than it may have, and share them.
#[tokio::test]
async fn a_workspaces_connections_are_bounded_over_all_its_kinds() {
    let options = Options::default().proxy("pool.workspace_connections_max", 2).proxy("pool.wait_notice_ms", 0);
    let stack = Stack::private(options).await;
    let workspace = stack.workspace("override").await;
    let (read, runtime) = (workspace.reveal("read").await, workspace.reveal("runtime").await);
    let other = stack.workspace("storage").await.reveal("customer_db").await;
    let (mut one, mut two) = (Wire::login(&read).await, Wire::login(&read).await);
    let (mut three, mut others) = (Wire::login(&runtime).await, Wire::login(&other).await);
    one.query("BEGIN").await;
    two.query("BEGIN").await;
    three.send(&bytes("Q SELECT 1")).await.unwrap();
    until("the third to wait", async || (waiting(&stack).await? == 1).then_some(())).await;
    assert_eq!(tags(&others.query("SELECT 1").await), "TDCZ", "the server has room for others");
    let count = "SELECT count(*) FROM pg_stat_activity WHERE datname = $1 AND backend_type = 'client backend'";
    let superuser = stack.access.superuser("postgres").await;
    let open: i64 = superuser.query_one(count, &[&read.database]).await.unwrap().get(0);
    assert_eq!(open, 2);
    // One that idles makes room for the other kind at once, and the other way round.
    two.query("COMMIT").await;
    assert_eq!(tags(&within(PATIENCE, "its turn", three.until_ready()).await), "TDCZ");
    for _ in 0..3 {
        for wire in [&mut two, &mut three] {
            assert_eq!(tags(&within(PATIENCE, "its turn", wire.query("SELECT 1")).await), "TDCZ");
        }
    }
    let open: i64 = superuser.query_one(count, &[&read.database]).await.unwrap().get(0);
    assert!(open <= 2, "{open}");
}

/// Pools have their least number of connections before anybody asks, and keep it.
#[tokio::test]
async fn pools_are_warm_where_they_should_be() {
    let options = Options::default().proxy("pool.size_min", 2).proxy("pool.idle_timeout_ms", 100);
    let stack = Stack::private(options).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let superuser = stack.access.superuser("postgres").await;
    let ours = r"SELECT pid FROM pg_stat_activity WHERE datname = $1 AND usename LIKE '%customer_db\_%' ORDER BY pid";
    let pids = async || -> Vec<i32> {
        let rows = superuser.query(ours, &[&credentials.database]).await.unwrap();
        rows.iter().map(|row| row.get(0)).collect()
    };
    let warm = until("two connections that nobody asked for", async || {
        let pids = pids().await;
        (pids.len() == 2).then_some(pids)
    })
    .await;
    let mut wire = Wire::login(&credentials).await;
    let heard = wire.query("SELECT pg_backend_pid()").await;
    let used: i32 = heard[1].columns()[0].as_ref().unwrap().parse().unwrap();
    assert!(warm.contains(&used), "{used} is none of {warm:?}");
    // More come when more are needed, and go again; these two stay.
    let mut many = Vec::new();
    for _ in 0..4 {
        let mut wire = Wire::login(&credentials).await;
        wire.query("BEGIN").await;
        many.push(wire);
    }
    assert_eq!(pids().await.len(), 4);
    for wire in &mut many {
        wire.query("COMMIT").await;
    }
    until("the others to go", async || (pids().await.len() == 2).then_some(())).await;
}
