"""What the Python programs of the matrix share: the texts, the values, and how a check reports. See checks.toml."""

import asyncio
import datetime as dt
import decimal
import inspect
import json
import math
import os
import sys
import threading
import traceback
import uuid

HOST, PORT, DATABASE = os.environ["PGHOST"], int(os.environ["PGPORT"]), os.environ["PGDATABASE"]
USER, PASSWORD, CA, OTHER_CA = (os.environ[name] for name in ["PGUSER", "PGPASSWORD", "PGSSLROOTCERT", "PGOTHERCERT"])
FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE = os.environ["FOREIGN_WRITE"], os.environ["FOREIGN_WRITE_MESSAGE"]
LONG, STREAM, WIDE = os.environ["LONG"], os.environ["STREAM"], os.environ["WIDE"]
PREFIX = "storage." + os.environ["TABLE_PREFIX"]
PEOPLE = 4980

UTC = dt.timezone.utc
# A column's type and a value for it; the next row of every table of these is all NULL.
VALUES = [
    ("boolean", True),
    ("smallint", -32768),
    ("integer", 2147483647),
    ("bigint", -(2**63)),
    ("real", 1.5),
    ("double precision", math.pi),
    ("double precision", math.inf),
    ("numeric", decimal.Decimal("-12345678901234567890.0123456789")),
    ("text", "Þóra 東京 🐘 ' \" \\ \n\t %s $1 ?"),
    ("text", ""),
    ("varchar(20)", "Zoë"),
    ("bytea", bytes(range(256))),
    ("bytea", b""),
    ("uuid", uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")),
    ("date", dt.date(2024, 2, 29)),
    ("time", dt.time(23, 59, 59, 999999)),
    ("timestamp", dt.datetime(1999, 12, 31, 23, 59, 59, 1)),
    ("timestamptz", dt.datetime(2024, 3, 31, 1, 30, tzinfo=UTC)),
    ("interval", dt.timedelta(days=3, seconds=5, microseconds=7)),
    ("integer[]", [1, None, 3]),
    ("text[]", ["a,b", 'q"uote', None, "", "NULL", "{}"]),
    ("jsonb", {"a": [1, None, "ü"], "b": {"c": 1.5}}),
    ("json", [True, {"x": "y"}]),
]


def emit(**members):
    print(json.dumps(members), flush=True)


def rotate():
    """Has the login's password rotated; gives the new one."""
    emit(ask="rotate")
    password = sys.stdin.readline().strip()
    assert password
    return password


def raises(kinds, call, *arguments, **named):
    """The error that the call must end with."""
    try:
        call(*arguments, **named)
    except kinds as error:
        return error
    raise AssertionError("no error")


async def raises_async(kinds, awaitable):
    try:
        await awaitable
    except kinds as error:
        return error
    raise AssertionError("no error")


def later(seconds, call):
    """Calls from another thread, after a while."""
    timer = threading.Timer(seconds, call)
    timer.start()
    return timer


class Tour:
    """The checks of one program, in the order in which they are written. A check is a function of the name that
    checks.toml gives it; it gets nothing, or what `session` gives, which is asked for again after a check that failed."""

    def __init__(self, driver, version):
        emit(driver=driver, version=version)
        self.checks = []

    def check(self, function):
        self.checks.append(function)
        return function

    def not_applicable(self, why, *names):
        for name in names:
            emit(check=name, result="not applicable", why=why)

    def passed(self, function):
        emit(check=function.__name__.rstrip("_"), result="ok")

    def failed(self, function):
        emit(check=function.__name__.rstrip("_"), result="failed", why=traceback.format_exc())

    def run(self, session=None, reset=None, end=None):
        current = None
        for function in self.checks:
            try:
                if inspect.signature(function).parameters:
                    current = session() if current is None else current
                    function(current)
                    if reset:
                        reset(current)
                else:
                    function()
                self.passed(function)
            except Exception:  # every failure is reported, and the next check goes on
                self.failed(function)
                current = None
        if current is not None and end:
            end(current)

    def run_async(self, session, reset, end):
        async def all_of_them():
            current = None
            for function in self.checks:
                try:
                    if inspect.signature(function).parameters:
                        current = await session() if current is None else current
                        await asyncio.wait_for(function(current), 120)
                        await reset(current)
                    else:
                        await asyncio.wait_for(function(), 120)
                    self.passed(function)
                except Exception:  # as above
                    self.failed(function)
                    current = None
            if current is not None:
                await end(current)

        asyncio.run(all_of_them())
