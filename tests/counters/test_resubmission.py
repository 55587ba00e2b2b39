"""What Redis did not acknowledge, or forgets, is settled once when it is back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import HoldRequest, Service, Settled, Settlement
from gateway.counters import keys, packing
from gateway.counters.directory import Directory
from gateway.counters.quota import Counters
from gateway.counters.resubmission import Resubmitter
from gateway.counters.settlement_log import SettlementLog
from gateway.counters.wire import Wire
from gateway.errors import CountersUnavailable
from tests.builders import CHAT, CREDITS, ONE_TIME, TTL_MS, UNITS, World, driven, new_id, settlement_log
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect, eventually


@dataclass(slots=True)
class Worker:
    """A worker's counters with their log, and who empties it."""

    world: World
    wire: Wire
    log: SettlementLog
    counters: Counters
    resubmitter: Resubmitter

    async def settle(self, request: HoldRequest, tokens: int, **used: Any) -> Settled:
        settlement = Settlement(
            request.caller,
            request.request_id,
            request.user,
            request.service,
            charge=True,
            tokens=tokens,
            **used,
        )
        settled: Settled = await driven(self.counters.settle(settlement))
        return settled

    async def look(self) -> None:
        """One look at everything, adoption included."""
        self.resubmitter._adopted_at = 0.0
        await self.resubmitter.look()


Hire = Callable[..., Any]


@pytest.fixture
async def hire(connect: Connect, tmp_path: Path) -> AsyncIterator[Hire]:
    logs: list[SettlementLog] = []

    async def hired(world: World, folder: Path = tmp_path / "settlements") -> Worker:
        wire = await connect(world.url)
        log = settlement_log(folder)
        logs.append(log)
        took = dict.fromkeys(("reserve", "settle", "extend"), lambda _: None)
        counters = Counters(wire, Directory(wire, time.monotonic), TTL_MS, time.monotonic, took, log=log)
        return Worker(world, wire, log, counters, Resubmitter(wire, log, time.monotonic, print))

    yield hired
    for log in logs:
        await log.close()


def abandon(log: SettlementLog) -> None:
    """What a worker that is killed leaves: its files, unlocked."""
    for segment in log.files.segments:
        segment.leave()
    log.files.segments.clear()


def hold(world: World, service: Service = CHAT, user: str = "", credits_: int = 0) -> HoldRequest:
    return world.reserve(need=10, service=service, user=user, credits_=credits_).request


def used(world: World) -> list[tuple[str, int]]:
    return [(event.source, event.amount) for event in world.events() if event.source]


@pytest.mark.parametrize("service", [CHAT, CREDITS, ONE_TIME, UNITS], ids=lambda one: str(one.key))
@pytest.mark.parametrize("user", ["", "ünï¢ode\r\n$5"])
async def test_what_was_spooled_is_settled_with_all_it_carried(
    world: World, hire: Hire, service: Service, user: str
) -> None:
    worker = await hire(world)
    world.plan(100)
    world.grant("credits", 100)
    request = hold(world, service, user, 5)
    world.client.set(keys.marker(world.p), packing.marker(b"0" * 40, 1, 1))
    metadata, attribution = b'{"a":"\r\n"}', "1\t2\tv\n"
    carried = {"credits": 5, "units": 2, "metadata": metadata, "attribution": attribution}
    assert await worker.settle(request, 7, **carried) is Settled.SPOOLED
    assert (worker.log.waiting, world.slots(user)[2]) == (1, 1)
    with pytest.raises(CountersUnavailable):
        await worker.look()
    world.mark()
    await worker.look()
    assert (worker.log.waiting, worker.resubmitter.resubmitted) == (0, 1)
    event = world.events()[-1]
    assert (event.source, event.user, event.metadata, event.attribution) == (
        request.request_id, user, metadata, attribution,
    )  # fmt: skip
    assert world.slots(user) == [0, 0, 0, 0]
    before = world.events()
    await worker.look()
    assert world.events() == before
