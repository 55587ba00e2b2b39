"""An upstream that has enough, as the official SDKs see it, over two workers that share what one was told."""

from __future__ import annotations

import json
import time
from typing import Any

import anthropic
import openai
import pytest

from tests import plain_http
from tests.journey.sdk import HELLO, Account, account
from tests.journey.stack import ANSWER_S_MAX, Stack
from tests.waiting import wait_until


def saying(**fields: str) -> dict[str, str]:
    """How a call has the demo upstream refuse it with these fields."""
    said = {name.replace("_", "-"): value for name, value in fields.items()}
    return {"x-demo-status": "429", "x-demo-fields": json.dumps(said)}


def model() -> str:
    """One that no other test has refused."""
    return f"demo-{time.monotonic_ns()}"


def heard(stack: Stack, name: str) -> int:
    """How many calls of a model its upstream answered."""
    told: dict[str, Any] = plain_http.get(
        f"{stack.upstream_url}/demo/calls", params={"model": name}, timeout=ANSWER_S_MAX
    ).json()
    return len(told["calls"])


def refused_by(error: openai.APIStatusError | anthropic.APIStatusError) -> str:
    return error.response.headers["x-tollkeeper-refused-by"]


def chat(caller: Account, name: str, **headers: str) -> Any:
    """One call over a connection of its own, so that any worker may have it."""
    with caller.openai() as client:
        return client.chat.completions.create(model=name, messages=HELLO, extra_headers=headers)


def test_openai_all_workers_leave_alone_what_one_was_told_to(stack: Stack) -> None:
    first, second, name = account(stack), account(stack), model()
    limits = saying(retry_after="30", x_ratelimit_remaining_requests="0", x_ratelimit_limit_requests="7")
    with pytest.raises(openai.RateLimitError) as told:
        chat(first, name, **limits)
    assert refused_by(told.value) == "upstream"
    assert told.value.response.headers["retry-after"] == "30"
    assert told.value.response.headers["x-ratelimit-limit-requests"] == "7"
    assert "ratelimit" not in told.value.response.headers

    reached, refusals = 0, list[openai.RateLimitError]()
    while len(refusals) < 40:  # one after another, each by whichever worker accepts it
        try:
            chat(second, name)
            reached += 1
            refusals.clear()
        except openai.RateLimitError as error:
            refusals.append(error)
    for one in refusals:
        fields = one.response.headers
        assert (one.code, one.type) == ("rate_limit_exceeded", "rate_limit_error")
        assert (fields["x-tollkeeper-reason"], refused_by(one)) == ("rate_limited", "upstream")
        assert 1 <= int(fields["retry-after"]) <= 30
        assert fields["x-should-retry"] == "true"
        assert fields["x-ratelimit-limit-requests"] == "7"
    assert heard(stack, name) == reached
    assert len(second.consumed()) <= reached
    assert chat(second, model()).choices  # others of its models are asked

    def journal() -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = stack.admin("GET", f"/calls?tenant_id={second.tenant}&limit=1000")[1][
            "items"
        ]
        return [row for row in rows if row["reason"] == "rate_limited"]

    rows = wait_until(lambda: len(found := journal()) >= 40 and found)
    assert {(row["status"], row["model"]) for row in rows} == {(429, name)}
    assert all(float(row["cost"] or 0) == 0 and row["tokens"] == 0 for row in rows)


def test_the_sdk_itself_waits_and_goes_on(stack: Stack) -> None:
    """What was told to wait a moment is sent again by the SDK, which then has its answer."""
    caller, name = account(stack), model()
    with pytest.raises(openai.RateLimitError):
        chat(caller, name, **saying(retry_after="1"))
    with caller.openai().with_options(max_retries=3) as client:
        assert client.chat.completions.create(model=name, messages=HELLO).choices
    assert heard(stack, name) == 1
