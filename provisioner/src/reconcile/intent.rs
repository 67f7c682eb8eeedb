//! What a workspace's database should look like, as one value that is complete before any server is asked.
//!
//! It is built from the catalog and the profile; [`super::plan`] compares it with what [`super::observe`] saw.

/// Everything that is to exist on the server for one workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Intent {
    /// The database's real name.
    pub database: String,
    /// NOLOGIN role that owns the database and what is managed in it.
    pub owner: String,
    /// One entry per login kind of the profile.
    pub kinds: Vec<KindIntent>,
    /// NOLOGIN roles that hold grants and have no login, for the platform's own work.
    pub internal: Vec<String>,
    /// SQL that makes the managed schemas, run as the owner, in this order, every part repeatable.
    pub migrations: Vec<String>,
    /// Schemas whose contents are ours too.
    pub managed_schemas: Vec<String>,
    /// Schemas that we make and whose contents are the customer's.
    pub customer_schemas: Vec<String>,
    /// SQL that takes from PUBLIC what the second wall needs closed. Runs as the provisioner.
    pub walls: Vec<String>,
    /// Signatures or names of functions in `pg_catalog` that PUBLIC may not execute once the walls stand.
    pub closed_functions: Vec<String>,
    /// SQL that gives the kinds' roles what the policy says. Runs as the provisioner.
    pub grants: Vec<String>,
    /// SQL that keeps DDL inside the customer's schemas. Needs a superuser.
    pub event_triggers: Vec<String>,
    /// Connections that one backend login may hold.
    pub connections_max: i32,
}

/// The roles of one login kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindIntent {
    /// The NOLOGIN role that holds the grants and owns what customers create.
    pub group: String,
    /// The login in use.
    pub active: LoginIntent,
    /// The login that waits for the next rotation: it may not log in.
    pub idle: String,
    /// Whether its sessions may make temporary tables: a right on the database.
    pub temporary_tables: bool,
    /// `temp_file_limit` of both, as PostgreSQL writes it (`1048576kB`). Only a superuser may set it.
    pub temp_file_limit: Option<String>,
}

/// The login role the proxy uses.
#[derive(Clone, PartialEq, Eq)]
pub struct LoginIntent {
    /// Its name.
    pub name: String,
    /// Its password as PostgreSQL stores it (`SCRAM-SHA-256$…`).
    pub verifier: String,
}

impl std::fmt::Debug for LoginIntent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoginIntent({}, ***)", self.name)
    }
}

impl Intent {
    /// Every role that is ours, owner first.
    #[must_use]
    pub fn roles(&self) -> Vec<String> {
        let mut roles = vec![self.owner.clone()];
        roles.extend(self.internal.iter().cloned());
        for kind in &self.kinds {
            roles.extend([kind.group.clone(), kind.active.name.clone(), kind.idle.clone()]);
        }
        roles
    }

    /// What others than the owner may do with the database, as `role=PRIVILEGE`. The NOLOGIN roles cannot connect, yet
    /// `pg_database_size` answers only who may.
    #[must_use]
    pub fn database_privileges(&self) -> std::collections::BTreeSet<String> {
        let connect = self.kinds.iter().flat_map(|kind| [&kind.active.name, &kind.idle, &kind.group]);
        let temporary = self.kinds.iter().filter(|kind| kind.temporary_tables).map(|kind| &kind.group);
        let connect = connect.map(|role| format!("{role}=CONNECT"));
        connect.chain(temporary.map(|group| format!("{group}=TEMPORARY"))).collect()
    }

    /// A digest of all SQL in this intent: when it changes (another release, another policy), everything in the database
    /// is laid out again, though nobody altered it by hand.
    #[must_use]
    pub fn digest(&self) -> String {
        let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        let lists = [&self.migrations, &self.walls, &self.grants, &self.event_triggers, &self.managed_schemas];
        for list in lists.into_iter().chain([&self.customer_schemas, &self.closed_functions]) {
            for text in list {
                context.update(&(text.len() as u64).to_be_bytes());
                context.update(text.as_bytes());
            }
            context.update(&u64::MAX.to_be_bytes());
        }
        context.finish().as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }
}
