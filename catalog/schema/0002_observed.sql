-- Schema "observed": what proxies saw. Proxies insert here and nowhere else.

-- Proxies that run: a row per process.
CREATE TABLE observed.proxy (
    id text PRIMARY KEY CHECK (octet_length(id) BETWEEN 1 AND 100),
    name text NOT NULL CHECK (octet_length(name) BETWEEN 1 AND 200),
    version text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    stopped_at timestamptz,
    -- The revision whose consequences this proxy has drawn.
    revision bigint NOT NULL DEFAULT 0
);
CREATE INDEX proxy_live ON observed.proxy (heartbeat_at) WHERE stopped_at IS NULL;

-- Sessions that a proxy ended because a login's session epoch rose.
CREATE TABLE observed.termination (
    proxy_id text NOT NULL,
    login_id text NOT NULL,
    epoch bigint NOT NULL,
    sessions bigint NOT NULL CHECK (sessions >= 0),
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (login_id, epoch, proxy_id)
);

-- When a version of a login was last used to connect.
CREATE TABLE observed.last_used (
    login_id text NOT NULL,
    version integer NOT NULL,
    at timestamptz NOT NULL,
    PRIMARY KEY (login_id, version)
);

-- One hash chain per writer: hash = SHA-256 over the previous hash and this row, in the encoding of the code's module
-- `audit`. detail is json, not jsonb, since the hash covers its exact text.
CREATE TABLE observed.audit (
    writer text NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    at timestamptz NOT NULL,
    actor text NOT NULL,
    request_id text,
    action text NOT NULL,
    workspace_id text,
    subject text,
    detail json NOT NULL,
    -- The catalog's revision that this event made, if it made one.
    revision bigint,
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (writer, sequence)
);
CREATE INDEX audit_at ON observed.audit (at);
CREATE INDEX audit_workspace ON observed.audit (workspace_id, at);

-- The end of the provisioner's chain; its row lock makes writers of the chain take turns.
CREATE TABLE catalog.audit_head (
    writer text PRIMARY KEY,
    sequence bigint NOT NULL,
    hash bytea NOT NULL CHECK (octet_length(hash) = 32)
);
