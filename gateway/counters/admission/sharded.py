"""The counters of a worker whose Redis is a cluster: those of each primary, by the partition of a call.

What a call meets is what it meets where there is one server: its primary's breaker, history and queue, and no
other's. A worker without a cluster has `Counters` alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gateway.core.model import Decision, HoldRequest, Observed, Settled, Settlement
from gateway.counters.admission.live import LiveHolds
from gateway.counters.admission.quota import Counters
from gateway.counters.redis.shards import Shards
from gateway.counters.redis.wire import Wire


class ShardedCounters:
    """`make` makes the counters of a wire; `live` are the holds of calls under way, wherever they are."""

    def __init__(self, shards: Shards, make: Callable[[Wire], Counters], live: LiveHolds) -> None:
        self._shards, self._make, self._live = shards, make, live
        self._made: dict[Wire, Counters] = {}

    def reserve(self, request: HoldRequest) -> Awaitable[Decision]:
        """As `Counters.reserve`."""
        return self._of(request.caller.partition).reserve(request)

    def settle(self, settlement: Settlement) -> Awaitable[Settled]:
        """As `Counters.settle`."""
        return self._of(settlement.caller.partition).settle(settlement)

    def watch(self, observed: Observed) -> None:
        """As `LiveHolds.watch`."""
        self._live.watch(observed)

    def unwatch(self, observed: Observed) -> None:
        """As `LiveHolds.unwatch`."""
        self._live.unwatch(observed)

    def outgrown(self, observed: Observed) -> None:
        """As `LiveHolds.outgrown`."""
        self._live.outgrown(observed)

    async def keep_extending(self) -> None:
        """As `LiveHolds.keep_extending`."""
        await self._live.keep_extending()

    def _of(self, partition: int) -> Counters:
        wire = self._shards.of(partition)
        counters = self._made.get(wire)
        if counters is None:
            there = set(self._shards.wires)
            self._made = {one: made for one, made in self._made.items() if one in there}
            counters = self._made[wire] = self._make(wire)
            counters.elsewhere, counters.handed_over = self._of, self._shards.handed_over
        return counters
