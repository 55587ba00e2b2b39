"""Ways around budgets and lists of models that users of other gateways reported, by their names.

Each is tried on a whole stage by three callers: one whose key may use another model alone, one whose budget
of money is used up, and one who may do all. Nothing of the first two reaches the upstream. What the third one
is served has a row with a cost, but for a job, whose rows come with its result.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import aiohttp
import pytest

from tests import plain_http
from tests.core.calls.test_forms import FILE, form
from tests.core.calls.test_recordings import wav
from tests.journey.budgets import MODEL, Spender
from tests.journey.stack import ANSWER_S_MAX
from tests.stage import Stage
from tests.waiting import wait_until

USAGE = {
    "prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60, "input_tokens": 20, "output_tokens": 40,
    "inputTokens": 20, "outputTokens": 40, "totalTokens": 60,
}  # fmt: skip
ANSWER = {
    "id": "made-1", "type": "message", "model": MODEL, "status": "completed", "usage": USAGE, "done": True,
    "usageMetadata": {"promptTokenCount": 20, "candidatesTokenCount": 40, "totalTokenCount": 60},
    "prompt_eval_count": 20, "eval_count": 40,
    "meta": {"billed_units": {"input_tokens": 20, "output_tokens": 40, "search_units": 1}},
}  # fmt: skip
SAID = [{"role": "user", "content": "hello there"}]
CHAT: dict[str, Any] = {"model": MODEL, "messages": SAID, "max_tokens": 16}
OTHER = "budgeted-allowed"
CONTENTS = [{"role": "user", "parts": [{"text": "hello there"}]}]
BEDROCK = {"messages": [{"role": "user", "content": [{"text": "hello there"}]}]}
INVOKE = {"anthropic_version": "bedrock-2023-05-31", "max_tokens": 16, "messages": SAID}
TEXT = {"model": MODEL, "input": "hello there"}
DEFINED: dict[str, Any] = {
    "type": "tool_addition",
    "tool": {"type": "tool_definition", "definition": {"type": "advisor_1", "name": "a", "model": MODEL}},
}
IMAGES, CODE = {"type": "image_generation"}, {"type": "code_interpreter", "container": {"type": "auto"}}
# What is posted where, by the name of the way around; a body that is bytes is a form.
ATTACKS: dict[str, list[tuple[str, Any]]] = {
    "pass-through": [
        ("/services/chat/v1/chat/completions", CHAT), ("/services/house/v1/chat/completions", CHAT),
        ("/services/house/v1%2Fchat%2Fcompletions", CHAT), ("/services/house/v1/files/file-1", CHAT),
        ("/services/house/openai/deployments/x/chat/completions", CHAT), ("/v1/chat/completions/", CHAT),
        ("/v1//chat/completions", CHAT), ("/V1/chat/completions", CHAT), ("/v1/engines/x/completions", TEXT),
    ],
    "embeddings": [
        ("/v1/embeddings", TEXT), ("/v2/embed", {"model": MODEL, "texts": ["x"]}), ("/api/embed", TEXT),
        (f"/v1beta/models/{MODEL}:embedContent", {"content": {"parts": [{"text": "x"}]}}),
        (f"/v1beta/models/{OTHER}:batchEmbedContents", {"requests": [{"model": f"models/{MODEL}"}]}),
        ("/v2/rerank", {"model": MODEL, "query": "q", "documents": ["d"]}),
    ],
    "Bedrock": [
        (f"/model/{MODEL}/converse", BEDROCK), (f"/model/{MODEL}/converse-stream", BEDROCK),
        (f"/model/{MODEL}/invoke", INVOKE), (f"/model/{MODEL}/invoke-with-response-stream", INVOKE),
        (f"/model/{OTHER}/converse", {**BEDROCK, "guardrailConfig": {"guardrailIdentifier": "g"}}),
        (f"/model/{OTHER}/invoke", {**INVOKE, "model": MODEL}),
        (f"/model/{OTHER}%2F..%2F{MODEL}/converse", BEDROCK),
        ("/async-invoke", {"modelId": MODEL}), (f"/model/{MODEL}/count-tokens", {"input": {}}),
    ],
    "audio": [
        ("/v1/audio/speech", {"model": MODEL, "input": "hello there", "voice": "alloy"}),
        ("/v1/audio/transcriptions", form((FILE, wav(1)), (b"model", MODEL.encode()))),
        ("/v1/audio/translations", form((b"model", MODEL.encode()), (FILE, wav(1)))),
        ("/v1/audio/transcriptions", form((b"model", OTHER.encode()), (b"model", MODEL.encode()))),
        ("/v1/images/generations", {"model": MODEL, "prompt": "x", "n": 10}),
    ],
    "batch": [
        ("/v1/batches", {"input_file_id": "file-1", "endpoint": "/v1/chat/completions"}),
        ("/v1/messages/batches", {"requests": [{"custom_id": "1", "params": CHAT}]}),
        ("/v1/chat/completions/batch", {"model": MODEL, "messages": [SAID]}),
        (f"/v1beta/models/{MODEL}:batchGenerateContent", {"batch": {}}), ("/services/house/v1/batches", CHAT),
        ("/v1/fine_tuning/jobs", {"model": MODEL, "training_file": "file-1"}), ("/v1/evals/eval_1/runs", {}),
    ],
    "WebRTC tokens": [
        ("/v1/realtime/client_secrets", {"session": {"type": "realtime", "model": MODEL}}),
        ("/v1/realtime/sessions", {"model": MODEL}), ("/v1/realtime/calls", {"sdp": "v=0"}),
        ("/v1/realtime/transcription_sessions", {}), ("/v1alpha/auth_tokens", {"uses": 1}),
    ],
    "fallback": [
        ("/v1/chat/completions", {**CHAT, "model": OTHER, "models": [MODEL]}),
        ("/v1/chat/completions", {**CHAT, "model": OTHER, "fallbacks": [{OTHER: [MODEL]}]}),
        ("/v1/messages", {**CHAT, "model": OTHER, "fallback_model": MODEL}),
        ("/v1/responses", {**TEXT, "model": OTHER, "context_window_fallbacks": [MODEL]}),
        ("/v1/chat/completions", {**CHAT, "model": OTHER, "api_base": "http://x"}),
    ],
    "tools": [
        ("/v1/responses", {**TEXT, "tools": [IMAGES]}), ("/v1/responses", {**TEXT, "tools": [CODE]}),
        ("/v1/messages", {**CHAT, "tools": [{"type": "code_execution_20250825", "name": "x"}]}),
        ("/v1/messages", {**CHAT, "model": OTHER, "tools": [{"type": "advisor_1", "model": MODEL}]}),
        *((path, {"model": OTHER, "input": [{"type": kind, "tools": [{"type": "namespace", "tools": [
            {**IMAGES, "model": MODEL}]}]}]})
          for path in ("/v1/responses", "/v1/responses/compact")
          for kind in ("additional_tools", "tool_search_output", "what comes next")),
        *(("/v1/messages", {**CHAT, "model": OTHER, "messages": [{"role": "system", "content": content}]})
          for content in ([DEFINED], [{"type": "tool_result", "content": [DEFINED]}], [DEFINED["tool"]])),
        (f"/model/{OTHER}/invoke", {**INVOKE, "messages": [{"role": "system", "content": [DEFINED]}]}),
        ("/v1/messages/batches", {"requests": [{"custom_id": "1", "params": {
            **CHAT, "model": OTHER, "messages": [{"role": "system", "content": [DEFINED]}]}}]}),
        ("/v1/conversations", {"items": [{"type": "additional_tools", "tools": [IMAGES]}]}),
        (f"/v1beta/models/{MODEL}:generateContent", {"contents": CONTENTS, "tools": [{"googleMaps": {}}]}),
        ("/v1beta/interactions", {"model": MODEL, "input": "x", "tools": [{"type": "computer_use"}]}),
        ("/v1beta/interactions", {"agent": "deep-research", "input": "x"}),
    ],
    "aliases": [
        *(
            ("/v1/chat/completions", {**CHAT, "model": model})
            for model in ("house-alias", MODEL.upper(), f"{OTHER},{MODEL}", f" {MODEL}", "@preset/x")
        ),
        ("/v1/chat/completions", {**CHAT, "Model": OTHER}),
        (f"/openai/deployments/{MODEL}/chat/completions", CHAT),
        (f"/openai/deployments/{OTHER}/chat/completions", CHAT),
        (f"/v1beta/models/{OTHER}:generateContent", {"contents": CONTENTS, "model": f"models/{MODEL}"}),
        (f"/v1beta/models/{MODEL}:predict", {"instances": [{"prompt": "x"}]}),
        ("/api/chat", {**CHAT, "stream": False}),
        ("/v1/chat", {"model": MODEL, "message": "x"}),
    ],
}  # fmt: skip
SERVED_MIN = 25
SOCKETS = ("/v1/responses", f"/v1/realtime?model={MODEL}")
LIST_REASONS = {
    "model_not_allowed",
    "invalid_request",
    "unknown_route",
    "object_not_found",
    "service_not_included",
}
SPENT_REASONS = LIST_REASONS | {"budget_exceeded", "model_not_priced"}


class Counting(BaseHTTPRequestHandler):
    """Answers whatever is posted with some use in every API's words, and counts what came."""

    protocol_version = "HTTP/1.1"
    came: list[str] = []  # noqa: RUF012  # of one test

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"] or 0))
        self.came.append(self.path)
        body = json.dumps({**ANSWER, "id": f"made-{len(self.came)}"}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    Counting.came.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Counting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_no_way_around_leads_past_a_list_a_budget_or_the_journal(other_stage: Stage, upstream: str) -> None:
    with other_stage.switch.to(upstream):
        nothing_leads_past(other_stage)


def nothing_leads_past(stage: Stage) -> None:
    serve(stage)
    spender, spent = Spender(stage), Spender(stage)
    _, listed = spender.another_key(models=[OTHER])
    budget = spent.budget(Decimal("0.000001"))
    spent.known(budget)
    before = len(Counting.came)
    let_past = [
        (name, path, whose, reason)
        for name, path, body in posted()
        for whose, key, reasons in (("list", listed, LIST_REASONS), ("budget", spent.key, SPENT_REASONS))
        if (reason := post(stage, key, path, body)[1]) not in reasons
    ]
    assert not let_past
    assert len(Counting.came) == before
    for key in (listed, spent.key):
        for path in SOCKETS:
            assert asyncio.run(turn(stage, key, path))
    assert len(Counting.came) == before
    assert spent.used(budget) == spent.held(budget) == 0
    served = [path for _, path, body in posted() if post(stage, spender.key, path, body)[0] == 200]
    served = [path for path in served if path != "/v1/messages/batches"]  # a job is charged by its result
    assert len(served) >= SERVED_MIN
    rows = wait_until(lambda: len(found := journal(stage, spender)) >= len(served) and found)
    assert len(rows) == len(served)
    assert not [row["route"] for row in rows if not Decimal(row["cost"] or 0) > 0]


def serve(stage: Stage) -> None:
    """There is a service for each route that is tried, and one of units at the same upstream."""
    present = {one["key"] for one in stage.admin("GET", "/services?limit=100")[1]["items"]}
    models = {one["name"]: one["id"] for one in stage.admin("GET", "/business-models")[1]["items"]}
    for key in ("speech", "transcriptions", "images", "rerank", "fine_tuning", "evals", "realtime", "house"):
        if key not in present:
            kind = models["Pay-Per-Use" if key == "house" else "Subscription"]
            stage.make(
                "services", name=key, key=key, credits=0, service_type="Pay-As-You-Go", business_model_id=kind
            )


def posted() -> Iterator[tuple[str, str, Any]]:
    for name, requests in ATTACKS.items():
        for path, body in requests:
            yield name, path, body


def post(stage: Stage, key: str, path: str, body: Any) -> tuple[int, str]:
    """The status of a call, and why it was refused."""
    headers = {"authorization": f"Bearer {key}"}
    kind = "multipart/form-data; boundary=b" if isinstance(body, bytes) else "application/json"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    url = f"{stage.gateway_url}{path}"
    headers |= {"content-type": kind}
    got = plain_http.post(url, content=content, headers=headers, timeout=ANSWER_S_MAX)
    return got.status_code, got.headers.get("x-tollkeeper-reason", "")


async def turn(stage: Stage, key: str, path: str) -> bool:
    """Whether a turn on a WebSocket is refused, at its opening or by an event."""
    create = {"type": "response.create", "model": MODEL, "input": "hello there"}
    headers = {"authorization": f"Bearer {key}"}
    async with aiohttp.ClientSession() as session:
        try:
            async with session.ws_connect(f"{stage.gateway_url}{path}", headers=headers) as socket:
                await socket.send_json(create)
                said = await socket.receive(timeout=ANSWER_S_MAX)
                return said.type is not aiohttp.WSMsgType.TEXT or json.loads(said.data)["type"] == "error"
        except aiohttp.WSServerHandshakeError as refused:
            return refused.status in {400, 403, 404, 429}


def journal(stage: Stage, spender: Spender) -> list[dict[str, Any]]:
    path = f"/calls?organization_id={spender.organization}&limit=1000"
    rows: list[dict[str, Any]] = stage.admin("GET", path)[1]["items"]
    return [row for row in rows if row["status"] == 200]
