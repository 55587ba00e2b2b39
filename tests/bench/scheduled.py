"""Organizations a second that the schedule drafts and finalizes, with one keeper process and with two.

Each organization has a tenant, a subscription, units at a price on ten days of each month and a reset; its
charges are written, as the hourly loop does. Every month is drafted when it is over and finalized when its
grace is, with the accounts compared with the counters first. Months take turns, one keeper and two: a slow
moment of the machine strikes both. A statement is what PostgreSQL is asked, transactions' ends with them.
Prints one line of JSON. Usage: python -m tests.bench.scheduled [--organizations N] [--months N] [--page PAGE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median

import psycopg
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.background.timed.invoicing import AccountCloser, Invoicing
from gateway.background.verifying.reconciler import Reconciler
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.redis.keys import partition_of
from persistence import engine
from persistence.keeper.verification import Accounts
from persistence.resources.integrity import ReconciliationResults
from persistence.schedule import Schedule
from persistence.schema import migrate
from persistence.store import Store
from tests.bench.flush import postgres, postgres_cpu_s, postmaster
from tests.bench.months import YEAR, fill
from tests.bench.page import PAGE, publish
from tests.conftest import ValkeyServer
from tests.letterhead import LETTERHEAD

GRACE_HOURS = 24
# As the setting has it where nobody set it.
AT_ONCE = 4
MONTHS_MAX = 12
INVARIANTS = ("owed", "days", "invoice", "payments", "gapless")


@dataclass(frozen=True, slots=True)
class Turn:
    """One month by so many keepers: drafted, then finalized."""

    keepers: int
    organizations: int
    draft_s: float
    finalize_s: float
    draft_statements: int
    finalize_statements: int
    keeper_cpu_s: float
    postgres_cpu_s: float

    @property
    def rate(self) -> float:
        """Organizations drafted and finalized a second."""
        return self.organizations / (self.draft_s + self.finalize_s)


class Keeper:
    """A keeper process, as far as it invoices; it makes what is due at a moment, and says what it took."""

    def __init__(self, url: str, redis_url: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.scheduled", "--keeper", url, redis_url],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.told()

    def at(self, moment: datetime) -> None:
        """Let it begin."""
        assert self._process.stdin is not None
        print(moment.isoformat(), file=self._process.stdin, flush=True)

    def told(self) -> dict[str, float]:
        """Wait until it is done."""
        assert self._process.stdout is not None
        said: dict[str, float] = json.loads(self._process.stdout.readline())
        return said

    def stop(self) -> None:
        """End it."""
        self._process.communicate()


async def serve(url: str, redis_url: str) -> None:
    """Be a keeper: for each moment on standard input make what is due then."""
    now = datetime(YEAR, 1, 1, tzinfo=UTC)
    pool, wire = engine.create(url), RedisConnection(parse_url(redis_url), time.monotonic)
    await wire.open()
    counted = _counted(pool)
    store = Store(pool, partition_of, lambda: now, letterhead=LETTERHEAD)
    counters, accounts = KeeperCounters(wire), Accounts(pool)
    check = Reconciler(
        counters, accounts, ReconciliationResults(pool, partition_of), lambda: now, partition_of=partition_of
    )
    due = Schedule(pool, store, GRACE_HOURS, lambda: now)
    invoicing = Invoicing(due, AccountCloser(counters, accounts, check), _log, finalize=True, at_once=AT_ONCE)
    print("{}", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        now = datetime.fromisoformat(line.strip())
        statements, cpu = counted[0], _cpu_s()
        made, left = await invoicing.turn()
        told = {"made": made, "left": left, "statements": counted[0] - statements, "cpu_s": _cpu_s() - cpu}
        print(json.dumps(told), flush=True)
    await wire.close()
    await pool.dispose()


def _log(event: str, **more: object) -> None:
    if more.get("level") == "warning":
        print(event, more, file=sys.stderr)


def _counted(pool: AsyncEngine) -> list[int]:
    """Counts what PostgreSQL is asked from now on: statements, ends of transactions, whether it is there."""
    asked = [0]

    def one(*_: object) -> None:
        asked[0] += 1

    for name in ("before_cursor_execute", "begin", "commit", "rollback"):
        event.listen(pool.sync_engine, name, one)
    event.listen(pool.sync_engine.pool, "checkout", one)
    return asked


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@contextmanager
def keepers(url: str, redis_url: str) -> Iterator[Sequence[Keeper]]:
    """Two keeper processes."""
    started = [Keeper(url, redis_url) for _ in range(2)]
    try:
        yield started
    finally:
        for each in started:
            each.stop()


def measure(url: str, redis_url: str, organizations: int, months: int) -> list[Turn]:
    """Invoice each month, by one keeper and by two in turns: one, two, two, one and so on."""
    asyncio.run(fill(url, redis_url, organizations, months))
    server, turns = postmaster(url), []
    with keepers(url, redis_url) as both:
        for month in range(1, months + 1):
            some = both[: 2 if month % 4 in {2, 3} else 1]
            over = datetime(YEAR + month // 12, month % 12 + 1, 1, 6, tzinfo=UTC)
            before = postgres_cpu_s(server)
            drafted, draft_s = _together(some, over)
            finalized, finalize_s = _together(some, over + timedelta(hours=GRACE_HOURS))
            asked = [sum(each["statements"] for each in told) for told in (drafted, finalized)]
            cpu_s = sum(each["cpu_s"] for each in (*drafted, *finalized))
            turns.append(Turn(
                len(some), organizations, draft_s, finalize_s, int(asked[0]), int(asked[1]), cpu_s,
                postgres_cpu_s(server) - before,
            ))  # fmt: skip
    return turns


def _together(some: Sequence[Keeper], moment: datetime) -> tuple[list[dict[str, float]], float]:
    started = time.perf_counter()
    for each in some:
        each.at(moment)
    told = [each.told() for each in some]
    return told, time.perf_counter() - started


def summary(turns: Sequence[Turn]) -> dict[str, float]:
    """The figures: medians over months, and how many times as fast two are as one."""
    found: dict[str, float] = {}
    for count, name in ((1, "one"), (2, "two")):
        some = [turn for turn in turns if turn.keepers == count]
        found |= {
            f"{name}_per_second": round(median(turn.rate for turn in some), 1),
            f"{name}_drafted_per_second": round(median(one.organizations / one.draft_s for one in some), 1),
            f"{name}_finalized_per_second": round(
                median(one.organizations / one.finalize_s for one in some), 1
            ),
        }
    made = sum(turn.organizations for turn in turns)
    return found | {
        "ratio": round(found["two_per_second"] / found["one_per_second"], 2),
        "statements_a_draft": round(sum(turn.draft_statements for turn in turns) / made, 1),
        "statements_a_final": round(sum(turn.finalize_statements for turn in turns) / made, 1),
        "keeper_cpu_ms": round(1000 * sum(turn.keeper_cpu_s for turn in turns) / made, 2),
        "postgres_cpu_ms": round(1000 * sum(turn.postgres_cpu_s for turn in turns) / made, 2),
    }


def report(organizations: int, found: Mapping[str, float]) -> str:
    """The figures as Markdown."""
    rows = [
        f"| {name} | {found[f'{key}_drafted_per_second']:,.0f} | {found[f'{key}_finalized_per_second']:,.0f}"
        f" | {found[f'{key}_per_second']:,.0f} |"
        for key, name in (("one", "one keeper"), ("two", "two keepers"))
    ]
    said = (
        f"Two are {found['ratio']:.2f} times as fast as one. PostgreSQL is asked"
        f" {found['statements_a_draft']:.1f} times for a draft and {found['statements_a_final']:.1f} times"
        f" for a final invoice. Both together take {found['keeper_cpu_ms']:.1f} ms of a keeper's CPU and"
        f" {found['postgres_cpu_ms']:.1f} ms of PostgreSQL's."
    )
    head = f"| {organizations:,} organizations | drafted a second | finalized a second | both a second |"
    return "\n".join([head, "|---|---:|---:|---:|", *rows, "", said])


def broken(url: str) -> int:
    """How many rows break an invariant of money; uses were filled in as roll-ups alone."""
    views = " UNION ALL ".join(f"SELECT account FROM invariant_{name}" for name in INVARIANTS)
    with psycopg.connect(url) as connection:
        [count] = connection.execute(f"SELECT count(*) FROM ({views}) AS v").fetchone() or (0,)  # type: ignore[arg-type]  # our own words
    return int(count)


def main() -> int:
    """Fill, invoice, print; 1 where an invoice is missing or an invariant broken."""
    parser = argparse.ArgumentParser(prog="scheduled")
    parser.add_argument("--organizations", type=int, default=1_000)
    parser.add_argument("--months", type=int, default=4, choices=range(2, MONTHS_MAX + 1))
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    parser.add_argument("--keeper", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.keeper:
        asyncio.run(serve(*options.keeper))
        return 0
    with tempfile.TemporaryDirectory(prefix="tollkeeper-scheduled-") as folder, postgres() as url:
        server = ValkeyServer(Path(folder))
        server.start()
        try:
            migrate.upgrade(url)
            turns = measure(url, server.url, options.organizations, options.months)
            missing = options.organizations * options.months - final(url)
            violations = broken(url)
        finally:
            server.stop()
    found = summary(turns)
    print(json.dumps({**found, "missing": missing, "violations": violations, "turns": [*map(asdict, turns)]}))
    if options.page:
        publish(options.page, "scheduled", report(options.organizations, found))
    return 1 if missing or violations else 0


def final(url: str) -> int:
    """How many invoices are final."""
    with psycopg.connect(url) as connection:
        [count] = connection.execute(
            "SELECT count(*) FROM invoice WHERE status = 'finalized'"
        ).fetchone() or (0,)
    return int(count)


if __name__ == "__main__":
    sys.exit(main())
