"""The holds of calls under way: renewed while they live, raised where a stream has used one up.

Many are asked for in one call of `extend`, by partition. What one of them holds is noted on it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.core.calls.tariff import extended
from gateway.core.model import Observed, Verdict
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.wire import encode_script
from gateway.counters.redis.wires import Wires
from gateway.errors import CountersUnavailable

EXTEND_BATCH_MAX = 64
EXTEND_MARGIN_TOKENS = 256
OUTGROWN_S = 0.02
MISSED_S = 0.5
CUT = 2


class LiveHolds:
    """Those of one worker. `took` is told the seconds that `extend` took."""

    def __init__(
        self,
        wires: Wires,
        allowances: Allowances,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Callable[[float], None],
    ) -> None:
        self._wires, self._allowances = wires, allowances
        self._ttl_ms, self._clock, self._extend_took = hold_ttl_ms, clock, took
        self._live: dict[str, Observed] = {}
        self._outgrown: dict[str, Observed] = {}
        self._missed = False
        self._extending: asyncio.Task[None] | None = None

    @property
    def live(self) -> int:
        """How many calls are watched."""
        return len(self._live)

    def watch(self, observed: Observed) -> None:
        """Keep this live call's hold from its deadline until `unwatch`."""
        self._live[observed.request_id] = observed

    def unwatch(self, observed: Observed) -> None:
        """The call is over; it settles itself."""
        self._live.pop(observed.request_id, None)
        self._outgrown.pop(observed.request_id, None)

    def outgrown(self, observed: Observed) -> None:
        """This watched call has used up its hold: extend it shortly, together with others."""
        if self._allowances.outgrown(observed, EXTEND_MARGIN_TOKENS):
            return
        self._outgrown[observed.request_id] = observed
        if self._extending is None or self._extending.done():
            self._extending = asyncio.get_running_loop().create_task(self._extend_outgrown())

    async def keep_extending(self) -> None:
        """Renew every live hold three times a lifetime, until cancelled; what was missed, soon."""
        while True:
            await asyncio.sleep(MISSED_S if self._missed else self._ttl_ms / 3000)
            self._missed = False
            await self.extend_all()

    async def extend_all(self) -> None:
        """Renew every live hold once, in bounded batches by partition."""
        await self._extend_each(list(self._live.values()))

    async def _extend_outgrown(self) -> None:
        while self._outgrown:
            await asyncio.sleep(OUTGROWN_S)
            outgrown, self._outgrown = self._outgrown, {}
            await self._extend_each(list(outgrown.values()))

    async def _extend_each(self, observations: list[Observed]) -> None:
        by_partition: dict[int, list[Observed]] = {}
        for observed in observations:
            by_partition.setdefault(observed.caller.partition, []).append(observed)
        for partition, live in by_partition.items():
            for start in range(0, len(live), EXTEND_BATCH_MAX):
                await self._extend(partition, live[start : start + EXTEND_BATCH_MAX])

    async def _extend(self, partition: int, live: list[Observed]) -> None:
        calls = [(one, EXTEND_MARGIN_TOKENS) for one in live]
        wire = self._wires.of(partition)
        keys, arguments = packing.extend(wire.run_id, self._ttl_ms, partition, calls)
        started = self._clock()
        try:
            answer = await in_task(wire.send(encode_script("extend", keys, arguments)))
        except CountersUnavailable:
            self._missed = True
            return
        self._extend_took(self._clock() - started)
        self._missed = self._missed or packing.code_of(cast("bytes", answer)) == Verdict.UNVERIFIED
        answers = packing.extended(cast("bytes", answer))
        for one, (tokens, credits_, exhausted, money, raw_tokens) in zip(live, answers, strict=False):
            if tokens >= 0:
                extended(one, tokens, credits_, money, raw_tokens)
                one.exhausted, one.cut = exhausted > 0, exhausted == CUT
