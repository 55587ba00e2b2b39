"""From the outbox to the ledger and back: batches of entries, and the report of their flush.

An entry is a tuple, not an object: tens of thousands a second pass through here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.accounts.outbox import EventKind, EventNote, MalformedEvent, OutboxEntry, decode

# Stream entry id, packed value, and decoded entry; None if it does not follow the layout.
Entry = tuple[bytes, bytes, OutboxEntry | None]
# Entries by partition, in stream order.
Batch = dict[int, list[Entry]]
# An entry's position in its stream, comparable: the milliseconds and number of its id.
StreamPlace = tuple[int, int]
# The state that decides which entries of a partition wait: its epoch, accounts quarantined and released.
Judged = tuple[int, int, int]
# Partition, organization, tenant.
Waiter = tuple[int, int, int]
# Partition and organization of parked entries.
Owner = tuple[int, int]


@dataclass(frozen=True, slots=True)
class History:
    """The state of the counters when a batch was read: the Redis run id, and each partition's known epoch.

    `judged` has partitions with older waiting entries, and the state when those were checked.
    """

    run_id: bytes
    epochs: Mapping[int, int]
    judged: Mapping[int, Judged] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PartitionAssignment:
    """The partitions of a keeper: its `own`, those it is `leaving`, and those it is `lacking`.

    It leaves a partition once none of its entries is in progress. Partitions that it lacks still belong to
    other keepers.
    """

    own: frozenset[int] = frozenset()
    leaving: frozenset[int] = frozenset()
    lacking: frozenset[int] = frozenset()


@dataclass(slots=True)
class FlushReport:
    """The result of one transaction of the flusher, for the log and the metrics.

    `rows` counts by table. `acknowledged` has the entries that may be deleted by partition, `control_ids` the
    control writes (and late posts) whose movement is now stored. `held` counts entries that wait for
    `quarantined` accounts (new ones are named), `waiting` counts them by owner, `parked` has their ids, and
    `judged` the state of their partitions at the check. `left_over` are partitions that were not flushed:
    another flusher has them, their waiting entries must be checked first, or they are `outdated`, that is
    verified again since they were read, so that entries may be obsolete. The `locked` ones are locked by
    another flusher.
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
        """Return the number of stream entries that PostgreSQL has stored, and Redis may delete."""
        return sum(map(len, self.acknowledged.values()))


def fan_out(streams: Mapping[int, Sequence[tuple[bytes, bytes]]]) -> Batch:
    """Return the decoded entries of each partition's stream, in their order, with ids and packed bytes."""
    return {
        partition: [(entry_id, packed, _event(packed)) for entry_id, packed in entries]
        for partition, entries in streams.items()
        if entries
    }


def stream_place(entry_id: bytes) -> StreamPlace:
    """Return an entry id as (milliseconds, number) for comparison; b"" is before all others."""
    ms, _, number = entry_id.partition(b"-")
    return int(ms or 0), int(number or 0)


def control_id(event: OutboxEntry) -> str:
    """Return the id by which Redis remembers an entry until PostgreSQL has it; empty for a normal use."""
    if event.kind == EventKind.CONSUME and event.note != EventNote.LATE:
        return ""
    return event.source


def _event(packed: bytes) -> OutboxEntry | None:
    try:
        return decode(packed)
    except MalformedEvent:
        return None
