-- Schema "catalog": what should exist. Only the provisioner writes it.
--
-- Every write transaction first raises catalog.revision.value, which holds that row's lock until it ends: writers take
-- turns, revisions commit in their order, and who sees revision N sees every change up to N and none after it.
-- Each row carries the revision of its last change, so that a reader loads only what changed since its own.

CREATE TABLE catalog.revision (
    singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
    value bigint NOT NULL DEFAULT 0,
    -- Removals of revisions below this have been forgotten: a reader that is older loads everything.
    horizon bigint NOT NULL DEFAULT 0
);
INSERT INTO catalog.revision DEFAULT VALUES;

-- What was removed, so that readers forget it too. key is what readers find the row by.
CREATE TABLE catalog.removal (
    revision bigint NOT NULL,
    relation text NOT NULL,
    key text NOT NULL,
    removed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (revision, relation, key)
);

CREATE TABLE catalog.server (
    id text PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 40),
    host text NOT NULL CHECK (host <> ''),
    port integer NOT NULL CHECK (port BETWEEN 1 AND 65535),
    tls text NOT NULL CHECK (tls IN ('disable', 'require', 'verify-full')),
    ca_pem text CHECK ((ca_pem IS NOT NULL) = (tls = 'verify-full')),
    revision bigint NOT NULL
);
CREATE INDEX server_revision ON catalog.server (revision);

CREATE TABLE catalog.policy (
    name text PRIMARY KEY CHECK (octet_length(name) BETWEEN 1 AND 63),
    text text NOT NULL,
    digest bytea NOT NULL CHECK (octet_length(digest) = 32),
    revision bigint NOT NULL
);
CREATE INDEX policy_revision ON catalog.policy (revision);

CREATE TABLE catalog.workspace (
    id text PRIMARY KEY CHECK (id ~ '^ws_[0-9a-f]{16}$'),
    name text NOT NULL UNIQUE CHECK (octet_length(name) BETWEEN 1 AND 53 AND position('__' IN name) = 0),
    mode text NOT NULL CHECK (mode IN ('tenant', 'control')),
    profile text NOT NULL REFERENCES catalog.policy,
    server_id text NOT NULL REFERENCES catalog.server,
    database text NOT NULL CHECK (octet_length(database) BETWEEN 1 AND 63),
    created_at timestamptz NOT NULL,
    query_timeout_ms bigint CHECK (query_timeout_ms > 0),
    max_rows_per_query bigint CHECK (max_rows_per_query > 0),
    max_connections integer CHECK (max_connections > 0),
    plane_status text NOT NULL
        CHECK (plane_status IN ('provisioning', 'active', 'repairing', 'suspended', 'failed', 'missing')),
    plane_since timestamptz NOT NULL,
    schema_version text,
    last_error text,
    -- The workspace's data key, wrapped by the key of keys. NULL where no passwords are kept.
    wrapped_key bytea,
    revision bigint NOT NULL,
    UNIQUE (server_id, database)
);
CREATE INDEX workspace_revision ON catalog.workspace (revision);

CREATE TABLE catalog.login (
    id text PRIMARY KEY CHECK (id ~ '^lg_[0-9a-f]{16}$'),
    workspace_id text NOT NULL REFERENCES catalog.workspace ON DELETE CASCADE,
    kind text NOT NULL CHECK (octet_length(kind) BETWEEN 1 AND 63),
    username text NOT NULL UNIQUE CHECK (octet_length(username) BETWEEN 1 AND 63),
    -- Shared by all versions of the login, so that one SCRAM exchange can be finished with either of two passwords.
    salt bytea NOT NULL CHECK (octet_length(salt) BETWEEN 8 AND 64),
    iterations integer NOT NULL CHECK (iterations BETWEEN 4096 AND 1000000),
    session_epoch bigint NOT NULL DEFAULT 0,
    revision bigint NOT NULL,
    UNIQUE (workspace_id, kind)
);
CREATE INDEX login_revision ON catalog.login (revision);

CREATE TABLE catalog.login_version (
    login_id text NOT NULL REFERENCES catalog.login ON DELETE CASCADE,
    version integer NOT NULL CHECK (version > 0),
    state text NOT NULL CHECK (state IN ('pending', 'active', 'grace', 'revoked')),
    -- A revoked version keeps its history and loses its secrets.
    stored_key bytea CHECK (octet_length(stored_key) = 32),
    server_key bytea CHECK (octet_length(server_key) = 32),
    sealed_password bytea,
    created_at timestamptz NOT NULL,
    activated_at timestamptz,
    revoked_at timestamptz,
    valid_until timestamptz,
    PRIMARY KEY (login_id, version),
    CHECK ((state = 'revoked') = (stored_key IS NULL)),
    CHECK ((state = 'revoked') = (server_key IS NULL)),
    CHECK (state <> 'revoked' OR sealed_password IS NULL),
    CHECK (state <> 'grace' OR valid_until IS NOT NULL)
);
-- At most two are alive: one active, one in its grace. And one may wait.
CREATE UNIQUE INDEX login_version_alive ON catalog.login_version (login_id, state)
    WHERE state IN ('pending', 'active', 'grace');
CREATE INDEX login_version_expiry ON catalog.login_version (valid_until)
    WHERE state IN ('active', 'grace') AND valid_until IS NOT NULL;

-- The credential that the proxy holds towards PostgreSQL: the published generation of each role.
CREATE TABLE catalog.backend_role (
    workspace_id text NOT NULL REFERENCES catalog.workspace ON DELETE CASCADE,
    kind text NOT NULL CHECK (octet_length(kind) BETWEEN 1 AND 63),
    role text NOT NULL CHECK (octet_length(role) BETWEEN 1 AND 63),
    login text NOT NULL CHECK (octet_length(login) BETWEEN 1 AND 63),
    generation integer NOT NULL CHECK (generation > 0),
    salt bytea NOT NULL CHECK (octet_length(salt) BETWEEN 8 AND 64),
    iterations integer NOT NULL CHECK (iterations BETWEEN 4096 AND 1000000),
    -- ClientKey and ServerKey under the proxy key.
    sealed_keys bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    revision bigint NOT NULL,
    PRIMARY KEY (workspace_id, kind)
);
CREATE INDEX backend_role_revision ON catalog.backend_role (revision);

-- Keys of the HTTP API: only a hash of the secret is kept.
CREATE TABLE catalog.api_key (
    id text PRIMARY KEY CHECK (id ~ '^pk_[0-9a-f]{16}$'),
    name text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 200),
    secret_hash bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    scopes text[] NOT NULL,
    workspace_id text REFERENCES catalog.workspace ON DELETE CASCADE,
    created_at timestamptz NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
