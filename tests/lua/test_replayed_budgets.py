"""A replay refuses and substitutes the calls that the scripts refused and substituted, for random histories.

A call is settled at the moment of its admission, which is its `created_at` then. Limits of budgets that carry do
not end: scripts know those of intervals with calls alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from random import Random

import pytest

from gateway.core.accounts.budgets import OF_GROUP, Budget, PersonalOverride, owner_of
from gateway.core.accounts.call_budgets import CallBudgets, OrganizationBudgets
from gateway.core.accounts.replay.calls import StoredCall
from gateway.core.accounts.replay.fold import BudgetFold
from gateway.core.accounts.steps import STEP_STOPS, Step, matched_steps
from gateway.core.accounts.windows import CALENDAR, FIRST_USE, ROLLING, Carry
from gateway.core.model import BudgetAccount, Refused, SettleResult, Verdict
from gateway.core.times import DAY_MS, HOUR_MS
from tests.builders import Call
from tests.lua.clocks import ClockWorld
from tests.search import another

# A Sunday in October of a year that real clocks have not reached, at half a minute: clocks go back in Berlin a week
# later. No window begins then.
BEGIN_MS = 4_128_030_030_000
DAYS = 40
CARRY, STEPS = "carry", "steps"
KINDS = (CALENDAR, ROLLING, FIRST_USE, CARRY, STEPS)
# What calls cost as each substitute, as parts of what they cost; others have no price.
PRICES = {"cheap": 10, "cheaper": 30}
# The groups of each user.
GROUPS = {"ada": (4,), "bob": (4, 5), "eve": (), "": ()}


@pytest.fixture
def world(valkey: str) -> Iterator[ClockWorld]:
    made = ClockWorld(valkey, BEGIN_MS)
    made.plan(None)
    yield made
    made.client.close()


def drawn(random: Random, kind: str) -> list[Budget]:
    budgets = []
    for number in range(1, 5):
        unit = random.choice(("money", "tokens", "requests"))
        each = random.choice(("", "user", "user", "tag:team"))
        until_ms = random.choice((0, BEGIN_MS + random.randrange(DAYS) * DAY_MS))
        groups = (f"{OF_GROUP}4", f"{OF_GROUP}5") if each == "user" else ()
        whose = random.sample((owner_of("ada"), owner_of("a"), *groups), 2) if each else []
        own = {who: PersonalOverride(random.choice((0, None, 900)), until_ms) for who in whose}
        amount = {"money": 1_200, "tokens": 500, "requests": 3}[unit]
        intervals = ("hour", "day", "week") if kind == CARRY else ("hour", "day", "week", "month", "total")
        budget = Budget(
            number, f"b{number}", unit, amount, random.choice(intervals),
            random.choice(("UTC", "Europe/Berlin", "Asia/Kolkata")), each=each, overrides=own,
            model=random.choice(("", "", "dear*")), enforce=random.random() < 0.9,
            tags=random.choice(((), (), (("team", "a"),))), group_id=random.choice((0, 0, 4)),
        )  # fmt: skip
        if number == 1:  # each history has refusals
            budget = replace(budget, each="", overrides={}, model="", enforce=True, tags=(), group_id=0)
        if kind in {ROLLING, FIRST_USE} or (kind == STEPS and number % 2):
            window = kind if kind != STEPS else random.choice((ROLLING, FIRST_USE))
            length_ms = random.choice((5 * HOUR_MS // 60, 5 * HOUR_MS, 3 * DAY_MS))
            budget = replace(budget, interval="", window=window, length_ms=length_ms)
        elif kind in {CARRY, STEPS} and budget.interval != "total":
            carry = Carry(random.choice((amount // 3, 4 * amount)), debt=random.random() < 0.5)
            endless = {name: override._replace(until_ms=0) for name, override in budget.overrides.items()}
            budget = replace(budget, carry=carry, overrides=endless)
        if kind == STEPS:
            steps = [
                Step(random.choice((0.0, 0.35, 0.9, 1.0)), ((random.choice(("dear*", "dear-1")), name),))
                for name in random.sample((*PRICES, "unpriced"), 2)
            ]
            budget = replace(budget, steps=tuple(steps))
        budgets.append(budget)
    return budgets


def price(call: StoredCall, model: str) -> int | None:
    return call.cost // PRICES[model] if model in PRICES else None


class Server:
    """The scripts, asked as an admission asks them, at the time of each call."""

    def __init__(self, world: ClockWorld, budgets: list[Budget]) -> None:
        self.world, self.budgets = world, OrganizationBudgets(1, budgets, "USD")

    def sends(self, call: StoredCall) -> str | None:
        """Return the model that a call was sent as; empty for its own, None if it was refused."""
        self.world.set_clock(call.at_ms)
        found = self.budgets.find(call.attributes(), call.at_ms)
        steps = matched_steps(found.steps, call.model)
        first = self.reserve(
            found, call, call.cost, tuple((step.budget_id, step.parts, STEP_STOPS) for step in steps)
        )
        if first.verdict is Verdict.ADMITTED:
            return self.settle(first, call, call.cost, "")
        reached = steps
        if first.verdict is Verdict.STEP_REACHED:
            assert isinstance(first.decision, Refused)
            reached = tuple([step for step, byte in zip(steps, first.decision.reached, strict=True) if byte])
        costs = {
            step.substitute: cost for step in reached if (cost := price(call, step.substitute)) is not None
        }
        if costs:
            model = min(costs, key=costs.__getitem__)
            other = self.budgets.find(call.attributes(model), call.at_ms)
            second = self.reserve(other, call, costs[model])
            if second.verdict is Verdict.ADMITTED:
                return self.settle(second, call, costs[model], model)
        if first.verdict is Verdict.STEP_REACHED:
            again = self.reserve(found, call, call.cost)
            if again.verdict is Verdict.ADMITTED:
                return self.settle(again, call, call.cost, "")
        return None

    def reserve(
        self, found: CallBudgets, call: StoredCall, cost: int, steps: tuple[tuple[int, int, int], ...] = ()
    ) -> Call:
        accounts = tuple([
            BudgetAccount(account.name, account.defined, enforced=account.enforced) for account in found.accounts
        ])  # fmt: skip
        asked = self.world.reserve(
            budgets=accounts, money=cost, money_least=cost, budget_tokens=call.tokens, steps=steps
        )
        assert asked.verdict in {Verdict.ADMITTED, Verdict.BUDGET_EXCEEDED, Verdict.STEP_REACHED}
        return asked

    def settle(self, asked: Call, call: StoredCall, cost: int, model: str) -> str:
        assert asked.settle(0, money=cost, budget_tokens=call.tokens) is SettleResult.DONE
        return model


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_replay_refuses_and_substitutes_the_same_calls_as_the_scripts(
    world: ClockWorld, kind: str, seed: int
) -> None:
    random = Random(another(seed))
    budgets = drawn(random, kind)
    server = Server(world, budgets)
    folded = BudgetFold(budgets, BEGIN_MS, BEGIN_MS + DAYS * DAY_MS, price)
    at_ms, refused, substituted = BEGIN_MS, 0, 0
    for _ in range(90):
        hours = random.choice(
            (0, 0, 1, 1, 5, 24, 40) if kind in {CALENDAR, CARRY} else (0, 0, 0.1, 0.1, 0.5, 4, 40)
        )
        at_ms += int(hours * HOUR_MS) + random.choice((0, 0, 1, 170_000))
        call = StoredCall(
            min(at_ms, BEGIN_MS + DAYS * DAY_MS - 1), random.choice((0, 1, 300, 700, 1_600)), random.randrange(500),
            1, 1, 1, user := random.choice((*GROUPS,)), None, random.choice(("dear-1", "cheap")),
            tags=random.choice(((), (("team", "a"),), (("team", "b"),))), groups=GROUPS[user],
        )  # fmt: skip
        folded.add(call)
        sent_as = server.sends(call)
        refused, substituted = refused + (sent_as is None), substituted + bool(sent_as)
        result = folded.result()
        assert (result.refused, result.substituted) == (refused, substituted)
    assert substituted if kind == STEPS else refused
