//! What a server holds for one workspace, read from PostgreSQL's own catalogs. Reads only; decides nothing.
//!
//! Roles, memberships and the database are compared fact by fact. What is inside the database (definitions, owners and
//! ACLs) is reduced to one fingerprint per object, because PostgreSQL prints a definition in its own words: what was
//! fingerprinted when it was laid out is what must be seen again.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::intent::Intent;
use crate::server::{ServerError, Session};

/// One digest per object or ACL, by a name that a person understands (`view dl_resolved.people`).
pub type Fingerprints = BTreeMap<String, String>;

/// What was laid out last, as the catalog remembers it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Record {
    /// The intent's digest at that time.
    pub intent: String,
    /// The server's major version at that time: another one prints definitions differently.
    pub major: i32,
    /// What the objects looked like.
    pub objects: Fingerprints,
    /// What some of them should have looked like: they were altered by hand in a way that laying out does not undo, such
    /// as a column too many, since undoing it would take data away.
    #[serde(default)]
    pub unrepaired: Fingerprints,
}

impl Record {
    /// What to remember after `objects` were laid out for this intent on this major version, `before` being what was
    /// remembered until then.
    #[must_use]
    pub fn laid_out(intent: String, major: i32, objects: Fingerprints, before: Option<&Record>) -> Record {
        let mut unrepaired = Fingerprints::new();
        if let Some(before) = before.filter(|before| before.intent == intent && before.major == major) {
            let expected = before.objects.iter().filter(|(name, _)| !before.unrepaired.contains_key(*name));
            let expected = expected.chain(&before.unrepaired).map(|(name, digest)| (name.clone(), digest.clone()));
            unrepaired = expected.filter(|(name, digest)| objects.get(name) != Some(digest)).collect();
        }
        Record { intent, major, objects, unrepaired }
    }

    /// Which of the unrepaired objects still are not as they should be.
    #[must_use]
    pub fn still_unrepaired(&self, inside: &Inside) -> Vec<String> {
        let differs = |(name, digest): &(&String, &String)| inside.objects.get(*name) != Some(*digest);
        self.unrepaired.iter().filter(differs).map(|(name, _)| name.clone()).collect()
    }
}

/// Everything that the plan needs to know.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// The server as a whole.
    pub cluster: Cluster,
    /// The inside of the database; `None` while there is none.
    pub inside: Option<Inside>,
    /// What was laid out last; `None` the first time, or when it never came to an end.
    pub record: Option<Record>,
}

/// What is shared by all databases of the server.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Cluster {
    /// Major version: 14 to 18.
    pub major: i32,
    /// Whether we are a superuser there: without it one wall stands only in part.
    pub superuser: bool,
    /// The role that we are logged in as.
    pub me: String,
    /// Which of `postgres` and `template1` PUBLIC can do anything in.
    pub open_databases: Vec<String>,
    /// The workspace's database.
    pub database: Option<DatabaseFact>,
    /// Those of our roles that exist.
    pub roles: BTreeMap<String, RoleFact>,
    /// Memberships in which one of our roles is the member.
    pub memberships: BTreeSet<Membership>,
}

/// The row of `pg_database`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseFact {
    /// Owner's name.
    pub owner: String,
    /// `role=PRIVILEGE`, PUBLIC as the empty role; the owner's own left out.
    pub privileges: BTreeSet<String>,
}

/// The row of `pg_authid`.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct RoleFact {
    /// LOGIN.
    pub login: bool,
    /// INHERIT.
    pub inherit: bool,
    /// Any of SUPERUSER, CREATEROLE, CREATEDB, REPLICATION, BYPASSRLS.
    pub elevated: bool,
    /// CONNECTION LIMIT.
    pub connections_max: i32,
    /// The password as stored; `None` when there is none.
    pub password: Option<String>,
    /// Whether `password` could be read at all (superusers only).
    pub password_known: bool,
    /// VALID UNTIL is set.
    pub expires: bool,
    /// Settings attached to the role, `database:setting`, the database empty where they hold for all.
    pub settings: BTreeSet<String>,
}

impl std::fmt::Debug for RoleFact {
    /// Without the password, which is a verifier or, set by hand, anything.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RoleFact").field("login", &self.login).field("elevated", &self.elevated).finish_non_exhaustive()
    }
}

/// A row of `pg_auth_members`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Membership {
    /// The role that is granted.
    pub role: String,
    /// The role that it is granted to.
    pub member: String,
    /// WITH ADMIN, WITH INHERIT (PostgreSQL 16 and newer), or without SET: not what we grant.
    pub unusual: bool,
}

/// What is in the database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Inside {
    /// Managed objects and every ACL that matters.
    pub objects: Fingerprints,
    /// How many of the functions to close PUBLIC may still execute.
    pub functions_open: i64,
}

impl Inside {
    /// Whether the second wall stands: a REVOKE by somebody who is no superuser succeeds with a mere warning.
    #[must_use]
    pub fn walls(&self) -> &'static str {
        if self.functions_open == 0 { "full" } else { "partial" }
    }
}

/// Reads the shared catalogs, from any database of the server.
///
/// # Errors
/// When the server goes away or refuses.
pub async fn cluster(session: &Session, intent: &Intent) -> Result<Cluster, ServerError> {
    let doing = "reading the server's roles and databases";
    let roles = intent.roles();
    let server = session.rows(doing, SERVER, &[]).await?;
    let mut cluster = Cluster::default();
    for row in &server {
        cluster.major = session.value::<i32>(row, 0)? / 10_000;
        cluster.superuser = session.value(row, 1)?;
        cluster.me = session.value(row, 2)?;
        cluster.open_databases = session.value(row, 3)?;
    }
    let role_sql = format!("{ROLES_HEAD}{}", if cluster.superuser { ROLES_AUTHID } else { ROLES_VIEW });
    let mut members = roles.clone();
    members.push(cluster.me.clone());
    let memberships = session.rows(doing, MEMBERSHIPS, &[&members]).await?;
    let databases = session.rows(doing, DATABASE, &[&intent.database]).await?;
    let role_rows = session.rows(doing, &role_sql, &[&roles]).await?;
    for row in &databases {
        let privileges: Vec<String> = session.value(row, 1)?;
        let fact = DatabaseFact { owner: session.value(row, 0)?, privileges: privileges.into_iter().collect() };
        cluster.database = Some(fact);
    }
    for row in &memberships {
        let (role, member, unusual) = (session.value(row, 0)?, session.value(row, 1)?, session.value(row, 2)?);
        cluster.memberships.insert(Membership { role, member, unusual });
    }
    for row in &role_rows {
        let settings: Vec<String> = session.value(row, 7)?;
        let fact = RoleFact {
            login: session.value(row, 1)?,
            inherit: session.value(row, 2)?,
            elevated: session.value(row, 3)?,
            connections_max: session.value(row, 4)?,
            password: session.value(row, 5)?,
            password_known: cluster.superuser,
            expires: session.value(row, 6)?,
            settings: settings.into_iter().collect(),
        };
        cluster.roles.insert(session.value(row, 0)?, fact);
    }
    Ok(cluster)
}

/// Reads the inside of the workspace's database, from a session in it (also within a transaction that just changed it).
///
/// # Errors
/// When the server goes away or refuses.
pub async fn inside(session: &Session, intent: &Intent) -> Result<Inside, ServerError> {
    let doing = "reading the database's objects and privileges";
    let roles = intent.roles();
    let objects = session.rows(doing, OBJECTS, &[&intent.managed_schemas, &intent.customer_schemas, &roles]).await?;
    let open = session.rows(doing, FUNCTIONS_OPEN, &[&intent.closed_functions]).await?;
    let mut inside = Inside::default();
    for row in &objects {
        inside.objects.insert(session.value(row, 0)?, session.value(row, 1)?);
    }
    for row in &open {
        inside.functions_open = session.value(row, 0)?;
    }
    Ok(inside)
}

const SERVER: &str = "
SELECT current_setting('server_version_num')::int,
       (SELECT rolsuper FROM pg_catalog.pg_roles WHERE rolname = current_user),
       current_user::text,
       ARRAY(SELECT datname::text FROM pg_catalog.pg_database d
              WHERE datname IN ('postgres', 'template1')
                AND EXISTS (SELECT 1 FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) a WHERE a.grantee = 0)
              ORDER BY 1)";

const DATABASE: &str = "
SELECT pg_get_userbyid(datdba)::text,
       ARRAY(SELECT coalesce(r.rolname, '') || '=' || a.privilege_type
               FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) a
               LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
              WHERE a.grantee <> datdba)
  FROM pg_catalog.pg_database WHERE datname = $1";

// inherit_option and set_option are new in PostgreSQL 16; asking the row as JSON reads the same query on every version.
const MEMBERSHIPS: &str = "
SELECT pg_get_userbyid(m.roleid)::text, pg_get_userbyid(m.member)::text,
       bool_or(m.admin_option OR coalesce((to_jsonb(m) ->> 'inherit_option')::bool, false)
                              OR NOT coalesce((to_jsonb(m) ->> 'set_option')::bool, true))
  FROM pg_catalog.pg_auth_members m
 WHERE pg_get_userbyid(m.member) = ANY ($1)
 GROUP BY 1, 2";

const ROLES_HEAD: &str = "
SELECT rolname::text, rolcanlogin, rolinherit,
       rolsuper OR rolcreaterole OR rolcreatedb OR rolreplication OR rolbypassrls,
       rolconnlimit, rolpassword, rolvaliduntil IS NOT NULL AND rolvaliduntil <> 'infinity',
       ARRAY(SELECT coalesce(d.datname, '') || ':' || s.setting
               FROM pg_catalog.pg_db_role_setting c
               LEFT JOIN pg_catalog.pg_database d ON d.oid = c.setdatabase
              CROSS JOIN unnest(c.setconfig) AS s(setting)
              WHERE c.setrole = r.oid) ";

const ROLES_AUTHID: &str = "FROM pg_catalog.pg_authid r WHERE rolname = ANY ($1)";

const ROLES_VIEW: &str = "
  FROM (SELECT oid, rolname, rolcanlogin, rolinherit, rolsuper, rolcreaterole, rolcreatedb, rolreplication, rolbypassrls,
               rolconnlimit, NULL::text AS rolpassword, rolvaliduntil FROM pg_catalog.pg_roles) r
 WHERE rolname = ANY ($1)";

// A name stands for all its overloads, an entry with parentheses for one.
const FUNCTIONS_OPEN: &str = "
SELECT count(*) FROM pg_catalog.pg_proc p
 WHERE p.pronamespace = 'pg_catalog'::regnamespace AND (p.proname = ANY ($1) OR p.oid::regprocedure::text = ANY ($1))
   AND EXISTS (SELECT 1 FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
                WHERE a.grantee = 0 AND a.privilege_type = 'EXECUTE')";

const OBJECTS: &str = include_str!("objects.sql");
