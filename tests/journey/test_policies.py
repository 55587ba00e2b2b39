"""What routes, plans and a stopping worker do with calls that are under way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

import anthropic
import httpx2 as httpx
import openai
import pytest
from google.genai import errors

from tests import plain_http
from tests.journey.apis import STREAMS, Api, Heard, call
from tests.journey.exactness import Comparison, as_counted, by_size
from tests.journey.sdk import HELLO, Account, account
from tests.journey.stack import Body, Stack
from tests.journey.test_services import Client
from tests.stage import Stage
from tests.waiting import wait_until

CHAT = STREAMS[0]
# One of each family.
EACH = tuple(api for api in STREAMS if api.name in {"chat", "messages", "gemini (events)"})
CALLS_MAX = 16


@pytest.mark.parametrize("api", EACH, ids=lambda api: api.name.replace(" ", "_"))
def test_a_route_that_aborts_charges_what_was_seen(other_stage: Stage, api: Api) -> None:
    comparison = Comparison(other_stage)
    events = comparison.warm(api).raw.count(api.mark)
    demo = {"words": "6", "pause_s": "0.25"}
    comparison.run([(api, at, demo) for at in range(1, events)])
    compared = comparison.compare(as_counted, lambda noted: by_size(noted | {"complete": False}))
    assert compared.calls == events - 1
    # What the upstream had sent and nobody had read yet, an event or two, is not charged.
    assert all(counted - 3 <= charged <= counted for _, charged, counted in compared.wrong if charged)


def test_units_by_a_pointer_into_the_answer(other_stage: Stage) -> None:
    client = Client(other_stage, key="ocr")
    assert [client.units(client.call("POST", "/scan", b"x" * size)) for size in (1, 40, 700)] == [1, 40, 700]


@pytest.mark.parametrize("api", EACH, ids=lambda api: api.name.replace(" ", "_"))
def test_a_plan_that_cuts_ends_an_exhausted_stream_well(stage: Stage, api: Api) -> None:
    tenant, key = stage.tenant(600, on_exhausted="cut")
    heard = call(
        stage.gateway_url, _unstated(api).request(key, "demo-small", {"words": "20000", "pause_s": "0.001"})
    )
    assert heard.complete
    _check_end(api, heard)
    row = stage.settled(tenant, 2)[1]
    assert 600 <= row["amount"] < 10_000
    assert row["metadata"]["estimated"] is True
    assert stage.quota(tenant)["tokens_held"] == 0


def test_a_long_stream_keeps_its_hold_and_grows_it(other_stage: Stage) -> None:
    tenant, key = other_stage.tenant(100_000)
    request = _unstated(CHAT).request(key, "demo-small", {"words": "3000", "pause_s": "0.0016"})
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(call, other_stage.gateway_url, request)
        held = [wait_until(lambda: other_stage.quota(tenant)["tokens_held"])]
        while not running.done():
            held.append(other_stage.quota(tenant)["tokens_held"])
            wait({running}, timeout=0.05)
        assert running.result().complete
    assert max(held) > 2 * held[0]  # it outgrew what was held at first, and lived longer than a hold
    rows = other_stage.settled(tenant, 2)
    assert [row["transaction_type"] for row in rows] == ["reset", "consume"]
    assert rows[1]["metadata"]["estimated"] is False


def test_slots_and_tokens_of_a_killed_worker_come_back(other_stack: Stack) -> None:
    tenant, key = other_stack.tenant(100_000)
    assert other_stack.admin("PATCH", f"/tenants/{tenant}", {"limits": {"concurrency": 3}})[0] == 200
    request = CHAT.request(key, "demo-small", {"words": "4000", "pause_s": "0.01"})
    started: list[Future[Heard]] = []
    with ThreadPoolExecutor(CALLS_MAX) as pool:

        def is_full() -> bool:
            # One more wherever there is room: a machine that stalls for as long as a hold lives makes some.
            if other_stack.chat(key, "1,1").status_code == 429:
                return True
            started.append(pool.submit(call, other_stack.gateway_url, request))
            return False

        wait_until(is_full)
        (worker,) = other_stack.pids["gateway"]
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda: _answers(other_stack, key), 60)
    wait_until(lambda: other_stack.quota(tenant)["tokens_held"] == 0, 60)
    answers = [other_stack.chat(key, "1,1").status_code for _ in range(3)]
    assert answers == [200] * 3
    quota = other_stack.quota(tenant)
    wait_until(lambda: sum(row["amount"] for row in other_stack.ledger(tenant)[1:]) == quota["tokens_used"])
    rows = [row for row in other_stack.ledger(tenant) if row["transaction_type"] == "consume"]
    heard = [one.result() for one in started if one.exception() is None]
    admitted = sum(one.raw.startswith(b"HTTP/1.1 200") for one in heard)
    # What was seen of each killed call is charged once, if anything was; all others used two tokens.
    assert sum(row["amount"] != 2 or row["metadata"]["estimated"] for row in rows) <= admitted


def test_credits_that_do_not_cover_a_call_are_each_sdks_status_error(other_stage: Stage) -> None:
    models = other_stage.admin("GET", "/business-models?limit=100")[1]["items"]
    consumption = next(model["id"] for model in models if model["name"] == "Consumption")
    services = [
        one for one in other_stage.admin("GET", "/services?limit=100")[1]["items"]
        if one["key"] in ("embeddings", "messages", "gemini")
    ]  # fmt: skip
    a = account(other_stage)
    try:
        for one in services:
            change = {"business_model_id": consumption, "credits": 7}
            assert other_stage.admin("PATCH", f"/services/{one['id']}", change)[0] == 200
        refused_by_each_sdk(a)
    finally:
        for one in services:
            before = {name: one[name] for name in ("business_model_id", "credits")}
            other_stage.admin("PATCH", f"/services/{one['id']}", before)


def refused_by_each_sdk(a: Account) -> None:
    """Whom credits do not cover, as each SDK tells."""
    other_stage = a.stack

    calls: dict[str, Body] = {
        "/v1/messages": {"model": "demo-small", "max_tokens": 9, "messages": HELLO},
        "/v1beta/models/demo-small:generateContent": {"contents": [{"parts": [{"text": "hello"}]}]},
    }

    def costs(path: str, body: Body) -> bool:
        """Whether the worker knows this service's price by now."""
        headers = {"authorization": f"Bearer {a.key}"}
        url = other_stage.gateway_url + path
        return plain_http.post(url, json=body, headers=headers, timeout=60).status_code == 402

    def refused() -> bool:
        try:
            a.openai().embeddings.create(model="demo-small", input="x")
        except openai.APIStatusError as error:
            return error.status_code == 402 and error.type == "billing_error"
        return False

    wait_until(lambda: refused() and all(costs(path, body) for path, body in calls.items()))
    used = other_stage.quota(a.tenant)["tokens_used"]
    with pytest.raises(anthropic.APIStatusError) as billing:
        a.anthropic().messages.create(model="demo-small", max_tokens=9, messages=HELLO)
    assert billing.value.status_code == 402
    assert billing.value.body["error"]["type"] == "billing_error"  # type: ignore[index] # it is a JSON object
    with pytest.raises(errors.ClientError) as failed:
        a.gemini().models.generate_content(model="demo-small", contents="hello")
    assert (failed.value.code, failed.value.status) == (402, "FAILED_PRECONDITION")
    assert "Credits of this organization" in str(failed.value.message)
    assert other_stage.quota(a.tenant)["tokens_used"] == used


def test_sigterm_finishes_what_ends_in_the_grace_and_settles_the_rest(other_stack: Stack) -> None:
    comparison = Comparison(other_stack)
    comparison.warm(CHAT)
    url = other_stack.gateway_url
    (worker,) = other_stack.pids["gateway"]
    before = len(comparison.noted())
    requests = [
        CHAT.request(comparison.key, comparison.model, {"words": words, "pause_s": "0.2"})
        for words in ("8", "200")
    ]
    with ThreadPoolExecutor(8) as pool:
        quick, slow = ([pool.submit(call, url, request) for _ in range(4)] for request in requests)
        wait_until(lambda: len(comparison.noted()) == before + 8)
        os.kill(worker, signal.SIGTERM)
        assert all(each.result().complete for each in quick)
        cut = [each.result() for each in slow]
    # Their time is over: they end with an error in the API's own shape, and without the API's own end.
    assert all(each.complete and b"This gateway is stopping" in each.raw for each in cut)
    assert not any(b"[DONE]" in each.raw for each in cut)
    compared = comparison.compare(as_counted, lambda noted: by_size(noted | {"complete": False}))
    assert compared.calls == 8
    assert all(0 < charged <= counted and counted - charged <= 3 for _, charged, counted in compared.wrong)
    assert wait_until(lambda: _answers(other_stack, comparison.key), 60)  # a new worker took its place


def _answers(stack: Stack, key: str) -> bool:
    try:
        return stack.chat(key, "1,1").status_code == 200
    except httpx.TransportError:
        return False


def _unstated(api: Api) -> Api:
    """The same call without a stated maximum."""
    return Api(
        api.name,
        api.path,
        {name: value for name, value in api.body.items() if name != "max_tokens"},
        api.mark,
    )


def _check_end(api: Api, heard: Heard) -> None:
    """The stream ends as the API's own do when a maximum is reached."""
    body = b"".join(_chunks(heard.raw.partition(b"\r\n\r\n")[2]))
    events = [line[6:] for line in body.splitlines() if line.startswith(b"data: ")]
    if api.name == "chat":
        assert events[-1] == b"[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    elif api.name == "messages":
        kinds = [json.loads(event)["type"] for event in events[-3:]]
        assert kinds == ["content_block_stop", "message_delta", "message_stop"]
        assert json.loads(events[-2])["delta"]["stop_reason"] == "max_tokens"
    else:
        assert json.loads(events[-1])["candidates"][0]["finishReason"] == "MAX_TOKENS"


def _chunks(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        yield body[:length]
        body = body[length + 2 :]
