-- Answers of the HTTP API to requests that carried an Idempotency-Key, so that a repeat gets the first answer, whichever
-- sidecar it reaches. Not intent: no revision, and proxies never see it.
CREATE TABLE catalog.idempotency (
    -- The id of the API key that asked: two callers never meet in one key.
    caller text NOT NULL CHECK (octet_length(caller) BETWEEN 1 AND 100),
    -- SHA-256 of the header's value, and of what was asked (method, path, workspace, body).
    key_digest bytea NOT NULL CHECK (octet_length(key_digest) = 32),
    request_digest bytea NOT NULL CHECK (octet_length(request_digest) = 32),
    -- Whoever works on it, and until when nobody else may take over: a sidecar that was killed comes back to nothing.
    claim bytea NOT NULL CHECK (octet_length(claim) = 16),
    claimed_until timestamptz NOT NULL,
    -- The answer, once there is one.
    status smallint CHECK (status BETWEEN 200 AND 299),
    answer text,
    expires_at timestamptz NOT NULL,
    PRIMARY KEY (caller, key_digest),
    CHECK ((status IS NULL) = (answer IS NULL))
);
CREATE INDEX idempotency_expiry ON catalog.idempotency (expires_at);
