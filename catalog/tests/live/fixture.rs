//! A catalog in a database of its own, and things to put into it.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use jiff::Timestamp;
use portcullis_catalog::{
    Actor, BackendRole, Generation, LoginId, Mode, NewLogin, NewVersion, NewWorkspace, Reader, ReaderOptions, Revision,
    Rotation, Sealed, Server, ServerId, Settings, Source, Store, UpstreamTls, WorkspaceId,
};
use portcullis_tests::cluster::Cluster;
use tokio_postgres::Client;

pub const PROVISIONER: &str = "portcullis_provisioner";
pub const PROXY: &str = "portcullis_proxy";

/// A poll so rare that a test sees only what was announced.
pub const NEVER: Duration = Duration::from_secs(3600);

pub struct Catalog<'a> {
    pub cluster: &'a Cluster,
    pub database: String,
    pub store: Store,
}

impl Catalog<'static> {
    /// With the schema, a server and a profile, in the shared cluster.
    pub async fn new() -> Self {
        Self::within(Cluster::shared()).await
    }
}

impl<'a> Catalog<'a> {
    pub async fn within(cluster: &'a Cluster) -> Self {
        let catalog = Self::empty(cluster).await;
        catalog.store.migrate(PROXY).await.unwrap();
        catalog.store.upsert_server(&actor(), &server("127.0.0.1")).await.unwrap();
        catalog.store.upsert_policy(&actor(), "storage", "name = 'storage'").await.unwrap();
        catalog
    }

    /// Without the schema.
    pub async fn empty(cluster: &'a Cluster) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let database = format!("catalog_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        cluster.bootstrap(&database);
        let store = Store::connect(&Source::new(cluster.url(PROVISIONER, &database)), 8).await.unwrap();
        Self { cluster, database, store }
    }

    pub async fn client(&self, role: &str) -> Client {
        self.cluster.client(role, &self.database).await
    }

    pub async fn reader(&self, poll: Duration) -> Reader {
        let source = Source::new(self.cluster.url(PROXY, &self.database));
        Reader::start(ReaderOptions { source, name: "test".to_owned(), poll }).await.unwrap()
    }

    pub async fn workspace(&self, name: &str) -> WorkspaceId {
        self.store.create_workspace(&actor(), &workspace(name)).await.unwrap().0.id
    }

    pub async fn login(&self, workspace: &WorkspaceId, kind: &str) -> (LoginId, Revision) {
        let new = login(workspace, kind);
        let revision = self.store.create_login(&actor(), &new).await.unwrap();
        (new.id, revision)
    }
}

pub fn actor() -> Actor {
    Actor { name: "test".to_owned(), request_id: Some("req-1".to_owned()) }
}

pub fn server(host: &str) -> Server {
    Server { id: ServerId::parse("main").unwrap(), host: host.to_owned(), port: 5432, tls: UpstreamTls::Disable }
}

pub fn workspace(name: &str) -> NewWorkspace {
    let id = WorkspaceId::random().unwrap();
    NewWorkspace {
        name: name.to_owned(),
        mode: Mode::Control,
        profile: "storage".to_owned(),
        server: ServerId::parse("main").unwrap(),
        database: id.as_str().to_owned(),
        wrapped_key: Some(Sealed::from_bytes(b"wrapped data key".to_vec())),
        settings: Settings { max_connections: Some(7), ..Settings::default() },
        now: at(0),
        id,
    }
}

pub fn login(workspace: &WorkspaceId, kind: &str) -> NewLogin {
    NewLogin {
        id: LoginId::random().unwrap(),
        workspace: workspace.clone(),
        kind: kind.to_owned(),
        username: format!("tdb_{}_{kind}", workspace.digits()),
        salt: vec![9; 16],
        iterations: 4096,
        version: version(1),
        now: at(0),
    }
}

/// A password whose keys can be told by its number.
pub fn version(version: i32) -> NewVersion {
    let byte = u8::try_from(version).unwrap();
    NewVersion {
        version,
        stored_key: [byte; 32],
        server_key: [byte + 100; 32],
        sealed_password: Some(Sealed::from_bytes(format!("sealed password {version}").into_bytes())),
        valid_until: None,
    }
}

pub fn rotation(login: &LoginId, number: i32, grace_seconds: u64, now: i64) -> Rotation {
    Rotation {
        login: login.clone(),
        version: version(number),
        grace: Duration::from_secs(grace_seconds),
        terminate_sessions: false,
        now: at(now),
    }
}

pub fn backend_role(workspace: &WorkspaceId, generation: i32) -> BackendRole {
    let role = format!("{workspace}_customer_db");
    BackendRole {
        workspace: workspace.clone(),
        kind: "customer_db".to_owned(),
        login: format!("{role}_{}", if generation % 2 == 1 { "a" } else { "b" }),
        role,
        generation: Generation(generation),
        salt: vec![3; 16],
        iterations: 4096,
        sealed_keys: Sealed::from_bytes(vec![4; 93]),
    }
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + second).unwrap()
}

/// Waits until the reader has this revision.
pub async fn reaches(reader: &Reader, revision: Revision) {
    let mut revisions = reader.subscribe();
    let reached = revisions.wait_for(|seen| *seen >= revision);
    tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the reader does not follow").unwrap();
}

/// Waits until a condition holds.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while !holds().await {
        assert!(tokio::time::Instant::now() < give_up, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
