"""Whom to ask what is of a partition, or of a key of everybody: one server, or the primary that has it.

Whoever is handed these knows no more of a cluster than that. What there has to be one of for each server,
such as its fence, is made for each of `wires`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.counters.redis.wire import Wire


class Wires(Protocol):
    """One wire, or the shards of a cluster."""

    @property
    def wires(self) -> list[Wire]:
        """The wires to all servers that have partitions."""
        ...

    @property
    def partitions(self) -> Sequence[int]:
        """The partitions that they have."""
        ...

    @property
    def connected(self) -> bool:
        """Whether there is a connection to each of them."""
        ...

    @property
    def away(self) -> int:
        """Of how many partitions calls fail at once."""
        ...

    @property
    def trouble(self) -> str:
        """Why there is no connection to one of them; empty where there is."""
        ...

    def of(self, partition: int) -> Wire:
        """The wire to who has a partition."""
        ...

    def of_key(self, name: bytes) -> Wire:
        """The wire to who has a key."""
        ...

    def hear(self, changed: Callable[[bytes], None]) -> None:
        """Have the name of each key told that changed, whichever wire hears of it, beside other listeners."""
        ...

    def start(self) -> None:
        """Connect in the background, trying until closed."""
        ...

    async def open(self) -> None:
        """Connect, or raise CountersUnavailable; later losses are mended in the background."""
        ...

    async def connected_within(self, seconds: float) -> bool:
        """Wait, bounded, for a connection to each of them; whether there is one."""
        ...

    def refuse_eviction(self) -> None:
        """StartError where one of them would throw counters away when its memory is full."""
        ...

    async def close(self) -> None:
        """Close for good."""
        ...
