//! One thing to do on a server, as data, and the SQL that does it. Every step may be done again without harm.

use std::collections::BTreeSet;

use super::intent::Intent;
use crate::names::{ident, literal};

/// Where a step's SQL runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the maintenance database, together with its neighbours in one transaction.
    Server,
    /// In the maintenance database, by itself: PostgreSQL allows it in no transaction.
    ServerAlone,
    /// In the workspace's database, in one transaction.
    Workspace,
}

/// What a role of ours is for.
#[derive(Clone, PartialEq, Eq)]
pub enum Duty {
    /// Owns the database and what is managed in it.
    Owner,
    /// Holds the grants of a kind.
    Group,
    /// The login in use, with its stored password.
    Active {
        /// `SCRAM-SHA-256$…`
        verifier: String,
    },
    /// The login that is not in use.
    Idle,
}

impl std::fmt::Debug for Duty {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Duty::Owner => "Owner",
            Duty::Group => "Group",
            Duty::Active { .. } => "Active",
            Duty::Idle => "Idle",
        })
    }
}

/// A role as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub duty: Duty,
    /// CONNECTION LIMIT for logins.
    pub connections_max: i32,
    /// `temp_file_limit` for logins; `None` where we may not set it.
    pub temp_file_limit: Option<String>,
}

/// One thing to do. Each may be done again without harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Take everything on these databases from PUBLIC, so that a backend login gets into its own only.
    CloseDatabases(Vec<String>),
    /// The role does not exist.
    CreateRole(Role),
    /// The role exists and is not as it should be.
    AlterRole {
        /// As it should be.
        role: Role,
        /// Attributes to take away that only a superuser may name.
        demote: bool,
        /// Databases for which settings are attached to it; the empty name stands for all.
        reset_in: Vec<String>,
    },
    /// One of our roles is a member of a role that it must not be a member of, or in an unusual way.
    Leave {
        /// The role that it is a member of.
        role: String,
        /// Our role.
        member: String,
    },
    /// Make a login (or, without superuser, ourselves) a member.
    Join {
        /// The role that is granted.
        role: String,
        /// The role that it is granted to.
        member: String,
    },
    /// Make the database.
    CreateDatabase {
        /// Its name.
        database: String,
        /// Its owner.
        owner: String,
    },
    /// Give the database back to its owner.
    OwnDatabase {
        /// Its name.
        database: String,
        /// Its owner.
        owner: String,
    },
    /// Nobody but these may do anything with the database, and nothing but this.
    AdmitOnly {
        /// The database.
        database: String,
        /// Whoever holds something on it now and should not, PUBLIC as the empty name.
        strip: Vec<String>,
        /// Who may what, as `role=PRIVILEGE`.
        grant: BTreeSet<String>,
    },
    /// Lay out the inside of the database: schemas, views, owners, walls, grants, event triggers.
    LayOut(LayOut),
}

/// What [`Step::LayOut`] does.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LayOut {
    /// Whether the managed schemas are made (again); false when only privileges changed.
    pub migrate: bool,
    /// Views that are there with another definition: they are made anew where nothing depends on them.
    pub stale_views: Vec<String>,
    /// Event triggers that are there in another form: they are made anew.
    pub stale_triggers: Vec<String>,
    /// What changed since it was laid out last; empty the first time.
    pub changed: Vec<String>,
    /// Whether event triggers can be made: they take a superuser.
    pub superuser: bool,
}

impl Step {
    /// Where it runs.
    #[must_use]
    pub fn place(&self) -> Place {
        match self {
            Step::CreateDatabase { .. } => Place::ServerAlone,
            Step::LayOut(_) => Place::Workspace,
            _ => Place::Server,
        }
    }

    /// What it puts right, in words for an operator.
    #[must_use]
    pub fn repairs(&self) -> Vec<String> {
        match self {
            Step::CloseDatabases(databases) => {
                databases.iter().map(|name| format!("grants on database {name}")).collect()
            }
            Step::CreateRole(role) | Step::AlterRole { role, .. } => vec![format!("role {}", role.name)],
            Step::Leave { role, member } | Step::Join { role, member } => {
                vec![format!("membership of {member} in {role}")]
            }
            Step::CreateDatabase { database, .. } => vec![format!("database {database}")],
            Step::OwnDatabase { database, .. } => vec![format!("owner of database {database}")],
            Step::AdmitOnly { database, .. } => vec![format!("grants on database {database}")],
            Step::LayOut(layout) => layout.changed.clone(),
        }
    }

    /// Its SQL, without BEGIN and COMMIT.
    #[must_use]
    pub fn sql(&self, intent: &Intent) -> String {
        match self {
            Step::CloseDatabases(databases) => {
                databases.iter().map(|name| format!("REVOKE ALL ON DATABASE {} FROM PUBLIC;\n", ident(name))).collect()
            }
            Step::CreateRole(role) => create_role(role),
            Step::AlterRole { role, demote, reset_in } => alter_role(role, *demote, reset_in),
            Step::Leave { role, member } => format!("REVOKE {} FROM {};\n", ident(role), ident(member)),
            Step::Join { role, member } => format!("GRANT {} TO {};\n", ident(role), ident(member)),
            Step::CreateDatabase { database, owner } => {
                format!("CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'", ident(database), ident(owner))
            }
            Step::OwnDatabase { database, owner } => {
                format!("ALTER DATABASE {} OWNER TO {};\n", ident(database), ident(owner))
            }
            Step::AdmitOnly { database, strip, grant } => admit_only(database, strip, grant),
            Step::LayOut(layout) => lay_out(intent, layout),
        }
    }
}

fn attributes(role: &Role) -> String {
    match &role.duty {
        Duty::Owner | Duty::Group => "NOLOGIN INHERIT CONNECTION LIMIT -1 PASSWORD NULL".to_owned(),
        Duty::Active { verifier } => {
            format!("LOGIN NOINHERIT CONNECTION LIMIT {} PASSWORD {}", role.connections_max, literal(verifier))
        }
        Duty::Idle => format!("NOLOGIN NOINHERIT CONNECTION LIMIT {} PASSWORD NULL", role.connections_max),
    }
}

fn create_role(role: &Role) -> String {
    format!("CREATE ROLE {} {};\n{}", ident(&role.name), attributes(role), limit(role))
}

fn limit(role: &Role) -> String {
    let set = |limit: &String| format!("ALTER ROLE {} SET temp_file_limit = {};\n", ident(&role.name), literal(limit));
    role.temp_file_limit.as_ref().map(set).unwrap_or_default()
}

fn alter_role(role: &Role, demote: bool, reset_in: &[String]) -> String {
    let name = ident(&role.name);
    let mut sql = String::new();
    for database in reset_in {
        let place = if database.is_empty() { String::new() } else { format!(" IN DATABASE {}", ident(database)) };
        sql.push_str(&format!("ALTER ROLE {name}{place} RESET ALL;\n"));
    }
    if demote {
        sql.push_str(&format!("ALTER ROLE {name} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS;\n"));
    }
    sql.push_str(&format!("ALTER ROLE {name} {} VALID UNTIL 'infinity';\n", attributes(role)));
    sql.push_str(&limit(role));
    sql
}

fn admit_only(database: &str, strip: &[String], grant: &BTreeSet<String>) -> String {
    let database = ident(database);
    let mut sql = String::new();
    for grantee in strip {
        let grantee = if grantee.is_empty() { "PUBLIC".to_owned() } else { ident(grantee) };
        sql.push_str(&format!("REVOKE ALL ON DATABASE {database} FROM {grantee};\n"));
    }
    for privilege in ["CONNECT", "TEMPORARY"] {
        let to =
            |granted: &String| granted.rsplit_once('=').filter(|(_, p)| *p == privilege).map(|(role, _)| ident(role));
        let roles: Vec<String> = grant.iter().filter_map(to).collect();
        if !roles.is_empty() {
            sql.push_str(&format!("GRANT {privilege} ON DATABASE {database} TO {};\n", roles.join(", ")));
        }
    }
    sql
}

fn lay_out(intent: &Intent, layout: &LayOut) -> String {
    let array = |names: &[String]| {
        let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
        format!("ARRAY[{}]::text[]", names.join(", "))
    };
    // Waiting for a lock on a view holds up everybody who reads it: better to come back than to wait long.
    let mut sql = "SET LOCAL lock_timeout = '5s';\n".to_owned();
    let straighten = STRAIGHTEN
        .replace(":managed", &array(&intent.managed_schemas))
        .replace(":customer", &array(&intent.customer_schemas))
        .replace(":roles", &array(&intent.roles()))
        .replace(":owner", &literal(&intent.owner));
    sql.push_str(&straighten);
    if layout.migrate {
        for view in &layout.stale_views {
            sql.push_str(&DROP_STALE_VIEW.replace(":view", view));
        }
        sql.push_str(&format!("SET LOCAL ROLE {};\n", ident(&intent.owner)));
        for migration in &intent.migrations {
            sql.push_str(migration);
            sql.push('\n');
        }
        sql.push_str("RESET ROLE;\n");
    }
    let triggers = if layout.superuser { intent.event_triggers.as_slice() } else { &[] };
    if layout.superuser {
        for trigger in &layout.stale_triggers {
            sql.push_str(&format!("DROP EVENT TRIGGER IF EXISTS {trigger};\n"));
        }
    }
    for statement in intent.walls.iter().chain(&intent.grants).chain(triggers) {
        sql.push_str(statement.trim_end_matches([';', '\n', ' ']));
        sql.push_str(";\n");
    }
    sql
}

/// A view whose columns were changed by hand cannot be replaced; it can be dropped unless something was built on it.
const DROP_STALE_VIEW: &str = "
DO $stale$ BEGIN DROP VIEW :view; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $stale$;
";

const STRAIGHTEN: &str = include_str!("straighten.sql");
