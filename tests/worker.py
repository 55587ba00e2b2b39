"""A gateway worker's counters with their settlement log, without its sockets: settles, dies, comes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.core.model import HoldRequest, Settlement, SettleResult
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.log import BOUNDS, LogLimits, SettlementLog
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.errors import CountersUnavailable
from tests.builders import TTL_MS, Call, driven, settlement_log


@dataclass(slots=True)
class Worker:
    """The parts, and words for what it does."""

    wire: RedisConnection
    log: SettlementLog
    counters: Counters
    resubmitter: Resubmitter

    async def settle(self, call: Call | HoldRequest, tokens: int, **used: Any) -> SettleResult:
        """Charge a call as the data plane does."""
        request = call.request if isinstance(call, Call) else call
        settlement = Settlement(
            request.caller, request.request_id, request.user, request.service, True, tokens, **used
        )
        settled: SettleResult = await driven(self.counters.settle(settlement))
        return settled

    async def look(self) -> None:
        """One look at everything, adoption included."""
        self.resubmitter._adopted_at = 0.0
        await self.resubmitter.resubmit()

    async def write_no_more(self) -> None:
        """What is noted from now on stays in memory: the next write is an hour away."""
        await self.log.written()
        if self.log._timer is not None:
            self.log._timer.cancel()
        self.log._timer = asyncio.get_running_loop().call_later(3_600.0, lambda: None)

    def die(self) -> None:
        """Leave what a killed worker leaves: its files, unlocked; what was not written is gone."""
        for segment in self.log.segments:
            segment.leave()
        self.log.segments.clear()
        self.log._notes.clear()


@asynccontextmanager
async def worker_at(
    url: str,
    folder: Path,
    *,
    call_s: float = 1.0,
    worker_slot: str = "1",
    announce: Callable[[RedisConnection, str], Awaitable[None]] | None = None,
    bounds: LogLimits = BOUNDS,
) -> AsyncIterator[Worker]:
    """A worker whose wire is open; it sends again within `bounds`."""
    wire = RedisConnection(parse_url(url), time.monotonic, call_s=call_s)
    await wire.open()
    log = settlement_log(folder)
    took = dict.fromkeys(("reserve", "settle", "extend"), lambda _: None)
    counters = Counters(wire, Directory(wire, time.monotonic), TTL_MS, time.monotonic, took, log=log)
    worker_reports = WorkerReports(wire, worker_slot, time.time_ns(), time.monotonic)
    resubmitter = Resubmitter(
        wire,
        log,
        time.monotonic,
        lambda *_, **__: None,
        report=worker_reports.report,
        announce=announce,
        bounds=bounds,
    )
    worker = Worker(wire, log, counters, resubmitter)
    with suppress(CountersUnavailable):
        await worker.look()
    try:
        yield worker
    finally:
        await log.close()
        await wire.close()
