//! Verdicts as tables: a role, a text, and what is expected.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;

use super::*;
use crate::verdict::{Effect, Kind, PinReason, TaintReason};
use crate::{Policy, Surface};

const STORAGE: &str = include_str!("../../../provisioner/profiles/storage/policy.toml");
const OVERRIDE: &str = include_str!("../../../provisioner/profiles/override/policy.toml");
const DESIGN: &str = include_str!("../../../provisioner/profiles/design/policy.toml");

const D33: &str = "Only read statements or schema-qualified storage tables are supported.";
const D34: &str = "Customer DB writes are only allowed for schema-qualified storage tables.";

fn role(kind: &str) -> Arc<RolePolicy> {
    let document = match kind {
        "customer_db" => STORAGE,
        "developer" => DESIGN,
        _ => OVERRIDE,
    };
    let policy = Policy::parse(document).unwrap_or_else(|errors| panic!("{errors}"));
    Arc::clone(policy.kind(kind).unwrap())
}

const TARGET: Target<'static> = Target { database_names: &["ws_1", "acme_workspace"] };

/// "ok", or the rule that refused.
fn rule_of(kind: &str, sql: &str) -> &'static str {
    match judge(&role(kind), Surface::SimpleQuery, sql.as_bytes(), &TARGET) {
        Verdict::Allow(_) => "ok",
        Verdict::Deny(denial) => denial.rule.id(),
    }
}

fn refused(kind: &str, sql: &str) -> Denial {
    match judge(&role(kind), Surface::SimpleQuery, sql.as_bytes(), &TARGET) {
        Verdict::Allow(_) => panic!("passed: {sql}"),
        Verdict::Deny(denial) => (*denial).clone(),
    }
}

fn permit(kind: &str, sql: &str) -> Permit {
    match judge(&role(kind), Surface::SimpleQuery, sql.as_bytes(), &TARGET) {
        Verdict::Allow(permit) => permit,
        Verdict::Deny(denial) => panic!("{sql}: {denial:?}"),
    }
}

/// Each line: the expected rule, and the statement.
fn table(kind: &str, rows: &str) {
    let mut wrong = Vec::new();
    for line in rows.lines().map(str::trim).filter(|line| !line.is_empty()) {
        let (expect, sql) = line.split_once(' ').unwrap();
        let sql = sql.trim();
        let found = rule_of(kind, sql);
        if found != expect {
            wrong.push(format!("expected {expect}, found {found}: {sql}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn d29_d30_d39_reads() {
    table(
        "customer_db",
        r#"
        ok SELECT 1
        ok SELECT count(*) FROM dl_resolved.people
        ok SELECT * FROM dl_override.person_overrides o JOIN dl_cache.person_enrichments c USING (person_id)
        ok SELECT * FROM ws_1.dl_resolved.people
        ok SELECT * FROM acme_workspace.storage.notes
        name.database SELECT * FROM postgres.dl_resolved.people
        relation.not_readable SELECT * FROM dl_meta.tenant_settings
        relation.not_readable SELECT 1 WHERE EXISTS (TABLE dl_meta.tenant_settings)
        relation.not_readable SELECT * FROM "DL_RESOLVED".people
        ok SELECT * FROM people
        ok EXPLAIN ANALYZE SELECT * FROM dl_resolved.people
        ok WITH p AS (SELECT * FROM dl_resolved.people) SELECT * FROM p
        ok VALUES (1, 2), (3, 4)
        ok TABLE dl_resolved.people
        ok SELECT relname FROM pg_class
        ok SELECT * FROM information_schema.tables
        catalog.not_readable SELECT * FROM pg_authid
        catalog.not_readable SELECT * FROM pg_catalog.pg_shadow
        catalog.not_readable SELECT 1 FROM dl_resolved.people LEFT JOIN LATERAL (SELECT * FROM pg_stat_activity) a ON true
        relation.not_readable SELECT * FROM pg_temp.x
        relation.not_readable SELECT * FROM pg_toast.pg_toast_1
        "#,
    );
}

#[test]
fn d31_d38_writes() {
    table(
        "customer_db",
        r#"
        ok INSERT INTO storage.notes VALUES (1) RETURNING *
        ok INSERT INTO storage.notes SELECT * FROM dl_resolved.people ON CONFLICT (id) DO UPDATE SET a = excluded.a
        ok UPDATE storage.notes SET a = 1 FROM dl_resolved.people p WHERE p.id = notes.id
        ok DELETE FROM storage.notes USING dl_cache.person_enrichments
        ok MERGE INTO storage.notes n USING dl_resolved.people p ON p.id = n.id WHEN MATCHED THEN DELETE
        ok TRUNCATE storage.a, storage.b RESTART IDENTITY CASCADE
        ok COPY storage.notes FROM STDIN
        ok COPY storage.notes (a, b) TO STDOUT WITH CSV HEADER
        ok COPY dl_resolved.people TO STDOUT
        ok COPY (SELECT * FROM dl_resolved.people) TO STDOUT
        target.unqualified INSERT INTO notes VALUES (1)
        target.schema INSERT INTO public.notes VALUES (1)
        target.schema DELETE FROM dl_cache.person_enrichments
        target.schema UPDATE "Storage".notes SET a = 1
        target.unqualified WITH notes AS (SELECT 1) INSERT INTO notes VALUES (1)
        target.schema WITH d AS (DELETE FROM dl_cache.person_enrichments RETURNING *) SELECT * FROM d
        target.schema WITH a AS (WITH b AS (UPDATE dl_override.person_overrides SET note = '' RETURNING 1) SELECT 1) SELECT 1
        target.schema SELECT * FROM dl_resolved.people FOR UPDATE
        target.unqualified SELECT * FROM notes FOR SHARE
        ok SELECT * FROM storage.notes FOR UPDATE
        ok SELECT * FROM storage.notes n, dl_resolved.people p FOR UPDATE OF n
        target.schema SELECT * FROM storage.notes n, dl_resolved.people p FOR UPDATE OF p
        target.schema SELECT * FROM (SELECT * FROM dl_cache.person_enrichments) s FOR UPDATE
        target.schema TRUNCATE storage.a, dl_cache.person_enrichments
        target.schema COPY dl_override.person_overrides FROM STDIN
        clause.not_allowed COPY storage.notes FROM '/etc/passwd'
        clause.not_allowed COPY storage.notes TO PROGRAM 'sh'
        target.schema COPY (DELETE FROM dl_cache.person_enrichments RETURNING *) TO STDOUT
        target.schema EXPLAIN ANALYZE DELETE FROM dl_cache.person_enrichments
        ok EXPLAIN DELETE FROM storage.notes
        target.schema MERGE INTO dl_cache.person_enrichments USING storage.n ON true WHEN MATCHED THEN DELETE
        target.schema PREPARE p AS DELETE FROM dl_cache.person_enrichments
        target.schema UPDATE pg_catalog.pg_settings SET setting = 'x'
        target.unqualified UPDATE pg_settings SET setting = 'x'
        "#,
    );
}

#[test]
fn cte_scopes_are_postgresqls() {
    table(
        "customer_db",
        r#"
        ok WITH pg_authid AS (SELECT 1) SELECT * FROM pg_authid
        catalog.not_readable WITH pg_authid AS (SELECT * FROM pg_authid) SELECT * FROM pg_authid
        ok WITH RECURSIVE pg_authid AS (SELECT 1 UNION ALL SELECT * FROM pg_authid) SELECT * FROM pg_authid
        catalog.not_readable WITH pg_authid AS (SELECT 1) SELECT * FROM pg_catalog.pg_authid
        catalog.not_readable SELECT (WITH pg_authid AS (SELECT 1) SELECT 1 FROM pg_authid), (SELECT 1 FROM pg_authid)
        catalog.not_readable WITH a AS (SELECT * FROM pg_authid), pg_authid AS (SELECT 1) SELECT 1
        ok WITH RECURSIVE a AS (SELECT * FROM pg_authid), pg_authid AS (SELECT 1) SELECT 1
        ok WITH pg_authid AS (SELECT 1) SELECT 1 UNION SELECT * FROM pg_authid
        catalog.not_readable (WITH pg_authid AS (SELECT 1) SELECT 1) UNION SELECT 1 FROM pg_authid
        ok WITH pg_shadow AS (SELECT 1) INSERT INTO storage.t SELECT * FROM pg_shadow
        "#,
    );
}

#[test]
fn d31_definitions() {
    table(
        "customer_db",
        r#"
        ok CREATE TABLE storage.notes (id bigserial PRIMARY KEY, body text NOT NULL DEFAULT 'x', at timestamptz DEFAULT now())
        ok CREATE UNLOGGED TABLE IF NOT EXISTS storage.t (a int GENERATED ALWAYS AS IDENTITY, b int CHECK (b > 0) REFERENCES storage.notes)
        ok CREATE TABLE storage.p (a int, b date) PARTITION BY RANGE (b)
        ok CREATE TABLE storage.p1 PARTITION OF storage.p FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') WITH (fillfactor = 70)
        ok CREATE TABLE storage.c AS SELECT * FROM dl_resolved.people
        ok SELECT * INTO storage.c FROM dl_resolved.people
        ok CREATE TABLE storage.l (LIKE dl_resolved.people)
        ok CREATE TABLE storage.l (LIKE storage.notes INCLUDING ALL)
        target.schema CREATE TABLE storage.l (LIKE dl_cache.person_enrichments INCLUDING ALL)
        relation.not_readable CREATE TABLE storage.l (LIKE dl_meta.tenant_settings)
        relation.not_readable CREATE TABLE storage.l AS TABLE dl_meta.tenant_settings
        target.unqualified CREATE TABLE notes (a int)
        target.schema CREATE TABLE public.notes (a int)
        target.schema CREATE TABLE dl_resolved.x (a int)
        target.temporary CREATE TEMP TABLE notes (a int)
        target.schema CREATE TABLE storage.x (a int REFERENCES dl_cache.person_enrichments)
        target.schema CREATE TABLE storage.x () INHERITS (dl_cache.person_enrichments)
        target.schema CREATE TABLE storage.x PARTITION OF dl_cache.person_enrichments DEFAULT
        function.not_allowed CREATE TABLE storage.x (a text DEFAULT pg_read_file('/etc/passwd'))
        function.not_allowed CREATE TABLE storage.x (a int CHECK (pg_sleep(1) IS NULL))
        function.not_allowed CREATE INDEX ON storage.notes ((pg_ls_dir('.')))
        ok CREATE INDEX CONCURRENTLY IF NOT EXISTS notes_i ON storage.notes USING gin (lower(body) gin_trgm_ops) WHERE id > 1
        target.unqualified CREATE INDEX ON notes (a)
        clause.not_allowed CREATE TABLE storage.x (a int) TABLESPACE fast
        clause.not_allowed CREATE TABLE storage.x (a int) WITH (autovacuum_enabled = off)
        clause.not_allowed CREATE TABLE storage.x (a int) WITH (user_catalog_table = true)
        ok ALTER TABLE storage.notes ADD COLUMN c int, DROP COLUMN body, ALTER COLUMN c TYPE bigint USING c::bigint
        ok ALTER TABLE storage.notes RENAME TO pages
        ok ALTER TABLE storage.notes RENAME COLUMN a TO b
        ok ALTER TABLE storage.notes ADD CONSTRAINT u UNIQUE (a), VALIDATE CONSTRAINT v
        ok ALTER TABLE storage.p ATTACH PARTITION storage.p2 DEFAULT
        target.schema ALTER TABLE storage.p ATTACH PARTITION dl_cache.person_enrichments DEFAULT
        clause.not_allowed ALTER TABLE storage.notes OWNER TO postgres
        target.schema ALTER TABLE storage.notes SET SCHEMA public
        clause.not_allowed ALTER TABLE storage.notes ENABLE ALWAYS TRIGGER x
        target.schema ALTER TABLE storage.notes INHERIT dl_cache.person_enrichments
        target.schema ALTER TABLE dl_resolved.people RENAME TO x
        ok DROP TABLE IF EXISTS storage.a, storage.b CASCADE
        target.schema DROP TABLE storage.a, dl_cache.person_enrichments
        ok DROP INDEX storage.notes_i
        ok CREATE SEQUENCE storage.s OWNED BY storage.notes.id
        target.schema CREATE SEQUENCE storage.s OWNED BY dl_cache.person_enrichments.id
        ok COMMENT ON COLUMN storage.notes.body IS 'x'
        target.schema COMMENT ON TABLE dl_resolved.people IS 'x'
        "#,
    );
}

#[test]
fn d32_everything_else() {
    let kinds = r"
        CREATE SCHEMA s
        CREATE VIEW storage.v AS SELECT 1
        CREATE VIEW v AS SELECT 1
        CREATE MATERIALIZED VIEW storage.v AS SELECT 1
        CREATE FUNCTION storage.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
        CREATE TYPE storage.e AS ENUM ('a')
        CREATE DOMAIN storage.d AS int
        CREATE EXTENSION dblink
        CREATE ROLE r
        CREATE TRIGGER t AFTER INSERT ON storage.notes EXECUTE FUNCTION f()
        CREATE RULE r AS ON INSERT TO storage.notes DO INSTEAD NOTHING
        CREATE POLICY p ON storage.notes
        ALTER ROLE CURRENT_USER PASSWORD 'x'
        ALTER ROLE CURRENT_USER SET search_path = 'x'
        ALTER SYSTEM SET log_statement = 'all'
        ALTER DATABASE x SET search_path = 'x'
        ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC
        GRANT ALL ON storage.notes TO PUBLIC
        REVOKE ALL ON storage.notes FROM PUBLIC
        DO $$BEGIN END$$
        CALL storage.p()
        LOAD 'x'
        VACUUM storage.notes
        ANALYZE storage.notes
        REINDEX TABLE storage.notes
        CLUSTER storage.notes
        CHECKPOINT
        LISTEN x
        NOTIFY x
        PREPARE TRANSACTION 'x'
        COMMIT PREPARED 'x'
        DROP SCHEMA storage
        DROP OWNED BY CURRENT_USER
        REASSIGN OWNED BY CURRENT_USER TO postgres
        IMPORT FOREIGN SCHEMA x FROM SERVER y INTO storage
        CREATE PUBLICATION p
        SECURITY LABEL ON TABLE storage.notes IS 'x'
        ";
    for sql in kinds.lines().map(str::trim).filter(|sql| !sql.is_empty()) {
        let denial = refused("customer_db", sql);
        assert_eq!(
            (denial.rule.id(), denial.message.as_str(), denial.sqlstate),
            ("statement.not_allowed", D33, "42501"),
            "{sql}"
        );
        assert!(denial.detail.starts_with("Rule statement.not_allowed: "), "{}", denial.detail);
        assert!(denial.hint.contains("storage.<table>") || denial.hint.contains("Poll"), "{}", denial.hint);
        assert_eq!(denial.position, Some(1), "{sql}");
    }
}

#[test]
fn d33_d34_d35_messages_with_remedy_and_position() {
    let rows = [
        ("INSERT INTO notes VALUES (1)", D34, "notes", "storage.notes", 13),
        (
            "/* é */ DELETE FROM dl_cache.person_enrichments",
            D34,
            "dl_cache.person_enrichments",
            "storage.person_enrichments",
            21,
        ),
        ("CREATE TABLE notes (a int)", D34, "notes", "storage.notes", 14),
        ("SELECT 1; DROP TABLE \"My Notes\"", D34, "My Notes", "storage.\"My Notes\"", 22),
        ("LOCK TABLE dl_resolved.people IN SHARE MODE", D33, "dl_resolved.people", "storage.people", 12),
    ];
    for (sql, message, object, hint, position) in rows {
        let denial = refused("customer_db", sql);
        assert_eq!(denial.message, message, "{sql}");
        assert_eq!(denial.object.as_deref(), Some(object), "{sql}");
        assert!(denial.hint.contains(hint), "{}", denial.hint);
        assert!(denial.detail.contains(object), "{}", denial.detail);
        assert_eq!(denial.position, Some(position), "{sql}");
    }
    let denial = refused("runtime", "INSERT INTO notes VALUES (1)");
    assert_eq!(denial.message, D34);
    assert!(denial.hint.contains("tenant_custom.notes"), "{}", denial.hint);
    let denial = refused("read", "DELETE FROM dl_resolved.people");
    assert_eq!(denial.message, D34);
    assert!(denial.hint.contains("only reads"), "{}", denial.hint);
}

#[test]
fn d20_d21_the_override_profile() {
    table(
        "read",
        r"
        ok SELECT * FROM dl_resolved.people
        relation.not_readable SELECT * FROM dl_cache.person_enrichments
        relation.not_readable SELECT * FROM dl_override.person_overrides
        relation.not_readable SELECT * FROM tenant_custom.t
        target.schema INSERT INTO dl_override.person_overrides VALUES (1)
        target.schema CREATE TABLE tenant_custom.t (a int)
        setting.value SET default_transaction_read_only = off
        ok SET default_transaction_read_only = on
        setting.value BEGIN READ WRITE
        ok BEGIN READ ONLY
        setting.value SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE
        setting.value SELECT set_config('transaction_read_only', 'off', true)
        setting.value SELECT set_config('transaction_read_only', $1, true)
        ",
    );
    table(
        "runtime",
        r"
        ok SELECT * FROM dl_resolved.people
        relation.not_readable SELECT * FROM dl_cache.person_enrichments
        ok INSERT INTO dl_override.person_overrides (person_id, title) VALUES ('p1', 'CTO')
        ok DELETE FROM dl_override.person_overrides
        target.schema TRUNCATE dl_override.person_overrides
        target.schema ANALYZE dl_override.person_overrides
        target.schema ANALYZE tenant_custom.t, dl_cache.person_enrichments
        target.unqualified ANALYZE t
        statement.not_allowed ANALYZE
        statement.not_allowed VACUUM ANALYZE tenant_custom.t
        clause.not_allowed ANALYZE (BUFFER_USAGE_LIMIT 128) tenant_custom.t
        ok ANALYZE (VERBOSE, SKIP_LOCKED) tenant_custom.t (a, b)
        target.schema COMMENT ON CONSTRAINT c ON DOMAIN dl_override.d IS 'x'
        target.unqualified COMMENT ON CONSTRAINT c ON DOMAIN d IS 'x'
        ok COMMENT ON CONSTRAINT c ON DOMAIN tenant_custom.d IS 'x'
        clause.not_allowed CREATE TYPE tenant_custom.r AS RANGE (subtype = int, subtype_opclass = dl_meta.ops)
        name.schema CREATE TYPE tenant_custom.r AS RANGE (subtype = text, collation = dl_meta.c)
        function.not_allowed CREATE TYPE tenant_custom.r AS RANGE (subtype = int, subtype_diff = tenant_custom.f)
        function.not_allowed SELECT tenant_custom.r(1, 2)
        clause.not_allowed CREATE TYPE tenant_custom.r AS RANGE (subtype = int, canonical = int4range_canonical)
        target.schema CREATE TABLE dl_override.t (a int)
        target.schema ALTER TABLE dl_override.person_overrides ADD COLUMN x int
        ok CREATE VIEW tenant_custom.v AS SELECT * FROM dl_resolved.people
        relation.not_readable CREATE VIEW tenant_custom.v AS SELECT * FROM dl_meta.tenant_settings
        ok CREATE TYPE tenant_custom.e AS ENUM ('a', 'b')
        ok CREATE TYPE tenant_custom.c AS (a int, b text)
        ok CREATE DOMAIN tenant_custom.d AS int CHECK (VALUE > 0)
        ok CREATE MATERIALIZED VIEW tenant_custom.m AS SELECT 1
        ok REFRESH MATERIALIZED VIEW tenant_custom.m
        target.temporary REFRESH MATERIALIZED VIEW CONCURRENTLY tenant_custom.m
        ok CREATE SEQUENCE tenant_custom.s
        ok CREATE STATISTICS tenant_custom.st ON a, b FROM tenant_custom.t
        target.schema CREATE VIEW dl_resolved.v AS SELECT 1
        statement.not_allowed CREATE FUNCTION tenant_custom.f() RETURNS int LANGUAGE sql AS 'SELECT 1'
        ",
    );
}

#[test]
fn t2_t3_the_design_profile() {
    table(
        "developer",
        r"
        ok CREATE TABLE users (id serial PRIMARY KEY, name text)
        ok CREATE TABLE public.users (id serial PRIMARY KEY, name text)
        ok INSERT INTO users (name) VALUES ('a')
        ok CREATE VIEW v AS SELECT * FROM users
        ok CREATE INDEX ON users (name)
        ok ALTER TABLE users ADD COLUMN x int
        ok DROP TABLE users
        ok SELECT * FROM users FOR UPDATE
        ok SELECT nextval('users_id_seq')
        ok CREATE TYPE mood AS ENUM ('a')
        target.schema CREATE TABLE other.t (a int)
        statement.not_allowed CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'
        statement.not_allowed CREATE EXTENSION dblink
        statement.not_allowed CREATE SCHEMA s
        clause.not_allowed ALTER TABLE users OWNER TO postgres
        setting.not_allowed SET ROLE postgres
        ",
    );
}

#[test]
fn functions_in_every_disguise() {
    table(
        "customer_db",
        r#"
        function.not_allowed SELECT pg_read_file('/etc/passwd')
        function.not_allowed SELECT pg_catalog.pg_read_file('/etc/passwd')
        function.not_allowed SELECT PG_SLEEP(10)
        function.not_allowed SELECT "pg_sleep"(10)
        function.not_allowed SELECT U&"pg\005fsleep"(10)
        function.not_allowed SELECT storage.f()
        function.not_allowed SELECT f()
        function.not_allowed SELECT x.pg_terminate_backend FROM pg_backend_pid() x
        function.not_allowed SELECT x.pg_sleep FROM storage.t x
        function.not_allowed SELECT x.nextval FROM CAST('storage.s' AS regclass) x
        function.not_allowed SELECT x.nextval FROM CAST('storage.s' AS regclass) AS y, unnest(ARRAY['storage.s'::regclass]) x
        function.not_allowed SELECT to_regclass.nextval FROM to_regclass('storage.s')
        function.not_allowed SELECT "coalesce".nextval FROM COALESCE('storage.s'::regclass)
        function.not_allowed SELECT x.nextval FROM ROWS FROM (to_regclass('storage.s')) AS x
        function.not_allowed UPDATE storage.t SET a = x.nextval FROM to_regclass('storage.s') x
        function.not_allowed SELECT 1 FROM to_regclass('storage.s') x, LATERAL (SELECT x.nextval) y
        function.not_allowed SELECT (x).nextval FROM (SELECT 'storage.s'::regclass AS x) y
        ok SELECT x.nextval, u.set_limit, p.page_header FROM storage.c x, storage.u u JOIN storage.p p USING (id)
        ok SELECT x.nextval FROM storage.c x, generate_series(1, 3) g
        ok SELECT storage.u.set_limit FROM storage.u
        ok SELECT set_limit FROM json_to_record('{}') AS x (set_limit int)
        ok SELECT x.set_limit FROM (SELECT * FROM json_to_record('{}') AS j (set_limit int)) x
        ok SELECT set_limit FROM storage.t, LATERAL (SELECT (t.c).*) f
        ok SELECT pg_sleep FROM storage.t
        function.not_allowed SELECT (1.0::float8).pg_sleep
        function.not_allowed SELECT * FROM pg_ls_dir('.')
        function.not_allowed SELECT 1 ORDER BY pg_sleep(1)
        function.not_allowed SELECT 1 LIMIT (SELECT pg_sleep(1) IS NULL)::int
        function.not_allowed SELECT sum(1) FILTER (WHERE pg_sleep(1) IS NULL) OVER (ORDER BY 1)
        function.not_allowed SELECT CASE WHEN true THEN pg_sleep(1) END
        function.not_allowed SELECT ARRAY[pg_sleep(1)], ROW(1), COALESCE(NULL, 1)
        function.not_allowed SELECT * FROM dl_resolved.people TABLESAMPLE system (pg_sleep(1)::text::int)
        function.not_allowed SELECT query_to_xml('SELECT 1', true, true, '')
        function.not_allowed SELECT ts_rewrite('a'::tsquery, 'SELECT 1')
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', NULL) FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', NULL::jsonb, true, 'use_json_null') FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', x.n) FROM dl_resolved.people, (SELECT NULL::jsonb AS n) x
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', $1) FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', NULL, true, x.t) FROM dl_resolved.people, (VALUES ('use_json_null')) x (t)
        function.not_allowed SELECT jsonb_set_lax(attrs, new_value => NULL, path => '{a}') FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax('{}', '{a}'::text::text[], NULL) FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax('{}', '{a}'::storage.path, NULL) FROM dl_resolved.people
        function.not_allowed SELECT jsonb_set_lax(attrs, '{a}', NULL, true, 'use_json_nullx'::varchar(13)) FROM dl_resolved.people
        ok SELECT jsonb_set_lax('{}'::jsonb, '{a}', NULL), jsonb_set_lax('{}', '{a}', NULL, null_value_treatment => 'use_json_null')
        ok SELECT jsonb_set_lax(attrs, '{a}', '1'), jsonb_set_lax(attrs, '{a}', 'null'::jsonb, true) FROM dl_resolved.people
        ok SELECT jsonb_set_lax(attrs, '{a}', attrs -> 'b', true, 'delete_key') FROM dl_resolved.people
        function.not_allowed SELECT pg_advisory_lock(1)
        function.not_allowed SELECT pg_notify('a', 'b')
        function.not_allowed SELECT set_config('work_mem', '1MB', false) FROM dl_resolved.people
        ok SELECT current_setting('jit') AS cur, set_config('jit', 'off', false) AS new
        function.not_allowed SELECT pg_sleep(1), set_config('jit', 'off', false)
        function.not_allowed SELECT set_config('jit', 'off', false) LIMIT 0
        function.not_allowed SELECT (SELECT set_config('jit', 'off', false))
        statement.multiple SELECT 1, set_config('jit', 'off', false); SELECT 2
        function.not_allowed SELECT upper(set_config('work_mem', '1MB', false))
        function.not_allowed INSERT INTO storage.t VALUES (1) RETURNING pg_sleep(1)
        function.not_allowed INSERT INTO storage.t VALUES (1) ON CONFLICT (a) DO UPDATE SET a = pg_sleep(1) WHERE lo_import('x') > 1
        function.not_allowed COPY storage.t FROM STDIN WHERE pg_sleep(1) IS NULL
        function.not_allowed SELECT nextval('dl_cache.s'::text || 'x')
        target.schema SELECT nextval('dl_cache.s')
        target.unqualified SELECT nextval('s')
        ok SELECT nextval('storage.s'), currval('storage."S"'), lastval()
        ok SELECT CURRVAL($1)
        ok SELECT pg_catalog.currval($1)
        ok SELECT setval(pg_get_serial_sequence('storage.t', 'id'), 10)
        ok SELECT p.full_name, (p).title, p.* FROM dl_resolved.people p
        ok SELECT now(), lower('A'), extract(epoch FROM now()), position('a' IN 'b'), trim(' a '), CURRENT_USER
        ok SELECT 'dl_meta.tenant_settings'::regclass, 'now'::timestamptz, CAST('1' AS numeric(10, 2))
        name.schema SELECT 'x'::dl_meta.t
        name.schema SELECT 1 OPERATOR(storage.+) 1
        ok SELECT 1 OPERATOR(pg_catalog.+) 1
        ok SELECT pg_advisory_unlock_all()
        ok SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'
        "#,
    );
}

#[test]
fn settings_by_every_door() {
    table(
        "customer_db",
        r"
        ok SET application_name = 'x'
        ok SET SESSION statement_timeout = 0
        ok SET LOCAL work_mem = '1MB'
        setting.value SET work_mem = '8GB'
        ok SET DateStyle = ISO, DMY
        ok SET TIME ZONE INTERVAL '+00:00' HOUR TO MINUTE
        ok SET TIME ZONE LOCAL
        ok SET NAMES 'UTF8'
        setting.value SET client_encoding TO 'LATIN1'
        setting.value SET standard_conforming_strings = off
        ok SET search_path TO storage, public
        ok SET SCHEMA 'storage'
        setting.value SET search_path TO pg_temp
        setting.not_allowed SET ROLE postgres
        setting.not_allowed SET ROLE NONE
        setting.not_allowed RESET ROLE
        setting.not_allowed SET SESSION AUTHORIZATION postgres
        setting.not_allowed SET SESSION AUTHORIZATION DEFAULT
        setting.not_allowed RESET SESSION AUTHORIZATION
        ok SET SESSION AUTHORIZATION DEFAULT;RESET ALL;CLOSE ALL;UNLISTEN *;SELECT pg_advisory_unlock_all();DISCARD SEQUENCES;DISCARD TEMP
        setting.not_allowed SET SESSION AUTHORIZATION DEFAULT; SELECT 1
        setting.not_allowed SET session_replication_role = replica
        setting.not_allowed SELECT set_config('role', 'postgres', false)
        setting.not_allowed SELECT pg_catalog.set_config('ROLE', 'postgres', false)
        ok SELECT set_config('jit', $1, false)
        setting.value SELECT set_config('search_path', $1, false)
        ok SELECT pg_catalog.set_config('search_path', '', false)
        clause.not_allowed SELECT set_config('work' || '_mem', '1MB', false)
        ok RESET ALL
        ok RESET search_path
        ok SHOW server_version
        ok SHOW ALL
        ok BEGIN ISOLATION LEVEL SERIALIZABLE, READ WRITE
        ok SET TRANSACTION READ ONLY
        clause.not_allowed SET TRANSACTION SNAPSHOT 'x'
        ok DISCARD ALL
        ok SET CONSTRAINTS ALL DEFERRED
        ",
    );
}

#[test]
fn d28_batches() {
    table(
        "customer_db",
        r"
        ok SELECT 1;
        ok ; ; SELECT 1 ; -- end
        statement.multiple SELECT 1; SELECT 2
        statement.multiple INSERT INTO storage.t VALUES (1); INSERT INTO storage.t VALUES (2)
        ok BEGIN;INSERT INTO storage.t VALUES (1)
        ok BEGIN;DECLARE c CURSOR WITH HOLD FOR SELECT * FROM dl_resolved.people;FETCH 10 IN c
        ok CLOSE c;COMMIT
        ok SAVEPOINT x;SELECT 1
        setting.not_allowed SET a.b TO DEFAULT; SELECT 1
        ok SET DateStyle=ISO; SET client_min_messages=notice; SELECT set_config('bytea_output','hex',false); SET client_encoding='utf-8'
        ok SELECT version(); SELECT * FROM pg_type; SELECT * FROM pg_catalog.pg_class
        target.schema SELECT 1; DELETE FROM dl_cache.person_enrichments
        syntax.error SELECT 1 END; DELETE FROM secrets; SELECT (
        statement.multiple SELECT E'\''; SELECT 2 --'
        ",
    );
    let two = b"SELECT 1; SELECT 2";
    let Verdict::Deny(denial) = judge(&role("customer_db"), Surface::Parse, two, &TARGET) else { panic!() };
    assert_eq!((denial.sqlstate, denial.rule.id()), ("42601", "statement.multiple"));
    let Verdict::Deny(denial) = judge(&role("customer_db"), Surface::Http, b"BEGIN; SELECT 1", &TARGET) else {
        panic!()
    };
    assert_eq!(denial.rule.id(), "statement.multiple");
    let Verdict::Deny(denial) = judge(&role("customer_db"), Surface::Http, b" -- nothing", &TARGET) else { panic!() };
    assert_eq!(denial.rule.id(), "statement.empty");
    assert_eq!(permit("customer_db", " ; -- nothing").statements(), 0);
}

#[test]
fn effects_in_order() {
    let set =
        |name: &str, value: &str, local| Effect::Set { name: name.to_owned(), value: Some(value.to_owned()), local };
    let rows: Vec<(&str, Vec<Effect>)> = vec![
        ("SELECT 1", vec![]),
        (
            "BEGIN; SAVEPOINT a; ROLLBACK TO a; RELEASE a; COMMIT AND CHAIN",
            vec![
                Effect::Begin,
                Effect::Savepoint("a".into()),
                Effect::RollbackTo("a".into()),
                Effect::Release("a".into()),
                Effect::Commit { chain: true },
            ],
        ),
        ("ABORT", vec![Effect::Rollback { chain: false }]),
        ("SET DateStyle = ISO, DMY", vec![set("datestyle", "iso, dmy", false)]),
        ("SET LOCAL work_mem = '1MB'", vec![set("work_mem", "1MB", true)]),
        ("SET TIME ZONE 'UTC'", vec![set("timezone", "UTC", false)]),
        ("SET TIME ZONE INTERVAL '+02:00' HOUR TO MINUTE", vec![set("timezone", "INTERVAL '+02:00'", false)]),
        ("SET TIME ZONE -3", vec![set("timezone", "-3", false)]),
        ("SET statement_timeout = 0", vec![set("statement_timeout", "0", false)]),
        ("SET search_path TO storage, public", vec![set("search_path", "\"storage\", \"public\"", false)]),
        (
            "SET extra_float_digits TO DEFAULT",
            vec![Effect::Set { name: "extra_float_digits".into(), value: None, local: false }],
        ),
        ("SELECT set_config('TimeZone', 'UTC', false)", vec![set("timezone", "UTC", false)]),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY",
            vec![set("default_transaction_read_only", "on", false)],
        ),
        ("SET TRANSACTION READ ONLY", vec![]),
        ("RESET search_path", vec![Effect::Reset { name: "search_path".into() }]),
        ("RESET ALL", vec![Effect::ResetAll]),
        ("DISCARD ALL", vec![Effect::DiscardAll]),
        ("DEALLOCATE ALL", vec![Effect::DeallocateAll]),
        ("DEALLOCATE p", vec![Effect::SqlDeallocate { name: "p".into() }]),
        ("EXECUTE p(1)", vec![Effect::SqlExecute { name: "p".into() }]),
        ("CLOSE ALL", vec![Effect::CloseAll]),
        ("UNLISTEN *", vec![Effect::Unlisten(None)]),
        ("SELECT pg_advisory_unlock_all()", vec![]),
        ("COPY storage.t FROM STDIN", vec![Effect::CopyIn]),
        ("COPY storage.t TO STDOUT", vec![Effect::CopyOut]),
        (
            "PREPARE p AS SELECT 1",
            vec![
                Effect::SqlPrepare { name: "p".into() },
                Effect::Pin(PinReason::PreparedStatement),
                Effect::Taint(TaintReason::SessionObject),
            ],
        ),
        (
            "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
            vec![
                Effect::Declare { name: "c".into(), hold: true },
                Effect::Pin(PinReason::HoldCursor),
                Effect::Taint(TaintReason::SessionObject),
            ],
        ),
        ("DECLARE c SCROLL CURSOR FOR SELECT 1", vec![Effect::Declare { name: "c".into(), hold: false }]),
        (
            "SELECT set_config(name, 'view, foreign-table', false) FROM pg_settings WHERE name = 'restrict_nonsystem_relation_kind'",
            vec![Effect::Taint(TaintReason::Setting)],
        ),
        ("SELECT nextval('storage.s')", vec![Effect::Pin(PinReason::Sequence), Effect::Taint(TaintReason::Sequence)]),
        ("CREATE TABLE storage.t (a int DEFAULT nextval('storage.s'))", vec![]),
        (
            "SELECT set_config('jit', $1, false)",
            vec![
                Effect::SetBound { name: "jit".into(), parameter: 1, local: false },
                Effect::Taint(TaintReason::Setting),
            ],
        ),
    ];
    for (sql, expect) in rows {
        assert_eq!(permit("customer_db", sql).effects(), expect, "{sql}");
    }
}

#[test]
fn what_a_permit_tells() {
    let permit = permit("customer_db", "BEGIN; INSERT INTO storage.t SELECT lower(a) FROM dl_resolved.people");
    assert_eq!(permit.command(), Kind::Insert);
    assert_eq!(permit.reads(), ["dl_resolved.people"]);
    assert_eq!(permit.writes(), ["storage.t"]);
    assert_eq!(permit.functions(), ["lower"]);
    assert_eq!(permit.statements(), 2);
    assert!(!format!("{permit:?}").contains("INSERT INTO"));
}

#[test]
fn a_setting_by_way_of_pg_settings_reads_it() {
    let set = "SELECT set_config('bytea_output', 'hex', false) FROM";
    let of = |from: &str| permit("customer_db", &format!("{set} {from} WHERE name = 'bytea_output'"));
    assert_eq!(of("pg_settings").reads(), ["pg_settings"]);
    assert_eq!(of("pg_catalog.pg_settings").reads(), ["pg_catalog.pg_settings"]);
    assert_eq!(of("pg_show_all_settings()").functions(), ["pg_show_all_settings"]);
}

#[test]
fn names_that_postgresql_would_cut_off() {
    let long = "a".repeat(64);
    table("customer_db", &format!("name.too_long INSERT INTO storage.{long} VALUES (1)"));
    table("customer_db", &format!("ok SELECT 1 AS {long}"));
    table("customer_db", "name.reserved DECLARE _portcullis_1 CURSOR FOR SELECT 1");
    table("customer_db", "name.reserved DEALLOCATE _portcullis_1");
    table("customer_db", "name.reserved EXECUTE _portcullis_1");
}

#[test]
fn syntax_errors_are_postgresqls_with_position() {
    let rows = [
        ("SELEC 1", "syntax error at or near \"SELEC\"", Some(1)),
        ("SELECT 1 FROM FROM t", "syntax error at or near \"FROM\"", Some(15)),
        ("SELECT 'é', 1 1", "syntax error at or near \"1\"", Some(15)),
        ("SELECT (1", "syntax error at end of input", Some(10)),
        ("SELECT (1 -- é\n", "syntax error at end of input", Some(16)),
        ("SELECT 'abc", "unterminated quoted string at or near \"'abc\"", Some(8)),
    ];
    for (sql, message, position) in rows {
        let denial = refused("customer_db", sql);
        assert_eq!((denial.sqlstate, denial.message.as_str(), denial.position), ("42601", message, position), "{sql}");
    }
}

#[test]
fn bounds_before_parsing() {
    let role = role("customer_db");
    let judge = |text: &[u8]| match judge(&role, Surface::SimpleQuery, text, &TARGET) {
        Verdict::Allow(_) => ("", None),
        Verdict::Deny(denial) => (denial.sqlstate, denial.position),
    };
    assert_eq!(judge(&vec![b' '; (1 << 20) + 1]), ("54000", None));
    assert_eq!(judge(b"SELECT '\xff'"), ("22021", Some(9)));
    assert_eq!(judge(b"SELECT 1\0; DROP TABLE x"), ("22021", Some(9)));
    assert_eq!(judge(format!("SELECT 1{}", "+1".repeat(2_001)).as_bytes()).0, "54001");
    assert_eq!(judge(format!("SELECT {}1", "/*".repeat(17)).as_bytes()).0, "54001");
}

#[test]
fn effects_belong_to_their_statement() {
    let permit = permit("customer_db", "BEGIN; SET timezone = 'UTC'; SELECT 1; COMMIT");
    let counts: Vec<usize> = (0..6).map(|statement| permit.effects_of(statement).len()).collect();
    assert_eq!(counts, [1, 1, 0, 1, 0, 0]);
    assert_eq!(permit.effects_of(3), [Effect::Commit { chain: false }]);
}
