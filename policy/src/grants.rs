//! The second wall: the same policy as GRANTs, and what is taken from PUBLIC in every workspace's database.
//!
//! Everything here is SQL text for the provisioner to run inside the workspace's database; all of it can run again. It must
//! not decide about statements: what only the judge can stop (settings, `ALTER ROLE CURRENT_USER`, several statements in one
//! text, …) has no place here.

pub use crate::functions::{WRITABLE_RELATIONS, revoked_functions, revoked_relations};

use crate::document::RolePolicy;
use crate::settings::quote_identifier;

/// The schema of the event triggers' functions; nobody but its owner has any right in it.
const GUARD: &str = "portcullis_guard";

/// DDL that passes the event trigger, as PostgreSQL's command tags
/// (<https://www.postgresql.org/docs/current/event-trigger-matrix.html>).
const DDL_TAGS: &[&str] = &[
    "ALTER DOMAIN",
    "ALTER INDEX",
    "ALTER MATERIALIZED VIEW",
    "ALTER SEQUENCE",
    "ALTER STATISTICS",
    "ALTER TABLE",
    "ALTER TYPE",
    "ALTER VIEW",
    "COMMENT",
    "CREATE DOMAIN",
    "CREATE INDEX",
    "CREATE MATERIALIZED VIEW",
    "CREATE SEQUENCE",
    "CREATE STATISTICS",
    "CREATE TABLE",
    "CREATE TABLE AS",
    "CREATE TYPE",
    "CREATE VIEW",
    "REFRESH MATERIALIZED VIEW",
    "SELECT INTO",
];

/// GRANTs that give `grantee` (a NOLOGIN role) what `role` may do, to be run inside the workspace's database, where the
/// policy's schemas exist. Running them again changes nothing.
///
/// What the role defines belongs to it, so schemas that it defines in get USAGE and CREATE alone. Nowhere is there a right
/// to REFERENCES or TRIGGER, nor to TRUNCATE beyond the document's.
pub fn grants(role: &RolePolicy, grantee: &str) -> Vec<String> {
    let grantee = quote_identifier(grantee);
    let mut sql = Vec::new();
    for name in &role.read {
        let schema = quote_identifier(name);
        if role.define.contains(name) {
            sql.push(format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {grantee}"));
            continue;
        }
        let mut rights = vec!["SELECT"];
        if role.write.contains(name) {
            rights.extend(["INSERT", "UPDATE", "DELETE"]);
            // Columns with a sequence behind them.
            sql.push(format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {grantee}"));
        }
        if role.truncate.contains(name) {
            rights.push("TRUNCATE");
        }
        sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {grantee}"));
        sql.push(format!("GRANT {} ON ALL TABLES IN SCHEMA {schema} TO {grantee}", rights.join(", ")));
    }
    sql
}

/// Languages whose USAGE is revoked from PUBLIC: without them there is no CREATE FUNCTION and no DO.
pub fn revoked_languages() -> &'static [&'static str] {
    &["sql", "plpgsql"]
}

/// SQL that makes event triggers which refuse, for everybody but the `exempt` roles and superusers, all DDL outside
/// `schemas`, of a kind that no policy allows, or that leaves an object to another owner. Needs a superuser.
pub fn event_trigger_sql(schemas: &[String], exempt: &[&str]) -> Vec<String> {
    let guard = quote_identifier(GUARD);
    let schemas = array(schemas.iter().map(String::as_str));
    let exempt = array(exempt.iter().copied());
    let tags = array(DDL_TAGS.iter().copied());
    let exempted = format!(
        "(current_user::text = ANY ({exempt}) OR EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper))"
    );
    let made = format!(
        "CREATE OR REPLACE FUNCTION {guard}.ddl_command_end() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $guard$
DECLARE
    command record;
BEGIN
    IF {exempted} THEN RETURN; END IF;
    FOR command IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        IF command.command_tag <> ALL ({tags})
           OR command.schema_name IS NULL OR command.schema_name <> ALL ({schemas}) THEN
            RAISE insufficient_privilege USING
                MESSAGE = 'permission denied: ' || concat_ws(' of ', command.command_tag, command.object_identity),
                HINT = 'Define objects in your own schema.';
        END IF;
        IF command.classid = 'pg_class'::regclass AND EXISTS (
            SELECT FROM pg_class WHERE oid = command.objid AND pg_get_userbyid(relowner) <> current_user) THEN
            RAISE insufficient_privilege USING
                MESSAGE = format('permission denied: the owner of %s must stay the same', command.object_identity);
        END IF;
    END LOOP;
END
$guard$"
    );
    let dropped = format!(
        "CREATE OR REPLACE FUNCTION {guard}.sql_drop() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog AS $guard$
DECLARE
    object record;
BEGIN
    IF {exempted} THEN RETURN; END IF;
    FOR object IN SELECT * FROM pg_event_trigger_dropped_objects() LOOP
        -- What lives in no schema belongs to something that does, or to others, who alone can drop it.
        IF object.schema_name <> ALL ({schemas}) AND object.schema_name <> 'pg_toast' THEN
            RAISE insufficient_privilege USING
                MESSAGE = 'permission denied: ' || concat_ws(' ', 'DROP of', object.object_type, object.object_identity);
        END IF;
    END LOOP;
END
$guard$"
    );
    let mut sql = vec![
        format!("CREATE SCHEMA IF NOT EXISTS {guard}"),
        format!("REVOKE ALL ON SCHEMA {guard} FROM PUBLIC"),
        made,
        dropped,
    ];
    for event in ["ddl_command_end", "sql_drop"] {
        sql.push(format!(
            "DO $guard$ BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_event_trigger WHERE evtname = 'portcullis_{event}') THEN
        CREATE EVENT TRIGGER portcullis_{event} ON {event} EXECUTE FUNCTION {guard}.{event}();
    END IF;
    ALTER EVENT TRIGGER portcullis_{event} ENABLE ALWAYS;
END $guard$"
        ));
    }
    sql
}

fn array<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(|name| format!("'{}'", name.replace('\'', "''"))).collect();
    format!("ARRAY[{}]::text[]", quoted.join(", "))
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
