"""What others' budgets were reported to do wrong: they doubled, leaked, inflated, and were gone around.

The cases are those of BerriAI/litellm, by the number of the report.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx2 as httpx
import pytest
import redis

from tests import plain_http
from tests.journey.budgets import CALL, MODEL, Spender, cost, reasons
from tests.journey.parallel import at_once
from tests.journey.stack import Body, Stack
from tests.journey.test_budgeted_calls import request
from tests.waiting import wait_until

ONE = cost(20, 40)
USED_UP = "budget_exceeded"


def exact(spender: Spender, budget: Body, served: int) -> None:
    """What is used is what the journal says the calls cost, and nothing is held any more."""
    spender.idle(budget)
    spender.comes_to(budget, spender.spent(served))


def test_27639_calls_that_fail_leave_nothing_behind(stack: Stack) -> None:
    """Reservations of failed, cut and abandoned calls were never given back, and filled budgets up."""
    spender = Spender(stack)
    budget = spender.budget(cost(0, 200), "money", each="user")
    spender.known(budget)
    failing: list[dict[str, str]] = [
        {"demo_status": "500"}, {"demo_status": "503"}, {"demo_cut": "0"}, {"demo_end": "failed"},
    ]  # fmt: skip

    def fail(number: int) -> None:
        with contextlib.suppress(httpx.HTTPError):
            spender.chat("none", **failing[number % len(failing)])
        with contextlib.suppress(httpx.HTTPError):  # who hangs up before there is an answer
            headers = {"authorization": f"Bearer {spender.key}", "x-demo-delay-s": "1"}
            plain_http.post(
                f"{stack.gateway_url}/v1/chat/completions", json=CALL, headers=headers, timeout=0.2
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(40)))
    spender.idle(budget)
    # What was produced for those that hung up is charged; what failed is not, and nothing is held of either.

    def costs() -> Decimal:
        rows = stack.admin("GET", f"/calls?organization_id={spender.organization}&limit=1000")[1]["items"]
        return sum((Decimal(row["cost"] or 0) for row in rows), Decimal(0))

    wait_until(lambda: spender.used(budget) == costs())
    other = spender.budget(cost(0, 200), user="fresh")
    spender.known(other, user="fresh")
    assert spender.chat(user="fresh").status_code == 200


def test_28283_what_counts_is_never_more_than_what_was_spent(stack: Stack) -> None:
    """Counters ran to three and six times of what the ledger had, with nothing to explain the rest."""
    spender = Spender(stack)
    hour, day, total = (spender.budget(10, interval=each) for each in ("hour", "day", "total"))
    spender.known(hour, day, total)
    usages = [f"{20 + number},{number % 7 * 10}" for number in range(60)]

    def ask(number: int) -> int:
        streamed = {"stream": True} if number % 3 == 0 else {}
        return spender.chat(usages[number], body=streamed, user=f"u{number % 5}").status_code

    with ThreadPoolExecutor(12) as pool:
        assert set(pool.map(ask, range(60))) == {200}
    for budget in (hour, day, total):
        exact(spender, budget, 60)


def test_36926_one_process_under_load_doubles_nothing(own_stack: Callable[..., Stack]) -> None:
    """One worker, one key, many calls at a time: the counter was twice the spend, and refused too early."""
    spender = Spender(own_stack("--workers", "1"))
    calls = 150
    budget = spender.budget(calls * ONE * 2)
    spender.known(budget)
    with ThreadPoolExecutor(25) as pool:
        codes = list(pool.map(lambda _: spender.chat().status_code, range(calls)))
    assert set(codes) == {200}
    exact(spender, budget, calls)
    assert spender.used(budget) == calls * ONE


FAMILIES: list[tuple[str, Body]] = [
    ("/v1/chat/completions", CALL),
    ("/v1/completions", {"model": MODEL, "prompt": "hello there", "max_tokens": 16}),
    ("/v1/responses", {"model": MODEL, "input": "hello there", "max_output_tokens": 16}),
    ("/v1/messages", CALL),
    ("/v1/embeddings", {"model": MODEL, "input": "hello there"}),
    (
        f"/v1beta/models/{MODEL}:generateContent",
        {
            "contents": [{"role": "user", "parts": [{"text": "hello there"}]}],
            "generationConfig": {"maxOutputTokens": 16},
        },
    ),
]


def test_38176_every_api_counts_and_every_api_is_refused(stack: Stack) -> None:
    """What agents speak, Responses and Messages, was never counted: it ran all day against a full budget."""
    spender = Spender(stack)
    budget = spender.budget(1, "money")
    spender.known(budget)
    last = Decimal(0)
    for path, body in FAMILIES:
        answer = spender.ask(path, body)
        assert answer.status_code == 200, (path, answer.text)
        spender.idle(budget)
        now = spender.used(budget)
        assert now - last >= cost(20, 0), path
        last = now
    exact(spender, budget, len(FAMILIES))
    calls = spender.budget(len(FAMILIES), "requests")
    spender.known(calls)
    for path, body in FAMILIES:
        assert spender.ask(path, body).status_code == 200
    for path, body in FAMILIES:
        refused = spender.ask(path, body)
        assert (refused.status_code, reasons([refused])) == (429, [USED_UP]), path
        streamed = spender.ask(path, body | {"stream": True})
        assert reasons([streamed])[0] in {USED_UP, "invalid_request"}, path
    assert spender.used(calls) == len(FAMILIES)


def test_26672_a_fresh_installation_enforces_its_first_budgets(own_stack: Callable[..., Stack]) -> None:
    """On a new machine budgets were stored and spend was tracked, and nothing was ever refused."""
    spender = Spender(own_stack("--workers", "2"))
    of_key = spender.budget(ONE, api_key_id=spender.key_id)
    of_user = spender.budget(ONE, user="ada")
    spender.known(of_key, of_user, user="ada")
    assert spender.chat(body={"max_tokens": 1}, user="ada").status_code == 200
    spender.idle(of_key, of_user)
    assert reasons([spender.chat(user="ada"), spender.chat()]) == [USED_UP, USED_UP]
    _, other = spender.another_key()
    assert reasons([spender.chat(key=other, user="ada")]) == [USED_UP]
    assert spender.chat(key=other, user="bob").status_code == 200


def test_28247_counters_that_are_gone_are_made_again_once(own_stack: Callable[..., Stack]) -> None:
    """Each of several processes added the database's sum to an empty counter: it came to several sums."""
    stack = own_stack("--workers", "2")
    spender = Spender(stack)
    budget = spender.budget(20 * ONE)
    spender.known(budget)
    assert {spender.chat().status_code for _ in range(10)} == {200}
    exact(spender, budget, 10)
    redis.Redis.from_url(stack.redis_url).flushall()

    def served() -> bool:
        return spender.chat().status_code == 200

    wait_until(served)
    # Each holds no less than it costs, so that they can be together.
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: spender.chat(body={"max_tokens": 60}), range(40)))
    assert {one.status_code for one in answers} <= {200, 429, 503}
    spender.idle(budget)
    wait_until(lambda: spender.used(budget) == spender.spent(11) == ONE * len(spender.journal(11)))
    assert spender.used(budget) <= 20 * ONE


def test_30460_a_redis_that_stalls_inflates_nothing(own_stack: Callable[..., Stack]) -> None:
    """Calls that timed out were counted, and counted again when they were sent once more."""
    stack = own_stack("--workers", "2")
    spender = Spender(stack)
    budget = spender.budget(1)
    spender.known(budget)
    with ThreadPoolExecutor(10) as pool:
        asked = [pool.submit(spender.chat, demo_delay_s="0.3") for _ in range(10)]
        frozen = stack.pids["redis"]
        os.kill(frozen, signal.SIGSTOP)
        try:
            asked += [pool.submit(spender.chat) for _ in range(10)]
            refused = [one for one in asked if one.result().status_code != 200]
        finally:
            os.kill(frozen, signal.SIGCONT)
    assert refused

    def again() -> bool:
        return spender.chat().status_code == 200

    wait_until(again)
    spender.idle(budget)
    # What was settled meanwhile is stored a little later; from then on both say the same.
    wait_until(lambda: spender.used(budget) == spender.spent(1) == ONE * len(spender.journal(1)))


@pytest.mark.parametrize("each", ["session", "user"])
def test_34732_the_first_calls_of_somebody_new_at_one_instant(stack: Stack, each: str) -> None:
    """Nothing was reserved for somebody whom nobody had seen before: all that came at once were let in."""
    spender = Spender(stack)
    budget = spender.budget(ONE, each=each)
    spender.known(budget)
    asked = request(spender.key).replace(
        b"x-demo-usage", b"x-tollkeeper-%b: new\r\nx-demo-usage" % each.encode(), 1
    )
    outcomes: Any = asyncio.run(at_once(stack.gateway_url, asked, 50))
    assert outcomes[200, ""] == 1
    assert outcomes[429, "quota_held"] == 49
    exact(spender, budget, 1)
    assert reasons([spender.chat(**{each: "new"}), spender.chat(**{each: "newer"})]) == [USED_UP, ""]  # type: ignore[arg-type] # a field
