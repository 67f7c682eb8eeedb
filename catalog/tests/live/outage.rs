//! The catalog away: the reader serves from memory and comes back by itself.

use std::time::Duration;

use portcullis_catalog::{PlaneStatus, Refreshed};
use portcullis_tests::cluster::{Cluster, SMALL};
use tokio::time::Instant;

use crate::fixture::{Catalog, actor, at, reaches, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_catalog_is_served_from_memory_and_followed_again() {
    let cluster = Cluster::start(SMALL);
    let catalog = Catalog::within(&cluster).await;
    let acme = catalog.workspace("acme").await;
    let (login, revision) = catalog.login(&acme, "customer_db").await;
    let name = format!("tdb_{}_customer_db", acme.digits());
    let reader = catalog.reader(Duration::from_millis(100)).await;
    reaches(&reader, revision).await;

    cluster.kill();
    until("the reader notices", async || !reader.connected()).await;
    assert!(reader.ready() && reader.snapshot().login(&name).is_some(), "served from memory");
    let far = Instant::now() + Duration::from_secs(60);
    assert_eq!(reader.refresh_now(far).await, Refreshed::Unavailable, "and without waiting for the deadline");
    let age = reader.age();
    until("the snapshot ages", async || reader.age() > age + Duration::from_millis(50)).await;
    let error = catalog.store.revision().await.unwrap_err();
    assert!(error.is_unavailable(), "{error:?}");
    // Noted while the catalog is away, written when it is back.
    reader.last_used(&login, 1, at(4));

    cluster.restart().await;
    until("the reader is back", async || reader.connected()).await;
    until("the store is back", async || catalog.store.revision().await.is_ok()).await;
    let revision = catalog.store.set_plane(&actor(), &acme, PlaneStatus::Active, None, None, at(1)).await.unwrap();
    reaches(&reader, revision).await;
    assert!(reader.age() < Duration::from_secs(10));
    reader.acknowledge(revision, &[]);
    let acknowledged = catalog.store.wait_acknowledged(revision, Duration::from_secs(20)).await.unwrap();
    assert_eq!((acknowledged.all, acknowledged.proxies), (true, 1), "the same proxy as before");
    reader.stop().await;
    let record = catalog.store.login(&acme, "customer_db").await.unwrap().unwrap();
    assert_eq!(record.last_used_at, Some(at(4)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_starts_without_a_catalog_becomes_ready_when_it_is_there() {
    let cluster = Cluster::start(SMALL);
    let catalog = Catalog::within(&cluster).await;
    let acme = catalog.workspace("acme").await;
    cluster.kill();
    until("the catalog is away", async || catalog.store.revision().await.is_err()).await;
    let reader = catalog.reader(Duration::from_millis(100)).await;
    assert!(!reader.ready() && !reader.connected());
    assert_eq!(reader.snapshot().workspaces_count(), 0);
    cluster.restart().await;
    until("the reader is ready", async || reader.ready()).await;
    assert!(reader.snapshot().workspace(&acme).is_some());
}
