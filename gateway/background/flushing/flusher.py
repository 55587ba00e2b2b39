"""Moves entries from the Redis outboxes into the PostgreSQL ledger: read, fan out, write, acknowledge.

Entries are deleted only after the transaction that stored them has committed. So a flusher may die at any
point: an entry that is read a second time is recognised. Entries of an account in quarantine are moved to a
waiting list, and are read again only when the account may continue. This module imports no Redis or
PostgreSQL client.

Each of several keepers flushes its own partitions. It renews its share every few seconds, and a keeper that
stops renewing loses its partitions after a time measured by PostgreSQL's clock. A partition's lock and the
guard prevent that anything is stored twice.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.accounts.flush_batch import (
    Batch,
    FlushReport,
    History,
    Judged,
    Owner,
    PartitionAssignment,
    fan_out,
)
from gateway.core.model import PARTITIONS
from gateway.errors import CountersRefused, CountersUnavailable, LedgerUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.outbox import Outbox
    from persistence.keeper.shares import KeeperShares
    from persistence.ledger.writer import LedgerWriter

# The reading position of one pass over the outbox, and the partitions that it leaves to the next. Pure.

# Entries (id, packed) in stream order.
Entries = Sequence[tuple[bytes, bytes]]
Streams = Mapping[int, Entries]
# How long a keeper's share is valid without a renewal, and how often the keeper renews it.
HELD_S = 5.0
SAID_EACH_S = 2.0
# The renewal interval while partitions move from one keeper to another.
CHANGING_EACH_S = 0.2


class Pass:
    """One pass over the streams: the position read in each, and the partitions left to the next pass.

    A partition whose entries were read but not stored is left to the next pass, which reads them again, so
    that stored entries are always contiguous. `epochs` are the partitions' epochs in PostgreSQL, `left` the
    partitions that this pass does not read, and `batches` the number of batches begun.
    """

    def __init__(
        self, epochs: Mapping[int, int], left: frozenset[int], partitions: Iterable[int] = range(PARTITIONS)
    ) -> None:
        self.epochs, self.batches = epochs, 0
        self.after = dict.fromkeys(set(partitions) - left, b"")
        self.left = left

    def note_read(self, streams: Streams, count: int) -> None:
        """Advance the position of each stream; a stream that gave less than `count` entries is finished."""
        for partition in list(self.after):
            entries = streams.get(partition, ())
            if len(entries) < count:
                del self.after[partition]
            else:
                self.after[partition] = entries[-1][0]

    def read_only(self, partitions: Collection[int]) -> None:
        """Stop reading all partitions except these, because another keeper flushes the others now."""
        for partition in self.after.keys() - partitions:
            del self.after[partition]

    def leave(self, partitions: frozenset[int]) -> None:
        self.left |= partitions
        for partition in partitions:
            self.after.pop(partition, None)


# Entries that wait because an account is in quarantine: kept apart from the outbox, checked once, and
# bounded.
#
# An organization's waiting entries are older than its entries in the outbox. So a partition's outbox is read
# only once all of its waiting entries were checked. They are checked again if the result may differ: an
# account was released or quarantined, or the partition was verified. The writer returns the state it checked
# under (`Judged`), so a release between a read and its transaction is noticed. All of this is in memory: each
# process checks the waiting entries once.
@dataclass(slots=True)
class _WaitingRange:
    """The state that a partition was checked under; by organization the last checked entry (None: all)."""

    judged: Judged
    after: dict[int, bytes | None] = field(default_factory=dict)


class WaitingEntries:
    def __init__(self) -> None:
        self._ranges: dict[int, _WaitingRange] = {}

    def note_waiting(self, there: Collection[Owner], now: Mapping[int, Judged]) -> None:
        """Store which owners (partition and organization id) have waiting entries now.

        `now` is each partition's state, on which it depends whether an entry must wait. If it has changed
        since entries were checked, they are checked again.
        """
        for partition in self._ranges.keys() - {partition for partition, _ in there}:
            del self._ranges[partition]
        for partition, organization_id in there:
            one = self._ranges.get(partition)
            if one is None or one.judged != now[partition]:
                one = self._ranges[partition] = _WaitingRange(now[partition])
            one.after.setdefault(organization_id, b"")

    def to_recheck(self) -> dict[Owner, bytes]:
        """Return the owners with waiting entries to be checked, and the id of the last entry checked of each.

        The id is empty if none was checked. An owner is a pair of partition and organization id.
        """
        return {
            (partition, organization_id): after
            for partition, one in self._ranges.items()
            for organization_id, after in one.after.items()
            if after is not None
        }

    def unsettled(self, there: Collection[Owner]) -> frozenset[int]:
        return frozenset(
            partition
            for partition, organization_id in there
            if partition not in self._ranges
            or self._ranges[partition].after.get(organization_id, b"") is not None
        )

    def checked_against(self) -> dict[int, Judged]:
        return {partition: one.judged for partition, one in self._ranges.items()}

    def note_checked(self, behind: Mapping[Owner, bytes | None], report: FlushReport) -> None:
        """Store the id of the last waiting entry checked of each owner in `behind`; None means that all were.

        Partitions with entries that the `report` leaves over are skipped.
        """
        for (partition, organization_id), after in behind.items():
            if partition not in report.left_over:
                one = self._ranges[partition]
                one.after[organization_id] = after
                one.judged = report.judged.get(partition, one.judged)

    def add(self, report: FlushReport) -> None:
        """Mark the owners whose entries this flush moved to the waiting list as checked."""
        for partition, organization_id in report.parked:
            judged = report.judged[partition]
            one = self._ranges.setdefault(partition, _WaitingRange(judged))
            one.judged, one.after[organization_id] = judged, None

    def forget(self) -> None:
        """Discard the results of all checks, so that every waiting entry is checked again."""
        self._ranges.clear()


def too_many(waiting: Mapping[Owner, int], report: FlushReport, entries_max: int) -> dict[int, list[int]]:
    full: dict[int, list[int]] = {}
    for partition, organization_id, tenant_id in report.waiting:
        if tenant_id and waiting.get((partition, organization_id), 0) > entries_max:
            full.setdefault(partition, []).append(tenant_id)
    return full


# A few thousand entries outweigh the fixed cost of a transaction; memory and latency stay small.
BATCH_ENTRIES_MAX = 8_192
ENTRIES_A_PARTITION_MIN = BATCH_ENTRIES_MAX // PARTITIONS
# The most batches of a pass; then partitions that it left out, or that got entries meanwhile, are read.
PASS_BATCHES_MAX = 16
FLUSH_INTERVAL_S = 0.1
BACK_OFF_MIN_S = 0.1
BACK_OFF_MAX_S = 5.0
# Asking costs nothing while Redis is away, and once it is back callers wait for the flush.
AWAY_BACK_OFF_MAX_S = 0.4
DRAIN_TIMEOUT_S = 10.0
# Waiting entries of one organization; calls of its tenants that would add more are refused.
WAITING_ENTRIES_MAX = 50_000
# After this many passes in a row without entries the pauses grow, up to a bound.
CALM_PASSES = 20
CALM_INTERVALS = 4
CALM_S_MAX = 1.0
# Objects made between two runs of the cycle collector: more than a batch has.
YOUNG_OBJECTS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class FlushedBatch:
    """One stored batch, for metrics: the writer's report and the duration."""

    report: FlushReport
    seconds: float


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """One batch that could not be stored or deleted; its entries remain in the outbox."""

    error: Exception
    failures: int


def back_off_s(failures: int, error: Exception) -> float:
    """Return the seconds to wait after `failures` in a row: doubled each time, up to a maximum.

    The maximum is another one if the last `error` means that Redis is unreachable.
    """
    are_away = isinstance(error, CountersUnavailable) and not isinstance(error, CountersRefused)
    most_s = AWAY_BACK_OFF_MAX_S if are_away else BACK_OFF_MAX_S
    return min(most_s, BACK_OFF_MIN_S * 2.0 ** min(failures - 1, 16))


class Flusher:
    """Moves outbox entries into the ledger; calls `observe` with every batch, stored or failed.

    `before_storing` is awaited before the first pass and after each failure: PostgreSQL may have been
    restored from a backup while it was away, and newly stored rows would hide that. `refuse` gets, by
    partition, the tenants whose organization has too many waiting entries. `partitions` returns the
    partitions to read, before each read.
    """

    def __init__(
        self,
        outbox: Outbox,
        writer: LedgerWriter,
        observe: Callable[[FlushedBatch | FailedBatch], None],
        *,
        before_storing: Callable[[], Awaitable[object]] | None = None,
        refuse: Callable[[Mapping[int, Sequence[int]]], Awaitable[object]] | None = None,
        flush_interval_s: float = FLUSH_INTERVAL_S,
        drain_timeout_s: float = DRAIN_TIMEOUT_S,
        waiting_entries_max: int = WAITING_ENTRIES_MAX,
        partitions: Callable[[], Collection[int]] = lambda: range(PARTITIONS),
    ) -> None:
        self._outbox, self._partitions = outbox, partitions
        self._writer = writer
        self._observe = observe
        self._before_storing = before_storing
        self._refuse = refuse
        self._waiting = WaitingEntries()
        self._waiting_entries_max = waiting_entries_max
        self._flush_interval_s = flush_interval_s
        self._drain_timeout_s = drain_timeout_s
        self._epochs: Mapping[int, int] | None = None
        self._stopping = asyncio.Event()
        # Since when each flush has failed (monotonic), and the last error; None after one that did not.
        self.trouble: tuple[float, Exception] | None = None
        self._locked = self._reading = self._storing = frozenset[int]()

    @property
    def in_hand(self) -> frozenset[int]:
        """The partitions whose entries are being read, or were read and are not stored yet."""
        return self._reading | self._storing

    async def run(self) -> None:
        """Flush until `stop` is called, then flush the remaining entries within the drain timeout."""
        # Run the cycle collector once a batch, not hundreds of times. A batch is tens of thousands of objects
        # without a cycle. At the default of one collection every 700 objects, collections took 40 % of the
        # flusher's time.
        gc.freeze()
        gc.set_threshold(YOUNG_OBJECTS_MAX, *gc.get_threshold()[1:])
        failures = calm = 0
        before_storing = self._before_storing
        while not self._stopping.is_set():
            delay_s = self._flush_interval_s
            try:
                if before_storing is not None:
                    await before_storing()
                    before_storing = None
                calm = 0 if await self.flush() or self._waiting.to_recheck() else calm + 1
                failures, self.trouble = 0, None
                if calm > CALM_PASSES:
                    delay_s = max(delay_s, min(CALM_INTERVALS * delay_s, CALM_S_MAX))
            except Exception as error:  # noqa: BLE001  # any error: the next try may succeed
                failures += 1
                before_storing = self._before_storing
                delay_s = back_off_s(failures, error)
                self.trouble = (self.trouble or (time.monotonic(),))[0], error
                self._observe(FailedBatch(error, failures))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
        await self._drain()

    def stop(self) -> None:
        """Stop `run` after the current batch and a drain of the outbox."""
        self._stopping.set()

    async def flush(self) -> int:
        """Pass once over the outbox; return the number of entries stored and deleted.

        If PostgreSQL reports entries of an outdated epoch, because Redis was rolled back, a second pass reads
        the epochs and the entries again.
        """
        stored = await self._pass()
        if self._epochs is None:
            stored += await self._pass()
        return stored

    async def _pass(self) -> int:
        """Pass once over the outbox (entries in Redis for PostgreSQL); return how many were stored.

        Of each partition, entries on the waiting list are checked first; its outbox is read only when all
        were.
        """
        if self._epochs is None:
            self._epochs = await self._writer.epochs()
        try:
            self._reading = frozenset(self._partitions())
            partitions = await self._free(self._reading)
            there = await self._outbox.parked(partitions)
            waiting = {partition for partition, _ in there}
            self._waiting.note_waiting(there, await self._writer.judged(waiting) if waiting else {})
            stored = await self._judge_again(self._epochs)
            left = self._waiting.unsettled(self._waiting.to_recheck())
            return stored + await self._read_through(Pass(self._epochs, left, partitions))
        except BaseException:
            self._waiting.forget()
            raise
        finally:
            self._reading = self._storing = frozenset()

    async def _free(self, partitions: frozenset[int]) -> frozenset[int]:
        """Return the partitions except those that another keeper has locked."""
        if self._locked:
            self._locked = await self._writer.locked(self._locked)
        return partitions - self._locked

    async def _judge_again(self, epochs: Mapping[int, int]) -> int:
        """Check one batch of the waiting entries, and store those that need not wait any more.

        Return how many were stored. `epochs` are the partitions' epochs in PostgreSQL.
        """
        unread = self._waiting.to_recheck()
        if not unread:
            return 0
        self._storing = frozenset(partition for partition, _ in unread)
        count = max(1, BATCH_ENTRIES_MAX // len(unread))
        found = await self._outbox.read_parked(unread, count)
        together: dict[int, list[tuple[bytes, bytes]]] = {}
        for (partition, _), entries in found.items():
            together.setdefault(partition, []).extend(entries)
        batch = await asyncio.to_thread(fan_out, together)
        report = await self._write(batch, epochs)
        stored = {p: frozenset(ids) for p, ids in report.acknowledged.items()}
        gone = {
            owner: [entry_id for entry_id, _ in entries if entry_id in stored.get(owner[0], ())]
            for owner, entries in found.items()
        }
        await self._outbox.acknowledge_parked(gone, report.control_ids)
        behind = {one: entries[-1][0] if len(entries) == count else None for one, entries in found.items()}
        self._waiting.note_checked(behind, report)
        return report.entries()

    async def _read_through(self, current: Pass) -> int:
        """Store all batches of a pass, reading the next while one is written; return how many entries."""
        stored = 0
        ahead = asyncio.create_task(self._gather(current))
        try:
            while batch := await ahead:
                self._storing = frozenset(batch)
                ahead = asyncio.create_task(self._gather(current))
                wanted = {p: batch[p] for p in batch.keys() - current.left}
                report = await self._store(wanted, current.epochs)
                current.leave(report.left_over)
                stored += report.entries()
        finally:
            ahead.cancel()
            with suppress(asyncio.CancelledError):
                await ahead
        return stored

    async def _gather(self, current: Pass) -> Batch:
        """Read and decode up to one batch, shared fairly between partitions; {} at the end of the pass."""
        gathered: dict[int, list[tuple[bytes, bytes]]] = {}
        room = BATCH_ENTRIES_MAX if current.batches < PASS_BATCHES_MAX else 0
        current.batches += 1
        while current.after and room > 0:
            current.read_only(self._partitions())
            self._reading = frozenset(gathered.keys() | current.after)
            if not current.after:
                break
            count = max(ENTRIES_A_PARTITION_MIN, room // len(current.after))
            streams = await self._outbox.read(dict(current.after), count)
            current.note_read(streams, count)
            if streams:  # another flusher may have moved earlier entries to the waiting list
                current.leave(self._waiting.unsettled(await self._outbox.parked(streams)))
            for partition, entries in streams.items():
                if partition not in current.left:
                    gathered.setdefault(partition, []).extend(entries)
                    room -= len(entries)
        self._reading = frozenset(gathered)
        return await asyncio.to_thread(fan_out, gathered) if gathered else {}

    async def _store(self, batch: Batch, epochs: Mapping[int, int]) -> FlushReport:
        """Write a batch to PostgreSQL, delete stored entries in Redis, and keep others on the waiting list.

        If an organization has too many waiting entries, calls of its tenants are refused from then on.
        """
        report = await self._write(batch, epochs)
        await self._outbox.acknowledge(report.acknowledged, report.control_ids)
        if report.parked:
            self._waiting.add(report)  # before it is stored: else entries read ahead count as unchecked
            waiting = await self._outbox.park(report.parked)
            full = too_many(waiting, report, self._waiting_entries_max)
            if full and self._refuse is not None:
                await self._refuse(full)
        return report

    async def _write(self, batch: Batch, epochs: Mapping[int, int]) -> FlushReport:
        """Store a batch and observe it; read the epochs again if partitions were verified meanwhile."""
        if not batch:
            return FlushReport()
        started = time.monotonic()
        history = History(self._outbox.read_under, epochs, self._waiting.checked_against())
        report = await self._writer.write(batch, history)
        self._locked |= report.locked
        if report.outdated:
            self._epochs = None
        self._observe(FlushedBatch(report, time.monotonic() - started))
        return report

    async def _drain(self) -> None:
        """Flush until the outbox is empty or the drain timeout ends; the rest stays for the next start."""
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                while await self.flush():
                    pass
        except Exception as error:  # noqa: BLE001  # stopping must not fail; entries stay in the outbox
            self._observe(FailedBatch(error, 1))


class KeeperShare:
    def __init__(
        self,
        ledger: KeeperShares,
        clock: Callable[[], float] = time.monotonic,
        *,
        held_s: float = HELD_S,
        said_each_s: float = SAID_EACH_S,
    ) -> None:
        self._ledger, self._clock, self._held_s, self._said_each_s = ledger, clock, held_s, said_each_s
        self._assigned, self._until = PartitionAssignment(), 0.0
        self._begun = False

    def partitions(self) -> frozenset[int]:
        """Return the partitions that this keeper flushes now.

        Raise `LedgerUnavailable` if its share has run out, because another keeper may own them. After this
        error the flusher checks PostgreSQL before it stores again, which may be an older one by then.
        """
        if self._begun and self._clock() >= self._until:
            raise LedgerUnavailable("PostgreSQL does not say which partitions are flushed here")
        return self._assigned.own

    @property
    def size(self) -> int:
        """The number of partitions flushed by this keeper; 0 if its share has run out."""
        return len(self._assigned.own) if self._clock() < self._until else 0

    @property
    def changing(self) -> bool:
        return bool(self._assigned.leaving or self._assigned.lacking)

    async def renew(self, reached: Collection[int], in_hand: Callable[[], Collection[int]]) -> None:
        """Report to PostgreSQL that this keeper is alive, and which partitions' counters it has `reached`.

        Partitions to be given up are released once none of their entries is `in_hand`, that is read and not
        stored.
        """
        said = self._clock()
        left = self._assigned.leaving.difference(in_hand())
        self._assigned = await self._ledger.keep(reached, left, self._held_s)
        # The ledger counts from a later moment, so the share is valid there at least as long.
        self._until, self._begun = said + self._held_s, True

    async def run(
        self, reached: Callable[[], Collection[int]], in_hand: Callable[[], Collection[int]]
    ) -> None:
        """Renew this keeper's share of partitions until cancelled.

        It is renewed at intervals, and at once if the result of `reached` (partitions whose Redis answers)
        changes, since callers of a recovered server wait for the flush. `in_hand` returns the partitions with
        entries read and not stored. If PostgreSQL is away, `partitions` raises.
        """
        while True:
            said = frozenset(reached())
            try:
                await self.renew(said, in_hand)
            except LedgerUnavailable:
                self._begun = True
            until = self._clock() + self._said_each_s
            while self._clock() < until:
                await asyncio.sleep(CHANGING_EACH_S)
                if self.changing or said != frozenset(reached()):
                    break

    async def leave(self) -> None:
        self._assigned = PartitionAssignment()
        await self._ledger.leave()
