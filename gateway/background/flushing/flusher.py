"""From the outbox to the ledger, for ever: read, fan out, write one transaction, acknowledge.

Entries are deleted only after the commit that stored them, so a flusher may die anywhere: what it
stored is recognised when it is delivered again. Entries behind an account in quarantine are moved
aside and read again only where they may go on. Knows neither Redis nor PostgreSQL.

Each of several keepers flushes its own partitions. It says again and again that it is there, and a silent one
loses its partitions by the clock of the ledger. A partition's lock and the guard store nothing twice.
"""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gateway.core.accounts.outbox import (
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
    from persistence.keeper.sweeps import KeeperShares
    from persistence.ledger.writer import LedgerWriter

# How far one pass over the outbox has read, and what it leaves to the next one. Pure.

# Entries (id, packed) in stream order.
Entries = Sequence[tuple[bytes, bytes]]
Streams = Mapping[int, Entries]
# For how long it is believed of a keeper that it is there, and how often it says so.
HELD_S = 5.0
SAID_EACH_S = 2.0
# The same while partitions are on their way from one keeper to another.
CHANGING_EACH_S = 0.2


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
        self.left |= partitions
        for partition in partitions:
            self.after.pop(partition, None)


# Waiting entries behind accounts in quarantine, apart from the outbox: checked once, and bounded.
#
# An organization's entries there come before any of it in the outbox, so a partition's outbox is read only
# where all that waits of it was checked. It is checked again where it would be otherwise by now: an account
# was released or stopped, or the partition was verified. That is told by what the writer checked under, so a
# release between a read and its transaction is seen there. Nothing here outlives the process: what waits is
# checked once by each.
@dataclass(slots=True)
class _WaitingRange:
    """Of one partition: under what it was checked, and by organization up to which entry; None: all."""

    judged: Judged
    after: dict[int, bytes | None] = field(default_factory=dict)


class WaitingEntries:
    def __init__(self) -> None:
        self._found: dict[int, _WaitingRange] = {}

    def note_waiting(self, there: Collection[Owner], now: Mapping[int, Judged]) -> None:
        """Store the owners with waiting entries; restart checks whose result would differ now."""
        for partition in self._found.keys() - {partition for partition, _ in there}:
            del self._found[partition]
        for partition, organization_id in there:
            one = self._found.get(partition)
            if one is None or one.judged != now[partition]:
                one = self._found[partition] = _WaitingRange(now[partition])
            one.after.setdefault(organization_id, b"")

    def unread(self) -> dict[Owner, bytes]:
        """Return the owners with entries to check before newer ones, and the last entry checked."""
        return {
            (partition, organization_id): after
            for partition, one in self._found.items()
            for organization_id, after in one.after.items()
            if after is not None
        }

    def unknown(self, there: Collection[Owner]) -> frozenset[int]:
        return frozenset(
            partition
            for partition, organization_id in there
            if partition not in self._found
            or self._found[partition].after.get(organization_id, b"") is not None
        )

    def judged(self) -> dict[int, Judged]:
        return {partition: one.judged for partition, one in self._found.items()}

    def note_checked(self, behind: Mapping[Owner, bytes | None], report: FlushReport) -> None:
        """Note up to where what waits was checked again; None is to its end."""
        for (partition, organization_id), after in behind.items():
            if partition not in report.left_over:
                one = self._found[partition]
                one.after[organization_id] = after
                one.judged = report.judged.get(partition, one.judged)

    def add(self, report: FlushReport) -> None:
        """Note what was checked to wait from now on."""
        for partition, organization_id in report.parked:
            judged = report.judged[partition]
            one = self._found.setdefault(partition, _WaitingRange(judged))
            one.judged, one.after[organization_id] = judged, None

    def forget(self) -> None:
        """Judge everything again: whether it was, or is still there, is not known."""
        self._found.clear()


def too_many(waiting: Mapping[Owner, int], report: FlushReport, entries_max: int) -> dict[int, list[int]]:
    full: dict[int, list[int]] = {}
    for partition, organization_id, tenant_id in report.waiting:
        if tenant_id and waiting.get((partition, organization_id), 0) > entries_max:
            full.setdefault(partition, []).append(tenant_id)
    return full


# The transaction's fixed cost is lost in a few thousand entries; memory and latency stay small.
BATCH_ENTRIES_MAX = 8_192
ENTRIES_A_PARTITION_MIN = BATCH_ENTRIES_MAX // PARTITIONS
# One pass has no more: then partitions that it left out, or that came meanwhile, have their turn.
PASS_BATCHES_MAX = 16
FLUSH_INTERVAL_S = 0.1
BACK_OFF_MIN_S = 0.1
BACK_OFF_MAX_S = 5.0
# While the counters are away asking costs nothing, and once they are back callers wait for what is flushed.
AWAY_BACK_OFF_MAX_S = 0.4
DRAIN_TIMEOUT_S = 10.0
# Of one organization; calls of its tenants that would add to more are refused.
WAITING_ENTRIES_MAX = 50_000
# Behind so many passes in a row that found nothing the pauses are longer, up to a bound.
CALM_PASSES = 20
CALM_INTERVALS = 4
CALM_S_MAX = 1.0
# Objects made between two runs of the cycle collector: more than a batch has.
YOUNG_OBJECTS_MAX = 100_000


@dataclass(frozen=True, slots=True)
class FlushedBatch:
    """One batch as the metrics see it: what the writer did and how long it took."""

    report: FlushReport
    seconds: float


@dataclass(frozen=True, slots=True)
class FailedBatch:
    """One batch that could not be stored or deleted; it stays in the outbox."""

    error: Exception
    failures: int


def back_off_s(failures: int, error: Exception) -> float:
    """Return how long to wait after so many failures in a row: twice as long each time, up to a bound."""
    are_away = isinstance(error, CountersUnavailable) and not isinstance(error, CountersRefused)
    most_s = AWAY_BACK_OFF_MAX_S if are_away else BACK_OFF_MAX_S
    return min(most_s, BACK_OFF_MIN_S * 2.0 ** min(failures - 1, 16))


class Flusher:
    """Empties the outbox into the ledger. `observe` is told of every batch, stored or not.

    `before_storing` is awaited before the first pass and before the one behind a failure: a ledger that was
    away may be older than it was, and rows stored from then on hide that. `refuse` is told, by partition,
    of tenants whose organization has too much waiting behind an account in quarantine. It reads these
    `partitions`, which may be others before each read.
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
        self._locked = self._reading = self._storing = frozenset[int]()

    @property
    def in_hand(self) -> frozenset[int]:
        """The partitions that are being read, or were read and are not stored yet."""
        return self._reading | self._storing

    async def run(self) -> None:
        """Flush until stopped, then drain what is there within the drain timeout."""
        # Have the cycle collector of this process look at a batch once, not hundreds of times. A batch is
        # tens of thousands of objects without a cycle; at the default pace of one run every 700 objects,
        # looking for some took 40 % of the flusher's time
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
                calm = 0 if await self.flush() or self._waiting.unread() else calm + 1
                failures = 0
                if calm > CALM_PASSES:
                    delay_s = max(delay_s, min(CALM_INTERVALS * delay_s, CALM_S_MAX))
            except Exception as error:  # noqa: BLE001  # whatever a batch meets, the next try may not
                failures += 1
                before_storing = self._before_storing
                delay_s = back_off_s(failures, error)
                self._observe(FailedBatch(error, failures))
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), delay_s)
        await self._drain()

    def stop(self) -> None:
        """Finish the batch in hand, drain, and let `run` return."""
        self._stopping.set()

    async def flush(self) -> int:
        """Pass once over the outbox; answers how many entries were stored and deleted.

        What the ledger knows as outdated is left alone and read again, in a second pass: a Redis that was
        rolled back since has another history.
        """
        stored = await self._pass()
        if self._epochs is None:
            stored += await self._pass()
        return stored

    async def _pass(self) -> int:
        """Waiting entries that may go on come first; of a partition where it has not ended, nothing else."""
        if self._epochs is None:
            self._epochs = await self._writer.epochs()
        try:
            self._reading = frozenset(self._partitions())
            partitions = await self._free(self._reading)
            there = await self._outbox.parked(partitions)
            waiting = {partition for partition, _ in there}
            self._waiting.note_waiting(there, await self._writer.judged(waiting) if waiting else {})
            stored = await self._judge_again(self._epochs)
            left = self._waiting.unknown(self._waiting.unread())
            return stored + await self._read_through(Pass(self._epochs, left, partitions))
        except BaseException:
            self._waiting.forget()
            raise
        finally:
            self._reading = self._storing = frozenset()

    async def _free(self, partitions: frozenset[int]) -> frozenset[int]:
        """Return the partitions without those that another keeper has locked."""
        if self._locked:
            self._locked = await self._writer.locked(self._locked)
        return partitions - self._locked

    async def _judge_again(self, epochs: Mapping[int, int]) -> int:
        """Read on, by a batch, waiting entries that may go on: an owner that waits for none of them waits no
        longer.
        """
        unread = self._waiting.unread()
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
        """Store all batches of a pass, reading ahead while one is written; return the number of entries."""
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
        """Read and decode up to one batch, shared fairly between partitions; empty at the end."""
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
            if streams:  # another flusher may have moved aside what comes before these
                current.leave(self._waiting.unknown(await self._outbox.parked(streams)))
            for partition, entries in streams.items():
                if partition not in current.left:
                    gathered.setdefault(partition, []).extend(entries)
                    room -= len(entries)
        self._reading = frozenset(gathered)
        return await asyncio.to_thread(fan_out, gathered) if gathered else {}

    async def _store(self, batch: Batch, epochs: Mapping[int, int]) -> FlushReport:
        """Write a batch; delete what is stored, move what waits aside, refuse calls where it is too much."""
        report = await self._write(batch, epochs)
        await self._outbox.acknowledge(report.acknowledged, report.control_ids)
        if report.parked:
            self._waiting.add(report)  # before it is there: else what is read ahead would take it for unknown
            waiting = await self._outbox.park(report.parked)
            full = too_many(waiting, report, self._waiting_entries_max)
            if full and self._refuse is not None:
                await self._refuse(full)
        return report

    async def _write(self, batch: Batch, epochs: Mapping[int, int]) -> FlushReport:
        if not batch:
            return FlushReport()
        started = time.monotonic()
        history = History(self._outbox.read_under, epochs, self._waiting.judged())
        report = await self._writer.write(batch, history)
        self._locked |= report.locked
        if report.outdated:
            self._epochs = None
        self._observe(FlushedBatch(report, time.monotonic() - started))
        return report

    async def _drain(self) -> None:
        """Flush the outbox as far as the time allows; remaining entries wait there for the next start."""
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                while await self.flush():
                    pass
        except Exception as error:  # noqa: BLE001  # stopping must not fail; the entries are safe where they are
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
        """Return those to be read now; `LedgerUnavailable` where they may be somebody else's by now.

        Raised, since a ledger that was away may be an older one: its flusher has to look before it stores.
        """
        if self._begun and self._clock() >= self._until:
            raise LedgerUnavailable("PostgreSQL does not say which partitions are flushed here")
        return self._assigned.own

    @property
    def size(self) -> int:
        """How many partitions are flushed here, as far as is known."""
        return len(self._assigned.own) if self._clock() < self._until else 0

    @property
    def changing(self) -> bool:
        return bool(self._assigned.leaving or self._assigned.lacking)

    async def renew(self, reached: Collection[int], in_hand: Callable[[], Collection[int]]) -> None:
        """Report that this keeper is alive, and the partitions whose counters it reaches.

        Entries `in_hand` were read, or are being read; nothing that is leaving is read any more.
        """
        said = self._clock()
        left = self._assigned.leaving.difference(in_hand())
        self._assigned = await self._ledger.keep(reached, left, self._held_s)
        # By the time it was said at the latest it is known there.
        self._until, self._begun = said + self._held_s, True

    async def run(
        self, reached: Callable[[], Collection[int]], in_hand: Callable[[], Collection[int]]
    ) -> None:
        """Renew until cancelled, sooner where other partitions are reached: callers of a recovered server
        wait for the flush. While the ledger is away, `partitions` shows that.
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
