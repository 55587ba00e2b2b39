"""A worker's counters over a real wire to a real server."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from gateway.core.model import Admitted, HoldRequest, Refused, Service, Settlement, SettleResult
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.redis import keys
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import SettlementLog
from tests.builders import CHAT, CREDITS, ONE_TIME, TTL_MS, UNITS, World, driven, new_id, settlement_log
from tests.counters.conftest import Connect


@dataclass(slots=True)
class Worker:
    """One worker's counters in a world."""

    world: World
    wire: RedisConnection
    directory: Directory
    counters: Counters
    log: SettlementLog
    took: list[str] = field(default_factory=list)

    def request(
        self, need: int = 0, *, service: Service = CHAT, user: str = "", credits_: int = 0
    ) -> HoldRequest:
        return HoldRequest(self.world.caller, new_id(), user, service, need, need, credits_)

    async def reserve(self, request: HoldRequest) -> Admitted | Refused:
        decision: Admitted | Refused = await driven(self.counters.reserve(request))
        return decision

    async def settle(
        self, request: HoldRequest, tokens: int, *, charge: bool = True, **used: Any
    ) -> SettleResult:
        settlement = Settlement(
            request.caller,
            request.request_id,
            request.user,
            request.service,
            charge=charge,
            tokens=tokens,
            **used,
        )
        settled: SettleResult = await driven(self.counters.settle(settlement))
        return settled


def noted(took: list[str], verb: str) -> Callable[[float], None]:
    return lambda _seconds: took.append(verb)


def counters_on(
    wire: RedisConnection,
    directory: Directory,
    log: SettlementLog,
    took: Callable[[str], Callable[[float], None]],
    **more: Any,
) -> Counters:
    """A worker's counters; `took` makes of each verb what is told its seconds."""
    verbs = {verb: took(verb) for verb in ("reserve", "settle", "extend")}
    return Counters(wire, directory, TTL_MS, time.monotonic, verbs, log=log, **more)


Hire = Callable[..., Any]


@pytest.fixture
def hire(connect: Connect, tmp_path: Path) -> Hire:
    """A worker with its own wire, directory and counters."""

    async def hired(world: World, **more: Any) -> Worker:
        wire = await connect(world.url, **more)
        directory = Directory(wire, time.monotonic)
        took: list[str] = []
        log = settlement_log(tmp_path / "settlements")
        counters = counters_on(wire, directory, log, partial(noted, took))
        world.client.set(keys.CATALOGUE, encode_catalogue(1, [CHAT, CREDITS, ONE_TIME, UNITS]))
        await driven(directory.refresh())
        return Worker(world, wire, directory, counters, log, took)

    return hired
