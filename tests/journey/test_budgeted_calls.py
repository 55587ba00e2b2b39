"""Budgets as callers meet them: exact under a crowd, told before they bite, on no calls but their own."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal

import pytest

from tests.journey.budgets import MODEL, Spender, cost, reasons
from tests.journey.parallel import CALLS, at_once, obedient
from tests.journey.stack import Body
from tests.stage import Stage
from tests.waiting import wait_until

ONE = cost(20, 40)
USED_UP = "budget_exceeded"


@pytest.fixture
def spender(stage: Stage) -> Spender:
    return Spender(stage)


def request(key: str, maximum: int | None = 30, usage: str = "20,40", delay_s: float = 2) -> bytes:
    """A chat as bytes, to be sent many times at the same instant."""
    more = "" if maximum is None else f',"max_tokens":{maximum}'
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello there"}}]{more}}}'
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"x-demo-usage: {usage}\r\nx-demo-delay-s: {delay_s}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


def test_of_500_calls_at_one_instant_money_for_one_admits_one(spender: Spender) -> None:
    budget = spender.budget(ONE)
    spender.known(budget)
    outcomes = asyncio.run(at_once(spender.stack.gateway_url, request(spender.key), CALLS))
    assert outcomes[200, ""] == 1
    assert outcomes[429, "quota_held"] == CALLS - 1
    spender.idle(budget)
    assert spender.used(budget) == ONE
    assert reasons([spender.chat()]) == [USED_UP]


def test_of_200_calls_at_one_instant_a_raise_of_one_admits_what_that_one_has(spender: Spender) -> None:
    """Everybody has 20 requests, Ada 50."""
    each = spender.budget(20, "requests", each="user")
    users = {user: spender.another_key(user=user)[1] for user in ("ada", "bob")}
    spender.do(each, "raise", amount=50, until="2999-01-31T00:00:00Z", reason="a fair", who="ada")
    wait_until(lambda: spender.usage(users["ada"])["limits"][-1]["limit"] == 50, apart_s=0.1)

    async def both() -> list[int]:
        calls = [at_once(spender.stack.gateway_url, request(key), 200) for key in users.values()]
        return [outcomes[200, ""] for outcomes in await asyncio.gather(*calls)]

    assert asyncio.run(both()) == [50, 20]


@pytest.mark.parametrize("admission", ["strict", "available"])
def test_calls_in_flight_pass_a_budget_by_no_more_than_their_admission_lets_them(
    other_stage: Stage, admission: str
) -> None:
    """Calls that state no maximum and would write 5,000 tokens each, until nothing is left."""
    amount, served = Decimal("0.05"), 0
    spender = Spender(other_stage, plan={"admission": admission})
    budget = spender.budget(amount)
    spender.known(budget)
    with obedient() as url, other_stage.switch.to(url):
        for _ in range(3):
            crowd = at_once(other_stage.gateway_url, request(spender.key, None), 100)
            served += asyncio.run(crowd)[200, ""]
            spender.idle(budget)
    assert served >= 1
    used = spender.used(budget)
    assert used == spender.spent(served)
    # Strict: what an answer may be short of its estimate of input. Else each call holds at least the 1,024
    # tokens that one is taken to write at first, and writes 5,000 at most.
    beyond = cost(20, 0) if admission == "strict" else (amount / cost(0, 1_024) + 1) * cost(20, 5_000)
    assert used <= amount + beyond


@pytest.mark.parametrize("tokens", [2_000, 600])
def test_a_stream_that_crosses_a_budget_is_cut_where_it_says_so(spender: Spender, tokens: int) -> None:
    """A call is taken to write 1,024. Of 600 it is sent with a maximum, which its upstream passes."""
    words = 4_000
    budget = spender.budget(cost(0, tokens), on_exhausted="cut")
    spender.known(budget)
    asked = {"stream": True, "max_tokens": None}
    answer = spender.chat("none", body=asked, demo_words=str(words), demo_pause_s="0.002")
    assert answer.status_code == 200
    assert 100 < answer.content.count(b'" and"') < words
    spender.idle(budget)
    assert spender.used(budget) == spender.spent(1) > cost(0, 100)
    assert reasons([spender.chat()]) == [USED_UP]


# An agent's turn of 100,000 bytes at 3 dollars a million tokens of input: 0.3 read from a cache, 3.75 written to
# one, 15 of output. 22,500 x 0.3 + 2,500 x 3.75 + 450 x 15 is 0.022875. Without a cache it is read as 25,000 x 3.75
# + 450 x 15: 0.1005.
AGENT = "stormy-1"
LONG, CACHED, UNCACHED = 50_000, "0,450,22500,0,2500", "0,450,0,0,25000"


def turn(words: int = LONG) -> Body:
    """A call to Claude that asks for a cache, and states far more than it writes."""
    content = [{"type": "text", "text": "a " * words, "cache_control": {"type": "ephemeral"}}]
    return {"model": AGENT, "max_tokens": 32_000, "messages": [{"role": "user", "content": content}]}


def storm(spender: Spender, usage: str) -> bytes:
    """The same as bytes, to be sent many times at the same instant."""
    body = json.dumps(turn()).encode()
    return (
        f"POST /v1/messages HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {spender.key}\r\n"
        f"x-demo-usage: {usage}\r\nx-demo-delay-s: 2\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    ).encode() + body


@pytest.fixture
def agent(spender: Spender) -> Spender:
    """Somebody without a budget, whose model has a price that the gateway knows."""
    stage = spender.stack
    if not stage.admin("GET", f"/prices?model={AGENT}")[1]["items"]:
        stage.make("prices", model=AGENT, currency="USD", effective_from="2026-01-01T00:00:00Z", input="3",
                   cache_read="0.3", cache_write="3.75", cache_write_1h="6", output="15")  # fmt: skip
        spender.known(spender.budget(100))
        wait_until(lambda: spender.ask("/v1/messages", turn(1)).status_code == 200)
        return Spender(stage)
    return spender


def test_the_first_crowd_under_a_new_budget_holds_what_calls_without_one_cost(agent: Spender) -> None:
    """Each is held at 0.016125 of input, as the calls before cost, and 1,024 x 15 of output: 0.0315."""
    for _ in range(30):
        assert agent.ask("/v1/messages", turn(), CACHED).status_code == 200
    budget = agent.budget(1)
    agent.known(budget)
    outcomes = asyncio.run(at_once(agent.stack.gateway_url, storm(agent, CACHED), 100))
    assert outcomes.keys() <= {(200, ""), (429, "quota_held"), (429, USED_UP)}
    assert outcomes[200, ""] >= 25
    agent.idle(budget)
    assert agent.used(budget) == outcomes[200, ""] * Decimal("0.022875") <= 1


@pytest.mark.parametrize("hold", ["maximum", "likely"])
def test_small_calls_without_a_budget_teach_nobody_to_pass_a_new_one(agent: Spender, hold: str) -> None:
    """Its small prompts are read from a cache. Then a hundred large ones come at once, and none is.

    Under `likely` an eighth of 33,334 x 3.75 and 1,024 x 15 is the least that each holds: 0.0309.
    """
    for _ in range(30):
        assert agent.ask("/v1/messages", turn(150), "0,1,100").status_code == 200
    budget = agent.budget(1, hold=hold)
    agent.known(budget)
    outcomes = asyncio.run(at_once(agent.stack.gateway_url, storm(agent, UNCACHED), 100))
    assert outcomes.keys() <= {(200, ""), (429, "quota_held"), (429, USED_UP)}
    agent.idle(budget)
    served = outcomes[200, ""]
    assert agent.used(budget) == served * Decimal("0.1005")
    assert 1 <= served <= (32 if hold == "likely" else 9)


# --- tags -------------------------------------------------------------------------------------


def test_each_value_of_tag_has_its_limit_and_key_fixes_a_value(spender: Spender) -> None:
    """Two requests a feature. Calls without one share an amount, and a key's own value goes before theirs."""
    path = f"/organizations/{spender.organization}"
    assert spender.stack.admin("PATCH", path, {"tags": ["feature", "team"]})[0] == 200
    each = spender.budget(2, "requests", each="tag:feature")
    red = spender.budget(1, "requests", tags={"team": "red"})
    _, fixed = spender.another_key(tags={"feature": "search"})
    search, chat, of_red = (
        json.dumps(one)
        for one in ({"feature": "search"}, {"feature": "chat"}, {"feature": "x", "team": "red"})
    )
    spender.known(each)
    spender.known(each, red, metadata=of_red)
    answers = [spender.chat(metadata=search).status_code, spender.chat(key=fixed, metadata=chat).status_code]
    assert answers == [200, 200]
    assert reasons([spender.chat(metadata=search), spender.chat(key=fixed, metadata=chat)]) == [USED_UP] * 2
    assert spender.chat(metadata=chat).status_code == 200
    assert [spender.chat(metadata='{"feature":[1]}').status_code, spender.chat().status_code] == [200, 200]
    assert reasons([spender.chat()]) == [USED_UP]
    assert spender.chat(metadata=of_red).status_code == 200
    assert reasons([spender.chat(metadata=of_red)]) == [USED_UP]
    wait_until(lambda: len(spender.accounts(each)) == 4)
    assert {one["who"]: one["used"] for one in spender.accounts(each)} == {
        "search": 2,
        "chat": 1,
        "": 2,
        "x": 1,
    }
    rows = spender.stack.admin("GET", f"/usage?group_by=tag:feature&organization_id={spender.organization}")[
        1
    ]
    assert {one["tag:feature"]: one["requests"] for one in rows["items"]} == {
        "search": 2, "chat": 1, None: 2, "x": 1,
    }  # fmt: skip
