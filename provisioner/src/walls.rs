//! The part of the second wall that is the same in every workspace's database: what PUBLIC loses.
//!
//! The lists are the policy's; here they become a few statements. One block takes everything away at once, since hundreds
//! of single REVOKEs would be as many round trips.

use portcullis_policy::{Policy, grants};

use crate::names::literal;

/// SQL that closes languages, functions and relations to PUBLIC. Names that a server's version does not have are passed over.
#[must_use]
pub fn walls() -> Vec<String> {
    let languages = array(grants::revoked_languages());
    let functions = array(grants::revoked_functions());
    let relations = array(grants::revoked_relations());
    let writable = array(grants::WRITABLE_RELATIONS);
    vec![format!(
        "DO $walls$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('REVOKE ALL ON LANGUAGE %I FROM PUBLIC', lanname)
          FROM pg_catalog.pg_language WHERE lanname = ANY ({languages})
        UNION ALL
        SELECT format('REVOKE ALL ON %s %s FROM PUBLIC', CASE p.prokind WHEN 'p' THEN 'PROCEDURE' ELSE 'FUNCTION' END,
                      p.oid::regprocedure)
          FROM pg_catalog.pg_proc p
         WHERE p.pronamespace = 'pg_catalog'::regnamespace
           AND (p.proname = ANY ({functions}) OR p.oid::regprocedure::text = ANY ({functions}))
           AND EXISTS (SELECT 1 FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a WHERE a.grantee = 0)
        UNION ALL
        SELECT format('REVOKE ALL ON TABLE %s FROM PUBLIC', c.oid::regclass)
          FROM pg_catalog.pg_class c
         WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY ({relations})
           AND (EXISTS (SELECT 1 FROM aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a WHERE a.grantee = 0)
                OR EXISTS (SELECT 1 FROM pg_catalog.pg_attribute t, aclexplode(t.attacl) a
                            WHERE t.attrelid = c.oid AND a.grantee = 0))
        UNION ALL
        SELECT format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON TABLE %s FROM PUBLIC', c.oid::regclass)
          FROM pg_catalog.pg_class c
         WHERE c.relnamespace = 'pg_catalog'::regnamespace AND c.relname = ANY ({writable})
    LOOP
        EXECUTE statement;
    END LOOP;
END
$walls$"
    )]
}

/// Functions of `pg_catalog` that PUBLIC may not execute once the walls stand: names, and signatures of single overloads.
#[must_use]
pub fn closed_functions() -> Vec<String> {
    grants::revoked_functions().iter().map(|name| (*name).to_owned()).collect()
}

/// SQL that makes the event triggers.
#[must_use]
pub fn event_triggers(policy: &Policy, owner: &str) -> Vec<String> {
    let mut schemas = policy.customer_schemas().to_vec();
    if policy.kinds().iter().any(|kind| kind.temporary_tables()) {
        // What event triggers call every session's own schema for temporary objects.
        schemas.push("pg_temp".to_owned());
    }
    grants::event_trigger_sql(&schemas, policy.kinds(), &[owner])
}

fn array(names: &[&str]) -> String {
    let names: Vec<String> = names.iter().map(|name| literal(name)).collect();
    format!("ARRAY[{}]::text[]", names.join(", "))
}
