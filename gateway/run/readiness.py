"""Whether something a process depends on answers, told within a bound: a probe never hangs with it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from gateway.local import ports
from gateway.run.vitals import full_disk
from gateway.settings.settings import Settings
from gateway.telemetry import snapshot_files as tallies

ANSWER_S_MAX = 2.0


class Probe:
    """Ask one dependency, once at a time: what is still being asked is asked no second time."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], *, answer_s_max: float = ANSWER_S_MAX) -> None:
        self._ask = ask
        self._answer_s_max = answer_s_max
        self._asking: asyncio.Task[bool] | None = None

    async def answers(self) -> bool:
        """Whether it said yes within the bound; an error is a no."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(self._told())
        done, _ = await asyncio.wait({self._asking}, timeout=self._answer_s_max)
        return bool(done) and self._asking.result()

    async def _told(self) -> bool:
        try:
            return await self._ask()
        except Exception:  # noqa: BLE001  # whatever it meets, it does not answer
            return False


async def of_gateway(settings: Settings, port: int) -> dict[str, bool]:
    """What a lone gateway needs, and whether it is there: Redis by what the workers found themselves."""
    found = tallies.collect(settings.metrics_dir)
    cut_off = found.get("counters_breaker_open", settings.workers)
    unverified = found.get("counters_unverified", settings.workers)
    return {
        "gateway": await ports.answers(ports.reachable_host(settings.gateway_host), port, 1.0),
        "redis": cut_off < settings.workers,
        "counters_verified": unverified < settings.workers,
        "disk": not full_disk(settings),
    }
