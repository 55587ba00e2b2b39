"""Moderations, sound and edited pictures by OpenAI's SDK as it is: what a stub is sent, what they cost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import openai
import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.outbox import CallFacts, read_facts
from gateway.core.billing.price_book import read_price
from gateway.core.families.openai import FAMILY
from gateway.core.model import Service
from tests.core.billing.prices import price_row
from tests.http.fakes import CALLER, KEY, answer
from tests.http.stage import Stage, staged

SERVICES = ("moderations",)
ROUTES = tuple(replace(route, upstream="up") for route in FAMILY.routes if route.service in SERVICES)
MONEY = Budget(1, "money", "money", 10**12, "day")
JUDGED = {"id": "modr-1", "model": "omni-moderation-latest", "results": [{"flagged": False}]}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with staged(ROUTES) as made:
        for number, key in enumerate(SERVICES, 91):
            made.directory.services[key] = Service(number, key, "subscription")
        yield made


def priced(stage: Stage, model: str, **price: Any) -> None:
    """A model has a price, and money decides."""
    stage.directory.prices[model] = read_price(price_row(id=5, model=model, **price)).vector
    stage.directory.budgets_there = [MONEY]


def sdk(stage: Stage) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{stage.port}/v1", api_key=KEY, max_retries=0)


def answers(stage: Stage, said: dict[str, Any]) -> None:
    stage.upstream.scripts.append([answer(json.dumps(said).encode())])


def charged(stage: Stage) -> CallFacts:
    found = read_facts(stage.counters.charges[-1].metadata)
    assert found is not None
    return found


async def test_a_moderation_is_a_call_of_its_model_that_may_cost_nothing(stage: Stage) -> None:
    model = "omni-moderation-latest"
    ask = sdk(stage).moderations.create
    answers(stage, JUDGED)
    await ask(model=model, input="hello")
    found = charged(stage)
    assert (found.model, found.cost, found.lacks_price, found.estimated) == (model, None, True, True)
    assert json.loads(stage.upstream.received[-1].body) == {"model": model, "input": "hello"}
    stage.directory.budgets_there = [MONEY]
    with pytest.raises(openai.PermissionDeniedError, match="model"):
        await ask(model=model, input="hello")
    for request, cost in (("0", 0), ("0.001", 1_000_000)):
        priced(stage, model, request=request)
        answers(stage, JUDGED)
        await ask(model=model, input=[{"type": "text", "text": "hello"}])
        assert (charged(stage).cost, charged(stage).lacks_price) == (cost, False)


async def test_a_moderation_whose_model_nobody_says_or_that_is_not_on_a_list_is_refused(stage: Stage) -> None:
    with pytest.raises(openai.BadRequestError) as missing:
        await sdk(stage).moderations.create(input="hello")
    assert missing.value.param == "model"
    stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
    with pytest.raises(openai.PermissionDeniedError):
        await sdk(stage).moderations.create(model="omni-moderation-latest", input="hello")
    assert not stage.upstream.received
