//! Rotation: no client notices one with a grace, and one without it takes effect at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use portcullis_tests::{
    Stack,
    customer::{Credentials, explain, sqlstate},
    wait::until,
};

/// Reconnects and queries until it is told to stop; gives what went wrong.
async fn reconnect(credentials: Credentials, stop: Arc<AtomicBool>, done: Arc<AtomicU32>) -> Vec<String> {
    let mut failures = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let answer = match credentials.try_connect().await {
            Ok(client) => client.query_one("SELECT count(*) FROM dl_resolved.people", &[]).await.map(drop),
            Err(error) => Err(error),
        };
        match answer {
            Ok(()) => done.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                failures.push(explain(&error));
                0
            }
        };
    }
    failures
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_clients_notice_nothing_during_the_grace() {
    const GRACE_SECONDS: u32 = 12;
    let workspace = Stack::shared().await.workspace("storage").await;
    let old = workspace.reveal("customer_db").await;
    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let start =
        |credentials: &Credentials| tokio::spawn(reconnect(credentials.clone(), Arc::clone(&stop), Arc::clone(&done)));
    let mut clients: Vec<_> = (0..25).map(|_| start(&old)).collect();
    until("the old password in use", async || (done.load(Ordering::Relaxed) >= 25).then_some(())).await;
    let rotated = std::time::Instant::now();
    let (new, body) = workspace.rotate("customer_db", GRACE_SECONDS, false).await;
    assert_eq!(new.username, old.username);
    assert!(body["previous_valid_until"].is_string(), "{body}");
    clients.extend((0..25).map(|_| start(&new)));
    let before = done.load(Ordering::Relaxed);
    until("both passwords in use", async || (done.load(Ordering::Relaxed) >= before + 200).then_some(())).await;
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert_eq!(client.await.unwrap(), Vec::<String>::new());
    }
    let grace = Duration::from_secs(GRACE_SECONDS.into());
    assert!(rotated.elapsed() < grace, "the clients were too slow for the grace");
    let error = until("the end of the grace", async || old.try_connect().await.err()).await;
    assert_eq!(sqlstate(&error), "28P01", "{}", explain(&error));
    assert!(rotated.elapsed() >= grace, "the grace was cut short after {:?}", rotated.elapsed());
    new.connect().await;
}

#[tokio::test]
async fn without_grace_the_first_login_with_the_new_password_succeeds() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let mut old = workspace.reveal("customer_db").await;
    for _ in 0..5 {
        let (new, body) = workspace.rotate("customer_db", 0, false).await;
        assert!(body["previous_valid_until"].is_null(), "{body}");
        new.connect().await;
        let error = old.try_connect().await.expect_err("the old password is refused");
        assert_eq!(sqlstate(&error), "28P01", "{}", explain(&error));
        old = new;
    }
    assert_eq!(workspace.reveal("customer_db").await.password, old.password);
}

#[tokio::test]
async fn sessions_live_on_unless_they_are_to_end() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let session = workspace.reveal("customer_db").await.connect().await;
    session.batch_execute("SELECT 1").await.unwrap();
    let (_, body) = workspace.rotate("customer_db", 0, false).await;
    session.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(body["sessions_terminated"], 0, "{body}");
    let (_, body) = workspace.rotate("customer_db", 0, true).await;
    assert_eq!(body["sessions_terminated"], 1, "{body}");
    until("the session's end", async || session.batch_execute("SELECT 1").await.err()).await;
}

#[tokio::test]
async fn a_second_rotation_during_a_grace_revokes_the_oldest() {
    let workspace = Stack::shared().await.workspace("storage").await;
    let first = workspace.reveal("customer_db").await;
    let (second, _) = workspace.rotate("customer_db", 600, false).await;
    let (third, _) = workspace.rotate("customer_db", 600, false).await;
    assert_eq!(sqlstate(&first.try_connect().await.expect_err("revoked")), "28P01");
    second.connect().await;
    third.connect().await;
}
