"""asyncpg: binary formats, named prepared statements, introspection of types, a pool that resets its connections."""

import asyncio
import json
import ssl

import asyncpg

from tour import (CA, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LONG, OTHER_CA, PASSWORD, PEOPLE, PREFIX, STREAM, VALUES, WIDE, Tour,
                  raises_async, rotate)

tour = Tour("asyncpg", asyncpg.__version__)


def connect(**parameters):
    return asyncpg.connect(**parameters)


@tour.check
async def connect_(conn):
    assert conn.get_server_version().major >= 14 and conn.get_settings().client_encoding == "UTF8"
    assert await conn.fetchval("SELECT 1") == 1


tour.not_applicable("asyncpg speaks SCRAM-SHA-256 without channel binding", "channel_binding")


@tour.check
async def wrong_authority():
    await raises_async(ssl.SSLCertVerificationError, connect(ssl=ssl.create_default_context(cafile=OTHER_CA)))


@tour.check
async def no_tls():
    error = await raises_async(asyncpg.InvalidAuthorizationSpecificationError, connect(ssl=False))
    assert "encrypted connections only" in str(error)


@tour.check
async def wrong_password():
    error = await raises_async(asyncpg.InvalidPasswordError, connect(password="wrong"))
    assert "password authentication failed" in str(error)


@tour.check
async def unknown_database():
    await raises_async(asyncpg.InvalidCatalogNameError, connect(database="postgres"))


@tour.check
async def startup_options():
    conn = await connect(server_settings={"application_name": "tour", "statement_timeout": "61s", "jit": "off"})
    assert await conn.fetchval("SHOW statement_timeout") == "61s"
    assert (await conn.fetchval("SHOW application_name"), await conn.fetchval("SHOW jit")) == ("tour", "off")
    await conn.close()


@tour.check
async def types(conn):
    for kind in ["json", "jsonb"]:
        await conn.set_type_codec(kind, schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _) in enumerate(VALUES))
    await conn.execute(f"CREATE TABLE {PREFIX}_types (id int, {columns})")
    marks = ", ".join(f"${i + 2}" for i in range(len(VALUES)))
    await conn.execute(f"INSERT INTO {PREFIX}_types VALUES ($1, {marks})", 1, *(value for _, value in VALUES))
    await conn.execute(f"INSERT INTO {PREFIX}_types VALUES ($1, {marks})", 2, *([None] * len(VALUES)))
    rows = await conn.fetch(f"SELECT * FROM {PREFIX}_types ORDER BY id")
    assert list(rows[0].values())[1:] == [value for _, value in VALUES], rows[0]
    assert list(rows[1].values())[1:] == [None] * len(VALUES)


@tour.check
async def wide_rows(conn):
    assert sum(len(row[1]) for row in await conn.fetch(WIDE)) == 5_000_000


@tour.check
async def large_result(conn):
    assert sum(len(row[1]) for row in await conn.fetch(STREAM)) == 20_000_000
    async with conn.transaction():
        assert sum([len(row[1]) async for row in conn.cursor(STREAM, prefetch=500)]) == 20_000_000


@tour.check
async def prepared():
    conns = [await connect(statement_cache_size=5) for _ in range(4)]
    for i in range(1, 13):
        async with conns[i % 4].transaction():
            for conn in conns:
                assert await conn.fetchval("SELECT person_id FROM dl_resolved.people WHERE id = $1", i) == f"pe_{i:06}"
                # More than the cache holds: the oldest are closed.
                assert await conn.fetchval(f"SELECT $1::int + {i}", i) == 2 * i
    statement = await conns[0].prepare("SELECT $1::text")
    assert [await statement.fetchval(str(i)) for i in range(10)] == [str(i) for i in range(10)]
    for conn in conns:
        await conn.close()


@tour.check
async def prepared_redefined(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_redefined AS SELECT 1 AS a")
    assert list(await conn.fetchrow(f"SELECT * FROM {PREFIX}_redefined")) == [1]
    other = await connect()
    await other.execute(f"ALTER TABLE {PREFIX}_redefined ADD COLUMN b int")
    await other.close()
    # asyncpg tries again by itself.
    assert list(await conn.fetchrow(f"SELECT * FROM {PREFIX}_redefined")) == [1, None]


@tour.check
async def batch(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_batch (id int, body text)")
    await conn.executemany(f"INSERT INTO {PREFIX}_batch VALUES ($1, $2)", [(i, "x") for i in range(500)])
    rows = await conn.fetchmany(f"INSERT INTO {PREFIX}_batch VALUES ($1, $2) RETURNING id", [(i, "y") for i in range(10)])
    assert [row[0] for row in rows] == list(range(10))
    assert await conn.fetchval(f"SELECT count(*) FROM {PREFIX}_batch") == 510


@tour.check
async def insert_many(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_keys (id bigint GENERATED ALWAYS AS IDENTITY, body text)")
    rows = await conn.fetch(f"INSERT INTO {PREFIX}_keys (body) SELECT unnest($1::text[]) RETURNING id", ["a", "b", None])
    assert [row[0] for row in rows] == [1, 2, 3]


@tour.check
async def empty(conn):
    # Not by execute(), which expects a command's tag and fails on PostgreSQL as well.
    for text in ["", "-- nothing", ";"]:
        assert await conn.fetch(text) == []


@tour.check
async def notice(conn):
    notices = []
    conn.add_log_listener(lambda _, message: notices.append(message.severity))
    await conn.execute(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    await asyncio.sleep(0)
    assert notices == ["NOTICE"], notices


@tour.check
async def refusal(conn):
    for arguments in [(FOREIGN_WRITE,), (FOREIGN_WRITE + " WHERE person_id = $1", "x")]:
        error = await raises_async(asyncpg.InsufficientPrivilegeError, conn.execute(*arguments))
        assert error.sqlstate == "42501" and error.message == FOREIGN_WRITE_MESSAGE
        assert "Rule target." in error.detail and "storage" in error.hint
    await raises_async(asyncpg.InsufficientPrivilegeError, conn.prepare(FOREIGN_WRITE))
    assert await conn.fetchval("SELECT 1") == 1


@tour.check
async def server_error(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_unique (id int CONSTRAINT one_of_a_kind UNIQUE)")
    await conn.execute(f"INSERT INTO {PREFIX}_unique VALUES (1)")
    error = await raises_async(asyncpg.UniqueViolationError, conn.execute(f"INSERT INTO {PREFIX}_unique VALUES ($1)", 1))
    assert error.constraint_name == "one_of_a_kind"
    assert await conn.fetchval("SELECT 1") == 1


@tour.check
async def listen(conn):
    error = await raises_async(asyncpg.InsufficientPrivilegeError, conn.add_listener("a", lambda *_: None))
    assert "Poll a table" in error.hint


@tour.check
async def transaction(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_transaction (id int)")
    async with conn.transaction():
        await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    tr = conn.transaction(isolation="repeatable_read")
    await tr.start()
    await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (2)")
    await tr.rollback()

    async def read_only():
        async with conn.transaction(isolation="serializable", readonly=True, deferrable=True):
            await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (3)")

    await raises_async(asyncpg.ReadOnlySQLTransactionError, read_only())
    assert await conn.fetchval(f"SELECT sum(id) FROM {PREFIX}_transaction") == 1


@tour.check
async def refused_in_transaction(conn):
    tr = conn.transaction()
    await tr.start()
    await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1000)")
    await raises_async(asyncpg.InsufficientPrivilegeError, conn.fetch("INSERT INTO unqualified VALUES ($1)", 1))
    await raises_async(asyncpg.InFailedSQLTransactionError, conn.fetch("SELECT 1"))
    await tr.rollback()
    assert await conn.fetchval(f"SELECT sum(id) FROM {PREFIX}_transaction") == 1


@tour.check
async def refused_in_savepoint(conn):
    async def refused():
        async with conn.transaction():
            await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1001)")
            await conn.execute(FOREIGN_WRITE)

    async with conn.transaction():
        await raises_async(asyncpg.InsufficientPrivilegeError, refused())
        await conn.execute(f"INSERT INTO {PREFIX}_transaction VALUES (1)")
    assert await conn.fetchval(f"SELECT sum(id) FROM {PREFIX}_transaction") == 2


@tour.check
async def refused_in_batch(conn):
    await raises_async(asyncpg.InsufficientPrivilegeError,
                       conn.executemany("DELETE FROM dl_cache.person_enrichments WHERE person_id = $1", [("a",), ("b",)]))
    await raises_async(asyncpg.InsufficientPrivilegeError, conn.execute(f"BEGIN; {FOREIGN_WRITE}; COMMIT"))
    await conn.execute("ROLLBACK")
    # The second of these fails in the server, in the middle of a pipeline; none of them stays.
    insert = f"INSERT INTO {PREFIX}_unique VALUES ($1)"
    await raises_async(asyncpg.UniqueViolationError, conn.executemany(insert, [(i,) for i in [7, 1, 8]]))
    assert await conn.fetchval(f"SELECT count(*) FROM {PREFIX}_unique") == 1


@tour.check
async def copy_in(conn):
    await conn.execute(f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    schema, table = f"{PREFIX}_copy".split(".")
    # asyncpg qualifies and quotes: COPY "storage"."…"(…) FROM STDIN WITH (FORMAT binary)
    records = [(i, "東京") for i in range(20_000)]
    assert await conn.copy_records_to_table(table, schema_name=schema, records=records) == "COPY 20000"


@tour.check
async def copy_out(conn):
    chunks = []

    async def take(data):
        chunks.append(data)

    await conn.copy_from_query(f"SELECT * FROM {PREFIX}_copy WHERE id < $1", 100, output=take)
    assert b"".join(chunks).count(b"\n") == 100
    schema, table = f"{PREFIX}_copy".split(".")
    assert await conn.copy_from_table(table, schema_name=schema, output=take, format="csv") == "COPY 20000"


@tour.check
async def copy_broken(conn):
    schema, table = f"{PREFIX}_copy".split(".")

    async def given_up():
        yield b"1\tx\n"
        raise ZeroDivisionError

    async def wrong():
        yield b"no number\tx\n"

    await raises_async(asyncpg.InvalidTextRepresentationError, conn.copy_to_table(table, schema_name=schema, source=wrong()))
    await raises_async(ZeroDivisionError, conn.copy_to_table(table, schema_name=schema, source=given_up()))

    async def refuse(_):
        raise ZeroDivisionError

    await raises_async(ZeroDivisionError, conn.copy_from_table(table, schema_name=schema, output=refuse))
    assert await conn.fetchval(f"SELECT count(*) FROM {PREFIX}_copy") == 20_000


@tour.check
async def cancel(conn):
    task = asyncio.create_task(conn.fetchval(LONG))
    await asyncio.sleep(0.3)
    task.cancel()
    await raises_async(asyncio.CancelledError, task)
    assert await conn.fetchval("SELECT 1") == 1


@tour.check
async def timeout(conn):
    await raises_async((asyncio.TimeoutError, asyncpg.QueryCanceledError), conn.fetchval(LONG, timeout=0.3))
    await conn.execute("SET statement_timeout = 300")
    await raises_async(asyncpg.QueryCanceledError, conn.fetchval(LONG))
    await conn.reset()
    assert await conn.fetchval("SHOW statement_timeout") != "300ms"


@tour.check
async def settings():
    conns = [await connect() for _ in range(3)]
    for i, conn in enumerate(conns):
        await conn.execute(f"SET extra_float_digits = {i}")
    for _ in range(5):
        assert [await conn.fetchval("SHOW extra_float_digits") for conn in conns] == ["0", "1", "2"]
    for conn in conns:
        await conn.close()


@tour.check
async def introspection(conn):
    # An array of a composite type makes asyncpg read the type catalog by its own long query.
    rows = await conn.fetch(f"SELECT array_agg(t) FROM {PREFIX}_copy AS t WHERE id < 3")
    assert len(rows[0][0]) == 3 and rows[0][0][0]["body"] == "東京"
    row = await conn.fetchrow("SELECT skills, attrs, score, salary, active, updated_at FROM dl_resolved.people WHERE id = 1")
    assert isinstance(row["skills"], list) and isinstance(row["salary"], asyncpg.Range)


@tour.check
async def pool():
    async with asyncpg.create_pool(min_size=2, max_size=6) as pool:

        async def work(i):
            async with pool.acquire() as conn:
                assert await conn.fetchval("SHOW extra_float_digits") == "1"
                await conn.execute("SET extra_float_digits = 3")
                assert await conn.fetchval("SELECT $1::int + 1", i) == i + 1

        await asyncio.gather(*(work(i) for i in range(60)))


@tour.check
async def rotation(conn):
    password = rotate()
    fresh = await connect(password=password)
    assert await fresh.fetchval("SELECT 1") == 1
    await raises_async(asyncpg.InvalidPasswordError, connect(password=PASSWORD))
    assert await conn.fetchval("SELECT count(*) FROM dl_resolved.people") == PEOPLE
    await fresh.close()


async def reset(conn):
    if conn.is_in_transaction():
        await conn.execute("ROLLBACK")


tour.run_async(connect, reset, lambda conn: conn.close())
