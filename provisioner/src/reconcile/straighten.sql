-- Gives what is ours back to its owner and takes it from everybody else, so that the grants which follow are all there
-- is. What customers made in their own schemas is not touched.
-- Placeholders: :managed and :customer are arrays of schemas, :roles one of our roles, :owner the owner's name.
DO $straighten$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT format('ALTER SCHEMA %I OWNER TO %I', nspname, :owner)
          FROM pg_catalog.pg_namespace
         WHERE nspname = ANY (:managed || :customer || '{public}'::text[]) AND pg_get_userbyid(nspowner) <> :owner
           -- Before PostgreSQL 15, public belongs to the superuser; who is none leaves it so.
           AND (nspname <> 'public' OR pg_has_role(nspowner, 'MEMBER'))
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
          FROM pg_catalog.pg_namespace
         WHERE nspname = ANY (:managed || :customer || '{public}'::text[]) AND pg_get_userbyid(nspowner) = :owner
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
