"""psycopg 3, synchronously: once with the libpq that its package brings, once with the system's (PSYCOPG_IMPL)."""

import psycopg
import psycopg_pool
from psycopg import errors
from psycopg.rows import dict_row
from psycopg.types.json import Json, Jsonb

from tour import (FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, OTHER_CA, PASSWORD, PEOPLE, PREFIX, STREAM, VALUES, WIDE, Tour,
                  later, raises, rotate)

libpq = psycopg.pq.version()
tour = Tour("psycopg", f"{psycopg.__version__} ({psycopg.pq.__impl__}), libpq {libpq // 10000}.{libpq % 10000}")


def connect(autocommit=True, **parameters):
    return psycopg.connect("", autocommit=autocommit, **parameters)


@tour.check
def connect_():
    newest = {"max_protocol_version": "latest"} if libpq >= 180000 else {}
    with connect(**newest) as conn:
        assert conn.pgconn.ssl_in_use
        assert conn.info.server_version >= 140000
        assert conn.info.encoding == "utf-8" and conn.info.parameter_status("standard_conforming_strings") == "on"
        assert conn.execute("SELECT 1").fetchone() == (1,)
        if newest:
            assert psycopg.pq.version() >= 180000 and conn.info.full_protocol_version == 30002, conn.info.full_protocol_version
    if libpq >= 170000:
        with connect(sslnegotiation="direct") as conn:
            assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def channel_binding():
    with connect(channel_binding="require") as conn:
        assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def wrong_authority():
    error = raises(psycopg.OperationalError, connect, sslrootcert=OTHER_CA)
    assert "certificate verify failed" in str(error), error


@tour.check
def no_tls():
    error = raises(psycopg.OperationalError, connect, sslmode="disable")
    assert "encrypted connections only" in str(error), error


@tour.check
def wrong_password():
    error = raises(psycopg.OperationalError, connect, password="wrong")
    assert "password authentication failed" in str(error), error


@tour.check
def unknown_database():
    error = raises(psycopg.OperationalError, connect, dbname="postgres")
    assert "does not exist" in str(error), error


@tour.check
def startup_options():
    options = "-c statement_timeout=61s -c timezone=Asia/Tokyo -c DateStyle=German"
    conns = [connect(options=options, application_name="tour") for _ in range(3)]
    for _ in range(4):
        for conn in conns:
            with conn.transaction():
                shown = [conn.execute(f"SHOW {name}").fetchone()[0] for name in ["timezone", "statement_timeout", "DateStyle"]]
                assert shown == ["Asia/Tokyo", "61s", "German, DMY"], shown
                assert conns[0].execute("SHOW application_name").fetchone() == ("tour",)
    for conn in conns:
        conn.close()


def adapted(kind, value):
    return {"json": Json, "jsonb": Jsonb}.get(kind, lambda same: same)(value)


@tour.check
def types(conn):
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    conn.execute(f"CREATE TABLE {PREFIX}_types (id int PRIMARY KEY, {columns})")
    for mark in ["%s", "%b", "%t"]:
        marks = ", ".join([mark] * len(VALUES))
        conn.execute(f"TRUNCATE {PREFIX}_types")
        insert = f"INSERT INTO {PREFIX}_types VALUES (%s, {marks})"
        conn.execute(insert, [1, *(adapted(*pair) for pair in VALUES)])
        conn.execute(insert, [2] + [None] * len(VALUES))
        for binary in [False, True]:
            rows = conn.execute(f"SELECT * FROM {PREFIX}_types ORDER BY id", binary=binary).fetchall()
            assert list(rows[0][1:]) == [value for _, value in VALUES], rows[0]
            assert list(rows[1][1:]) == [None] * len(VALUES)
    row = conn.execute("SELECT score, salary, active, skills FROM dl_resolved.people WHERE id = %s", (2,), binary=True)
    assert len(row.fetchone()) == 4


@tour.check
def wide_rows(conn):
    assert sum(len(row[1]) for row in conn.execute(WIDE)) == 5_000_000


@tour.check
def large_result(conn):
    with conn.transaction(), conn.cursor(name="stream") as cur:
        cur.execute(STREAM)
        assert len(cur.fetchmany(100)) == 100
        assert sum(len(row[1]) for row in cur) == 19_900_000
    assert sum(len(row[1]) for row in conn.cursor().stream(STREAM)) == 20_000_000
    # Holdable: it outlives its transaction, and pins the session.
    with conn.transaction():
        held = conn.cursor(name="held", withhold=True)
        held.execute("SELECT id FROM dl_resolved.companies ORDER BY id")
    assert len(held.fetchall()) == 600
    held.close()
    scrolled = conn.cursor(name="scrolled", scrollable=True, withhold=True)
    scrolled.execute("SELECT i FROM generate_series(1, 10) AS i")
    assert len(scrolled.fetchall()) == 10
    scrolled.scroll(0, mode="absolute")
    assert scrolled.fetchone() == (1,)
    scrolled.close()


@tour.check
def prepared():
    conns = [connect() for _ in range(4)]
    text = "SELECT person_id FROM dl_resolved.people WHERE id = %s"
    for i in range(1, 16):
        with conns[i % 4].transaction():
            for conn in conns:
                assert conn.execute(text, (i,)).fetchone() == (f"pe_{i:06}",)
                assert conn.execute("SELECT %s::int + 1", (i,), prepare=True).fetchone() == (i + 1,)
    # More than the driver keeps: it deallocates the oldest, on whatever connection it then has.
    conns[0].prepared_max = 5
    for i in range(30):
        assert conns[0].execute(f"SELECT %s::int + {i}", (i,), prepare=True).fetchone() == (2 * i,)
    for conn in conns:
        conn.close()


@tour.check
def prepared_redefined(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    for _ in range(3):
        assert conn.execute(f"SELECT * FROM {PREFIX}_redefined", prepare=True).fetchone() == (1,)
    with connect() as other:
        other.execute(f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    # PostgreSQL refuses what it has planned otherwise, unless the gate can make it anew.
    try:
        conn.execute(f"SELECT * FROM {PREFIX}_redefined", prepare=True)
    except errors.FeatureNotSupported:
        pass
    for _ in range(3):
        assert conn.execute(f"SELECT * FROM {PREFIX}_redefined", prepare=True).fetchone() == (1, None)


@tour.check
def batch(conn):
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int", (i,)) for i in range(200)]
    assert [cur.fetchone() for cur in cursors] == [(i,) for i in range(200)]
    conn.execute(f"CREATE TABLE {PREFIX}_batch (id int, body text)")
    with conn.cursor() as cur:
        cur.executemany(f"INSERT INTO {PREFIX}_batch VALUES (%s, %s)", [(i, f"n{i}") for i in range(500)])
        assert cur.rowcount == 500


@tour.check
def insert_many(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_keys (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
    rows = conn.execute(f"INSERT INTO {PREFIX}_keys (body) VALUES (%s), (%s), (%s) RETURNING id", ("a", "b", None)).fetchall()
    assert rows == [(1,), (2,), (3,)]
    with conn.cursor() as cur:
        cur.executemany(f"INSERT INTO {PREFIX}_keys (body) VALUES (%s) RETURNING id", [("d",), ("e",)], returning=True)
        assert [cur.fetchone() for _ in cur.results()] == [(4,), (5,)]


@tour.check
def empty(conn):
    for text in ["", "  ", "-- nothing", "/* nothing */;", ";"]:
        assert conn.execute(text).description is None, text
    assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def notice(conn):
    notices = []
    conn.add_notice_handler(lambda diag: notices.append((diag.severity, diag.sqlstate)))
    conn.execute(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert notices == [("NOTICE", "00000")], notices


@tour.check
def refusal(conn):
    for arguments in [(FOREIGN_WRITE,), (FOREIGN_WRITE + " WHERE person_id = %s", ("x",))]:
        error = raises(errors.InsufficientPrivilege, conn.execute, *arguments)
        assert error.diag.sqlstate == "42501" and error.diag.message_primary == FOREIGN_WRITE_MESSAGE
        assert "Rule target." in error.diag.message_detail and "storage" in error.diag.message_hint
        assert error.diag.statement_position == "13"
    assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def server_error(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    conn.execute(f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = raises(errors.UniqueViolation, conn.execute, f"INSERT INTO {PREFIX}_unique VALUES (%s)", (1,))
    assert (error.diag.constraint_name, error.diag.schema_name) == ("one_of_a_kind", "storage")
    assert "already exists" in error.diag.message_detail
    assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def listen(conn):
    error = raises(errors.InsufficientPrivilege, conn.execute, "LISTEN a")
    assert "Poll a table" in error.diag.message_hint


@tour.check
def transaction(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_transaction (id int)")
    with conn.transaction():
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    with conn.transaction(force_rollback=True):
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2)")
    assert conn.execute(f"SELECT id FROM {PREFIX}_transaction").fetchall() == [(1,)]
    with connect(autocommit=False) as other:
        other.isolation_level, other.read_only, other.deferrable = psycopg.IsolationLevel.SERIALIZABLE, True, True
        assert other.execute("SHOW transaction_isolation").fetchone() == ("serializable",)
        raises(errors.ReadOnlySqlTransaction, other.execute, f"INSERT INTO {PREFIX}_transaction VALUES (3)")
        other.rollback()


@tour.check
def refused_in_transaction(conn):
    def both():
        with conn.transaction():
            conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1000)")
            raises(errors.InsufficientPrivilege, conn.execute, FOREIGN_WRITE)
            raises(errors.InFailedSqlTransaction, conn.execute, "SELECT 1")
            conn.execute("SELECT 1")

    raises(errors.InFailedSqlTransaction, both)
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_transaction WHERE id = 1000").fetchone() == (0,)


@tour.check
def refused_in_savepoint(conn):
    def refused():
        with conn.transaction():
            conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1001)")
            conn.execute("CREATE TABLE unqualified (id int)")

    with conn.transaction():
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1002)")
        raises(errors.InsufficientPrivilege, refused)
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1003)")
    rows = conn.execute(f"SELECT id FROM {PREFIX}_transaction WHERE id > 1000 ORDER BY id").fetchall()
    assert rows == [(1002,), (1003,)]


@tour.check
def refused_in_batch(conn):
    for statement, kind in [("SELECT 1/0", errors.DivisionByZero), (FOREIGN_WRITE, errors.InsufficientPrivilege)]:
        for flush in [False, True]:
            def batch():
                with conn.pipeline() as pipeline:
                    conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2000)")
                    conn.execute(statement)
                    if flush:
                        pipeline.sync()
                    conn.execute("SELECT 3")

            raises((kind, errors.PipelineAborted), batch)
            assert conn.execute("SELECT 4").fetchone() == (4,)
    # A Sync in between ends the implicit transaction: what was sent before the error's is gone with it.
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_transaction WHERE id = 2000").fetchone() == (0,)
    with conn.pipeline(), conn.transaction():
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2001)")
        cur = conn.execute("SELECT 5")
    assert cur.fetchone() == (5,)


@tour.check
def copy_in(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    with conn.cursor() as cur:
        with cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
            for i in range(19_999):
                copy.write_row((i, f"row {i} Ünïcødé"))
        with cur.copy(f"COPY {PREFIX}_copy (id, body) FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text"])
            copy.write_row((19_999, "binary"))
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_copy").fetchone() == (20_000,)


@tour.check
def copy_out(conn):
    with conn.cursor() as cur:
        with cur.copy(f"COPY (SELECT id, body FROM {PREFIX}_copy ORDER BY id) TO STDOUT") as copy:
            assert sum(1 for _ in copy.rows()) == 20_000
        with cur.copy(f"COPY {PREFIX}_copy TO STDOUT (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text"])
            assert sum(row[0] for row in copy.rows()) == 20_000 * 19_999 // 2


@tour.check
def copy_broken(conn):
    def wrong_row():
        with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
            copy.write("not a number\tx\n")

    def given_up():
        with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
            copy.write("1\tx\n")
            raise ZeroDivisionError

    def not_read():
        with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy TO STDOUT") as copy:
            copy.read()
            raise ZeroDivisionError  # psycopg cancels

    raises(errors.InvalidTextRepresentation, wrong_row)
    raises(ZeroDivisionError, given_up)
    raises(ZeroDivisionError, not_read)
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_copy").fetchone() == (20_000,)


@tour.check
def cancel(conn):
    for way in [conn.cancel, conn.cancel_safe]:
        timer = later(0.3, way)
        raises(errors.QueryCanceled, conn.execute, LONG)
        timer.join()
        assert conn.execute("SELECT 1").fetchone() == (1,)


@tour.check
def timeout(conn):
    conn.execute("SET statement_timeout = 300")
    raises(errors.QueryCanceled, conn.execute, LONG)
    conn.execute("RESET statement_timeout")


@tour.check
def settings():
    conns = [connect() for _ in range(3)]
    zones = ["Asia/Tokyo", "Europe/Paris", "UTC"]
    for conn, zone in zip(conns, zones):
        conn.execute(f"SET TIME ZONE '{zone}'")
    for i in range(9):
        with conns[i % 3].transaction():
            conns[i % 3].execute("SET LOCAL timezone = 'America/Lima'")
            for j in range(3):
                want = "America/Lima" if i % 3 == j else zones[j]
                assert conns[j].execute("SHOW timezone").fetchone() == (want,)
    conns[0].execute("RESET ALL")
    with connect() as fresh:
        assert conns[0].execute("SHOW timezone").fetchone() == fresh.execute("SHOW timezone").fetchone()
    for conn in conns:
        conn.close()


@tour.check
def introspection(conn):
    with conn.cursor(row_factory=dict_row) as cur:
        cur.execute("SELECT table_name FROM information_schema.tables WHERE table_schema = 'dl_resolved'")
        assert {row["table_name"] for row in cur} == {"people", "companies"}
        cur.execute(
            "SELECT a.attname, pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a"
            " WHERE a.attrelid = 'dl_resolved.people'::pg_catalog.regclass AND a.attnum > 0 ORDER BY a.attnum"
        )
        assert len(cur.fetchall()) == 14
    for kind in [psycopg.types.TypeInfo, psycopg.types.range.RangeInfo]:
        assert kind.fetch(conn, "int4range").oid == 3904
    assert psycopg.types.composite.CompositeInfo.fetch(conn, f"{PREFIX}_copy").field_names == ("id", "body")
    assert psycopg.types.TypeInfo.fetch(conn, "no_such_type") is None


@tour.check
def pool():
    with psycopg_pool.ConnectionPool("", min_size=2, max_size=6, kwargs={"autocommit": True},
                                     check=psycopg_pool.ConnectionPool.check_connection) as pool:
        pool.wait(20)
        for i in range(60):
            with pool.connection() as conn:
                assert conn.execute("SELECT %s::int + 1", (i,), prepare=True).fetchone() == (i + 1,)


@tour.check
def rotation(conn):
    password = rotate()
    with connect(password=password) as fresh:
        assert fresh.execute("SELECT 1").fetchone() == (1,)
    error = raises(psycopg.OperationalError, connect, password=PASSWORD)
    assert "password authentication failed" in str(error), error
    assert conn.execute("SELECT count(*) FROM dl_resolved.people").fetchone() == (PEOPLE,)


tour.run(connect, lambda conn: conn.rollback(), lambda conn: conn.close())
