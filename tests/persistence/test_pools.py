"""Connections have budgets: whoever waits for a lock, the counters or a reader leaves some to others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import date
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest
from psycopg import sql
from sqlalchemy import make_url, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.admin.http.guard import ROOM
from gateway.background.timed.invoicing import Invoicing
from gateway.core.billing.payments import DunningSchedule
from gateway.counters.redis.keys import partition_of
from gateway.files import UrlFile
from gateway.run.timed_loops import billing_loops
from persistence import engine as engines
from persistence.keeper.definitions import Pushes
from persistence.schedule import Schedule
from persistence.store import Store
from tests.letterhead import LETTERHEAD
from tests.persistence.april import April, april, at, plan
from tests.persistence.billing.test_due import customer
from tests.persistence.test_schedule import Agreeing
from tests.waiting import eventually

__all__ = ["april"]

ACCOUNT = "organization:1"
WHO = text("SELECT current_user")
LOCK = "SELECT pg_advisory_xact_lock(hashtextextended('control:' || %s, 0))"
INVOICE = """
WITH made AS (INSERT INTO organization (name) VALUES ('Pools') RETURNING id, currency)
INSERT INTO invoice (organization_id, period_start, period_end, currency)
SELECT id, '2026-04-01', '2026-05-01', currency FROM made RETURNING id"""


@pytest.fixture
async def small(migrated: str) -> AsyncIterator[Callable[[int], AsyncEngine]]:
    made = []

    def of(connections: int) -> AsyncEngine:
        made.append(engines.create(migrated, connections_max=connections))
        return made[-1]

    yield of
    for each in made:
        await each.dispose()


async def test_who_waits_for_another_keepers_push_has_no_connection(
    migrated: str, small: Callable[[int], AsyncEngine]
) -> None:
    pool = small(2)
    pushes = [Pushes(pool) for _ in range(4)]  # none knows of the others' turns
    taken = 0

    async def push(of: Pushes) -> None:
        nonlocal taken
        async with of.waiting([ACCOUNT]):
            taken += 1

    with psycopg.connect(migrated) as other:
        other.execute(LOCK, (ACCOUNT,))
        waiting = [asyncio.create_task(push(of)) for of in pushes for _ in range(3)]
        for _ in range(20):
            assert await engines.answers(pool)
        assert taken == 0
        other.rollback()
    await asyncio.gather(*waiting)
    assert taken == len(waiting)


async def test_counters_that_hang_have_so_many_connections_at_most(
    small: Callable[[int], AsyncEngine],
) -> None:
    pool, answered = small(3), asyncio.Event()
    pushes = Pushes(pool, at_once_max=2)
    begun = 0

    async def push(account: str) -> None:
        nonlocal begun
        async with pushes.waiting([account]):
            begun += 1
            await answered.wait()

    waiting = [asyncio.create_task(push(f"organization:{each}")) for each in range(1, 7)]

    async def are_begun() -> bool:
        return begun == 2

    await eventually(are_begun)
    assert await engines.answers(pool)
    assert begun == 2
    answered.set()
    await asyncio.gather(*waiting)
    assert begun == 6


async def test_files_that_are_read_slowly_have_none_of_the_pool(
    migrated: str, small: Callable[[int], AsyncEngine]
) -> None:
    with psycopg.connect(migrated) as connection:
        found = connection.execute(INVOICE).fetchone()
    assert found is not None
    store = Store(small(1), partition_of)
    file = store.usage(found[0])
    assert await anext(file)
    assert (await store.get("invoices", found[0]))["id"] == found[0]
    assert [piece async for piece in file] == []


async def test_each_loop_that_bills_is_content_with_one_connection(
    april: April, small: Callable[[int], AsyncEngine]
) -> None:
    ids = await customer(april, await plan(april, "Small", "30.00", 1_000), date(2026, 4, 1), None)
    await april.on(at(4, 1))
    await april.do(
        "credit-additions", "create", organization_id=ids["organization"], credits_added=5, unit_cost=2,
        invoicing="prepaid",
    )  # fmt: skip
    await april.on(at(5, 3))
    pool = small(1)
    store = Store(pool, partition_of, lambda: april.now, letterhead=LETTERHEAD)
    due, schedule = Schedule(pool, store, 24, lambda: april.now), DunningSchedule.read("3,7", 21)

    def log(_: str, **__: object) -> None:
        """Nobody reads it."""

    turns: list[Callable[[], Awaitable[object]]] = [
        *(one.turn for one in billing_loops(store, lambda: april.now, schedule).values()),
        Invoicing(due, Agreeing(), log, finalize=True, at_once=4).turn,
    ]  # fmt: skip
    for turn in turns:
        await turn()
    made = april.rows("SELECT source, status, total_amount::text FROM invoice ORDER BY id")
    assert [(source, status) for source, status, _ in made] == [
        ("credit_addition", "finalized"),
        (None, "finalized"),
    ]


async def test_a_keeper_has_no_more_connections_than_are_said(migrated: str) -> None:
    pools, people = engines.Pools.create(migrated, batches=4), engines.PeoplePools.create(migrated)
    of_all = (pools.loops, pools.billing, pools.share, people.staff, people.organizations, people.probe)
    sizes = [each.pool.size() for each in of_all]  # type: ignore[attr-defined]  # a queue
    await pools.dispose()
    await people.dispose()
    # Files; the flusher, the schedule's claims, whether a silent PostgreSQL answers, who waits for trials.
    assert sum(sizes) + ROOM.staff_max + ROOM.others_max + 4 <= 43


async def test_a_statement_of_an_organization_takes_no_longer_than_it_may(migrated: str) -> None:
    slow = engines.create(migrated, statement_s_max=1)
    with pytest.raises(DBAPIError, match="statement timeout"):
        async with slow.begin() as connection:
            await connection.execute(text("SELECT pg_sleep(60)"))
    await slow.dispose()


async def test_a_process_is_seen_by_its_name_unless_its_address_has_another(migrated: str) -> None:
    named = {}
    for url in (migrated, f"{migrated}{'&' if '?' in migrated else '?'}application_name=ours"):
        engine = engines.create(url)
        async with engine.begin() as connection:
            named[url] = await connection.scalar(text("SELECT current_setting('application_name')"))
        await engine.dispose()
    assert [*named.values()] == [engines.CONNECT["fallback_application_name"], "ours"]


async def test_who_we_are_is_read_again_from_the_file_of_the_url(migrated: str, tmp_path: Path) -> None:
    """A connection that is open stays; whatever is made later, of a pool or apart, is of another user."""
    names = [f"app_{uuid4().hex[:12]}" for _ in range(2)]
    path = tmp_path / "url"

    def become(name: str) -> str:
        url = make_url(migrated).set(username=name, password="p").render_as_string(hide_password=False)
        path.write_text(url)
        return url

    with psycopg.connect(migrated, autocommit=True) as admin:
        for name in names:
            admin.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD 'p'").format(sql.Identifier(name)))
        try:
            engine = engines.create(UrlFile(become(names[0]), str(path)), connections_max=2)
            async with engine.connect() as first:
                assert await first.scalar(WHO) == names[0]
                become(names[1])
                async with engine.connect() as second, engines.apart(engine) as third:
                    assert [await each.scalar(WHO) for each in (first, second, third)] == [*names, names[1]]
                    assert await engines.alive(engine)
            await engine.dispose()
        finally:
            for name in names:
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(name)))
