"""A cancel costs its request alone: whatever it meets, the pool's next answers are those to the next questions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Coroutine
from decimal import Decimal
from itertools import count, product
from typing import Any

import pytest
from psycopg import waiting
from sqlalchemy import event, select, text
from sqlalchemy.exc import TimeoutError as NoneInTime
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import Command, Query, Row
from gateway.core.accounts.budgets import USER
from gateway.core.failures import FailureReport
from gateway.counters.redis.keys import partition_of
from persistence import engine as engines
from persistence.queries import insert_rows
from persistence.registry import SUBJECTS
from persistence.resources.audit import note_failures
from persistence.store import Store
from persistence.tables import audit_log
from tests import search
from tests.everywhere import known_everywhere
from tests.persistence.resources.test_budgets import ACTOR, Desk, desk

__all__ = ["desk"]

# Turns of the loop behind the start of a statement: the ends of a pipeline take as many.
TURNS = 4
FAILURES = [FailureReport(f"192.0.2.{n}", n, {"unknown": n}) for n in range(1, 9)]
WHO = [f"user {n}" for n in range(8)]
PAGE = Query({}, None, None, None, 10)


@pytest.fixture(autouse=True)
def busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let psycopg return to the loop at each wait, as in a busy process: by its clock each was long."""
    monkeypatch.setattr(waiting, "monotonic", count(0.0, 0.01).__next__)


@pytest.fixture
async def alone(migrated: str) -> AsyncIterator[AsyncEngine]:
    """A pool of one connection: what a cancel left is what is asked next."""
    pool = engines.create(migrated, connections_max=1)
    pause(pool, 0.0)
    yield pool
    await pool.dispose()


class Cancels:
    """Cancels the task that runs a statement of a pool: the one of a number, some turns behind its start.

    Only statements that begin with `of` count.
    """

    def __init__(self, pool: AsyncEngine, of: str = "") -> None:
        self.number, self.turns, self.begun, self.of = -1, 0, 0, of
        event.listen(pool.sync_engine, "before_cursor_execute", self._begin)

    def _begin(self, _: object, __: object, statement: str, *___: object) -> None:
        task = asyncio.current_task()
        assert task is not None
        if statement.startswith(self.of):
            if self.begun == self.number:
                self._turn(task, self.turns)
            self.begun += 1

    def _turn(self, task: asyncio.Task[Any], turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._turn, task, turns - 1)
        else:
            task.cancel()

    async def run(self, work: Coroutine[Any, Any, object], number: int = -1, turns: int = 0) -> int:
        """Run the work with one statement cancelled; return how many statements began."""
        self.number, self.turns, self.begun = number, turns, 0
        outcome = (await asyncio.gather(asyncio.create_task(work), return_exceptions=True))[0]
        if number < 0 and isinstance(outcome, BaseException):
            raise outcome
        self.number = -1
        return self.begun


def pause(pool: AsyncEngine, seconds: float) -> None:
    assert isinstance(pool.pool, engines.CountedPool)
    pool.pool.replaced_s_min = seconds


async def answers(pool: AsyncEngine) -> list[object]:
    async with pool.connect() as connection:
        return [await connection.scalar(text(f"SELECT {n}")) for n in (101, 102)]


async def test_a_pool_answers_right_after_lists_of_rows_were_cancelled_at_any_moment(
    desk: Desk, alone: AsyncEngine
) -> None:
    """Those of a request and of a keeper's loop."""
    budget_id = int(str((await desk.make(each=USER))["id"]))
    store, cancels = Store(alone, partition_of, wait_reason=known_everywhere), Cancels(alone, "INSERT")
    overrides = [{"who": who, "amount": Decimal(2), "until": None, "reason": None} for who in WHO]
    values: Row = {"overrides": overrides}
    command = Command("budgets", "set-overrides", ACTOR, "", dict, budget_id, values)
    for work in (lambda: store.write(command), lambda: note_failures(alone, FAILURES)):
        statements = await cancels.run(work())
        for number, turns in product(range(statements), range(TURNS)):
            await cancels.run(work(), number, turns)
            assert await answers(alone) == [101, 102], (number, turns)
    assert desk.rows("SELECT count(*) FROM budget_override") == [(len(WHO),)]


@pytest.mark.parametrize("reads", ["primary", "replica"])
async def test_a_pool_answers_right_after_a_read_of_every_resource_was_cancelled(
    alone: AsyncEngine, pool: AsyncEngine, reads: str
) -> None:
    drawn, cancels = random.Random(search.another(8)), Cancels(alone)
    store = Store(alone, partition_of)
    if reads == "replica":  # the primary itself, which never rests after a failure
        replica = engines.Replica(alone, pool, count(0.0, 10.0).__next__)
        await replica.lag()
        store = Store(pool, partition_of, replica=replica)
    for resource in sorted(SUBJECTS):
        await cancels.run(store.page(resource, PAGE), drawn.randrange(2), drawn.randrange(TURNS))
        assert await answers(alone) == [101, 102], resource


@pytest.mark.parametrize("idle", [False, True])
async def test_a_pool_drops_a_connection_that_is_in_a_pipeline(alone: AsyncEngine, *, idle: bool) -> None:
    """Also one that came back in order."""
    async with alone.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        if not idle:
            driver.pgconn.enter_pipeline_mode()
    if idle:
        driver.pgconn.enter_pipeline_mode()
    assert await answers(alone) == [101, 102]
    assert driver.closed


async def test_a_burst_of_cancels_is_followed_by_a_single_new_connection(migrated: str) -> None:
    pool, made = engines.create(migrated, connections_max=3, wait_s=0.2), count()
    event.listen(pool.sync_engine, "connect", lambda *_: next(made))
    cancels = Cancels(pool)
    taken = [await pool.connect() for _ in range(3)]
    pause(pool, 3600.0)
    for connection in taken:
        cancels.number, cancels.begun = 0, 0
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(connection.scalar(text("SELECT 101")))
        await connection.close()
    async with pool.connect() as first:
        with pytest.raises(NoneInTime):
            await pool.connect()
        assert await first.scalar(text("SELECT 101")) == 101
    assert [await answers(pool) for _ in range(4)] == [[101, 102]] * 4
    assert next(made) == 4
    pause(pool, 0.0)
    taken = [await pool.connect() for _ in range(3)]
    assert next(made) == 7
    for connection in taken:
        await connection.close()
    await pool.dispose()


class OneByOne:
    """A cursor that runs single statements alone, and has no pipeline."""

    def __init__(self) -> None:
        self.ran: list[tuple[str, object]] = []

    def execute(self, statement: str, row: object) -> None:
        self.ran.append((statement, row))


async def test_rows_of_a_list_are_run_in_turn(alone: AsyncEngine) -> None:
    cursor, rows = OneByOne(), [{"a": 1}, {"a": 2}]
    assert engines.run_each(cursor, "S", rows, None)
    assert cursor.ran == [("S", {"a": 1}), ("S", {"a": 2})]
    async with alone.connect() as connection:
        await connection.execute(text("CREATE TEMPORARY TABLE listed (a int)"))
        await connection.execute(text("INSERT INTO listed VALUES (:a)"), rows)
        assert await connection.scalar(text("SELECT sum(a) FROM listed")) == 3


async def test_insert_rows_keeps_the_order_and_the_values_of_each_type(alone: AsyncEngine) -> None:
    said: list[tuple[object, ...]] = [
        ("NULL", None, [{"a": 'b"\\'}, None, "{}"], None), ("", "{x,y}", None, None), ("a'b\n", "\\", {}, 2**53),
    ]  # fmt: skip
    names = ("actor", "person", "after", "organization_id")
    rows = [dict(zip(names, row, strict=True)) | {"action": "a", "resource": "r"} for row in said]
    async with alone.begin() as connection:
        await connection.execute(insert_rows(audit_log, rows))
        found = await connection.execute(
            select(*(audit_log.c[name] for name in names)).order_by(audit_log.c.id)
        )
        assert [tuple(row) for row in found] == said
