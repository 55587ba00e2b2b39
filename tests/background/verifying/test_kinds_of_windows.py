"""Windows that roll, begin at first use or carry over are after a loss what rows and waiting entries come to."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import text

from gateway.background.verifying.budget_comparison import BudgetComparison
from gateway.background.verifying.budget_rebuild import BudgetRebuild
from gateway.core.accounts.budgets import Budget, account_of, define_windows
from gateway.core.accounts.windows import FIRST_USE, ROLLING, Carry, RollingWindow, render_length
from gateway.core.model import BudgetAccount, Verdict
from gateway.core.times import DAY_MS, HOUR_MS, MINUTE_MS, moment_of
from gateway.counters.layouts.states import WindowState
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from persistence.keeper import definitions
from persistence.keeper.verification import Accounts, BudgetUses, forget_budget_uses
from tests.background.backend import Backend, backend_at
from tests.builders import World
from tests.connections import connected
from tests.persistence.scenario import insert_budget
from tests.search import another, examples

LENGTH = 5 * HOUR_MS
PART = LENGTH // 30
NANO = 10**9


class Defined(Accounts):
    """The store, with budgets as the test has them."""

    def __init__(self, engine: Any, budgets: Sequence[Budget]) -> None:
        super().__init__(engine)
        self._budgets = budgets

    async def budgets(self, organizations: Sequence[int]) -> Mapping[int, Sequence[Budget]]:
        return dict.fromkeys(organizations, self._budgets)


@dataclass
class KindsWorld:
    """An organization with a budget of each kind, of money for all."""

    backend: Backend
    world: World
    rolls: Budget
    begins: Budget
    carries: Budget

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return self.rolls, self.begins, self.carries

    @property
    def name(self) -> str:
        return account_of(self.world.caller.organization_id, self.rolls)

    def used(self, money: int) -> None:
        """Have a call use an amount."""
        here = BudgetAccount(self.name, define_windows(self.budgets, self.world.now_ms()), enforced=True)
        call = self.world.reserve(budgets=(here,), money=money)
        assert call.verdict is Verdict.ADMITTED
        call.settle(money=money)

    def windows(self) -> dict[int, WindowState]:
        return {window.budget_id: window for window in self.world.windows(self.name)}

    def store(
        self, budget: Budget, start_ms: int, used: int, carried: int | None = None, at_end: int | None = None
    ) -> None:
        """Put a row of use there, as an earlier flush; `at_end` is the limit that its last call knew."""
        changed = None if at_end is None else 0
        with connected(self.backend.database, autocommit=True) as connection:
            connection.execute(
                "INSERT INTO budget_use (budget_id, start, value, used, carried, limit_at_end, changed)"
                " VALUES (%s, %s, '', %s, %s, %s, %s)",
                (budget.id, moment_of(start_ms), used, carried, at_end, changed),
            )

    def rows(self, budget: Budget) -> list[tuple[int, int, int | None]]:
        with connected(self.backend.database, autocommit=True) as connection:
            return connection.execute(
                "SELECT (extract(epoch FROM start) * 1000)::bigint, used::bigint, carried::bigint FROM budget_use"
                " WHERE budget_id = %s ORDER BY 1", (budget.id,),
            ).fetchall()  # fmt: skip

    async def rebuilt(self) -> int | None:
        """Rebuild the accounts of the partition; return how many were written."""
        marker = self.world.client.get(keys.marker(self.world.p))
        assert isinstance(marker, bytes)
        async with self.backend.engine.connect() as connection:
            ids = [*await connection.scalars(text("SELECT id FROM organization"))]
            organizations = await definitions.organizations(connection, ids)
        here = [
            replace(one, definition=replace(
                one.definition, terms=replace(one.definition.terms, budgets=self.budgets)
            ))
            for one in organizations
            if one.definition.organization_id == self.world.caller.organization_id
        ]  # fmt: skip
        source = BudgetUses(self.backend.engine)
        return await BudgetRebuild(source, self.backend.counters).rebuild(
            self.world.p, marker, here, went_on=True
        )

    async def differences(self) -> list[str]:
        source = Defined(self.backend.engine, self.budgets)
        comparison = BudgetComparison(source, self.backend.counters, partition_of, 0.01)
        found = await comparison.compare([self.world.caller.organization_id])
        return [f"{item.account} {item.kind} {item.difference}" for item in found.items]


@pytest.fixture
async def kept(valkey: str, migrated: str) -> AsyncIterator[KindsWorld]:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(1000)
        ids = [
            await backend.made(
                "budgets", organization_id=world.caller.organization_id, name=name, unit="money",
                amount=Decimal(500), interval="day",
            )
            for name in ("rolls", "begins", "carries")
        ]  # fmt: skip
        await backend.push()
        made = [
            Budget(ids[0], "rolls", "money", 500 * NANO, "", window=ROLLING, length_ms=LENGTH),
            Budget(ids[1], "begins", "money", 500 * NANO, "", window=FIRST_USE, length_ms=LENGTH),
            Budget(ids[2], "carries", "money", 500 * NANO, "day", carry=Carry(800 * NANO, debt=True)),
        ]
        yield KindsWorld(backend, world, *made)


async def test_lost_account_has_its_parts_window_and_carried_amount_again(kept: KindsWorld) -> None:
    now_ms = kept.world.now_ms()
    part, day = now_ms // PART * PART, now_ms // DAY_MS * DAY_MS
    kept.store(kept.rolls, part - 31 * PART, 9 * NANO)
    kept.store(kept.rolls, part - 20 * PART, 7 * NANO)
    kept.store(kept.begins, now_ms - LENGTH - 1, 5 * NANO)
    kept.store(kept.carries, day - 3 * DAY_MS, 700 * NANO, 100 * NANO)
    # left are -100, 400 and 800 (of 900) after those days
    assert await kept.rebuilt() == 1
    lost = kept.windows()
    assert lost[kept.rolls.id].parts == {part - 20 * PART: 7 * NANO}
    assert (lost[kept.begins.id].start, lost[kept.begins.id].used) == (0, 0)
    carry = lost[kept.carries.id].carry
    assert carry is not None
    assert (carry.carried, carry.begun, carry.told, lost[kept.carries.id].used) == (
        800 * NANO,
        True,
        False,
        0,
    )

    kept.used(30 * NANO)
    before = kept.windows()
    began = before[kept.begins.id].start
    assert began >= now_ms
    await kept.backend.flush()
    kept.used(3 * NANO)  # this one waits
    before = kept.windows()
    assert kept.rows(kept.carries)[-1] == (day, 30 * NANO, 800 * NANO)
    assert kept.rows(kept.begins)[-1] == (began, 30 * NANO, None)
    assert await kept.differences() == []
    kept.world.client.delete(keys.budget_account(kept.world.p, kept.name))
    assert await kept.rebuilt() == 1
    again = kept.windows()
    for budget in kept.budgets:
        assert (again[budget.id].uses, again[budget.id].used) == (
            before[budget.id].uses,
            before[budget.id].used,
        )
    assert again[kept.carries.id].carry == before[kept.carries.id].carry
    assert again[kept.begins.id].next == began + LENGTH
    assert await kept.rebuilt() == 0


async def test_lost_account_carries_by_the_limit_of_the_last_call(kept: KindsWorld) -> None:
    day = kept.world.now_ms() // DAY_MS * DAY_MS
    kept.store(kept.carries, day - DAY_MS, 70 * NANO, 0, 100 * NANO)
    kept.carries = replace(kept.carries, changed_ms=kept.world.now_ms())
    assert await kept.rebuilt() == 1
    assert kept.windows()[kept.carries.id].carried == 30 * NANO
    kept.used(NANO)
    before = kept.windows()[kept.carries.id].carry
    kept.carries = replace(kept.carries, amount=900 * NANO, changed_ms=kept.world.now_ms() + 1)
    await kept.backend.flush()
    kept.world.client.delete(keys.budget_account(kept.world.p, kept.name))
    assert await kept.rebuilt() == 1
    assert kept.windows()[kept.carries.id].carry == before


async def test_part_with_another_use_than_its_rows_is_reported_and_written(kept: KindsWorld) -> None:
    kept.used(30 * NANO)
    await kept.backend.flush()
    part = kept.world.now_ms() // PART * PART
    kept.store(kept.rolls, part - 3 * PART, 7 * NANO)
    assert await kept.differences() == [f"budget:{kept.rolls.id} drift {-7 * NANO}"]
    assert await kept.rebuilt() == 1
    assert kept.windows()[kept.rolls.id].used == 37 * NANO


async def test_last_row_of_an_account_that_carries_is_never_forgotten(kept: KindsWorld) -> None:
    day = kept.world.now_ms() // DAY_MS * DAY_MS
    for days in (700, 600):
        kept.store(kept.carries, day - days * DAY_MS, 7, 5)
        kept.store(kept.begins, day - days * DAY_MS, 7)
    with connected(kept.backend.database, autocommit=True) as connection:
        connection.execute("UPDATE budget_use SET moved_at = start")
    await forget_budget_uses(kept.backend.engine)
    assert kept.rows(kept.carries) == [(day - 600 * DAY_MS, 7, 5)]
    assert kept.rows(kept.begins) == []


@pytest.mark.parametrize("apart_ms", [-2 * HOUR_MS, -HOUR_MS, HOUR_MS // 2, HOUR_MS])
async def test_lost_account_has_the_window_again_that_another_edition_of_the_time_zones_began(
    kept: KindsWorld, apart_ms: int
) -> None:
    anchor_day = (moment_of(kept.world.now_ms()).day + 14) % 28 + 1  # no month begins today
    kept.carries = replace(kept.carries, interval="month", anchor_day=anchor_day, carry=None)
    start, next_, _ = kept.carries.form.times(kept.world.now_ms())
    kept.store(kept.carries, start + apart_ms, 7 * NANO)
    for used in (7, 10, 13):
        assert await kept.rebuilt() == 1
        window = kept.windows()[kept.carries.id]
        assert (window.start, window.next, window.used) == (
            start + apart_ms,
            next_ + apart_ms,
            used * NANO,
        )
        assert await kept.differences() == []
        kept.used(3 * NANO)
        await kept.backend.flush()
        assert kept.rows(kept.carries) == [(start + apart_ms, (used + 3) * NANO, None)]
        kept.world.client.delete(keys.budget_account(kept.world.p, kept.name))


async def test_part_of_a_rolling_window_is_kept_for_two_lengths_and_two_hours(kept: KindsWorld) -> None:
    """So a part stays while a window that has it can be rebuilt: an account has it for a length and a thirtieth."""
    draw, now_ms = random.Random(another(5)), kept.world.now_ms()
    shortest, longest = 5 * MINUTE_MS, 366 * DAY_MS
    lengths = [shortest, longest, *(MINUTE_MS * draw.randint(5, 30 * 1_440) for _ in range(examples(20)))]
    stay = set[int]()
    with connected(kept.backend.database, autocommit=True) as connection:
        for length_ms in lengths:
            budget = insert_budget(
                connection, kept.world.caller.organization_id, window=ROLLING, interval=None,
                length=render_length(length_ms),
            )  # fmt: skip
            form = RollingWindow(length_ms)
            end_ms = now_ms - 2 * length_ms - 2 * HOUR_MS
            for start_ms in (form.since(now_ms), end_ms + MINUTE_MS):
                kept.store(Budget(budget, "", "tokens", 1, ""), start_ms, 7)
            kept.store(Budget(budget, "", "tokens", 1, ""), end_ms - MINUTE_MS, 9)
            stay.add(budget)
        await forget_budget_uses(kept.backend.engine)
        rows = connection.execute(
            "SELECT budget_id, sum(used), count(*) FROM budget_use WHERE budget_id = ANY(%s) GROUP BY 1", ([*stay],)
        ).fetchall()  # fmt: skip
    assert {budget: (int(used), count) for budget, used, count in rows} == dict.fromkeys(stay, (14, 2))
