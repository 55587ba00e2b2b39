"""How far one pass over the outbox has read, and what it leaves to the next one. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from gateway.core.model import PARTITIONS

# Entries (id, packed) in stream order.
Entries = Sequence[tuple[bytes, bytes]]
Streams = Mapping[int, Entries]


class Pass:
    """One pass over the streams: how far each was read, and which wait for the next pass.

    A partition whose entries were read but not stored waits until the next pass reads them again: what
    is written is always contiguous. `epochs` is what was known before, `left` what waits already, `batches`
    how many were begun.
    """

    def __init__(
        self, epochs: Mapping[int, int], left: frozenset[int], partitions: Iterable[int] = range(PARTITIONS)
    ) -> None:
        self.epochs, self.batches = epochs, 0
        self.after = dict.fromkeys(set(partitions) - left, b"")
        self.left = left

    def note_read(self, streams: Streams, count: int) -> None:
        """Remember how far the streams were read; one that gave less than `count` is finished."""
        for partition in list(self.after):
            entries = streams.get(partition, ())
            if len(entries) < count:
                del self.after[partition]
            else:
                self.after[partition] = entries[-1][0]

    def read_only(self, partitions: Collection[int]) -> None:
        """Read on of these partitions alone: others are flushed elsewhere from now on."""
        for partition in self.after.keys() - partitions:
            del self.after[partition]

    def leave(self, partitions: frozenset[int]) -> None:
        """Leave these partitions to the next pass."""
        self.left |= partitions
        for partition in partitions:
            self.after.pop(partition, None)
