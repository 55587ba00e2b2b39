"""MCP servers behind the gateway: calls of tools are charged, all else is free.

A message's head and body say the same, its session belongs to the organization that opened it, and a
refusal is the JSON-RPC error that its sender waits for.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.call_facts import read_facts
from gateway.core.billing.price_book import KINDS
from gateway.core.billing.vector import Vector
from gateway.core.families.mcp import TASKS, routes_of, task_key
from gateway.core.families.objects import session_of
from gateway.core.model import Refused, Verdict
from tests.http.fakes import CALLER, ROUTES, STREAM_HEAD, answer, chunks, get, post
from tests.http.stage import Stage, staged

MCP = (*ROUTES, *routes_of("up"))
RESULT = b'{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"text","text":"four words of text"}]}}'


def message(method: str = "tools/call", name: str = "search", **fields: object) -> bytes:
    params = {"name": name, "arguments": {"model": "gpt-5", "tools": 3}}
    return json.dumps({"jsonrpc": "2.0", "id": 7, "method": method, "params": params, **fields}).encode()


def head(version: str = "2026-07-28", **fields: str) -> bytes:
    lines = {"mcp-protocol-version": version, **{f"mcp-{name}": value for name, value in fields.items()}}
    return b"".join(f"{name}: {value}\r\n".encode() for name, value in lines.items())


@asynccontextmanager
async def served(**limits: Any) -> AsyncIterator[Stage]:
    of_target: dict[str, object] = {"family": "mcp", "path": "/v2/mcp"}
    async with staged(routes=MCP, of_target=of_target, **limits) as stage:
        stage.directory.services["mcp"] = replace(stage.directory.services["chat"], key="mcp")
        yield stage


def streamed(*messages: dict[str, object]) -> bytes:
    events = [f"data: {json.dumps({'jsonrpc': '2.0', **one})}\n\n".encode() for one in messages]
    return STREAM_HEAD + chunks(*events)


QUESTION = {"resultType": "input_required", "requestState": "s"}


def asked(**members: object) -> bytes:
    result = {"resultType": "input_required", **members}
    return answer(json.dumps({"jsonrpc": "2.0", "id": 7, "result": result}).encode())


def error_of(body: bytes) -> dict[str, Any]:
    said = json.loads(body)
    assert said["jsonrpc"] == "2.0"
    return {"id": said["id"], **said["error"]}


@pytest.fixture
async def stage() -> AsyncIterator[Stage]:
    async with served() as made:
        yield made


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_call_of_a_tool_is_one_unit_and_reaches_the_servers_own_address(
    stage: Stage, streamed: bool
) -> None:
    events = [
        b'data: {"jsonrpc":"2.0","method":"notifications/progress","params":{}}\n\n',
        b"data: " + RESULT + b"\n\n",
    ]
    stage.upstream.scripts.append([STREAM_HEAD, chunks(*events)] if streamed else [answer(RESULT)])
    got = await stage.ask(post(message(), b"/mcp/up"))
    assert (got.status, got.body) == (200, b"".join(events) if streamed else RESULT)
    [sent] = stage.upstream.received
    assert (sent.target, json.loads(sent.body)) == (b"/v2/mcp", json.loads(message()))
    [charge] = stage.counters.charges
    assert (charge.tokens, charge.units, charge.charge) == (0, 1, True)
    facts = read_facts(charge.metadata)
    assert facts is not None
    assert facts.model == "up/search"


@pytest.mark.parametrize(
    "body",
    [
        message("initialize", params={}), message("tools/list"), message("server/discover"),
        message("notifications/initialized"), b'{"jsonrpc":"2.0","id":"s1","result":{}}',
    ],
)  # fmt: skip
async def test_other_messages_cost_nothing_and_are_limited_all_the_same(stage: Stage, body: bytes) -> None:
    stage.upstream.scripts.append([answer(RESULT)])
    assert (await stage.ask(post(body, b"/mcp/up"))).status == 200
    assert (stage.counters.charges, len(stage.counters.heads)) == ([], 1)
    assert (await stage.ask(post(body, b"/mcp/up").replace(b"authorization", b"x-other"))).status == 401


@pytest.mark.parametrize(
    ("answered", "charged"),
    [
        (answer(RESULT.replace(b'"content"', b'"isError":true,"content"')), 1),
        (answer(b'{"jsonrpc":"2.0","id":7,"error":{"code":-32602,"message":"no such tool"}}'), 0),
        (answer(b'{"jsonrpc":"2.0","id":7,"error":{"code":0,"message":"Request cancelled"}}'), 1),
        (answer(RESULT, status=b"500 Oops"), 0),
        (streamed({"id": [8], "error": {"code": -32602}}, {"id": 7, "result": {}}), 1),
        (streamed({"id": 7, "error": {"code": -32603}}), 0),
        (streamed({"method": "notifications/progress"}, {"id": 7, "error": {"code": -32603}}), 1),
        (asked(inputRequests={"a": {"method": "roots/list"}}), 0),
        (asked(requestState="s", _meta={}), 0),
        (streamed({"method": "notifications/progress"}, {"id": 7, "result": {**QUESTION}}), 0),
        # A result that has more than a question, or no question at all, is one that is complete.
        (asked(requestState="s", content=[]), 1),
        (asked(requestState="s", structuredContent={}), 1),
        (asked(inputRequests=None, requestState=None), 1),
        (asked(), 1),
        (asked(resultType="complete", requestState="s"), 1),
        (streamed({"id": 7, "result": {**QUESTION}}, {"id": 7, "result": {"content": []}}), 1),
        (asked(resultType="task", taskId="t", status="working"), 1),
    ],
)
async def test_a_tool_that_ran_is_charged_and_an_error_of_the_protocol_is_not(
    stage: Stage, answered: bytes, charged: int
) -> None:
    stage.upstream.scripts.append([answered])
    await stage.ask(post(message(), b"/mcp/up"))
    assert len(stage.counters.charges) == charged


@pytest.mark.parametrize(
    ("body", "fields", "code", "param"),
    [
        (message(), head(method="tools/list", name="search"), -32020, "mcp-method"),
        (message(), head(method="tools/call", name="delete"), -32020, "mcp-name"),
        (message(), head(method="tools/call", name="Search"), -32020, "mcp-name"),
        (message(), head(method="tools/call"), -32020, "mcp-name"),
        (message(), head(), -32020, "mcp-method"),
        (message("tools/list", params={}), head("2025-06-18", method="tools/call"), -32020, "mcp-method"),
        (message(), head(method="tools/call", name="=?base64?!?="), -32020, "mcp-name"),
        (message(), head(method="tools/call", name="search") + b"mcp-name: x\r\n", -32020, "mcp-name"),
        (
            message(params={"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}}),
            head("2025-06-18"), -32020, "mcp-protocol-version",
        ),
        (message("tools/burn"), b"", -32601, "method"),
        (message("tasks/list"), b"", -32601, "method"),
        (message("tasks/get", params={}), b"", -32600, "params.taskId"),
        (message("tasks/get", params={"taskId": ""}), b"", -32600, "params.taskId"),
        (message("tasks/get", params={"taskId": 1}), b"", -32600, "params.taskId"),
        (message("tasks/get", params={"TaskId": "t"}), b"", -32600, "params.taskId"),
        (message("tasks/get", params={"taskId": "t"}), head(method="tasks/get", name="u"), -32020, "mcp-name"),
        (message("Tools/Call"), b"", -32601, "method"),
        (message(Method="tools/list"), b"", -32600, "method"),
        (message(name="ѕearch"), b"", -32600, "params.name"),
        (message(name="search "), b"", -32600, "params.name"),
        (message(params={"Name": "search"}), b"", -32600, "params.name"),
        (message(params=[]), b"", -32600, "params"),
        (message(more=1), b"", -32600, "more"),
    ],
)  # fmt: skip
async def test_a_message_that_could_be_read_in_two_ways_is_refused_by_its_id(
    stage: Stage, body: bytes, fields: bytes, code: int, param: str
) -> None:
    got = await stage.ask(post(body, b"/mcp/up", fields))
    said = error_of(got.body)
    assert (got.status, said["id"], said["data"]["param"]) == (400, 7, param)
    assert said["code"] == (code if param != "method" or code == -32601 else -32601)
    assert stage.upstream.received == []


async def test_a_call_that_is_asked_for_input_is_charged_once_with_the_input(stage: Stage) -> None:
    response = {"action": "accept", "content": {"taskId": "mine"}}
    given = {"inputResponses": {"a": response}, "requestState": "s"}
    retry = message(params={"name": "search", "arguments": {}, **given})
    stage.upstream.scripts.append([asked(inputRequests={"a": {"method": "roots/list"}}), answer(RESULT)])
    for body in (message(), retry):
        assert (await stage.ask(post(body, b"/mcp/up"))).status == 200
    [charge] = stage.counters.charges
    assert (charge.units, len(stage.counters.holds)) == (1, 2)


@pytest.mark.parametrize(
    "result",
    [{"resultType": "task", "taskId": "t-1", "status": "working"}, {"task": {"taskId": "t-1"}}],
)  # fmt: skip
@pytest.mark.parametrize("as_stream", [False, True])
async def test_a_task_is_charged_when_it_begins_and_belongs_to_its_organization(
    stage: Stage, result: dict[str, object], as_stream: bool
) -> None:
    told = {"id": 7, "result": result}
    began = streamed(told) if as_stream else answer(json.dumps({"jsonrpc": "2.0", **told}).encode())
    stage.upstream.scripts.append([began])
    assert (await stage.ask(post(message(), b"/mcp/up"))).status == 200
    assert stage.objects.kept == {(CALLER.organization_id, task_key("up", "t-1"))}
    about = [message(method, params={"taskId": "t-1"}) for method in sorted(TASKS)]
    about.append(message("subscriptions/listen", params={"notifications": {"taskIds": ["t-1"]}}))
    for body in about:
        stage.upstream.scripts.append([answer(RESULT)])
        fields = head(method=json.loads(body)["method"])
        assert (await stage.ask(post(body, b"/mcp/up", fields))).status == 200
    assert len(stage.counters.charges) == 1
    stage.directory.caller = replace(CALLER, organization_id=2)
    for body in about:
        got = await stage.ask(post(body, b"/mcp/up"))
        assert (got.status, error_of(got.body)["data"]["reason"]) == (404, "object_not_found")
        assert error_of(got.body)["data"]["param"].startswith("params.")
    assert len(stage.upstream.received) == 1 + len(about)


@pytest.mark.parametrize(
    "params",
    [
        {"taskId": "t-2"}, {"taskId": "t-1", "task_id": "t-2"},
        {"taskId": "t-1", "_meta": {"io.modelcontextprotocol/related-task": {"taskId": "t-2"}}},
        {"taskId": "t-1", "notifications": {"taskids": ["t-1", "t-2"]}},
    ],
)  # fmt: skip
async def test_a_message_may_name_no_task_of_nobody(stage: Stage, params: dict[str, object]) -> None:
    stage.objects.kept = {
        (CALLER.organization_id, task_key("up", "t-1")), (CALLER.organization_id, task_key("other", "t-2")),
    }  # fmt: skip
    got = await stage.ask(post(message("tasks/get", params=params), b"/mcp/up"))
    assert (got.status, stage.upstream.received) == (404, [])


async def test_arguments_of_a_tool_name_no_task(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(RESULT)])
    params = {"name": "search", "arguments": {"taskId": "a row of a board"}}
    assert (await stage.ask(post(message(params=params), b"/mcp/up"))).status == 200
    assert stage.objects.kept == set()


@pytest.mark.parametrize("name", ["search", "=?base64?c2VhcmNo?="])
async def test_a_head_that_says_the_same_passes(stage: Stage, name: str) -> None:
    stage.upstream.scripts.append([answer(RESULT)])
    got = await stage.ask(post(message(), b"/mcp/up", head(method="tools/call", name=name)))
    assert got.status == 200
    assert stage.upstream.received[0].all(b"mcp-name") == [name.encode()]


async def test_a_batch_and_a_request_without_an_id_are_refused(stage: Stage) -> None:
    for body in (b"[" + message() + b"]", message(id=None), message(id=True), message(id=1.5)):
        got = await stage.ask(post(body, b"/mcp/up"))
        assert (got.status, error_of(got.body)["id"]) == (400, None)
    assert stage.upstream.received == []


async def test_a_limit_is_told_to_who_waits_for_the_answer(stage: Stage) -> None:
    assert stage.counters.decision is not None
    stage.counters.decision = Refused(Verdict.RATE_LIMITED)
    got = await stage.ask(post(message(id="a-1"), b"/mcp/up"))
    said = error_of(got.body)
    assert (got.status, said["id"], said["code"], said["data"]["reason"]) == (
        429, "a-1", -32000, "rate_limited",
    )  # fmt: skip
    assert "Try again in" in said["message"]


async def test_lists_of_models_and_budgets_know_a_tool_by_its_names(stage: Stage) -> None:
    stage.directory.caller = replace(CALLER, models=frozenset({"up/read*"}))
    got = await stage.ask(post(message(), b"/mcp/up"))
    assert (got.status, error_of(got.body)["data"]["reason"]) == (403, "model_not_allowed")
    stage.directory.caller = CALLER
    stage.directory.budgets_there = [
        Budget(1, "searches", "requests", 9, "day", tool="SEARCH", server="up"),
        Budget(2, "reads", "requests", 9, "day", tool="read"),
        Budget(3, "money", "money", 9, "day", server="up"),
    ]
    got = await stage.ask(post(message(), b"/mcp/up"))
    assert (got.status, error_of(got.body)["data"]["reason"]) == (403, "model_not_priced")
    stage.directory.prices["up/search"] = Vector(1, "USD", (0,) * len(KINDS), 2_000_000)
    stage.upstream.scripts.append([answer(RESULT)])
    assert (await stage.ask(post(message(), b"/mcp/up"))).status == 200
    [hold], [charge] = stage.counters.holds, stage.counters.charges
    assert (len(hold.budgets), hold.money, charge.money, charge.budget_tokens) == (
        2,
        2_000_000,
        2_000_000,
        0,
    )


async def test_a_session_belongs_to_the_organization_that_opened_it(stage: Stage) -> None:
    stage.upstream.scripts.append([answer(RESULT, b"Mcp-Session-Id: s-1\r\n")])
    got = await stage.ask(post(message("initialize"), b"/mcp/up"))
    assert dict(got.headers)[b"mcp-session-id"] == b"s-1"
    assert stage.objects.kept == {(CALLER.organization_id, session_of("up", b"s-1"))}
    mine = b"mcp-session-id: s-1\r\n"
    for ask in (post(message("tools/list"), b"/mcp/up", mine), post(message(), b"/mcp/up", mine)):
        stage.upstream.scripts.append([answer(RESULT)])
        assert (await stage.ask(ask)).status == 200
    stage.directory.caller = replace(CALLER, organization_id=2)
    for ask in (
        post(message(), b"/mcp/up", mine),
        *(post(b"", b"/mcp/up", mine).replace(b"POST", verb, 1) for verb in (b"GET", b"DELETE")),
    ):
        got = await stage.ask(ask)
        assert (got.status, error_of(got.body)["data"]["reason"]) == (404, "object_not_found")
    assert len(stage.upstream.received) == 3


async def test_a_servers_own_stream_passes_and_other_paths_are_nobodys(stage: Stage) -> None:
    stage.upstream.scripts.append([STREAM_HEAD, chunks(b": here\n\n")])
    got = await stage.ask(get(b"/mcp/up"))
    assert (got.status, got.body) == (200, b": here\n\n")
    assert stage.upstream.received[0].target == b"/v2/mcp"
    got = await stage.ask(post(message(), b"/mcp/down"))
    assert (got.status, error_of(got.body)["code"]) == (404, -32000)
    got = await stage.ask(post(message(), b"/mcp/up").replace(b"POST", b"PUT", 1))
    assert got.status == 405


@pytest.mark.parametrize(("public", "origin"), [("", "http://gateway"), ("https://llm.example.com",) * 2])
async def test_a_client_without_a_key_is_told_who_issues_one(public: str, origin: str) -> None:
    async with served(public_url=public) as stage:
        metadata = b"/.well-known/oauth-protected-resource"
        nobody = post(message(), b"/mcp/up").replace(b"authorization", b"x-other")
        assert (await stage.ask(get(metadata, b""))).status == 404
        assert dict((await stage.ask(nobody)).headers)[b"www-authenticate"] == b'Bearer realm="tollkeeper"'
        stage.tokens.issuers = ("https://login.example.com",)
        told = [value for name, value in (await stage.ask(nobody)).headers if name == b"www-authenticate"]
        where = f"{origin}/.well-known/oauth-protected-resource/mcp/up"
        assert told[-1] == f'Bearer resource_metadata="{where}"'.encode()
        got = await stage.ask(get(metadata + b"/mcp/up", b""))
        assert json.loads(got.body) == {
            "resource": f"{origin}/mcp/up", "authorization_servers": ["https://login.example.com"],
            "bearer_methods_supported": ["header"],
        }  # fmt: skip
        got = await stage.ask(get(metadata, b""))
        assert json.loads(got.body)["resource"] == origin
        for path in (b"/mcp/other", b"/v1/chat/completions"):
            assert (await stage.ask(get(metadata + path, b""))).status == 404
        assert stage.upstream.received == []
