-- What a proxy may read: views without any sealed password, wrapped key or API key. security_barrier keeps a reader's
-- functions away from rows that a view leaves out.

CREATE VIEW catalog.proxy_revision WITH (security_barrier) AS
    SELECT value, horizon, (SELECT max(version) FROM catalog.migration) AS schema_version FROM catalog.revision;

CREATE VIEW catalog.proxy_removal WITH (security_barrier) AS
    SELECT revision, relation, key FROM catalog.removal;

CREATE VIEW catalog.proxy_server WITH (security_barrier) AS
    SELECT id, host, port, tls, ca_pem, revision FROM catalog.server;

CREATE VIEW catalog.proxy_policy WITH (security_barrier) AS
    SELECT name, text, digest, revision FROM catalog.policy;

CREATE VIEW catalog.proxy_workspace WITH (security_barrier) AS
    SELECT id, name, mode, profile, server_id, database, created_at, query_timeout_ms, max_rows_per_query,
           max_connections, plane_status, plane_since, schema_version, last_error, revision
    FROM catalog.workspace;

CREATE VIEW catalog.proxy_login WITH (security_barrier) AS
    SELECT id, workspace_id, kind, username, salt, iterations, session_epoch, revision FROM catalog.login;

CREATE VIEW catalog.proxy_login_version WITH (security_barrier) AS
    SELECT v.login_id, v.version, v.state, v.stored_key, v.server_key, v.valid_until, v.created_at, l.revision
    FROM catalog.login_version v JOIN catalog.login l ON l.id = v.login_id
    WHERE v.state IN ('active', 'grace');

CREATE VIEW catalog.proxy_backend_role WITH (security_barrier) AS
    SELECT workspace_id, kind, role, login, generation, salt, iterations, sealed_keys, revision
    FROM catalog.backend_role;
