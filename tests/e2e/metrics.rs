//! What an operator sees of pooling in `/metrics`: each number is made to move by the thing that it counts.

use std::collections::BTreeMap;

use portcullis_tests::{
    Options, Stack,
    raw::Wire,
    script::{bytes, hold},
    wait::until,
};

use crate::{LONG, protocol::cancel, queue::waiting};

async fn scrape(stack: &Stack) -> BTreeMap<String, f64> {
    let page = stack.access.get("/metrics").without_key().send().await.text;
    let samples = page.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.rsplit_once(' '));
    samples.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

async fn moves(stack: &Stack, series: &str) {
    let series = format!("portcullis_{series}");
    until(&series, async || (scrape(stack).await.get(&series).copied()? > 0.0).then_some(())).await;
}

#[tokio::test]
async fn every_number_of_pooling_moves() {
    let options = Options::default().proxy("pool.size_max", 1).proxy("pool.wait_notice_ms", 50);
    let stack = Stack::private(options).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    hold(&mut wire, "Q CREATE SEQUENCE storage.q\nQ SELECT 1\nQ SELECT 1\nQ SELECT 2\nQ SELECT pg_sleep(1)")
        .await
        .unwrap();
    for series in [
        "query_seconds_count",
        "verdict_seconds_count",
        "verdicts_total{from=\"text\"}",
        "verdicts_total{from=\"shape\"}",
        "verdicts_total{from=\"judge\"}",
        "statements_total{verdict=\"allowed\"}",
        "statements_refused_total{rule=\"function.not_allowed\"}",
        "client_bytes_total{direction=\"in\"}",
        "client_bytes_total{direction=\"out\"}",
        "upstream_connects_total",
        "upstream_connect_seconds_count",
        "upstream_connections{state=\"idle\"}",
        "pools",
        "handshake_seconds_count",
        "sessions",
    ] {
        moves(&stack, series).await;
    }
    // Pins by their reason, and the connection that is cleaned after each.
    for (script, reason) in [
        ("Q PREPARE x AS SELECT 1", "prepared_statement"),
        ("Q BEGIN\nQ DECLARE c CURSOR WITH HOLD FOR SELECT 1\nQ COMMIT", "hold_cursor"),
        ("Q SELECT nextval('storage.q')", "sequence"),
        ("P | SELECT set_config('extra_float_digits', $1, false)\nB | | 0\nE\nS", "setting"),
    ] {
        let mut pinned = Wire::login(&credentials).await;
        hold(&mut pinned, script).await.unwrap();
        moves(&stack, &format!("pins_total{{reason=\"{reason}\"}}")).await;
        moves(&stack, "pinned_sessions").await;
        moves(&stack, "upstream_connections{state=\"active\"}").await;
        drop(pinned);
        until("it to be unpinned", async || (scrape(&stack).await["portcullis_pinned_sessions"] == 0.0).then_some(()))
            .await;
    }
    moves(&stack, "upstream_resets_total{outcome=\"clean\"}").await;
    moves(&stack, "sessions_ended_total{reason=\"client_gone\"}").await;
    // A wait, its notice, and its end.
    wire.query("BEGIN").await;
    let mut waits = Wire::login(&credentials).await;
    waits.send(&bytes("Q SELECT 1")).await.unwrap();
    moves(&stack, "pool_waiters").await;
    moves(&stack, "wait_notices_total").await;
    wire.query("COMMIT").await;
    waits.until_ready().await;
    assert_eq!(waiting(&stack).await, Some(0));
    let waited = scrape(&stack).await["portcullis_wait_seconds_sum"];
    assert!(waited >= 0.05, "{waited}");
    // A cancel, a limit, and a connection that is given up with its client.
    let superuser = stack.access.superuser("postgres").await;
    let runs = async || {
        let running =
            "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE '%100000000000%'";
        until("it to run", async || superuser.query_opt(running, &[&credentials.database]).await.unwrap()).await;
    };
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    runs().await;
    cancel(credentials.port, wire.cancel_key.as_ref().unwrap()).await;
    wire.until_ready().await;
    moves(&stack, "cancels_total{kind=\"delivered\"}").await;
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    runs().await;
    drop(wire);
    moves(&stack, "upstream_closed_total{reason=\"abandoned\"}").await;
    workspace.set_limits("query_timeout_ms = 100, max_rows_per_query = 10").await;
    waits.query(LONG).await;
    waits.query("SELECT * FROM generate_series(1, 100)").await;
    moves(&stack, "limits_hit_total{limit=\"statement_timeout\"}").await;
    moves(&stack, "limits_hit_total{limit=\"rows\"}").await;
}
