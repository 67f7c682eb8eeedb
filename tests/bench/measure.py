"""Measures the peers that tests/bench/run has started, side by side, in interleaved rounds. See tests/README.md.

  tests/bench/run                      everything; about 40 minutes
  tests/bench/run --quick              the CPU time of the poolers per transaction; about two minutes
  tests/bench/run connect idle         these parts only
"""

import argparse
import contextlib
import dataclasses
import json
import math
import multiprocessing
import os
import re
import resource
import subprocess
import sys
import tempfile
import time

import client as wire
import processes
import report

PEERS = ("direct", "pgbouncer", "proxy")
MODES = ("simple", "extended", "prepared")
CLIENTS = (1, 16, 64, 200)
QUICK_CLIENTS = (16, 64)
# Before a window opens: pools are filled, statements are prepared and verdicts are known by then.
WARM_UP_SECONDS = 1
# Two cores want more than one process that connects; more than four of them take the cores from who is measured.
STORM_PROCESSES = 4
COPY_LINE = b"x" * 99 + b"\n"
COPY_BLOCK = COPY_LINE * 8192
_PROGRESS = re.compile(rb"progress: ([0-9.]+) s, ([0-9.]+) tps")


class NotMeasurable(Exception):
    """A peer cannot do this at all, for a known reason; no failure of the measurement."""


@dataclasses.dataclass(frozen=True)
class Peer:
    """One way to the same tables. Password and file names come from tests/bench/run."""

    name: str
    version: str
    pid: int
    port: int
    user: str
    password: str
    database: str
    # A database of the same pooler in session mode, where its transaction mode has no prepared statements.
    session_database: str
    is_pooler: bool

    def connect(self, setting, database=""):
        return wire.Client(("localhost", self.port), setting.context, self.user, self.password, database or self.database)

    def cpu_seconds(self):
        """The CPU time of the pooler; for the way without one, zero."""
        return processes.cpu_seconds(self.pid) if self.is_pooler else 0.0

    def database_for(self, mode, clients, pool_size):
        if mode != "prepared" or not self.session_database:
            return self.database
        if clients > pool_size:
            raise NotMeasurable(f"no prepared statements in transaction mode, and {clients} sessions exceed the pool")
        return self.session_database


@dataclasses.dataclass
class Setting:
    """What all measurements of a run share."""

    peers: list
    postgres_pid: int
    ca_file: str
    pgbench: str
    pool_size: int
    scale: int
    seconds: int
    idle_clients: int
    clients: tuple
    context: object

    def postgres_seconds(self):
        return processes.tree_cpu_seconds(self.postgres_pid)


class Window:
    """CPU time and wall time between two moments: of the pooler, of PostgreSQL, and of everybody else on the machine.
    Ours are `client_pid` and its children."""

    def __init__(self, setting, peer, client_pid):
        self._setting, self._peer, self._client_pid = setting, peer, client_pid
        self._from = self._read()

    def end(self):
        """Since the window opened, seconds: (wall, pooler, PostgreSQL), and what part of the machine others have used."""
        wall, pooler, postgres, client, machine = (now - then for now, then in zip(self._read(), self._from))
        others = (machine - pooler - postgres - client) / wall / os.cpu_count()
        return wall, pooler, postgres, min(max(0.0, others), 1.0)

    def _read(self):
        return (time.monotonic(), self._peer.cpu_seconds(), self._setting.postgres_seconds(),
                processes.tree_cpu_seconds(self._client_pid), processes.machine_cpu_seconds())


# ── pgbench ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def pgbench_environment(setting, peer, database):
    return {
        "PATH": os.environ["PATH"],
        "PGHOST": "localhost",
        "PGHOSTADDR": "127.0.0.1",
        "PGPORT": str(peer.port),
        "PGUSER": peer.user,
        "PGPASSWORD": peer.password,
        "PGDATABASE": database,
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": setting.ca_file,
        "LC_ALL": "C",
    }


def pgbench(setting, peer, script, mode, clients):
    """One run of pgbench. The window opens and closes with its lines of progress, so that neither connecting nor
    disconnecting counts."""
    database = peer.database_for(mode, clients, setting.pool_size)
    last = WARM_UP_SECONDS + setting.seconds
    command = [setting.pgbench, "-n", "-b", script, "-M", mode, "-c", str(clients), "-j", str(min(clients, os.cpu_count())),
               "-P", "1", "-T", str(last + 1)]
    process = subprocess.Popen(command, env=pgbench_environment(setting, peer, database), stdin=subprocess.DEVNULL,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    window, transactions, opened_at, before, said, sample = None, 0.0, 0.0, 0.0, [], None
    for line in process.stderr:
        progress = _PROGRESS.match(line)
        if not progress:
            said.append(line.decode(errors="replace").strip())
            continue
        at, tps = map(float, progress.groups())
        if window:
            transactions += tps * (at - before)
            if sample is None and at >= last - 0.5:
                sample = transaction_costs(window.end(), transactions, at - opened_at)
        elif at >= WARM_UP_SECONDS - 0.5:
            window, opened_at = Window(setting, peer, process.pid), at
        before = at
    if process.wait() != 0 or any("error" in line or "aborted" in line for line in said):
        raise RuntimeError(f"pgbench: {' / '.join(said[-3:])}")
    if sample is None:
        raise RuntimeError("pgbench reported no progress in the window")
    return sample


def transaction_costs(window, transactions, seconds):
    if transactions <= 0:
        raise RuntimeError("no transaction ended in the window")
    _wall, pooler, postgres, others = window
    return {
        "tps": transactions / seconds,
        "pooler_us": pooler / transactions * 1e6,
        "postgres_us": postgres / transactions * 1e6,
        "others": others,
    }


def tps_cases(setting):
    return [(mode, clients) for clients in setting.clients for mode in MODES]


def measure_select(setting, peer, mode, clients):
    return pgbench(setting, peer, "select-only", mode, clients)


def measure_tpcb(setting, peer, mode, clients):
    return pgbench(setting, peer, "tpcb-like", mode, clients)


def latency_cases(_setting):
    return [(mode, 1) for mode in MODES]


def measure_latency(setting, peer, mode, clients):
    """What one client waits for one SELECT, from pgbench's log of every transaction, less the warm-up's."""
    database = peer.database_for(mode, clients, setting.pool_size)
    with tempfile.TemporaryDirectory() as directory:
        command = [setting.pgbench, "-n", "-b", "select-only", "-M", mode, "-c", "1", "-l", "--log-prefix=latency",
                   "-T", str(WARM_UP_SECONDS + setting.seconds)]
        window = Window(setting, peer, os.getpid())
        done = subprocess.run(command, env=pgbench_environment(setting, peer, database), cwd=directory, check=False,
                              stdin=subprocess.DEVNULL, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"pgbench: {done.stderr.strip()[-300:]}")
        others = window.end()[3]
        (name,) = os.listdir(directory)
        with open(os.path.join(directory, name), encoding="ascii") as file:
            lines = [line.split() for line in file]
    # Columns: client, number, time in µs, script, and the second and microsecond at which it ended.
    ended = [int(fields[4]) + int(fields[5]) / 1e6 for fields in lines]
    times = sorted(int(fields[2]) for fields, at in zip(lines, ended) if at >= ended[0] + WARM_UP_SECONDS)
    if not times:
        raise RuntimeError("no transaction ended after the warm-up")
    return {**{f"p{part}_us": percentile(times, part) for part in (50, 90, 99)}, "others": others}


def percentile(ascending, part):
    return ascending[max(0, math.ceil(len(ascending) * part / 100) - 1)]


# ── Connecting ───────────────────────────────────────────────────────────────────────────────────────────────────────


def connect_cases(_setting):
    return [("TLS 1.3 + SCRAM", STORM_PROCESSES)]


def measure_connect(setting, peer, _case, clients):
    """Sessions that log in and end, one after the other in a few processes. CPU time includes their end."""
    context = multiprocessing.get_context("fork")
    counts, stop = context.Array("Q", clients, lock=False), context.Event()
    errors = context.SimpleQueue()
    # A pooler asks the server for its parameters before it lets the first client in.
    peer.connect(setting).close()
    workers = [context.Process(target=storm, args=(setting, peer, counts, number, stop, errors), daemon=True)
               for number in range(clients)]
    for worker in workers:
        worker.start()
    try:
        time.sleep(WARM_UP_SECONDS)
        window, before = Window(setting, peer, os.getpid()), sum(counts)
        time.sleep(setting.seconds)
        connects = sum(counts) - before
        wall, pooler, postgres, others = window.end()
    finally:
        stop.set()
        for worker in workers:
            worker.join(10)
            worker.kill()
    if not errors.empty():
        raise RuntimeError(f"a connection failed: {errors.get()}")
    if connects == 0:
        raise RuntimeError("nobody could connect")
    return {"connects": connects / wall, "pooler_ms": pooler / connects * 1e3, "postgres_ms": postgres / connects * 1e3,
            "others": others}


def storm(setting, peer, counts, number, stop, errors):
    try:
        while not stop.is_set():
            peer.connect(setting).close()
            counts[number] += 1
    except Exception as error:  # It belongs to whoever reads the queue, whatever it is.
        errors.put(f"{type(error).__name__}: {error}")


# ── Much data ────────────────────────────────────────────────────────────────────────────────────────────────────────


def bulk(setting, peer, transfer):
    """CPU time per MB (1,000,000 bytes of messages) of what `transfer` moves, which is repeated for some time."""
    session = peer.connect(setting)
    with contextlib.closing(session):
        transfer(session)
        window, moved = Window(setting, peer, os.getpid()), 0
        end = time.monotonic() + setting.seconds
        while time.monotonic() < end:
            moved += transfer(session)
        wall, pooler, postgres, others = window.end()
    megabytes = moved / 1e6
    return {"rate": megabytes / wall, "pooler_ms": pooler / megabytes * 1e3, "postgres_ms": postgres / megabytes * 1e3,
            "others": others}


def results_cases(_setting):
    return [("rows of 100 bytes", 1), ("rows of 8 kB", 1)]


def measure_results(setting, peer, case, _clients):
    if case == "rows of 100 bytes":
        rows = min(3, setting.scale) * 100_000
        text = f"SELECT * FROM pgbench_accounts LIMIT {rows}"
    else:
        rows, text = 10_000, "SELECT repeat('x', 8000) FROM generate_series(1, 10000)"
    return bulk(setting, peer, lambda session: session.count_result(text, f"SELECT {rows}"))


def copy_cases(_setting):
    return [("out", 1), ("in", 1)]


def measure_copy(setting, peer, case, _clients):
    if case == "out":
        rows = setting.scale * 100_000
        return bulk(setting, peer, lambda session: session.count_result("COPY pgbench_accounts TO STDOUT", f"COPY {rows}"))

    def copy_in(session):
        session.query("TRUNCATE public.bench_copy")
        return session.copy_in("COPY public.bench_copy FROM STDIN", COPY_BLOCK, 40)

    return bulk(setting, peer, copy_in)


# ── Idle clients ─────────────────────────────────────────────────────────────────────────────────────────────────────


def idle_cases(setting):
    return [("after one SELECT", setting.idle_clients)]


def measure_idle(setting, peer, _case, clients):
    """The slope of the pooler's resident memory: between a tenth of the clients and all of them, one after the other,
    so that no buffer which a burst of logins needed is counted for those who stay."""
    if not peer.is_pooler:
        raise NotMeasurable("a process for each, which share memory")
    sessions, sizes = [], {}
    with contextlib.ExitStack() as stack:
        for number in range(1, clients + 1):
            session = peer.connect(setting)
            stack.callback(session.close)
            sessions.append(session)
            session.query("SELECT 1")
            if number in (clients // 10, clients):
                sizes[number] = settled_bytes(peer.pid)
    return {"idle_kb": (sizes[clients] - sizes[clients // 10]) / (clients - clients // 10) / 1e3}


def settled_bytes(pid):
    """Resident memory once it has been the same for half a second, or after five."""
    size = processes.resident_bytes(pid)
    for _ in range(10):
        time.sleep(0.5)
        last, size = size, processes.resident_bytes(pid)
        if size == last:
            break
    return size


# ── The run ──────────────────────────────────────────────────────────────────────────────────────────────────────────

# In this order: idle comes first, since what other parts have freed would take in the first of the idle clients.
PARTS = {
    "idle": (idle_cases, measure_idle),
    "select": (tps_cases, measure_select),
    "tpcb": (tps_cases, measure_tpcb),
    "latency": (latency_cases, measure_latency),
    "connect": (connect_cases, measure_connect),
    "results": (results_cases, measure_results),
    "copy": (copy_cases, measure_copy),
}
# A round of these is enough: memory does not vary as time does.
ONE_ROUND = {"idle"}


def run(setting, parts, rounds, measured):
    """All rounds of all parts. The peers take turns within each case, in an order that turns round with every round."""
    for part in parts:
        cases, measure = PARTS[part]
        for number in range(1 if part in ONE_ROUND else rounds):
            for case, clients in cases(setting):
                for peer in setting.peers if number % 2 == 0 else setting.peers[::-1]:
                    took = time.monotonic()
                    try:
                        sample = measure(setting, peer, case, clients)
                    except NotMeasurable as reason:
                        measured.skip(part, case, clients, peer.name, str(reason))
                        continue
                    except Exception as error:  # One failure must not lose what the others have found.
                        measured.fail(part, case, clients, peer.name, f"{type(error).__name__}: {error}")
                        say(f"{part} {case} {clients} {peer.name}: {error}")
                        continue
                    measured.add(part, case, clients, peer.name, number, sample)
                    figures = "  ".join(f"{name} {value:.4g}" for name, value in sample.items())
                    say(f"round {number + 1} {part} {case} {clients:>4} {peer.name:<10} {figures}"
                        f"  ({time.monotonic() - took:.1f} s)")


def say(text):
    print(f"        {text}", file=sys.stderr, flush=True)


def arguments():
    parser = argparse.ArgumentParser(
        prog="tests/bench/run", formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__,
        epilog="PGBOUNCER=/path takes another PgBouncer than Debian's, PORTCULLIS_POSTGRES_BIN another PostgreSQL, and "
        "PORTCULLIS_BINARIES=/directory binaries that were built before, such as another commit's. "
        "Exit code 1: something could not be measured; 2: wrong usage, or the peers did not start.")
    parser.add_argument("part", nargs="*", help=f"what to measure: {', '.join(PARTS)} (default: all; with --quick: select)")
    parser.add_argument("--quick", action="store_true", help="16 and 64 clients, short windows, no direct connections")
    parser.add_argument("--rounds", type=bounded(1, 100), help="rounds, of which the medians are shown (default 3)")
    parser.add_argument("--seconds", type=bounded(1, 600), help="length of a window (default 5; with --quick 2)")
    parser.add_argument("--clients", type=several(bounded(1, 400)), metavar="N,…", help="clients of select and tpcb (default 1,16,64,200)")
    parser.add_argument("--idle-clients", type=bounded(100, 9000), default=2000, help="clients of idle (default 2000)")
    parser.add_argument("--pool-size", type=bounded(1, 80), default=20, help="connections to PostgreSQL (default 20)")
    parser.add_argument("--scale", type=bounded(1, 1000), help="pgbench's scale: 100,000 rows each (default 20; with --quick 5)")
    parser.add_argument("--peers", type=several(peer_name), metavar="NAME,…",
                        help="who is measured (default direct,pgbouncer,proxy; with --quick pgbouncer,proxy)")
    parser.add_argument("--json", metavar="FILE", help="write every sample of every round there")
    parser.add_argument("--markdown", metavar="FILE", help="write the tables there, as the README shows them")
    parser.add_argument("--environment", help=argparse.SUPPRESS)
    given = parser.parse_args()
    for part in given.part:
        if part not in PARTS:
            parser.error(f"there is no part {part!r}; there are: {', '.join(PARTS)}")
    wanted = given.part or (["select"] if given.quick else PARTS)
    given.part = [part for part in PARTS if part in wanted]
    given.rounds = given.rounds or 3
    given.seconds = given.seconds or (2 if given.quick else 5)
    given.scale = given.scale or (5 if given.quick else 20)
    given.clients = given.clients or (QUICK_CLIENTS if given.quick else CLIENTS)
    given.peers = given.peers or (PEERS[1:] if given.quick else PEERS)
    return given


def several(one):
    def parts(text):
        return tuple(one(part) for part in text.split(","))

    return parts


def peer_name(text):
    if text not in PEERS:
        raise argparse.ArgumentTypeError(f"there is no peer {text!r}; there are: {', '.join(PEERS)}")
    return text


def bounded(least, most):
    def number(text):
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"{value} is not within {least} and {most}")
        return value

    return number


def main():
    given = arguments()
    if not given.environment:
        # tests/bench/run asks what to start; a mistake in the arguments has ended it by now.
        print(given.pool_size, given.scale, given.idle_clients)
        return 0
    with open(given.environment, encoding="utf-8") as file:
        environment = json.load(file)
    # Each idle client is an open file here.
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    setting = Setting(
        peers=[Peer(**peer) for peer in environment["peers"] if peer["name"] in given.peers],
        postgres_pid=environment["postgres_pid"], ca_file=environment["ca_file"], pgbench=environment["pgbench"],
        pool_size=given.pool_size, scale=given.scale, seconds=given.seconds, idle_clients=given.idle_clients,
        clients=given.clients, context=wire.tls_context(environment["ca_file"]))
    measured = report.Measured(environment, given)
    try:
        run(setting, given.part, given.rounds, measured)
    except KeyboardInterrupt:
        measured.fail("run", "", 0, "", "interrupted")
    print(report.text(measured))
    if given.json:
        report.write(given.json, report.as_json(measured))
    if given.markdown:
        report.write(given.markdown, report.markdown(measured))
    return 1 if measured.failures else 0


if __name__ == "__main__":
    sys.exit(main())
