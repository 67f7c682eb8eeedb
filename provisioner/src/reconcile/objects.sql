-- One row per object and per ACL of a workspace's database: a name that a person understands, and a digest of everything
-- about it that matters. $1 managed schemas, $2 customers' schemas, $3 our roles.
WITH schemas AS (
    SELECT oid, nspname, nspowner, nspacl FROM pg_catalog.pg_namespace WHERE nspname = ANY ($1::text[] || $2::text[] || '{public,portcullis_guard}'::text[])
), managed AS (
    SELECT c.oid, c.relkind, c.relowner, c.relacl, c.reloptions, c.relrowsecurity, c.relforcerowsecurity,
           format('%I.%I', n.nspname, c.relname) AS name,
           CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' WHEN 'm' THEN 'materialized view' ELSE 'table' END AS word
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = ANY ($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'S', 'f')
), facts (name, fact) AS (
    SELECT 'schema ' || quote_ident(nspname), pg_get_userbyid(nspowner)::text FROM schemas
    UNION ALL
    SELECT 'grants on schema ' || quote_ident(nspname),
           (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(coalesce(nspacl, acldefault('n', nspowner))) a)
      FROM schemas
    UNION ALL
    SELECT word || ' ' || name,
           concat_ws(E'\n', pg_get_userbyid(relowner), relkind, reloptions::text, relrowsecurity, relforcerowsecurity,
               CASE WHEN relkind IN ('v', 'm') THEN pg_get_viewdef(m.oid) END,
               (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
                                            a.attgenerated, pg_get_expr(d.adbin, d.adrelid)), E'\n' ORDER BY a.attnum)
                  FROM pg_catalog.pg_attribute a
                  LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
                 WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped AND m.relkind <> 'S'),
               (SELECT string_agg(conname || ' ' || pg_get_constraintdef(k.oid), E'\n' ORDER BY conname)
                  FROM pg_catalog.pg_constraint k WHERE k.conrelid = m.oid),
               (SELECT string_agg(pg_get_indexdef(i.indexrelid) || i.indisvalid::text, E'\n' ORDER BY i.indexrelid::regclass::text)
                  FROM pg_catalog.pg_index i WHERE i.indrelid = m.oid),
               (SELECT string_agg(pg_get_triggerdef(t.oid) || t.tgenabled::text, E'\n' ORDER BY t.tgname)
                  FROM pg_catalog.pg_trigger t WHERE t.tgrelid = m.oid AND NOT t.tgisinternal),
               (SELECT string_agg(pg_get_ruledef(r.oid), E'\n' ORDER BY r.rulename)
                  FROM pg_catalog.pg_rewrite r WHERE r.ev_class = m.oid AND r.rulename <> '_RETURN'))
      FROM managed m
    UNION ALL
    SELECT 'grants on ' || word || ' ' || name,
           concat_ws(E'\n', (SELECT string_agg(a::text, ',' ORDER BY a::text)
                                FROM unnest(coalesce(relacl, acldefault(CASE relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", relowner))) a),
               (SELECT string_agg(attname || attacl::text, ',' ORDER BY attnum) FROM pg_catalog.pg_attribute
                 WHERE attrelid = m.oid AND attacl IS NOT NULL))
      FROM managed m
    UNION ALL
    SELECT 'function ' || format('%I.%I', n.nspname, p.proname) || '(' || pg_get_function_identity_arguments(p.oid) || ')',
           concat_ws(E'\n', pg_get_userbyid(p.proowner), pg_get_functiondef(p.oid),
                     coalesce(p.proacl, acldefault('f', p.proowner))::text)
      FROM pg_catalog.pg_proc p JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
     WHERE (n.nspname = ANY ($1) OR n.nspname = 'portcullis_guard') AND p.prokind IN ('f', 'p')
    UNION ALL
    SELECT 'event trigger ' || quote_ident(evtname),
           concat_ws(' ', evtevent, evtenabled, evttags::text, pg_get_userbyid(evtowner), evtfoid::regprocedure)
      FROM pg_catalog.pg_event_trigger
    UNION ALL
    SELECT 'default privileges',
           (SELECT string_agg(concat_ws(' ', pg_get_userbyid(defaclrole), defaclnamespace::regnamespace, defaclobjtype,
                   (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(defaclacl) a)), E'\n'
                   ORDER BY pg_get_userbyid(defaclrole), defaclnamespace::regnamespace::text, defaclobjtype)
              FROM pg_catalog.pg_default_acl WHERE pg_get_userbyid(defaclrole) = ANY ($3))
    UNION ALL
    SELECT 'grants on languages',
           (SELECT string_agg(lanname || (SELECT string_agg(a::text, ',' ORDER BY a::text)
                                            FROM unnest(coalesce(lanacl, acldefault('l', lanowner))) a), E'\n'
                   ORDER BY lanname) FROM pg_catalog.pg_language)
    UNION ALL
    SELECT 'grants on functions of pg_catalog',
           (SELECT string_agg(concat_ws(' ', oid::regprocedure, acl), E'\n' ORDER BY oid)
              FROM (SELECT oid, (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(proacl) a) AS acl,
                           (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(acldefault('f', proowner)) a) AS plain
                      FROM pg_catalog.pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND proacl IS NOT NULL) p
             WHERE acl IS DISTINCT FROM plain)
    UNION ALL
    SELECT 'grants on relations of pg_catalog',
           (SELECT string_agg(concat_ws(' ', oid::regclass, acl, columns), E'\n' ORDER BY oid)
              FROM (SELECT oid, (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(relacl) a) AS acl,
                           (SELECT string_agg(a::text, ',' ORDER BY a::text) FROM unnest(acldefault('r', relowner)) a) AS plain,
                           (SELECT string_agg(attname || attacl::text, ',' ORDER BY attnum) FROM pg_catalog.pg_attribute
                             WHERE attrelid = c.oid AND attacl IS NOT NULL) AS columns
                      FROM pg_catalog.pg_class c
                     WHERE relnamespace IN ('pg_catalog'::regnamespace, 'information_schema'::regnamespace)
                       AND relkind IN ('r', 'v')) c
             WHERE columns IS NOT NULL OR (acl IS NOT NULL AND acl IS DISTINCT FROM plain))
)
SELECT name, left(encode(sha256(convert_to(coalesce(fact, ''), 'UTF8')), 'hex'), 16) FROM facts
