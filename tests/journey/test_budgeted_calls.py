"""Budgets as callers meet them: exact under a crowd, told before they bite, on no calls but their own."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from http.client import HTTPConnection
from urllib.parse import quote, urlsplit

import pytest
import redis

from gateway.core.times import HOUR_MS
from gateway.counters.layouts.states import pack_windows, unpack_windows
from tests import plain_http
from tests.journey.budgets import CALL, MODEL, Spender, cost, reasons, seconds_to
from tests.journey.parallel import CALLS, at_once, obedient
from tests.journey.stack import Stack

ONE = cost(20, 40)
USED_UP = "budget_exceeded"


@pytest.fixture
def spender(stack: Stack) -> Spender:
    return Spender(stack)


def request(key: str, maximum: int | None = 30, usage: str = "20,40", delay_s: float = 2) -> bytes:
    """A chat as bytes, to be sent many times at the same instant."""
    more = "" if maximum is None else f',"max_tokens":{maximum}'
    body = f'{{"model":"{MODEL}","messages":[{{"role":"user","content":"hello there"}}]{more}}}'
    return (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key}\r\n"
        f"x-demo-usage: {usage}\r\nx-demo-delay-s: {delay_s}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n{body}"
    ).encode()


# --- a crowd -------------------------------------------------------------------------------


def test_of_500_calls_at_one_instant_money_for_one_admits_one(spender: Spender) -> None:
    budget = spender.budget(ONE)
    spender.known(budget)
    outcomes = asyncio.run(at_once(spender.stack.gateway_url, request(spender.key), CALLS))
    assert outcomes[200, ""] == 1
    assert outcomes[429, "quota_held"] == CALLS - 1
    spender.idle(budget)
    assert spender.used(budget) == ONE
    assert reasons([spender.chat()]) == [USED_UP]


def test_a_crowd_is_held_off_by_every_budget_it_meets(spender: Spender) -> None:
    """Four scopes, each with money for a different number of calls: the least of them counts."""
    wide, tenant, key, user = (
        spender.budget(9 * ONE),
        spender.budget(7 * ONE, tenant_id=spender.tenant),
        spender.budget(5 * ONE, api_key_id=spender.key_id),
        spender.budget(3 * ONE, each="user"),
    )
    spender.known(wide, tenant, key, user)
    outcomes = asyncio.run(at_once(spender.stack.gateway_url, request(spender.key), 100))
    # Each held more than it used, so that less than three came in at once.
    assert 1 <= outcomes[200, ""] <= 3
    spender.idle(wide)
    for budget in (wide, tenant, key, user):
        spender.comes_to(budget, outcomes[200, ""] * ONE)


@pytest.fixture
def bound(own_stack: Callable[..., Stack]) -> Iterator[Stack]:
    """Behind it an upstream that writes as much as it may, after a moment."""
    with obedient() as url:
        yield own_stack("--workers", "2", "--upstream", url)


def test_strict_never_passes_a_budget_by_more_than_the_estimate_of_input(bound: Stack) -> None:
    """Calls that state no maximum and would write 5,000 tokens each, until nothing is left."""
    spender = Spender(bound, plan={"admission": "strict"})
    amount = Decimal("0.05")
    budget = spender.budget(amount)
    spender.known(budget)
    served = 0
    for _ in range(3):
        served += asyncio.run(at_once(bound.gateway_url, request(spender.key, None), 100))[200, ""]
        spender.idle(budget)
    assert served >= 1
    used = spender.used(budget)
    assert used == spender.spent(served)
    # What an answer may be short of its estimate of input is all that there is beyond.
    assert used <= amount + cost(20, 0)


def test_available_passes_a_budget_by_what_calls_in_flight_use_beyond_their_holds(bound: Stack) -> None:
    spender = Spender(bound)
    amount = Decimal("0.05")
    budget = spender.budget(amount)
    spender.known(budget)
    served = 0
    for _ in range(3):
        served += asyncio.run(at_once(bound.gateway_url, request(spender.key, None), 100))[200, ""]
        spender.idle(budget)
    used = spender.used(budget)
    assert used == spender.spent(served)
    # Each call holds at least the 1,024 tokens that one is taken to write at first, and writes 5,000 at most.
    assert used <= amount + (amount / cost(0, 1_024) + 1) * cost(20, 5_000)


# --- streams -------------------------------------------------------------------------------


def stream(spender: Spender, words: int) -> tuple[int, bytes]:
    """A stream of so many words, whatever maximum it was sent with."""
    asked = {"stream": True, "max_tokens": None}
    answer = spender.chat("none", body=asked, demo_words=str(words), demo_pause_s="0.002")
    return answer.status_code, answer.content


@pytest.mark.parametrize(("on_exhausted", "whole"), [("cut", False), ("finish", True)])
def test_a_stream_that_crosses_a_budget_ends_as_it_says(
    spender: Spender, on_exhausted: str, whole: bool
) -> None:
    words = 4_000
    budget = spender.budget(cost(0, 600), on_exhausted=on_exhausted)
    spender.known(budget)
    status, body = stream(spender, words)
    assert status == 200
    written = body.count(b'" and"')
    assert (written == words) is whole
    assert written > 100
    spender.idle(budget)
    assert spender.used(budget) == spender.spent(1) > cost(0, 100)
    assert reasons([spender.chat()]) == [USED_UP]


# --- windows -------------------------------------------------------------------------------


def test_an_hour_that_is_over_gives_its_amount_back(spender: Spender) -> None:
    """The account is put an hour back in time, as if its window had ended since."""
    budget = spender.budget(ONE, interval="hour")
    spender.known(budget)
    assert spender.chat(body={"max_tokens": 1}).status_code == 200
    refused = spender.chat()
    assert reasons([refused]) == [USED_UP]
    assert 0 < int(refused.headers["retry-after"]) <= 3_600
    an_hour_back(spender.stack)
    again = spender.chat(body={"max_tokens": 1})
    assert again.status_code == 200
    spender.idle(budget)
    assert spender.used(budget) == ONE


def an_hour_back(stack: Stack) -> None:
    """Every account of budgets is where it would be if an hour had passed."""
    client = redis.Redis.from_url(stack.redis_url)
    for key in client.scan_iter("tk:{p*}:b:*"):
        raw = client.get(key)
        assert isinstance(raw, bytes)
        windows = unpack_windows(raw)
        for window in windows:
            if window.next:
                window.start, window.next, window.after = (
                    each - HOUR_MS for each in (window.start, window.next, window.after)
                )
        client.set(key, pack_windows(windows))


def test_a_total_never_comes_back_and_says_so(spender: Spender) -> None:
    name = "für alle: 100 %"
    budget = spender.budget(ONE, interval="total", name=name)
    spender.known(budget)
    assert spender.chat(body={"max_tokens": 1}).status_code == 200
    refused = spender.chat()
    assert (refused.status_code, reasons([refused])) == (429, [USED_UP])
    assert "retry-after" not in refused.headers
    assert refused.headers["x-should-retry"] == "false"
    assert refused.headers["x-tollkeeper-budget"] == quote(name, safe=":")
    assert refused.headers["x-tollkeeper-refused-by"] == "budget"
    assert refused.json()["error"]["code"] == "insufficient_quota"
    assert spender.told(budget)["reset_at"] is None


# --- whose calls ---------------------------------------------------------------------------


def test_a_budget_of_models_is_of_those_that_begin_so(spender: Spender) -> None:
    budget = spender.budget(1, "requests", model="budgeted-opus*")
    spender.known(budget)
    assert spender.chat(body={"model": "budgeted-opus-5"}).status_code == 200
    assert spender.chat(body={"model": "budgeted-haiku"}).status_code == 200
    for model in ("budgeted-opus", "budgeted-opus-6", "BUDGETED-OPUS-5", "Budgeted-Opus"):
        assert reasons([spender.chat(body={"model": model})]) == [USED_UP]
    beside = {"model": "budgeted-haiku", "models": ["budgeted-haiku", "budgeted-opus-5"]}
    assert reasons([spender.chat(body=beside)]) == [USED_UP]
    assert spender.used(budget) == 1


@pytest.mark.parametrize("each", ["user", "project", "session", "key"])
def test_everybody_has_an_amount_of_their_own(spender: Spender, each: str) -> None:
    budget = spender.budget(2, "requests", each=each)
    spender.known(budget)
    if each == "key":
        _, other = spender.another_key()
        people: list[dict[str, str]] = [{}, {"key": other}]
        spender.known(budget, key=other)
    else:
        name = {"project": "project_id"}.get(each, each)
        people = [{name: "7"}, {name: "8"}, {}]
    for person in people:
        answers = [spender.chat(**person) for _ in range(3)]  # type: ignore[arg-type] # fields of a call
        assert reasons(answers) == ["", "", USED_UP]
    spender.comes_to(budget, 2 * len(people))


def test_calls_that_say_nobody_share_one_amount(spender: Spender) -> None:
    budget = spender.budget(2, "requests", each="user")
    spender.known(budget)
    _, other = spender.another_key()
    spender.known(budget, key=other)
    assert reasons([spender.chat(), spender.chat(key=other), spender.chat(), spender.chat(key=other)]) == [
        "", "", USED_UP, USED_UP,
    ]  # fmt: skip


def test_a_session_is_what_the_client_says_and_the_journal_has_it(spender: Spender) -> None:
    budget = spender.budget(1, "requests", each="session", interval="total")
    spender.known(budget)
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    said = [
        ({"session": "run 7"}, "run 7"),
        ({"x-claude-code-session-id": "cc-1"}, "cc-1"),
        ({"session": trace.split("-")[1]}, trace.split("-")[1]),
    ]
    for field, _ in said:
        assert reasons([spender.chat(**field), spender.chat(**field)]) == ["", USED_UP]  # type: ignore[arg-type] # fields
    by_trace = plain_http.post(
        f"{spender.stack.gateway_url}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
        headers={"authorization": f"Bearer {spender.key}", "traceparent": trace},
    )
    assert reasons([by_trace]) == [USED_UP]
    assert {row["session"] for row in spender.journal(3)} == {session for _, session in said}


@pytest.mark.parametrize(
    "named",
    ["ada", "Ada", "ADA", " ada ", "\tada", "%61da", "ada%20", "a d a", "bob", ""],
)
def test_a_key_with_a_user_is_that_users_whatever_the_call_says(stack: Stack, named: str) -> None:
    spender = Spender(stack, user="ada")
    budget = spender.budget(1, "requests", user="ada")
    spender.known(budget)
    assert [named_as(spender, named), named_as(spender, named)] == ["", USED_UP]
    assert reasons([spender.chat(body={"user": "somebody else"}), spender.chat()]) == [USED_UP, USED_UP]
    assert spender.used(budget) == 1


@pytest.mark.parametrize("named", [" ada", "ada ", "\tada\t", "ada"])
def test_blanks_around_a_name_name_nobody_else(spender: Spender, named: str) -> None:
    budget = spender.budget(1, "requests", user="ada")
    spender.known(budget, user="ada")
    assert [named_as(spender, named), named_as(spender, "ada")] == ["", USED_UP]


@pytest.mark.parametrize("named", ["Ada", "%61da", "a d a", "\u0430da"])
def test_other_names_are_other_people_and_their_key_is_still_limited(spender: Spender, named: str) -> None:
    """A caller that may say who it is for may say anything; a budget of its key holds all the same."""
    mine, of_key = spender.budget(1, "requests", each="user"), spender.budget(2, "requests", each="key")
    spender.known(mine, of_key, user="ada")
    assert [named_as(spender, "ada"), named_as(spender, "ada")] == ["", USED_UP]
    assert [named_as(spender, named), named_as(spender, f"{named}2")] == ["", USED_UP]


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


@pytest.mark.parametrize("name", ["X-Tollkeeper-User", "x-TOLLKEEPER-user", "x_tollkeeper_user"])
def test_no_spelling_of_a_field_names_another_user(spender: Spender, name: str) -> None:
    budget = spender.budget(1, "requests", user="ada")
    spender.known(budget, user="ada")
    assert spender.chat(user="ada").status_code == 200
    both = plain_http.post(
        f"{spender.stack.gateway_url}/v1/chat/completions",
        json={"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1},
        headers=[("authorization", f"Bearer {spender.key}"), ("x-tollkeeper-user", "ada"), (name, "bob")],
    )
    assert reasons([both]) == ["invalid_request"]


@pytest.mark.parametrize(
    "model",
    ["budgeted-1", "Budgeted-1", "budgeted%2D1", "budgeted-1%20", "%62udgeted-1", "models/budgeted-1"],
)
def test_no_spelling_of_a_model_in_a_path_gets_around_its_budget(spender: Spender, model: str) -> None:
    budget = spender.budget(1, "requests", model="budgeted-1")
    spender.known(budget)
    said = [{"role": "user", "parts": [{"text": "hi"}]}]
    body = {"contents": said, "generationConfig": {"maxOutputTokens": 5}}
    assert spender.ask("/v1beta/models/budgeted-1:generateContent", body).status_code == 200
    answer = spender.ask(f"/v1beta/models/{model}:generateContent", body)
    assert answer.status_code in {400, 403, 404, 429}
    assert reasons([answer])[0] in {USED_UP, "invalid_request", "unknown_route", "model_not_priced"}


# --- what is told --------------------------------------------------------------------------


def test_audit_counts_and_never_refuses(spender: Spender) -> None:
    budget = spender.budget(ONE, mode="audit", interval="week", anchor_day=7)
    spender.known(budget)
    assert reasons([spender.chat() for _ in range(4)]) == [""] * 4
    assert reasons([spender.chat(body={"model": "nobody-knows-its-price"})]) == [""]
    spender.idle(budget)
    assert spender.used(budget) == 4 * ONE
    assert Decimal(spender.shown(budget)["remaining"]) == -3 * ONE
    assert Decimal(spender.told(budget)["used"]) == 4 * ONE


def test_what_has_no_price_is_refused_under_a_budget_of_money(spender: Spender) -> None:
    budget = spender.budget(1)
    spender.known(budget)
    refused = spender.chat(body={"model": "nobody-knows-its-price"})
    assert (refused.status_code, reasons([refused])) == (403, ["model_not_priced"])
    assert "cannot be enforced" in refused.text
    assert spender.used(budget) == 0


def test_an_answer_and_the_usage_tell_of_the_tightest(spender: Spender) -> None:
    wide, tight = spender.budget(1, name="wide"), spender.budget(10, "requests", name="ten calls")
    spender.known(wide, tight)
    answer = spender.chat()
    assert answer.headers["x-tollkeeper-budget"] == "ten%20calls"
    assert '"budget";q=10;qu="requests"' in answer.headers["ratelimit-policy"]
    assert '"budget";r=9;t=' in answer.headers["ratelimit"]
    spender.idle(wide)
    told = spender.told(wide)
    assert (told["scope"], told["unit"], Decimal(told["limit"])) == ("budget", "money", 1)
    assert (Decimal(told["used"]), Decimal(told["remaining"])) == (ONE, 1 - ONE)
    assert 0 < seconds_to(told["reset_at"]) <= 86_400
    assert {key: spender.told(tight)[key] for key in ("limit", "used", "remaining", "unit")} == {
        "limit": 10, "used": 1, "remaining": 9, "unit": "requests",
    }  # fmt: skip


def test_a_budget_of_tokens_counts_what_the_upstream_reports(spender: Spender) -> None:
    budget = spender.budget(100, "tokens")
    spender.known(budget)
    assert spender.chat("20,40").status_code == 200
    assert spender.chat("10,50", body={"max_tokens": 2}).status_code == 200
    assert spender.used(budget) == 120
    assert reasons([spender.chat(body={"max_tokens": 1})]) == [USED_UP]


def test_free_routes_and_what_fails_move_no_budget(spender: Spender) -> None:
    budget, calls = spender.budget(1), spender.budget(5, "requests")
    spender.known(budget, calls)
    url = spender.stack.gateway_url
    assert (
        plain_http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {spender.key}"}).status_code
        == 200
    )
    with ThreadPoolExecutor(8) as pool:
        failed = list(pool.map(lambda _: spender.chat(demo_status="500"), range(8)))
    assert {one.status_code for one in failed} <= {500, 429}
    spender.idle(budget, calls)
    assert (spender.used(budget), spender.used(calls)) == (0, 0)


# --- agents --------------------------------------------------------------------------------


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
