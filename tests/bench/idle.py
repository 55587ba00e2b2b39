"""What a Tollkeeper costs that nobody calls, and what its programs cost to start.

`tollkeeper up` of each checkout runs with its demo and more tenants, all at the same time, so what else the
machine does meets all. Once they are quiet one window counts CPU, memory, commands to Valkey and statements
to PostgreSQL. `--who` then has PostgreSQL log statements, and prints the most frequent. `--starts` counts
the CPU that programs of each checkout take to start, in turns, and how soon a second `up` is ready.
Prints a table a checkout beside the others.
Usage: python -m tests.bench.idle [CHECKOUT …] [--tenants 20] [--seconds 40] [--who] [--starts]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis

from tests import plain_http
from tests.bench.machine import BenchError, cpu_s, families_cpu_s, family, leave_nothing_behind, rss_mib

READY_S_MAX, STOPS_S_MAX = 180.0, 60.0
QUIET_S = 30.0
WHO_S = 20.0
STARTS = 5
MOST_FREQUENT = 40
SERVERS = ("PostgreSQL", "Valkey")  # their children come and go
# What each program loads before it does anything, and commands until they would ask the network.
PROGRAMS: Mapping[str, Sequence[str]] = {
    "a gateway worker's imports": ("-c", "import uvloop, gateway.__main__, gateway.app"),
    "the keeper's loops' imports": ("-c", "import uvloop, gateway.__main__, gateway.run.keeper"),
    "`tollkeeper --version`": ("-m", "gateway", "--version"),
    "`tollkeeper --help`": ("-m", "gateway", "--help"),
    "`tollkeeper tenant list`": ("-m", "gateway", "tenant", "list"),
    "`tollkeeper tenant --help`": ("-m", "gateway", "tenant", "--help"),
    "`tollkeeper usage`": ("-m", "gateway", "usage"),
}
Row = dict[str, float]


@dataclass(frozen=True, slots=True)
class Stack:
    """A running `tollkeeper up`: its checkout, its processes by what they are, what it told."""

    checkout: Path
    place: Path
    pid: int
    facts: dict[str, Any]

    def groups(self) -> dict[str, list[int]]:
        """Processes of each part; what a keeper started for people is apart."""
        pids = self.facts["pids"]
        keeper = family(pids["keeper"])
        return {
            "keeper": keeper[:1], "people": keeper[1:], "gateway": list(pids["gateway"]),
            "PostgreSQL": [pids["postgres"]], "Valkey": [pids["redis"]], "supervisor": [self.pid],
        }  # fmt: skip


def main() -> int:
    """Measure, and print what was found."""
    leave_nothing_behind()
    parser = argparse.ArgumentParser(prog="idle", description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[Path.cwd()])
    parser.add_argument("--tenants", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--who", action="store_true")
    parser.add_argument("--starts", action="store_true")
    options = parser.parse_args()
    checkouts = [one.resolve() for one in options.checkouts]
    with ExitStack() as ending:
        folder = ending.enter_context(tempfile.TemporaryDirectory(prefix="tollkeeper-idle-"))
        places = [Path(folder) / str(number) for number in range(len(checkouts))]
        stacks = [ending.enter_context(_up(*one)) for one in zip(checkouts, places, strict=True)]
        for stack in stacks:
            _fill(stack, options.tenants)
        time.sleep(QUIET_S)
        quiet = f"{options.tenants} tenants, nobody calls"
        print(_table(checkouts, _idle(stacks, options.seconds), quiet), flush=True)
        if options.who:
            for stack in stacks:
                _who(stack)
    if options.starts:
        print(_table(checkouts, _starts(checkouts), "Starts"), flush=True)
    return 0


@contextmanager
def _up(checkout: Path, place: Path) -> Iterator[Stack]:
    place.mkdir(exist_ok=True)
    words = ["up", "--json", "--gateway-port", "0", "--admin-port", "0", "--data-dir", "data"]
    with (place / "log").open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", *words], stdout=subprocess.PIPE, stderr=log, cwd=place,
            env=_environment(checkout),
        )  # fmt: skip
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise BenchError(f"{checkout} does not start: {(place / 'log').read_text()[-800:]}")
        yield Stack(checkout, place, process.pid, json.loads(line))
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(STOPS_S_MAX)


def _environment(checkout: Path) -> dict[str, str]:
    clean = {name: each for name, each in os.environ.items() if not name.startswith("TOLLKEEPER_")}
    return clean | {"PYTHONPATH": str(checkout)}


def _fill(stack: Stack, tenants: int) -> None:
    """Make tenants, each with an organization, a user and a key."""

    def post(name: str, body: dict[str, object]) -> int:
        answer = plain_http.post(
            f"{stack.facts['admin_url']}/admin/v1/{name}", json=body, timeout=60,
            headers={"Authorization": f"Bearer {stack.facts['admin_token']}"},
        )  # fmt: skip
        if answer.status_code >= 300:
            raise BenchError(f"{name}: {answer.status_code} {answer.text[:200]}")
        return int(answer.json()["id"])

    plan = post("token-plans", {"name": "bench", "total_amount": 1_000_000, "reset_interval": "daily"})
    for number in range(tenants):
        organization = post("organizations", {"name": f"o{number}"})
        tenant = post("tenants", {"organization_id": organization, "name": f"t{number}", "plan_id": plan})
        post("api-keys", {"tenant_id": tenant, "name": "k"})


def _idle(stacks: Sequence[Stack], seconds: float) -> list[Row]:
    before, began = [_counted(one) for one in stacks], time.monotonic()
    time.sleep(seconds)
    after, lasted = [_counted(one) for one in stacks], time.monotonic() - began
    found = []
    for stack, first, last in zip(stacks, before, after, strict=True):
        rates = {name: (last[name] - first[name]) / lasted for name in first}
        row = {name: rate * 100 if name.endswith("core %") else rate for name, rate in rates.items()}
        for name, pids in stack.groups().items():
            if name not in SERVERS:
                row[f"{name}, MiB"] = sum(map(rss_mib, pids))
        found.append(row)
    return found


def _counted(stack: Stack) -> Row:
    found = {
        f"{name}, core %": families_cpu_s(pids) if name in SERVERS else cpu_s(pids)
        for name, pids in stack.groups().items()
    }
    with redis.Redis.from_url(stack.facts["redis_url"]) as client:
        given = client.info("commandstats")
    ours = ("info", "auth", "hello", "client|setinfo", "client|setname")
    found["commands to Valkey/s"] = sum(
        one["calls"] for name, one in given.items() if name.removeprefix("cmdstat_") not in ours
    )
    with psycopg.connect(stack.facts["database_url"], autocommit=True) as connection:
        query = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
        row = connection.execute(query).fetchone()
        assert row is not None
        found["transactions of PostgreSQL/s"] = row[0]
    return found


def _who(stack: Stack) -> None:
    """Print who asks what: statements as they are logged, commands by their names."""
    with psycopg.connect(stack.facts["database_url"], autocommit=True) as connection:
        connection.execute("SELECT 1")
    log = stack.place / "data/logs/postgres.log"
    postgres, auto = stack.facts["pids"]["postgres"], stack.place / "data/postgres/postgresql.auto.conf"
    auto.write_text("log_statement = 'all'\nlog_line_prefix = '%m [%p] %e %a '\n", encoding="utf-8")
    os.kill(postgres, signal.SIGHUP)
    size = log.stat().st_size
    with redis.Redis.from_url(stack.facts["redis_url"]) as client:
        before = client.info("commandstats")
        time.sleep(WHO_S)
        after = client.info("commandstats")
    auto.write_text("", encoding="utf-8")
    os.kill(postgres, signal.SIGHUP)
    with log.open(encoding="utf-8", errors="replace") as file:
        file.seek(size)
        text = file.read()
    seen = Counter(
        re.sub(r"\s+", " ", one)[:140]
        for one in re.findall(r"LOG:  (?:statement|execute [^:]*): (.*(?:\n(?!\d{4}-).*)*)", text)
    )
    print(f"{stack.checkout}: statements a second")
    for statement, count in seen.most_common(MOST_FREQUENT):
        print(f"  {count / WHO_S:6.2f}  {statement}")
    print("commands a second")
    given = {name: one["calls"] - before.get(name, {"calls": 0})["calls"] for name, one in after.items()}
    for name, count in sorted(given.items(), key=lambda one: -one[1]):
        if count:
            print(f"  {count / WHO_S:6.2f}  {name.removeprefix('cmdstat_')}")


def _starts(checkouts: Sequence[Path]) -> list[Row]:
    """The least CPU of some starts of each program, in turns, then how soon a second `up` is ready."""
    found: list[Row] = [{} for _ in checkouts]
    with tempfile.TemporaryDirectory(prefix="tollkeeper-idle-") as folder:
        for name, words in PROGRAMS.items():
            tries: list[list[float]] = [[] for _ in checkouts]
            for _ in range(STARTS):
                for checkout, costs in zip(checkouts, tries, strict=True):
                    costs.append(_cost_s(words, checkout, folder))
            for row, costs in zip(found, tries, strict=True):
                row[f"{name}, CPU ms"] = min(costs) * 1000
        for number, (checkout, row) in enumerate(zip(checkouts, found, strict=True)):
            place = Path(folder) / f"up{number}"
            with _up(checkout, place):
                pass
            row["second `up` ready, s"] = min(_ready_s(checkout, place) for _ in range(STARTS))
    return found


def _cost_s(words: Sequence[str], checkout: Path, place: str) -> float:
    """User and system time of one program, seconds; whether it succeeds is not asked."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, *words], cwd=place, env=_environment(checkout), capture_output=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _ready_s(checkout: Path, place: Path) -> float:
    began = time.monotonic()
    with _up(checkout, place):
        return time.monotonic() - began


def _table(checkouts: Sequence[Path], rows: Sequence[Row], title: str) -> str:
    heads = [f"| {title} | {' | '.join(one.name for one in checkouts)} |", "|---|" + "---:|" * len(checkouts)]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return "\n".join(
        heads + [f"| {name} | {' | '.join(f'{row.get(name, 0):.2f}' for row in rows)} |" for name in names]
    )


if __name__ == "__main__":
    sys.exit(main())
