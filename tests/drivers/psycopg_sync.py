"""psycopg 3 through the gate, synchronously."""

import threading

import psycopg
from psycopg import errors
from psycopg.rows import dict_row

from common import FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LARGE, LONG, PEOPLE, URI, Report

CHECKS = []


def check(function):
    CHECKS.append(function)
    return function


@check
def connects_with_channel_binding(_):
    with psycopg.connect(URI, channel_binding="require") as conn:
        assert conn.pgconn.ssl_in_use
        assert conn.execute("SELECT 1").fetchone() == (1,)


@check
def parameterised_query(conn):
    row = conn.execute("SELECT person_id FROM dl_resolved.people WHERE id = %s", (7,)).fetchone()
    assert row == ("pe_000007",), row
    binary = conn.execute("SELECT score, salary, active, skills FROM dl_resolved.people WHERE id = %s", (2,), binary=True)
    assert len(binary.fetchone()) == 4


@check
def prepared_many_times(conn):
    for i in range(1, 30):
        row = conn.execute("SELECT full_name FROM dl_resolved.people WHERE id = %s", (i,), prepare=True).fetchone()
        assert row and row[0]


@check
def introspection(conn):
    with conn.cursor(row_factory=dict_row) as cur:
        cur.execute("SELECT table_schema, table_name FROM information_schema.tables WHERE table_schema = 'dl_resolved'")
        assert {row["table_name"] for row in cur} == {"people", "companies"}
        cur.execute(
            "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a"
            " WHERE a.attrelid = 'dl_resolved.people'::pg_catalog.regclass AND a.attnum > 0 ORDER BY a.attnum"
        )
        assert len(cur.fetchall()) == 14


@check
def writes_to_storage(conn):
    conn.execute("CREATE TABLE storage.psycopg (id int PRIMARY KEY, body text)")
    row = conn.execute("INSERT INTO storage.psycopg VALUES (%s, %s) RETURNING body", (1, "Zoë")).fetchone()
    assert row == ("Zoë",)
    with conn.cursor() as cur:
        cur.executemany("INSERT INTO storage.psycopg VALUES (%s, %s)", [(i, f"n{i}") for i in range(2, 200)])
        assert cur.rowcount == 198
    conn.commit()
    assert conn.execute("SELECT count(*) FROM storage.psycopg").fetchone() == (199,)


@check
def refusal_in_a_transaction(conn):
    try:
        with conn.transaction():
            conn.execute("INSERT INTO storage.psycopg VALUES (1000, 'lost')")
            conn.execute(FOREIGN_WRITE)
        raise AssertionError("not refused")
    except errors.InsufficientPrivilege as error:
        assert error.diag.message_primary == FOREIGN_WRITE_MESSAGE, error.diag.message_primary
        assert error.diag.message_hint and error.diag.message_detail
    assert conn.execute("SELECT count(*) FROM storage.psycopg WHERE id = 1000").fetchone() == (0,)


@check
def refusal_back_to_a_savepoint(conn):
    with conn.transaction():
        conn.execute("INSERT INTO storage.psycopg VALUES (1001, 'kept')")
        try:
            with conn.transaction():
                conn.execute("CREATE TABLE unqualified (id int)")
        except errors.InsufficientPrivilege:
            pass
        conn.execute("INSERT INTO storage.psycopg VALUES (1002, 'kept')")
    assert conn.execute("SELECT count(*) FROM storage.psycopg WHERE id > 1000").fetchone() == (2,)


@check
def pipeline_with_an_error(conn):
    with conn.pipeline():
        first = conn.execute("SELECT 1")
        second = conn.execute("SELECT 2")
    assert (first.fetchone(), second.fetchone()) == ((1,), (2,))
    for statement, kind in [("SELECT 1/0", errors.DivisionByZero), (FOREIGN_WRITE, errors.InsufficientPrivilege)]:
        try:
            with conn.pipeline():
                conn.execute("SELECT 1")
                conn.execute(statement)
                conn.execute("SELECT 3")
            raise AssertionError("no error")
        except kind:
            conn.rollback()
    assert conn.execute("SELECT 4").fetchone() == (4,)


@check
def server_side_cursors(conn):
    with conn.cursor(name="people") as cur:
        cur.execute("SELECT id FROM dl_resolved.people ORDER BY id")
        assert len(cur.fetchmany(100)) == 100
        assert len(cur.fetchall()) == PEOPLE - 100
    conn.commit()
    # Holdable: it outlives the transaction, and pins the session.
    held = conn.cursor(name="held", withhold=True)
    held.execute("SELECT id FROM dl_resolved.companies ORDER BY id")
    conn.commit()
    assert len(held.fetchall()) == 600
    held.close()


@check
def cancel(conn):
    timer = threading.Timer(0.5, conn.cancel)
    timer.start()
    try:
        conn.execute(LONG)
        raise AssertionError("not cancelled")
    except errors.QueryCanceled:
        conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


@check
def cancel_safe(conn):
    timer = threading.Timer(0.5, conn.cancel_safe)
    timer.start()
    try:
        conn.execute(LONG)
        raise AssertionError("not cancelled")
    except errors.QueryCanceled:
        conn.rollback()
    assert conn.execute("SELECT 1").fetchone() == (1,)


@check
def copy_both_ways(conn):
    conn.execute("CREATE TABLE storage.psycopg_copy (id int, body text)")
    with conn.cursor() as cur:
        with cur.copy("COPY storage.psycopg_copy FROM STDIN") as copy:
            for i in range(20000):
                copy.write_row((i, f"row {i} Ünïcødé"))
        with cur.copy("COPY storage.psycopg_copy (id, body) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text"])
            copy.write_row((20000, "binary"))
        with cur.copy("COPY (SELECT id, body FROM storage.psycopg_copy ORDER BY id) TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 20001
    conn.commit()
    # An error in the middle of a COPY leaves the session usable.
    try:
        with conn.cursor() as cur, cur.copy("COPY storage.psycopg_copy FROM STDIN") as copy:
            copy.write("not a number\tx\n")
        raise AssertionError("no error")
    except errors.InvalidTextRepresentation:
        conn.rollback()
    assert conn.execute("SELECT count(*) FROM storage.psycopg_copy").fetchone() == (20001,)


@check
def large_result(conn):
    size = sum(len(row[1]) for row in conn.execute(LARGE))
    assert size == 50_000_000, size


@check
def settings_on_connect(_):
    with psycopg.connect(URI, options="-c statement_timeout=61s -c timezone=Asia/Tokyo", application_name="ψ") as conn:
        assert conn.execute("SHOW timezone").fetchone() == ("Asia/Tokyo",)
        assert conn.execute("SHOW statement_timeout").fetchone() == ("61s",)


report = Report()
with psycopg.connect(URI) as shared:
    for function in CHECKS:
        try:
            function(shared)
            shared.rollback()
            report.ok(function.__name__)
        except Exception:  # noqa: BLE001 – every failure is reported, and the next check goes on
            report.bad(function.__name__)
            shared.rollback()
report.end()
