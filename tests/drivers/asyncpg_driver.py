"""asyncpg through the gate: binary formats, named prepared statements, a pool that resets its connections."""

import asyncio
import datetime

import asyncpg

from common import FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LARGE, LONG, PEOPLE, URI, Report


async def parameterised_query(conn):
    assert await conn.fetchval("SELECT person_id FROM dl_resolved.people WHERE id = $1", 7) == "pe_000007"
    row = await conn.fetchrow("SELECT skills, attrs, score, salary, active, updated_at FROM dl_resolved.people WHERE id = $1", 1)
    assert isinstance(row["updated_at"], datetime.datetime) and isinstance(row["skills"], list)


async def introspection(conn):
    # An array of a composite type makes asyncpg read the type catalog by its own long query.
    await conn.execute("CREATE TABLE storage.asyncpg_types (id int, body text)")
    rows = await conn.fetch("SELECT array_agg(t) FROM storage.asyncpg_types AS t")
    assert rows[0][0] is None
    names = await conn.fetch("SELECT table_name FROM information_schema.tables WHERE table_schema = $1", "dl_resolved")
    assert {row["table_name"] for row in names} == {"people", "companies"}


async def writes_to_storage(conn):
    await conn.execute("CREATE TABLE storage.asyncpg (id bigint PRIMARY KEY, body text)")
    assert await conn.fetchval("INSERT INTO storage.asyncpg VALUES ($1, $2) RETURNING body", 1, "東京") == "東京"
    await conn.executemany("INSERT INTO storage.asyncpg VALUES ($1, $2)", [(i, str(i)) for i in range(2, 500)])
    assert await conn.fetchval("SELECT count(*) FROM storage.asyncpg") == 499


async def refusal_in_a_transaction(conn):
    try:
        async with conn.transaction():
            await conn.execute("INSERT INTO storage.asyncpg VALUES (1000, 'lost')")
            await conn.execute(FOREIGN_WRITE)
        raise AssertionError("not refused")
    except asyncpg.InsufficientPrivilegeError as error:
        assert error.message == FOREIGN_WRITE_MESSAGE, error.message
        assert error.hint and error.detail
    assert await conn.fetchval("SELECT count(*) FROM storage.asyncpg WHERE id = 1000") == 0


async def refusal_of_a_prepared_statement(conn):
    try:
        await conn.prepare("UPDATE dl_cache.person_enrichments SET title = $1")
        raise AssertionError("not refused")
    except asyncpg.InsufficientPrivilegeError:
        pass
    tr = conn.transaction()
    await tr.start()
    try:
        await conn.fetch("INSERT INTO unqualified VALUES ($1)", 1)
        raise AssertionError("not refused")
    except asyncpg.InsufficientPrivilegeError:
        pass
    try:
        await conn.fetch("SELECT 1")
        raise AssertionError("the transaction should have failed")
    except asyncpg.InFailedSQLTransactionError:
        await tr.rollback()
    assert await conn.fetchval("SELECT $1::int", 5) == 5


async def cursors(conn):
    async with conn.transaction():
        count = 0
        async for _ in conn.cursor("SELECT id FROM dl_resolved.people", prefetch=50):
            count += 1
        assert count == PEOPLE


async def cancel(conn):
    try:
        await conn.fetchval(LONG, timeout=0.5)
        raise AssertionError("not cancelled")
    except (asyncio.TimeoutError, asyncpg.QueryCanceledError):
        pass
    assert await conn.fetchval("SELECT 1") == 1


async def copy_both_ways(conn):
    await conn.execute("CREATE TABLE storage.asyncpg_copy (id int, body text)")
    records = [(i, f"row {i}") for i in range(20000)]
    # asyncpg qualifies and quotes: COPY "storage"."asyncpg_copy"(…) FROM STDIN WITH (FORMAT binary)
    assert await conn.copy_records_to_table("asyncpg_copy", schema_name="storage", records=records) == "COPY 20000"
    chunks = []

    async def take(data):
        chunks.append(data)

    await conn.copy_from_query("SELECT id, body FROM storage.asyncpg_copy WHERE id < $1", 100, output=take)
    assert b"".join(chunks).count(b"\n") == 100


async def large_result(conn):
    rows = await conn.fetch(LARGE)
    assert sum(len(row[1]) for row in rows) == 50_000_000


async def a_pool(_):
    async with asyncpg.create_pool(URI, min_size=2, max_size=8) as pool:

        async def one(i):
            for _ in range(20):
                async with pool.acquire() as conn:
                    assert await conn.fetchval("SELECT $1::int + 1", i) == i + 1

        await asyncio.gather(*(one(i) for i in range(30)))


async def main():
    report = Report()
    conn = await asyncpg.connect(URI)
    for function in [
        parameterised_query, introspection, writes_to_storage, refusal_in_a_transaction, refusal_of_a_prepared_statement,
        cursors, cancel, copy_both_ways, large_result, a_pool,
    ]:
        try:
            await asyncio.wait_for(function(conn), 120)
            report.ok(function.__name__)
        except Exception:  # noqa: BLE001
            report.bad(function.__name__)
        if conn.is_closed() or conn.is_in_transaction():
            conn.terminate()
            conn = await asyncpg.connect(URI)
    await conn.close()
    report.end()


asyncio.run(main())
