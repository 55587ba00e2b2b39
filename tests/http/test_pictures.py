"""Pictures and speech through a worker: counted by the answer, else by the request, and priced or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import CallFacts
from gateway.core.billing.price_book import read_price
from gateway.core.families.openai import FAMILY
from gateway.core.model import Service
from tests.core.billing.prices import price_row
from tests.http.fakes import CALLER, answer, post
from tests.http.stage import Stage, staged

PICTURES, SPEECH = b"/v1/images/generations", b"/v1/audio/speech"
ROUTES = tuple(
    replace(route, upstream="up") for route in FAMILY.routes if route.service in {"images", "speech"}
)
MONEY = Budget(1, "money", "money", 10**12, "day")
DRAWN = {"created": 1, "data": [{"url": "a"}, {"url": "b"}]}


def draws(**said: Any) -> bytes:
    return post(json.dumps({"model": "draw", "prompt": "a cat", **said}).encode(), PICTURES)


def opened(stage: Stage, *, model: str = "draw", budget: bool = False, **price: Any) -> None:
    for number, key in ((91, "images"), (92, "speech")):
        stage.directory.services[key] = Service(number, key, "subscription")
    if price:
        stage.directory.prices[model] = read_price(price_row(id=5, model=model, **price)).vector
    if budget:
        stage.directory.budgets_there = [MONEY]


async def facts(stage: Stage, asked: bytes, told: bytes) -> CallFacts:
    stage.upstream.scripts.append([told])
    got = await stage.ask(asked)
    assert got.status == 200, got.body
    return stage.facts()


def as_json(document: dict[str, Any]) -> bytes:
    return answer(json.dumps(document).encode())


IMAGES = {"1024x1024/standard": "0.04", "1024x1024/high": "0.167", "1536x1024/high": "0.25"}


async def test_pictures_are_held_for_before_they_are_drawn() -> None:
    """What each costs, `recorded/made.txt` says."""
    async with staged(ROUTES) as stage:
        opened(stage, budget=True, images=IMAGES)
        found = await facts(stage, draws(n=2), as_json(DRAWN))
        assert found.cost == stage.counters.charges[-1].money == 500_000_000
        assert stage.counters.holds[-1].money >= 500_000_000


async def test_pictures_of_a_price_by_tokens_cost_what_was_held_where_no_tokens_are_reported() -> None:
    async with staged(ROUTES) as stage:
        opened(stage, budget=True, input="5", output="40", image_output="40")
        await facts(stage, draws(n=2), as_json(DRAWN))
        assert stage.counters.charges[-1].money == stage.counters.holds[-1].money_most > 0


@pytest.mark.parametrize(
    "price", [{"input": "1"}, {"input": "1", "output": "2"}, {"images": {"512x512/low": "0.01"}}]
)
async def test_a_picture_without_a_price_is_named_and_refused_where_money_decides(
    price: dict[str, Any],
) -> None:
    async with staged(ROUTES) as stage:
        opened(stage, **price)
        found = await facts(stage, draws(size="1024x1024", quality="low"), as_json(DRAWN))
        assert found.unpriced == "images.1024x1024/low"
        assert stage.tally.snapshot()["unpriced_calls"] == [("images", 1)]
        opened(stage, budget=True)
        got = await stage.ask(draws(size="1024x1024", quality="low"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert b"images.1024x1024/low" in got.body
    async with staged(ROUTES, refuses_unpriced=True) as stage:
        opened(stage, **price)
        assert (await stage.ask(draws(size="1024x1024", quality="low"))).reason == "model_not_priced"


@pytest.mark.parametrize(
    "said", [{"n": 0}, {"n": "2"}, {"size": 5}, {"size": "a/b"}, {"quality": ""}, {"model": None}]
)
async def test_what_would_be_counted_otherwise_is_refused(said: dict[str, Any]) -> None:
    async with staged(ROUTES) as stage:
        opened(stage, images=IMAGES)
        got = await stage.ask(draws(**said))
        assert (got.status, got.reason) == (400, "invalid_request")


def speaks(text: str, **said: Any) -> bytes:
    return post(json.dumps({"model": "voice", "input": text, "voice": "alloy", **said}).encode(), SPEECH)


def sound(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\ncontent-type: audio/mpeg\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


async def test_speech_costs_the_characters_of_its_input_and_passes_as_it_came() -> None:
    async with staged(ROUTES) as stage:
        opened(stage, model="voice", budget=True, character="0.000015")
        stage.upstream.scripts.append([sound(b"\xff\xfb" * 5_000)])
        got = await stage.ask(speaks("héllo wörld"))
        assert (got.status, got.body) == (200, b"\xff\xfb" * 5_000)
        found = stage.facts()
        assert (found.tools, found.cost, found.unpriced) == ({"character": 11}, 165_000, "")
        assert stage.counters.holds[-1].money >= 165_000


async def test_speech_without_a_price_of_characters_is_refused_where_money_decides() -> None:
    async with staged(ROUTES) as stage:
        opened(stage, model="voice", budget=True, output="12")
        assert (await stage.ask(speaks("hello"))).reason == "model_not_priced"
        assert (await stage.ask(speaks(""))).reason in {"invalid_request", "model_not_priced"}


async def test_an_answer_that_failed_costs_nothing() -> None:
    async with staged(ROUTES) as stage:
        opened(stage, budget=True, images=IMAGES)
        stage.upstream.scripts.append([answer(b'{"error":{"message":"no"}}', status=b"500 Oops")])
        assert (await stage.ask(draws())).status == 500
        assert not stage.counters.charges


async def test_a_keys_list_of_models_holds() -> None:
    async with staged(ROUTES) as stage:
        opened(stage, images=IMAGES)
        stage.directory.caller = replace(CALLER, models=frozenset({"other"}))
        assert (await stage.ask(draws())).reason == "model_not_allowed"
        assert (await stage.ask(speaks("x"))).reason == "model_not_allowed"
