"""What others' budgets were reported to do wrong: they doubled, leaked, inflated, and were gone around.

The cases are those of BerriAI/litellm, by the number of the report.
"""

from __future__ import annotations

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import httpx2 as httpx

from tests import plain_http
from tests.journey.budgets import CALL, MODEL, Spender, cost, reasons
from tests.journey.parallel import at_once
from tests.journey.stack import Body
from tests.journey.test_budgeted_calls import request
from tests.stage import Stage
from tests.waiting import wait_until

ONE = cost(20, 40)
USED_UP = "budget_exceeded"


def exact(spender: Spender, budget: Body, served: int) -> None:
    """What is used is what the journal says the calls cost, and nothing is held any more."""
    spender.idle(budget)
    spender.comes_to(budget, spender.spent(served))


def test_27639_calls_that_fail_leave_nothing_behind(stage: Stage) -> None:
    """Reservations of failed, cut and abandoned calls were never given back, and filled budgets up."""
    spender = Spender(stage)
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
                f"{stage.gateway_url}/v1/chat/completions", json=CALL, headers=headers, timeout=0.2
            )

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(fail, range(40)))
    spender.idle(budget)
    # What was produced for those that hung up is charged; what failed is not, and nothing is held of either.

    def costs() -> Decimal:
        rows = stage.admin("GET", f"/calls?organization_id={spender.organization}&limit=1000")[1]["items"]
        return sum((Decimal(row["cost"] or 0) for row in rows), Decimal(0))

    wait_until(lambda: spender.used(budget) == costs())
    other = spender.budget(cost(0, 200), user="fresh")
    spender.known(other, user="fresh")
    assert spender.chat(user="fresh").status_code == 200


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


def test_38176_every_api_counts_and_every_api_is_refused(stage: Stage) -> None:
    """What agents speak, Responses and Messages, was never counted: it ran all day against a full budget."""
    spender = Spender(stage)
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


def test_34732_the_first_calls_of_somebody_new_at_one_instant(stage: Stage) -> None:
    """Nothing was reserved for somebody whom nobody had seen before: all that came at once were let in."""
    spender = Spender(stage)
    budget = spender.budget(ONE, each="user")
    spender.known(budget)
    asked = request(spender.key).replace(b"x-demo-usage", b"x-tollkeeper-user: new\r\nx-demo-usage", 1)
    outcomes: Any = asyncio.run(at_once(stage.gateway_url, asked, 50))
    assert outcomes[200, ""] == 1
    assert outcomes[429, "quota_held"] == 49
    exact(spender, budget, 1)
    assert reasons([spender.chat(user="new"), spender.chat(user="newer")]) == [USED_UP, ""]
