"""Queries with names: slow ones are reported, and those of keepers all have one."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from itertools import chain

from sqlalchemy import TextClause, select, text

from gateway.run.keeper import log_slow_query
from persistence import engine, keeper
from persistence.keeper import events
from persistence.queries import REPORT_EACH_S, UNNAMED, QueryName, SlowQueries, SlowQuery, name_of, query

NAP = query("tests.nap", "Wait for the test's clock", "SELECT :value", usual_s=2.0)


class Clock:
    """A clock that moves `step` seconds each time it is read by a query's begin and end."""

    def __init__(self) -> None:
        self.now, self.step = 1_000.0, 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


class Watched:
    """An engine whose queries take as long as the test says, and what is reported of them."""

    def __init__(self, url: str) -> None:
        self.clock, self.reports = Clock(), list[SlowQuery]()
        self.pool = engine.create(url)
        SlowQueries(self.reports.append, self.clock).watch(self.pool)

    async def run(self, statement: object, seconds: float, **values: object) -> None:
        async with self.pool.connect() as connection:
            self.clock.step = seconds
            await connection.execute(statement, values)  # type: ignore[call-overload]  # any statement
            self.clock.step = 0.0


async def test_query_beyond_its_usual_time_is_reported_once_a_minute(migrated: str) -> None:
    watched = Watched(migrated)
    await watched.run(NAP, 2.0, value=1)
    assert watched.reports == []
    name = QueryName("tests.nap", "Wait for the test's clock", 2.0)
    await watched.run(NAP, 3.0, value=1)
    assert watched.reports == [SlowQuery(name, 3.0, 1)]
    # Two more within the minute, and a third beyond it, which reports all three.
    await watched.run(NAP, 4.0, value=1)
    await watched.run(NAP, 5.0, value=1)
    watched.clock.now += REPORT_EACH_S
    await watched.run(NAP, 6.0, value=1)
    assert watched.reports[1:] == [SlowQuery(name, 6.0, 3)]
    await watched.pool.dispose()


async def test_slow_query_without_a_name_is_reported_as_unnamed(migrated: str) -> None:
    watched = Watched(migrated)
    await watched.run(select(text("1")), 1.5)
    await watched.run(text("SELECT 1"), 1.5)
    assert watched.reports == [SlowQuery(UNNAMED, 1.5, 1)]
    await watched.pool.dispose()


def test_log_of_a_slow_query_has_its_name_and_sentence() -> None:
    lines: list[tuple[str, dict[str, object]]] = []
    slow = SlowQuery(name_of(NAP), 3.14159, 2)
    log_slow_query(lambda line, **facts: lines.append((line, facts)), slow)
    facts = {
        "query": "tests.nap", "sentence": "Wait for the test's clock", "seconds": 3.142, "usual_s": 2.0,
        "runs": 2, "level": "warning",
    }  # fmt: skip
    assert lines == [("slow query", facts)]


# What the loops of a keeper run, besides the packages of `persistence/keeper/`.
LOOPS = (
    "archive.months", "backup", "engine", "ids", "resources.prices", "schema.database", "schema.partitions",
    "stripe.queue", "billing.charges", "billing.credit_balances", "billing.invoice_build", "billing.invoice_lines",
    "billing.payments", "billing.plans", "billing.proration", "billing.rerated_budgets", "billing.reratings",
    "billing.schedule", "billing.service_discounts", "billing.subscriptions", "billing.top_ups", "dunning",
    "jobs", "ledger.checkpoints", "ledger.redrive", "usage_feed.queue",
)  # fmt: skip


def test_query_of_a_keeper_has_a_name_of_its_own() -> None:
    packages = [
        pkgutil.iter_modules(package.__path__, f"{package.__name__}.") for package in (keeper, events)
    ]
    modules = [*(module.name for module in chain(*packages)), *(f"persistence.{name}" for name in LOOPS)]
    statements = {
        id(value): name_of(value).name
        for module in modules
        for value in vars(import_module(module)).values()
        if isinstance(value, TextClause)
    }
    names = [*statements.values()]
    assert len(names) > 250
    assert UNNAMED.name not in names
    assert len(names) == len({*names})
