//! Intent compared with what was observed: the steps that make the one into the other. Pure; the same function serves the
//! first provisioning, the repair of what somebody dropped or altered by hand, a migration and a rotation.
//!
//! A step is data. What it does to a server is the SQL that [`Step::sql`] makes of it, where [`Step::place`] says.

use super::intent::Intent;
use super::observe::{Cluster, Fingerprints, Inside, Membership, Observed, RoleFact};
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
    /// Nobody but these logins may connect, and they may do nothing else.
    AdmitOnly {
        /// The database.
        database: String,
        /// Whoever holds something on it now and should not, PUBLIC as the empty name.
        strip: Vec<String>,
        /// Who may connect.
        logins: Vec<String>,
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
    /// What changed since it was laid out last; empty the first time.
    pub changed: Vec<String>,
    /// Whether event triggers can be made: they take a superuser.
    pub superuser: bool,
}

/// The steps, in order.
#[must_use]
pub fn plan(intent: &Intent, observed: &Observed) -> Vec<Step> {
    let cluster = &observed.cluster;
    let mut steps = Vec::new();
    if cluster.superuser && !cluster.open_databases.is_empty() {
        steps.push(Step::CloseDatabases(cluster.open_databases.clone()));
    }
    plan_roles(intent, cluster, &mut steps);
    plan_memberships(intent, cluster, &mut steps);
    plan_database(intent, cluster, &mut steps);
    let fresh = cluster.database.is_none();
    if let Some(layout) = plan_inside(intent, observed, fresh) {
        steps.push(Step::LayOut(layout));
    }
    steps
}

fn wanted_roles(intent: &Intent, superuser: bool) -> Vec<Role> {
    let role =
        |name: &str, duty: Duty| Role { name: name.to_owned(), duty, connections_max: -1, temp_file_limit: None };
    let mut roles = vec![role(&intent.owner, Duty::Owner)];
    roles.extend(intent.internal.iter().map(|name| role(name, Duty::Group)));
    for kind in &intent.kinds {
        roles.push(role(&kind.group, Duty::Group));
        let active = role(&kind.active.name, Duty::Active { verifier: kind.active.verifier.clone() });
        for login in [active, role(&kind.idle, Duty::Idle)] {
            let temp_file_limit = kind.temp_file_limit.clone().filter(|_| superuser);
            roles.push(Role { connections_max: intent.connections_max, temp_file_limit, ..login });
        }
    }
    roles
}

fn plan_roles(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    for role in wanted_roles(intent, cluster.superuser) {
        let Some(fact) = cluster.roles.get(&role.name) else {
            steps.push(Step::CreateRole(role));
            continue;
        };
        let settings: Vec<String> =
            role.temp_file_limit.iter().map(|limit| format!(":temp_file_limit={limit}")).collect();
        let same_settings =
            if cluster.superuser { fact.settings.iter().eq(settings.iter()) } else { fact.settings.is_empty() };
        if !same_settings || !same_attributes(&role, fact) {
            let mut reset_in: Vec<String> = fact
                .settings
                .iter()
                .filter_map(|setting| setting.split_once(':'))
                .map(|(db, _)| db.to_owned())
                .collect();
            reset_in.dedup();
            steps.push(Step::AlterRole { role, demote: fact.elevated, reset_in });
        }
    }
}

fn same_attributes(role: &Role, fact: &RoleFact) -> bool {
    let login = matches!(role.duty, Duty::Active { .. });
    let inherit = matches!(role.duty, Duty::Owner | Duty::Group);
    let password = match &role.duty {
        Duty::Active { verifier } => Some(verifier.as_str()),
        Duty::Owner | Duty::Group | Duty::Idle => None,
    };
    fact.login == login
        && fact.inherit == inherit
        && !fact.elevated
        && !fact.expires
        && fact.connections_max == role.connections_max
        && (!fact.password_known || fact.password.as_deref() == password)
}

fn plan_memberships(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    for kind in &intent.kinds {
        wanted.push((&kind.group, &kind.active.name));
        wanted.push((&kind.group, &kind.idle));
    }
    let is_ours = |membership: &Membership| {
        !membership.unusual && wanted.contains(&(membership.role.as_str(), membership.member.as_str()))
    };
    for membership in cluster.memberships.iter().filter(|membership| membership.member != cluster.me) {
        if !is_ours(membership) {
            steps.push(Step::Leave { role: membership.role.clone(), member: membership.member.clone() });
        }
    }
    for (role, member) in &wanted {
        if !cluster.memberships.iter().any(|m| is_ours(m) && m.role == *role && m.member == *member) {
            steps.push(Step::Join { role: (*role).to_owned(), member: (*member).to_owned() });
        }
    }
    // Without superuser we may make a role the owner of something only as its member.
    if !cluster.superuser && !cluster.memberships.iter().any(|m| m.role == intent.owner && m.member == cluster.me) {
        steps.push(Step::Join { role: intent.owner.clone(), member: cluster.me.clone() });
    }
}

fn plan_database(intent: &Intent, cluster: &Cluster, steps: &mut Vec<Step>) {
    let (database, owner) = (intent.database.clone(), intent.owner.clone());
    let logins: Vec<String> =
        intent.kinds.iter().flat_map(|kind| [kind.active.name.clone(), kind.idle.clone()]).collect();
    let Some(fact) = &cluster.database else {
        steps.push(Step::CreateDatabase { database: database.clone(), owner });
        steps.push(Step::AdmitOnly { database, strip: vec![String::new()], logins });
        return;
    };
    if fact.owner != owner {
        steps.push(Step::OwnDatabase { database: database.clone(), owner });
    }
    let wanted: std::collections::BTreeSet<String> = logins.iter().map(|login| format!("{login}=CONNECT")).collect();
    if fact.privileges != wanted {
        let mut strip: Vec<String> = fact
            .privileges
            .difference(&wanted)
            .filter_map(|privilege| privilege.rsplit_once('='))
            .map(|(grantee, _)| grantee.to_owned())
            .collect();
        strip.dedup();
        steps.push(Step::AdmitOnly { database, strip, logins });
    }
}

fn plan_inside(intent: &Intent, observed: &Observed, fresh: bool) -> Option<LayOut> {
    let superuser = observed.cluster.superuser;
    let all = LayOut { migrate: true, superuser, ..LayOut::default() };
    let (Some(inside), Some(record), false) = (&observed.inside, &observed.record, fresh) else { return Some(all) };
    if record.major != observed.cluster.major {
        return Some(all);
    }
    let changed = changed(&record.objects, inside);
    let open = superuser && inside.functions_open > 0;
    let new_intent = record.intent != intent.digest();
    if changed.is_empty() && !open && !new_intent {
        return None;
    }
    let stale_views =
        changed.iter().filter(|name| inside.objects.contains_key(*name)).filter_map(|name| name.strip_prefix("view "));
    Some(LayOut {
        migrate: new_intent || changed.iter().any(|name| !is_privilege(name)),
        stale_views: stale_views.map(str::to_owned).collect(),
        changed: summary(changed, inside),
        superuser,
    })
}

fn changed(recorded: &Fingerprints, inside: &Inside) -> Vec<String> {
    let differs = |(name, digest): &(&String, &String)| inside.objects.get(*name) != Some(*digest);
    recorded.iter().filter(differs).map(|(name, _)| name.clone()).collect()
}

fn is_privilege(name: &str) -> bool {
    name.starts_with("grants on ") || name == "default privileges" || name.starts_with("event trigger ")
}

/// What was in a schema that is gone, and what was granted on a thing that is gone, goes without saying.
fn summary(changed: Vec<String>, inside: &Inside) -> Vec<String> {
    let gone: Vec<&str> = changed
        .iter()
        .filter(|name| !inside.objects.contains_key(*name) && !is_privilege(name))
        .filter_map(|name| name.split_once(' ').map(|(_, object)| object))
        .collect();
    let implied = |name: &str| {
        gone.iter().any(|object| {
            let within = name.contains(&format!(" {object}."));
            within || (name.starts_with("grants on ") && name.ends_with(&format!(" {object}")))
        })
    };
    changed.iter().filter(|name| !implied(name)).cloned().collect()
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
            Step::AdmitOnly { database, strip, logins } => admit_only(database, strip, logins),
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

fn admit_only(database: &str, strip: &[String], logins: &[String]) -> String {
    let database = ident(database);
    let mut sql = String::new();
    for grantee in strip {
        let grantee = if grantee.is_empty() { "PUBLIC".to_owned() } else { ident(grantee) };
        sql.push_str(&format!("REVOKE ALL ON DATABASE {database} FROM {grantee};\n"));
    }
    let logins: Vec<String> = logins.iter().map(|login| ident(login)).collect();
    sql.push_str(&format!("GRANT CONNECT ON DATABASE {database} TO {};\n", logins.join(", ")));
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

/// Gives what is ours back to its owner and takes it from everybody else, so that the grants which follow are all there
/// is. What customers made in their own schemas is not touched.
const STRAIGHTEN: &str = "
DO $straighten$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, :owner)
          FROM pg_catalog.pg_namespace
         WHERE nspname = ANY (:managed || :customer) AND nspname <> 'public' AND pg_get_userbyid(nspowner) <> :owner
        UNION ALL
        SELECT format('ALTER %s %I.%I OWNER TO %I',
                      CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'S' THEN 'SEQUENCE'
                                     WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END, n.nspname, c.relname, :owner)
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = ANY (:managed) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
           AND pg_get_userbyid(c.relowner) <> :owner
           -- A sequence that belongs to a column follows its table.
           AND NOT (c.relkind = 'S' AND EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
                     WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype IN ('a', 'i')))
    LOOP
        EXECUTE statement;
    END LOOP;
    FOR statement IN
        SELECT format('GRANT ALL ON SCHEMA %I TO %I', nspname, :owner)
          FROM pg_catalog.pg_namespace WHERE nspname = ANY (:managed || :customer) AND nspname <> 'public'
        UNION ALL
        SELECT format('GRANT ALL ON TABLE %I.%I TO %I', n.nspname, c.relname, :owner)
          FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = ANY (:managed) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') AND c.relacl IS NOT NULL
        UNION ALL
        SELECT format('REVOKE ALL ON SCHEMA %I FROM %s', nspname, grantee)
          FROM (SELECT n.nspname, CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
                  FROM pg_catalog.pg_namespace n, aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) a
                 WHERE n.nspname = ANY (:managed || :customer || '{public}'::text[]) AND a.grantee <> n.nspowner) s
         GROUP BY 1
        UNION ALL
        SELECT format('REVOKE ALL ON %s %I.%I FROM %s', kind, nspname, relname, grantee)
          FROM (SELECT CASE c.relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END AS kind, n.nspname, c.relname,
                       CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(a.grantee)) END AS grantee
                  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
                       LATERAL (SELECT (x).* FROM (SELECT aclexplode(c.relacl) AS x) r
                                UNION ALL
                                SELECT (x).* FROM (SELECT aclexplode(t.attacl) AS x FROM pg_catalog.pg_attribute t
                                                    WHERE t.attrelid = c.oid AND t.attacl IS NOT NULL) r) a
                 WHERE (n.nspname = ANY (:managed) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f') AND a.grantee <> c.relowner)
                    OR (n.nspname IN ('pg_catalog', 'information_schema')
                        AND a.grantee <> 0 AND pg_get_userbyid(a.grantee) = ANY (:roles))) s
         GROUP BY 1
        UNION ALL
        SELECT format('REVOKE ALL ON %s %s FROM %I', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                      p.oid::regprocedure, pg_get_userbyid(a.grantee))
          FROM pg_catalog.pg_proc p, aclexplode(p.proacl) a
         WHERE p.pronamespace = 'pg_catalog'::regnamespace AND a.grantee <> 0 AND pg_get_userbyid(a.grantee) = ANY (:roles)
        UNION ALL
        SELECT format('REVOKE ALL ON LANGUAGE %I FROM %I', l.lanname, pg_get_userbyid(a.grantee))
          FROM pg_catalog.pg_language l, aclexplode(l.lanacl) a
         WHERE a.grantee <> 0 AND pg_get_userbyid(a.grantee) = ANY (:roles)
    LOOP
        EXECUTE statement;
    END LOOP;
END
$straighten$;
";
