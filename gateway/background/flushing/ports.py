"""What the flusher asks of Redis and of PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from gateway.background.flushing.passes import Entries, Streams
from gateway.core.accounts.outbox import Batch, FlushReport, History, Judged, Owner


class Outbox(Protocol):
    """The streams the scripts append to, one a partition, and those of what waits, one an organization."""

    @property
    def read_under(self) -> bytes:
        """The run id of the server that was read from last."""
        ...

    async def read(self, after: Mapping[int, bytes], count: int) -> Streams:
        """Up to `count` entries (id, packed) of each partition after an entry id; b"" is the start."""
        ...

    async def acknowledge(
        self, entries: Mapping[int, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """Delete stored entries, and forget the ids of control writes that are stored."""
        ...

    async def parked(self, partitions: Iterable[int]) -> Mapping[Owner, int]:
        """How many entries are set aside, of whom; asked after a `read` it counts all moved before that."""
        ...

    async def read_parked(self, after: Mapping[Owner, bytes], count: int) -> Mapping[Owner, Entries]:
        """Up to `count` entries that wait, of each owner; nothing of one that cannot be read now."""
        ...

    async def park(self, entries: Mapping[Owner, Sequence[bytes]]) -> Mapping[Owner, int]:
        """Move entries aside that wait, in their order; answers how many wait of each owner by then."""
        ...

    async def acknowledge_parked(
        self, entries: Mapping[Owner, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """Delete stored entries that waited apart, and forget ids likewise."""
        ...


class Writer(Protocol):
    """Stores a batch in one transaction; raises a TollkeeperError while it cannot."""

    async def write(self, batch: Batch, history: History) -> FlushReport:
        """Store what continues its account; the report says what may be deleted, what is outdated."""
        ...

    async def epochs(self) -> Mapping[int, int]:
        """The epoch of each partition that was ever verified, as of now."""
        ...

    async def judged(self, partitions: Iterable[int]) -> Mapping[int, Judged]:
        """Under what entries of these partitions would be checked now."""
        ...

    async def locked(self, partitions: Iterable[int]) -> frozenset[int]:
        """Of which of these partitions somebody has the lock now."""
        ...
