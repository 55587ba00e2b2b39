"""Whether the servers of Redis that are there take calls, and keep them, as they say themselves.

Part of the composition root. What they say is looked at every few seconds: who refuses calls may be asked for
nothing meanwhile, and must be known to be well again.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress

from gateway.core.model import PARTITIONS
from gateway.core.wait import in_task
from gateway.counters.redis.info import WHY, facts_of, files_failing, refusal_in, replica_lags, why_refused
from gateway.counters.redis.wire import Wire, encode
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

ASK_S = 2.0
# What a server does not say of itself is known by what calls were answered, for so long.
ANSWERED = {"MISCONF", "NOREPLICAS"}
ANSWERED_S = 10.0
# By how much two clocks may differ.
CLOCK_OFF_S_MAX = 10.0


class RedisState:
    """`refusing` says of how many partitions calls are refused, by code; `taking`, of how many none are.

    `clock_off_s` is how far our clock is ahead of theirs, that of who differs most.
    """

    def __init__(
        self, wires: Wires, log: Callable[..., None], *, wall: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.refusing: Mapping[str, int] = {}
        self.taking = PARTITIONS
        self.clock_off_s = 0.0
        self._facts: list[dict[str, str]] = []
        self._wires, self._log, self._wall, self._seconds = wires, log, wall, seconds

    async def keep_asking(self, *, ask_s: float = ASK_S) -> None:
        """Ask until cancelled, and say when a server begins to refuse calls, and when none does any more."""
        while True:
            before = self.refusing
            await self.ask()
            for code in self.refusing.keys() - before.keys():
                self._log("redis refuses", code=code, why=WHY[code], level="error")
            if before and not self.refusing:
                self._log("redis takes everything again", level="info")
            await asyncio.sleep(ask_s)

    async def ask(self) -> None:
        """Ask each server once."""
        wires = self._wires.wires
        found = await asyncio.gather(*(self._asked(wire) for wire in wires))
        refusing, taking, off_s = Counter[str](), 0, 0.0
        for wire, (facts, ahead_s) in zip(wires, found, strict=True):
            by_itself = why_refused(facts)
            if code := by_itself or self._answered(wire):
                refusing[code] += len(wire.partitions)
            if wire.available and not by_itself:
                taking += len(wire.partitions)
            off_s = max(off_s, ahead_s, key=abs)
        self.refusing, self.taking, self.clock_off_s = refusing, taking, off_s
        self._facts = [facts for facts, _ in found if facts]

    @property
    def why(self) -> str:
        """Why calls are refused, in words; empty where none are."""
        return why(self.refusing)

    def snapshot(self) -> dict[str, object]:
        """What metrics say of it, in any process."""
        return {
            "partitions_refusing": [*self.refusing.items()],
            "partitions_taking": self.taking,
            "clock_offset_seconds": [("redis", self.clock_off_s)],
        }

    def figures(self) -> dict[str, object]:
        """What metrics say of the servers themselves: once, by the keeper. Of several, the worst."""
        memory = [[int(one.get(name) or 0) for name in ("used_memory", "maxmemory")] for one in self._facts]
        if not memory:
            return {}
        used, most = max(memory, key=lambda one: (one[0] / one[1] if one[1] else 0.0, one[0]))
        failing = Counter(file for facts in self._facts for file in files_failing(facts))
        lags = [lag for facts in self._facts for lag in replica_lags(facts)]
        return {
            "redis_memory_used_bytes": used,
            "redis_memory_max_bytes": most,
            "redis_files_failing": [(file, failing[file]) for file in ("append_only", "snapshot")],
            "redis_replicas": min(int(one.get("connected_slaves") or 0) for one in self._facts),
            **({"redis_replica_lag_seconds": max(lags)} if lags else {}),
        }

    async def _asked(self, wire: Wire) -> tuple[dict[str, str], float]:
        """What a server says, and how far our clock is ahead of its own."""
        began = self._wall()
        with suppress(CountersUnavailable):
            answer = await in_task(wire.send(encode(b"INFO"), at_once=True, upkeep=True))
            facts = facts_of(answer)
            theirs, now = facts.get("server_time_usec", ""), self._wall()
            if theirs.isdecimal() and began <= now:
                at = int(theirs) / 1e6
                return facts, began - at if at < began else min(0.0, now - at)
            return facts, 0.0
        return {}, 0.0

    def _answered(self, wire: Wire) -> str:
        """By which code calls were refused lately, or why there is no connection."""
        code, at = wire.refusal
        if wire.available and code in ANSWERED and self._seconds() - at < ANSWERED_S:
            return code
        return "" if wire.available else refusal_in(wire.trouble)


def why(codes: Mapping[str, float]) -> str:
    """Codes by which Redis refuses calls, in words."""
    return ", ".join(f"{code}: {WHY.get(code, 'Redis refuses calls')}" for code in sorted(codes))
