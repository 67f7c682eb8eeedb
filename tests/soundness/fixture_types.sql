-- And where the role defines more than tables.
CREATE VIEW :schema.v AS SELECT k, v FROM :schema.t;
CREATE MATERIALIZED VIEW :schema.m AS SELECT k, v FROM :schema.t;
CREATE TYPE :schema.mood AS ENUM ('sad', 'ok');
CREATE TYPE :schema.e AS ENUM ('a');
CREATE TYPE :schema.pair AS (a int, b text);
CREATE TYPE :schema.r AS RANGE (SUBTYPE = float8);
CREATE DOMAIN :schema.d AS text;
CREATE TABLE :schema.users (id serial PRIMARY KEY, name text, email text);
CREATE TABLE :schema.orders (id int, user_id int);
