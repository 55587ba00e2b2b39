"""Budgets as callers meet them: exact under a crowd, told before they bite, on no calls but their own."""

from __future__ import annotations

import asyncio
import json
from decimal import Decimal
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from tests import plain_http
from tests.journey.budgets import CALL, MODEL, Spender, cost, reasons
from tests.journey.parallel import CALLS, at_once, obedient
from tests.stage import Stage

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


def test_a_stream_that_crosses_a_budget_is_cut_where_it_says_so(spender: Spender) -> None:
    words = 4_000
    budget = spender.budget(cost(0, 2_000), on_exhausted="cut")  # more than a call is taken to write at first
    spender.known(budget)
    asked = {"stream": True, "max_tokens": None}
    answer = spender.chat("none", body=asked, demo_words=str(words), demo_pause_s="0.002")
    assert answer.status_code == 200
    assert 100 < answer.content.count(b'" and"') < words
    spender.idle(budget)
    assert spender.used(budget) == spender.spent(1) > cost(0, 100)
    assert reasons([spender.chat()]) == [USED_UP]


def test_a_name_in_other_bytes_is_the_same_user_or_one_whose_key_is_still_limited(stage: Stage) -> None:
    """A key with a user is that user's. Else a caller may say anything: its key's own budget holds."""
    bound, free = Spender(stage, user="ada"), Spender(stage)
    of_ada = bound.budget(1, "requests", user="ada")
    bound.known(of_ada)
    assert [named_as(bound, named) for named in ("ada", "Ada", " ada ", "%61da", "bob", "")] == [
        "",
        *[USED_UP] * 5,
    ]
    assert reasons([bound.chat(body={"user": "somebody else"})]) == [USED_UP]
    mine, of_key = free.budget(1, "requests", each="user"), free.budget(2, "requests", each="key")
    free.known(mine, of_key, user="ada")
    assert [named_as(free, named) for named in ("ada", "\tada ", "\u0430da", "%61da")] == [
        "",
        USED_UP,
        "",
        USED_UP,
    ]
    both = plain_http.post(
        f"{stage.gateway_url}/v1/chat/completions",
        json=CALL,
        headers=[
            ("authorization", f"Bearer {free.key}"),
            ("x-tollkeeper-user", "ada"),
            ("x_tollkeeper_user", "bob"),
        ],
    )
    assert reasons([both]) == ["invalid_request"]


def named_as(spender: Spender, user: str) -> str:
    """The reason a call is refused with whose field has just these bytes, empty where it is answered."""
    url = urlsplit(spender.stack.gateway_url)
    connection = HTTPConnection(url.hostname or "", url.port, timeout=30)
    body = json.dumps(CALL).encode()
    connection.putrequest("POST", "/v1/chat/completions")
    fields = {"authorization": f"Bearer {spender.key}", "content-type": "application/json"}
    for name, value in {**fields, "content-length": str(len(body)), "x-tollkeeper-user": user}.items():
        connection.putheader(name, value.encode())
    connection.endheaders(body)
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.headers["x-tollkeeper-reason"] or ""


def test_twenty_calls_that_state_64000_tokens_run_at_once_under_money_for_one_of_that_length(
    spender: Spender,
) -> None:
    """They are held by what calls like them use. Claude Code reads how much of the budget is used."""
    budget = spender.budget(cost(0, 64_000), each="user")
    spender.known(budget)
    outcomes = asyncio.run(at_once(spender.stack.gateway_url, request(spender.key, 64_000), 20))
    assert outcomes == {(200, ""): 20}
    spender.idle(budget)
    agent = {"model": MODEL, "messages": CALL["messages"], "max_tokens": 64_000}
    # A call of another model teaches nothing of this one's.
    first = spender.ask("/v1/messages", agent | {"model": "budgeted-2"}, "20,51000")
    assert (first.status_code, first.headers["anthropic-ratelimit-unified-status"]) == (200, "allowed")
    second = spender.ask("/v1/messages", agent, "20,14000")
    assert second.headers["anthropic-ratelimit-unified-overage-surpassed-threshold"] == "0.75"
    refused = spender.ask("/v1/messages", agent)
    assert (refused.status_code, refused.headers["x-should-retry"]) == (429, "false")
    assert refused.json()["error"]["type"] == "billing_error"
    assert Decimal(refused.headers["x-tollkeeper-needed"]) > Decimal(refused.headers["x-tollkeeper-left"])
