"""What a worker runs by the clock that asks Redis, and nothing else of it, for tests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from gateway.core.model import PARTITIONS
from gateway.counters.admission.callers import Directory
from gateway.counters.admission.empty_accounts import SharedEmptyAccounts
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.shared_circuit_breaker import SharedCircuitBreaker
from gateway.counters.history_guard import HistoryGuards
from gateway.counters.keeper.moves import has_current_history
from gateway.counters.keeper.program_registry import ProgramRegistry
from gateway.counters.keeper.worker_reports import WorkerReports, unpack
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import wires_to
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.run.lifecycle import this_program
from tests.builders import settlement_log
from tests.counters.lease_stage import silent

WORKER = "worker"
# What is no worker's: how a test looks, and what servers ask each other.
OTHERS = {"info", "config|resetstat", "replconf", "ping", "psync", "hgetall", "cluster|myid"}


class Idle:
    """Over one server, or the primaries of a cluster."""

    def __init__(self, url: str, folder: Path, hears: tuple[bytes, ...] = HEARD) -> None:
        self.fences = HistoryGuards("pulse", time.monotonic, silent)
        self.wires = wires_to(
            parse_url(url), lambda where: RedisConnection(where, time.monotonic, hears=hears),
            begun=self.fences.guard,
            has_current_history=has_current_history,
        )  # fmt: skip
        self.log = settlement_log(folder)
        self.directory = Directory(self.wires, time.monotonic)
        self.cooling = SharedCircuitBreaker(self.wires, time.monotonic)
        self.empty = SharedEmptyAccounts(self.wires, time.monotonic)
        reports = WorkerReports(self.wires, WORKER, 0, time.monotonic)
        self.resubmitter = Resubmitter(self.wires, self.log, time.monotonic, silent, report=reports.report)
        self.programs = ProgramRegistry(self.wires, this_program("gateway"))

    @property
    def is_current(self) -> bool:
        """Whether it knows the catalogue and that all is verified."""
        return self.directory.verified and self.directory.version > 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run all of it."""
        loops = [
            self.fences.keep_looking(), self.directory.keep_fresh(), self.cooling.keep_sharing(),
            self.empty.keep_sharing(),
            self.resubmitter.run(), self.programs.keep_saying(),
        ]  # fmt: skip
        tasks = [asyncio.create_task(loop) for loop in loops]
        yield
        for task in tasks:
            task.cancel()

    async def close(self) -> None:
        await self.wires.close()
        await self.log.close()


def reported(client: Any, anchor: int = 0) -> tuple[int, ...]:
    """The epochs before which the worker says to a server that all was sent again."""
    raw = client.hget(keys.workers(anchor), WORKER)
    report = unpack(raw) if isinstance(raw, bytes) else None
    return report.epochs if report is not None else (0,) * PARTITIONS


def asked(client: Any) -> dict[str, int]:
    """How often each command was given since the last reset, but for those of `OTHERS`."""
    stats = client.info("commandstats")
    counts = {name.removeprefix("cmdstat_"): int(one["calls"]) for name, one in stats.items()}
    return {name: count for name, count in counts.items() if name not in OTHERS}
