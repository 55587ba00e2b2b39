"""Envoy and nginx in front of a model ask Tollkeeper, as their shipped files say, and tell it the answers."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.journey import fronts
from tests.journey.fronts import Front
from tests.journey.stack import ANSWER_S_MAX, Stack
from tests.journey.test_authorize import CHAT, chat_held, units_service
from tests.journey.test_holds import CALLERS, CALLS, WORTH, Holder
from tests.waiting import wait_until

IN_FLIGHT = 8
FRONTS = {"envoy": fronts.envoy, "nginx": fronts.nginx}
Start = Callable[[int], Front]


@pytest.fixture(params=FRONTS)
def start(request: pytest.FixtureRequest, stack: Stack) -> Iterator[Start]:
    """Starts a gateway of this kind whose holds last so many seconds."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-front-") as folder:
        Path(folder).chmod(0o755)
        started: list[Front] = []

        def begin(ttl_s: int = 600) -> Front:
            started.append(FRONTS[request.param](stack, Path(folder), ttl_s))
            return started[-1]

        yield begin
        for one in started:
            one.stop()


def call(front: Front, key: str, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    body = CHAT | fields.pop("body", {})
    headers = {"authorization": f"Bearer {key}"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    return plain_http.post(f"{front.url}{path}", json=body, headers=headers, timeout=ANSWER_S_MAX)


def test_a_call_passes_with_a_hold_and_is_charged_by_its_answer(stack: Stack, start: Start) -> None:
    front, holder = start(600), Holder(stack, 1000)
    answer = call(front, holder.key, x_demo_usage="3,7", accept_encoding="gzip")
    assert answer.status_code == 200, answer.text
    assert (answer.status_code, answer.json()["usage"]["total_tokens"]) == (200, 10), answer.text
    assert "x-tollkeeper-tokens-remaining" in answer.headers
    streamed = {"stream": True, "stream_options": {"include_usage": True}}
    events = call(front, holder.key, body=streamed, x_demo_usage="4,16")
    assert "data: [DONE]" in events.text
    assert call(front, holder.key, x_demo_status="502").status_code == 502
    stack.settled(holder.tenant, 3)
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    assert sorted(holder.consumed()) == [10, 20]
    for one in (answer, events):
        assert not {"x-tollkeeper-hold", "x-request-id"} & set(one.headers)


def test_a_refusal_is_told_in_the_words_of_the_called_api(stack: Stack, start: Start) -> None:
    front, holder = start(600), Holder(stack, 1000)
    unknown = call(front, "tk_unknown")
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (401, "invalid_api_key")
    over = call(front, holder.key, body={"max_tokens": 5000})
    assert (over.status_code, over.headers["x-tollkeeper-reason"]) == (429, "quota_exceeded")
    assert "retry-after" in over.headers
    assert call(front, holder.key, "/v1/unheard-of").status_code == 404
    for field in ("range", "x_request_timeout"):  # it would shape the answer
        assert call(front, holder.key, **{field: "bytes=0-9"}).json()["error"]["code"] == "invalid_request"
    assert holder.consumed() == []


def test_many_at_once_pass_as_often_as_there_is_room(stack: Stack, start: Start) -> None:
    front, held = start(600), chat_held(Holder(stack, 100_000))
    holder = Holder(stack, WORTH * held)
    usage = f"{held - 50},50"
    with ThreadPoolExecutor(CALLERS) as pool:
        answers = list(
            pool.map(lambda _: call(front, holder.key, x_demo_usage=usage).status_code, range(CALLS))
        )
    assert (answers.count(200), answers.count(429)) == (WORTH, CALLS - WORTH)
    stack.settled(holder.tenant, 1 + WORTH)
    assert holder.consumed() == [held] * WORTH


def test_one_that_is_killed_loses_and_doubles_nothing(stack: Stack, start: Start) -> None:
    front, held = start(2), chat_held(Holder(stack, 100_000))
    holder = Holder(stack, 100_000)
    call(front, holder.key, x_demo_usage="3,7")

    def cut_off(_: int) -> int:
        try:
            return call(front, holder.key, x_demo_delay_s="60").status_code
        except httpx.HTTPError:
            return 0

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        calls = pool.map(cut_off, range(IN_FLIGHT))
        wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == IN_FLIGHT * held)
        front.kill()
        assert list(calls) == [0] * IN_FLIGHT
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    stack.settled(holder.tenant, 2 + IN_FLIGHT)
    assert sorted(holder.consumed()) == [10, *[held] * IN_FLIGHT]


def test_no_client_settles_a_hold_or_speaks_for_another_caller(stack: Stack, start: Start) -> None:
    front, holder, victim = start(600), Holder(stack, 1000), Holder(stack, 1000)
    id_ = victim.take()["id"]
    for path in (f"/.tollkeeper/holds/{id_}/settle", f"/.tollkeeper/holds/{id_}/answers/500",
                 "/_tollkeeper/ask", f"/v1/..%2f.tollkeeper/holds/{id_}/settle"):  # fmt: skip
        assert call(front, victim.key, path).status_code in {400, 404}
    fields = {"x_tollkeeper_hold": id_, "connection": "authorization, x-tollkeeper-hold"}
    answer = call(front, holder.key, x_demo_usage="3,7", idempotency_key="again", **fields)
    if answer.status_code == 200:
        stack.settled(holder.tenant, 2)
        assert holder.consumed() == [10]
    else:
        assert answer.status_code in {400, 401}
    assert stack.quota(victim.tenant)["tokens_held"] == 100


def test_the_model_gets_no_key_of_a_caller_and_a_service_by_units_is_charged(
    stack: Stack, start: Start
) -> None:
    front, holder = start(600), Holder(stack, 1000)
    path = f"/services/{units_service(stack, holder.tenant)}/things"
    answer = wait_until(
        lambda: (one := call(front, holder.key, path, x_api_key="")).status_code != 403 and one
    )
    assert answer.status_code == 200, answer.text
    assert holder.key not in answer.text
    assert "tollkeeper-hold" not in answer.text.lower()
    assert "the-providers-key" in answer.text
    for field in ("x_api_key", "api_key", "x_goog_api_key"):
        assert holder.key not in call(front, holder.key, path, **{field: holder.key}).text, field
    calls = wait_until(lambda: stack.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"])
    assert [(one["credits"], one["units"]) for one in calls if one["status"] == 200][-1:] == [(2, 1)]
