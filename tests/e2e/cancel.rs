//! A cancel stops what its session runs or waits for, and never anything else.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    customer::Credentials,
    raw::{Wire, tags},
    script::{bytes, words},
    wait::{until, within},
};

use crate::{LONG, protocol::cancel};

const PATIENCE: Duration = Duration::from_secs(20);

fn cancel_request(key: &[u8]) -> Vec<u8> {
    let length = u32::try_from(8 + key.len()).unwrap().to_be_bytes();
    [&length[..], &80_877_102_u32.to_be_bytes(), key].concat()
}

async fn runs(wire: &mut Wire, stack: &Stack, database: &str) {
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    let superuser = stack.access.superuser("postgres").await;
    let running =
        "SELECT 1 FROM pg_stat_activity WHERE datname = $1 AND state = 'active' AND query LIKE '%100000000000%'";
    until("the query to run", async || superuser.query_opt(running, &[&database]).await.unwrap()).await;
}

#[tokio::test]
async fn keys_of_both_lengths_by_every_way_in() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    for minor in [0, 2] {
        let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
        wire.minor = minor;
        wire.authenticate(&credentials, &[]).await.unwrap();
        let key = wire.cancel_key.clone().unwrap();
        assert_eq!(key.len(), if minor == 2 { 36 } else { 8 }, "3.{minor}");
        for way in ["in clear", "over TLS", "over direct TLS"] {
            runs(&mut wire, &stack, &credentials.database).await;
            match way {
                "in clear" => cancel(credentials.port, &key).await,
                _ => {
                    let mut other = if way == "over TLS" {
                        Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap()
                    } else {
                        Wire::direct(credentials.port, &credentials.ca_pem, &[b"postgresql"]).await.unwrap()
                    };
                    other.send(&cancel_request(&key)).await.unwrap();
                    // Never answered, and ended in order: libpq takes a missing close_notify for a cancel that failed.
                    let end = within(PATIENCE, way, other.next()).await.expect_err("no answer");
                    assert_eq!(end.to_string(), "unexpected end of file", "{way}");
                }
            }
            let heard = within(PATIENCE, way, wire.until_ready()).await;
            assert_eq!(words(&heard), "T E(57014) ZI", "3.{minor} {way}");
        }
        // Keys that are too short, too long, cut, or another's do nothing and harm nobody.
        runs(&mut wire, &stack, &credentials.database).await;
        for wrong in
            [&key[..4], &key[..7], &[&key[..4], &[0; 4]].concat(), &[&key[..], &[0; 1]].concat(), &[key[0]; 260]]
        {
            cancel_any(credentials.port, &cancel_request(wrong)).await;
        }
        let early = tokio::time::timeout(Duration::from_millis(200), wire.next()).await;
        assert!(early.is_err() || early.unwrap().unwrap().tag == b'T', "stopped by a wrong key");
        cancel(credentials.port, &key).await;
        let heard = within(PATIENCE, "the right key", wire.until_ready()).await;
        assert!(words(&heard).ends_with("E(57014) ZI"), "{heard:?}");
    }
}

/// Who has seen the end of the cancel's connection may send the next query: the cancel cannot reach that one (P31).
#[tokio::test]
async fn a_cancel_is_over_when_its_connection_is() {
    let stack = Stack::shared().await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    let key = wire.cancel_key.clone().unwrap();
    for round in 0..100 {
        // Within a transaction, which holds its connection from one query to the next.
        wire.query("BEGIN").await;
        wire.send(&bytes("Q SELECT count(*) FROM generate_series(1, 1000)")).await.unwrap();
        let (heard, ()) = tokio::join!(wire.until_ready(), cancel(credentials.port, &key));
        if words(&heard).ends_with("ZT") {
            let next = wire.query("SELECT count(*) FROM generate_series(1, 20000)").await;
            assert_eq!(words(&next), "T D(20000) C(SELECT 1) ZT", "round {round}");
        }
        wire.query("ROLLBACK").await;
    }
}

/// Like [`cancel`], for requests that may get an answer since they are none.
async fn cancel_any(port: u16, bytes: &[u8]) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    let _ = within(PATIENCE, "closing", stream.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn a_session_that_waits_for_a_connection_can_be_cancelled() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 1)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut holder = Wire::login(&credentials).await;
    holder.query("BEGIN").await;
    let mut waiter = Wire::login(&credentials).await;
    let key = waiter.cancel_key.clone().unwrap();
    for (what, script, heard) in [
        ("a Query", "Q SELECT 1", "E(57014) ZI"),
        ("a pipeline", "P | SELECT 1\nB\nE\nS", "E(57014) ZI"),
        ("two Queries", "Q SELECT 1\nQ SELECT 2", "E(57014) ZI"),
    ] {
        let sent: Vec<u8> = script.lines().flat_map(bytes).collect();
        waiter.send(&sent).await.unwrap();
        // Until it waits, a cancel has nothing to hit: like a person, it is tried again.
        let mut answer = Box::pin(waiter.until_ready());
        let answer = loop {
            cancel(credentials.port, &key).await;
            if let Ok(answer) = tokio::time::timeout(Duration::from_millis(100), &mut answer).await {
                break answer;
            }
        };
        assert_eq!(words(&answer), heard, "{what}");
    }
    assert_eq!(tags(&holder.query("COMMIT").await), "CZ");
    let heard = within(PATIENCE, "the second query", waiter.until_ready()).await;
    assert_eq!(words(&heard), "T D(2) C(SELECT 1) ZI");
}

/// Some sessions cancel themselves at random, others never do; all share three connections and all have settings of their
/// own, so that the proxy's own statements run between theirs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_sessions_that_cancel_at_random_hit_nobody_else() {
    let stack = Stack::private(Options::default().proxy("pool.size_max", 3)).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut tasks = Vec::new();
    for i in 0..50_u32 {
        let credentials = credentials.clone();
        tasks.push(tokio::spawn(async move {
            let mut wire = own_settings(&credentials, i).await;
            let key = wire.cancel_key.clone().unwrap();
            let cancels = i % 2 == 0;
            let mut hit = 0;
            for round in 0..30_u32 {
                let script = match round % 3 {
                    0 => format!("Q SELECT count(*), {i} FROM generate_series(1, 20000)"),
                    1 => "P | SELECT $1::text\nB | | x\nE\nS".to_owned(),
                    _ => "Q SHOW application_name".to_owned(),
                };
                let sent: Vec<u8> = script.lines().flat_map(bytes).collect();
                wire.send(&sent).await.unwrap();
                let cancelling = async {
                    if cancels && (round * 7 + i).is_multiple_of(3) {
                        cancel(credentials.port, &key).await;
                    }
                };
                let (heard, ()) = tokio::join!(wire.until_ready(), cancelling);
                let heard = words(&heard);
                if heard.contains("E(") {
                    assert!(cancels, "session {i}, which never cancels: {heard}");
                    assert!(heard.ends_with("E(57014) ZI"), "session {i}: {heard}");
                    hit += 1;
                } else if script.contains("SHOW") {
                    assert!(heard.contains(&format!("D(s{i})")), "session {i}: {heard}");
                }
            }
            hit
        }));
    }
    let mut hit = 0;
    for task in tasks {
        hit += within(Duration::from_secs(120), "a session", task).await.unwrap();
    }
    assert!(hit > 0, "no cancel ever hit");
}

async fn own_settings(credentials: &Credentials, i: u32) -> Wire {
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    wire.authenticate(credentials, &[("application_name", &format!("s{i}"))]).await.unwrap();
    wire
}
