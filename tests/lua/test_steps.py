"""Steps of budgets in `reserve`: when one is reached, what stops a call, and that it changes nothing then."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from math import ceil
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget, account_of, define_windows
from gateway.core.accounts.steps import (
    STEP_JUDGES,
    STEP_PARTS,
    STEP_REQUIRES,
    STEP_STOPS,
    STEP_TELLS,
    is_reached,
)
from gateway.core.accounts.windows import FIRST_USE, ROLLING, Carry
from gateway.core.model import BudgetAccount, Verdict
from gateway.core.times import HOUR_MS
from tests.builders import Call, World
from tests.lua.clocks import ClockWorld
from tests.lua.windows import OTHER_NAME, account, window
from tests.search import another, examples

FOUR_FIFTHS = 4 * STEP_PARTS // 5


# Noon of a day that real clocks have not reached.
NOON = 4_102_488_000_000 // (24 * HOUR_MS) * 24 * HOUR_MS + 12 * HOUR_MS
LENGTH = 5 * HOUR_MS


@pytest.fixture
def clock(valkey: str) -> Iterator[ClockWorld]:
    made = ClockWorld(valkey, NOON)
    made.plan(None)
    yield made
    made.client.close()


def call(world: ClockWorld, budget: Budget, money: int = 0, **asked: Any) -> Call:
    """Reserve for a call of a budget, as its gateway defines it now."""
    here = BudgetAccount(account_of(1, budget), define_windows([budget], world.at_ms), enforced=True)
    return world.reserve(budgets=(here,), money=money, **asked)


def use(world: ClockWorld, budget: Budget, money: int) -> None:
    """Use an amount, of which one call tells at most what one number holds exactly."""
    while money:
        part = min(money, 2**53 - 1)
        call(world, budget).settle(money=part)
        money -= part


@pytest.fixture(autouse=True)
def plan(world: World) -> None:
    world.plan(None)


@pytest.mark.parametrize(
    ("used", "held", "parts", "reached"),
    [
        (0, 0, 0, True), (79, 0, FOUR_FIFTHS, False), (80, 0, FOUR_FIFTHS, True), (40, 40, FOUR_FIFTHS, True),
        (40, 39, FOUR_FIFTHS, False), (99, 0, STEP_PARTS, False), (0, 1, 1, True), (0, 0, 1, False),
    ],
)  # fmt: skip
def test_a_step_is_reached_by_used_and_held_amounts_before_the_call(
    world: World, used: int, held: int, parts: int, reached: bool
) -> None:
    here = account(window(1, 100))
    if used:
        world.reserve(budgets=(here,), money=used).settle(money=used)
    if held:
        world.reserve(budgets=(here,), money=held)
    before = world.everything()
    asked = world.reserve(budgets=(here,), money=1, steps=((1, parts, STEP_STOPS),))
    assert asked.verdict is (Verdict.STEP_REACHED if reached else Verdict.ADMITTED)
    if reached:
        assert asked.decision.reached == b"\1"
        assert world.everything() == before  # byte by byte


def test_steps_of_all_accounts_are_answered_and_some_stop_no_call(world: World) -> None:
    here = account(window(1, 100), window(2, 1_000), window(3, 10, enforce=False))
    other = account(window(4, 50, "requests"), name=OTHER_NAME)
    world.reserve(budgets=(here, other), money=60).settle(money=60)
    steps = [(1, STEP_PARTS // 2), (1, FOUR_FIFTHS), (2, 60_000), (2, 60_001), (3, 0), (4, 20_000), (9, 0)]

    def asked(*does: int) -> tuple[Verdict, bytes]:
        call = world.reserve(
            budgets=(here, other),
            money=1,
            steps=tuple((*step, one) for step, one in zip(steps, does, strict=True)),
        )
        verdict = call.verdict
        if verdict is Verdict.ADMITTED:
            call.release()
            return verdict, b""
        return verdict, call.decision.reached

    told = bytes(
        [1, 0, 1, 0, 0, 1, 0]
    )  # a budget that does not enforce, or is no budget of the call, has no steps
    assert asked(*[STEP_TELLS] * 7) == (Verdict.ADMITTED, b"")
    for place in range(7):
        does = [STEP_TELLS] * 7
        does[place] = STEP_STOPS
        assert asked(*does) == ((Verdict.STEP_REACHED, told) if told[place] else (Verdict.ADMITTED, b""))
        does[place] = STEP_REQUIRES
        assert asked(*does) == ((Verdict.ADMITTED, b"") if told[place] else (Verdict.STEP_REACHED, told))
        does[place] = STEP_JUDGES
        assert asked(*does) == (Verdict.STEP_REACHED, told)


def test_a_budget_without_room_refuses_before_a_step_does(world: World) -> None:
    here = account(window(1, 100), window(2, 10))
    asked = world.reserve(budgets=(here,), money=11, steps=((1, 0, STEP_STOPS),))
    assert (asked.verdict, asked.decision.reached) == (Verdict.BUDGET_EXCEEDED, b"")


def test_a_raised_hold_reaches_no_step_by_itself(world: World) -> None:
    here, steps = account(window(1, 100)), ((1, FOUR_FIFTHS, STEP_STOPS),)
    call = world.reserve(budgets=(here,), money=80)
    again: dict[str, Any] = {"request_id": call.id, "raises": True, "budgets": (here,), "steps": steps}
    assert world.reserve(money=90, **again).verdict is Verdict.ADMITTED
    world.reserve(budgets=(here,), money=10)
    assert world.reserve(money=80, **again).verdict is Verdict.ADMITTED  # the other one holds 10
    world.reserve(budgets=(account(window(1, 1_000)),), money=70)
    assert world.reserve(money=1, **again).verdict is Verdict.STEP_REACHED


@pytest.mark.parametrize("seed", range(examples(40)))
def test_a_part_of_any_limit_is_exact(world: World, seed: int) -> None:
    """The limits are up to 10^24, the amounts at a step's border and one beside it."""
    chance = random.Random(another(seed))
    limit = chance.choice(
        [chance.randint(1, 2**53 - 1), chance.randint(1, 10**6), chance.randint(1, 10**9) * 10**15]
    )
    parts = chance.choice([0, 1, STEP_PARTS, 333_333, chance.randint(0, STEP_PARTS)])
    border = -((-parts * limit) // STEP_PARTS)
    amount = max(0, min(border + chance.choice([-1, 0, 1]), 2**53 - 1))
    here = account(window(1, limit))
    if amount:
        world.reserve(budgets=(account(window(1, 10**24)),), money=amount).settle(money=amount)
    asked = world.reserve(budgets=(here,), money=0, steps=((1, parts, STEP_STOPS),))
    reached = Fraction(amount, limit) >= Fraction(parts, STEP_PARTS)
    assert (asked.verdict is Verdict.STEP_REACHED) is reached is is_reached(parts, amount, limit)


@pytest.mark.parametrize("seed", range(examples(200)))
def test_a_part_is_of_limit_and_carried_amount_together(clock: ClockWorld, seed: int) -> None:
    """Limits and maxima are of one number or of two; an amount is at the step's border, or one beside it."""
    chance = random.Random(another(seed))
    limit, most = (
        chance.choice([chance.randint(1, 100), chance.randint(1, 2**53 - 1), chance.randint(10, 30) * 10**15])
        for _ in range(2)
    )
    budget = Budget(1, "carries", "money", limit, "hour", carry=Carry(most, debt=chance.random() < 0.6))
    used = chance.randint(1, 3 * limit)
    use(clock, budget, used)
    clock.set_clock(NOON + HOUR_MS)
    left = limit - used
    whole = limit + min(most, left if budget.carry and budget.carry.debt else max(left, 0))
    parts = chance.choice([0, 1, STEP_PARTS, 333_333, chance.randint(0, STEP_PARTS)])
    part = Fraction(parts, STEP_PARTS) * whole
    amount = max(0, ceil(part) + chance.choice([-1, 0, 1]))
    use(clock, budget, amount)
    asked = call(clock, budget, steps=((1, parts, STEP_STOPS),))
    reached = amount >= part
    assert (asked.verdict is Verdict.STEP_REACHED) is reached is is_reached(parts, amount, whole)


def test_a_part_is_exact_where_no_double_holds_limit_and_carried_amount(clock: ClockWorld) -> None:
    """The limit and all of it but 1 are together odd, and above 2^53: half of that is no whole number."""
    limit = 9_007_100_000_000_001
    budget = Budget(1, "carries", "money", limit, "hour", carry=Carry(limit))
    use(clock, budget, 1)
    clock.set_clock(NOON + HOUR_MS)
    use(clock, budget, limit - 1)
    steps = ((1, STEP_PARTS // 2, STEP_STOPS),)
    below = call(clock, budget, steps=steps)
    assert below.verdict is Verdict.ADMITTED
    below.release()
    use(clock, budget, 1)
    assert call(clock, budget, steps=steps).verdict is Verdict.STEP_REACHED


@pytest.mark.parametrize("scale", [1, 10**16])
@pytest.mark.parametrize("window", [ROLLING, FIRST_USE])
@pytest.mark.parametrize("seed", range(examples(40)))
def test_a_step_of_a_window_with_a_length_is_reached_by_counted_and_held_amounts(
    clock: ClockWorld, seed: int, window: str, scale: int
) -> None:
    chance = random.Random(another(seed))
    budget = Budget(1, "lasts", "money", 100 * scale, "", window=window, length_ms=LENGTH)
    part_ms = Fraction(LENGTH, 30)
    uses, held, seen = list[tuple[int, int]](), 0, set[bool]()
    for _ in range(25):
        clock.set_clock(clock.at_ms + chance.choice([0, 1, HOUR_MS // 6, HOUR_MS, 2 * HOUR_MS, LENGTH]))
        if window == ROLLING:
            counted = [used for at, used in uses if (at // part_ms + 31) * part_ms > clock.at_ms]
        else:
            begun = [at for at, _ in uses]
            since = _latest_beginning(begun)
            counted = [used for at, used in uses if at >= since and clock.at_ms < since + LENGTH]
        parts = chance.randint(0, STEP_PARTS)
        reached = Fraction(sum(counted) + held, budget.amount) >= Fraction(parts, STEP_PARTS)
        asked = call(clock, budget, steps=((1, parts, STEP_STOPS),))
        assert (asked.verdict is Verdict.STEP_REACHED) is reached
        seen.add(reached)
        if not reached:
            asked.release()
        if chance.random() < 0.2 and window == ROLLING and sum(counted) + held < 90 * scale:
            assert call(clock, budget, min(scale, 2**53 - 1)).verdict is Verdict.ADMITTED
            held += min(scale, 2**53 - 1)
        else:
            uses.append((clock.at_ms, chance.randint(1, 30 * scale)))
            use(clock, budget, uses[-1][1])
    assert seen == {True, False}


def _latest_beginning(uses: list[int]) -> int:
    """Return when the last window began that a first use began."""
    since = -LENGTH
    for at in uses:
        if at >= since + LENGTH:
            since = at
    return since
