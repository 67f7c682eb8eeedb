//! Migrations: once, in turn, never changed, never backwards.

use portcullis_catalog::{CatalogError, SCHEMA_VERSION};
use portcullis_tests::cluster::Cluster;

use crate::fixture::{Catalog, PROVISIONER, PROXY};

fn refusal(result: Result<(), CatalogError>) -> String {
    match result {
        Err(CatalogError::Schema(text)) => text,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

#[tokio::test]
async fn sidecars_that_start_together_migrate_once() {
    let catalog = Catalog::empty(Cluster::shared()).await;
    let migrations = (0..4).map(|_| {
        let store = catalog.store.clone();
        tokio::spawn(async move { store.migrate(PROXY).await })
    });
    for migration in migrations.collect::<Vec<_>>() {
        migration.await.unwrap().unwrap();
    }
    let rows = catalog.client(PROVISIONER).await;
    let rows = rows.query("SELECT version FROM catalog.migration ORDER BY version", &[]).await.unwrap();
    let versions: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(versions, (1..=SCHEMA_VERSION).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_changed_or_unknown_migration_is_refused() {
    let catalog = Catalog::new().await;
    let client = catalog.client(PROVISIONER).await;
    client.batch_execute("UPDATE catalog.migration SET digest = '\\x00' WHERE version = 2").await.unwrap();
    assert!(refusal(catalog.store.migrate(PROXY).await).contains("0002_observed is not the one that was applied"));

    let catalog = Catalog::new().await;
    let client = catalog.client(PROVISIONER).await;
    let newer = "INSERT INTO catalog.migration VALUES (99, 'future', '\\x00')";
    client.batch_execute(newer).await.unwrap();
    assert!(refusal(catalog.store.migrate(PROXY).await).contains("it is at version 99"));
}

#[tokio::test]
async fn the_proxys_role_must_exist_and_be_weak() {
    let catalog = Catalog::empty(Cluster::shared()).await;
    for (role, expected) in
        [("nobody_knows_it", "does not exist"), ("postgres", "may do everything"), (PROVISIONER, "may do everything")]
    {
        assert!(refusal(catalog.store.migrate(role).await).contains(expected), "{role}");
    }
    let client = catalog.client(PROVISIONER).await;
    let made: bool = client.query_one("SELECT to_regclass('catalog.revision') IS NOT NULL", &[]).await.unwrap().get(0);
    assert!(!made, "a refused migration leaves nothing behind");
}
