"""Steps of budgets in `reserve`: when one is reached, what stops a call, and that it changes nothing then."""

from __future__ import annotations

import random
from fractions import Fraction
from typing import Any

import pytest

from gateway.core.accounts.steps import (
    STEP_JUDGES,
    STEP_PARTS,
    STEP_REQUIRES,
    STEP_STOPS,
    STEP_TELLS,
    is_reached,
)
from gateway.core.model import Verdict
from tests.builders import World
from tests.lua.windows import OTHER_NAME, account, window
from tests.search import another, examples

FOUR_FIFTHS = 4 * STEP_PARTS // 5


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
