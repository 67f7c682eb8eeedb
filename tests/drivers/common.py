"""What the Python drivers' scripts share: the tour's statements and how a check reports.

A script gets its URI (verify-full) in PORTCULLIS_URI, prints one line per check and ends with 0 when all passed. The
workspace is of profile `storage` and filled with the demo's people.
"""

import os
import sys
import traceback

URI = os.environ["PORTCULLIS_URI"]

FOREIGN_WRITE = "DELETE FROM dl_cache.person_enrichments"
FOREIGN_WRITE_MESSAGE = "Customer DB writes are only allowed for schema-qualified storage tables."
PEOPLE = 4980

# Works for minutes unless it is cancelled. pg_sleep is not for customers.
LONG = "SELECT count(*) FROM (SELECT generate_series(1, 100000000000)) AS s"
# 50,000 rows of 1,000 bytes: 50 MB.
LARGE = "SELECT i, repeat('x', 1000) FROM generate_series(1, 50000) AS i"
# Rows above 80 kB: asynchronous libpq hangs on them when TLS records are longer than its buffer.
WIDE = "SELECT i, repeat('y', 100000) FROM generate_series(1, 50) AS i"


class Report:
    """Prints how each check went; `end` is the exit status."""

    def __init__(self):
        self.failed = 0

    def ok(self, name):
        print(f"ok {name}", flush=True)

    def bad(self, name):
        self.failed += 1
        print(f"FAILED {name}\n{traceback.format_exc()}", flush=True)

    def end(self):
        sys.exit(1 if self.failed else 0)
