-- A little of the platform's data, so that reading, changing and locking it is something. Run by a superuser.
INSERT INTO dl_cache.person_enrichments (person_id, full_name, skills, attrs)
SELECT 'p' || n, 'Person ' || n, '{}', '{}' FROM generate_series(1, 5) n;
INSERT INTO dl_cache.company_enrichments (company_id, domain, name, tech, tags)
SELECT 'c' || n, n || '.example', 'Company ' || n, '{}', '{}' FROM generate_series(1, 5) n;
INSERT INTO dl_override.person_overrides (person_id, title) VALUES ('p1', 'x');
INSERT INTO dl_override.company_overrides (company_id, name) VALUES ('c1', 'x');
INSERT INTO dl_meta.tenant_settings VALUES ('secret', 'value');
