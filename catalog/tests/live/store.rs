//! Changes: complete or not at all, each with its audit row, and the answers to changes that cannot be.

use portcullis_catalog::{
    ApiKey, ApiKeyId, AuditEvent, CatalogError, PlaneStatus, Revision, Settings, UpstreamTls, Workspace,
    audit::ChainCheck,
};
use serde_json::json;

use crate::fixture::{Catalog, PROVISIONER, actor, at, backend_role, login, rotation, server, workspace};

async fn audit_rows(catalog: &Catalog<'_>) -> Vec<(String, Option<i64>)> {
    let client = catalog.client(PROVISIONER).await;
    let rows = client.query("SELECT action, revision FROM observed.audit ORDER BY sequence", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[tokio::test]
async fn a_change_and_its_audit_row_are_one_transaction() {
    let catalog = Catalog::new().await;
    let (created, revision) = catalog.store.create_workspace(&actor(), &workspace("acme")).await.unwrap();
    assert_eq!(audit_rows(&catalog).await.last().unwrap(), &("workspace.create".to_owned(), Some(revision.0)));

    // A change that fails leaves neither a revision nor an audit row.
    let before = audit_rows(&catalog).await;
    let twice = catalog.store.create_workspace(&actor(), &workspace("acme")).await;
    assert!(matches!(twice, Err(CatalogError::Exists { what: "a workspace of this name" })), "{twice:?}");
    assert_eq!((catalog.store.revision().await.unwrap(), audit_rows(&catalog).await), (revision, before.clone()));

    // A change whose audit row cannot be written does not happen.
    let client = catalog.client(PROVISIONER).await;
    client.batch_execute("ALTER TABLE observed.audit ADD CHECK (action <> 'workspace.plane')").await.unwrap();
    let refused = catalog.store.set_plane(&actor(), &created.id, PlaneStatus::Active, Some("1"), None, at(5)).await;
    assert_eq!(refused.unwrap_err().sqlstate(), Some("23514"));
    assert_eq!(catalog.store.workspace("acme").await.unwrap().unwrap(), created);
    assert_eq!((catalog.store.revision().await.unwrap(), audit_rows(&catalog).await), (revision, before));
}

#[tokio::test]
async fn the_audit_chain_shows_what_was_changed_later() {
    let catalog = Catalog::new().await;
    for number in 0..5 {
        let event =
            AuditEvent::new("login.reveal").subject("lg_0123456789abcdef").detail(json!({"b": number, "a": "é"}));
        catalog.store.audit(&actor(), &event).await.unwrap();
    }
    assert_eq!(catalog.store.check_audit().await.unwrap(), ChainCheck::Intact { events: 7 });
    let client = catalog.client(PROVISIONER).await;
    for (tamper, mend, sequence) in [
        ("UPDATE observed.audit SET actor = 'x' WHERE sequence = 4", "UPDATE observed.audit SET actor = 'test'", 4),
        (
            "UPDATE observed.audit SET at = at + interval '1 us' WHERE sequence = 5",
            "UPDATE observed.audit SET at = at - interval '1 us' WHERE sequence = 5",
            5,
        ),
        (
            "CREATE TABLE kept AS SELECT * FROM observed.audit WHERE sequence >= 6; DELETE FROM observed.audit WHERE sequence = 6",
            "INSERT INTO observed.audit SELECT * FROM kept WHERE sequence = 6",
            6,
        ),
        (
            "DELETE FROM observed.audit WHERE sequence = 7",
            "INSERT INTO observed.audit SELECT * FROM kept WHERE sequence = 7",
            7,
        ),
    ] {
        let tamper = tamper.replace("TABLE kept", "TEMP TABLE kept");
        client.batch_execute(&tamper).await.unwrap();
        assert_eq!(catalog.store.check_audit().await.unwrap(), ChainCheck::Broken { sequence }, "{tamper}");
        client.batch_execute(mend).await.unwrap();
        assert_eq!(catalog.store.check_audit().await.unwrap(), ChainCheck::Intact { events: 7 }, "{mend}");
    }
}

#[tokio::test]
async fn workspaces_are_found_listed_changed_and_forgotten() {
    let catalog = Catalog::new().await;
    let store = &catalog.store;
    for name in ["b", "a", "Ä", "c"] {
        catalog.workspace(name).await;
    }
    let names = |page: Vec<Workspace>| page.into_iter().map(|w| w.name).collect::<Vec<_>>();
    assert_eq!(names(store.workspaces(None, 3).await.unwrap()), ["a", "b", "c"]);
    assert_eq!(names(store.workspaces(Some("c"), 3).await.unwrap()), ["Ä"]);
    assert_eq!(store.workspaces_count().await.unwrap(), 4);
    let a = store.workspace("a").await.unwrap().unwrap();
    assert_eq!(store.workspace(a.id.as_str()).await.unwrap().unwrap(), a);
    assert_eq!((a.alias.as_str(), a.settings.max_connections, a.created_at), ("a_workspace", Some(7), at(0)));
    assert_eq!(store.workspace("none").await.unwrap(), None);
    assert_eq!(store.wrapped_key(&a.id).await.unwrap().unwrap().as_bytes(), b"wrapped data key");

    store.set_plane(&actor(), &a.id, PlaneStatus::Active, Some("7"), None, at(1)).await.unwrap();
    store.set_plane(&actor(), &a.id, PlaneStatus::Active, None, None, at(2)).await.unwrap();
    let plane = store.workspace("a").await.unwrap().unwrap().plane;
    assert_eq!((plane.status, plane.since, plane.schema_version.as_deref()), (PlaneStatus::Active, at(1), Some("7")));
    store.set_plane(&actor(), &a.id, PlaneStatus::Failed, None, Some("no disk"), at(3)).await.unwrap();
    let plane = store.workspace("a").await.unwrap().unwrap().plane;
    assert_eq!((plane.since, plane.last_error.as_deref()), (at(3), Some("no disk")));

    let settings = Settings { query_timeout_ms: Some(5), max_rows_per_query: None, max_connections: Some(2) };
    store.set_settings(&actor(), &a.id, &settings).await.unwrap();
    assert_eq!(store.workspace("a").await.unwrap().unwrap().settings, settings);

    catalog.login(&a.id, "customer_db").await;
    store.put_backend_role(&actor(), &backend_role(&a.id, 1)).await.unwrap();
    store.delete_workspace(&actor(), &a.id).await.unwrap();
    assert_eq!((store.workspace("a").await.unwrap(), store.workspaces_count().await.unwrap()), (None, 3));
    for gone in [
        store.delete_workspace(&actor(), &a.id).await,
        store.set_settings(&actor(), &a.id, &settings).await,
        store.set_plane(&actor(), &a.id, PlaneStatus::Active, None, None, at(4)).await,
    ] {
        assert!(matches!(gone, Err(CatalogError::NotFound { what: "the workspace" })), "{gone:?}");
    }
}

#[tokio::test]
async fn what_cannot_be_is_refused_by_the_catalog_itself() {
    let catalog = Catalog::new().await;
    let acme = catalog.workspace("acme").await;
    catalog.login(&acme, "customer_db").await;
    let second = catalog.store.create_login(&actor(), &login(&acme, "customer_db")).await.unwrap_err();
    assert!(matches!(second, CatalogError::Exists { .. }), "{second:?}");
    let unknown = portcullis_catalog::LoginId::random().unwrap();
    let rotated = catalog.store.rotate_login(&actor(), &rotation(&unknown, 1, 0, 0)).await.unwrap_err();
    assert!(matches!(rotated, CatalogError::NotFound { what: "the login" }), "{rotated:?}");
    let long = "x".repeat(54);
    for name in ["", "a__b", long.as_str()] {
        let error = catalog.store.create_workspace(&actor(), &workspace(name)).await.unwrap_err();
        assert_eq!(error.sqlstate(), Some("23514"), "{name}");
    }
}

#[tokio::test]
async fn what_does_not_differ_is_not_a_change() {
    let catalog = Catalog::new().await;
    let store = &catalog.store;
    let acme = catalog.workspace("acme").await;
    let published = store.put_backend_role(&actor(), &backend_role(&acme, 2)).await.unwrap();
    assert_eq!(store.put_backend_role(&actor(), &backend_role(&acme, 2)).await.unwrap(), published);
    assert_eq!(store.upsert_server(&actor(), &server("127.0.0.1")).await.unwrap(), published);
    assert_eq!(store.upsert_policy(&actor(), "storage", "name = 'storage'").await.unwrap(), published);
    assert_eq!(store.backend_roles(&acme).await.unwrap(), [backend_role(&acme, 2)]);

    let older = store.put_backend_role(&actor(), &backend_role(&acme, 1)).await.unwrap_err();
    assert!(matches!(older, CatalogError::Stale { .. }), "{older:?}");
    let mut other = backend_role(&acme, 2);
    other.salt = vec![8; 16];
    let same = store.put_backend_role(&actor(), &other).await.unwrap_err();
    assert!(matches!(same, CatalogError::Stale { .. }), "{same:?}");
    assert_eq!(store.put_backend_role(&actor(), &backend_role(&acme, 3)).await.unwrap(), Revision(published.0 + 1));

    let mut verified = server("db");
    verified.tls = UpstreamTls::VerifyFull { ca_pem: "pem".to_owned() };
    store.upsert_server(&actor(), &verified).await.unwrap();
    assert_eq!(store.server(&verified.id).await.unwrap().unwrap(), verified);
}

#[tokio::test]
async fn api_keys() {
    let catalog = Catalog::new().await;
    let key = |number: u8| ApiKey {
        id: ApiKeyId::random().unwrap(),
        name: "admin".to_owned(),
        secret_hash: [number; 32],
        scopes: vec!["workspace.view".to_owned(), "workspace.update".to_owned()],
        workspace: None,
        created_at: at(0),
        expires_at: Some(at(100)),
        revoked_at: None,
        last_used_at: None,
    };
    let first = (0..4).map(|number| {
        let (store, key) = (catalog.store.clone(), key(number));
        tokio::spawn(async move { store.insert_first_api_key(&actor(), &key).await.unwrap().map(|_| key) })
    });
    let mut made = Vec::new();
    for first in first.collect::<Vec<_>>() {
        made.extend(first.await.unwrap());
    }
    let [first] = made.as_slice() else { panic!("{} first keys", made.len()) };
    let stored = catalog.store.api_key(&first.id).await.unwrap().unwrap();
    assert_eq!((&stored.secret_hash, &stored.scopes, &stored.workspace), (&first.secret_hash, &first.scopes, &None));
    assert!(stored.is_accepted(at(99)) && !stored.is_accepted(at(100)));

    let second = key(9);
    catalog.store.insert_api_key(&actor(), &second).await.unwrap();
    catalog.store.api_key_used(&second.id, at(3)).await.unwrap();
    catalog.store.api_key_used(&second.id, at(2)).await.unwrap();
    catalog.store.revoke_api_key(&actor(), &second.id, at(50)).await.unwrap();
    let stored = catalog.store.api_key(&second.id).await.unwrap().unwrap();
    assert_eq!(
        (stored.last_used_at, stored.is_accepted(at(49)), stored.is_accepted(at(50))),
        (Some(at(3)), true, false)
    );
    assert!(catalog.store.revoke_api_key(&actor(), &second.id, at(51)).await.is_err());
    assert!(catalog.store.api_key(&ApiKeyId::random().unwrap()).await.unwrap().is_none());
    assert!(!format!("{stored:?}").contains("9, 9"));
}
