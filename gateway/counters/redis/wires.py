"""Whom to ask what is of a partition, or of a key of everybody: one server, or the primary that has it."""

from __future__ import annotations

from typing import Protocol

from gateway.counters.redis.wire import Wire


class Wires(Protocol):
    """One wire, or the shards of a cluster."""

    def of(self, partition: int) -> Wire:
        """The wire to who has a partition."""
        ...

    def of_key(self, name: bytes) -> Wire:
        """The wire to who has a key."""
        ...
