"""pg8000: pure Python, an own implementation of the protocol. COPY goes by the extended protocol (P42)."""

import io
import json
import ssl
import threading

import pg8000.dbapi
import pg8000.native
from pg8000.exceptions import DatabaseError, InterfaceError

from tour import (CA, DATABASE, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, HOST, LONG, OTHER_CA, PASSWORD, PEOPLE, PORT, PREFIX, STREAM, USER,
                  VALUES, WIDE, Tour, raises, rotate)

tour = Tour("pg8000", pg8000.__version__)


def connect(ca=CA, password=PASSWORD, database=DATABASE, **parameters):
    parameters.setdefault("ssl_context", ssl.create_default_context(cafile=ca))
    return pg8000.native.Connection(USER, host=HOST, port=PORT, database=database, password=password, **parameters)


def state(error):
    """The fields of the server's message."""
    return error.args[0]


@tour.check
def connect_(conn):
    assert conn.run("SELECT 1") == [[1]]
    assert int(conn.parameter_statuses["server_version"].split(".")[0]) >= 14


@tour.check
def channel_binding(conn):
    # It takes SCRAM-SHA-256-PLUS by itself where that is offered over TLS.
    assert conn.auth.mechanism_name == "SCRAM-SHA-256-PLUS", conn.auth.mechanism_name


@tour.check
def wrong_authority():
    error = raises((InterfaceError, ssl.SSLError), connect, ca=OTHER_CA)
    assert "certificate verify failed" in str(error), error


@tour.check
def no_tls():
    assert state(raises(DatabaseError, connect, ssl_context=False))["C"] == "28000"


@tour.check
def wrong_password():
    error = state(raises(DatabaseError, connect, password="wrong"))
    assert error["C"] == "28P01" and "password authentication failed" in error["M"]


@tour.check
def unknown_database():
    assert state(raises(DatabaseError, connect, database="postgres"))["C"] == "3D000"


@tour.check
def startup_options():
    conn = connect(application_name="tour", startup_params={"options": "-c timezone=Asia/Tokyo"})
    assert (conn.run("SHOW application_name"), conn.run("SHOW timezone")) == ([["tour"]], [["Asia/Tokyo"]])
    conn.close()


@tour.check
def types(conn):
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    conn.run(f"CREATE TABLE {PREFIX}_types (id int, {columns})")
    marks = ", ".join(f":c{i}" for i in range(len(VALUES)))
    insert = f"INSERT INTO {PREFIX}_types VALUES (:id, {marks})"
    values = [json.dumps(value) if "json" in kind else value for kind, value in VALUES]
    conn.run(insert, id=1, **{f"c{i}": value for i, value in enumerate(values)})
    conn.run(insert, id=2, **{f"c{i}": None for i in range(len(VALUES))})
    rows = conn.run(f"SELECT * FROM {PREFIX}_types ORDER BY id")
    assert rows[0][1:] == [value for _, value in VALUES], rows[0]
    assert rows[1][1:] == [None] * len(VALUES)


@tour.check
def wide_rows(conn):
    assert sum(len(row[1]) for row in conn.run(WIDE)) == 5_000_000


@tour.check
def large_result(conn):
    assert sum(len(row[1]) for row in conn.run(STREAM)) == 20_000_000


@tour.check
def prepared():
    conns = [connect() for _ in range(3)]
    statements = [conn.prepare("SELECT person_id FROM dl_resolved.people WHERE id = :id") for conn in conns]
    for i in range(1, 13):
        conns[i % 3].run("START TRANSACTION")
        for statement in statements:
            assert statement.run(id=i) == [[f"pe_{i:06}"]]
        conns[i % 3].run("COMMIT")
    for conn, statement in zip(conns, statements):
        statement.close()
        conn.close()


@tour.check
def prepared_redefined(conn):
    conn.run(f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    statement = conn.prepare(f"SELECT * FROM {PREFIX}_redefined")
    assert statement.run() == [[1]]
    connect().run(f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    try:
        statement.run()
    except DatabaseError as error:
        assert state(error)["C"] == "0A000"
    assert conn.prepare(f"SELECT * FROM {PREFIX}_redefined").run() == [[1, None]]


@tour.check
def batch():
    conn = pg8000.dbapi.connect(USER, host=HOST, port=PORT, database=DATABASE, password=PASSWORD,
                                ssl_context=ssl.create_default_context(cafile=CA))
    cur = conn.cursor()
    cur.execute(f"CREATE TABLE {PREFIX}_batch (id int, body text)")
    cur.executemany(f"INSERT INTO {PREFIX}_batch VALUES (%s, %s)", [(i, "x") for i in range(200)])
    conn.commit()
    cur.execute(f"SELECT count(*) FROM {PREFIX}_batch")
    assert list(cur.fetchone()) == [200]
    conn.close()


@tour.check
def insert_many(conn):
    conn.run(f"CREATE TABLE {PREFIX}_keys (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
    insert = f"INSERT INTO {PREFIX}_keys (body) VALUES (:a), (:b), (:c) RETURNING id"
    assert conn.run(insert, a="a", b="b", c=None) == [[1], [2], [3]]


@tour.check
def empty(conn):
    for text in ["", "-- nothing", ";"]:
        assert not conn.run(text)
    assert conn.run("SELECT 1") == [[1]]


@tour.check
def notice(conn):
    conn.run(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert conn.notices[-1][b"S"] == b"NOTICE", conn.notices


@tour.check
def refusal(conn):
    for arguments in [{}, {"id": "x"}]:
        error = state(raises(DatabaseError, conn.run, FOREIGN_WRITE + (" WHERE person_id = :id" if arguments else ""), **arguments))
        assert (error["C"], error["M"]) == ("42501", FOREIGN_WRITE_MESSAGE)
        assert "Rule target." in error["D"] and "storage" in error["H"] and error["P"] == "13"
    assert conn.run("SELECT 1") == [[1]]


@tour.check
def server_error(conn):
    conn.run(f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    conn.run(f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = state(raises(DatabaseError, conn.run, f"INSERT INTO {PREFIX}_unique VALUES (:id)", id=1))
    assert (error["C"], error["n"]) == ("23505", "one_of_a_kind")
    assert conn.run("SELECT 1") == [[1]]


@tour.check
def listen(conn):
    error = state(raises(DatabaseError, conn.run, "LISTEN a"))
    assert error["C"] == "42501" and "Poll a table" in error["H"]


@tour.check
def transaction(conn):
    conn.run(f"CREATE TABLE {PREFIX}_transaction (id int)")
    for end in ["COMMIT", "ROLLBACK"]:
        conn.run("START TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        conn.run(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
        conn.run(end)
    assert conn.run(f"SELECT count(*) FROM {PREFIX}_transaction") == [[1]]
    conn.run("START TRANSACTION READ ONLY")
    assert state(raises(DatabaseError, conn.run, f"INSERT INTO {PREFIX}_transaction VALUES (2)"))["C"] == "25006"
    conn.run("ROLLBACK")


@tour.check
def refused_in_transaction(conn):
    conn.run("START TRANSACTION")
    conn.run(f"INSERT INTO {PREFIX}_transaction VALUES (:id)", id=1000)
    assert state(raises(DatabaseError, conn.run, FOREIGN_WRITE))["C"] == "42501"
    assert state(raises(DatabaseError, conn.run, "SELECT :id", id=1))["C"] == "25P02"
    conn.run("ROLLBACK")
    assert conn.run(f"SELECT count(*) FROM {PREFIX}_transaction") == [[1]]


@tour.check
def refused_in_savepoint(conn):
    conn.run("START TRANSACTION")
    conn.run("SAVEPOINT here")
    assert state(raises(DatabaseError, conn.run, "CREATE TABLE unqualified (id int)"))["C"] == "42501"
    conn.run("ROLLBACK TO SAVEPOINT here")
    conn.run(f"INSERT INTO {PREFIX}_transaction VALUES (3)")
    conn.run("COMMIT")
    assert conn.run(f"SELECT count(*) FROM {PREFIX}_transaction") == [[2]]


@tour.check
def refused_in_batch(conn):
    assert state(raises(DatabaseError, conn.run, f"BEGIN; {FOREIGN_WRITE}; COMMIT"))["C"] == "42501"
    conn.run("ROLLBACK")
    assert state(raises(DatabaseError, conn.run, "SELECT 1; SELECT 2"))["C"] == "42501"
    assert conn.run("SELECT 1") == [[1]]


@tour.check
def copy_in(conn):
    conn.run(f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    for text in [f"COPY {PREFIX}_copy FROM STDIN", f"COPY {PREFIX}_copy (id, body) FROM STDIN WITH (DELIMITER E'\\t')"]:
        conn.run(text, stream=io.StringIO("".join(f"{i}\t東京\n" for i in range(10_000))))
    assert conn.run(f"SELECT count(*) FROM {PREFIX}_copy") == [[20_000]]


@tour.check
def copy_out(conn):
    out = io.BytesIO()
    conn.run(f"COPY {PREFIX}_copy TO STDOUT", stream=out)
    assert out.getvalue().count(b"\n") == 20_000
    # By dbapi's extended protocol too.
    cur = pg8000.dbapi.connect(USER, host=HOST, port=PORT, database=DATABASE, password=PASSWORD,
                               ssl_context=ssl.create_default_context(cafile=CA)).cursor()
    out = io.BytesIO()
    cur.execute(f"COPY (SELECT * FROM {PREFIX}_copy WHERE id < 10) TO STDOUT", stream=out)
    assert out.getvalue().count(b"\n") == 20


@tour.check
def copy_broken(conn):
    error = raises(DatabaseError, conn.run, f"COPY {PREFIX}_copy FROM STDIN", stream=io.StringIO("no number\tx\n"))
    assert state(error)["C"] == "22P02"
    assert conn.run(f"SELECT count(*) FROM {PREFIX}_copy") == [[20_000]]


tour.not_applicable("pg8000 sends no CancelRequest", "cancel")


@tour.check
def timeout(conn):
    conn.run("SET statement_timeout = 300")
    assert state(raises(DatabaseError, conn.run, LONG))["C"] == "57014"
    conn.run("RESET statement_timeout")


@tour.check
def settings():
    conns = [connect() for _ in range(3)]
    for i, conn in enumerate(conns):
        conn.run(f"SET extra_float_digits = {i}")
    for _ in range(5):
        assert [conn.run("SHOW extra_float_digits") for conn in conns] == [[["0"]], [["1"]], [["2"]]]
    for conn in conns:
        conn.close()


@tour.check
def introspection(conn):
    conn.run("SELECT id, full_name, salary, active FROM dl_resolved.people LIMIT 1")
    assert [column["name"] for column in conn.columns] == ["id", "full_name", "salary", "active"]
    assert conn.columns[0]["type_oid"] == 20


@tour.check
def pool():
    # It has none; sessions in threads then.
    wrong = []

    def work(i):
        conn = connect()
        for _ in range(10):
            if conn.run("SELECT CAST(:i AS integer)", i=i) != [[i]]:
                wrong.append(i)
        conn.close()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@tour.check
def rotation(conn):
    password = rotate()
    fresh = connect(password=password)
    assert fresh.run("SELECT 1") == [[1]]
    assert state(raises(DatabaseError, connect))["C"] == "28P01"
    assert conn.run("SELECT count(*) FROM dl_resolved.people") == [[PEOPLE]]


tour.run(connect, None, lambda conn: conn.close())
