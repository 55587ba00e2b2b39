"""Sessions of the Realtime API on a whole stack: two do not share what is left for one, and a killed gateway
charges once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import aiohttp
import pytest

from tests import plain_http
from tests.features.websockets.live_upstream import LiveUpstream, playing
from tests.features.websockets.test_live import BEGUN, CREATE, CREATED, DELTA, LIMITS, done
from tests.journey.budgets import MODEL
from tests.journey.stack import ANSWER_S_MAX, Stack
from tests.waiting import wait_until


async def responding(socket: LiveUpstream) -> None:
    """Answer each request for a response; one that is to hang begins, and waits."""
    await socket.send(CREATED)
    while True:
        asked = await socket.until("response.create")
        await socket.send(BEGUN, DELTA)
        if asked["response"].get("instructions") != "hang":
            await socket.send(done(), LIMITS)


@pytest.fixture
def upstream() -> Iterator[str]:
    """The address of an upstream that speaks the Realtime API."""
    loop, sockets = asyncio.new_event_loop(), list[LiveUpstream]()
    server = loop.run_until_complete(asyncio.start_server(playing(responding, sockets), "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()


async def talk(stack: Stack, key: str, turns: int, instructions: str = "") -> list[str]:
    """The last events of so many turns; of one that hangs up to what it began with."""
    url = f"{stack.gateway_url}/v1/realtime?model={MODEL}"
    ends: list[str] = []
    async with (
        aiohttp.ClientSession(headers={"authorization": f"Bearer {key}"}) as session,
        session.ws_connect(url) as socket,
    ):
        for _ in range(turns):
            await socket.send_json(CREATE | {"response": {"instructions": instructions}})
            while (said := (await socket.receive_json(timeout=ANSWER_S_MAX))["type"]) not in {
                "response.done", "error",
            }:  # fmt: skip
                if instructions and said == "response.output_text.delta":
                    os.kill(stack.pids["gateway"][0], signal.SIGKILL)
                    await socket.receive(ANSWER_S_MAX)
                    return ["killed"]
            ends.append(said)
    return ends


async def both(stack: Stack, key: str) -> list[object]:
    return await asyncio.gather(*(talk(stack, key, 1) for _ in range(2)), return_exceptions=True)


def test_two_sessions_at_once_and_one_whose_gateway_is_killed(upstream: str, other_stack: Stack) -> None:
    with other_stack.switch.to(upstream):
        two_at_once_and_one_killed(other_stack)


def two_at_once_and_one_killed(stack: Stack) -> None:
    tenant, _ = stack.tenant(None)
    organization = stack.admin("GET", f"/tenants/{tenant}")[1]["organization_id"]
    key = stack.make("api-keys", tenant_id=tenant)["key"]
    budget = stack.make(
        "budgets", organization_id=organization, name="one", unit="requests", amount=1, interval="total"
    )

    def known() -> bool:
        headers = {"authorization": f"Bearer {key}"}
        told = plain_http.get(f"{stack.gateway_url}/.tollkeeper/usage", headers=headers, timeout=ANSWER_S_MAX)
        return "one" in {limit.get("name") for limit in told.json().get("limits", ())}

    wait_until(known)
    ends = asyncio.run(both(stack, key))
    refused = [one.status for one in ends if isinstance(one, aiohttp.WSServerHandshakeError)]
    assert (refused, [one for one in ends if isinstance(one, list)]) == ([429], [["response.done"]])
    stack.admin("DELETE", f"/budgets/{budget['id']}")
    wait_until(lambda: not known())
    assert asyncio.run(talk(stack, key, 1, "hang")) == ["killed"]
    wait_until(lambda: stack.quota(tenant)["tokens_held"] == 0)
    wait_until(lambda: asyncio.run(talk(stack, key, 2)) == ["response.done"] * 2)
    wait_until(lambda: stack.quota(tenant)["tokens_held"] == 0)
    rows = f"select count(*) from call where tenant_id = {tenant} and model = '{MODEL}' and status = 200"
    wait_until(lambda: stack.rows(rows + " and tokens = 253") == [(3,)])
    used = [row["amount"] for row in stack.ledger(tenant) if row["transaction_type"] == "consume"]
    assert used.count(253) == 3
    assert len(used) <= 4
    assert stack.quota(tenant)["tokens_used"] == sum(used)
