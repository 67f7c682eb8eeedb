-- Profile `storage` (D37): the one schema where customers and the agent's tool make tables of their own.
CREATE SCHEMA IF NOT EXISTS storage;

INSERT INTO dl_meta.schema_migrations (version) VALUES ('0002_storage') ON CONFLICT (version) DO NOTHING;
