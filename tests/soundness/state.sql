-- What a session has that outlives a transaction, told by a superuser's function: customers may ask for little of it.
CREATE SCHEMA portcullis_check;
GRANT USAGE ON SCHEMA portcullis_check TO PUBLIC;
CREATE FUNCTION portcullis_check.state() RETURNS text LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    sequence text := '';
BEGIN
    BEGIN
        sequence := 'lastval ' || pg_catalog.lastval();
    EXCEPTION WHEN OTHERS THEN
    END;
    RETURN pg_catalog.concat_ws(' | ', sequence,
        (SELECT pg_catalog.string_agg('setting ' || name, ', ' ORDER BY name) FROM pg_catalog.pg_settings
          WHERE source = 'session' AND name NOT LIKE 'transaction%'),
        (SELECT pg_catalog.string_agg('lock ' || l.mode, ', ') FROM pg_catalog.pg_locks l
          WHERE l.pid = pg_catalog.pg_backend_pid() AND l.locktype = 'advisory'),
        (SELECT pg_catalog.string_agg('channel ' || c, ', ') FROM pg_catalog.pg_listening_channels() c),
        (SELECT pg_catalog.string_agg('cursor ' || name, ', ') FROM pg_catalog.pg_cursors WHERE name <> ''),
        (SELECT pg_catalog.string_agg('prepared ' || name, ', ') FROM pg_catalog.pg_prepared_statements),
        (SELECT pg_catalog.string_agg('temporary ' || relname, ', ') FROM pg_catalog.pg_class
          WHERE relnamespace = pg_catalog.pg_my_temp_schema()));
END
$$;
