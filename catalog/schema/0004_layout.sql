-- What a workspace's database looked like when it was last laid out: fingerprints, by which the reconciler sees what was
-- altered by hand since. An observation of the provisioner's own, not intent: proxies never see it, and losing it costs
-- one more round of laying out.
CREATE TABLE catalog.layout (
    workspace_id text PRIMARY KEY REFERENCES catalog.workspace ON DELETE CASCADE,
    -- In the provisioner's own format.
    record text NOT NULL,
    recorded_at timestamptz NOT NULL DEFAULT now()
);
