-- Creates what the catalog needs on its PostgreSQL server (14 to 18): two roles and a database. Run it once, as a
-- superuser; running it again sets the passwords and changes nothing else.
--
--   psql -X -d postgres -v ON_ERROR_STOP=1 \
--        -v provisioner_password="$(cat provisioner.password)" -v proxy_password="$(cat proxy.password)" \
--        -f deploy/bootstrap.sql
--
-- Optional: -v database=… (default portcullis). Everything inside the database is made by the provisioner at its start,
-- which also grants portcullis_proxy the little that it may do.

\set ON_ERROR_STOP on
\if :{?database}
\else
  \set database portcullis
\endif
\if :{?provisioner_password}
\else
  \warn 'give -v provisioner_password=…'
  \quit 2
\endif
\if :{?proxy_password}
\else
  \warn 'give -v proxy_password=…'
  \quit 2
\endif

-- The statements below carry passwords: keep them out of the log, and the catalogs out of reach of weaker hashes.
SET log_statement = 'none';
SET log_min_error_statement = 'panic';
SET log_min_duration_statement = -1;
SET password_encryption = 'scram-sha-256';

SELECT 'CREATE ROLE portcullis_provisioner' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'portcullis_provisioner') \gexec
SELECT 'CREATE ROLE portcullis_proxy' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'portcullis_proxy') \gexec

ALTER ROLE portcullis_provisioner LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS
    PASSWORD :'provisioner_password';
ALTER ROLE portcullis_proxy LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS NOINHERIT
    PASSWORD :'proxy_password';

SELECT format('CREATE DATABASE %I OWNER portcullis_provisioner ENCODING ''UTF8'' TEMPLATE template0', :'database')
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = :'database') \gexec

REVOKE ALL ON DATABASE :"database" FROM PUBLIC;
GRANT CONNECT ON DATABASE :"database" TO portcullis_proxy;

\connect :"database"
REVOKE ALL ON SCHEMA public FROM PUBLIC;
