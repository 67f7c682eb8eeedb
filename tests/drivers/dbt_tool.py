"""dbt: a project with a seed, tables, tests and docs, run as its command line is run."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

from importlib.metadata import version

from tour import CA, DATABASE, HOST, OTHER_CA, PASSWORD, PORT, PREFIX, USER, Tour, rotate

SCHEMA, NAME = PREFIX.split(".")
tour = Tour("dbt", f"dbt-core {version('dbt-core')}, dbt-postgres {version('dbt-postgres')}")
home = pathlib.Path(tempfile.mkdtemp(prefix="dbt-"))

FILES = {
    "dbt_project.yml": f"name: tour\nversion: '1.0'\nprofile: tour\nmodels:\n  tour:\n    +materialized: table\nseeds:\n  tour:\n    +quote_columns: false\n",
    f"seeds/{NAME}_seed.csv": "id,name,amount,at,done\n" + "".join(f"{i},東京 {i},{i}.5,2024-02-29 01:02:03,true\n" for i in range(1, 101)) + "101,,,,\n",
    f"models/{NAME}_people.sql": "SELECT id, person_id, full_name FROM dl_resolved.people",
    f"models/{NAME}_joined.sql": "SELECT p.person_id, s.name FROM {{ ref('" + NAME + "_people') }} p JOIN {{ ref('" + NAME + "_seed') }} s ON s.id = p.id",
    "refused/grown.sql": "{{ config(materialized='incremental', unique_key='id', incremental_strategy='delete+insert') }}\n"
                                "SELECT id, name FROM {{ ref('" + NAME + "_seed') }} {% if is_incremental() %} WHERE id > 50 {% endif %}",
    "models/schema.yml": f"version: 2\nmodels:\n  - name: {NAME}_people\n    columns:\n      - name: person_id\n        data_tests: [unique, not_null]\n",
    "refused/view.sql": "{{ config(materialized='view') }} SELECT 1 AS a",
}


def profile(password=PASSWORD, database=DATABASE, sslmode="verify-full", ca=CA):
    target = {"type": "postgres", "host": HOST, "port": PORT, "dbname": database, "user": USER, "password": password, "schema": SCHEMA,
              "threads": 4, "sslmode": sslmode, "sslrootcert": ca}
    (home / "profiles.yml").write_text(json.dumps({"tour": {"target": "dev", "outputs": {"dev": target}}}))


def dbt(*arguments):
    """Runs dbt; gives whether it went well and what it said."""
    done = subprocess.run([sys.executable, "-c", "from dbt.cli.main import cli; cli()", *arguments, "--no-use-colors"], cwd=home, capture_output=True, text=True,
                          timeout=200, env={**os.environ, "DBT_PROFILES_DIR": str(home), "DO_NOT_TRACK": "1", "DBT_SEND_ANONYMOUS_USAGE_STATS": "false"})
    return done.returncode == 0, done.stdout + done.stderr


def well(*arguments):
    ok, text = dbt(*arguments)
    assert ok, text
    return text


def refused(words, **changes):
    profile(**changes)
    try:
        ok, text = dbt("debug", "--connection")
        assert not ok and words in text, text
    finally:
        profile()


for name, text in FILES.items():
    (home / name).parent.mkdir(parents=True, exist_ok=True)
    (home / name).write_text(text)
profile()


@tour.check
def connect():
    assert "All checks passed!" in well("debug", "--connection")


@tour.check
def wrong_authority():
    refused("certificate verify failed", ca=OTHER_CA)


@tour.check
def wrong_password():
    refused("password authentication failed", password="wrong")


@tour.check
def types():
    assert "PASS=1" in well("seed")


@tour.check
def transaction():
    # Tables are built beside the old ones and put in their place, each in a transaction; four at once.
    for _ in range(2):
        assert "ERROR=0" in well("run")


@tour.check
def batch():
    assert "ERROR=0" in well("test")


@tour.check
def refusal():
    # A view is nothing that this profile lets its login define, and neither is the temporary table of a model that grows.
    for name, words in [("view", "Only read statements or schema-qualified storage tables are supported."), ("grown", "without TEMPORARY")]:
        model = home / f"models/{NAME}_{name}.sql"
        shutil.copy(home / f"refused/{name}.sql", model)
        ok, text = dbt("run", "--select", f"{NAME}_{name}")
        if name == "grown":
            assert ok, text
            ok, text = dbt("run", "--select", f"{NAME}_{name}")
        model.unlink()
        assert not ok and words in text, text
    assert "PASS=1" in well("run", "--select", f"{NAME}_people")


@tour.check
def introspection():
    well("docs", "generate")
    catalog = json.loads((home / "target/catalog.json").read_text())
    assert set(catalog["nodes"][f"model.tour.{NAME}_people"]["columns"]) == {"id", "person_id", "full_name"}


@tour.check
def rotation():
    password = rotate()
    refused("password authentication failed")
    profile(password=password)
    well("debug", "--connection")


tour.not_applicable("it is psycopg2's, which is in the matrix; dbt has no way of its own to it",
                    "channel_binding", "no_tls", "unknown_database", "startup_options", "wide_rows", "large_result", "prepared", "prepared_redefined",
                    "insert_many", "empty", "notice", "server_error", "listen", "copy_in", "copy_out", "copy_broken", "cancel", "timeout", "settings", "pool")
tour.not_applicable("dbt lets nobody put statements into its transactions", "refused_in_transaction", "refused_in_savepoint", "refused_in_batch")
tour.run()
shutil.rmtree(home)
