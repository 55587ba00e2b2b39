"""What a call holds and is charged in credits, whatever becomes of its price meanwhile."""

from __future__ import annotations

import json
from dataclasses import replace
from decimal import Decimal

import pytest

from gateway.core.billing.money import CreditRates, PriceTier, ServicePricing
from gateway.core.calls.estimate import CEILING
from gateway.core.model import Service
from gateway.errors import ServiceNotIncluded
from tests.http.fakes import CHAT, get, post
from tests.http.stage import staged

PRICES = {"m": CreditRates(input=2_000_000, output=5_000_000)}  # 2 and 5 credits a token
BY_TOKEN = Service(1, "chat", "consumption", False, credits=9, pricing=ServicePricing(per_million=PRICES))


@pytest.mark.parametrize("counts", [False, True])
async def test_a_price_by_token_is_estimated_and_then_exact(counts: bool) -> None:
    async with staged() as stage:
        stage.directory.services["chat"] = replace(BY_TOKEN, counts_tokens=counts)
        assert (await stage.ask(post(CHAT))).status == 200
        (hold,), (charge,) = stage.counters.holds, stage.counters.charges
        assert hold.credits >= 10 * 5
        assert (hold.need > 0, charge.tokens) == (counts, 12 if counts else 0)
        assert charge.credits == 7 * 2 + 5 * 5
        assert stage.tally.credits == {"chat": 39}


@pytest.mark.parametrize(
    "model", ["other", "m-2024-11-20", "M", "m*", "models/m", "\\u004d", "m\\u006d", "m\\u0301"]
)
async def test_a_model_without_a_price_is_refused_and_nothing_is_held(model: str) -> None:
    async with staged() as stage:
        stage.directory.services["chat"] = BY_TOKEN
        got = await stage.ask(post(CHAT.replace(b'"m"', f'"{model}"'.encode())))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert not stage.counters.holds
        assert not stage.upstream.received


@pytest.mark.parametrize("model", ["m ", " m", "m\\u00a0", "m\\n", "\\tm", "m\\u200b", "m\\u0000"])
async def test_a_name_with_blanks_around_it_is_no_name(model: str) -> None:
    async with staged() as stage:
        stage.directory.services["chat"] = replace(
            BY_TOKEN, pricing=ServicePricing(per_million={"*": PRICES["m"]})
        )
        got = await stage.ask(post(CHAT.replace(b'"m"', f'"{model}"'.encode())))
        assert (got.status, got.reason) == (400, "invalid_request")


@pytest.mark.parametrize("more", [b'"fallbacks":["x"]', b'"models":["m","x"]', b'"fallbacks":[{"m":["x"]}]'])
async def test_every_model_that_may_answer_needs_a_price(more: bytes) -> None:
    async with staged() as stage:
        stage.directory.services["chat"] = BY_TOKEN
        got = await stage.ask(post(CHAT[:-1] + b"," + more + b"}"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert (await stage.ask(post(CHAT[:-1] + b"," + more.replace(b"x", b"m") + b"}"))).status == 200


@pytest.mark.parametrize(
    "service",
    [
        Service(
            1, "chat", "consumption", False, pricing=ServicePricing(tiers=(PriceTier(None, Decimal(1)),))
        ),
        Service(1, "chat", "pay_per_use", False, pricing=BY_TOKEN.pricing),
    ],
)
async def test_a_stored_price_that_cannot_be_used_charges_nobody_nothing(service: Service) -> None:
    async with staged() as stage:
        stage.directory.services["chat"] = service
        got = await stage.ask(post(CHAT))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert not stage.upstream.received


async def test_a_call_that_names_no_model_is_not_priced_by_one() -> None:
    async with staged() as stage:
        prices = ServicePricing(per_million={"*": PRICES["m"]})
        stage.directory.services["search"] = replace(stage.directory.services["search"], pricing=prices)
        got = await stage.ask(get(b"/services/search/x"), "GET")
        assert (got.status, got.reason) == (403, "model_not_priced")


async def test_a_one_time_service_costs_the_same_whatever_its_units() -> None:
    async with staged() as stage:
        stage.directory.services["search"] = Service(4, "search", "consumption", False, 500, one_time=True)
        await stage.ask(post(b"", b"/trusted", b"x-tollkeeper-units: 7\r\n"))
        assert (stage.counters.holds[0].credits, stage.counters.charges[0].credits) == (500, 500)


async def test_a_price_that_changes_meanwhile_changes_nothing_for_the_call() -> None:
    async with staged() as stage:
        before = stage.directory.services["search"]
        dearer = {"search": replace(before, credits=100)}
        stage.directory.then = lambda: stage.directory.services.update(dearer)
        await stage.ask(get(b"/services/search/"), "GET")
        assert (stage.counters.holds[0].service, stage.counters.charges[0].service) == (before, before)
        assert stage.counters.charges[0].credits == before.credits


async def test_a_service_the_organization_may_not_use_is_refused_before_anything_is_held() -> None:
    async with staged() as stage:
        stage.directory.refusal = ServiceNotIncluded()
        got = await stage.ask(post(CHAT))
        assert (got.status, got.one(b"x-tollkeeper-reason")) == (403, b"service_not_included")
        assert not stage.counters.holds
        assert not stage.upstream.received


# --- the hold as the call's limit -------------------------------------------------------

UNSTATED = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
READ = -(-len(UNSTATED) // 2)


async def test_under_a_strict_plan_a_call_without_a_maximum_is_sent_with_what_it_holds() -> None:
    async with staged() as stage:
        decision = stage.counters.decision
        assert decision is not None
        decision.held_tokens, decision.bounded = READ + 90, True
        assert (await stage.ask(post(UNSTATED))).status == 200
        (hold,) = stage.counters.holds
        assert (hold.least, hold.ceiling) == (READ + 1, READ + CEILING)
        assert (await stage.ask(post(CHAT))).status == 200
        unstated, stated = (json.loads(one.body) for one in stage.upstream.received)
        assert unstated == {**json.loads(UNSTATED), "max_completion_tokens": 90}
        assert (stated, stage.counters.holds[1].least) == (json.loads(CHAT), 0)


async def test_under_a_strict_plan_a_number_that_nobody_knows_is_refused_unless_its_upstream_allows_it() -> (
    None
):
    body = CHAT[:-1] + b',"n_predict":20000}'
    async with staged() as stage:
        assert (await stage.ask(post(body))).status == 200
        decision = stage.counters.decision
        assert decision is not None
        decision.held_tokens, decision.bounded = READ + 90, True
        got = await stage.ask(post(body))
        assert (got.status, b"n_predict" in got.body) == (400, True)
        await stage.settled(2)
        assert (len(stage.counters.charges), len(stage.upstream.received)) == (1, 1)


async def test_without_a_strict_plan_a_call_is_sent_as_it_came() -> None:
    async with staged() as stage:
        assert (await stage.ask(post(UNSTATED))).status == 200
        assert json.loads(stage.upstream.received[0].body) == json.loads(UNSTATED)


@pytest.mark.parametrize("choices", [1, 3])
async def test_prepaid_credits_by_token_bind_a_call_to_what_it_holds(choices: int) -> None:
    body = UNSTATED[:-1] + b',"n":%d}' % choices
    read = -(-len(body) // 2)
    async with staged() as stage:
        stage.directory.services["chat"] = BY_TOKEN
        decision = stage.counters.decision
        assert decision is not None
        decision.held_credits = 2 * read + 5 * 40
        assert (await stage.ask(post(body))).status == 200
        (hold,) = stage.counters.holds
        assert hold.credits == 2 * read + 5 * CEILING * choices
        assert hold.credits_least == 2 * read + 5 * choices
        assert json.loads(stage.upstream.received[0].body)["max_completion_tokens"] == 40 // choices
