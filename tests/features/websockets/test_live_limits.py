"""A quota, credits and a budget of money are never passed by live sessions, at a real Redis, in any order."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gateway.core.accounts.budgets import Budget
from gateway.core.billing.money import CreditRates, ServicePricing
from gateway.core.billing.vector import Vector
from gateway.core.model import Service
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.redis import keys
from tests import search
from tests.builders import World, driven
from tests.features.websockets.test_live import connected, live, until
from tests.features.websockets.test_live_debts import (
    ASIDE,
    COMMIT,
    NOT_THERE,
    RUN,
    SOUND,
    TRANSCRIBED,
    Provider,
    leave,
    said,
)
from tests.http.stage import WITHIN_S, Stage
from tests.waiting import eventually
from tests.worker import worker_at

# A credit, and a nano-unit, is what a token costs.
BY_TOKEN = CreditRates(1_000_000, 1_000_000)
PREPAID = Service(1, "chat", "consumption", False, pricing=ServicePricing(per_million={"*": BY_TOKEN}))
PRICE = Vector(7, "USD", (1_000_000,) * 10)


class Limits:
    """The tenant's accounts in Redis, by what a test limits."""

    def __init__(self, world: World, stage: Stage, kind: str, most: int) -> None:
        self.world, self.kind = world, kind
        self.accounts: tuple[str, ...] = ()
        if kind == "strict":
            world.plan(most, admission="strict")
        elif kind == "prepaid":
            stage.directory.services["chat"] = PREPAID
            world.define_organization(credit_limit=most)
        else:
            stage.directory.prices["m"] = PRICE
            world.plan(None)
            stage.directory.budgets_there = [Budget(1, "money", "money", most, "day")]

    def _window(self, stage: Stage) -> Any:
        names = [name for request in stage.counters.holds for name in request.names]
        return self.world.windows(names[0])[0] if names else None

    def used(self, stage: Stage) -> int:
        if self.kind == "strict":
            return self.world.tenant.used
        if self.kind == "prepaid":
            return self.world.organization.credits_used
        window = self._window(stage)
        return 0 if window is None else int(window.used)

    def held(self, stage: Stage) -> int:
        if self.kind == "strict":
            return self.world.tenant.held
        if self.kind == "prepaid":
            return self.world.organization.credits_held
        window = self._window(stage)
        return 0 if window is None else int(window.held)


@asynccontextmanager
async def limited(
    valkey: str, folder: Path, kind: str, most: int, seed: float
) -> AsyncIterator[tuple[Stage, Provider, Limits]]:
    provider, world = Provider(random.Random(seed)), World(valkey)
    world.client.set(keys.CATALOGUE, encode_catalogue(1, [Service(1, "chat")]))
    async with worker_at(valkey, folder) as worker:
        await driven(worker.counters._directory.refresh())
        extending = asyncio.create_task(worker.counters.keep_extending())
        async with live(provider, counters=worker.counters) as (stage, _):
            stage.directory.caller = world.caller
            _record(stage, worker.counters)
            yield stage, provider, Limits(world, stage, kind, most)
        extending.cancel()
        with suppress(asyncio.CancelledError):
            await extending
    world.client.close()


def _record(stage: Stage, counters: Any) -> None:
    """Have the stage's own counters know what the real ones are asked for, which it checks at its end."""
    reserve, settle = counters.reserve, counters.settle

    async def reserved(request: Any) -> Any:
        decision = await reserve(request)
        if request.service.id and decision.verdict.value > 0:
            stage.counters.holds.append(request)
        return decision

    async def settled(settlement: Any) -> Any:
        if settlement.service.id:
            stage.counters.settlements.append(settlement)
        return await settle(settlement)

    counters.reserve, counters.settle = reserved, settled


def drawn(draw: random.Random) -> dict[str, Any]:
    whole = {"type": "response.create", "response": {}}
    return dict(draw.choice((ASIDE, whole, SOUND, COMMIT, NOT_THERE, said("word " * draw.randrange(1, 900)))))


async def until_over(socket: aiohttp.ClientWebSocketResponse) -> None:
    """Read up to the end of a response, a refusal, or the end of the session."""
    while (event := await socket.receive(timeout=WITHIN_S)).type is aiohttp.WSMsgType.TEXT:
        if json.loads(event.data)["type"] in {"response.done", "error"}:
            return


@pytest.mark.parametrize("kind", ["strict", "prepaid", "money"])
async def test_live_session_may_use_all_tokens_held_for_the_session_and_no_more(
    valkey: str, tmp_path: Path, kind: str
) -> None:
    """A strict plan, and credits, hold all that is left, as no message says how much it may come to."""
    async with limited(valkey, tmp_path, kind, 9_000, 1.0) as (stage, provider, limits):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(said("word " * 500))
            await socket.send_json({"type": "response.create", "response": {}})
            await until(socket, "response.done")
            await socket.send_json(said("word " * 9_000))
            assert (await socket.receive_json(timeout=WITHIN_S))["status"] in {402, 429}
        await eventually(lambda: limits.held(stage) == 0)
        assert limits.used(stage) == provider.tokens > 500


@pytest.mark.parametrize("kind", ["strict", "prepaid", "money"])
@pytest.mark.parametrize(("most", "fits"), [(4_000, False), (12_000, True)])
async def test_live_text_is_held_at_its_most_possible_tokens_under_a_strict_limit(
    valkey: str, tmp_path: Path, kind: str, most: int, fits: bool
) -> None:
    """The text has some 4,250 bytes, and 4,100 of them are a token each. At three bytes a token 4,000 would be enough."""
    async with limited(valkey, tmp_path, kind, most, 1.0) as (stage, provider, limits):
        budgets = stage.directory.budgets_there
        stage.directory.budgets_there = [replace(budget, hold="maximum") for budget in budgets]
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(said(RUN))
            await socket.send_json({"type": "response.create", "response": {}})
            event = await socket.receive_json(timeout=WITHIN_S)
            assert event.get("status") in ({None} if fits else {402, 429})
            await until(socket, "response.done")
        await eventually(lambda: limits.held(stage) == 0)
        assert limits.used(stage) == provider.tokens <= most
        assert (provider.tokens > len(RUN)) is fits


async def test_live_text_is_held_at_its_likely_tokens_by_a_budget_of_likely_holds(
    valkey: str, tmp_path: Path
) -> None:
    async with limited(valkey, tmp_path, "money", 4_000, 1.0) as (stage, provider, limits):
        async with connected(stage) as socket:
            await until(socket, "session.created")
            await socket.send_json(said(RUN))
            await socket.send_json({"type": "response.create", "response": {}})
            await until(socket, "response.done")
        await eventually(lambda: limits.held(stage) == 0)
        assert limits.used(stage) == provider.tokens > len(RUN)


@pytest.mark.parametrize("kind", ["strict", "prepaid", "money"])
async def test_refused_message_of_a_live_session_leaves_unheld_tokens_to_other_sessions(
    valkey: str, tmp_path: Path, kind: str
) -> None:
    path = "/v1/realtime?model=gpt-realtime"  # whose answers have a known maximum, which is held
    async with limited(valkey, tmp_path, kind, 50_000, 1.0) as (stage, _, limits):
        stage.directory.prices["gpt-realtime"] = PRICE
        async with connected(stage, path) as socket:
            await until(socket, "session.created")
            held = limits.held(stage)
            await socket.send_json(said("word " * 150_000))
            assert (await socket.receive_json(timeout=WITHIN_S))["status"] in {402, 429}
            assert limits.held(stage) == held < 25_000
            async with connected(stage, path) as other:
                await until(other, "session.created")


@pytest.mark.parametrize("kind", ["strict", "prepaid", "money"])
@pytest.mark.parametrize("seed", range(search.histories(3)))
async def test_random_live_messages_and_disconnects_of_many_clients_never_exceed_a_limit(
    valkey: str, tmp_path: Path, kind: str, seed: int
) -> None:
    draw = random.Random(search.another(seed))
    most = draw.choice((9_000, 25_000))
    async with limited(valkey, tmp_path, kind, most, draw.random()) as (stage, provider, limits):

        async def talk(one: random.Random) -> None:
            # For want of room, or said too late.
            with suppress(aiohttp.WSServerHandshakeError, ConnectionError):
                async with connected(stage, max_msg_size=0) as socket:
                    await until(socket, "session.created")
                    await socket.send_json({"type": "session.update", "session": TRANSCRIBED})
                    for _ in range(one.randrange(2, 15)):
                        await socket.send_json(drawn(one))
                        for _ in range(one.randrange(9)):
                            await asyncio.sleep(0)
                    if one.random() < 0.8:
                        await socket.send_json(ASIDE)
                        await until_over(socket)
                    await leave(socket, one.random() < 0.5)

        await asyncio.gather(*(talk(random.Random(draw.random())) for _ in range(3)))
        provider.release.set()
        await eventually(lambda: provider.made == provider.began)
        await eventually(lambda: not stage.connections)
        await eventually(lambda: limits.held(stage) == 0)
        assert limits.used(stage) == provider.tokens <= most
