"""psycopg 3 through the gate, asynchronously: libpq polls the socket itself here, which is where long TLS records hang."""

import asyncio

import psycopg
from psycopg import errors

from common import FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, LARGE, LONG, PEOPLE, URI, WIDE, Report


async def queries(conn):
    cur = await conn.execute("SELECT count(*) FROM dl_resolved.people WHERE id > %s", (0,))
    assert await cur.fetchone() == (PEOPLE,)


async def wide_rows(conn):
    cur = await conn.execute(WIDE)
    assert sum(len(row[1]) for row in await cur.fetchall()) == 5_000_000


async def large_result(conn):
    cur = await conn.execute(LARGE)
    assert sum([len(row[1]) async for row in cur]) == 50_000_000


async def writes_and_a_refusal(conn):
    await conn.execute("CREATE TABLE storage.psycopg_async (id int)")
    await conn.commit()
    try:
        async with conn.transaction():
            await conn.execute("INSERT INTO storage.psycopg_async VALUES (1)")
            await conn.execute(FOREIGN_WRITE)
        raise AssertionError("not refused")
    except errors.InsufficientPrivilege as error:
        assert error.diag.message_primary == FOREIGN_WRITE_MESSAGE
    cur = await conn.execute("SELECT count(*) FROM storage.psycopg_async")
    assert await cur.fetchone() == (0,)


async def copy(conn):
    async with conn.cursor() as cur, cur.copy("COPY storage.psycopg_async FROM STDIN") as rows:
        for i in range(5000):
            await rows.write_row((i,))
    cur = await conn.execute("SELECT count(*) FROM storage.psycopg_async")
    assert await cur.fetchone() == (5000,)


async def cancel(conn):
    task = asyncio.create_task(conn.execute(LONG))
    await asyncio.sleep(0.5)
    # psycopg turns the task's cancellation into a CancelRequest.
    task.cancel()
    try:
        await task
        raise AssertionError("not cancelled")
    except (asyncio.CancelledError, errors.QueryCanceled):
        await conn.rollback()
    cur = await conn.execute("SELECT 1")
    assert await cur.fetchone() == (1,)


async def pipeline(conn):
    async with conn.pipeline():
        cursors = [await conn.execute("SELECT %s::int", (i,)) for i in range(200)]
    assert [await cur.fetchone() for cur in cursors] == [(i,) for i in range(200)]


async def twenty_at_once(_):
    async def one(i):
        async with await psycopg.AsyncConnection.connect(URI, autocommit=True) as conn:
            for _ in range(20):
                cur = await conn.execute("SELECT %s::int", (i,), prepare=True)
                assert await cur.fetchone() == (i,)

    await asyncio.gather(*(one(i) for i in range(20)))


async def main():
    report = Report()
    async with await psycopg.AsyncConnection.connect(URI) as conn:
        for function in [queries, wide_rows, large_result, writes_and_a_refusal, copy, cancel, pipeline, twenty_at_once]:
            try:
                await asyncio.wait_for(function(conn), 120)
                report.ok(function.__name__)
            except Exception:  # noqa: BLE001
                report.bad(function.__name__)
            await conn.rollback()
    report.end()


asyncio.run(main())
