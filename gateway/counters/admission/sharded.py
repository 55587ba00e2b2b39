"""The counters of a worker whose Redis is a cluster: one `Counters` for each primary, chosen by partition.

A call depends only on the circuit breaker, history and queue of its own primary. Without a cluster a worker
has one `Counters`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from gateway.core.model import Admitted, HoldExtension, HoldRequest, Refused, Settlement, SettleResult
from gateway.core.wait import Wait
from gateway.counters.admission.account_limit import AccountLimit
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.live_holds import LiveHolds
from gateway.counters.admission.releases import Releases
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.cluster import Shards
from gateway.counters.redis.connection import RedisConnection

T = TypeVar("T")


class _PerConnection(Generic[T]):
    """One object for each connection to a primary, made by `make` when it is first needed."""

    def __init__(self, shards: Shards, make: Callable[[RedisConnection], T]) -> None:
        self._shards, self._make = shards, make
        self._made: dict[RedisConnection, T] = {}

    def of(self, partition: int) -> T:
        """Return the object made for the primary that has a partition; make it if it is missing."""
        wire = self._shards.of(partition)
        part = self._made.get(wire)
        if part is None:
            wires = set(self._shards.wires)
            self._made = {primary: made for primary, made in self._made.items() if primary in wires}
            part = self._made[wire] = self._make(wire)
        return part


class ShardedCounters:
    """The counters of all primaries. `make` makes those of one; `live` are the holds of all running calls.

    Releases pending for a primary that was replaced are sent to the partition's new one.
    """

    def __init__(
        self,
        shards: Shards,
        make: Callable[[RedisConnection], Counters],
        live: LiveHolds,
        crowded: AccountLimit,
        *,
        hold_ttl_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.crowded = crowded
        self._shards, self._make, self._live = shards, make, live
        self._of = _PerConnection(shards, self._begun).of
        self._releases = Releases(shards, self._send_release, hold_ttl_s, clock)

    def reserve(self, request: HoldRequest) -> Awaitable[Admitted | Refused]:
        return self._of(request.caller.partition).reserve(request)

    def settle(self, settlement: Settlement) -> Awaitable[SettleResult]:
        return self._of(settlement.caller.partition).settle(settlement)

    def watch(self, extension: HoldExtension) -> None:
        self._live.watch(extension)

    def unwatch(self, extension: HoldExtension) -> None:
        self._live.unwatch(extension)

    def request_extension(self, extension: HoldExtension) -> None:
        self._live.request_extension(extension)

    async def keep_extending(self) -> None:
        await self._live.keep_extending()

    def _begun(self, wire: RedisConnection) -> Counters:
        counters = self._make(wire)
        counters.of_new_primary, counters.wait_for_handover = self._of, self._shards.wait_for_handover
        counters.releases, counters.crowded = self._releases, self.crowded
        return counters

    def _send_release(self, release: Settlement) -> Wait[Reply]:
        return self._of(release.caller.partition).send_release(release)
