"""Probes of the servers that a process depends on, each within a bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from gateway.core.wait import in_task
from gateway.counters.redis.address import (
    SILENT,
)
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable

ANSWER_S_MAX = 2.0


class Probe:
    """Queries one dependency; concurrent callers share one query."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], *, answer_s_max: float = ANSWER_S_MAX) -> None:
        self._ask = ask
        self._answer_s_max = answer_s_max
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Return whether the dependency reports that it is well; False after an error or a time-out."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._is_well())
        done, _ = await asyncio.wait({self._asking}, timeout=self._answer_s_max)
        return bool(done) and self._asking.result()

    async def _is_well(self) -> bool:
        try:
            return await self._ask()
        except Exception:  # noqa: BLE001  # any error counts as no answer
            return False


async def unanswered(
    wires: Sequence[RedisConnection], *, answer_s_max: float = ANSWER_S_MAX
) -> dict[str, str]:
    """Return by name each server of Redis that answers no PING in time, and why."""
    asked = {asyncio.create_task(_pinged(wire)): wire for wire in wires}
    late = (await asyncio.wait(asked, timeout=answer_s_max))[1] if asked else set()
    for task in late:
        task.cancel()
    silent = [wire for task, wire in asked.items() if task in late or not task.result()]
    return {wire.server: wire.missing.get(wire.server, SILENT) for wire in silent}


async def _pinged(wire: RedisConnection) -> bool:
    with suppress(CountersUnavailable):
        return await in_task(wire.send(encode(b"PING"))) == b"PONG"
    return False
