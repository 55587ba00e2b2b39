"""Tools of a real server under a budget: calls at once are no more than it has, as the server counts them."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web

from tests.conftest import free_port
from tests.journey.stack import STOP_S_MAX, Stack
from tests.journey.test_bound_services import Lone
from tests.waiting import eventually, wait_until

CALLS, ALLOWED, AT_ONCE = 500, 100, 100
PRICE = "0.004"


class ToolServer:
    """A small MCP server: it counts the calls of its tools, and answers each second one as a stream."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.sessions = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        message = await request.json()
        answer = {"jsonrpc": "2.0", "id": message.get("id")}
        if message["method"] == "initialize":
            self.sessions += 1
            headers = {"Mcp-Session-Id": f"session-{self.sessions}"}
            return web.json_response({**answer, "result": {"protocolVersion": "2025-06-18"}}, headers=headers)
        if message["method"] != "tools/call":
            return web.json_response({**answer, "result": {"tools": []}})
        self.calls[message["params"]["name"]] += 1
        answer["result"] = {"content": [{"type": "text", "text": "found"}]}
        if self.calls.total() % 2:
            return web.json_response(answer)
        return web.Response(
            text=f"event: message\ndata: {json.dumps(answer)}\n\n", content_type="text/event-stream"
        )

    @asynccontextmanager
    async def served(self, port: int) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_post("/deep/mcp", self.handle)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield
        await runner.cleanup()


@pytest.fixture(scope="module")
def gateway(stack: Stack) -> Iterator[tuple[str, int]]:
    """The address of a gateway of an MCP server, and where that one listens."""
    port = free_port()
    config = f"upstreams: {{hub: {{base_url: 'http://127.0.0.1:{port}/deep/mcp', family: mcp}}}}"
    with tempfile.TemporaryDirectory(prefix="tollkeeper-journey-") as folder:
        one = Lone(stack, Path(folder), config)
        yield f"{one.url}/mcp/hub", port
        one.process.terminate()
        assert one.process.wait(STOP_S_MAX) == 0


def caller(stack: Stack) -> tuple[int, str]:
    """A new organization and a key of it."""
    name = f"tools {os.urandom(4).hex()}"
    owner = stack.make("organizations", name=name)["id"]
    plan = stack.make("token-plans", name=name, total_amount=None)["id"]
    tenant = stack.make("tenants", name=name, organization_id=owner, plan_id=plan)["id"]
    return int(owner), str(stack.make("api-keys", tenant_id=tenant)["key"])


async def tell(session: ClientSession, url: str, method: str, **fields: str) -> tuple[int, dict[str, Any]]:
    message = {"jsonrpc": "2.0", "id": os.urandom(4).hex(), "method": method, "params": {}}
    if method == "tools/call":
        message["params"] = {"name": fields.pop("name"), "arguments": {}}
    async with session.post(url, json=message, headers=fields) as got:
        text = (await got.text()).partition("data: ")
        said = json.loads(text[2] or text[0])
        assert said["id"] == message["id"]
        return got.status, {**said, "session": got.headers.get("mcp-session-id")}


def client(key: str) -> ClientSession:
    headers = {"authorization": f"Bearer {key}", "accept": "application/json, text/event-stream"}
    return ClientSession(headers=headers, connector=TCPConnector(limit=AT_ONCE))


async def test_500_calls_at_once_against_100_are_100(stack: Stack, gateway: tuple[str, int]) -> None:
    url, port = gateway
    stack.make("prices", provider="mcp", model="hub/", match="prefix", currency="USD", request=PRICE,
               effective_from="2026-01-01T00:00:00Z")  # fmt: skip
    owner, key = caller(stack)
    budget = stack.make(
        "budgets", organization_id=owner, name="searches", unit="requests", amount=ALLOWED, interval="day",
        tool="search", server="HUB",
    )  # fmt: skip
    money = stack.make(
        "budgets", organization_id=owner, name="money", unit="money", amount="9.00", interval="day",
        server="hub",
    )  # fmt: skip
    server = ToolServer()
    async with server.served(port), client(key) as session:
        await eventually(lambda: answers(session, url))
        names = ["search", "Search"]
        got = await asyncio.gather(
            *(tell(session, url, "tools/call", name=names[n % 2]) for n in range(CALLS))
        )
        assert Counter(status for status, _ in got) == {200: ALLOWED, 429: CALLS - ALLOWED}
        assert server.calls.total() == ALLOWED
        refused = next(said["error"] for status, said in got if status == 429)
        assert refused["data"]["reason"] in {"budget_exceeded", "quota_held"}
        assert '"searches"' in refused["message"]
        # Another tool of the server is not in that budget, and costs its price as well.
        assert (await tell(session, url, "tools/call", name="read"))[0] == 200

    def used(one: dict[str, Any]) -> Any:
        return stack.admin("GET", f"/budgets/{one['id']}")[1]["used"]

    wait_until(lambda: (used(budget), used(money)) == (ALLOWED, "0.404"))
    path = f"/calls?organization_id={owner}&model=hub/read"
    [row] = wait_until(lambda: stack.admin("GET", path)[1]["items"])
    assert (row["cost"], row["units"], row["tokens"], row["route"]) == (PRICE, 1, 0, "/mcp/hub")


async def test_a_session_of_another_organization_is_nobodys(stack: Stack, gateway: tuple[str, int]) -> None:
    url, port = gateway
    (_, mine), (_, theirs) = caller(stack), caller(stack)
    server = ToolServer()
    async with server.served(port), client(mine) as session, client(theirs) as other:
        await eventually(lambda: answers(session, url))
        _, said = await tell(session, url, "initialize")
        fields = {"mcp-session-id": said["session"]}
        assert (await tell(session, url, "tools/list", **fields))[0] == 200
        status, refused = await tell(other, url, "tools/list", **fields)
        assert (status, refused["error"]["data"]["reason"]) == (404, "object_not_found")


async def answers(session: ClientSession, url: str) -> bool:
    """Whether the gateway answers this caller yet."""
    try:
        return (await tell(session, url, "tools/list"))[0] == 200
    except OSError:
        return False
