"""Tools of a real server under a budget: calls at once are no more than it has, as the server counts them.

MCP's own conformance suite finds through a gateway what it finds at the server itself.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, web

from tests.conftest import free_port
from tests.journey.clients import node_with
from tests.journey.stack import Stack
from tests.journey.test_bound_services import Lone
from tests.waiting import HUNG_S, eventually, wait_until

CALLS, ALLOWED, AT_ONCE = 500, 100, 100
PRICE = "0.004"
SUITE = "@modelcontextprotocol/conformance@0.1.13", "@modelcontextprotocol/sdk@1.32.2"
SCENARIOS = 32
# Of the suite's calls each one of these is one, and nothing else of it costs anything.
TOOLS = {
    "simple_text", "image_content", "audio_content", "embedded_resource", "multiple_content_types",
    "error_handling", "tool_with_logging", "tool_with_progress", "sampling", "elicitation",
    "elicitation_sep1034_defaults", "elicitation_sep1330_enums", "reconnection",
}  # fmt: skip


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

    def served(self, port: int) -> AbstractAsyncContextManager[str]:
        return served("/deep/mcp", port, self.handle)


@asynccontextmanager
async def served(
    path: str, port: int, handle: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> AsyncIterator[str]:
    application = web.Application()
    application.router.add_route("*", path, handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    yield f"http://127.0.0.1:{port}{path}"
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
        assert one.process.wait(HUNG_S) == 0


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


async def shown_the_key(key: str, url: str, request: web.Request) -> web.StreamResponse:
    """A request of the suite, which has no key, passed on with one, and its answer as it comes."""
    fields = request.headers.copy()
    fields.popall("connection", None)
    fields["authorization"] = f"Bearer {key}"
    body = await request.read()
    async with (
        ClientSession(auto_decompress=False) as session,
        session.request(request.method, url, headers=fields, data=body or None) as got,
    ):
        answer = web.StreamResponse(status=got.status, headers=got.headers)
        await answer.prepare(request)
        async for part in got.content.iter_any():
            await answer.write(part)
        return answer


async def found_by_suite(clients: Path, url: str, folder: Path) -> dict[str, list[tuple[str, str]]]:
    """What each check of each scenario says about the server at an address."""
    program = clients / "node_modules/@modelcontextprotocol/conformance/dist/index.js"
    words = ["node", program, "server", "--url", url, "--suite", "all", "--output-dir", folder]
    run = await asyncio.create_subprocess_exec(*map(str, words), stdout=asyncio.subprocess.DEVNULL)
    try:
        await asyncio.wait_for(run.wait(), HUNG_S)
    finally:
        if run.returncode is None:
            run.kill()
    found = {}
    for file in folder.glob("*/checks.json"):
        match = re.fullmatch(r"server-(.+?)-\d{4}-\d\d-\d\dT.+", file.parent.name)
        assert match is not None
        checks = json.loads(file.read_bytes())
        found[match[1]] = [(one["id"], one["status"]) for one in checks if one["status"] != "INFO"]
    return found


@pytest.mark.nightly
async def test_the_conformance_suite_finds_what_it_finds_without_a_gateway(
    stack: Stack, gateway: tuple[str, int], tmp_path: Path
) -> None:
    clients = node_with(*SUITE)
    script = shutil.copy(Path(__file__).with_name("conformance.mjs"), clients)
    url, port = gateway
    owner, key = caller(stack)
    server = await asyncio.create_subprocess_exec("node", script, str(port), stdout=asyncio.subprocess.PIPE)
    try:
        assert server.stdout is not None
        assert await asyncio.wait_for(server.stdout.readline(), HUNG_S) == b"ready\n"
        direct = await found_by_suite(clients, f"http://127.0.0.1:{port}/deep/mcp", tmp_path / "direct")
        with_key = served("/mcp", free_port(), partial(shown_the_key, key, url))
        async with client(key) as session, with_key as front:
            await eventually(lambda: refused(session, url))
            through = await found_by_suite(clients, front, tmp_path / "through")
    finally:
        server.kill()
        await server.wait()
    assert len(direct) == SCENARIOS
    assert all(checks and "FAILURE" not in {said for _, said in checks} for checks in direct.values()), direct
    assert through == direct
    path = f"/calls?organization_id={owner}&limit=200"

    def charged() -> Counter[str]:
        return Counter(row["model"] for row in stack.admin("GET", path)[1]["items"] if row["units"])

    wait_until(lambda: charged() == Counter(f"hub/test_{name}" for name in TOOLS))


async def answers(session: ClientSession, url: str) -> bool:
    """Whether the gateway answers this caller yet."""
    try:
        return (await tell(session, url, "tools/list"))[0] == 200
    except OSError:
        return False


async def refused(session: ClientSession, url: str) -> bool:
    """Whether the server refuses a message without a session, through a gateway."""
    try:
        async with session.get(url) as got:
            return got.status == 400
    except OSError:
        return False
