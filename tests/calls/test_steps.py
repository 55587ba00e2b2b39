"""Calls that go as another model at a step of a budget: through a gateway, with the scripts of a real Valkey."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pytest

from gateway.core.accounts.budgets import MONEY, Budget, account_of
from gateway.core.accounts.steps import Step
from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.model import Admitted, HoldRequest, Refused, Settlement, SettleResult
from gateway.counters.layouts import packing
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from tests.builders import TTL_MS, World
from tests.http.fakes import FakeCounters, post
from tests.http.stage import Answer, Stage, staged

MILLION = 1_000_000
WHOLE = 100_000_000  # of the budget, in nano-units


def price(number: int, each: int) -> Vector:
    """A price of so many nano-units a token."""
    return Vector(number, "USD", tuple(each * MILLION for _ in KINDS))


PRICES = {"dear": price(1, 10_000), "cheap": price(2, 1_000), "middle": price(3, 5_000), "unused": price(4, 7)}
STEP = Step(0.8, (("dear*", "cheap"),))
BUDGET = Budget(1, "Größe", MONEY, WHOLE, "total", steps=(STEP,))


class ScriptCounters(FakeCounters):
    """The scripts of a real Valkey, as a worker calls them; each `reserve` is recorded."""

    def __init__(self, world: World) -> None:
        super().__init__()
        self.world = world

    async def reserve(self, request: HoldRequest) -> Admitted | Refused:
        if not request.service.id:
            return await super().reserve(request)
        self.holds.append(replace(request))
        packed = packing.reserve(self.world.run_id, self.world.catalogue, request.ttl_ms or TTL_MS, request)
        return packing.decision(self.world.run("reserve", packed), request.service)

    async def settle(self, settlement: Settlement) -> SettleResult:
        if not settlement.service.id:
            return await super().settle(settlement)
        self.settlements.append(settlement)
        packed = packing.settle(self.world.run_id, 60_000, settlement, packing.MODE_CHARGE if settlement.charge else packing.MODE_RELEASE)
        return SETTLE_RESULTS.read(self.world.run("settle", packed), settlement.request_id)


@dataclass
class Gate:
    """A gateway before a recording upstream, its budgets, and what they have used."""

    stage: Stage
    counters: ScriptCounters

    async def ask(self, model: str = "dear", path: bytes = b"/v1/chat/completions", **more: Any) -> Answer:
        body = {"model": model, "max_tokens": 10, "messages": [{"role": "user", "content": "hi"}]} | more
        return await self.stage.ask(post(json.dumps({k: v for k, v in body.items() if v is not None}).encode(), path))

    def use(self, amount: int, budget: Budget = BUDGET) -> None:
        """Use an amount of a budget."""
        made = self.counters.world.reserve(budgets=(self.account(budget),), money=amount)
        assert isinstance(made.decision, Admitted)
        made.settle(money=amount)

    def account(self, budget: Budget) -> Any:
        from gateway.core.accounts.budgets import CallAttributes
        from gateway.core.accounts.call_budgets import OrganizationBudgets

        budgets = OrganizationBudgets(1, [replace(budget, model="")], "USD")
        found = budgets.find(CallAttributes(0, 0, 0), 0)
        (account,) = found.accounts
        return replace(account, name=account_of(1, budget))

    @property
    def sent(self) -> list[str]:
        return [str(json.loads(one.body)["model"]) for one in self.stage.upstream.received]


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    made.plan(None)
    yield made
    made.client.close()


@asynccontextmanager
async def gate(world: World, *budgets: Budget, **more: Any) -> AsyncIterator[Gate]:
    counters = ScriptCounters(world)
    async with staged(counters=counters, **more) as stage:
        stage.directory.prices |= PRICES
        stage.directory.budgets_there = list(budgets or (BUDGET,))
        stage.directory.caller = world.caller
        yield Gate(stage, counters)


async def test_a_call_goes_as_asked_below_the_step_and_as_the_other_model_from_it_on(world: World) -> None:
    async with gate(world) as there:
        first = await there.ask()
        there.use(80_000_000 - there.counters.charges[0].money - 1)
        second = await there.ask()
        assert [one.all(b"x-tollkeeper-model") for one in (first, second)] == [[], []]
        there.stage.directory.prices["DEAR"] = PRICES["dear"]
        third = await there.ask("DEAR")
        assert there.sent == ["dear", "dear", "cheap"]
        assert third.one(b"x-tollkeeper-model") == b"cheap"
        assert unquote(third.one(b"x-tollkeeper-substituted-by").decode()) == BUDGET.name
        charge, facts = there.counters.charges[-1], there.stage.facts(-1)
        assert charge.money == 12 * 1_000 == facts.cost
        assert (facts.model, facts.step) == ("cheap", ("DEAR", 1, BUDGET.name, 12 * 9_000))
        assert there.stage.facts(0).step is None
