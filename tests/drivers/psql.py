"""psql: each check is one or a few invocations, as people and scripts make them. What psql has no word for is left to the
libraries."""

import os
import re
import subprocess

from tour import (DATABASE, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, OTHER_CA, PASSWORD, PEOPLE, PREFIX, STREAM, VALUES, WIDE, Tour,
                  rotate)

version = subprocess.run(["psql", "--version"], capture_output=True, text=True, check=True).stdout.strip()
tour = Tour("psql", version)


def psql(script, *arguments, stop=True, **environment):
    """Standard output; or, when psql fails, its error."""
    command = ["psql", "-X", "-q", "-At", "-v", "VERBOSITY=verbose", *(["-v", "ON_ERROR_STOP=1"] if stop else []), *arguments]
    done = subprocess.run(command, input=script, capture_output=True, text=True, env={**os.environ, **environment}, timeout=120)
    return done.stderr if done.returncode or not stop else done.stdout


def says(script, *wanted, **named):
    text = psql(script, **named)
    assert all(part in text for part in wanted), text


@tour.check
def connect():
    says("\\conninfo\nSELECT 1", "SSL connection (protocol: TLSv1.3", f'database "{DATABASE}"', "\n1\n")


@tour.check
def channel_binding():
    says("SELECT 1", "1", PGCHANNELBINDING="require")


@tour.check
def wrong_authority():
    says("SELECT 1", "certificate verify failed", PGSSLROOTCERT=OTHER_CA)


@tour.check
def no_tls():
    says("SELECT 1", "encrypted connections only", "sslmode=require", PGSSLMODE="disable")


@tour.check
def wrong_password():
    says("SELECT 1", "password authentication failed", PGPASSWORD="wrong")


@tour.check
def unknown_database():
    says("SELECT 1", 'database "postgres" does not exist', PGDATABASE="postgres")


@tour.check
def startup_options():
    says("SHOW timezone; SHOW statement_timeout; SHOW application_name", "Asia/Tokyo\n61s\ntour\n",
         PGOPTIONS="-c timezone=Asia/Tokyo -c statement_timeout=61s", PGAPPNAME="tour", PGTZ="Asia/Tokyo")


@tour.check
def types():
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    text = [value for kind, value in VALUES if kind == "text"][0]
    says(f"CREATE TABLE {PREFIX}_types (id int, {columns});\n"
         f"\\set value `printf '%s' \"$VALUE\"`\n"
         f"INSERT INTO {PREFIX}_types (id, c8) VALUES (1, :'value');\n"
         f"SELECT c8 = :'value', length(c8), c0 IS NULL FROM {PREFIX}_types;\nSELECT * FROM {PREFIX}_types \\gx\n",
         f"t|{len(text)}|t\n", "東京", VALUE=text)


@tour.check
def wide_rows():
    assert len(psql(WIDE)) > 5_000_000


@tour.check
def large_result():
    assert len(psql(STREAM, "-v", "FETCH_COUNT=500")) > 20_000_000


@tour.check
def prepared():
    says("PREPARE p (int) AS SELECT $1 * 2;\nEXECUTE p(21);\nDEALLOCATE p;\nSELECT $1::int + 1 \\bind 1 \\g\n"
         if major() >= 16 else "PREPARE p (int) AS SELECT $1 * 2;\nEXECUTE p(21);\nDEALLOCATE p;\n", "42\n")


def major():
    return int(re.search(r"(\d+)", version)[1])


@tour.check
def prepared_redefined():
    table = f"{PREFIX}_redefined"
    says(f"CREATE TABLE {table} AS SELECT 1 AS a;\nPREPARE p AS SELECT * FROM {table};\nEXECUTE p;\n"
         f"ALTER TABLE {table} ADD COLUMN b int;\nEXECUTE p;\n", "0A000", "cached plan must not change result type")


@tour.check
def batch():
    # Statements of one Query; psql sends them so with \; between them.
    says("BEGIN\\; SELECT 41 + 1\\; COMMIT;\n", "42")


@tour.check
def insert_many():
    table = f"{PREFIX}_keys"
    says(f"CREATE TABLE {table} (id bigserial PRIMARY KEY, body text);\n"
         f"INSERT INTO {table} (body) VALUES ('a'), ('b'), (NULL) RETURNING id;\n", "1\n2\n3\n")


@tour.check
def empty():
    says(";\n-- nothing\n/* nothing */;\nSELECT 1;\n", "1\n")


@tour.check
def notice():
    says(f"DROP TABLE IF EXISTS {PREFIX}_nothing;", "NOTICE:  00000", "does not exist", stop=False)


@tour.check
def refusal():
    says(f"{FOREIGN_WRITE};", f"ERROR:  42501: {FOREIGN_WRITE_MESSAGE}\nLINE 1: {FOREIGN_WRITE}", "DETAIL:  Rule target.", "HINT:  ")
    assert psql(f"{FOREIGN_WRITE};\nSELECT 1\\g /dev/stderr\n", stop=False).endswith("1\n")


@tour.check
def server_error():
    table = f"{PREFIX}_unique"
    says(f"CREATE TABLE {table} (id int CONSTRAINT one_of_a_kind UNIQUE);\nINSERT INTO {table} VALUES (1), (1);\n",
         "ERROR:  23505", "CONSTRAINT NAME:  one_of_a_kind")


@tour.check
def listen():
    says("LISTEN a;", "ERROR:  42501", "Poll a table")


@tour.check
def transaction():
    table = f"{PREFIX}_transaction"
    says(f"CREATE TABLE {table} (id int);\nBEGIN ISOLATION LEVEL SERIALIZABLE;\nINSERT INTO {table} VALUES (1);\nCOMMIT;\n"
         f"BEGIN;\nINSERT INTO {table} VALUES (2);\nROLLBACK;\nSELECT sum(id) FROM {table};\n", "1\n")
    says(f"BEGIN READ ONLY;\nINSERT INTO {table} VALUES (3);\n", "25006")


@tour.check
def refused_in_transaction():
    script = f"BEGIN;\nINSERT INTO {PREFIX}_transaction VALUES (9);\n{FOREIGN_WRITE};\nSELECT 1;\n"
    says(f"{script}COMMIT;\nSELECT 'sum', sum(id) FROM {PREFIX}_transaction \\g /dev/stderr\n", "42501", "25P02", "sum|1\n", stop=False)


@tour.check
def refused_in_savepoint():
    # What psql does by itself in this mode.
    says(f"\\set ON_ERROR_ROLLBACK on\nBEGIN;\n{FOREIGN_WRITE};\nINSERT INTO {PREFIX}_transaction VALUES (3);\nCOMMIT;\n"
         f"SELECT 'sum', sum(id) FROM {PREFIX}_transaction \\g /dev/stderr\n", "42501", "sum|4\n", stop=False)


@tour.check
def refused_in_batch():
    says(f"BEGIN\\; {FOREIGN_WRITE}\\; COMMIT;\nROLLBACK;\nSELECT 'on' \\g /dev/stderr\n", "42501", "on\n", stop=False)


@tour.check
def copy_in():
    lines = "".join(f"{i}\t東京\n" for i in range(20_000))
    says(f"CREATE TABLE {PREFIX}_copy (id int, body text);\n\\copy {PREFIX}_copy FROM STDIN\n{lines}\\.\n"
         f"SELECT count(*) FROM {PREFIX}_copy;\n", "20000\n")


@tour.check
def copy_out():
    assert psql(f"\\copy (SELECT * FROM {PREFIX}_copy) TO STDOUT (FORMAT csv)").count("\n") == 20_000
    assert psql(f"COPY {PREFIX}_copy TO STDOUT;").count("東京\n") == 20_000


@tour.check
def copy_broken():
    says(f"COPY {PREFIX}_copy FROM STDIN;\nno number\tx\n\\.\nSELECT count(*) FROM {PREFIX}_copy \\g /dev/stderr\n",
         "22P02", "20000\n", stop=False)
    # A server's file, or a program's output, is nobody's to read.
    says(f"COPY {PREFIX}_copy FROM '/etc/passwd';", "ERROR:  42501")


@tour.check
def cancel():
    # psql sends a CancelRequest when it is interrupted.
    running = subprocess.Popen(["psql", "-X", "-v", "VERBOSITY=verbose"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    running.stdin.write("\\echo begun\n" + LONG + ";\nSELECT 6 * 7;\n")
    running.stdin.flush()
    assert running.stdout.readline() == "begun\n"
    try:
        running.communicate(timeout=0.5)
    except subprocess.TimeoutExpired:
        running.send_signal(2)
    out, error = running.communicate(timeout=30)
    assert "57014" in error, error


@tour.check
def timeout():
    says(f"SET statement_timeout = 300;\n{LONG};", "ERROR:  57014")


@tour.check
def settings():
    says("SET timezone = 'Asia/Tokyo';\nBEGIN;\nSET LOCAL timezone = 'America/Lima';\nSHOW timezone;\nCOMMIT;\nSHOW timezone;\n"
         "RESET timezone;\nSET client_min_messages = warning;\nSHOW client_min_messages;\n", "America/Lima\nAsia/Tokyo\nwarning\n")


@tour.check
def introspection():
    for command, wanted in [
        ("\\d", ""), ("\\dt *.*", "person_enrichments"), ("\\dn+", "dl_resolved"), ("\\df", ""), ("\\l", "ws_"), ("\\du", "ws_"),
        ("\\dv dl_resolved.*", "companies"), ("\\d dl_resolved.people", "person_id"), (f"\\d+ {PREFIX}_keys", f"{PREFIX}_keys_id_seq"),
        ("\\di storage.*", f"{PREFIX[8:]}_keys_pkey"), ("\\dp dl_resolved.*", "people"), ("\\dT+ pg_catalog.int*", "int4range"),
        ("\\dx", "plpgsql"), ("\\sf now", "FUNCTION"), ("\\sv dl_resolved.people", "security_barrier"), ("\\da", ""), ("\\do", ""),
    ]:
        text = psql(command)
        # An older psql asks newer servers for columns that are gone; it would without us.
        assert "ERROR" not in text and wanted in text or "ERROR:  42703" in text, f"{command}: {text}"


tour.not_applicable("psql has no pool", "pool")


@tour.check
def rotation():
    running = subprocess.Popen(["psql", "-X", "-q", "-At"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    running.stdin.write("SELECT 'begun';\n")
    running.stdin.flush()
    assert running.stdout.readline() == "begun\n"
    password = rotate()
    says("SELECT 1", "1\n", PGPASSWORD=password)
    says("SELECT 1", "password authentication failed", PGPASSWORD=PASSWORD)
    out, _ = running.communicate("SELECT count(*) FROM dl_resolved.people;\n", timeout=30)
    assert out == f"{PEOPLE}\n", out


tour.run()
