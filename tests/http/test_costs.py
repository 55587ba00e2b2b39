"""What a call cost travels with its settlement: by the price of its admission, to the nano-unit."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from gateway.core.accounts.budgets import TOKENS, Budget
from gateway.core.accounts.call_facts import CallFacts, read_facts
from gateway.core.billing.money import CostMarkup, CreditRates, PriceTier, ServicePricing
from gateway.core.billing.stand_ins import read_stand_ins
from gateway.core.billing.vector import Vector
from gateway.core.calls.estimate import CEILING, MODEL_USES
from gateway.core.calls.routes import Route
from gateway.core.calls.text_bound import bound_tokens
from gateway.core.calls.tool_uses import TOOL_USES
from gateway.core.histograms import COSTS_MAX, OTHER_MODELS
from gateway.core.model import Family, Service
from gateway.errors import ServiceNotIncluded
from gateway.http.tally import Tally
from tests.http.fakes import CHAT, answer, get, post
from tests.http.stage import ROUTES, Stage, staged

ASKED = "claude-opus-5"
ANSWERED = "claude-opus-5-20260701"
ADVISOR = "claude-sage-5"
MESSAGE = json.dumps({"model": ASKED, "max_tokens": 5, "messages": []}).encode()
USED = {
    "input_tokens": 3,
    "cache_creation_input_tokens": 20_000,
    "cache_read_input_tokens": 180_000,
    "cache_creation": {"ephemeral_5m_input_tokens": 5_000, "ephemeral_1h_input_tokens": 15_000},
    "output_tokens": 500,
    "server_tool_use": {"web_search_requests": 7},
    "service_tier": "priority",
}
# Dollars a million: 5 read, 0.5 from a cache, 6.25 and 10 into one, 25 produced; 10 a thousand searches.
MILLION = 10**9
OPUS = Vector(
    7, "USD",
    tuple(int(each * MILLION) for each in (5, 0.5, 6.25, 10, 25, 25, 5, 25, 5, 25)),
    tools={"web_search": 10 * MILLION}, service_tiers={"priority": (1, 1)},
)  # fmt: skip


async def facts_of(stage: Stage, model: str = ANSWERED, asked: dict[str, Any] | None = None) -> CallFacts:
    body = json.dumps({"type": "message", "model": model, "usage": USED}).encode()
    stage.upstream.scripts.append([answer(body)])
    sent = MESSAGE if asked is None else json.dumps(asked).encode()
    got = await stage.ask(post(sent, b"/v1/messages"))
    assert got.status == 200
    return stage.facts()


async def test_a_call_costs_what_its_kinds_and_tools_do(stage: Stage) -> None:
    stage.directory.prices[ASKED] = OPUS
    facts = await facts_of(stage)
    # 15,000 + 90,000,000 + 31,250,000 + 150,000,000 + 12,500,000 + 70,000,000, added by hand.
    assert (facts.cost, facts.currency, facts.price_id) == (353_765_000, "USD", 7)
    assert stage.tally.snapshot()["cost"] == [("messages", ASKED, "USD", 0.353765)]


DEAR = OPUS._replace(price_id=8, prices=tuple(10 * each for each in OPUS.prices))


@pytest.mark.parametrize("answered", [ANSWERED, "claude-other", "", ASKED.upper()])
async def test_a_call_goes_by_the_price_of_the_model_asked_for_whatever_answers(
    stage: Stage, answered: str
) -> None:
    stage.directory.prices |= {ASKED: OPUS, ANSWERED: DEAR, "claude-other": DEAR}
    facts = await facts_of(stage, answered)
    assert (facts.cost, facts.price_id) == (353_765_000, 7)


async def test_a_model_asked_for_by_a_name_of_its_own_has_the_price_of_what_answers(stage: Stage) -> None:
    stage.directory.prices[ANSWERED] = DEAR
    assert (await facts_of(stage)).price_id == 8
    stage.directory.prices["house-1"] = OPUS._replace(price_id=9)
    stage.directory.stand_ins = read_stand_ins("claude*=house-1")
    assert [(await facts_of(stage, name)).price_id for name in (ANSWERED, "claude-other")] == [8, 9]


CHEAPER = OPUS._replace(price_id=6, prices=tuple(each // 10 for each in OPUS.prices))


@pytest.mark.parametrize("in_money", [False, True])
@pytest.mark.parametrize(
    ("answered", "price_id"),
    [
        (ASKED, 7), (ANSWERED, 7), ("claude-cheap", 6), ("claude-cheap-20260101", 6), ("claude-dear@1", 8),
        ("claude-cheapest", 8), ("claude-other", 8), ("", 8),
    ],
)  # fmt: skip
async def test_of_several_models_named_the_one_that_answers_counts_or_else_the_dearest(
    stage: Stage, answered: str, price_id: int, in_money: bool
) -> None:
    stage.directory.prices = {ASKED: OPUS, "claude-cheap": CHEAPER, "claude-dear": DEAR}
    if in_money:
        stage.directory.services["messages"] = IN_MONEY
    named = json.loads(MESSAGE) | {"models": ["claude-cheap", "claude-dear"]}
    facts = await facts_of(stage, answered, named)
    assert facts.price_id == price_id
    if in_money:
        charge = stage.counters.charges[-1]
        assert charge.units == (facts.cost or 0) * 6 // 5


@pytest.mark.parametrize(
    ("advisor", "times"),
    [
        ("claude-dear", 10),
        ("claude-dear-20260101", 10),
        ("claude-known", 10),
        ("claude-other", 10),
        (ASKED, 1),
    ],
)
async def test_tokens_of_an_advisor_cost_what_its_model_does(stage: Stage, advisor: str, times: int) -> None:
    stage.directory.prices = {ASKED: OPUS._replace(request=5), "claude-dear": DEAR._replace(request=5)}
    stage.directory.prices["claude-known"] = DEAR
    spent = {"type": "advisor_message", "model": advisor, "input_tokens": 1_000, "output_tokens": 100}
    usage = {"input_tokens": 3, "output_tokens": 4, "iterations": [spent]}
    body = json.dumps({"type": "message", "model": ANSWERED, "usage": usage}).encode()
    stage.upstream.scripts.append([answer(body)])
    tool = {"type": "advisor_20260301", "name": "advisor", "model": "claude-dear"}
    asked = json.loads(MESSAGE) | {"tools": [tool]}
    assert (await stage.ask(post(json.dumps(asked).encode(), b"/v1/messages"))).status == 200
    facts = stage.facts()
    # A call, 3 and 4 tokens of the model asked for, 1,000 and 100 of the advisor's.
    assert facts.cost == 5 + 3 * 5_000 + 4 * 25_000 + times * (1_000 * 5_000 + 100 * 25_000)
    assert (facts.total, facts.price_id) == (1_107, 7)


@pytest.mark.parametrize("service", ["plain", "in money"])
@pytest.mark.parametrize(("category", "nano"), [("cyber", 0), ("bio", 100_000 * 5_000)])
async def test_a_refusal_is_charged_or_released_by_its_category(
    stage: Stage, category: str, nano: int, service: str
) -> None:
    stage.directory.prices[ASKED] = OPUS
    if service == "in money":
        stage.directory.services["messages"] = IN_MONEY
    said = {"type": "message", "model": ASKED, "content": [], "stop_reason": "refusal",
            "stop_details": {"type": "refusal", "category": category},
            "usage": {"input_tokens": 100_000, "output_tokens": 0}}  # fmt: skip
    stage.upstream.scripts.append([answer(json.dumps(said).encode())])
    got = await stage.ask(post(MESSAGE, b"/v1/messages"))
    assert (got.status, json.loads(got.body)) == (200, said)
    (settled,) = stage.counters.settlements
    facts = read_facts(settled.metadata)
    assert facts is not None
    assert (settled.charge, facts.cost, facts.total) == (nano > 0, nano, 100_000 if nano else 0)
    assert (settled.tokens, settled.units > 0) == (
        facts.total if settled.service.counts_tokens else 0,
        nano > 0,
    )
    assert [count for *_, count in stage.tally.snapshot()["cost"]] == ([nano / 10**9] if nano else [])


@pytest.mark.parametrize("service", ["plain", "in money"])
async def test_a_price_that_is_set_while_a_call_runs_changes_nothing(stage: Stage, service: str) -> None:
    stage.directory.prices[ASKED] = OPUS
    if service == "in money":
        stage.directory.services["messages"] = IN_MONEY
    answering = stage.upstream.scripts

    class Dearer(list[Any]):
        """Has the dearer price in force once the answer is asked for."""

        def pop(self, *at: Any) -> Any:
            stage.directory.prices[ASKED] = stage.directory.prices[ANSWERED] = DEAR
            return super().pop(*at)

    stage.upstream.scripts = Dearer(answering)
    facts = await facts_of(stage)
    assert stage.directory.prices[ASKED] is DEAR
    assert (facts.cost, facts.price_id) == (353_765_000, 7)


async def test_a_call_without_a_price_is_charged_and_counted(stage: Stage) -> None:
    facts = await facts_of(stage)
    assert (facts.cost, facts.currency, facts.total) == (None, "", 200_503)
    told = stage.tally.snapshot()
    assert (told["unpriced_calls"], told["cost"]) == ([("messages", 1)], [])


RUNS: dict[str, Any] = json.loads(MESSAGE) | {
    "tools": [{"type": "code_execution_20250825", "name": "web_search"}]
}


async def test_a_tool_without_a_price_is_told_and_counted_beside_what_else_the_call_costs() -> None:
    used = USED | {
        "server_tool_use": {"web_search_requests": 7, "web_fetch_requests": 2, "code_execution": 3}
    }
    body = json.dumps({"type": "message", "model": ASKED, "usage": used}).encode()
    async with staged() as stage:
        stage.directory.prices[ASKED] = OPUS._replace(service_tiers={})
        stage.upstream.scripts.append([answer(body)])
        assert (await stage.ask(post(json.dumps(RUNS).encode(), b"/v1/messages"))).status == 200
        facts = stage.facts()
        assert (facts.unpriced, facts.cost) == ("code_execution, service_tier.priority", 353_765_000)
        assert stage.tally.snapshot()["unpriced_calls"] == [("messages", 1)]


@pytest.mark.parametrize("refuses", [False, True])
async def test_a_tool_without_a_price_is_refused_where_a_model_without_one_is(refuses: bool) -> None:
    async with staged(refuses_unpriced=refuses) as stage:
        stage.directory.prices[ASKED] = OPUS
        if not refuses:
            stage.directory.services["messages"] = IN_MONEY
        got = await stage.ask(post(json.dumps(RUNS).encode(), b"/v1/messages"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert b"tool code_execution_20250825 of claude-opus-5" in got.body
        assert not stage.upstream.received
        stage.directory.prices[ASKED] = OPUS._replace(
            tools=dict.fromkeys(("code_execution", "web_search"), 5)
        )
        assert not (await facts_of(stage, ASKED, RUNS)).unpriced


async def test_a_service_tier_without_a_price_is_refused_where_a_model_without_one_is() -> None:
    fast = json.dumps(json.loads(MESSAGE) | {"speed": "fast"}).encode()
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices[ASKED] = OPUS
        got = await stage.ask(post(fast, b"/v1/messages"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert b"the service tier fast of claude-opus-5" in got.body
        assert not stage.upstream.received
        stage.directory.prices[ASKED] = OPUS._replace(tiers={"fast": DEAR})
        stage.upstream.scripts.append([answer(b'{"type":"message"}')])
        assert (await stage.ask(post(fast, b"/v1/messages"))).status == 200


async def test_decisions_cost_what_their_report_says() -> None:
    """By the reference of openai 3.51.0; pictures stand in the questions too."""
    route = Route(("POST",), "/v1/decisions", "up", "chat", Family("openai"), "openai_decisions")
    picture = {"type": "input_image", "image_url": "https://example.org/a.png"}
    asked = {
        "model": ASKED, "input": [{"role": "user", "content": [{"type": "input_json", "data": {"a": 1}}]}],
        "questions": [{"type": "predicate", "instructions": [picture]}],
    }  # fmt: skip
    usage = {
        "input_tokens": 1_000, "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 200},
        "output_tokens": 100, "output_tokens_details": {"reasoning_tokens": 60}, "total_tokens": 1_100,
    }  # fmt: skip
    answered = json.dumps({"answers": [], "model": ASKED, "usage": usage}).encode()
    async with staged((route,), refuses_unpriced=True) as stage:
        stage.directory.prices[ASKED] = OPUS._replace(lacks=("audio_input",))
        stage.upstream.scripts.append([answer(answered)])
        assert (await stage.ask(post(json.dumps(asked).encode(), b"/v1/decisions"))).status == 200
        facts = stage.facts()
        # 800 at 5, 200 at 0.5 and 100 at 25 a million: 4,000 + 100 + 2,500 in millionths.
        assert (facts.cost, facts.estimated) == (6_600_000, False)
        assert stage.counters.holds[-1].ceiling > 65_536 + 1_600  # and the picture


async def test_fallbacks_that_the_vendor_may_choose_need_a_price_and_a_place_on_the_list() -> None:
    default = json.dumps(json.loads(MESSAGE) | {"fallbacks": "default"}).encode()
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices |= {ASKED: OPUS, "claude-opus-5": OPUS}
        got = await stage.ask(post(default, b"/v1/messages"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert b'the model claude-opus-4-8, which fallbacks \\"default\\" may choose' in got.body
        stage.directory.prices["claude-opus-4-8"] = OPUS
        for listed, status in (({"claude-*"}, 200), ({"claude-opus-5*"}, 403)):
            stage.directory.caller = replace(stage.directory.caller, models=frozenset(listed))
            stage.upstream.scripts.append([answer(b'{"type":"message"}')])
            got = await stage.ask(post(default, b"/v1/messages"))
            assert got.status == status
        assert b'claude-opus-4-8, which fallbacks \\"default\\" may choose' in got.body


async def test_speed_of_a_fallback_needs_a_price_of_that_model_alone() -> None:
    entry = {"model": "claude-opus-4-8", "speed": "fast"}
    fast = json.dumps(json.loads(MESSAGE) | {"fallbacks": [entry]}).encode()
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices |= {ASKED: OPUS, "claude-opus-4-8": OPUS}
        got = await stage.ask(post(fast, b"/v1/messages"))
        assert (got.status, got.reason) == (403, "model_not_priced")
        assert b"the service tier fast" in got.body
        stage.directory.prices["claude-opus-4-8"] = OPUS._replace(tiers={"fast": DEAR})
        stage.upstream.scripts.append([answer(b'{"type":"message"}')])
        assert (await stage.ask(post(fast, b"/v1/messages"))).status == 200


@pytest.mark.parametrize(
    ("said", "tier", "factor"),
    [
        ({"speed": "fast"}, "fast", 2), ({"speed": "standard", "service_tier": "standard"}, "standard", 1),
        ({"service_tier": "standard"}, "fast", 2), ({}, "fast", 2),
    ],
)  # fmt: skip
async def test_a_dear_tier_that_was_asked_for_counts_unless_the_answer_names_another(
    stage: Stage, said: dict[str, str], tier: str, factor: int
) -> None:
    """What leaves out the speed says nothing of it."""
    stage.directory.prices[ASKED] = OPUS._replace(service_tiers={"fast": (2, 1)}, tools={})
    fast = json.dumps(json.loads(MESSAGE) | {"speed": "fast"}).encode()
    used = {"input_tokens": 1_000, "output_tokens": 100} | said
    body = json.dumps({"type": "message", "model": ASKED, "usage": used}).encode()
    stage.upstream.scripts.append([answer(body)])
    assert (await stage.ask(post(fast, b"/v1/messages"))).status == 200
    facts = stage.facts()
    assert (facts.service_tier, facts.cost) == (tier, (5_000 + 2_500) * 1_000 * factor)


async def test_a_report_that_says_more_than_is_known_is_counted_by_family(stage: Stage) -> None:
    for more in ({}, {"new_tokens": 7}, {"new_tokens": 0}, {"new": "x" * 5000}):
        body = json.dumps({"type": "message", "model": ANSWERED, "usage": USED | more}).encode()
        stage.upstream.scripts.append([answer(body)])
        assert (await stage.ask(post(MESSAGE, b"/v1/messages"))).status == 200
    kept = [read_facts(charge.metadata) for charge in stage.counters.charges]
    assert [facts is not None and b"new_tokens" in bytes(facts.unknown) for facts in kept] == [
        False, True, False, False,
    ]  # fmt: skip
    assert stage.tally.unknown_usage.pop("anthropic") == 2
    assert not any(stage.tally.unknown_usage.values())


@pytest.mark.parametrize("absurd", [-7, 0.5, True, 10**30, "9", [9], {"count": 9}])
@pytest.mark.parametrize("name", ["input_tokens", "output_tokens"])
async def test_an_absurd_count_is_charged_by_our_own_and_counted(
    stage: Stage, name: str, absurd: object
) -> None:
    stage.directory.prices[ASKED] = OPUS
    text = [{"type": "text", "text": "At the gate."}]
    usage = {"input_tokens": 900, "output_tokens": 80} | {name: absurd}
    body = {"type": "message", "model": ASKED, "content": text, "usage": usage}
    stage.upstream.scripts.append([answer(json.dumps(body).encode())])
    got = await stage.ask(post(MESSAGE, b"/v1/messages"))
    assert (got.status, got.body) == (200, json.dumps(body).encode())
    facts = stage.facts()
    assert facts.estimated
    assert min(facts.counts[0], facts.counts[4]) > 0
    assert facts.total > (900 if name == "output_tokens" else 80)
    assert (facts.cost or 0) > 0
    assert stage.tally.snapshot()["settlements_estimated"] == 1


@pytest.mark.parametrize("more", [1, 50])
def test_series_of_costs_have_a_most(more: int) -> None:
    tally = Tally()
    for number in range(COSTS_MAX + more):
        tally.cost("chat", f"m{number}", "USD", 1)
    assert len(tally.costs) == COSTS_MAX + 1
    assert tally.costs["chat", OTHER_MODELS, "USD"].nano == more
    assert sum(one.nano for one in tally.costs.values()) == COSTS_MAX + more


async def test_a_model_without_a_price_is_refused_where_the_settings_say_so() -> None:
    async with staged(refuses_unpriced=True) as stage:
        got = await stage.ask(post(MESSAGE, b"/v1/messages"))
        assert (got.status, got.one(b"x-tollkeeper-reason")) == (403, b"model_not_priced")
        assert not stage.upstream.received
        stage.directory.prices[ASKED] = OPUS
        await facts_of(stage)
        beside = json.loads(MESSAGE) | {"fallback_models": ["claude-other"]}
        got = await stage.ask(post(json.dumps(beside).encode(), b"/v1/messages"))
        assert got.status == 403
        stage.upstream.scripts.append([answer(b'{"data":[]}')])
        assert (await stage.ask(get(b"/v1/models"))).status == 200


async def test_a_report_of_zeros_is_none_and_is_counted_by_upstream(stage: Stage) -> None:
    nothing = {"input_tokens": 0, "output_tokens": 0}
    stage.upstream.scripts.append(
        [answer(json.dumps({"type": "message", "model": ASKED, "usage": nothing}).encode())]
    )
    assert (await stage.ask(post(MESSAGE, b"/v1/messages"))).status == 200
    facts = stage.facts()
    assert (facts.total > 0, facts.estimated) == (True, True)
    assert list(stage.tally.untrue_reports.values()) == [1]


async def test_a_model_that_another_stands_in_for_has_its_price_and_is_counted() -> None:
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices["house-1"] = OPUS._replace(price_id=9)
        stage.directory.stand_ins = read_stand_ins("claude*=house-1")
        facts = await facts_of(stage)
        assert (facts.cost, facts.price_id) == (353_765_000, 9)
        told = stage.tally.snapshot()
        assert told["unpriced_calls"] == [("messages", 1)]
        assert told["cost"] == [("messages", ASKED, "USD", 0.353765)]
        stage.directory.prices[ASKED] = OPUS
        assert (await facts_of(stage)).price_id == 7
        assert stage.tally.snapshot()["unpriced_calls"] == [("messages", 1)]


@pytest.mark.parametrize("stand_ins", ["claude*=nobody", "gpt*=house-1", ""])
async def test_a_stand_in_without_a_price_is_none(stand_ins: str) -> None:
    async with staged(refuses_unpriced=True) as stage:
        stage.directory.prices["house-1"] = OPUS
        stage.directory.stand_ins = read_stand_ins(stand_ins)
        got = await stage.ask(post(MESSAGE, b"/v1/messages"))
        assert (got.status, got.reason) == (403, "model_not_priced")


IN_MONEY = Service(
    9, "messages", "pay_per_use", True, pricing=ServicePricing(at_cost=CostMarkup(Decimal("1.2")))
)
IN_CREDITS = Service(
    9,
    "messages",
    "consumption",
    False,
    pricing=ServicePricing(at_cost=CostMarkup(Decimal("1.2"), Decimal(250))),
)


async def test_at_cost_a_call_is_charged_what_it_costs_times_the_markup(stage: Stage) -> None:
    stage.directory.prices[ASKED] = OPUS
    stage.directory.services["messages"] = IN_MONEY
    facts = await facts_of(stage)
    charge, hold = stage.counters.charges[-1], stage.counters.holds[-1]
    assert facts.cost == 353_765_000
    assert (charge.units, charge.credits, charge.tokens) == (424_518_000, 0, 200_503)
    assert (facts.units, hold.credits) == (1, 0)
    stage.directory.services["messages"] = IN_CREDITS
    await facts_of(stage)
    charge = stage.counters.charges[-1]
    # 0.353765 times 1.2 times 250 are 106.1295 credits.
    assert (charge.credits, charge.over, charge.units) == (107, 870_500_000, 1)


@pytest.mark.parametrize("service", [IN_MONEY, IN_CREDITS])
@pytest.mark.parametrize("refuses", [False, True])
async def test_where_money_decides_a_model_without_a_price_is_refused(
    service: Service, refuses: bool
) -> None:
    async with staged(refuses_unpriced=refuses) as stage:
        stage.directory.services["messages"] = service
        for prices in ({}, {ASKED: OPUS._replace(currency="EUR")}, {ANSWERED: OPUS}):
            stage.directory.prices = prices
            got = await stage.ask(post(MESSAGE, b"/v1/messages"))
            assert (got.status, got.reason) == (403, "model_not_priced")
        stage.directory.currency = "EUR"
        stage.directory.prices = {ASKED: OPUS._replace(currency="EUR")}
        assert (await facts_of(stage)).currency == "EUR"
        assert not stage.upstream.received[1:]
        stage.directory.stand_ins = read_stand_ins("*=house-1")
        stage.directory.prices = {"house-1": OPUS._replace(currency="EUR", price_id=9)}
        assert (await facts_of(stage)).price_id == 9


class Once(dict[str, Vector]):
    """Prices that are gone once they were asked for."""

    def get(self, key: str, default: Any = None) -> Any:
        return self.pop(key, default)


async def test_a_price_that_was_taken_back_meanwhile_charges_the_call_it_admitted(stage: Stage) -> None:
    stage.directory.prices = Once({ASKED: OPUS})
    stage.directory.services["messages"] = IN_MONEY
    assert (await facts_of(stage)).cost == 353_765_000
    assert stage.counters.charges[-1].units == 424_518_000


async def test_searches_without_a_maximum_are_held_and_sent_with_one(stage: Stage) -> None:
    stage.directory.prices[ASKED] = OPUS
    stage.directory.services["messages"] = IN_CREDITS
    tool = {"type": "web_search_20250305", "name": "web_search"}
    plain = json.loads(MESSAGE)
    await facts_of(stage, ASKED, plain)
    await facts_of(stage, ASKED, plain | {"tools": [tool]})
    without, with_ = [hold.credits for hold in stage.counters.holds[-2:]]
    # A search is a hundredth of a dollar, that three credits. The prompt for tools has 804 tokens, and 7,600 for a
    # tool without a number: 8,404 at 5 dollars a million and 300 credits a dollar are 12.6 credits.
    assert 3 * TOOL_USES + 12 <= with_ - without <= 3 * TOOL_USES + 13
    sent = json.loads(stage.upstream.received[-1].body)
    assert sent["tools"] == [tool | {"max_uses": TOOL_USES}]


@pytest.mark.parametrize(("stated", "uses"), [({"max_uses": 1}, 1), ({}, MODEL_USES)])
async def test_an_advisor_is_held_at_the_dearest_price_for_each_of_its_uses(
    stated: dict[str, int], uses: int
) -> None:
    """Where credits are prepaid it is sent with as many as are held."""
    advisor = {"type": "advisor_20260301", "name": "advisor", "model": ADVISOR, "max_tokens": 2_000}
    async with staged() as stage:
        stage.directory.prices[ASKED] = OPUS
        stage.directory.prices[ADVISOR] = OPUS._replace(prices=tuple(9 * one for one in OPUS.prices))
        stage.directory.services["messages"] = IN_CREDITS
        body = {**json.loads(MESSAGE), "tools": [advisor | stated]}
        await facts_of(stage, ASKED, body)
        text = bound_tokens(json.dumps(body, separators=(",", ":")).encode(), "")
        assert text is not None
        size = text[0] + 804 + 7_600  # for tools, and for this one
        read = size * (1 + uses)
        dollars = Decimal(45 * read + 225 * (5 + 2_000 * uses)) / 10**6
        assert stage.counters.holds[-1].credits == math.ceil(dollars * 300)  # 250 a dollar, times 1.2
        sent = json.loads(stage.upstream.received[-1].body)
        assert sent["tools"] == [advisor | {"max_uses": uses}]


# --- charge -----------------------------------------------------------------------------
# What a call holds and is charged in credits, whatever becomes of its price meanwhile.


PRICES = {"m": CreditRates(input=2_000_000, output=5_000_000)}  # 2 and 5 credits a token
BY_TOKEN = Service(1, "chat", "consumption", False, credits=9, pricing=ServicePricing(per_million=PRICES))


@pytest.mark.parametrize("counts", [False, True])
async def test_a_price_by_token_is_estimated_and_then_exact(stage: Stage, counts: bool) -> None:
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
async def test_a_model_without_a_price_is_refused_and_nothing_is_held(stage: Stage, model: str) -> None:
    stage.directory.services["chat"] = BY_TOKEN
    got = await stage.ask(post(CHAT.replace(b'"m"', f'"{model}"'.encode())))
    assert (got.status, got.reason) == (403, "model_not_priced")
    assert not stage.counters.holds
    assert not stage.upstream.received


@pytest.mark.parametrize("more", [b'"fallbacks":["x"]', b'"models":["m","x"]', b'"fallbacks":[{"m":["x"]}]'])
async def test_every_model_that_may_answer_needs_a_price(stage: Stage, more: bytes) -> None:
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
async def test_a_stored_price_that_cannot_be_used_charges_nobody_nothing(
    stage: Stage, service: Service
) -> None:
    stage.directory.services["chat"] = service
    got = await stage.ask(post(CHAT))
    assert (got.status, got.reason) == (403, "model_not_priced")
    assert not stage.upstream.received


async def test_a_call_that_names_no_model_is_not_priced_by_one(stage: Stage) -> None:
    prices = ServicePricing(per_million={"*": PRICES["m"]})
    stage.directory.services["search"] = replace(stage.directory.services["search"], pricing=prices)
    got = await stage.ask(get(b"/services/search/x"), "GET")
    assert (got.status, got.reason) == (403, "model_not_priced")


async def test_a_one_time_service_costs_the_same_whatever_its_units(stage: Stage) -> None:
    stage.directory.services["search"] = Service(4, "search", "consumption", False, 500, one_time=True)
    await stage.ask(post(b"", b"/trusted", b"x-tollkeeper-units: 7\r\n"))
    assert (stage.counters.holds[0].credits, stage.counters.charges[0].credits) == (500, 500)


async def test_a_price_that_changes_meanwhile_changes_nothing_for_the_call(stage: Stage) -> None:
    before = stage.directory.services["search"]
    dearer = {"search": replace(before, credits=100)}
    stage.directory.then = lambda: stage.directory.services.update(dearer)
    await stage.ask(get(b"/services/search/"), "GET")
    assert (stage.counters.holds[0].service, stage.counters.charges[0].service) == (before, before)
    assert stage.counters.charges[0].credits == before.credits


async def test_a_service_the_organization_may_not_use_is_refused_before_anything_is_held(
    stage: Stage,
) -> None:
    stage.directory.refusal = ServiceNotIncluded()
    got = await stage.ask(post(CHAT))
    assert (got.status, got.one(b"x-tollkeeper-reason")) == (403, b"service_not_included")
    assert not stage.counters.holds
    assert not stage.upstream.received


# --- the hold as the call's limit -------------------------------------------------------

UNSTATED = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
# The body has seven strings and 12 marks. `messages`, `role` and `hi` are two tokens each by the first entries of
# cl100k_base, the other strings and marks are one: 22 x 1.2.
READ = 27


async def test_under_a_strict_plan_a_call_without_a_maximum_is_sent_with_what_it_holds(stage: Stage) -> None:
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


# Digits and marks in turn are a token each.
DENSE = b'{"model":"gpt-4o","messages":[{"role":"user","content":"%s"}],"max_tokens":1}' % (b"1." * 100)
AS_USUAL = -(-(len(DENSE) + (102 - len(DENSE) // 8) * 5 // 4) // 2)  # two bytes, and its 102 digits more


async def test_a_hold_covers_any_text_unless_the_plan_of_its_tenant_is_known_not_to_bind(
    stage: Stage,
) -> None:
    decision = stage.counters.decision
    assert decision is not None
    reads = []
    for bounded in (False, False, True, True):
        decision.held_tokens, decision.bounded = 10_000, bounded
        assert (await stage.ask(post(DENSE))).status == 200
        reads.append(stage.counters.holds[-1].read)
    most, usual = reads[0], reads[1]
    assert most >= 200 > usual == AS_USUAL
    assert reads == [most, usual, usual, most]


@pytest.mark.parametrize("hold", ["maximum", "likely"])
async def test_a_hold_of_a_budget_covers_any_text_where_it_is_the_maximum(stage: Stage, hold: str) -> None:
    stage.directory.budgets_there = [Budget(1, "all", TOKENS, 10**6, "month", hold=hold)]
    for _ in range(2):
        assert (await stage.ask(post(DENSE))).status == 200
    assert (stage.counters.holds[-1].read >= 200) == (hold == "maximum")


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


async def test_without_a_strict_plan_a_call_is_sent_as_it_came(stage: Stage) -> None:
    assert (await stage.ask(post(UNSTATED))).status == 200
    assert json.loads(stage.upstream.received[0].body) == json.loads(UNSTATED)


@pytest.mark.parametrize("choices", [1, 3])
async def test_prepaid_credits_by_token_bind_a_call_to_what_it_holds(choices: int) -> None:
    body = UNSTATED[:-1] + b',"n":%d}' % choices
    read = 32  # `n` and three marks more: 26 x 1.2
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


# A cost that the provider itself reports.
REPORTS_COST: dict[str, object] = {"cost": "reported"}


async def reported(stage: Stage, cost: object, **usage: object) -> CallFacts:
    """The facts of a chat whose report of use says so much beside 10 tokens read and 5 produced."""
    told = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15, "cost": cost, **usage}
    said = {"message": {"content": "five words are in here"}, "finish_reason": "stop"}
    body = json.dumps({"model": ASKED, "choices": [said], "usage": told}).encode()
    stage.upstream.scripts.append([answer(body)])
    sent = json.dumps({"model": ASKED, "messages": [{"role": "user", "content": "hi"}]}).encode()
    assert (await stage.ask(post(sent))).status == 200
    return stage.facts()


async def test_a_reported_cost_is_the_cost_where_its_upstream_says_so() -> None:
    async with staged(of_target=REPORTS_COST) as stage:
        facts = await reported(stage, 0.0071)
        assert (facts.cost, facts.currency, facts.price_id) == (7_100_000, "USD", 0)
        assert stage.tally.snapshot()["unpriced_calls"] == []
        # 10 at 5 and 5 at 25 dollars a million, and 7 searches that are in what it reports.
        stage.directory.prices[ASKED] = OPUS
        facts = await reported(stage, 0.0071, server_tool_use={"web_search": 7})
        assert (facts.cost, facts.price_id, facts.unpriced) == (7_100_000, 0, "")
        assert [(await reported(stage, odd)).cost for odd in (-1, None, "NaN", 10**6)] == [175_000] * 4


async def test_a_reported_cost_is_converted_at_the_rate_of_the_admission() -> None:
    async with staged(of_target=REPORTS_COST) as stage:
        stage.directory.currency = "EUR"
        assert ((await reported(stage, 0.01)).cost, stage.facts().currency) == (10_000_000, "USD")
        stage.directory.rate = "0.92"
        facts = await reported(stage, 0.01)
        assert (facts.cost, facts.currency, facts.exchange_rate) == (9_200_000, "EUR", "0.92")


async def test_the_price_book_decides_elsewhere_and_a_large_difference_is_told(stage: Stage) -> None:
    stage.directory.prices[ASKED] = OPUS
    costs = [(await reported(stage, cost)).cost for cost in ("0.000175", "0.00019", "0.0002", "0.0001")]
    assert costs == [175_000] * 4
    assert stage.tally.snapshot()["costs_apart"] == [("up", 2)]
    told = stage.events("reported_cost_differs")
    assert [(one["book"], one["reported"]) for one in told] == [(0.000175, 0.0002), (0.000175, 0.0001)]


async def test_an_answer_that_was_counted_costs_no_less_than_the_price_book_says() -> None:
    async with staged(of_target=REPORTS_COST) as stage:
        stage.directory.prices[ASKED] = OPUS
        facts = await reported(stage, 0.000001, completion_tokens=0, total_tokens=10)
        assert facts.estimated
        assert facts.cost is not None
        assert facts.cost > 50_000


@pytest.mark.parametrize(
    ("model", "cost", "unpriced"),
    [
        # 0.0004 + 0.00012, and 0.00025 + 0.1248 of the tool's model, else 0.00001 + 0.004992 of the call's.
        ("gpt-image-2", 125_570_000, ""),
        ("gpt-image-9", 5_522_000, "gpt-image-9"),
    ],
)
async def test_tokens_of_an_image_tool_cost_what_its_model_does_and_one_without_a_price_is_told(
    model: str, cost: int, unpriced: str
) -> None:
    """By the numbers of a response of OpenAI's with `tool_usage.image_gen` (openai 3.51.0)."""
    body = {
        "model": "gpt-5.6-luna", "status": "completed",
        "output": [{"type": "image_generation_call", "model": model}],
        "usage": {"input_tokens": 2_000, "output_tokens": 100, "total_tokens": 2_100},
        "tool_usage": {
            "image_gen": {
                "input_tokens": 50, "output_tokens": 4_160, "total_tokens": 4_210,
                "output_tokens_details": {"image_tokens": 4_160, "text_tokens": 0},
            }
        },
    }  # fmt: skip
    asked = {"model": "gpt-5.6-luna", "input": "hi", "tools": [{"type": "image_generation"}]}
    async with staged((*ROUTES, RESPONSES)) as stage:
        stage.directory.prices = {"gpt-5.6-luna": LUNA, "gpt-image-2": DRAWS}
        stage.upstream.scripts.append([answer(json.dumps(body).encode())])
        await stage.ask(post(json.dumps(asked).encode(), b"/v1/responses"))
        facts = stage.facts()
    assert (facts.cost, facts.unpriced, facts.tools) == (cost, unpriced, {})


RESPONSES = Route(("POST",), "/v1/responses", "up", "chat", Family("openai"), "openai_responses")
LUNA = Vector(1, "USD", tuple(int(each * MILLION) for each in (0.2, 0, 0, 0, 1.2, 1.2, 0.2, 1.2, 0.2, 1.2)))
DRAWS = Vector(2, "USD", tuple(int(each * MILLION) for each in (5, 1.25, 0, 0, 30, 30, 5, 30, 8, 30)))


@pytest.mark.parametrize(
    ("error", "price", "told"),
    [
        ("Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_BIO", 50, (50_000_000, "", 1)),
        # A price without the fee costs nothing, and the fee is told.
        ("Content violates usage guidelines.", None, (0, "usage_guidelines_violation", 1)),
    ],
)
async def test_a_request_that_its_vendor_refuses_for_a_fee_costs_that_fee(
    error: str, price: int | None, told: tuple[int, str, int]
) -> None:
    """By xAI's answer (docs.x.ai/docs/models: 0.05 dollars for each)."""
    grok = LUNA._replace(tools={} if price is None else {"usage_guidelines_violation": price * MILLION})
    body = {"code": "The caller does not have permission to execute the specified operation", "error": error}
    async with staged((*ROUTES, RESPONSES)) as stage:
        stage.directory.prices = {"grok-4.5": grok}
        stage.upstream.scripts.append([answer(json.dumps(body).encode(), status=b"403 Forbidden")])
        got = await stage.ask(post(b'{"model": "grok-4.5", "input": "hi"}', b"/v1/responses"))
        facts = stage.facts()
    assert (got.status, facts.cost or 0, facts.unpriced, facts.units) == (403, *told)
