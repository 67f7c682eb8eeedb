//! A sidecar of its own for each test, on the shared cluster.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use jiff::Timestamp;
use portcullis_catalog::{Actor, ApiKey, Mode, NewWorkspace, ServerId, Settings, Workspace, WorkspaceId};
use portcullis_config::{Environment, ProvisionerConfig, SidecarAddress};
use portcullis_provisioner::{Provisioner, api};
use portcullis_tests::cluster::Cluster;
use serde_json::{Value, json};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::http::{self, Answer};

pub const INGESTION: &str = "/api/v2/ingestion";

pub struct Sidecar {
    pub provisioner: Arc<Provisioner>,
    pub key: String,
    pub address: String,
    /// The cluster that holds the workspaces' databases.
    pub cluster: &'static Cluster,
    pub home: PathBuf,
    pub catalog: String,
    stop: CancellationToken,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A configuration with a catalog of its own; `more` is added to it.
pub fn config(home: &std::path::Path, catalog: &str, server: &str, more: &str) -> ProvisionerConfig {
    let catalog = Cluster::shared().url("portcullis_provisioner", catalog);
    let text = format!(
        "[catalog]\nurl = \"{catalog}\"\n[keys]\nkey_of_keys = \"{key}\"\nproxy_key = \"{key}\"\n\
         [public]\nhost = \"gate.example.com\"\n[bootstrap]\nadmin_key_file = \"{home}/admin.key\"\n\
         [project]\nid = \"p1\"\nname = \"Test\"\n[servers.main]\n{server}\ntls = \"disable\"\n{more}",
        key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        home = home.display(),
    );
    let file = home.join("provisioner.toml");
    std::fs::write(&file, text).unwrap();
    ProvisionerConfig::load(Some(&file), &Environment::default()).unwrap()
}

/// A sidecar's directory; it goes with the shared cluster's, which it is in.
pub fn home() -> PathBuf {
    let home = Cluster::shared().home.join(format!("sidecar.{}", next()));
    std::fs::create_dir(&home).unwrap();
    home
}

/// A new catalog's name; it exists, empty.
pub fn new_catalog() -> String {
    let name = format!("catalog_{}", next());
    Cluster::shared().bootstrap(&name);
    name
}

impl Sidecar {
    pub async fn start() -> Sidecar {
        Sidecar::on(Cluster::shared(), "postgres").await
    }

    /// Provisions on `cluster`, as `user`.
    pub async fn on(cluster: &'static Cluster, user: &str) -> Sidecar {
        let (home, catalog) = (home(), new_catalog());
        Sidecar::again(home, catalog, cluster, user).await
    }

    /// On a catalog that exists.
    pub async fn again(home: PathBuf, catalog: String, cluster: &'static Cluster, user: &str) -> Sidecar {
        let server = format!("host = \"{}\"\nport = {}\nuser = \"{user}\"", cluster.home.display(), cluster.port);
        let config = config(&home, &catalog, &server, "");
        let provisioner = portcullis_provisioner::start(&config).await.unwrap();
        let key = std::fs::read_to_string(home.join("admin.key")).unwrap().trim().to_owned();
        let listen = SidecarAddress::Tcp { host: "127.0.0.1".to_owned(), port: 0 };
        let listener = api::listen(&listen).await.unwrap();
        let (address, stop) = (listener.address(), CancellationToken::new());
        tokio::spawn(api::serve(listener, provisioner.clone(), stop.clone()));
        Sidecar { provisioner, key, address, cluster, home, catalog, stop }
    }

    pub async fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        http::request(&self.address, method, path, headers, body).await
    }

    /// As the admin, without a workspace.
    pub async fn admin(&self, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.call(method, path, &[("authorization", &format!("Bearer {}", self.key))], &body).await
    }

    /// As the admin, about a workspace, below `/api/v2/ingestion`.
    pub async fn ingestion(&self, workspace: &str, method: &str, path: &str, body: Value) -> Answer {
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let headers = [("authorization", &*format!("Bearer {}", self.key)), ("x-workspace", workspace)];
        self.call(method, &format!("{INGESTION}{path}"), &headers, &body).await
    }

    pub async fn provision(&self, workspace: &str) -> Answer {
        self.ingestion(workspace, "POST", "/provision", Value::Null).await
    }

    pub async fn create(&self, name: &str, profile: &str) -> Workspace {
        let body = json!({"name": name, "database": "PostgreSQL", "mode": "control", "profile": profile});
        self.admin("POST", "/workspaces", body).await.expect(201);
        self.workspace(name).await
    }

    pub async fn workspace(&self, name: &str) -> Workspace {
        self.provisioner.store.workspace(name).await.unwrap().unwrap()
    }

    /// Records a workspace and makes nothing of it.
    pub async fn record(&self, name: &str, profile: &str) -> Workspace {
        let id = WorkspaceId::random().unwrap();
        let (_, wrapped_key) = self.provisioner.key_of_keys.new_data_key(&id).unwrap();
        let new = NewWorkspace {
            database: id.as_str().to_owned(),
            name: name.to_owned(),
            mode: Mode::Control,
            profile: profile.to_owned(),
            server: ServerId::parse("main").unwrap(),
            wrapped_key: Some(wrapped_key),
            settings: Settings::default(),
            now: Timestamp::now(),
            id,
        };
        self.provisioner.store.create_workspace(&actor(), &new).await.unwrap().0
    }

    /// A key of the given scopes, bound to a workspace or not.
    pub async fn key(&self, scopes: &[&str], workspace: Option<&WorkspaceId>) -> String {
        let (key, text) = portcullis_provisioner::ops::keys::make("test", scopes, Timestamp::now()).unwrap();
        let key = ApiKey { workspace: workspace.cloned(), ..key };
        self.provisioner.store.insert_api_key(&actor(), &key).await.unwrap();
        text.expose().clone()
    }

    /// The superuser, in a database of the workspaces' cluster.
    pub async fn superuser(&self, database: &str) -> Client {
        self.cluster.client("postgres", database).await
    }
}

pub fn actor() -> Actor {
    Actor::program("test")
}

/// Every row of a query as text, columns joined by `|`.
pub async fn rows(client: &Client, sql: &str) -> Vec<String> {
    let messages = client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let row = |message: &tokio_postgres::SimpleQueryMessage| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            let values: Vec<&str> = (0..row.len()).map(|at| row.get(at).unwrap_or("∅")).collect();
            Some(values.join("|"))
        }
        _ => None,
    };
    messages.iter().filter_map(row).collect()
}
