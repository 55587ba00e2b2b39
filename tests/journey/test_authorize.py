"""What another gateway asks for and tells: a call is held by its path and body, and settled by its answer."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx2 as httpx

from tests import plain_http
from tests.journey.stack import ANSWER_S_MAX
from tests.journey.test_holds import Holder
from tests.stage import Stage
from tests.waiting import wait_until

CHAT = {"model": "demo-small", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 50}
ANSWER = {
    "id": "x",
    "object": "chat.completion",
    "model": "demo-small",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 7, "total_tokens": 10},
}


def chat_held(holder: Holder) -> int:
    """What one such call is held at."""
    id_ = ask(holder).headers["x-tollkeeper-hold"]
    held: int = holder.stack.quota(holder.tenant)["tokens_held"]
    assert holder.ask("DELETE", f"/{id_}").status_code == 204
    return held


def ask(holder: Holder, path: str = "/v1/chat/completions", **fields: Any) -> httpx.Response:
    """Ask as a gateway does that passes its client's call on."""
    url = f"{holder.stack.gateway_url}/.tollkeeper/authorize/600{path}"
    method, body = fields.pop("method", "POST"), fields.pop("body", CHAT)
    headers = {"authorization": f"Bearer {holder.key}"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    return plain_http.request(method, url, json=body, headers=headers, timeout=ANSWER_S_MAX)


def tell(holder: Holder, id_: str, answer: bytes, status: str = "200", **fields: str) -> httpx.Response:
    """Tell the answer as it came."""
    url = f"{holder.stack.gateway_url}/.tollkeeper/holds/{id_}/answers/{status}"
    headers = {"authorization": f"Bearer {holder.key}", "content-type": "application/json"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    return plain_http.request("POST", url, content=answer, headers=headers, timeout=ANSWER_S_MAX)


def event(document: object) -> bytes:
    return b"data: " + json.dumps(document).encode() + b"\n\n"


def test_a_call_is_held_by_its_body_and_charged_by_its_answer(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    allowed = ask(holder)
    assert (allowed.status_code, allowed.content) == (200, b"")
    assert "x-tollkeeper-tokens-remaining" in allowed.headers
    id_ = allowed.headers["x-tollkeeper-hold"]
    assert stage.quota(holder.tenant)["tokens_held"] > CHAT["max_tokens"]
    told = tell(holder, id_, json.dumps(ANSWER).encode())
    assert (told.status_code, told.json()["tokens"]) == (200, 10), told.text
    assert tell(holder, id_, b"{}", "500").json() == told.json()
    stage.settled(holder.tenant, 2)
    (call,) = wait_until(lambda: stage.admin("GET", f"/calls?tenant_id={holder.tenant}")[1]["items"])
    assert (call["request_id"], call["route"], call["model"]) == (id_, "/v1/chat/completions", "demo-small")
    assert (call["tokens"], call["status"]) == (10, 200)


def test_a_stream_is_read_as_one_that_passes_and_a_silent_answer_costs_its_input(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    streamed = CHAT | {"stream": True}
    id_ = ask(holder, body=streamed).headers["x-tollkeeper-hold"]
    delta = {"id": "x", "choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
    usage = {"id": "x", "choices": [], "usage": ANSWER["usage"]}
    events = event(delta) + event(usage) + b"data: [DONE]\n\n"
    assert tell(holder, id_, events, content_type="text/event-stream").json()["tokens"] == 10
    for answer in (event(delta), b""):  # it broke off, after some text and before any
        id_ = ask(holder, body=streamed).headers["x-tollkeeper-hold"]
        told = tell(holder, id_, answer, content_type="text/event-stream").json()
        assert 0 < told["tokens"] < CHAT["max_tokens"]
    id_ = ask(holder).headers["x-tollkeeper-hold"]
    failed = tell(holder, id_, b'{"error": {"message": "no"}}', "502").json()
    assert (failed["charged"], failed["status"]) == (False, 502)
    id_ = ask(holder).headers["x-tollkeeper-hold"]
    coded = tell(holder, id_, b"\x1f\x8b" * 200, content_encoding="br")
    assert (coded.status_code, coded.json()["charged"]) == (200, True)
    wait_until(lambda: stage.quota(holder.tenant)["tokens_held"] == 0)


def test_no_field_of_a_client_makes_its_hold_another_one(stage: Stage) -> None:
    holder, stranger = Holder(stage, 1000), Holder(stage, 1000)
    id_ = ask(stranger).headers["x-tollkeeper-hold"]
    fields = {"idempotency_key": "again", "x_tollkeeper_hold": id_, "x_request_id": id_}
    ids = {ask(holder, **fields).headers["x-tollkeeper-hold"] for _ in range(2)}
    assert len(ids) == 2
    assert id_ not in ids
    assert tell(holder, id_, b"{}").status_code == 404
    assert holder.ask("DELETE", f"/{id_}").status_code == 404
    assert stage.quota(stranger.tenant)["tokens_held"] > 0
    assert ask(holder, x_tollkeeper_units="1").status_code == 400


def test_what_is_no_call_of_a_route_is_refused(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    for path, body, status in (
        ("/v1/unheard-of", CHAT, 404), ("/v1/batches", {"input_file_id": "file-1"}, 404),
        ("/.tollkeeper/usage", None, 404), ("/v1/%2e%2e/.tollkeeper/usage", CHAT, 400),
        ("/v1/chat/completions", None, 400), ("//v1/chat/completions", CHAT, 400),
    ):  # fmt: skip
        assert ask(holder, path, body=body).status_code == status, path


def test_what_costs_nothing_takes_no_hold(stage: Stage) -> None:
    holder = Holder(stage, 1000)
    free = ask(holder, "/v1/models/gpt-4o-mini", method="GET", body=None)
    assert free.status_code == 200
    assert "x-tollkeeper-hold" not in free.headers
    # Whose trained models a list names, nobody sees here.
    assert ask(holder, "/v1/models", method="GET", body=None).status_code == 403
    assert (
        ask(Holder(stage, 1000), "/v1/models", method="GET", authorization="Bearer tk_none").status_code
        == 401
    )


def units_service(stage: Stage, tenant: int) -> str:
    """A service that costs two credits a call, and an organization that has some."""
    organization = stage.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    (model,) = stage.admin("GET", "/business-models?name=Consumption")[1]["items"]
    service = stage.make(
        "services", name=f"units {uuid4()}", key=f"units-{uuid4().hex[:8]}", credits=2,
        service_type="Pay-As-You-Go", business_model_id=model["id"],
    )  # fmt: skip
    stage.make("credit-additions", organization_id=organization, credits_added=20)
    key: str = service["key"]
    return key
