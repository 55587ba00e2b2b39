"""Which hash slot a key stands in, and what one server of a cluster has of all partitions. Pure.

The rule is that of https://valkey.io/topics/cluster-spec/: CRC16 of what stands between the first braces, or
of the whole name.
"""

from __future__ import annotations

from binascii import crc_hqx
from dataclasses import dataclass
from typing import Final

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys

SLOTS: Final = 16_384


def slot_of(name: bytes) -> int:
    """The slot of a key."""
    start = name.find(b"{") + 1
    end = name.find(b"}", start) if start else -1
    return crc_hqx(name[start:end] if end > start else name, 0) % SLOTS


# Of each partition: where all that is its own stands.
SLOT_OF_PARTITION: Final = tuple(slot_of(keys.marker(one).encode()) for one in range(PARTITIONS))


@dataclass(frozen=True, slots=True)
class Part:
    """The partitions that a server has; beside its `anchor` stands what is said of all of them."""

    partitions: tuple[int, ...]
    anchor: int


WHOLE: Final = Part(tuple(range(PARTITIONS)), 0)
