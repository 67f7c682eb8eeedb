//! A whole Portcullis: PostgreSQL, the sidecar and the proxy, and the workspaces that tests make in it.
//!
//! [`Stack::shared`] is what most tests want: the one that tests/run started for everybody, or one per process when they
//! are run by hand. A test that kills something takes [`Stack::private`]. Every test makes its own workspace, so tests
//! on one stack do not see each other.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{sync::OnceCell, task::spawn_blocking};
use tokio_postgres::Client;

use crate::{
    certificates::Authority,
    cluster::{Cluster, connect, free_port, random, socket_config},
    customer::Credentials,
    process::Process,
    programs,
    raw::Wire,
    wait::until,
};

/// The variable with the path of the shared stack's description.
pub const SHARED: &str = "PORTCULLIS_TEST_STACK";

/// Everything that a test needs to know about a running stack.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Access {
    /// The directory of the stack's files: configuration, logs, socket.
    pub home: PathBuf,
    /// The proxy's wire port on 127.0.0.1.
    pub wire_port: u16,
    /// The proxy's admin port on 127.0.0.1.
    pub admin_port: u16,
    /// The admin key that the sidecar minted.
    pub admin_key: String,
    /// The authority that signed the proxy's certificate, PEM.
    pub ca_pem: String,
    /// PostgreSQL's own port.
    pub postgres_port: u16,
}

/// What differs from the defaults in a private stack.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Keys of proxy.toml, such as `("limits.idle_timeout_ms", "500")`.
    pub proxy: Vec<(&'static str, String)>,
    /// Keys of provisioner.toml.
    pub provisioner: Vec<(&'static str, String)>,
}

impl Options {
    /// Sets one key of proxy.toml.
    #[must_use]
    pub fn proxy(mut self, key: &'static str, value: impl ToString) -> Self {
        self.proxy.push((key, value.to_string()));
        self
    }
}

/// A running stack, or the address of the shared one.
#[derive(Debug)]
pub struct Stack {
    /// How to reach it.
    pub access: Access,
    own: Option<Own>,
}

/// The processes of a stack, in the order in which they are stopped.
#[derive(Debug)]
struct Own {
    authority: Authority,
    proxy: Option<Process>,
    sidecar: Option<Process>,
    cluster: Cluster,
}

impl Stack {
    /// The stack that all tests of a run share, or, when they are run by hand, all tests of this process.
    pub async fn shared() -> Stack {
        static BY_HAND: OnceCell<(Child, Access)> = OnceCell::const_new();
        let access = match env::var_os(SHARED) {
            Some(path) => described(Path::new(&path)).expect("the shared stack's description"),
            None => BY_HAND.get_or_init(by_hand).await.1.clone(),
        };
        Stack { access, own: None }
    }

    /// A stack of the test's own, for what others must not notice.
    pub async fn private(options: Options) -> Stack {
        let cluster = spawn_blocking(|| Cluster::start("")).await.expect("a cluster starts");
        let authority = Authority::new();
        let access = Access {
            home: cluster.home.clone(),
            wire_port: free_port(),
            admin_port: free_port(),
            admin_key: String::new(),
            ca_pem: authority.certificate.clone(),
            postgres_port: cluster.port,
        };
        cluster.bootstrap("portcullis");
        write_files(&access, &cluster, &authority, &options);
        let mut stack = Stack { access, own: Some(Own { authority, proxy: None, sidecar: None, cluster }) };
        stack.start_sidecar().await;
        stack.start_proxy().await;
        stack.ready().await;
        stack
    }

    /// Waits until the proxy serves and the sidecar behind it answers.
    pub async fn ready(&mut self) {
        let access = self.access.clone();
        until("the proxy's /readyz and the sidecar behind it", async || {
            self.expect_alive();
            let ready = access.get("/readyz").without_key().try_send().await.ok()?.status;
            let api = access.get("/workspaces").try_send().await.ok()?.status;
            (ready == 200 && api == 200).then_some(())
        })
        .await;
    }

    /// Starts the sidecar, the first time or after it was killed.
    pub async fn start_sidecar(&mut self) {
        let home = self.access.home.clone();
        self.own().sidecar = Some(start("portcullis-provisioner", &home));
        let key = home.join("admin.key");
        self.access.admin_key = until("the first admin key", async || {
            self.expect_alive();
            fs::read_to_string(&key).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty())
        })
        .await;
    }

    /// Starts the proxy, the first time or after it was killed.
    pub async fn start_proxy(&mut self) {
        let home = self.access.home.clone();
        self.own().proxy = Some(start("portcullis-proxy", &home));
        let port = self.access.wire_port;
        until("the proxy's wire port", async || {
            self.expect_alive();
            tokio::net::TcpStream::connect(("127.0.0.1", port)).await.ok().map(drop)
        })
        .await;
    }

    /// Starts a sidecar that was killed with other values for some keys of provisioner.toml, and waits until the proxy
    /// has followed.
    pub async fn start_sidecar_with(&mut self, keys: &[(&str, String)]) {
        let file = self.access.home.join("portcullis-provisioner.toml");
        let text = fs::read_to_string(&file).expect("provisioner.toml reads");
        let kept = text.lines().filter(|line| keys.iter().all(|(key, _)| !line.starts_with(&format!("{key} = "))));
        let changed = keys.iter().map(|(key, value)| format!("{key} = {value}"));
        let lines: Vec<String> = kept.map(str::to_owned).chain(changed).collect();
        fs::write(&file, lines.join("\n") + "\n").expect("provisioner.toml is written");
        self.start_sidecar().await;
        self.ready().await;
        self.access.followed().await;
    }

    /// `kill -9` of the sidecar.
    pub fn kill_sidecar(&mut self) {
        self.own().sidecar.take().expect("the sidecar runs").kill();
    }

    /// `kill -9` of the proxy.
    pub fn kill_proxy(&mut self) {
        self.own().proxy.take().expect("the proxy runs").kill();
    }

    /// The proxy's process.
    pub fn proxy(&mut self) -> &mut Process {
        self.own().proxy.as_mut().expect("the proxy runs")
    }

    /// The PostgreSQL behind it.
    pub fn cluster(&mut self) -> &mut Cluster {
        &mut self.own().cluster
    }

    /// Replaces the proxy's certificate by a new one of the same authority. The proxy learns of it by SIGHUP.
    pub fn replace_certificate(&mut self) {
        let home = self.access.home.clone();
        write_certificate(&home, &self.own().authority);
    }

    /// A new workspace with a name of its own, without data.
    pub async fn workspace(&self, profile: &str) -> Workspace {
        let name = format!("w{:012x}", random() >> 16);
        let body = json!({"name": name, "database": "PostgreSQL", "mode": "control", "profile": profile});
        let created = self.access.post("/workspaces", &body).send().await.expect(201);
        let id = created["id"].as_str().expect("an id").to_owned();
        Workspace { access: self.access.clone(), name, id, profile: profile.to_owned() }
    }

    /// A new workspace of profile `storage` with the demo's people and companies.
    pub async fn filled(&self) -> Workspace {
        let workspace = self.workspace("storage").await;
        workspace.fill().await;
        workspace
    }

    /// What the proxy logged, for a failing test.
    #[must_use]
    pub fn proxy_log(&self) -> String {
        self.log("portcullis-proxy")
    }

    /// What a process of the stack has logged: `portcullis-proxy`, `portcullis-provisioner` or `postgres`.
    #[must_use]
    pub fn log(&self, process: &str) -> String {
        fs::read_to_string(self.access.home.join(format!("{process}.log"))).unwrap_or_default()
    }

    fn own(&mut self) -> &mut Own {
        self.own.as_mut().expect("this stack is shared; take Stack::private to change its processes")
    }

    fn expect_alive(&mut self) {
        if let Some(own) = &mut self.own {
            own.proxy.iter_mut().chain(&mut own.sidecar).for_each(Process::expect_alive);
        }
    }
}

/// A workspace that a test made.
#[derive(Clone, Debug)]
pub struct Workspace {
    /// The stack that it is in.
    pub access: Access,
    /// Its name.
    pub name: String,
    /// Its id.
    pub id: String,
    /// Its profile.
    pub profile: String,
}

const INGESTION: &str = "/api/v2/ingestion";

impl Workspace {
    /// The credentials of `kind`, revealed.
    pub async fn reveal(&self, kind: &str) -> Credentials {
        let path = format!("{INGESTION}/connection-uris/reveal");
        let body = self.access.post(&path, &json!({"kind": kind})).workspace(&self.name).send().await.expect(200);
        Credentials::from_body(&body, &self.access.ca_pem)
    }

    /// Rotates the password of `kind`; gives the new credentials and the whole answer.
    pub async fn rotate(&self, kind: &str, grace_seconds: u32, terminate: bool) -> (Credentials, Value) {
        let path = format!("{INGESTION}/connection-uris/rotate");
        let body = json!({"kind": kind, "grace_seconds": grace_seconds, "terminate_sessions": terminate});
        let body = self.access.post(&path, &body).workspace(&self.name).send().await.expect(200);
        (Credentials::from_body(&body, &self.access.ca_pem), body)
    }

    /// The name of its database on the server.
    pub async fn database(&self) -> String {
        let kind = if self.profile == "override" { "read" } else { "customer_db" };
        self.reveal(kind).await.database
    }

    /// Fills it with the demo's people and companies, as the superuser.
    pub async fn fill(&self) {
        let script = fs::read_to_string(programs::root().join("deploy/demo-data.sql")).expect("the demo's data");
        self.superuser().await.batch_execute(&script).await.expect("the demo's data loads");
    }

    /// Sets columns of its row in the catalog, such as `max_connections = 2`, as the sidecar would, and waits until every
    /// proxy has drawn the consequences.
    pub async fn set_limits(&self, limits: &str) {
        let catalog = self.access.superuser("portcullis").await;
        let change = format!(
            "WITH next AS (UPDATE catalog.revision SET value = value + 1 RETURNING value), \
                  changed AS (UPDATE catalog.workspace SET {limits}, revision = value FROM next WHERE id = $1) \
             SELECT pg_notify('portcullis', value::text) FROM next"
        );
        catalog.execute(&change, &[&self.id]).await.expect("the catalog takes the limits");
        self.access.followed().await;
    }

    /// Gives it a policy of its own: that of its profile with these texts replaced. Waits until every proxy has drawn the
    /// consequences; the grants stay as they were made.
    ///
    /// # Panics
    /// When a text to replace does not occur.
    pub async fn set_policy(&self, changes: &[(&str, &str)]) {
        let path = programs::root().join("provisioner/profiles").join(&self.profile).join("policy.toml");
        let mut text = fs::read_to_string(path).expect("the profile's policy");
        for (from, to) in changes {
            assert!(text.contains(from), "{from:?} is not in the policy");
            text = text.replace(from, to);
        }
        let catalog = self.access.superuser("portcullis").await;
        let change = "WITH next AS (UPDATE catalog.revision SET value = value + 1 RETURNING value) \
             INSERT INTO catalog.policy (name, text, digest, revision) \
             SELECT $1, $2, sha256(convert_to($2, 'UTF8')), value FROM next \
             ON CONFLICT (name) DO UPDATE SET text = excluded.text, digest = excluded.digest, revision = excluded.revision";
        catalog.execute(change, &[&self.id, &text]).await.expect("the catalog takes the policy");
        self.set_limits(&format!("profile = '{}'", self.id)).await;
    }

    /// A superuser's session in its database, around the gate.
    pub async fn superuser(&self) -> Client {
        self.access.superuser(&self.database().await).await
    }

    /// A session around the gate with the very login role and role that the proxy uses for `kind`.
    pub async fn backend(&self, kind: &str) -> Client {
        let database = self.database().await;
        let (role, login) = self.backend_role(kind).await;
        let mut config = socket_config(&self.access.home, self.access.postgres_port, &login, &database);
        config.options(format!("-c role={role}"));
        connect(&config).await.expect("the backend role connects around the gate")
    }

    /// The same as [`Workspace::backend`], message by message.
    pub async fn backend_wire(&self, kind: &str) -> Wire {
        let database = self.database().await;
        let (role, login) = self.backend_role(kind).await;
        let parameters =
            [("user", login.as_str()), ("database", &database), ("role", &role), ("client_encoding", "UTF8")];
        Wire::around_the_gate(&self.access.home, self.access.postgres_port, &parameters).await
    }

    /// The role that statements of `kind` run as, and one of its logins.
    pub async fn backend_role(&self, kind: &str) -> (String, String) {
        let role = format!("{}_{kind}", self.id);
        let logins = "SELECT min(rolname) FROM pg_roles WHERE rolcanlogin AND rolname IN ($1 || '_a', $1 || '_b')";
        let superuser = self.access.superuser("postgres").await;
        let login: Option<String> = superuser.query_one(logins, &[&role]).await.expect("pg_roles reads").get(0);
        let login = login.unwrap_or_else(|| panic!("no login role for {role}"));
        (role, login)
    }
}

impl Access {
    /// A superuser's session in `database`, around the gate.
    pub async fn superuser(&self, database: &str) -> Client {
        let config = socket_config(&self.home, self.postgres_port, "postgres", database);
        connect(&config).await.expect("the superuser connects")
    }

    /// Waits until every proxy that runs has drawn the consequences of what is in the catalog now.
    pub async fn followed(&self) {
        let catalog = self.superuser("portcullis").await;
        let now = "SELECT value FROM catalog.revision";
        let revision: i64 = catalog.query_one(now, &[]).await.expect("the revision").get(0);
        let behind = "SELECT 1 FROM observed.proxy WHERE stopped_at IS NULL AND revision < $1";
        until("the proxies to follow the catalog", async || {
            catalog.query(behind, &[&revision]).await.expect("the proxies").is_empty().then_some(())
        })
        .await;
    }
}

/// Starts a stack in a process of its own, which stops it when this process ends: its standard input ends then.
async fn by_hand() -> (Child, Access) {
    let path = env::temp_dir().join(format!("portcullis-test-stack.{}.json", std::process::id()));
    let program = programs::own("portcullis-test-stack");
    let mut child = Command::new(program).arg(&path).stdin(Stdio::piped()).spawn().expect("a stack starts");
    let access = until("a stack for this process", async || {
        assert!(child.try_wait().expect("it can be waited for").is_none(), "the stack did not start");
        described(&path)
    })
    .await;
    let _ = fs::remove_file(&path);
    (child, access)
}

fn described(path: &Path) -> Option<Access> {
    serde_json::from_str(&fs::read_to_string(path).ok()?).ok()
}

fn write_files(access: &Access, cluster: &Cluster, authority: &Authority, options: &Options) {
    let home = &access.home;
    let path = |name: &str| home.join(name).display().to_string();
    let key = || STANDARD.encode((0..4).flat_map(|_| random().to_ne_bytes()).collect::<Vec<_>>());
    let (proxy_key, key_of_keys) = (key(), key());
    write_certificate(home, authority);
    let sidecar = format!("unix:{}", path("sidecar.sock"));
    let proxy = json!({
        "listen": {"address": format!("127.0.0.1:{}", access.wire_port)},
        "tls": {"certificate_file": path("server.crt"), "key_file": path("server.key")},
        "admin": {"address": format!("127.0.0.1:{}", access.admin_port), "sidecar": sidecar},
        "catalog": {
            "url": format!("postgresql://portcullis_proxy@127.0.0.1:{}/portcullis", cluster.port),
            "password": cluster.proxy_password,
        },
        "keys": {"proxy_key": proxy_key},
    });
    let provisioner = json!({
        "api": {"listen": sidecar},
        "catalog": {
            "url": format!("postgresql://portcullis_provisioner@127.0.0.1:{}/portcullis", cluster.port),
            "password": cluster.provisioner_password,
        },
        "keys": {"key_of_keys": key_of_keys, "proxy_key": proxy_key},
        "public": {"host": "localhost", "port": access.wire_port, "sslmode": "require"},
        "bootstrap": {"admin_key_file": path("admin.key")},
        "project": {"id": "test", "name": "Test project"},
        "servers": {"main": {
            "host": "127.0.0.1", "port": cluster.port, "database": "postgres", "user": "postgres",
            "password": cluster.password, "tls": "disable",
        }},
    });
    fs::write(home.join("portcullis-proxy.toml"), toml(&proxy, &options.proxy)).expect("proxy.toml is written");
    fs::write(home.join("portcullis-provisioner.toml"), toml(&provisioner, &options.provisioner))
        .expect("provisioner.toml is written");
}

fn write_certificate(home: &Path, authority: &Authority) {
    let pem = authority.issue();
    fs::write(home.join("server.crt"), pem.certificate).expect("the certificate is written");
    fs::write(home.join("server.key"), pem.key).expect("the key is written");
}

/// The settings as TOML with dotted keys, the overrides instead of what they override. JSON's strings and numbers are
/// TOML's too.
fn toml(settings: &Value, overrides: &[(&'static str, String)]) -> String {
    let mut lines = Vec::new();
    flatten("", settings, &mut lines);
    lines.retain(|(key, _)| overrides.iter().all(|(other, _)| other != key));
    lines.extend(overrides.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
    lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect()
}

fn flatten(prefix: &str, value: &Value, lines: &mut Vec<(String, String)>) {
    match value {
        Value::Object(members) => {
            for (name, member) in members {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, member, lines);
            }
        }
        _ => lines.push((prefix.to_owned(), value.to_string())),
    }
}

fn start(name: &str, home: &Path) -> Process {
    let config = home.join(format!("{name}.toml"));
    let log = home.join(format!("{name}.log"));
    let arguments = ["--config", config.to_str().expect("a path in UTF-8")];
    Process::start(name, &programs::own(name), &arguments, &log)
}
