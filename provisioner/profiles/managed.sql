-- The managed schemas (D18), the same for every profile of customer data access.
--
-- Runs as the workspace's NOLOGIN owner role inside the workspace's database, in one transaction, as often as it takes:
-- every statement may run again on a database where it already ran. Grants are not made here: they are compiled from
-- the profile's policy document.

-- Closed to everybody, but tools expect it to be there.
CREATE SCHEMA IF NOT EXISTS public;

CREATE SCHEMA IF NOT EXISTS dl_cache;
CREATE SCHEMA IF NOT EXISTS dl_override;
CREATE SCHEMA IF NOT EXISTS dl_resolved;
CREATE SCHEMA IF NOT EXISTS dl_meta;

CREATE TABLE IF NOT EXISTS dl_meta.schema_migrations (
    version    text PRIMARY KEY,
    applied_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS dl_meta.tenant_settings (
    key   text PRIMARY KEY,
    value text NOT NULL
);

CREATE TABLE IF NOT EXISTS dl_cache.person_enrichments (
    id             bigserial PRIMARY KEY,
    person_id      text NOT NULL UNIQUE,
    email          text,
    full_name      text NOT NULL,
    title          text,
    company_domain text,
    location       text,
    skills         text[] NOT NULL,
    attrs          jsonb NOT NULL,
    score          numeric(6,3),
    salary         int4range,
    active         daterange,
    linkedin_xml   xml,
    opted_out      boolean NOT NULL DEFAULT false,
    updated_at     timestamptz NOT NULL DEFAULT now(),
    tsv            tsvector GENERATED ALWAYS AS
                   (to_tsvector('pg_catalog.simple', full_name || ' ' || coalesce(title, ''))) STORED
);
CREATE INDEX IF NOT EXISTS person_enrichments_company_domain_idx ON dl_cache.person_enrichments (company_domain);
CREATE INDEX IF NOT EXISTS person_enrichments_tsv_idx ON dl_cache.person_enrichments USING gin (tsv);

CREATE TABLE IF NOT EXISTS dl_cache.company_enrichments (
    id                bigserial PRIMARY KEY,
    company_id        text NOT NULL UNIQUE,
    domain            text NOT NULL UNIQUE,
    name              text NOT NULL,
    industry          text,
    employees         int,
    revenue           numeric(18,2),
    founded           date,
    hq                text,
    tech              jsonb NOT NULL,
    tags              text[] NOT NULL,
    parent_company_id text,
    updated_at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS dl_override.person_overrides (
    person_id  text PRIMARY KEY,
    full_name  text,
    title      text,
    email      text,
    attrs      jsonb,
    note       text,
    updated_by text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE IF NOT EXISTS dl_override.company_overrides (
    company_id text PRIMARY KEY,
    name       text,
    industry   text,
    employees  int,
    attrs      jsonb,
    note       text,
    updated_by text,
    updated_at timestamptz NOT NULL DEFAULT now()
);

-- D10: an override wins over the cache, column by column; its keys win over the cache's keys in attrs. Somebody who
-- opted out is in no answer. security_barrier: no condition of a customer is tried on a row that the view hides.
-- The views read the tables with their owner's rights, so a reader needs none on dl_cache and dl_override (D20).
CREATE OR REPLACE VIEW dl_resolved.people WITH (security_barrier = true) AS
SELECT c.id,
       c.person_id,
       coalesce(o.email, c.email)         AS email,
       coalesce(o.full_name, c.full_name) AS full_name,
       coalesce(o.title, c.title)         AS title,
       c.company_domain,
       c.location,
       c.skills,
       CASE WHEN jsonb_typeof(o.attrs) = 'object' THEN c.attrs || o.attrs ELSE c.attrs END AS attrs,
       c.score,
       c.salary,
       c.active,
       CASE WHEN o.full_name IS NULL AND o.title IS NULL THEN c.tsv
            ELSE to_tsvector('pg_catalog.simple', coalesce(o.full_name, c.full_name) || ' '
                                                  || coalesce(o.title, c.title, ''))
       END AS tsv,
       greatest(c.updated_at, o.updated_at) AS updated_at
  FROM dl_cache.person_enrichments c
  LEFT JOIN dl_override.person_overrides o ON o.person_id = c.person_id
 WHERE NOT c.opted_out;

CREATE OR REPLACE VIEW dl_resolved.companies WITH (security_barrier = true) AS
SELECT c.id,
       c.company_id,
       c.domain,
       coalesce(o.name, c.name)           AS name,
       coalesce(o.industry, c.industry)   AS industry,
       coalesce(o.employees, c.employees) AS employees,
       c.revenue,
       c.founded,
       c.hq,
       c.tech,
       c.tags,
       c.parent_company_id,
       greatest(c.updated_at, o.updated_at) AS updated_at
  FROM dl_cache.company_enrichments c
  LEFT JOIN dl_override.company_overrides o ON o.company_id = c.company_id;

INSERT INTO dl_meta.schema_migrations (version) VALUES ('0001_managed_schemas') ON CONFLICT (version) DO NOTHING;
