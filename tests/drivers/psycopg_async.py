"""psycopg 3, asynchronously: libpq polls the socket itself here, which is where long TLS records hang (P2)."""

import asyncio

import psycopg
import psycopg_pool
from psycopg import errors
from psycopg.types.json import Json, Jsonb

from tour import (FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, OTHER_CA, PASSWORD, PEOPLE, PREFIX, STREAM, VALUES, WIDE, Tour,
                  raises_async, rotate)

tour = Tour("psycopg-async", f"{psycopg.__version__} ({psycopg.pq.__impl__}), libpq {psycopg.pq.version() // 10000}")


def connect(autocommit=True, **parameters):
    return psycopg.AsyncConnection.connect("", autocommit=autocommit, **parameters)


async def one(conn, *arguments, **named):
    return (await (await conn.execute(*arguments, **named)).fetchone())[0]


@tour.check
async def connect_(conn):
    assert conn.pgconn.ssl_in_use and conn.info.server_version >= 140000
    assert await one(conn, "SELECT 1") == 1


@tour.check
async def channel_binding():
    async with await connect(channel_binding="require") as conn:
        assert await one(conn, "SELECT 1") == 1


@tour.check
async def wrong_authority():
    error = await raises_async(psycopg.OperationalError, connect(sslrootcert=OTHER_CA))
    assert "certificate verify failed" in str(error), error


@tour.check
async def no_tls():
    error = await raises_async(psycopg.OperationalError, connect(sslmode="disable"))
    assert "encrypted connections only" in str(error), error


@tour.check
async def wrong_password():
    error = await raises_async(psycopg.OperationalError, connect(password="wrong"))
    assert "password authentication failed" in str(error), error


@tour.check
async def unknown_database():
    error = await raises_async(psycopg.OperationalError, connect(dbname="postgres"))
    assert "does not exist" in str(error), error


@tour.check
async def startup_options():
    async with await connect(options="-c statement_timeout=61s -c timezone=Asia/Tokyo") as conn:
        assert (await one(conn, "SHOW timezone"), await one(conn, "SHOW statement_timeout")) == ("Asia/Tokyo", "61s")


@tour.check
async def types(conn):
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    await conn.execute(f"CREATE TABLE {PREFIX}_types (id int, {columns})")
    values = [{"json": Json, "jsonb": Jsonb}.get(kind, lambda same: same)(value) for kind, value in VALUES]
    marks = ", ".join(["%b"] * len(VALUES))
    await conn.execute(f"INSERT INTO {PREFIX}_types VALUES (1, {marks})", values)
    row = await (await conn.execute(f"SELECT * FROM {PREFIX}_types", binary=True)).fetchone()
    assert list(row[1:]) == [value for _, value in VALUES], row


@tour.check
async def wide_rows(conn):
    cur = await conn.execute(WIDE)
    assert sum(len(row[1]) for row in await cur.fetchall()) == 5_000_000


@tour.check
async def large_result(conn):
    assert sum([len(row[1]) async for row in conn.cursor().stream(STREAM)]) == 20_000_000
    assert sum([len(row[1]) async for row in await conn.execute(STREAM)]) == 20_000_000


@tour.check
async def prepared():
    async def one_session(i):
        async with await connect() as conn:
            for _ in range(20):
                assert await one(conn, "SELECT %s::int", (i,), prepare=True) == i

    await asyncio.gather(*(one_session(i) for i in range(20)))


@tour.check
async def prepared_redefined(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    text = f"SELECT * FROM {PREFIX}_redefined"
    await conn.execute(text, prepare=True)
    async with await connect() as other:
        await other.execute(f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    try:
        await conn.execute(text, prepare=True)
    except errors.FeatureNotSupported:
        pass
    assert await (await conn.execute(text, prepare=True)).fetchone() == (1, None)


@tour.check
async def batch(conn):
    async with conn.pipeline():
        cursors = [await conn.execute("SELECT %s::int", (i,)) for i in range(200)]
    assert [await cur.fetchone() for cur in cursors] == [(i,) for i in range(200)]


@tour.check
async def insert_many(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_keys (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
    cur = await conn.execute(f"INSERT INTO {PREFIX}_keys (body) VALUES (%s), (%s) RETURNING id", ("a", None))
    assert await cur.fetchall() == [(1,), (2,)]


@tour.check
async def empty(conn):
    for text in ["", "-- nothing", ";"]:
        assert (await conn.execute(text)).description is None


@tour.check
async def notice(conn):
    notices = []
    conn.add_notice_handler(lambda diag: notices.append(diag.severity))
    await conn.execute(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert notices == ["NOTICE"]


@tour.check
async def refusal(conn):
    error = await raises_async(errors.InsufficientPrivilege, conn.execute(FOREIGN_WRITE))
    assert error.diag.message_primary == FOREIGN_WRITE_MESSAGE and error.diag.message_hint and error.diag.message_detail
    assert await one(conn, "SELECT 1") == 1


@tour.check
async def server_error(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    await conn.execute(f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = await raises_async(errors.UniqueViolation, conn.execute(f"INSERT INTO {PREFIX}_unique VALUES (%s)", (1,)))
    assert error.diag.constraint_name == "one_of_a_kind"
    assert await one(conn, "SELECT 1") == 1


@tour.check
async def listen(conn):
    error = await raises_async(errors.InsufficientPrivilege, conn.execute("LISTEN a"))
    assert "Poll a table" in error.diag.message_hint


@tour.check
async def transaction(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_transaction (id int)")
    async with conn.transaction():
        await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    async with conn.transaction(force_rollback=True):
        await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2)")
    assert await one(conn, f"SELECT sum(id) FROM {PREFIX}_transaction") == 1


@tour.check
async def refused_in_transaction(conn):
    async def both():
        async with conn.transaction():
            await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1000)")
            await conn.execute(FOREIGN_WRITE)

    await raises_async(errors.InsufficientPrivilege, both())
    assert await one(conn, f"SELECT sum(id) FROM {PREFIX}_transaction") == 1


@tour.check
async def refused_in_savepoint(conn):
    async def refused():
        async with conn.transaction():
            await conn.execute("CREATE TABLE unqualified (id int)")

    async with conn.transaction():
        await raises_async(errors.InsufficientPrivilege, refused())
        await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1003)")
    assert await one(conn, f"SELECT sum(id) FROM {PREFIX}_transaction") == 1004


@tour.check
async def refused_in_batch(conn):
    async def batch():
        async with conn.pipeline():
            for text in ["SELECT 1", FOREIGN_WRITE, "SELECT 3"]:
                await conn.execute(text)

    await raises_async((errors.InsufficientPrivilege, errors.PipelineAborted), batch())
    assert await one(conn, "SELECT 1") == 1


@tour.check
async def copy_in(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    async with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
        for i in range(20_000):
            await copy.write_row((i, "東京"))
    assert await one(conn, f"SELECT count(*) FROM {PREFIX}_copy") == 20_000


@tour.check
async def copy_out(conn):
    async with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy TO STDOUT") as copy:
        assert len([row async for row in copy.rows()]) == 20_000


@tour.check
async def copy_broken(conn):
    async def wrong_row():
        async with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
            await copy.write("not a number\tx\n")

    async def given_up():
        async with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
            await copy.write("1\tx\n")
            raise ZeroDivisionError

    async def not_read():
        async with conn.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy TO STDOUT") as copy:
            await copy.read()
            raise ZeroDivisionError  # psycopg cancels

    await raises_async(errors.InvalidTextRepresentation, wrong_row())
    await raises_async(ZeroDivisionError, given_up())
    await raises_async(ZeroDivisionError, not_read())
    assert await one(conn, f"SELECT count(*) FROM {PREFIX}_copy") == 20_000


@tour.check
async def cancel(conn):
    task = asyncio.create_task(conn.execute(LONG))
    await asyncio.sleep(0.3)
    await conn.cancel_safe()
    await raises_async(errors.QueryCanceled, task)
    # psycopg turns a task's cancellation into a CancelRequest.
    task = asyncio.create_task(conn.execute(LONG))
    await asyncio.sleep(0.3)
    task.cancel()
    await raises_async((asyncio.CancelledError, errors.QueryCanceled), task)
    assert await one(conn, "SELECT 1") == 1


@tour.check
async def timeout(conn):
    await raises_async(asyncio.TimeoutError, asyncio.wait_for(conn.execute(LONG), 0.3))
    await conn.execute("SET statement_timeout = 300")
    await raises_async(errors.QueryCanceled, conn.execute(LONG))
    await conn.execute("RESET statement_timeout")


@tour.check
async def settings():
    conns = [await connect() for _ in range(3)]
    for i, conn in enumerate(conns):
        await conn.execute(f"SET extra_float_digits = {i}")
    for _ in range(5):
        assert await asyncio.gather(*(one(conn, "SHOW extra_float_digits") for conn in conns)) == ["0", "1", "2"]
    for conn in conns:
        await conn.close()


@tour.check
async def introspection(conn):
    assert (await psycopg.types.range.RangeInfo.fetch(conn, "int4range")).oid == 3904
    assert (await psycopg.types.composite.CompositeInfo.fetch(conn, f"{PREFIX}_copy")).field_names == ("id", "body")


@tour.check
async def pool():
    async with psycopg_pool.AsyncConnectionPool("", min_size=2, max_size=6, open=False, kwargs={"autocommit": True}) as pool:
        async def work(i):
            async with pool.connection() as conn:
                assert await one(conn, "SELECT %s::int + 1", (i,), prepare=True) == i + 1

        await asyncio.gather(*(work(i) for i in range(60)))


@tour.check
async def rotation(conn):
    password = rotate()
    async with await connect(password=password) as fresh:
        assert await one(fresh, "SELECT 1") == 1
    error = await raises_async(psycopg.OperationalError, connect(password=PASSWORD))
    assert "password authentication failed" in str(error), error
    assert await one(conn, "SELECT count(*) FROM dl_resolved.people") == PEOPLE


tour.run_async(connect, lambda conn: conn.rollback(), lambda conn: conn.close())
