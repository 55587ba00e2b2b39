"""Holds that no caller waits for any more: they are released as soon as Redis answers.

A `reserve` may be admitted after its caller gave up, and a release may get no answer. Pending releases are
remembered here until their holds expire, up to a maximum. Beyond it, or if this worker dies, a call's hold
ends at its deadline. The release of a hold with a longer life is also in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import cast

from gateway.core.model import HoldRequest, Settlement, SettleResult
from gateway.core.wait import Wait, in_task
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.errors import CountersUnavailable

RELEASES_MAX = 10_000
BATCH_MAX = 500
AGAIN_S, AGAIN_S_MAX = 0.1, 1.0
# A broken connection's last commands may run after the first release on the next one.
ASKED_MAX = 5
# Results of a release that is sent again: the hold or its account may appear.
_MAY_COME = frozenset({SettleResult.UNKNOWN, SettleResult.UNKNOWN_ACCOUNT})


@dataclass(slots=True)
class _PendingRelease:
    """A hold to release before its deadline; `asked` counts answers that the hold is unknown."""

    settlement: Settlement
    until: float
    sent: Wait[Reply] | None = None
    asked: int = 0


class Releases:
    """The releases that this worker has yet to send. `send` sends one, under the current run id."""

    def __init__(
        self,
        wires: RedisConnections,
        send: Callable[[Settlement], Wait[Reply]],
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self._wires, self._send, self._clock = wires, send, clock
        self._ttl_s, self._owed_max = hold_ttl_s, RELEASES_MAX
        self._owed: dict[str, _PendingRelease] = {}
        self._releasing: asyncio.Task[None] | None = None

    def owes(self, settlement: Settlement) -> bool:
        """Return whether the release of this hold is pending."""
        return settlement.request_id in self._owed

    def forget(self, request: HoldRequest) -> None:
        """Cancel the pending release of a hold, because its request is sent again to raise it."""
        if request.raises:
            self._owed.pop(request.request_id, None)

    def owe(self, settlement: Settlement, *, at_once: bool = False) -> None:
        """Release the settlement's hold when Redis is reachable; with `at_once`, before any other command."""
        before = self._owed.get(settlement.request_id)
        if before is not None and not settlement.service.id:
            return  # a pending release ends the hold whatever it was raised to; that of its head does not
        release = _PendingRelease(settlement, self._clock() + max(self._ttl_s, settlement.hold_ttl_ms / 1000))
        if at_once:
            release.sent = self._send(settlement)
        if len(self._owed) < self._owed_max:
            self._owed[settlement.request_id] = release
        if self._releasing is None or self._releasing.done():
            self._releasing = asyncio.get_running_loop().create_task(self._release())

    async def _release(self) -> None:
        pause = AGAIN_S
        while before := len(self._owed):
            there = ((name, release) for name, release in self._owed.items() if self._is_there(release))
            await self._release_some(dict(islice(there, BATCH_MAX)))
            now = self._clock()
            for request_id in [name for name, release in self._owed.items() if release.until <= now]:
                del self._owed[request_id]
            if self._owed:
                await asyncio.sleep(pause)
                pause = AGAIN_S if len(self._owed) < before else min(2 * pause, AGAIN_S_MAX)

    def _is_there(self, release: _PendingRelease) -> bool:
        """Return whether the primary that has the partition of the release `release` is connected."""
        return self._wires.of(release.settlement.caller.partition).connected

    async def _release_some(self, some: dict[str, _PendingRelease]) -> None:
        waits = [release.sent or self._send(release.settlement) for release in some.values()]
        for (request_id, release), wait in zip(some.items(), waits, strict=True):
            release.sent = None
            try:
                result = SETTLE_RESULTS.read(cast("bytes", await in_task(wait)), request_id)
            except CountersUnavailable:
                continue
            release.asked += result in _MAY_COME
            if result not in {SettleResult.UNVERIFIED, *_MAY_COME} or release.asked >= ASKED_MAX:
                self._owed.pop(request_id, None)
