-- Profile `override` (D4, D11, D19): the schema for app-specific tables beside the overrides.
CREATE SCHEMA IF NOT EXISTS tenant_custom;

INSERT INTO dl_meta.schema_migrations (version) VALUES ('0002_tenant_custom') ON CONFLICT (version) DO NOTHING;
