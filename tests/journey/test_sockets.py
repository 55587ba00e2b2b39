"""Responses over WebSockets on a whole stage: no crowd of turns gets past a budget, each turn has its row."""

from __future__ import annotations

import asyncio
from collections import Counter

import aiohttp

from tests.journey.budgets import MODEL, Spender, cost
from tests.stage import Stage
from tests.waiting import wait_until

ONE = cost(20, 40)
SOCKETS, TURNS = 20, 25
ENDS = {"response.completed", "error"}


async def turns(url: str, key: str, count: int) -> Counter[tuple[str, str]]:
    """So many turns on one socket: how each ended, and why."""
    headers = {"authorization": f"Bearer {key}", "x-demo-usage": "20,40"}
    create = {"type": "response.create", "model": MODEL, "input": "hello there", "max_output_tokens": 64}
    ends: Counter[tuple[str, str]] = Counter()
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/v1/responses", headers=headers) as socket,
    ):
        for _ in range(count):
            await socket.send_json(create)
            while (said := await socket.receive_json(timeout=60))["type"] not in ENDS:
                pass
            headers = said.get("error", {}).get("headers", {})
            ends[said["type"], headers.get("x-tollkeeper-reason", "")] += 1
    return ends


async def crowd(url: str, key: str) -> Counter[tuple[str, str]]:
    each = await asyncio.gather(*(turns(url, key, TURNS) for _ in range(SOCKETS)))
    return sum(each, Counter())


def test_500_turns_on_20_sockets_spend_no_more_than_a_budget_has(stage: Stage) -> None:
    spender = Spender(stage)
    budget = spender.budget(20 * ONE)
    spender.known(budget)
    ends = asyncio.run(crowd(stage.gateway_url, spender.key))
    assert sum(ends.values()) == SOCKETS * TURNS
    served = ends["response.completed", ""]
    assert 1 <= served <= 20
    assert set(ends) <= {("response.completed", ""), ("error", "quota_held"), ("error", "budget_exceeded")}
    spender.idle(budget)
    assert spender.used(budget) == served * ONE
    rows = f"select count(*) from call where tenant_id = {spender.tenant} and status = 200"
    wait_until(lambda: stage.rows(rows) == [(served,)])
