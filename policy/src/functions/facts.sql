-- What a server says about its own functions, one row per name: name, schema, kinds, volatility, pseudo,
-- one_argument, public. The columns are explained in README.md.
WITH functions AS (
  SELECT p.*, n.nspname AS schema
  FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
  WHERE n.nspname = 'pg_catalog'
     OR (n.nspname = 'public' AND EXISTS (
          SELECT FROM pg_catalog.pg_depend d
          WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'))
), described AS (
  SELECT f.proname AS name,
         CASE WHEN bool_or(f.schema = 'pg_catalog') THEN 'pg_catalog' ELSE 'extension' END AS schema,
         string_agg(DISTINCT f.prokind::text, '' ORDER BY f.prokind::text) AS kinds,
         CASE WHEN bool_or(f.provolatile = 'v') THEN 'volatile'
              WHEN bool_or(f.provolatile = 's') THEN 'stable'
              ELSE 'immutable' END AS volatility,
         CASE WHEN bool_and(EXISTS (
                SELECT FROM unnest(f.proargtypes::oid[] || f.prorettype) AS a(type)
                JOIN pg_catalog.pg_type t ON t.oid = a.type
                WHERE t.typtype = 'p' AND t.typname IN (
                      'internal', 'cstring', 'trigger', 'event_trigger', 'language_handler', 'fdw_handler',
                      'index_am_handler', 'table_am_handler', 'tsm_handler', 'pg_ddl_command')))
              THEN 'pseudo' ELSE '-' END AS pseudo,
         CASE WHEN bool_or(f.pronargs >= 1 AND f.pronargs - f.pronargdefaults <= 1)
              THEN 'one' ELSE '-' END AS one_argument,
         CASE WHEN bool_or(f.proacl IS NULL OR EXISTS (
                SELECT FROM pg_catalog.aclexplode(f.proacl) x WHERE x.grantee = 0))
              THEN 'public' ELSE '-' END AS public
  FROM functions f
  GROUP BY f.proname
), types AS (
  SELECT t.typname, 'pg_catalog', 't', 'immutable', '-', 'one', 'public'
  FROM pg_catalog.pg_type t
  WHERE t.typnamespace = 'pg_catalog'::regnamespace
    AND t.typtype IN ('b', 'r', 'm') AND t.typcategory <> 'A'
    AND NOT EXISTS (SELECT FROM described d WHERE d.name = t.typname)
)
SELECT * FROM described UNION ALL SELECT * FROM types ORDER BY 1;
