"""Budgets on the way of a call: what is asked of its hold, what refuses it, what it comes to."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest

from gateway.calls.prices import check_known
from gateway.core.accounts.budgets import (
    BUDGET_ACCOUNTS_MAX,
    FLAG_MONEY,
    FLAG_REQUESTS,
    FLAG_TOKENS,
    MAXIMUM,
    MONEY,
    TOKENS,
    Budget,
    CallAttributes,
    account_of,
)
from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.refusals import read_batch
from gateway.core.accounts.runs import Run
from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.calls.call import Body, CallRequest
from gateway.core.calls.tariff import NO_PRICES
from gateway.core.model import Admitted, BudgetWindow, Family, LimitKind, Refused, Scope, Verdict
from gateway.errors import ModelNotPriced
from tests.http.fakes import (
    ANSWER,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    answer,
    chunks,
    get,
    post,
)
from tests.http.stage import Stage, staged

MILLION = 1_000_000
# 2 nano-units a token read, 5 a token produced.
PRICE = Vector(
    7, "USD", tuple((5 if "output" in kind or kind == "reasoning" else 2) * MILLION for kind in KINDS)
)
BUDGET = Budget(1, "all of it", MONEY, 1_000_000, "month")
OPEN = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).encode()
NOW, RESET = 1_000, 91_000


def budgeted(stage: Stage, *budgets: Budget) -> None:
    stage.directory.prices["m"] = PRICE
    stage.directory.budgets_there = list(budgets)


def admitted(money: int = 0, raw: int = 0, window: BudgetWindow | None = None) -> Admitted:
    return Admitted(now_ms=NOW, held_tokens=10**6, money_held=money, budget_tokens_held=raw, budget=window)


def refused(verdict: Verdict, used: int, limit: int, until: int = RESET, unit: int = FLAG_MONEY) -> Refused:
    window = BudgetWindow(1, limit, used, until, unit)
    return Refused(verdict, Scope.BUDGET, LimitKind.BUDGET, used, limit, until, NOW, budget=window)


async def test_a_call_without_budgets_asks_for_none(stage: Stage) -> None:
    stage.directory.prices["m"] = PRICE
    assert (await stage.ask(post(CHAT))).status == 200
    (hold,), (charge,) = stage.counters.holds, stage.counters.charges
    assert (hold.budgets, hold.money, hold.budget_tokens) == ((), 0, 0)
    assert (charge.budgets, charge.money, charge.budget_tokens) == ((), 0, 0)


async def test_a_call_takes_from_its_budgets_and_is_charged_what_it_cost(stage: Stage) -> None:
    tokens = Budget(2, "tokens", TOKENS, 10**6, "day", each="user")
    budgeted(stage, BUDGET, tokens, replace(BUDGET, id=3, model="other"))
    assert (await stage.ask(post(CHAT, fields=b"x-tollkeeper-user: ada\r\n"))).status == 200
    (hold,), (charge,) = stage.counters.holds, stage.counters.charges
    names = (account_of(1, BUDGET), account_of(1, tokens, "ada"))
    assert tuple(one.name for one in hold.budgets) == charge.budgets == names
    # 10 tokens stated, and the input by its size.
    assert hold.money >= 10 * 5
    assert hold.budget_tokens >= 10
    assert hold.money_least == 0
    assert (charge.money, charge.budget_tokens) == (7 * 2 + 5 * 5, 12)


# As `PRICE`, but a tenth of it for what is read from a cache.
CACHING = Vector(
    8,
    "USD",
    tuple(MILLION // 5 if kind == "cache_read" else PRICE.prices[at] for at, kind in enumerate(KINDS)),
)
FROM_CACHE = answer(
    ANSWER.replace(b'"prompt_tokens":7', b'"prompt_tokens_details":{"cached_tokens":20},"prompt_tokens":20')
)


@pytest.mark.parametrize(
    "before",
    [
        (), (replace(BUDGET, unit=TOKENS),), (replace(BUDGET, hold=MAXIMUM),), (replace(BUDGET, enforce=False),),
        (BUDGET,),
    ],
)  # fmt: skip
async def test_a_new_budget_holds_what_its_callers_input_cost_before(
    stage: Stage, before: tuple[Budget, ...]
) -> None:
    """73 bytes are held as 25 tokens at 2. Of 20 tokens from the cache at 0.2 each an eighth of that is learned.

    After one answer the organization's share is 1/8 + 7/8 / 4, and from there that of the key 0.1796875. So the
    next call holds 25 x 0.359375 and 10 x 5.
    """
    budgeted(stage, *before)
    stage.directory.prices["m"] = CACHING
    stage.upstream.scripts.append([FROM_CACHE])
    assert (await stage.ask(post(CHAT))).status == 200
    stage.directory.budgets_there = [BUDGET]
    assert (await stage.ask(post(CHAT))).status == 200
    assert stage.counters.holds[-1].money == 59


async def test_a_call_without_a_cache_teaches_beside_calls_with_one(stage: Stage) -> None:
    """It costs its price. The share of the key is 1 - 0.65625 / 9: 25 x 1.854167 and 10 x 5 are held."""
    stage.directory.prices["m"] = CACHING
    stage.upstream.scripts += [[answer()], [FROM_CACHE], [answer()]]
    for _ in range(3):
        assert (await stage.ask(post(CHAT))).status == 200
    budgeted(stage, BUDGET)
    stage.directory.prices["m"] = CACHING
    assert (await stage.ask(post(CHAT))).status == 200
    assert stage.counters.holds[-1].money == 97


async def test_what_only_counts_tokens_asks_for_no_money(stage: Stage) -> None:
    budgeted(stage, replace(BUDGET, unit=TOKENS))
    stage.directory.services["chat"] = replace(stage.directory.services["chat"], counts_tokens=False)
    assert (await stage.ask(post(CHAT))).status == 200
    (hold,), (charge,) = stage.counters.holds, stage.counters.charges
    assert hold.money == 0
    assert (hold.need, charge.tokens) == (0, 0)
    assert hold.budget_tokens >= 10
    assert charge.budget_tokens == 12


async def test_a_failed_call_gives_its_budgets_back(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    stage.upstream.scripts.append([answer(b"{}", status=b"500 Oh")])
    assert (await stage.ask(post(CHAT))).status == 500
    (release,) = stage.counters.releases
    assert release.budgets == (account_of(1, BUDGET),)
    assert (release.money, release.budget_tokens) == (0, 0)


@pytest.mark.parametrize("request_", [get(b"/v1/models"), post(b"{}", b"/free/x")])
async def test_free_routes_move_no_budget(stage: Stage, request_: bytes) -> None:
    budgeted(stage, BUDGET)
    stage.upstream.scripts.append([answer(b'{"data":[]}')])
    assert (await stage.ask(request_, request_.partition(b" ")[0].decode())).status == 200
    assert all(not one.budgets for one in stage.counters.heads)


async def test_a_model_nobody_can_price_is_not_called_under_a_budget_of_money(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    got = await stage.ask(post(CHAT.replace(b'"m"', b'"x"')))
    assert (got.status, got.reason) == (403, "model_not_priced")
    assert f'the budget \\"{BUDGET.name}\\" cannot be enforced' in got.body.decode()
    more = CHAT[:-1] + b',"models":["m","x"]}'
    assert (await stage.ask(post(more))).reason == "model_not_priced"
    assert not stage.counters.holds


def test_a_call_that_names_no_model_is_not_priced_under_a_budget_of_money() -> None:
    """No family reads one without; one that did would count nothing."""
    nameless = CallRequest("openai_chat", Family("openai"), Body())
    check_known(NO_PRICES, nameless)
    asking = OrganizationBudgets(1, (BUDGET,), "USD").find(CallAttributes(7, 0, 1), 0)
    with pytest.raises(ModelNotPriced, match=BUDGET.name):
        check_known(NO_PRICES, nameless, asking)


@pytest.mark.parametrize("budget", [replace(BUDGET, enforce=False), replace(BUDGET, unit=TOKENS)])
async def test_only_money_that_is_enforced_needs_a_price(stage: Stage, budget: Budget) -> None:
    budgeted(stage, budget)
    assert (await stage.ask(post(CHAT.replace(b'"m"', b'"x"')))).status == 200
    (hold,), (charge,) = stage.counters.holds, stage.counters.charges
    assert (hold.money, charge.money, charge.budget_tokens) == (0, 0, 12)


async def test_a_service_without_models_costs_a_budget_no_money(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    assert (await stage.ask(post(b"{}", b"/services/search/x"))).status == 200
    (hold,) = stage.counters.holds
    assert hold.budgets
    assert hold.money == 0


async def test_a_price_in_another_currency_is_none(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    stage.directory.currency = "EUR"
    got = await stage.ask(post(CHAT))
    assert got.reason == "model_not_priced"
    assert b"priced in USD, and the organization pays in EUR" in got.body
    stage.directory.budgets_there = [replace(BUDGET, enforce=False)]
    assert (await stage.ask(post(CHAT))).status == 200
    assert stage.counters.holds[-1].money == stage.counters.charges[-1].money == 0


SHAPES: list[tuple[bytes, bytes, tuple[str, ...], Any]] = [
    (b"/v1/chat/completions", CHAT, ("error", "code"), "insufficient_quota"),
    (b"/v1/messages", CHAT, ("error", "type"), "billing_error"),
    (b"/v1beta/models/m:generateContent", b'{"contents":[]}', ("error", "status"), "RESOURCE_EXHAUSTED"),
    (b"/services/search/x", b"{}", ("status",), 429),
]


@pytest.mark.parametrize(("path", "body", "where", "said"), SHAPES)
async def test_a_budget_that_is_used_up_refuses_in_the_apis_own_shape(
    stage: Stage, path: bytes, body: bytes, where: tuple[str, ...], said: object
) -> None:
    budgeted(stage, BUDGET)
    stage.counters.decision = refused(Verdict.BUDGET_EXCEEDED, 12_500_000_000, 12_500_000_000)
    got = await stage.ask(post(body, path))
    assert (got.status, got.reason) == (429, "budget_exceeded")
    found = json.loads(got.body)
    for name in where:
        found = found[name]
    assert found == said
    assert b'Budget \\"all of it\\": $0 of $12.50 left' in got.body
    assert got.one(b"x-tollkeeper-budget") == b"all%20of%20it"
    assert got.one(b"x-tollkeeper-refused-by") == b"budget"
    assert got.one(b"retry-after") == b"90"
    assert got.one(b"x-should-retry") == b"false"
    assert got.one(b"ratelimit") == b'"budget";r=0;t=90'
    assert not stage.upstream.received
    assert stage.tally.snapshot()["budget_refusals"] == [("budget_exceeded", "money", "month", 1)]
    batch = read_batch(stage.refusals.take("w", 1))
    assert batch is not None
    assert [(one.refused_kind, one.refused_by) for one in batch.calls] == [("budget", BUDGET.id)]


async def test_a_total_says_no_time(stage: Stage) -> None:
    budgeted(stage, replace(BUDGET, interval="total", name="für 100 %\u2028"))
    stage.counters.decision = refused(Verdict.BUDGET_EXCEEDED, 10, 10, 0)
    got = await stage.ask(post(CHAT))
    assert not got.all(b"retry-after")
    assert got.one(b"x-should-retry") == b"false"
    assert got.one(b"x-tollkeeper-budget") == b"f%C3%BCr%20100%20%25%E2%80%A8"


async def test_within_a_minute_waiting_helps(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    stage.counters.decision = refused(Verdict.BUDGET_EXCEEDED, 9, 10, NOW + 30_500)
    got = await stage.ask(post(CHAT))
    assert (got.one(b"retry-after"), got.one(b"x-should-retry")) == (b"31", b"true")
    assert b"Quota exceeded; it will reset at 1970-01-01T00:00:32Z." in got.body


async def test_an_answer_tells_of_the_tightest_budget(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    window = BudgetWindow(1, 20_000_000_000, 7_999_999_999, RESET, FLAG_MONEY)
    stage.counters.decision = admitted(window=window)
    got = await stage.ask(post(CHAT))
    assert got.one(b"x-tollkeeper-budget") == b"all%20of%20it"
    assert got.one(b"ratelimit-policy") == b'"budget";q=20000000;qu="micro-USD"'
    assert got.one(b"ratelimit") == b'"budget";r=12000000;t=90'


async def test_a_hold_that_was_cut_is_sent_as_the_calls_maximum(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    stage.counters.decision = admitted(money=500)
    assert (await stage.ask(post(OPEN))).status == 200
    (hold,) = stage.counters.holds
    assert 0 < hold.money_least < 500 < hold.money
    sent = json.loads(stage.upstream.received[-1].body)
    assert 1 <= sent["max_completion_tokens"] <= 500 // 5


TEN = (EVENT,) * 10


async def stream(
    stage: Stage, first: int, extension: tuple[int, bool, bool], cut: bool, events: tuple[bytes, ...] = TEN
) -> bytes:
    """Return a stream of these events, four times each. Its first hold covers so many tokens."""
    stage.counters.decision = admitted(money=first * 5)
    stage.counters.extension = extension
    parts: list[Any] = []
    for _ in range(4):
        parts += [chunks(*events, end=False), 0.01]
    end = chunks(USAGE_EVENT, DONE_EVENT)
    stage.upstream.scripts.append([STREAM_HEAD, *parts, *([asyncio.Event()] if cut else [end])])
    got = await stage.ask(post(CHAT_STREAM))
    assert got.status == 200
    return got.body


async def test_a_stream_that_outgrows_what_it_holds_in_money_is_extended(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    body = await stream(stage, 4, (10**6, False, False), False)
    assert body.count(b"word ") == 40
    (observed,) = stage.counters.watched
    assert observed.budgets == (account_of(1, BUDGET),)
    assert observed.money_rate is not None
    assert observed.money_rate.charge_for(observed.tokens) >= 4 * 5
    assert not observed.counts_budget_tokens
    assert stage.counters.outgrowths
    assert stage.counters.unwatched == stage.counters.watched


async def test_a_budget_that_is_used_up_ends_a_stream_where_it_says_so(stage: Stage) -> None:
    budgeted(stage, replace(BUDGET, cut=True))
    body = await stream(stage, 4, (4, True, True), True)
    assert 0 < body.count(b"word ") < 40
    assert body.endswith(b"data: [DONE]\n\n")
    (charge,) = stage.counters.charges
    assert charge.money > 0


@pytest.mark.parametrize("events", [TEN, (EVENT.replace(b"word ", b"word " * 10),)])
async def test_a_stream_that_passes_its_maximum_is_cut_and_charged_by_that(
    stage: Stage, events: tuple[bytes, ...]
) -> None:
    """It reads 43 at 2, its maximum is 10 at 5, and 170 are held: for 16. Its upstream writes 40."""
    budgeted(stage, replace(BUDGET, cut=True))
    body = await stream(stage, 170 // 5, (59, True, True), True, events)
    assert 16 < body.count(b"word ") < 40
    assert body.endswith(b"data: [DONE]\n\n")
    (charge,) = stage.counters.charges
    assert (charge.tokens, charge.money) == (43 + 10, 43 * 2 + 10 * 5)


@pytest.mark.parametrize("text", [b"a" * 20 + b" ", b"-" * 60])
async def test_a_dense_stream_within_its_maximum_is_not_cut(stage: Stage, text: bytes) -> None:
    """Its maximum is 10. It writes eight long words, or 240 dashes, which may be four tokens."""
    budgeted(stage, replace(BUDGET, cut=True))
    events = (EVENT.replace(b"word ", text),) * (2 if text.endswith(b" ") else 1)
    body = await stream(stage, 170 // 5, (59, True, True), False, events)
    assert body.count(text) == 4 * len(events)
    assert stage.counters.outgrowths == []


async def test_a_budget_that_is_used_up_lets_a_stream_finish_where_it_says_so(stage: Stage) -> None:
    budgeted(stage, BUDGET)
    assert (await stream(stage, 4, (4, True, False), False)).count(b"word ") == 40
    (charge,) = stage.counters.charges
    assert charge.money == 39


async def test_a_call_of_models_of_too_many_budgets_is_told_to_ask_for_fewer() -> None:
    """No call of one model meets so many; one that names several is not let past any."""
    many = [replace(BUDGET, id=at, model=f"m{at}") for at in range(BUDGET_ACCOUNTS_MAX + 1)]
    async with staged() as stage:
        budgeted(stage, *many)
        models = ",".join(f'"{one.model}"' for one in many)
        got = await stage.ask(post(b'{"model":"m0","models":[%b]}' % models.encode()))
        assert (got.status, got.reason) == (400, "too_many_budgets")
        assert b"fewer models" in got.body
        assert (stage.tally.budgets_exceeding, stage.counters.holds) == (1, [])


# A run's call states a task budget of 64,000 tokens, or has 40,000 of one left. 5 nano-units a token.
RUN = Run(1, 2, "r", "", 2**52, MONEY, 10**9, 0, 0, 2**40)
IN_RUN = b"x-tollkeeper-run: r\r\n"


@pytest.mark.parametrize(
    ("fields", "stated", "left", "unit", "sent"),
    [
        (IN_RUN, {}, 150_500, FLAG_MONEY, 28_000),  # 30,100 tokens, in steps of 4,000
        (IN_RUN, {"remaining": 40_000}, 150_500, FLAG_MONEY, 28_000),
        (IN_RUN, {"remaining": 9_000}, 150_500, FLAG_MONEY, 9_000),
        (IN_RUN, {}, 400_000, FLAG_MONEY, None),  # 80,000
        (IN_RUN, {}, 13_000, FLAG_TOKENS, 12_000),
        (IN_RUN, {}, 5, FLAG_MONEY, 0),
        (IN_RUN, {}, 5, FLAG_REQUESTS, None),
        (IN_RUN, {"type": "hours"}, 5, FLAG_MONEY, None),
        (IN_RUN, {"total": "64000"}, 5, FLAG_MONEY, None),
        (b"", {}, 5, FLAG_MONEY, None),
    ],
)
async def test_a_model_is_told_what_is_left_where_its_call_states_a_task_budget(
    fields: bytes, stated: dict[str, Any], left: int, unit: int, sent: int | None
) -> None:
    task = {"type": "tokens", "total": 64_000} | stated
    body = json.loads(OPEN) | {"max_tokens": 10, "output_config": {"effort": "low", "task_budget": task}}
    async with staged() as stage:
        budgeted(stage, BUDGET)
        stage.runs.known = RUN
        window = BudgetWindow(1, 10**9, 10**9 - left, RESET, unit)
        stage.counters.decision = admitted(money=10, raw=10, window=window)
        stage.upstream.scripts.append([answer()])
        await stage.ask(post(json.dumps(body).encode(), b"/v1/messages", fields))
        (received,) = stage.upstream.received
        config = json.loads(received.body)["output_config"]
        expected = task if sent is None else task | {"remaining": sent}
        assert config == {"effort": "low", "task_budget": expected}


async def test_calls_that_read_little_and_no_cache_make_the_next_hold_no_smaller(stage: Stage) -> None:
    """Else whoever asks with blanks, 16 bytes a token, has the next call pass its hold."""
    budgeted(stage, BUDGET)
    for number in range(20):
        assert (await stage.ask(post(CHAT))).status == 200
        await stage.settled(number + 1)
    holds = [hold.money for hold in stage.counters.holds]
    assert holds == holds[:1] * 20
