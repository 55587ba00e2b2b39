"""The counters of a worker whose Redis is a cluster: those of each primary, by the partition of a call.

What a call meets is what it meets where there is one server: its primary's breaker, history and queue, and no
other's. A worker without a cluster has `Counters` alone.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway.core.model import Decision, HoldRequest, Observed, Settled, Settlement
from gateway.core.wait import Wait
from gateway.counters.admission.crowded import Crowded
from gateway.counters.admission.live import LiveHolds
from gateway.counters.admission.quota import Counters
from gateway.counters.admission.releasing import Releases
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.shards import Shards
from gateway.counters.redis.wire import Wire

T = TypeVar("T")


class _OfWires(Generic[T]):
    """What there is one of for each wire, made by `make` when it is first asked for."""

    def __init__(self, shards: Shards, make: Callable[[Wire], T]) -> None:
        self._shards, self._make = shards, make
        self._made: dict[Wire, T] = {}

    def of(self, partition: int) -> T:
        """That of the primary of a partition."""
        wire = self._shards.of(partition)
        found = self._made.get(wire)
        if found is None:
            there = set(self._shards.wires)
            self._made = {one: made for one, made in self._made.items() if one in there}
            found = self._made[wire] = self._make(wire)
        return found


class ShardedCounters:
    """`make` makes the counters of a wire; `live` are the holds of calls under way, wherever they are.

    What is owed to a primary that was replaced is owed to who has the partition then.
    """

    def __init__(
        self,
        shards: Shards,
        make: Callable[[Wire], Counters],
        live: LiveHolds,
        crowded: Crowded,
        *,
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.crowded = crowded
        self._shards, self._make, self._live = shards, make, live
        self._of = _OfWires(shards, self._begun).of
        self._releases = Releases(shards, self._send_release, hold_ttl_s, clock)

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

    def _begun(self, wire: Wire) -> Counters:
        counters = self._make(wire)
        counters.elsewhere, counters.handed_over = self._of, self._shards.handed_over
        counters.releases, counters.crowded = self._releases, self.crowded
        return counters

    def _send_release(self, release: Settlement) -> Wait[Reply]:
        return self._of(release.caller.partition).send_release(release)
