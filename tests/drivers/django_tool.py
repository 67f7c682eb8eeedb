"""Django: its backend's connect, migrations' schema editor, ORM, transactions, inspectdb, its pool and server-side cursors."""

import datetime as dt
import decimal
import io
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import django
from django.conf import settings as configuration

from tour import (DATABASE, FOREIGN_WRITE, FOREIGN_WRITE_MESSAGE, HOST, LONG, OTHER_CA, PASSWORD, PEOPLE, PORT, PREFIX, STREAM, USER, WIDE,
                  Tour, raises, rotate)


def database(**changes):
    options = {"sslmode": "verify-full", "sslrootcert": os.environ["PGSSLROOTCERT"], **changes.pop("OPTIONS", {})}
    return {"ENGINE": "django.db.backends.postgresql", "HOST": HOST, "PORT": PORT, "NAME": DATABASE, "USER": USER, "PASSWORD": PASSWORD,
            "OPTIONS": options, **changes}


configuration.configure(DATABASES={"default": database()}, INSTALLED_APPS=["django.contrib.postgres"], USE_TZ=True, TIME_ZONE="Asia/Tokyo",
                        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField")
django.setup()

from django.contrib.postgres.fields import ArrayField  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import DatabaseError, DataError, IntegrityError, OperationalError, ProgrammingError, connection, connections, models, transaction  # noqa: E402
from django.db.utils import NotSupportedError  # noqa: E402

SCHEMA, NAME = PREFIX.split(".")
tour = Tour("django", f"{django.get_version()}, psycopg")


class Owner(models.Model):
    name = models.CharField(max_length=100, unique=True)

    class Meta:
        app_label, db_table = "tour", f'{SCHEMA}"."{NAME}_owner'


class Note(models.Model):
    owner = models.ForeignKey(Owner, models.CASCADE, null=True, db_index=False)
    body = models.TextField(null=True)
    extra = models.JSONField(null=True)
    tags = ArrayField(models.TextField(null=True), null=True)
    amount = models.DecimalField(max_digits=30, decimal_places=10, null=True)
    data = models.BinaryField(null=True)
    key = models.UUIDField(null=True)
    at = models.DateTimeField(null=True)
    day = models.DateField(null=True)
    span = models.DurationField(null=True)
    done = models.BooleanField(null=True)

    class Meta:
        app_label, db_table = "tour", f'{SCHEMA}"."{NAME}_note'


class Person(models.Model):
    person_id = models.TextField()
    full_name = models.TextField()

    class Meta:
        app_label, db_table, managed = "tour", 'dl_resolved"."people', False


def alias(name, **changes):
    connections.databases[name] = {**connections.databases["default"], **database(**changes)}
    if hasattr(connections._connections, name):
        delattr(connections._connections, name)
    return connections[name]


def one(text, on=connection, values=None):
    with on.cursor() as cur:
        cur.execute(text, values)
        return cur.fetchone()[0] if cur.description else None


def refused(words, **changes):
    error = raises(OperationalError, alias("refused", **changes).ensure_connection)
    assert words in str(error), error


@tour.check
def connect():
    assert one("SELECT 1") == 1 and connection.pg_version >= 140000


@tour.check
def channel_binding():
    assert one("SELECT 1", alias("bound", OPTIONS={"channel_binding": "require"})) == 1


@tour.check
def wrong_authority():
    refused("certificate verify failed", OPTIONS={"sslrootcert": OTHER_CA})


@tour.check
def no_tls():
    refused("encrypted connections only", OPTIONS={"sslmode": "disable"})


@tour.check
def wrong_password():
    refused("password authentication failed", PASSWORD="wrong")


@tour.check
def unknown_database():
    refused("does not exist", NAME="template1")


@tour.check
def startup_options():
    other = alias("options", OPTIONS={"options": "-c statement_timeout=61s", "isolation_level": 3})
    assert (one("SHOW statement_timeout", other), one("SHOW timezone", other)) == ("61s", "UTC")


@tour.check
def types():
    with connection.schema_editor(atomic=False) as editor:
        for model in [Owner, Note]:
            editor.create_model(model)
    values = {"body": "Þóra 東京 🐘 ' \" \\ %s", "extra": {"a": [1, None, "ü"]}, "tags": ["a,b", 'q"', None, ""],
              "amount": decimal.Decimal("-12345678901234567890.0123456789"), "data": bytes(range(256)), "key": uuid.UUID(int=7),
              "at": dt.datetime(2024, 3, 31, 1, 30, tzinfo=dt.timezone.utc), "day": dt.date(2024, 2, 29), "span": dt.timedelta(days=3, microseconds=7),
              "done": True}
    note = Note.objects.get(pk=Note.objects.create(owner=Owner.objects.create(name="Zoë"), **values).pk)
    assert {name: bytes(getattr(note, name)) if name == "data" else getattr(note, name) for name in values} == values
    empty = Note.objects.get(pk=Note.objects.create().pk)
    assert [getattr(empty, name) for name in values] == [None] * len(values)
    assert Note.objects.filter(extra__a__contains="ü", tags__contains=["a,b"], at__year=2024).count() == 1


@tour.check
def wide_rows():
    with connection.cursor() as cur:
        cur.execute(WIDE)
        assert sum(len(row[1]) for row in cur.fetchall()) == 5_000_000


@tour.check
def large_result():
    # iterator() is a cursor WITH HOLD outside of a transaction.
    assert sum(1 for _ in Person.objects.iterator(chunk_size=500)) == PEOPLE
    with transaction.atomic():
        assert sum(1 for _ in Person.objects.order_by("id").iterator(chunk_size=500)) == PEOPLE
    with connection.cursor() as cur:
        cur.execute(STREAM)
        assert sum(len(row[1]) for row in cur.fetchall()) == 20_000_000


@tour.check
def prepared():
    other = alias("bound_on_the_server", OPTIONS={"server_side_binding": True})
    for i in range(1, 16):
        assert one("SELECT person_id FROM dl_resolved.people WHERE id = %s", other, [i]) == f"pe_{i:06}"
        assert Person.objects.using("bound_on_the_server").get(pk=i).person_id == f"pe_{i:06}"


@tour.check
def prepared_redefined():
    list(Note.objects.all())
    field = models.IntegerField(null=True)
    field.set_attributes_from_name("added")
    with connection.schema_editor(atomic=False) as editor:
        editor.add_field(Note, field)
    try:
        assert Note.objects.count() == 2 and len(list(Note.objects.all())) == 2
    except NotSupportedError:
        assert len(list(Note.objects.all())) == 2


@tour.check
def batch():
    Owner.objects.bulk_create([Owner(name=f"n{i}") for i in range(500)], batch_size=100)
    rows = list(Owner.objects.filter(name__startswith="n"))
    for row in rows:
        row.name += "!"
    assert Owner.objects.bulk_update(rows, ["name"], batch_size=100) == 500


@tour.check
def insert_many():
    made = Owner.objects.bulk_create([Owner(name=f"m{i}") for i in range(300)])
    assert len({row.pk for row in made}) == 300
    Owner.objects.bulk_create([Owner(name="m1")], update_conflicts=True, unique_fields=["name"], update_fields=["name"])
    assert Owner.objects.update_or_create(name="m2", defaults={"name": "m2!"})[1] is False


@tour.check
def empty():
    assert one("-- nothing") is None


@tour.check
def notice():
    seen = []
    connection.ensure_connection()
    connection.connection.add_notice_handler(lambda diag: seen.append(diag.severity))
    one(f"DROP TABLE IF EXISTS {PREFIX}_nothing")
    assert seen == ["NOTICE"], seen


@tour.check
def refusal():
    error = raises(ProgrammingError, one, FOREIGN_WRITE + " WHERE person_id = %s", connection, ["x"])
    assert error.__cause__.sqlstate == "42501" and FOREIGN_WRITE_MESSAGE in str(error) and "HINT:" in str(error)
    raises(ProgrammingError, Person.objects.filter(pk=1).update, full_name="x")
    assert one("SELECT 1") == 1


@tour.check
def server_error():
    assert raises(IntegrityError, Owner.objects.create, name="Zoë").__cause__.sqlstate == "23505"
    raises(DataError, one, "SELECT 'x'::int")
    assert one("SELECT 1") == 1


@tour.check
def listen():
    assert raises(ProgrammingError, one, "LISTEN a").__cause__.sqlstate == "42501"


@tour.check
def transaction_():
    before = Owner.objects.count()
    with transaction.atomic():
        Owner.objects.create(name="kept")
    transaction.set_autocommit(False)
    Owner.objects.create(name="lost")
    transaction.rollback()
    transaction.set_autocommit(True)
    assert Owner.objects.count() == before + 1
    with transaction.atomic():
        assert Note.objects.select_for_update().first() is not None


@tour.check
def refused_in_transaction():
    before = Owner.objects.count()

    def both():
        with transaction.atomic():
            Owner.objects.create(name="lost")
            raises(ProgrammingError, one, FOREIGN_WRITE)
            one("SELECT 1")

    raises(DatabaseError, both)
    assert Owner.objects.count() == before


@tour.check
def refused_in_savepoint():
    before = Owner.objects.count()

    def inner():
        with transaction.atomic():
            one("CREATE TABLE unqualified (id int)")

    with transaction.atomic():
        raises(ProgrammingError, inner)
        Owner.objects.create(name="after")
    assert Owner.objects.count() == before + 1


@tour.check
def refused_in_batch():
    with connection.cursor() as cur:
        raises(ProgrammingError, cur.executemany, "DELETE FROM dl_cache.person_enrichments WHERE id = %s", [(1,), (2,)])
        raises(ProgrammingError, cur.execute, f"BEGIN; {FOREIGN_WRITE}; COMMIT")
    connection.close()


@tour.check
def copy_in():
    one(f"CREATE TABLE {PREFIX}_copy (id int, body text)")
    with connection.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy FROM STDIN") as copy:
        copy.write("".join(f"{i}\t東京\n" for i in range(20_000)))
    assert one(f"SELECT count(*) FROM {PREFIX}_copy") == 20_000


@tour.check
def copy_out():
    with connection.cursor() as cur, cur.copy(f"COPY {PREFIX}_copy TO STDOUT") as copy:
        assert sum(bytes(part).count(b"\n") for part in copy) == 20_000


tour.not_applicable("Django's COPY is psycopg's, whose broken COPYs are in the matrix", "copy_broken")
tour.not_applicable("Django has no cancel of its own; psycopg's is in the matrix", "cancel")


@tour.check
def timeout():
    one("SET statement_timeout = 300")
    assert raises(OperationalError, one, LONG).__cause__.sqlstate == "57014"
    one("RESET statement_timeout")


@tour.check
def settings():
    one("SET extra_float_digits = 2")
    assert one("SHOW extra_float_digits", alias("other")) == "1"
    for _ in range(5):
        assert one("SHOW extra_float_digits") == "2"
    connection.close()
    assert one("SHOW extra_float_digits") == "1"


@tour.check
def introspection():
    with connection.cursor() as cur:
        connection.introspection.table_names(cur, include_views=True)
        connection.introspection.get_constraints(cur, f"{NAME}_note")
        connection.introspection.get_sequences(cur, f"{NAME}_note")
    out = io.StringIO()
    # inspectdb looks at what the search path shows.
    alias("inspected", OPTIONS={"options": "-c search_path=storage"})
    call_command("inspectdb", database="inspected", stdout=out)
    assert f"db_table = '{NAME}_note'" in out.getvalue(), out.getvalue()
    call_command("sqlflush", stdout=io.StringIO())


@tour.check
def pool():
    alias("pooled", OPTIONS={"pool": {"min_size": 1, "max_size": 4}})

    def work(i):
        on = connections["pooled"]
        try:
            return one("SELECT %s::int", on, [i])
        finally:
            on.close()

    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(work, range(40))) == list(range(40))
    connections["pooled"].close_pool()


@tour.check
def rotation():
    assert Person.objects.count() == PEOPLE
    password = rotate()
    assert Person.objects.count() == PEOPLE
    assert one("SELECT 1", alias("fresh", PASSWORD=password)) == 1
    refused("password authentication failed")


tour.run()
