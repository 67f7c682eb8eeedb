-- What the corpora's texts name, in the role's own schema (:schema stands for it), made by the backend role itself.
CREATE TABLE :schema.t (k int UNIQUE, v text, client text, arr int[], x int);
CREATE TABLE :schema.u (k int PRIMARY KEY, v text);
CREATE TABLE :schema.a (a int, b text);
CREATE TABLE :schema.b (a int, b text);
CREATE TABLE :schema.notes (id int, body text, created_at timestamptz DEFAULT now());
CREATE INDEX i ON :schema.notes (body);
CREATE TABLE :schema.j (v jsonb);
CREATE TABLE :schema.base (k int, v text, client text, arr int[], x int);
CREATE TABLE :schema.p (d date NOT NULL, v int) PARTITION BY RANGE (d);
CREATE TABLE :schema.p1 (d date NOT NULL, v int);
CREATE SEQUENCE :schema.s;
INSERT INTO :schema.t VALUES (1, 'one', 'c', '{1,2}', 1), (2, 'two', 'c', '{3}', 2);
INSERT INTO :schema.u VALUES (1, 'one'), (3, 'three');
INSERT INTO :schema.a VALUES (1, 'x');
INSERT INTO :schema.notes (id, body) VALUES (1, 'a note');
INSERT INTO :schema.j VALUES ('{"a": [1, 2], "b": null}');
