"""One write of the settlement log: what goes where, what is synced with it, who waits for it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.core.wait import Wait
from gateway.counters.settlement_log.segment_file import Segment
from gateway.errors import CountersUnavailable


@dataclass(slots=True)
class Turn:
    """What one write takes along: bytes by file and place, and who waits for them."""

    writes: list[tuple[Segment, int, bytes]] = field(default_factory=list)
    spooled: list[tuple[Segment, int, int]] = field(default_factory=list)
    waits: list[Wait[None]] = field(default_factory=list)
    synced: list[Segment] = field(default_factory=list)
    notes: int = 0


def write(turn: Turn) -> None:
    """In the log's thread: write, then sync what is to be certain."""
    for segment, at, data in turn.writes:
        segment.write(at, data)
    for segment in turn.synced:
        segment.sync()


def give_up(waits: Iterable[Wait[None]]) -> None:
    """Tell who waits that it was not kept, whatever the disk still does."""
    for wait in waits:
        wait.fail(CountersUnavailable())
