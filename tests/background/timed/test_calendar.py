"""The calendar begins, changes and ends subscriptions on their day, with everything that follows from it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any

import pytest

from gateway.background.loops import Loop
from gateway.core.accounts.administration import Actor, Command, CommittedWrite
from gateway.counters.redis.keys import partition_of
from gateway.run.timed_loops import billing_loops
from persistence import engine
from persistence.store import Store
from tests.persistence.scenario import rows_of

ACTOR = Actor("builtin:admin", "admin")


@dataclass
class ClockedStore:
    """The store under a clock of its own, and the loop that turns it."""

    url: str
    store: Store
    calendar: Loop
    now: datetime

    async def do(
        self, resource: str, verb: str, row_id: int | None = None, **values: object
    ) -> dict[str, Any]:
        done = await self.store.write(
            Command(resource, verb, ACTOR, "test", lambda _: {}, row_id, values)
        )  # fmt: skip
        assert isinstance(done, CommittedWrite)
        return dict(done.row)

    async def on(self, day: date) -> int:
        self.now = datetime(day.year, day.month, day.day, 0, 0, 1, tzinfo=UTC)
        return await self.calendar.turn()

    def intents(self) -> list[tuple[object, ...]]:
        return rows_of(
            self.url, "SELECT account, verb, payload->>'total_amount' FROM control_write ORDER BY position"
        )


@pytest.fixture
async def clocked(migrated: str) -> AsyncIterator[ClockedStore]:
    pool = engine.create(migrated)
    store = Store(pool, partition_of, lambda: made.now)
    calendar = billing_loops(store, lambda: made.now)["calendar"]
    made = ClockedStore(migrated, store, calendar, datetime(2026, 3, 20, tzinfo=UTC))
    yield made
    await pool.dispose()


async def plan(clocked: ClockedStore, name: str, cost: str, tokens: int) -> int:
    token_plan = await clocked.do(
        "token-plans",
        "create",
        name=name,
        total_amount=tokens,
        reset_interval="monthly",
        overage_policy="bill",
    )
    made = await clocked.do(
        "subscription-plans", "create", name=name, monthly_cost=cost, annual_cost=cost,
        feature_access=[], token_plan_id=token_plan["id"],
    )  # fmt: skip
    return int(made["id"])


async def test_a_subscription_begins_changes_and_ends_on_its_days(clocked: ClockedStore) -> None:
    starter, small = (
        await plan(clocked, "Starter", "29.00", 2_000_000),
        await plan(clocked, "Small", "9.00", 500),
    )
    organization = await clocked.do("organizations", "create", name="Acme")
    tenant = await clocked.do("tenants", "create", name="web", organization_id=organization["id"])
    made = await clocked.do(
        "organization-subscriptions", "create", organization_id=organization["id"], plan_id=starter,
        start_date=date(2026, 3, 31), end_date=date(2026, 6, 30), billing_interval="monthly",
    )  # fmt: skip
    assert made["status"] == "future"
    account, owner = f"tenant:{tenant['id']}", f"organization:{organization['id']}"
    told = len(clocked.intents())

    assert await clocked.on(date(2026, 3, 30)) == 0
    assert await clocked.on(date(2026, 3, 31)) == 1
    assert clocked.intents()[told:] == [(owner, "define", None), (account, "plan", "2000000")]
    assert await clocked.on(date(2026, 3, 31)) == 0

    await clocked.do("organization-subscriptions", "change", made["id"], plan_id=small, when="period_end")
    told = len(clocked.intents())
    assert await clocked.on(date(2026, 4, 29)) == 0
    assert await clocked.on(date(2026, 5, 2)) == 1  # the keeper slept for two days
    assert clocked.intents()[told:] == [(owner, "define", None), (account, "plan", "500")]
    segments = "SELECT plan_id, start_date, end_date FROM subscription_segment ORDER BY id"
    assert rows_of(clocked.url, segments) == [
        (starter, date(2026, 3, 31), date(2026, 4, 30)),
        (small, date(2026, 4, 30), date(2026, 6, 30)),
    ]

    told = len(clocked.intents())
    assert await clocked.on(date(2026, 6, 30)) == 1
    assert clocked.intents()[told:] == [(owner, "define", None), (account, "plan", None)]
    assert rows_of(clocked.url, "SELECT status FROM organization_subscription") == [("over",)]
    assert await clocked.on(date(2026, 7, 1)) == 0
