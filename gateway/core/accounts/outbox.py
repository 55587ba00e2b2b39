"""What goes from the outbox to the ledger and what comes back: batches and reports.

An entry is a tuple, not an object: tens of thousands a second pass through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.accounts.ledger import Event, EventKind, EventNote, MalformedEvent, decode

# Stream entry id, its packed value, and what that says; None where it does not follow the layout.
Entry = tuple[bytes, bytes, Event | None]
# Entries by partition, in stream order.
Batch = dict[int, list[Entry]]
# Where an entry stands in its stream, comparable: the milliseconds and the number of its id.
StreamPlace = tuple[int, int]
# What decides which entries of a partition wait: its epoch, how many accounts are in quarantine and went on.
Judged = tuple[int, int, int]
# Partition, organization, tenant.
Waiter = tuple[int, int, int]
# Partition, organization: whose entries are set aside.
Owner = tuple[int, int]


@dataclass(frozen=True, slots=True)
class History:
    """Of which history a batch is: the run of the counters it was read from, and what the ledger
    knew as the epoch of each partition before it was read. `judged` has the partitions of which
    entries wait that come before these, with what those were checked under.
    """

    run_id: bytes
    epochs: Mapping[int, int]
    judged: Mapping[int, Judged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Assigned:
    """The partitions of a keeper: its `own`, those `leaving` it once nothing of them is in hand, and those
    that are to be its own and are still somebody else's.
    """

    own: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()


@dataclass(slots=True)
class FlushReport:
    """What one transaction did: facts for the log and the metrics.

    `rows` counts by table; `acknowledged` holds by partition the entries that may be deleted,
    `control_ids` the control writes (and late posts) whose movement is now stored.
    `held` counts entries that wait behind `quarantined` accounts (new ones named), `waiting` by whose
    they are, `parked` has their ids, and `judged` says of their partitions under what;
    `left_over` are partitions another flusher has at the moment, whose waiting entries are to be checked
    again first, or that are `outdated`: verified again since they were read, so that what was read may
    be no history any more. Of those that are `locked`, somebody else has the lock.
    """

    rows: dict[str, int] = field(default_factory=dict)
    acknowledged: dict[int, list[bytes]] = field(default_factory=dict)
    control_ids: dict[int, list[str]] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    dead_letters: int = 0
    repeated: int = 0
    held: int = 0
    waiting: dict[Waiter, int] = field(default_factory=dict)
    parked: dict[Owner, list[bytes]] = field(default_factory=dict)
    judged: dict[int, Judged] = field(default_factory=dict)
    left_over: frozenset[int] = frozenset()
    outdated: frozenset[int] = frozenset()
    locked: frozenset[int] = frozenset()

    def entries(self) -> int:
        """How many entries may be deleted."""
        return sum(map(len, self.acknowledged.values()))


def fan_out(streams: Mapping[int, Sequence[tuple[bytes, bytes]]]) -> Batch:
    """Decode what was read, partition by partition; order is kept."""
    return {
        partition: [(entry_id, packed, _event(packed)) for entry_id, packed in entries]
        for partition, entries in streams.items()
        if entries
    }


def stream_place(entry_id: bytes) -> StreamPlace:
    """The place an entry's id names; that of b"" is before all."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms or 0), int(number or 0)


def control_id(event: Event) -> str:
    """The id this entry is remembered by in the counters until it is stored; empty if by none."""
    if event.kind == EventKind.CONSUME and event.note != EventNote.LATE:
        return ""
    return event.source


def _event(packed: bytes) -> Event | None:
    try:
        return decode(packed)
    except MalformedEvent:
        return None
