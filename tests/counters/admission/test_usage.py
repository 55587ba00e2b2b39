"""What a key holder is told of budgets: of the window it is now, in the unit they count."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.budgets import (
    MONEY,
    OTHERS,
    TOKENS,
    Budget,
    PersonalOverride,
    account_of,
    define_windows,
    owner_of,
)
from gateway.core.accounts.call_budgets import CallerBudget
from gateway.core.accounts.intervals import window_bounds
from gateway.core.accounts.windows import ROLLING, Carry
from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import Attribution, BudgetAccount, Caller
from gateway.core.times import HOUR_MS
from gateway.counters.admission.usage import BUDGETS_TOLD_MAX, Usages, usage
from gateway.errors import RateLimited
from tests.builders import UNITS, World, driven
from tests.counters.conftest import Connect
from tests.lua.windows import fill_places

DAY_MS = 86_400_000
DAILY = Budget(1, "a day", MONEY, 5_000_000_000, "day")
TOTAL = Budget(2, "ever", TOKENS, 900, "total")


def account(world: World, *budgets: Budget, value: str = "") -> BudgetAccount:
    name = account_of(world.caller.organization_id, budgets[0], value)
    return BudgetAccount(name, define_windows(budgets, world.now_ms()), enforced=True)


async def told(connect: Connect, world: World, *found: CallerBudget) -> list[dict[str, Any]]:
    usages = Usages(await connect(world.url), lambda: 0.0, lambda caller, said: found)
    answered = json.loads(await driven(usages.usage_of(world.caller)))
    return [limit for limit in answered["limits"] if limit["scope"] == "budget"]


async def test_what_is_used_and_held_of_each(connect: Connect, world: World) -> None:
    world.plan(None)
    both = account(world, DAILY, TOTAL)
    world.reserve(budgets=(both,), money=900_000_000, budget_tokens=70).settle(
        money=500_000_001, budget_tokens=60
    )
    world.reserve(budgets=(both,), money=1_000_000_000, budget_tokens=40)
    mine = replace(DAILY, id=3, name="mine", each="user")
    names = [
        CallerBudget(both.name, DAILY), CallerBudget(both.name, TOTAL),
        CallerBudget(account(world, mine, value="ada").name, mine),
    ]  # fmt: skip
    first, second, third = await told(connect, world, *names)
    next_ = window_bounds("day", "UTC", 1, world.now_ms())[1]
    at = datetime.fromtimestamp(next_ / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    assert first == {
        "scope": "budget", "name": "a day", "unit": "money", "limit": "5", "limit_by": "budget",
        "used": "0.500000001", "remaining": "3.499999999", "reset_at": at, "interval": "day",
    }  # fmt: skip
    assert second == {
        "scope": "budget", "name": "ever", "unit": "tokens", "limit": 900, "limit_by": "budget",
        "used": 60, "remaining": 800, "reset_at": None, "interval": "total",
    }  # fmt: skip
    assert (third["name"], third["used"], third["remaining"]) == ("mine", "0", "5")


async def test_what_was_used_before_this_window_is_not_used_of_it(connect: Connect, world: World) -> None:
    world.plan(None)
    hour = replace(DAILY, interval="hour")
    before = BudgetAccount(
        account_of(1, hour), define_windows([hour], world.now_ms() - DAY_MS), enforced=True
    )
    world.reserve(budgets=(before,), money=5).settle(money=5)
    # Kept as it was written: of a day ago, and over by now.
    windows = world.windows(before.name)
    for window in windows:
        window.start, window.next, window.after = window_bounds("hour", "UTC", 1, world.now_ms() - DAY_MS)
        window.used = 7
    world.put_windows(before.name, windows)
    [one] = await told(connect, world, CallerBudget(before.name, hour))
    assert (one["used"], one["remaining"]) == ("0", "5")


async def test_usage_of_an_owner_without_a_place_is_that_of_the_shared_account(
    connect: Connect, world: World
) -> None:
    world.plan(None)
    own = {owner_of("ada"): PersonalOverride(9_000_000_000), owner_of("bob"): PersonalOverride(8_000_000_000)}
    each = replace(DAILY, each="user", overrides=own)
    ada, bob, eve = (account(world, each, value=name) for name in ("ada", "bob", "eve"))
    world.reserve(budgets=(ada,), money=1).settle(money=1_000_000_000)
    prefix = bob.name.partition(":")[0]
    fill_places(world, until=world.now_ms() + 2 * DAY_MS, name=prefix)
    shared = replace(eve, name=f"{prefix}:{OTHERS}")  # as a call of somebody without a place is sent again
    world.reserve(budgets=(shared,), money=1).settle(money=2_000_000_000)
    limits = await told(connect, world, *(CallerBudget(one.name, each) for one in (ada, bob, eve)))
    assert [(limit["limit"], limit["limit_by"], limit["used"], limit["remaining"]) for limit in limits] == [
        ("9", "override", "1", "8"), ("5", "budget", "2", "3"), ("5", "budget", "2", "3"),
    ]  # fmt: skip


async def test_no_more_are_told_than_may_be(connect: Connect, world: World) -> None:
    many = [
        CallerBudget(f"{number:016x}", replace(TOTAL, id=number)) for number in range(BUDGETS_TOLD_MAX + 5)
    ]
    assert len(await told(connect, world, *many)) == BUDGETS_TOLD_MAX


async def test_who_is_told_is_who_asks(connect: Connect, world: World) -> None:
    asked: list[tuple[Caller, Attribution]] = []

    def budgets_of(caller: Caller, said: Attribution) -> list[CallerBudget]:
        asked.append((caller, said))
        return []

    usages = Usages(await connect(world.url), lambda: 0.0, budgets_of)
    said = Attribution("ada", project_id=7, session="s")
    await driven(usages.usage_of(world.caller, said))
    assert asked == [(world.caller, said)]
    for _ in range(59):
        await driven(usages.usage_of(world.caller, said))
    with pytest.raises(RateLimited):
        await driven(usages.usage_of(world.caller, said))


# --- usage ------------------------------------------------------------------------------
# What a key holder is told of Pay-Per-Use: what the month came to, and what the cap leaves.


PRICED = replace(UNITS, pricing=ServicePricing((PriceTier(None, Decimal("0.25")),)))


async def spends(connect: Connect, world: World) -> list[dict[str, Any]]:
    wire = await connect(world.url)
    told = json.loads(await driven(usage(wire, world.caller)))
    return [limit for limit in told["limits"] if limit["name"] == "spend_cap"]


async def test_what_was_spent_of_the_cap_is_told(connect: Connect, world: World) -> None:
    assert await spends(connect, world) == []
    world.reserve(service=PRICED).settle(units=6)
    [told] = await spends(connect, world)
    assert (told["scope"], told["used"], told["limit"], told["remaining"]) == (
        "organization", "1.5", None, None,
    )  # fmt: skip
    assert told["reset_at"].endswith("-01T00:00:00.000Z")
    world.define_organization(cap=2_000_000)
    world.reserve(service=PRICED, units=1)
    [told] = await spends(connect, world)
    assert (told["used"], told["limit"], told["remaining"]) == ("1.75", "2", "0.25")
    # What another month came to is no use of this one.
    world.put_organization(month=world.organization.month - 1, spend_held=0)
    [told] = await spends(connect, world)
    assert (told["used"], told["remaining"]) == ("0", "2")


async def test_usage_of_rolling_and_carrying_budgets_has_frees_and_carried(
    connect: Connect, world: World
) -> None:
    world.plan(None)
    rolls = Budget(4, "rolls", MONEY, 5_000_000_000, "", window=ROLLING, length_ms=5 * HOUR_MS)
    carries = replace(DAILY, id=5, name="carries", carry=Carry(9_000_000_000))
    both = account(world, rolls, carries)
    before = world.now_ms()
    world.reserve(budgets=(both,), money=2_100_000_000).settle(money=2_100_000_000)
    first, second = await told(
        connect, world, CallerBudget(both.name, rolls), CallerBudget(both.name, carries)
    )
    [freed] = first["frees"]
    part_ms = 10 * 60_000
    at = int(datetime.fromisoformat(freed["at"]).timestamp() * 1000)
    assert at in {moment // part_ms * part_ms + 31 * part_ms for moment in (before, world.now_ms())}
    assert freed["amount"] == "2.1"
    assert (first["window"], first["length"], first["interval"], first["reset_at"]) == (
        "rolling",
        "5h",
        None,
        None,
    )
    assert (first["used"], first["remaining"], "carried" in first) == ("2.1", "2.9", False)
    assert (second["carried"], second["interval"], "frees" in second) == ("0", "day", False)
