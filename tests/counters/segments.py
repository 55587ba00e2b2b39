"""Files of the settlement log as tests read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from gateway.counters.settlement_log.log import ACKNOWLEDGED, Block, Record, SegmentReader, records_in


@dataclass
class Contents:
    """What a file holds."""

    understood: bool = True
    damaged_blocks: int = 0
    torn_bytes: int = 0
    waiting: dict[int, int] = field(default_factory=dict)


@contextmanager
def reading(data: bytes) -> Iterator[SegmentReader]:
    """What reads a file of these bytes."""
    descriptor = os.memfd_create("segment")
    try:
        os.write(descriptor, data)
        with closing(SegmentReader(descriptor, len(data))) as one:
            yield one
    finally:
        os.close(descriptor)


def contents_of(data: bytes) -> Contents:
    """What a file holds, read to its end."""
    with reading(data) as one:
        waiting = one.waiting()
        return Contents(one.understood, one.damaged_blocks, one.torn_bytes, waiting)


def blocks_of(data: bytes) -> list[Block]:
    """The sound blocks of a file, read piece by piece."""
    with reading(data) as one:
        return [block for piece in iter(one.piece, []) for block in piece]


def answered(data: bytes) -> list[Record]:
    """What the counters have answered of a file."""
    return [one for block in blocks_of(data) if block.kind == ACKNOWLEDGED for one in records_in(block)]
