//! Scratch copies of workspaces' databases: each profile once as it was provisioned and once with the objects that the
//! corpora name, to be copied, spoilt and thrown away.

use std::path::PathBuf;

use portcullis_tests::{Access, Options, Stack, programs};
use tokio_postgres::Client;

use crate::session::Login;

/// The name of the copy: the one under which the corpora's three-part names know the session's own database.
pub const DATABASE: &str = "own_database";

/// The profiles, their kinds of login with the schema that each defines in.
const PROFILES: &[(&str, &[&str], &str, &str)] = &[
    ("storage", &["customer_db"], "customer_db", "storage"),
    ("override", &["runtime", "read"], "runtime", "tenant_custom"),
    ("design", &["developer"], "developer", "public"),
];

/// A cluster of its own with one provisioned workspace per profile.
pub struct Scratch {
    /// How to reach it.
    pub access: Access,
    profiles: Vec<Profile>,
    _stack: Stack,
}

/// One profile's workspace.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Its name.
    pub name: &'static str,
    /// The schema that its customers own.
    pub schema: &'static str,
    database: String,
    /// Per kind: the role that statements run as, and the login.
    roles: Vec<(&'static str, String, String)>,
}

/// What a copy begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stock {
    /// The objects that the corpora name.
    Full,
    /// Nothing of the customer's.
    Empty,
}

impl Scratch {
    /// Starts a cluster, provisions the workspaces and stops everything but the server, so that it is quiet.
    pub async fn start() -> Scratch {
        let mut stack = Stack::private(Options::default()).await;
        let mut profiles = Vec::new();
        for (name, kinds, definer, schema) in PROFILES {
            let workspace = stack.workspace(name).await;
            let database = workspace.reveal(definer).await.database;
            let mut roles = Vec::new();
            for kind in *kinds {
                let (role, login) = workspace.backend_role(kind).await;
                roles.push((*kind, role, login));
            }
            profiles.push(Profile { name, schema, database, roles });
        }
        stack.kill_sidecar();
        stack.kill_proxy();
        let scratch = Scratch { access: stack.access.clone(), profiles, _stack: stack };
        let superuser = scratch.access.superuser("postgres").await;
        for statement in [
            "ALTER SYSTEM SET autovacuum = off",
            "ALTER SYSTEM SET temp_file_limit = '64MB'",
            "ALTER SYSTEM SET full_page_writes = off",
            "SELECT pg_reload_conf()",
        ] {
            superuser.batch_execute(statement).await.expect("the scratch cluster is configured");
        }
        for profile in &scratch.profiles {
            scratch.stock(profile).await;
        }
        scratch
    }

    /// The profile of this name.
    pub fn profile(&self, name: &str) -> &Profile {
        self.profiles.iter().find(|profile| profile.name == name).unwrap_or_else(|| panic!("no profile {name}"))
    }

    /// Throws the current copy away and makes a new one of this profile.
    pub async fn renew(&self, profile: &Profile, stock: Stock) {
        let template = match stock {
            Stock::Full => format!("{}_full", profile.name),
            Stock::Empty => profile.database.clone(),
        };
        let superuser = self.access.superuser("postgres").await;
        superuser.batch_execute(&format!("DROP DATABASE IF EXISTS {DATABASE} WITH (FORCE)")).await.expect("a drop");
        copy(&superuser, &template, DATABASE).await;
    }

    async fn stock(&self, profile: &Profile) {
        let full = format!("{}_full", profile.name);
        copy(&self.access.superuser("postgres").await, &profile.database, &full).await;
        if profile.name != "design" {
            let managed = fixture("fixture_managed.sql");
            self.access.superuser(&full).await.batch_execute(&managed).await.expect("managed data");
        }
        let (kind, ..) = profile.roles[0];
        let login = profile.login(kind, &full);
        let mut owner = crate::session::Session::open(&self.access, &login).await;
        let mut script = fixture("fixture.sql");
        if profile.name != "storage" {
            script.push_str(&fixture("fixture_types.sql"));
        }
        for statement in script.replace(":schema", profile.schema).split(";\n") {
            owner.own(statement).await;
        }
        owner.end().await;
    }
}

impl Profile {
    /// The kinds of login that customers have.
    pub fn kinds(&self) -> Vec<&'static str> {
        self.roles.iter().map(|(kind, ..)| *kind).collect()
    }

    /// Where names without a schema are looked up.
    pub fn search_path(&self) -> &'static str {
        if self.name == "design" { "public" } else { "\"$user\", public" }
    }

    /// The login of a kind in `database`, exactly as the proxy's.
    pub fn login(&self, kind: &str, database: &str) -> Login {
        let (_, role, login) = self.roles.iter().find(|(name, ..)| *name == kind).expect("a kind of this profile");
        let startup = Login::new(&[("user", login), ("database", database), ("role", role)]);
        if self.name == "design" { startup.with("search_path", "public") } else { startup }
    }
}

/// A database like `template`, with its owner and its grants, which CREATE DATABASE does not copy.
async fn copy(superuser: &Client, template: &str, name: &str) {
    superuser.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE {template}")).await.expect("a copy");
    let grants = "UPDATE pg_database c SET datacl = t.datacl, datdba = t.datdba FROM pg_database t
                   WHERE c.datname = $1 AND t.datname = $2";
    superuser.execute(grants, &[&name, &template]).await.expect("the copy's grants");
}

fn fixture(name: &str) -> String {
    let path: PathBuf = programs::root().join("tests/soundness").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
