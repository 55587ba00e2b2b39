"""The holds of running calls: renewed while a call runs, and raised if a stream has used up its hold.

One call of `extend` renews many, by partition. Each granted amount is stored in its `HoldExtension`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

from gateway.core.calls.tariff import extended
from gateway.core.model import HoldExtension, Verdict
from gateway.core.wait import in_task
from gateway.counters.layouts import packing
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import encode_script
from gateway.errors import CountersUnavailable

EXTEND_BATCH_MAX = 64
EXTEND_MARGIN_TOKENS = 256
REQUESTED_S = 0.02
MISSED_S = 0.5
CUT, REFUSED = 2, 3


class LiveHolds:
    """The holds of one worker's running calls. `took` gets the seconds that each `extend` took."""

    def __init__(
        self,
        wires: RedisConnections,
        allowances: Allowances,
        hold_ttl_ms: int,
        clock: Callable[[], float],
        took: Callable[[float], None],
    ) -> None:
        self._wires, self._allowances = wires, allowances
        self._ttl_ms, self._clock, self._extend_took = hold_ttl_ms, clock, took
        self._live: dict[str, HoldExtension] = {}
        self._requested: dict[str, HoldExtension] = {}
        self._missed = False
        self._extending: asyncio.Task[None] | None = None

    @property
    def live(self) -> int:
        """The number of watched calls."""
        return len(self._live)

    def watch(self, extension: HoldExtension) -> None:
        """Renew the hold of this running call until `unwatch`."""
        self._live[extension.request_id] = extension

    def unwatch(self, extension: HoldExtension) -> None:
        """Stop renewing the hold of a call that ended and settles now."""
        self._live.pop(extension.request_id, None)
        self._requested.pop(extension.request_id, None)

    def request_extension(self, extension: HoldExtension) -> None:
        """Raise the hold of a watched call that has used all of it, together with other such calls."""
        if self._allowances.request_extension(extension, EXTEND_MARGIN_TOKENS):
            extension.end_request()
            return
        self._requested[extension.request_id] = extension
        if self._extending is None or self._extending.done():
            self._extending = asyncio.get_running_loop().create_task(self._extend_requested())

    async def keep_extending(self) -> None:
        """Renew the holds of all running calls three times in `ttl_ms`, or soon after a failure."""
        while True:
            await asyncio.sleep(MISSED_S if self._missed else self._ttl_ms / 3000)
            self._missed = False
            await self.extend_all()

    async def extend_all(self) -> None:
        """Renew every live hold once, in bounded batches by partition."""
        await self._extend_each(list(self._live.values()))

    async def _extend_requested(self) -> None:
        while self._requested:
            await asyncio.sleep(REQUESTED_S)
            requested, self._requested = self._requested, {}
            await self._extend_each(list(requested.values()))

    async def _extend_each(self, extensions: list[HoldExtension]) -> None:
        by_partition: dict[int, list[HoldExtension]] = {}
        for extension in extensions:
            by_partition.setdefault(extension.caller.partition, []).append(extension)
        for partition, live in by_partition.items():
            for start in range(0, len(live), EXTEND_BATCH_MAX):
                await self._extend(partition, live[start : start + EXTEND_BATCH_MAX])

    async def _extend(self, partition: int, live: list[HoldExtension]) -> None:
        calls = [(hold, EXTEND_MARGIN_TOKENS) for hold in live]
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
        for hold, (tokens, credits_, exhausted, money, budget_tokens) in zip(live, answers, strict=False):
            if tokens >= 0:
                refused = exhausted == REFUSED
                extended(hold, tokens, credits_, money, budget_tokens, refused=refused)
                if not refused:
                    hold.exhausted, hold.cut = exhausted > 0, exhausted == CUT
            hold.end_request()
