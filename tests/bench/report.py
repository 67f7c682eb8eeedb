"""What was measured, as tables to read, as Markdown for the README, and as JSON with every sample."""

import json
import os
import platform
import statistics
import time

# A figure: its key in the samples, what it is called, decimals, and whose ratio is shown: the proxy's to PgBouncer's.
FIGURES = {
    "select": [("tps", "TPS", 0, True), ("pooler_us", "pooler CPU µs/transaction", 1, True),
               ("postgres_us", "PostgreSQL CPU µs/transaction", 1, False)],
    "tpcb": [("tps", "TPS", 0, True), ("pooler_us", "pooler CPU µs/transaction", 1, True),
             ("postgres_us", "PostgreSQL CPU µs/transaction", 1, False)],
    "latency": [("p50_us", "p50 µs", 0, False), ("p90_us", "p90 µs", 0, False), ("p99_us", "p99 µs", 0, False)],
    "connect": [("connects", "connects/s", 0, True), ("pooler_ms", "pooler CPU ms/connect", 3, True),
                ("postgres_ms", "PostgreSQL CPU ms/connect", 3, False)],
    "results": [("rate", "MB/s", 0, True), ("pooler_ms", "pooler CPU ms/MB", 3, True),
                ("postgres_ms", "PostgreSQL CPU ms/MB", 3, False)],
    "copy": [("rate", "MB/s", 0, True), ("pooler_ms", "pooler CPU ms/MB", 3, True),
             ("postgres_ms", "PostgreSQL CPU ms/MB", 3, False)],
    "idle": [("idle_kb", "pooler's resident kB/client", 1, True)],
}
TITLES = {
    "select": "pgbench select-only",
    "tpcb": "pgbench TPC-B-like",
    "latency": "Latency of one client's SELECT",
    "connect": "Connecting and disconnecting",
    "results": "Large results",
    "copy": "COPY",
    "idle": "Idle clients",
}
# The proxy's figure divided by PgBouncer's.
RATIO = "ratio"
# Not about a pooler's own CPU time when there is none.
_POOLERS_ONLY = {"pooler_us", "pooler_ms", "idle_kb"}
# From here on, whoever reads is told that others kept the machine busy.
_OTHERS_MAX = 0.10


class Measured:
    """The samples of a run, and what there are none of."""

    def __init__(self, environment, given):
        self.samples, self.skipped, self.failures = {}, {}, []
        self.peers = [peer["name"] for peer in environment["peers"] if peer["name"] in given.peers]
        self.about = {
            "date": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "versions": {peer["name"]: peer["version"] for peer in environment["peers"]},
            "pool_size": given.pool_size,
            "scale": given.scale,
            "rounds": given.rounds,
            "seconds": given.seconds,
        }

    def add(self, part, case, clients, peer, number, sample):
        """The sample of one round, of which there is one at most."""
        self.samples.setdefault((part, case, clients), {}).setdefault(peer, {})[number] = sample

    def skip(self, part, case, clients, peer, reason):
        self.samples.setdefault((part, case, clients), {})
        self.skipped[(part, case, clients, peer)] = reason

    def fail(self, part, case, clients, peer, reason):
        self.failures.append({"part": part, "case": case, "clients": clients, "peer": peer, "reason": reason})

    def parts(self):
        return list(dict.fromkeys(part for part, _, _ in self.samples))

    def cases(self, part):
        return [key for key in self.samples if key[0] == part]

    def median(self, key, peer, figure):
        values = [sample[figure] for sample in self.samples[key].get(peer, {}).values()]
        return statistics.median(values) if values else None

    def ratio(self, key, figure):
        """The median of the rounds' ratios, proxy to PgBouncer: what disturbs a round disturbs both."""
        ours, theirs = (self.samples[key].get(peer, {}) for peer in ("proxy", "pgbouncer"))
        ratios = [ours[number][figure] / theirs[number][figure] for number in ours if number in theirs and theirs[number][figure]]
        return statistics.median(ratios) if ratios else None


def machine():
    model = platform.machine()
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                model = " ".join(line.partition(":")[2].split())
                break
    return f"{os.cpu_count()} × {model}, Linux {platform.release().split('-')[0]}"


def groups(measured, part):
    """The columns of one part, a group per figure: its title, its decimals, and whose they are; None is the ratio."""
    found = []
    for figure, title, digits, compare in FIGURES[part]:
        peers = [peer for peer in measured.peers if not (peer == "direct" and figure in _POOLERS_ONLY)]
        if compare and {"proxy", "pgbouncer"} <= set(measured.peers):
            peers.append(None)
        if peers:
            found.append((figure, title, digits, peers))
    return found


def rows(measured, part):
    """The cells below these columns, with the case and its clients in front."""
    for key in measured.cases(part):
        cells = [key[1], str(key[2])]
        for figure, _title, digits, peers in groups(measured, part):
            for peer in peers:
                value = measured.ratio(key, figure) if peer is None else measured.median(key, peer, figure)
                cells.append("–" if value is None else f"{value:,.{2 if peer is None else digits}f}")
        yield cells


def text(measured):
    """Tables for a terminal: the figures' titles stand over the names of the peers."""
    lines = list(about(measured))
    for part in measured.parts():
        body = list(rows(measured, part))
        names = [[peer or RATIO for peer in peers] for *_, peers in groups(measured, part)]
        head = ["", "clients", *(name for group in names for name in group)]
        widths = [max(map(len, column)) for column in zip(head, *body)]
        titles, first = [" " * (widths[0] + widths[1] + 2)], 2
        for (_figure, title, _digits, peers), group in zip(groups(measured, part), names):
            columns = slice(first, first + len(group))
            # A title that is wider than its columns widens the first of them.
            widths[first] += max(0, len(title) - sum(widths[columns]) - 2 * (len(group) - 1))
            titles.append(title.rjust(sum(widths[columns]) + 2 * (len(group) - 1)))
            first += len(group)
        lines += ["", TITLES[part], "   ".join(titles).rstrip()]
        starts = {2 + sum(len(group) for group in names[:at]) for at in range(len(names))}
        for cells in [head, *body]:
            lines.append("".join(
                cell.ljust(width) if at == 0 else ("   " if at in starts else "  ") + cell.rjust(width)
                for at, (cell, width) in enumerate(zip(cells, widths))).rstrip())
    return "\n".join(lines + notes(measured))


def markdown(measured):
    """The same tables for the README. Markdown has no column groups: a title stands with the first of its columns."""
    lines = [" ".join(about(measured))]
    for part in measured.parts():
        head = [TITLES[part], "clients"]
        for _figure, title, _digits, peers in groups(measured, part):
            names = [peer or RATIO for peer in peers]
            head += [f"{title}: {names[0]}", *names[1:]]
        lines += ["", f"| {' | '.join(head)} |", "|---|" + "--:|" * (len(head) - 1)]
        lines += [f"| {' | '.join(cells)} |" for cells in rows(measured, part)]
    return "\n".join(lines + notes(measured)) + "\n"


def about(measured):
    told = measured.about
    versions = ", ".join(f"{name}: {version}" for name, version in told["versions"].items())
    return (
        f"{told['date']}, {told['machine']}. {versions}.",
        f"TLS 1.3 (ECDSA P-256) and SCRAM to each; pool of {told['pool_size']}; pgbench scale {told['scale']};"
        f" medians of {told['rounds']} interleaved rounds of {told['seconds']} s.",
    )


def notes(measured):
    """What a reader of the tables has to know besides."""
    lines = []
    for (part, case, clients, peer), reason in measured.skipped.items():
        lines.append(f"{peer}, {part} {case} at {clients}: {reason}.")
    for failure in measured.failures:
        lines.append("NOT MEASURED: {peer} {part} {case} {clients}: {reason}".format(**failure))
    others = [sample["others"] for peers in measured.samples.values() for samples in peers.values() for sample in samples.values()
              if "others" in sample]
    if others and statistics.median(others) > _OTHERS_MAX:
        lines.append(f"Other programs used {statistics.median(others):.0%} of the machine's processors (median of the windows).")
    return [""] + [f"* {line}" for line in dict.fromkeys(lines)] if lines else []


def as_json(measured):
    results = [
        {"part": part, "case": case, "clients": clients, "peer": peer, "rounds": list(samples.values()),
         "median": {name: measured.median((part, case, clients), peer, name) for name in next(iter(samples.values()))}}
        for (part, case, clients), peers in measured.samples.items() for peer, samples in peers.items()
    ]
    skipped = [dict(zip(("part", "case", "clients", "peer"), key), reason=reason) for key, reason in measured.skipped.items()]
    document = {**measured.about, "results": results, "skipped": skipped, "failures": measured.failures}
    return json.dumps(document, ensure_ascii=False, indent=1) + "\n"


def write(path, content):
    with open(path, "w", encoding="utf-8") as file:
        file.write(content)
