#!/bin/bash
# Run once by the postgres image when it makes its cluster: the catalog's database and its two roles.
# The passwords are read by psql itself, so that they are on no command line.
set -euo pipefail
psql --no-psqlrc --set ON_ERROR_STOP=1 --username postgres --dbname postgres --quiet <<'SQL'
\set provisioner_password `cat /run/secrets/provisioner_catalog_password`
\set proxy_password `cat /run/secrets/proxy_catalog_password`
\i /bootstrap.sql
SQL
