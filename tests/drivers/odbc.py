"""ODBC: psqlodbc by pyodbc. It puts BEGIN, SAVEPOINT, DECLARE and FETCH around the caller's statement in one Query (P42)."""

import datetime as dt
import decimal

import pyodbc

from tour import (CA, DATABASE, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, HOST, LONG, OTHER_CA, PASSWORD, PEOPLE, PORT, PREFIX, STREAM, USER, WIDE,
                  Tour, later, raises, rotate)


def driver():
    """psqlodbcw.so, by the path that unixODBC's configuration knows or Debian's."""
    import glob

    found = glob.glob("/usr/lib/*/odbc/psqlodbcw.so") + glob.glob("/usr/lib*/psqlodbcw.so")
    assert found, "psqlodbcw.so is not installed"
    return found[0]


def connect(autocommit=True, password=PASSWORD, database=DATABASE, sslmode="verify-full", ca=CA, **changes):
    # pqopt goes to libpq as it is.
    options = {"DRIVER": driver(), "SERVER": HOST, "PORT": PORT, "DATABASE": database, "UID": USER, "PWD": password, "SSLmode": sslmode,
               "pqopt": "{sslrootcert=%s %s}" % (ca, changes.pop("pqopt", "")), **changes}
    return pyodbc.connect(";".join(f"{name}={value}" for name, value in options.items()), autocommit=autocommit)


conn = connect()
tour = Tour("psqlodbc", f"{conn.getinfo(pyodbc.SQL_DRIVER_VER)}, pyodbc {pyodbc.version}")
conn.close()


def state(error):
    return error.args[0]


@tour.check
def connect_(conn):
    assert conn.execute("SELECT 1").fetchval() == 1
    assert int(conn.getinfo(pyodbc.SQL_DBMS_VER).split(".")[0]) >= 14


@tour.check
def channel_binding():
    assert connect(pqopt="channel_binding=require").execute("SELECT 1").fetchval() == 1


@tour.check
def wrong_authority():
    assert "certificate verify failed" in str(raises(pyodbc.Error, connect, ca=OTHER_CA))


@tour.check
def no_tls():
    assert "encrypted connections only" in str(raises(pyodbc.Error, connect, sslmode="disable"))


@tour.check
def wrong_password():
    assert "password authentication failed" in str(raises(pyodbc.Error, connect, password="wrong"))


@tour.check
def unknown_database():
    assert "does not exist" in str(raises(pyodbc.Error, connect, database="postgres"))


@tour.check
def startup_options():
    conn = connect(ConnSettings="{SET timezone TO 'Asia/Tokyo'; SET statement_timeout TO '61s'}")
    assert (conn.execute("SHOW timezone").fetchval(), conn.execute("SHOW statement_timeout").fetchval()) == ("Asia/Tokyo", "61s")


@tour.check
def types(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_types (id int, a boolean, b smallint, c int, d bigint, e double precision, f numeric(30, 10),"
                 " g text, h varchar(20), i bytea, j date, k timestamp, l time)")
    values = [True, -32768, 2147483647, -(2**63), 1.5, decimal.Decimal("-12345678901234567890.0123456789"), "Þóra 東京 ' \" \\ \n\t ? $1", "",
              bytes(range(256)), dt.date(2024, 2, 29), dt.datetime(1999, 12, 31, 23, 59, 59, 123456), dt.time(23, 59, 59)]
    for server in [0, 1]:
        with connect(UseServerSidePrepare=server, BoolsAsChar=0, ByteaAsLongVarBinary=1) as other:
            other.autocommit = True
            insert = f"INSERT INTO {PREFIX}_types VALUES (?, {', '.join(['?'] * len(values))})"
            other.execute(f"TRUNCATE {PREFIX}_types")
            other.execute(insert, 1, *values)
            other.execute(f"INSERT INTO {PREFIX}_types (id, g) VALUES (?, ?)", 2, None)
            rows = other.execute(f"SELECT * FROM {PREFIX}_types ORDER BY id").fetchall()
            assert list(rows[0])[1:] == values, rows[0]
            assert list(rows[1])[1:] == [None] * len(values)


@tour.check
def wide_rows():
    assert sum(len(row[1]) for row in connect(MaxLongVarcharSize=200000, TextAsLongVarchar=1).execute(WIDE)) == 5_000_000


@tour.check
def large_result():
    conn = connect(UseDeclareFetch=1, Fetch=500, autocommit=False)
    assert sum(len(row[1]) for row in conn.execute(STREAM)) == 20_000_000
    conn.commit()
    # Holdable cursors are its way in autocommit: they outlive their transaction, and pin the session.
    conn = connect(UseDeclareFetch=1, Fetch=100)
    cur = conn.execute("SELECT id FROM dl_resolved.people")
    assert len(cur.fetchmany(50)) == 50
    assert len(cur.fetchall()) == PEOPLE - 50
    cur.close()


@tour.check
def prepared():
    conns = [connect(UseServerSidePrepare=1) for _ in range(3)]
    cursors = [conn.cursor() for conn in conns]
    for i in range(1, 13):
        conns[i % 3].autocommit = False
        for cur in cursors:
            assert cur.execute("SELECT person_id FROM dl_resolved.people WHERE id = ?", i).fetchval() == f"pe_{i:06}"
        conns[i % 3].commit()
        conns[i % 3].autocommit = True


@tour.check
def prepared_redefined(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    cur = conn.cursor()
    assert tuple(cur.execute(f"SELECT * FROM {PREFIX}_redefined WHERE a = ?", 1).fetchone()) == (1,)
    connect().execute(f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    try:
        cur.execute(f"SELECT * FROM {PREFIX}_redefined WHERE a = ?", 1).fetchone()
    except pyodbc.Error as error:
        assert "cached plan" in str(error), error
    assert tuple(conn.cursor().execute(f"SELECT * FROM {PREFIX}_redefined WHERE a >= ?", 1).fetchone()) == (1, None)


@tour.check
def batch(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_batch (id int, body text)")
    cur = conn.cursor()
    cur.executemany(f"INSERT INTO {PREFIX}_batch VALUES (?, ?)", [(i, f"row {i}") for i in range(200)])
    assert cur.execute(f"SELECT count(*) FROM {PREFIX}_batch").fetchval() == 200


@tour.check
def insert_many(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_keys (id bigserial PRIMARY KEY, body text)")
    rows = conn.execute(f"INSERT INTO {PREFIX}_keys (body) VALUES (?), (?), (?) RETURNING id", "a", "b", None).fetchall()
    assert [row[0] for row in rows] == [1, 2, 3]


@tour.check
def empty(conn):
    conn.execute("-- nothing")
    assert conn.execute("SELECT 1").fetchval() == 1


@tour.check
def notice(conn):
    cur = conn.cursor()
    cur.execute(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert cur.messages and "does not exist" in cur.messages[0][1], cur.messages


@tour.check
def refusal(conn):
    for arguments in [(FOREIGN_WRITE,), (FOREIGN_WRITE + " WHERE person_id = ?", "x")]:
        error = raises(pyodbc.Error, conn.execute, *arguments)
        assert state(error) == "42501" and FOREIGN_WRITE_MESSAGE in str(error) and "Rule target." in str(error), error
    assert conn.execute("SELECT 1").fetchval() == 1


@tour.check
def server_error(conn):
    conn.execute(f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    conn.execute(f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = raises(pyodbc.IntegrityError, conn.execute, f"INSERT INTO {PREFIX}_unique VALUES (?)", 1)
    assert "one_of_a_kind" in str(error)
    assert conn.execute("SELECT 1").fetchval() == 1


@tour.check
def listen(conn):
    assert state(raises(pyodbc.Error, conn.execute, "LISTEN a")) == "42501"


@tour.check
def transaction():
    conn = connect(autocommit=False)
    conn.execute(f"CREATE TABLE {PREFIX}_transaction (id int)")
    conn.commit()
    conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    conn.commit()
    conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2)")
    conn.rollback()
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_transaction").fetchval() == 1
    conn.rollback()
    # A freed statement is a DEALLOCATE with a savepoint around it, in one Query; its name comes again (P42).
    conn = connect(autocommit=False, Protocol="7.4-2")
    for i in range(5):
        conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (?)", i)
        raises(pyodbc.Error, conn.execute, "SELECT 1/0")
    conn.rollback()
    conn.set_attr(pyodbc.SQL_ATTR_TXN_ISOLATION, pyodbc.SQL_TXN_SERIALIZABLE)
    assert conn.execute("SHOW transaction_isolation").fetchval() == "serializable"


@tour.check
def refused_in_transaction():
    # Protocol=7.4-1: an error fails the transaction, as PostgreSQL does.
    conn = connect(autocommit=False, Protocol="7.4-1")
    conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1000)")
    raises(pyodbc.Error, conn.execute, FOREIGN_WRITE)
    conn.rollback()
    assert conn.execute(f"SELECT count(*) FROM {PREFIX}_transaction").fetchval() == 1


# Protocol=7.4-2 puts a savepoint in front of the caller's statement, in the same Query. A Query is refused as a whole, so there is
# no savepoint to go back to, and psqlodbc rolls the whole transaction back.
tour.not_applicable("a known limit: the gate refuses the savepoint that psqlodbc sends in the same Query, and the transaction is lost",
                    "refused_in_savepoint")


@tour.check
def refused_in_batch(conn):
    assert state(raises(pyodbc.Error, conn.execute, f"BEGIN; {FOREIGN_WRITE}; COMMIT")) == "42501"
    assert connect().execute("SELECT 1").fetchval() == 1


tour.not_applicable("ODBC has no COPY", "copy_in", "copy_out", "copy_broken")


@tour.check
def cancel(conn):
    cur = conn.cursor()
    timer = later(0.3, cur.cancel)
    error = raises(pyodbc.Error, cur.execute, LONG)
    timer.join()
    assert "canceling statement due to user request" in str(error), error
    assert conn.execute("SELECT 1").fetchval() == 1


@tour.check
def timeout(conn):
    conn.execute("SET statement_timeout = 300")
    assert "statement timeout" in str(raises(pyodbc.Error, conn.execute, LONG))
    conn.execute("RESET statement_timeout")


@tour.check
def settings():
    conns = [connect() for _ in range(3)]
    for i, conn in enumerate(conns):
        conn.execute(f"SET extra_float_digits = {i}")
    for _ in range(5):
        assert [conn.execute("SHOW extra_float_digits").fetchval() for conn in conns] == ["0", "1", "2"]


@tour.check
def introspection(conn):
    schema, table = f"{PREFIX}_keys".split(".")
    cur = conn.cursor()
    assert {row.table_name for row in cur.tables(schema="dl_resolved")} == {"people", "companies"}
    assert len(cur.columns(schema="dl_resolved", table="people").fetchall()) == 14
    assert [row.column_name for row in cur.primaryKeys(table, schema=schema)] == ["id"]
    assert cur.statistics(table, schema=schema).fetchall()
    assert cur.getTypeInfo().fetchall()
    cur.foreignKeys(table, schema=schema).fetchall()
    cur.procedures(schema="pg_catalog", procedure="lower").fetchall()
    cur.procedureColumns(procedure="lower").fetchall()
    cur.rowIdColumns(table, schema=schema).fetchall()
    cur.rowVerColumns(table, schema=schema).fetchall()


@tour.check
def pool():
    # The driver manager's pool: closed connections are used again.
    pyodbc.pooling = True
    for i in range(20):
        conn = connect()
        assert conn.execute("SELECT ?::int", i).fetchval() == i
        conn.close()


@tour.check
def rotation(conn):
    password = rotate()
    assert connect(password=password).execute("SELECT 1").fetchval() == 1
    assert "password authentication failed" in str(raises(pyodbc.Error, connect, ApplicationName="anew"))
    assert conn.execute("SELECT count(*) FROM dl_resolved.people").fetchval() == PEOPLE


tour.run(connect, None, lambda conn: conn.close())
