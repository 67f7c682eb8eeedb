//! Failed logins are limited by network and by user name, successful ones are not (P12); handshakes and cancel requests of
//! one network leave room for others.

use std::time::Duration;

use portcullis_tests::{
    Access, Options, Stack,
    customer::Credentials,
    raw::{Wire, tags},
    script::bytes,
    wait::{until, within},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, task::JoinSet};

use crate::{LONG, doors::Place, protocol::cancel};

const PATIENCE: Duration = Duration::from_secs(20);

async fn login(credentials: &Credentials) -> Result<Wire, String> {
    let mut wire = Wire::negotiate(credentials.port, &credentials.ca_pem).await.unwrap();
    let outcome = wire.authenticate(credentials, &[]).await;
    outcome.map(|()| wire).map_err(|error| error.replace(&credentials.username, "USER"))
}

fn with_password(credentials: &Credentials, password: &str) -> Credentials {
    Credentials { password: password.to_owned(), ..credentials.clone() }
}

fn unknown(credentials: &Credentials, number: u32) -> Credentials {
    Credentials { username: format!("tdb_{number:016x}"), ..credentials.clone() }
}

async fn metric(access: &Access, series: &str) -> u64 {
    let page = access.get("/metrics").without_key().send().await.text;
    let line = page.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' ')?.parse().ok());
    line.unwrap_or(0)
}

#[tokio::test]
async fn a_network_that_fails_too_often_waits_and_owners_do_not() {
    let stack = Stack::private(
        Options::default()
            .proxy("throttle.failures_per_network_max", 5)
            .proxy("throttle.failures_per_login_max", 0)
            .proxy("throttle.failures_window_ms", 3_600_000),
    )
    .await;
    let (owner, other) = (
        stack.workspace("storage").await.reveal("customer_db").await,
        stack.workspace("storage").await.reveal("customer_db").await,
    );
    login(&owner).await.unwrap();
    for number in 0..5 {
        let error = login(&unknown(&owner, number)).await.unwrap_err();
        assert!(error.starts_with("28P01: password authentication failed"), "{error}");
    }
    // Whoever it is and whatever they say: one answer.
    let answers = [
        login(&unknown(&owner, 9)).await,
        login(&with_password(&other, "wrong")).await,
        login(&other).await,
        login(&with_password(&owner, "wrong")).await,
    ];
    for answer in answers {
        assert_eq!(answer.map(drop), Err("28000: too many failed logins; try again later".to_owned()));
    }
    // Except for the right password of a login that has come from here before, as often as it likes.
    let mut all = JoinSet::new();
    for _ in 0..90 {
        let owner = owner.clone();
        all.spawn(async move { login(&owner).await });
    }
    while let Some(outcome) = within(PATIENCE, "the logins", all.join_next()).await {
        let mut wire = outcome.unwrap().unwrap();
        assert_eq!(tags(&wire.query("SELECT 1").await), "TDCZ");
    }
    assert_eq!(metric(&stack.access, "portcullis_login_failures_total{reason=\"throttled_network\"}").await, 4);
    let log = stack.proxy_log();
    let told: Vec<_> = log.lines().filter(|line| line.contains("too many failed logins")).collect();
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("127.0.0.0/24") && !log.contains(&owner.password), "{told:?}");
}

/// The window moves on.
#[tokio::test]
async fn a_login_that_is_tried_too_often_waits_and_recovers() {
    let stack = Stack::private(
        Options::default()
            .proxy("throttle.failures_per_network_max", 0)
            .proxy("throttle.failures_per_login_max", 3)
            .proxy("throttle.failures_window_ms", 4_000),
    )
    .await;
    let victim = stack.workspace("storage").await.reveal("customer_db").await;
    let other = stack.workspace("storage").await.reveal("customer_db").await;
    let wrong = with_password(&victim, "wrong");
    let mut throttled = false;
    for _ in 0..100 {
        throttled = login(&wrong).await.err().is_some_and(|error| error.starts_with("28000"));
        if throttled {
            break;
        }
    }
    assert!(throttled, "never throttled");
    login(&other).await.unwrap();
    until("the end of the throttle", async || login(&victim).await.ok().map(drop)).await;
}

/// A hundred sessions at once, as pools open them, under the default limits.
#[tokio::test]
async fn a_pool_that_opens_a_hundred_sessions_at_once_passes() {
    let stack = Stack::private(Options::default()).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    for _ in 0..3 {
        let mut all = JoinSet::new();
        for _ in 0..100 {
            let credentials = credentials.clone();
            all.spawn(async move { login(&credentials).await });
        }
        let mut open = Vec::new();
        while let Some(outcome) = within(PATIENCE, "the logins", all.join_next()).await {
            open.push(outcome.unwrap().unwrap());
        }
        assert_eq!(open.len(), 100);
        drop(open);
        until("the end of the sessions", async || {
            (metric(&stack.access, "portcullis_sessions").await == 0).then_some(())
        })
        .await;
    }
}

/// P9: who says nothing takes nobody's place, and who stops in the middle takes it from its own network alone.
#[tokio::test]
async fn handshakes_that_hang_leave_room_for_others() {
    let place = Place::new();
    let stack = Stack::private(
        Options::default()
            .proxy("listen.handshakes_max", 2)
            .proxy("listen.handshakes_per_network_max", 1)
            .proxy("limits.connect_timeout_ms", 60_000)
            .proxy("listen.unix_socket", format!("{:?}", place.socket().display().to_string())),
    )
    .await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut silent = Vec::new();
    for _ in 0..10 {
        silent.push(TcpStream::connect(("127.0.0.1", credentials.port)).await.unwrap());
    }
    let open = within(PATIENCE, "a login beside silent clients", login(&credentials)).await;
    open.expect("the silent ones are in nobody's way");

    let mut half = TcpStream::connect(("127.0.0.1", credentials.port)).await.unwrap();
    half.write_all(&[0, 0, 0, 8, 4]).await.unwrap();
    let same_network = tokio::spawn({
        let credentials = credentials.clone();
        async move { login(&credentials).await.map(drop) }
    });
    for _ in 0..5 {
        let mut wire = Wire::unix(&place.socket()).await.unwrap();
        wire.authenticate(&credentials, &[]).await.unwrap();
    }
    assert!(!same_network.is_finished(), "its own network has only one place");
    drop(half);
    within(PATIENCE, "the place", same_network).await.unwrap().unwrap();
}

/// P31: guesses at cancel keys end, and then not even the right key is looked at.
#[tokio::test]
async fn cancel_requests_with_wrong_keys_are_limited() {
    let stack = Stack::private(
        Options::default()
            .proxy("throttle.failures_per_network_max", 20)
            .proxy("throttle.failures_window_ms", 3_600_000),
    )
    .await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let mut wire = Wire::login(&credentials).await;
    let key = wire.cancel_key.clone().unwrap();
    assert_eq!(key[0] & 0x80, 0, "a positive process id");
    let mut foreign = key.clone();
    foreign[0] ^= 0x40;
    cancel(credentials.port, &foreign).await;
    let count = async |kind: &str| metric(&stack.access, &format!("portcullis_cancels_total{{kind=\"{kind}\"}}")).await;
    until("the count", async || (count("other_instance").await == 1).then_some(())).await;
    for guess in 0..20_u8 {
        let mut wrong = key.clone();
        wrong[5] ^= guess + 1;
        cancel(credentials.port, &wrong).await;
    }
    until("the counts", async || (count("unknown_key").await == 20).then_some(())).await;
    wire.send(&bytes(&format!("Q {LONG}"))).await.unwrap();
    cancel(credentials.port, &key).await;
    until("the counts", async || (count("throttled").await == 1).then_some(())).await;
    let early = tokio::time::timeout(Duration::from_millis(200), wire.until_ready()).await;
    assert!(early.is_err(), "{early:?}");
    // Logins have an account of their own.
    login(&credentials).await.unwrap();
}
