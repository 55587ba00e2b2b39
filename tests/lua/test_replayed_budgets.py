"""A replay refuses the calls that the scripts refused, for random histories of budgets.

The server's clock goes on by itself: time that passes is taken off what is stored.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest

from gateway.core.accounts.budgets import DEFINED_WINDOW, Budget, PersonalOverride, owner_of
from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.replay.calls import StoredCall
from gateway.core.accounts.replay.fold import BudgetFold
from gateway.core.accounts.windows import CALENDAR
from gateway.core.model import BudgetAccount, SettleResult, Verdict
from gateway.core.times import DAY_MS, HOUR_MS
from gateway.counters.layouts.states import BUDGET, pack_windows
from gateway.counters.redis import keys
from tests.builders import World

# The next to last Sunday of October, at half a minute: clocks go back in Berlin a week later. No window begins then.
BEGIN_MS = 1_792_900_000_000 // HOUR_MS * HOUR_MS + 30_000
DAYS = 40
# Kinds of windows that the scripts know.
KINDS = (CALENDAR,)


def drawn(random: Random, kind: str) -> list[Budget]:
    assert kind == CALENDAR
    budgets = []
    for number in range(1, 5):
        unit = random.choice(("money", "tokens", "requests"))
        each = random.choice(("", "user", "user"))
        until_ms = random.choice((0, BEGIN_MS + random.randrange(DAYS) * DAY_MS))
        own = {owner_of("ada"): PersonalOverride(random.choice((0, None, 900)), until_ms)} if each else {}
        budgets.append(
            Budget(
                number, f"b{number}", unit, {"money": 1_500, "tokens": 1_000, "requests": 5}[unit],
                random.choice(("hour", "day", "week", "month", "total")),
                random.choice(("UTC", "Europe/Berlin", "Asia/Kolkata")), each=each, overrides=own,
                model=random.choice(("", "", "dear*")), enforce=random.random() < 0.9,
            )
        )  # fmt: skip
    return budgets


class Server:
    """The scripts, whose windows are moved as time passes."""

    def __init__(self, world: World, budgets: list[Budget]) -> None:
        self.world, self.shift_ms = world, BEGIN_MS - world.now_ms()
        self.budgets = OrganizationBudgets(1, budgets, "USD")
        self.endless = {budget.id for budget in budgets if budget.interval == "total"}
        self.names = set[str]()

    def admits(self, call: StoredCall) -> bool:
        self._pass_until(call.at_ms)
        found = self.budgets.find(call.attributes(), call.at_ms)
        accounts = tuple([
            BudgetAccount(account.name, self._shifted(account.defined), enforced=account.enforced)
            for account in found.accounts
        ])  # fmt: skip
        self.names.update(found.names)
        asked = self.world.reserve(
            budgets=accounts, money=call.cost, money_least=call.cost, budget_tokens=call.tokens
        )
        assert asked.verdict in {Verdict.ADMITTED, Verdict.BUDGET_EXCEEDED}
        if asked.verdict is not Verdict.ADMITTED:
            return False
        assert asked.settle(0, money=call.cost, budget_tokens=call.tokens) is SettleResult.DONE
        return True

    def _shifted(self, defined: bytes) -> bytes:
        return b"".join(
            DEFINED_WINDOW.pack(budget_id, limit, *(time and time - self.shift_ms for time in times), flags)
            for budget_id, limit, *times, flags in DEFINED_WINDOW.struct.iter_unpack(defined)
        )

    def _pass_until(self, at_ms: int) -> None:
        shift_ms = at_ms - self.world.now_ms()
        by, self.shift_ms = self.shift_ms - shift_ms, shift_ms
        for name in self.names:
            key = keys.budget_account(self.world.p, name)
            moved = [
                window
                if window.budget_id in self.endless
                else replace(
                    window,
                    **{at: time + by for at in ("start", "next", "after") if (time := getattr(window, at))},
                )
                for window in self.world.windows(name)
            ]
            if moved:
                calls = BUDGET.read(self.world.get(key)[: BUDGET.size])["calls"]
                self.world.client.set(key, pack_windows(moved, calls=calls))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("kind", KINDS)
def test_replay_refuses_the_calls_that_the_scripts_refused(world: World, kind: str, seed: int) -> None:
    world.plan(None)
    random = Random(seed)
    budgets = drawn(random, kind)
    server = Server(world, budgets)
    folded = BudgetFold(budgets, BEGIN_MS, BEGIN_MS + DAYS * DAY_MS, lambda call, model: None)
    at_ms, refused = BEGIN_MS, 0
    for _ in range(90):
        at_ms += random.choice((0, 0, 1, 1, 5, 24, 40)) * HOUR_MS
        call = StoredCall(
            min(at_ms, BEGIN_MS + DAYS * DAY_MS - 1), random.choice((0, 1, 300, 700, 1_600)), random.randrange(500),
            1, 1, 1, random.choice(("ada", "bob", "")), None, random.choice(("dear-1", "cheap")),
        )  # fmt: skip
        folded.add(call)
        refused += not server.admits(call)
        assert folded.result().refused == refused
    assert refused
