//! The life of a login's versions, as the catalog keeps it and as a proxy sees it.

use portcullis_catalog::{CatalogError, LoginId, Reader, VersionState, VersionState::*};

use crate::fixture::{Catalog, NEVER, actor, at, reaches, rotation};

/// The versions that a proxy accepts at a second, newest first, by the keys that they have.
fn accepted(reader: &Reader, username: &str, second: i64) -> Vec<(i32, u8)> {
    let snapshot = reader.snapshot();
    let login = snapshot.login(username).expect("the login is in the snapshot");
    login.accepted(at(second)).map(|version| (version.version, version.stored_key[0])).collect()
}

async fn states(catalog: &Catalog<'_>, login: &LoginId) -> Vec<(i32, VersionState, bool)> {
    for workspace in catalog.store.workspaces(None, 10).await.unwrap() {
        for record in catalog.store.logins(&workspace.id).await.unwrap() {
            if record.login.id == *login {
                let row = |v: &portcullis_catalog::VersionRecord| (v.version, v.state, v.sealed_password.is_some());
                return record.versions.iter().map(row).collect();
            }
        }
    }
    Vec::new()
}

#[tokio::test]
async fn both_passwords_open_during_a_grace_and_the_oldest_goes_first() {
    let catalog = Catalog::new().await;
    let workspace = catalog.workspace("acme").await;
    let (login, revision) = catalog.login(&workspace, "customer_db").await;
    let reader = catalog.reader(NEVER).await;
    reaches(&reader, revision).await;
    let name = format!("tdb_{}_customer_db", workspace.digits());
    assert_eq!(accepted(&reader, &name, 0), [(1, 1)]);

    let rotated = catalog.store.rotate_login(&actor(), &rotation(&login, 2, 60, 100)).await.unwrap();
    assert_eq!((rotated.version, rotated.previous_valid_until, rotated.revoked), (2, Some(at(160)), vec![]));
    reaches(&reader, rotated.revision).await;
    assert_eq!(accepted(&reader, &name, 159), [(2, 2), (1, 1)]);
    assert_eq!(accepted(&reader, &name, 160), [(2, 2)], "the end of a grace needs no word from the catalog");

    // A second rotation during the grace.
    let rotated = catalog.store.rotate_login(&actor(), &rotation(&login, 3, 60, 110)).await.unwrap();
    assert_eq!((rotated.previous_valid_until, rotated.revoked), (Some(at(170)), vec![1]));
    reaches(&reader, rotated.revision).await;
    assert_eq!(accepted(&reader, &name, 111), [(3, 3), (2, 2)]);
    assert_eq!(states(&catalog, &login).await, [(3, Active, true), (2, Grace, true), (1, Revoked, false)]);

    assert_eq!(catalog.store.expire_logins(&actor(), at(169)).await.unwrap(), []);
    assert_eq!(catalog.store.expire_logins(&actor(), at(170)).await.unwrap(), [(login.clone(), 2)]);
    assert_eq!(states(&catalog, &login).await, [(3, Active, true), (2, Revoked, false), (1, Revoked, false)]);

    // Without a grace, and with the sessions ended.
    let mut last = rotation(&login, 4, 0, 200);
    last.terminate_sessions = true;
    let rotated = catalog.store.rotate_login(&actor(), &last).await.unwrap();
    assert_eq!((rotated.previous_valid_until, rotated.revoked, rotated.session_epoch), (None, vec![3], 1));
    reaches(&reader, rotated.revision).await;
    assert_eq!(accepted(&reader, &name, 200), [(4, 4)]);
    assert_eq!(reader.snapshot().login(&name).unwrap().session_epoch, 1);
}

#[tokio::test]
async fn of_two_rotations_at_once_one_wins() {
    let catalog = Catalog::new().await;
    let workspace = catalog.workspace("acme").await;
    let (login, _) = catalog.login(&workspace, "customer_db").await;
    let rotations = (0..8).map(|_| {
        let (store, rotation) = (catalog.store.clone(), rotation(&login, 2, 60, 100));
        tokio::spawn(async move { store.rotate_login(&actor(), &rotation).await })
    });
    let mut won = 0;
    for rotation in rotations.collect::<Vec<_>>() {
        match rotation.await.unwrap() {
            Ok(_) => won += 1,
            Err(error) => assert!(matches!(error, CatalogError::Stale { .. }), "{error:?}"),
        }
    }
    assert_eq!(won, 1);
    assert_eq!(states(&catalog, &login).await, [(2, Active, true), (1, Grace, true)]);
}

#[tokio::test]
async fn a_login_and_its_history_show_no_secret() {
    let catalog = Catalog::new().await;
    let workspace = catalog.workspace("acme").await;
    let (login, _) = catalog.login(&workspace, "customer_db").await;
    let record = catalog.store.login(&workspace, "customer_db").await.unwrap().unwrap();
    assert_eq!((record.next_version(), record.active().unwrap().version, &record.login.id), (2, 1, &login));
    assert_eq!(record.active().unwrap().sealed_password.as_ref().unwrap().as_bytes(), b"sealed password 1");
    assert_eq!(record.previous_valid_until(at(0)), None);
    let debug = format!("{record:?} {:?}", crate::fixture::version(1));
    for secret in ["115, 101, 97", "sealed password", "1, 1, 1", "101, 101, 101"] {
        assert!(!debug.contains(secret), "{secret}: {debug}");
    }
    assert!(catalog.store.login(&workspace, "read").await.unwrap().is_none());
}
