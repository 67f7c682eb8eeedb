//! The second wall: the same policy as GRANTs, and what is taken from PUBLIC in every workspace's database.
//!
//! Everything here is SQL text for the provisioner to run inside the workspace's database; all of it can run again. It must
//! not decide about statements: what only the judge can stop (settings, `ALTER ROLE CURRENT_USER`, several statements in one
//! text, …) has no place here.

pub use crate::functions::{WRITABLE_RELATIONS, revoked_functions, revoked_relations};

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::document::{DefineObject, RolePolicy, Selection, TableRule};
use crate::functions::{self, Special};
use crate::settings::quote_identifier;
use crate::verdict::Kind;

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
/// policy's schemas exist, by somebody who first took everything away. Running them again changes nothing.
///
/// What the role defines belongs to it, so schemas that it defines in get USAGE and CREATE alone. Nowhere is there a right
/// to REFERENCES or TRIGGER, nor to TRUNCATE beyond the document's. A table or function that the document names and the
/// database does not have is passed over. [`shared_grants`] has what other kinds define, [`RolePolicy::temporary_tables`]
/// is a right on the database.
pub fn grants(role: &RolePolicy, grantee: &str) -> Vec<String> {
    let grantee = quote_identifier(grantee);
    let mut sql = Vec::new();
    for name in &role.read {
        let schema = quote_identifier(name);
        if role.define.contains(name) {
            sql.push(format!("GRANT USAGE, CREATE ON SCHEMA {schema} TO {grantee}"));
            continue;
        }
        if role.write.contains(name) {
            // Columns with a sequence behind them.
            sql.push(format!("GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {grantee}"));
        }
        sql.push(format!("GRANT USAGE ON SCHEMA {schema} TO {grantee}"));
        sql.push(format!(
            "GRANT {} ON ALL TABLES IN SCHEMA {schema} TO {grantee}",
            schema_rights(role, name).join(", ")
        ));
    }
    let ruled: BTreeSet<&str> = role.tables.iter().map(|rule| rule.schema.as_str()).collect();
    for schema in ruled.into_iter().filter(|schema| !role.read.contains(*schema)) {
        sql.push(format!("GRANT USAGE ON SCHEMA {} TO {grantee}", quote_identifier(schema)));
    }
    sql.extend(role.tables.iter().map(|rule| table_grants(role, rule, &grantee)));
    sql.extend(function_grants(role, &grantee));
    sql
}

/// GRANTs on what `owner`, the NOLOGIN role of the kind `other`, defines in schemas that `role` reads or writes too, now and
/// later. Does nothing where whoever runs it is neither `owner`'s member nor a superuser.
pub fn shared_grants(role: &RolePolicy, grantee: &str, other: &RolePolicy, owner: &str) -> Vec<String> {
    let (grantee, owner_name) = (quote_identifier(grantee), quote_identifier(owner));
    let owner = literal(owner);
    let shared = role.read.intersection(&other.define);
    shared
        .map(|schema| {
            let rights = schema_rights(role, schema).join(", ");
            let (schema, named) = (quote_identifier(schema), literal(schema));
            format!(
                "DO $portcullis_shared$
DECLARE
    relation regclass;
BEGIN
    IF NOT pg_has_role({owner}, 'MEMBER') THEN RETURN; END IF;
    FOR relation IN
        SELECT c.oid FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE n.nspname = {named} AND c.relkind IN ('r', 'p', 'v', 'm') AND pg_get_userbyid(c.relowner) = {owner}
    LOOP
        EXECUTE format('GRANT {rights} ON TABLE %s TO %s', relation, {grantee});
    END LOOP;
    ALTER DEFAULT PRIVILEGES FOR ROLE {owner_name} IN SCHEMA {schema} GRANT {rights} ON TABLES TO {grantee_name};
END
$portcullis_shared$",
                grantee = literal(&grantee),
                grantee_name = grantee,
            )
        })
        .collect()
}

/// What the role may do with every table of a schema. A kind of statement that the role does not use needs no right.
fn schema_rights(role: &RolePolicy, schema: &str) -> Vec<&'static str> {
    let mut rights = vec!["SELECT"];
    if role.write.contains(schema) {
        rights.extend(write_rights(role, true));
    }
    if role.truncate.contains(schema) && role.statements.has(&Kind::Truncate) {
        rights.push("TRUNCATE");
    }
    rights
}

fn write_rights(role: &RolePolicy, whole_rows: bool) -> impl Iterator<Item = &'static str> {
    let may = |kind| role.statements.has(&kind);
    let rights = [
        (may(Kind::Insert) || may(Kind::CopyIn), "INSERT"),
        (may(Kind::Update), "UPDATE"),
        (whole_rows && may(Kind::Delete), "DELETE"),
    ];
    rights.into_iter().filter_map(|(may, right)| may.then_some(right))
}

/// What one table gives, instead of what its schema gives. Of an `except` that names a column which is not there, nothing
/// can be opened: it may have been misspelt.
fn table_grants(role: &RolePolicy, rule: &TableRule, grantee: &str) -> String {
    let table = format!("{}.{}", quote_identifier(&rule.schema), quote_identifier(&rule.table));
    let named = literal(&table);
    let mut body = String::new();
    let mut give = |right: &str, columns: &Selection<String>| match columns {
        Selection::All => body.push_str(&format!("    GRANT {right} ON TABLE {table} TO {grantee};\n")),
        Selection::Only(names) if names.is_empty() => {}
        Selection::Only(names) => body.push_str(&columns_granted(right, names, "=", "ANY", &named, &table, grantee)),
        Selection::Except(names) => body.push_str(&columns_granted(right, names, "<>", "ALL", &named, &table, grantee)),
    };
    give("SELECT", &rule.read);
    for right in write_rights(role, rule.write.is_all()) {
        give(right, &rule.write);
    }
    if role.truncate.contains(&rule.schema) && role.statements.has(&Kind::Truncate) && rule.write.is_all() {
        give("TRUNCATE", &rule.write);
    }
    if !rule.write.is_none() {
        body.push_str(&format!(
            "    FOR columns IN
        SELECT s.oid::regclass::text FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_class s ON s.oid = d.objid
         WHERE d.classid = 'pg_class'::regclass AND d.refobjid = {named}::regclass AND d.deptype IN ('a', 'i')
           AND s.relkind = 'S'
    LOOP
        EXECUTE format('GRANT USAGE ON SEQUENCE %s TO %s', columns, {grantee});
    END LOOP;\n",
            grantee = literal(grantee),
        ));
    }
    format!(
        "DO $portcullis_rule$
DECLARE
    columns text;
BEGIN
    IF to_regclass({named}) IS NULL THEN RETURN; END IF;
    REVOKE ALL ON TABLE {table} FROM {grantee};
{body}END
$portcullis_rule$"
    )
}

fn columns_granted(
    right: &str,
    names: &BTreeSet<String>,
    operator: &str,
    quantifier: &str,
    named: &str,
    table: &str,
    grantee: &str,
) -> String {
    let array = array(names.iter().map(String::as_str));
    let granted = literal(&format!("GRANT {right} (%s) ON TABLE {} TO {}", percent(table), percent(grantee)));
    let of_table = format!("attrelid = {named}::regclass AND attnum > 0 AND NOT attisdropped");
    let known = format!("(SELECT count(*) FROM pg_catalog.pg_attribute WHERE {of_table} AND attname = ANY ({array}))");
    let sure = if operator == "=" { String::new() } else { format!(" AND {known} = {}", names.len()) };
    format!(
        "    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) INTO columns
      FROM pg_catalog.pg_attribute WHERE {of_table} AND attname {operator} {quantifier} ({array}){sure};
    IF columns IS NOT NULL THEN EXECUTE format({granted}, columns); END IF;\n"
    )
}

/// EXECUTE of what is closed to PUBLIC and the document opens, and of extensions' functions with their schemas.
fn function_grants(role: &RolePolicy, grantee: &str) -> Vec<String> {
    let in_catalog = |name: &'static str| ("pg_catalog", name);
    let mut names: Vec<(&str, &str)> = Vec::new();
    if role.advisory_locks {
        let locks = functions::special_names(&[Special::SessionLock, Special::TransactionLock]);
        names.extend(locks.into_iter().map(in_catalog));
    }
    if role.listen {
        names.extend(functions::special_names(&[Special::Notify]).into_iter().map(in_catalog));
    }
    names.extend(role.functions.iter().filter_map(|name| name.split_once('.')));
    if names.is_empty() {
        return Vec::new();
    }
    let schemas = array(names.iter().map(|(schema, _)| *schema).filter(|schema| *schema != "pg_catalog"));
    let pairs: Vec<String> =
        names.iter().map(|(schema, name)| format!("({}, {})", literal(schema), literal(name))).collect();
    vec![format!(
        "DO $portcullis_functions$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('GRANT USAGE ON SCHEMA %I TO %s', nspname, {to}) FROM pg_catalog.pg_namespace
         WHERE nspname = ANY ({schemas})
        UNION ALL
        SELECT format('GRANT EXECUTE ON FUNCTION %s TO %s', p.oid::regprocedure, {to})
          FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
         WHERE p.prokind <> 'p' AND (n.nspname::text, p.proname::text) IN ({pairs})
    LOOP
        EXECUTE statement;
    END LOOP;
END
$portcullis_functions$",
        to = literal(grantee),
        pairs = pairs.join(", "),
    )]
}

/// Languages whose USAGE is revoked from PUBLIC: without them there is no CREATE FUNCTION and no DO.
pub fn revoked_languages() -> &'static [&'static str] {
    &["sql", "plpgsql"]
}

/// Whether DDL of this tag may be of use to a role that defines these objects. A table brings indexes and sequences.
fn serves(tag: &str, defined: &BTreeSet<DefineObject>) -> bool {
    let object = match tag.split_once(' ') {
        Some(("CREATE" | "ALTER" | "REFRESH", "TABLE" | "TABLE AS" | "INDEX" | "SEQUENCE")) | Some(("SELECT", _)) => {
            return !defined.is_empty();
        }
        Some(("CREATE" | "ALTER" | "REFRESH", object)) => object,
        _ => return true,
    };
    match object {
        "VIEW" => defined.contains(&DefineObject::View),
        "MATERIALIZED VIEW" => defined.contains(&DefineObject::MaterializedView),
        "TYPE" => defined.contains(&DefineObject::Type),
        "DOMAIN" => defined.contains(&DefineObject::Domain),
        "STATISTICS" => defined.contains(&DefineObject::Statistics),
        _ => false,
    }
}

/// SQL that makes event triggers which refuse, for everybody but the `exempt` roles and superusers, all DDL outside
/// `schemas`, of a kind that none of the policy's `kinds` may define, that sets an option by which a table burdens the
/// server, or that leaves an object to another owner. Needs a superuser.
///
/// Their path names `pg_temp` last: unnamed it would come first, and a temporary table called `pg_roles` could exempt its maker.
pub fn event_trigger_sql(schemas: &[String], kinds: &[Arc<RolePolicy>], exempt: &[&str]) -> Vec<String> {
    let guard = quote_identifier(GUARD);
    let schemas = array(schemas.iter().map(String::as_str));
    let exempt = array(exempt.iter().copied());
    let defined = kinds.iter().flat_map(|kind| &kind.define_objects).copied().collect();
    let tags = array(DDL_TAGS.iter().copied().filter(|tag| serves(tag, &defined)));
    let exempted = format!(
        "(current_user::text = ANY ({exempt}) OR EXISTS (SELECT FROM pg_roles WHERE rolname = current_user AND rolsuper))"
    );
    let made = format!(
        "CREATE OR REPLACE FUNCTION {guard}.ddl_command_end() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $guard$
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
        IF command.classid = 'pg_class'::regclass AND EXISTS (
            SELECT FROM pg_class
             WHERE oid = command.objid AND reloptions::text ~ '(user_catalog_table|autovacuum_enabled)=') THEN
            RAISE insufficient_privilege USING
                MESSAGE = format('permission denied: an option of %s is the platform''s', command.object_identity);
        END IF;
    END LOOP;
END
$guard$"
    );
    let dropped = format!(
        "CREATE OR REPLACE FUNCTION {guard}.sql_drop() RETURNS event_trigger LANGUAGE plpgsql
SET search_path = pg_catalog, pg_temp AS $guard$
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

fn literal(text: &str) -> String {
    // A backslash cannot end the string early: standard_conforming_strings is on, here and in every supported version.
    format!("'{}'", text.replace('\'', "''"))
}

/// A text inside a pattern of `format`.
fn percent(text: &str) -> String {
    text.replace('%', "%%")
}

fn array<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let quoted: Vec<String> = names.map(literal).collect();
    format!("ARRAY[{}]::text[]", quoted.join(", "))
}

#[cfg(test)]
#[path = "grants_tests.rs"]
mod tests;
