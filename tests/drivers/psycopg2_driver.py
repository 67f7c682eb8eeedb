"""psycopg2: the simple protocol only, with its parameters written into the text by the client."""

import io

import psycopg2
import psycopg2.errors as errors
import psycopg2.extensions as extensions
import psycopg2.extras as extras
import psycopg2.pool

from tour import (FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, OTHER_CA, PASSWORD, PEOPLE, PREFIX, STREAM, VALUES, WIDE, Tour,
                  later, raises, rotate)

tour = Tour("psycopg2", f"{psycopg2.__version__.split()[0]}, libpq {psycopg2.__libpq_version__ // 10000}")
extras.register_uuid()


def connect(**parameters):
    conn = psycopg2.connect("", **parameters)
    conn.autocommit = True
    return conn


def rows(conn, *arguments):
    with conn.cursor() as cur:
        cur.execute(*arguments)
        return cur.fetchall() if cur.description else None


@tour.check
def connect_(conn):
    assert conn.info.ssl_in_use and conn.server_version >= 140000 and conn.encoding == "UTF8"
    assert rows(conn, "SELECT 1") == [(1,)]


@tour.check
def channel_binding():
    assert rows(connect(channel_binding="require"), "SELECT 1") == [(1,)]


@tour.check
def wrong_authority():
    assert "certificate verify failed" in str(raises(psycopg2.OperationalError, connect, sslrootcert=OTHER_CA))


@tour.check
def no_tls():
    assert "encrypted connections only" in str(raises(psycopg2.OperationalError, connect, sslmode="disable"))


@tour.check
def wrong_password():
    assert "password authentication failed" in str(raises(psycopg2.OperationalError, connect, password="wrong"))


@tour.check
def unknown_database():
    assert "does not exist" in str(raises(psycopg2.OperationalError, connect, dbname="postgres"))


@tour.check
def startup_options():
    conn = connect(options="-c statement_timeout=61s -c timezone=Asia/Tokyo")
    assert (rows(conn, "SHOW timezone"), rows(conn, "SHOW statement_timeout")) == ([("Asia/Tokyo",)], [("61s",)])
    conn.close()


@tour.check
def types(conn):
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    rows(conn, f"CREATE TABLE {PREFIX}_types (id int, {columns})")
    values = [extras.Json(value) if "json" in kind else value for kind, value in VALUES]
    insert = f"INSERT INTO {PREFIX}_types VALUES (%s, {', '.join(['%s'] * len(VALUES))})"
    rows(conn, insert, [1, *values])
    rows(conn, insert, [2] + [None] * len(VALUES))
    got = rows(conn, f"SELECT * FROM {PREFIX}_types ORDER BY id")
    assert [bytes(v) if isinstance(v, memoryview) else v for v in got[0][1:]] == [value for _, value in VALUES], got[0]
    assert list(got[1][1:]) == [None] * len(VALUES)


@tour.check
def wide_rows(conn):
    assert sum(len(row[1]) for row in rows(conn, WIDE)) == 5_000_000


@tour.check
def large_result(conn):
    conn.autocommit = False
    with conn, conn.cursor("stream") as cur:
        cur.itersize = 1000
        cur.execute(STREAM)
        assert sum(len(row[1]) for row in cur) == 20_000_000
    with conn, conn.cursor("scrolled", scrollable=True, withhold=True) as cur:
        cur.execute("SELECT i FROM generate_series(1, 10) AS i")
        conn.commit()
        assert len(cur.fetchall()) == 10
        cur.scroll(0, mode="absolute")
        assert cur.fetchone() == (1,)
    conn.autocommit = True


@tour.check
def prepared():
    conns = [connect() for _ in range(3)]
    # psycopg2 has no statements of the protocol: SQL's PREPARE is what its users write.
    for i, conn in enumerate(conns):
        rows(conn, f"PREPARE mine (int) AS SELECT $1 * {i + 1}")
    for round in range(10):
        for i, conn in enumerate(conns):
            assert rows(conn, "EXECUTE mine (%s)", (round,)) == [(round * (i + 1),)]
    rows(conns[0], "DEALLOCATE mine")
    raises(errors.InvalidSqlStatementName, rows, conns[0], "EXECUTE mine (1)")
    assert rows(conns[1], "EXECUTE mine (1)") == [(2,)]
    for conn in conns:
        conn.close()


@tour.check
def prepared_redefined(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    rows(conn, f"PREPARE redefined AS SELECT * FROM {PREFIX}_redefined")
    rows(conn, "EXECUTE redefined")
    rows(connect(), f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    raises(errors.FeatureNotSupported, rows, conn, "EXECUTE redefined")
    rows(conn, "DEALLOCATE redefined")
    rows(conn, f"PREPARE redefined AS SELECT * FROM {PREFIX}_redefined")
    assert rows(conn, "EXECUTE redefined") == [(1, None)]


@tour.check
def batch(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_batch (id int, body text)")
    with conn.cursor() as cur:
        cur.executemany(f"INSERT INTO {PREFIX}_batch VALUES (%s, %s)", [(i, "x") for i in range(100)])
        extras.execute_values(cur, f"INSERT INTO {PREFIX}_batch VALUES %s", [(i, "y") for i in range(500)])
    assert rows(conn, f"SELECT count(*) FROM {PREFIX}_batch") == [(600,)]


@tour.check
def insert_many(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_keys (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
    with conn.cursor() as cur:
        insert = f"INSERT INTO {PREFIX}_keys (body) VALUES %s RETURNING id"
        assert extras.execute_values(cur, insert, [("a",), ("b",), (None,)], fetch=True) == [(1,), (2,), (3,)]


@tour.check
def empty(conn):
    # The driver makes an error of EmptyQueryResponse.
    for text in ["", "-- nothing", ";", "/* nothing */"]:
        assert "can't execute an empty query" in str(raises(psycopg2.ProgrammingError, rows, conn, text))
    assert rows(conn, "SELECT 1") == [(1,)]


@tour.check
def notice(conn):
    rows(conn, f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert "NOTICE" in conn.notices[-1] and "does not exist" in conn.notices[-1], conn.notices


@tour.check
def refusal(conn):
    error = raises(errors.InsufficientPrivilege, rows, conn, FOREIGN_WRITE + " WHERE person_id = %s", ("x",))
    assert error.pgcode == "42501" and error.diag.message_primary == FOREIGN_WRITE_MESSAGE
    assert "Rule target." in error.diag.message_detail and "storage" in error.diag.message_hint
    assert rows(conn, "SELECT 1") == [(1,)]


@tour.check
def server_error(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    rows(conn, f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = raises(errors.UniqueViolation, rows, conn, f"INSERT INTO {PREFIX}_unique VALUES (1)")
    assert error.diag.constraint_name == "one_of_a_kind"
    assert rows(conn, "SELECT 1") == [(1,)]


@tour.check
def listen(conn):
    error = raises(errors.InsufficientPrivilege, rows, conn, "LISTEN a")
    assert "Poll a table" in error.diag.message_hint


@tour.check
def transaction(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_transaction (id int)")
    conn.autocommit = False
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]:
        conn.set_session(isolation_level=level)
        assert rows(conn, "SHOW transaction_isolation") == [(level.lower(),)]
        conn.rollback()
    conn.set_session(isolation_level="READ COMMITTED", readonly=True)
    raises(errors.ReadOnlySqlTransaction, rows, conn, f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    conn.rollback()
    conn.set_session(isolation_level="DEFAULT", readonly="DEFAULT")
    rows(conn, f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    conn.rollback()
    rows(conn, f"INSERT INTO {PREFIX}_transaction VALUES (2)")
    conn.commit()
    assert rows(conn, f"SELECT id FROM {PREFIX}_transaction") == [(2,)]
    conn.rollback()
    conn.autocommit = True


@tour.check
def refused_in_transaction(conn):
    conn.autocommit = False
    rows(conn, f"INSERT INTO {PREFIX}_transaction VALUES (1000)")
    raises(errors.InsufficientPrivilege, rows, conn, FOREIGN_WRITE)
    raises(errors.InFailedSqlTransaction, rows, conn, "SELECT 1")
    conn.rollback()
    assert rows(conn, f"SELECT id FROM {PREFIX}_transaction") == [(2,)]
    conn.rollback()
    conn.autocommit = True


@tour.check
def refused_in_savepoint(conn):
    conn.autocommit = False
    rows(conn, "SAVEPOINT here")
    raises(errors.InsufficientPrivilege, rows, conn, "CREATE TABLE unqualified (id int)")
    rows(conn, "ROLLBACK TO SAVEPOINT here")
    rows(conn, f"INSERT INTO {PREFIX}_transaction VALUES (3)")
    rows(conn, "RELEASE SAVEPOINT here")
    conn.commit()
    conn.autocommit = True
    assert rows(conn, f"SELECT count(*) FROM {PREFIX}_transaction") == [(2,)]


@tour.check
def refused_in_batch(conn):
    # execute_batch joins statements with semicolons: several that work at once are one too many for this profile.
    with conn.cursor() as cur:
        error = raises(errors.InsufficientPrivilege, extras.execute_batch, cur, f"INSERT INTO {PREFIX}_batch VALUES (%s, 'z')",
                       [(1,), (2,)])
        assert "Send each statement by itself" in error.diag.message_hint, error
        raises(errors.InsufficientPrivilege, cur.execute, f"BEGIN; {FOREIGN_WRITE}; COMMIT")
        cur.execute("ROLLBACK")
    assert rows(conn, f"SELECT count(*) FROM {PREFIX}_batch WHERE body = 'z'") == [(0,)]


@tour.check
def copy_in(conn):
    rows(conn, f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    lines = io.StringIO("".join(f"{i}\t東京\n" for i in range(20_000)))
    with conn.cursor() as cur:
        cur.copy_expert(f"COPY {PREFIX}_copy FROM STDIN", lines)
        assert cur.rowcount == 20_000


@tour.check
def copy_out(conn):
    out = io.StringIO()
    with conn.cursor() as cur:
        cur.copy_expert(f"COPY (SELECT * FROM {PREFIX}_copy ORDER BY id) TO STDOUT (FORMAT csv)", out)
    assert out.getvalue().count("\n") == 20_000


@tour.check
def copy_broken(conn):
    class Broken:
        def read(self, size):
            raise ZeroDivisionError

    with conn.cursor() as cur:
        raises(errors.InvalidTextRepresentation, cur.copy_expert, f"COPY {PREFIX}_copy FROM STDIN", io.StringIO("x\ty\n"))
        raises((errors.QueryCanceled, ZeroDivisionError), cur.copy_expert, f"COPY {PREFIX}_copy FROM STDIN", Broken())
    assert rows(conn, f"SELECT count(*) FROM {PREFIX}_copy") == [(20_000,)]


@tour.check
def cancel(conn):
    timer = later(0.3, conn.cancel)
    raises(errors.QueryCanceled, rows, conn, LONG)
    timer.join()
    assert rows(conn, "SELECT 1") == [(1,)]


@tour.check
def timeout(conn):
    rows(conn, "SET statement_timeout = 300")
    raises(errors.QueryCanceled, rows, conn, LONG)
    rows(conn, "RESET statement_timeout")


@tour.check
def settings():
    conns = [connect() for _ in range(3)]
    for i, conn in enumerate(conns):
        rows(conn, "SET extra_float_digits = %s", (i,))
    for _ in range(5):
        assert [rows(conn, "SHOW extra_float_digits") for conn in conns] == [[("0",)], [("1",)], [("2",)]]
    conns[0].set_client_encoding("UTF8")
    conns[0].reset()
    assert rows(conns[0], "SHOW extra_float_digits") == [("1",)]


@tour.check
def introspection(conn):
    # register_composite and register_hstore read the catalog.
    assert extras.register_composite(f"{PREFIX}_copy", conn).attnames == ["id", "body"]
    extras.register_range("int4range", "Numbers", conn)
    raises(psycopg2.ProgrammingError, extras.register_hstore, conn)


@tour.check
def pool():
    pool = psycopg2.pool.ThreadedConnectionPool(1, 4, "")
    for i in range(40):
        conn = pool.getconn()
        assert rows(conn, "SELECT %s + 1", (i,)) == [(i + 1,)]
        pool.putconn(conn)
    pool.closeall()


@tour.check
def rotation(conn):
    password = rotate()
    assert rows(connect(password=password), "SELECT 1") == [(1,)]
    assert "password authentication failed" in str(raises(psycopg2.OperationalError, connect, password=PASSWORD))
    assert rows(conn, "SELECT count(*) FROM dl_resolved.people") == [(PEOPLE,)]


tour.run(connect, None, lambda conn: conn.close())
