//! Signals: a graceful stop, and a new certificate.

use std::time::Duration;

use portcullis_tests::{
    Options, Stack,
    raw::{Wire, tags},
    wait::{PATIENCE, until, within},
};

#[tokio::test]
async fn sigterm_finishes_transactions_and_ends_with_57p01() {
    let mut stack = Stack::private(Options::default()).await;
    let workspace = stack.workspace("storage").await;
    let credentials = workspace.reveal("customer_db").await;
    let mut idle = Wire::login(&credentials).await;
    idle.query("CREATE TABLE storage.t (id int)").await;
    let mut busy = Wire::login(&credentials).await;
    busy.query("BEGIN").await;
    stack.proxy().signal("TERM");
    let messages = within(PATIENCE, "the idle session's end", idle.until_closed()).await;
    assert_eq!(tags(&messages), "E", "{messages:?}");
    assert_eq!(messages[0].field(b'C').as_deref(), Some("57P01"));
    // The transaction may still be finished; nobody new comes in.
    assert_eq!(tags(&busy.query("INSERT INTO storage.t VALUES (1)").await), "CZ");
    assert!(credentials.try_connect().await.is_err());
    let mut commit = portcullis_tests::raw::Pipeline::new();
    commit.query("COMMIT");
    busy.send(&commit.bytes).await.unwrap();
    let messages = within(PATIENCE, "the busy session's end", busy.until_closed()).await;
    assert_eq!(tags(&messages), "CZE", "{messages:?}");
    assert_eq!(messages[2].field(b'C').as_deref(), Some("57P01"));
    let status = stack.proxy().wait(PATIENCE);
    assert!(status.success(), "{status}");
    let count: i64 = workspace
        .access
        .superuser(&credentials.database)
        .await
        .query_one("SELECT count(*) FROM storage.t", &[])
        .await
        .unwrap()
        .get(0);
    assert_eq!(count, 1);
}

/// The certificate that the proxy presents now.
async fn presented(port: u16, ca_pem: &str) -> Vec<u8> {
    Wire::negotiate(port, ca_pem).await.expect("TLS").certificate
}

#[tokio::test]
async fn sighup_reloads_the_certificate_and_keeps_the_old_one_when_the_new_is_no_good() {
    let mut stack = Stack::private(Options::default()).await;
    let credentials = stack.workspace("storage").await.reveal("customer_db").await;
    let session = credentials.connect().await;
    let (port, ca, home) = (stack.access.wire_port, stack.access.ca_pem.clone(), stack.access.home.clone());
    let first = presented(port, &ca).await;
    std::fs::write(home.join("server.crt"), "not a certificate").unwrap();
    stack.proxy().signal("HUP");
    let log = home.join("portcullis-proxy.log");
    let before = std::fs::read_to_string(&log).unwrap().len();
    stack.proxy().signal("HUP");
    until("word of the bad certificate", async || (std::fs::read_to_string(&log).ok()?.len() > before).then_some(()))
        .await;
    assert_eq!(presented(port, &ca).await, first);
    stack.replace_certificate();
    stack.proxy().signal("HUP");
    until("the new certificate", async || (presented(port, &ca).await != first).then_some(())).await;
    // Sessions go on, and channel binding is to the new certificate.
    session.batch_execute("SELECT 1").await.unwrap();
    let mut config = credentials.config();
    config.channel_binding(tokio_postgres::config::ChannelBinding::Require);
    let bound = within(Duration::from_secs(10), "a login", portcullis_tests::customer::connect(&config, &ca)).await;
    bound.unwrap().batch_execute("SELECT 1").await.unwrap();
}
