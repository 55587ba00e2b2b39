"""Every recorded answer through a whole installation: what its client gets, what its row says it cost.

The upstream replays an answer piece by piece. Prices are the hand-written lists, set as an
operator sets them.
"""

from __future__ import annotations

import json
import re
import threading
import urllib.request
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2 as httpx
import pytest

from gateway.core.families import registry
from tests.journey.stack import ANSWER_S_MAX
from tests.recorded.answers import Answer, answers, table
from tests.recorded.prices import NANO, PRICES, ListPrice
from tests.stage import Stage
from tests.waiting import wait_until

PIECE_BYTES = 700
WITHIN_S = 60.0
SINCE = "2026-01-01T00:00:00Z"
HELLO = [{"role": "user", "content": "Where is the toll paid?"}]
PATHS = {
    "chat": "/v1/chat/completions", "completions": "/v1/completions", "embeddings": "/v1/embeddings",
    "responses": "/v1/responses", "messages": "/v1/messages",
    "gemini": "/v1beta/models/{model}:generateContent", "gemini-embed": "/v1beta/models/{model}:embedContent",
}  # fmt: skip
BODIES: dict[str, dict[str, Any]] = {
    "chat": {"messages": HELLO}, "completions": {"prompt": "Where?", "max_tokens": 64},
    "embeddings": {"input": "toll"}, "responses": {"input": "Where?"},
    "messages": {"messages": HELLO, "max_tokens": 8192},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "Where?"}]}]},
    "gemini-embed": {"content": {"parts": [{"text": "toll"}]}},
}  # fmt: skip


class Replay(BaseHTTPRequestHandler):
    """Answers with the recorded answer whose number a request names, in chunks."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        answer = answers()[int(self.headers["x-recorded"])]
        self.send_response(200)
        self.send_header("content-type", answer.content_type.decode())
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for start in range(0, len(answer.body), PIECE_BYTES):
            piece = answer.body[start : start + PIECE_BYTES]
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *args: object) -> None:
        """Say nothing."""


@pytest.fixture
def upstream() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Replay) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_every_answer_costs_what_the_table_says(other_stage: Stage, upstream: str) -> None:
    with other_stage.switch.to(upstream):
        answers_cost_what_the_table_says(other_stage)


def answers_cost_what_the_table_says(stage: Stage) -> None:
    before = unknown_in(stage)

    prices = [price(model, listed) for model, listed in (asked_prices() | PRICES).items()]
    assert len(stage.apply(prices=prices)) == len(prices)
    tenant, key = stage.tenant(None)
    asked: dict[str, Answer] = {}
    with httpx.Client(base_url=stage.gateway_url, timeout=ANSWER_S_MAX) as client:
        wait_until(lambda: is_priced(stage, client), WITHIN_S)
        for number, answer in enumerate(answers()):
            got = ask(client, key, number, answer)
            assert (got.status_code, got.content) == (200, answer.body), answer.name
            asked[got.headers["x-request-id"]] = answer
    rows = {row["request_id"]: row for row in told(stage, tenant, len(asked))}
    assert rows.keys() == asked.keys()
    for request_id, answer in asked.items():
        check(answer, rows[request_id])
    strange = sum("unknown" in row["usage"] for row in rows.values())
    assert strange >= 10
    wait_until(lambda: unknown_in(stage) - before == strange, WITHIN_S)


def price(model: str, listed: ListPrice) -> dict[str, Any]:
    """A listed price as a file of configuration has it."""
    above = [] if listed.over is None else [{"above": listed.over[0], **listed.over[1]}]
    more = {"tools": listed.tools, "service_tiers": listed.tiers, "context_tiers": above}
    there = {name: value for name, value in more.items() if value}
    return {"model": model, "currency": "USD", "effective_from": SINCE, **listed.million, **there}


def asked_prices() -> dict[str, ListPrice]:
    """Prices of models that are asked for by a shorter name than they answer with; names of an
    operator's own, as of deployments, have none and cost what answers does.
    """
    shorter = [(one.asked, table()[one.name].model) for one in answers() if one.family != "azure"]
    return {asked: PRICES[model] for asked, model in shorter if model and asked not in PRICES}


def is_priced(stage: Stage, client: httpx.Client) -> bool:
    """Whether the gateway has the price that was set last: every other one came before."""
    [number] = [at for at, answer in enumerate(answers()) if answer.name == "open-weights/vllm json"]
    tenant, key = stage.tenant(None)
    assert ask(client, key, number, answers()[number]).status_code == 200
    [row] = told(stage, tenant, 1)
    return row["cost"] is not None


def ask(client: httpx.Client, key: str, number: int, answer: Answer) -> httpx.Response:
    """The call that an answer was recorded of."""
    path, body = PATHS[answer.api], dict(BODIES[answer.api])
    streamed = answer.mode != "json"
    if answer.api.startswith("gemini"):
        path = path.replace("{model}", answer.asked)
        if streamed:
            path = path.replace(":generateContent", ":streamGenerateContent")
            path += "?alt=sse" if answer.mode == "sse" else ""
    else:
        body["model"] = answer.asked
        if streamed:
            body["stream"] = True
            if answer.api in {"chat", "completions"}:
                body["stream_options"] = {"include_usage": True}
    return client.post(path, json=body, headers={"authorization": f"Bearer {key}", "x-recorded": str(number)})


def told(stage: Stage, tenant: int, count: int) -> list[dict[str, Any]]:
    """A tenant's calls once there are so many."""

    def calls() -> Any:
        status, body = stage.admin("GET", f"/calls?tenant_id={tenant}&limit=1000")
        assert status == 200, body
        return len(body["items"]) >= count and body["items"]

    found: list[dict[str, Any]] = wait_until(calls, WITHIN_S)
    return found


def check(answer: Answer, row: dict[str, Any]) -> None:
    """A row of the journal against the table."""
    expected = table()[answer.name]
    usage = dict(row["usage"])
    usage.pop("unknown", None)
    assert usage == {**expected.counts, "tools": expected.tools}, answer.name
    assert row["tokens"] == sum(list(expected.counts.values())[:5]), answer.name
    assert (row["service_tier"] or "", row["response_model"] or "") == (expected.tier, expected.model)
    assert (row["model"], row["streamed"]) == (answer.asked, answer.mode != "json")
    assert (row["estimated"], row["currency"]) == (False, "USD"), answer.name
    assert Decimal(row["cost"]) * NANO == expected.nano, answer.name


def unknown_in(stage: Stage) -> int:
    """What the metric of a scrape says, of all families."""
    request = urllib.request.Request(f"{stage.admin_url}/metrics")
    request.add_header("authorization", f"Bearer {stage.admin_token}")
    with urllib.request.urlopen(request, timeout=ANSWER_S_MAX) as answer:
        text = answer.read().decode()
    found = re.findall(r'^tollkeeper_unknown_usage_total\{family="(\w+)"\} (\S+)$', text, re.MULTILINE)
    assert {family for family, _ in found} <= registry.FAMILIES.keys(), json.dumps(found)
    return int(sum(float(count) for _, count in found))
