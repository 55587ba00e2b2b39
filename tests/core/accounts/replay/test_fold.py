"""Replay: what budgets would have refused, equal to a second calculation for drawn budgets and calls."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from math import ceil
from random import Random
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget, PersonalOverride, owner_of
from gateway.core.accounts.replay.calls import StoredCall
from gateway.core.accounts.replay.fold import BudgetFold, Replayed
from gateway.core.accounts.windows import FIRST_USE, ROLLING, Carry
from gateway.core.times import DAY_MS, HOUR_MS
from gateway.errors import Unprocessable
from tests.core.accounts.replay import recount

FROM = round(datetime(2026, 10, 19, 3, tzinfo=UTC).timestamp() * 1000)
TO = FROM + 12 * DAY_MS
SETS = range(20)
ZONES = ("UTC", "Europe/Berlin", "America/New_York")


def replayed(budgets: list[Budget], calls: list[StoredCall], **maxima: int) -> Replayed:
    folded = BudgetFold(budgets, FROM, TO, lambda call, model: None, **maxima)
    for call in calls:
        folded.add(call)
    return folded.result()


def drawn_calls(random: Random) -> list[StoredCall]:
    """Return some calls in order: in a few bursts, over the change of clocks, with amounts of any size."""
    moments = sorted(
        random.choice((0, 4, 6, 6, 7, 11)) * DAY_MS + random.randrange(random.choice((HOUR_MS, DAY_MS)))
        for _ in range(50)
    )
    return [
        StoredCall(
            FROM + at, random.choice((0, 1, random.randrange(10**9), random.randrange(10**13))),
            random.randrange(3_000), random.choice((1, 1, 2)), random.choice((7, 8, 0)), 0,
            random.choice(("ada", "bob", "eve", "")), random.choice((None, 0, 5)),
            random.choice(("Opus-4", "opus-4-1", "haiku")), random.choice(("", "opus-4-x")),
            random.choice(("s", "t", "")), random.choice((0, 1, 1)), random.choice(((), (("team", "a"),), (("team", "b"), ("x", "1")))),
            random.choice(((), (3,), (3, 4))),
        )
        for at in moments
    ]  # fmt: skip


def drawn_budget(random: Random, place: int) -> Budget:
    window, carry, interval = random.choice(("calendar", "calendar", ROLLING, FIRST_USE)), None, ""
    unit = random.choice(("money", "tokens", "requests"))
    most = {"money": 2 * 10**13, "tokens": 15_000, "requests": 9}[unit]
    if window == "calendar":
        interval = random.choice(("hour", "day", "day", "week", "month", "total"))
        if interval in {"hour", "day", "week"} and random.random() < 0.7:
            carry = Carry(random.randrange(2 * most), random.random() < 0.5)
    each = random.choice(("", "user", "key", "project", "session", "tenant", "tag:team"))
    overrides = {}
    if each:
        for who in random.sample(["ada", "bob", "7", "s", "group:3"], random.randrange(4)):
            until_ms = random.choice((0, FROM + random.randrange(12 * DAY_MS)))
            amount = random.choice((0, None, random.randrange(1, most)))
            name = who if who.startswith("group:") else owner_of(who)
            overrides[name] = PersonalOverride(amount, until_ms)
    return Budget(
        place, f"b{place}", unit, random.randrange(1, most), interval, random.choice(ZONES),
        random.randint(1, 7) if interval == "week" else 1, random.random() < 0.9, each=each,
        tenant_id=random.choice((0, 0, 1)), model=random.choice(("", "", "opus-*", "haiku")),
        tags=random.choice(((), (), (("x", "1"),))) if not each.startswith("tag:") else (),
        group_id=random.choice((0, 0, 4)), overrides=overrides, window=window, carry=carry,
        length_ms=random.choice((5 * 60_000, 5 * HOUR_MS, 7 * DAY_MS)) if not interval else 0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", SETS)
def test_replay_equals_a_second_calculation(seed: int) -> None:
    random = Random(seed)
    calls = drawn_calls(random)
    budgets = [drawn_budget(random, place) for place in range(6)]
    found, again = replayed(budgets, calls), recount.Recount(budgets, calls)
    assert found.calls == len(calls)
    assert (found.refused, found.refused_cost) == (
        len(again.refused),
        sum(call.cost for call in again.refused),
    )
    for place, (budget, item) in enumerate(zip(budgets, found.items, strict=True)):
        short = again.short[place]
        assert item.refused == len(short)
        assert item.refused_cost == sum(call.cost for _, call in short)
        assert item.first_refusal_ms == (short[0][1].at_ms if short else None)
        firsts = dict[str, int]()
        for who, call in short:
            firsts.setdefault(who, call.at_ms)
        refusals = Counter(who for who, _ in short)
        owners = [
            (who, refusals[who], at_ms, again.peaks[place].get(who, 0))
            for who, at_ms in firsts.items()
            if budget.each
        ]
        assert [(one.who, one.refused, one.first_refusal_ms, one.used_max) for one in item.owners] == owners
        assert item.owners_more == 0
        assert sum(day.used for day in item.by_day) == sum(
            use.amount for uses in again.uses[place].values() for use in uses
        )
        assert sum(day.refused for day in item.by_day) == len(short)
        least = dict(recount.least_amounts(budget, calls))
        assert item.least_amount == max(least.values(), default=0)
        amounts = sorted(amount for who, amount in least.items() if who)
        ranked = {str(part): amounts[ceil(len(amounts) * part / 100) - 1] for part in (50, 90, 99) if amounts}
        assert item.suggestions == ((ranked or None) if budget.each else None)


def test_drawn_budgets_refuse_and_admit() -> None:
    """The comparison above would prove nothing if one side were empty."""
    counts = Counter[str]()
    for seed in SETS:
        random = Random(seed)
        calls = drawn_calls(random)
        budgets = [drawn_budget(random, place) for place in range(6)]
        for budget, item in zip(budgets, replayed(budgets, calls).items, strict=True):
            kind = "carry" if budget.carry else budget.window
            counts[f"{kind} refused"] += item.refused
            counts[f"{kind} used"] += sum(day.used > 0 for day in item.by_day)
    assert min(counts[f"{kind} {what}"] for kind in ("carry", "calendar", ROLLING, FIRST_USE)
               for what in ("refused", "used")) > 10  # fmt: skip


def at(hours: float, cost: int = 0, **over: Any) -> StoredCall:
    return StoredCall(FROM + round(hours * HOUR_MS), cost, over.pop("tokens", 0), 1, **over)


def test_replay_names_the_budget_with_too_many_owners() -> None:
    budgets = [Budget(1, "all", "requests", 1, "day"), Budget(2, "each", "requests", 9, "day", each="user")]
    calls = [at(0, user=name) for name in ("", "a", "b", "", "a")]
    assert replayed(budgets, calls, owners_max=3).calls == 5
    with pytest.raises(Unprocessable) as refused:
        replayed(budgets, [*calls, at(1, user="c")], owners_max=3)
    assert [name for name, _ in refused.value.errors] == ["budgets.1.each"]


def test_replay_lists_the_owners_that_were_refused_first() -> None:
    calls = [at(hour, user=name) for hour, name in enumerate("aabbccaa")]
    [item] = replayed(
        [Budget(1, "each", "requests", 1, "total", each="user")], calls, owners_listed_max=2
    ).items
    assert [(owner.who, owner.refused) for owner in item.owners] == [("a", 3), ("b", 1)]
    assert (item.owners_more, item.refused, item.least_amount) == (1, 5, 4)
    assert item.suggestions == {"50": 2, "90": 4, "99": 4}


def test_callers_without_a_value_share_an_owner_with_an_empty_name() -> None:
    """Their account needs the largest amount; suggestions are of people alone."""
    budget = Budget(1, "each", "requests", 1, "total", each="user")
    [item] = replayed([budget], [at(0, user="a"), *(at(hour) for hour in range(1, 6))]).items
    assert [(owner.who, owner.refused, owner.first_refusal_ms) for owner in item.owners] == [
        ("", 4, FROM + 2 * HOUR_MS)
    ]
    assert (item.owners_more, item.refused, item.least_amount) == (0, 4, 5)
    assert item.suggestions == {"50": 1, "90": 1, "99": 1}
    assert replayed([replace(budget, amount=5)], [at(hour) for hour in range(5)]).refused == 0


def test_rolling_use_counts_for_its_length_and_up_to_a_thirtieth_longer() -> None:
    rolling = Budget(1, "r", "requests", 1, "", window=ROLLING, length_ms=5 * HOUR_MS)
    part_h = 5 / 30
    began = -(FROM % (10 * 60_000)) / HOUR_MS  # the part that runs
    for second, refused in ((began + 31 * part_h - 0.001, 1), (began + 31 * part_h, 0)):
        assert replayed([rolling], [at(0), at(second)]).refused == refused
