"""Sends records of the settlement log to Redis again, after Redis lost data or either was away.

Spooled settlements are settled as soon as a verified Redis is available. If a partition is verified under a
later epoch than that of acknowledged records, Redis may have lost these: they are sent once more, and the
keeper posts those that are not in the ledger. Files of dead workers are adopted and treated the same. Calls
go on meanwhile, because records are sent in bounded batches at a bounded rate. The progress is reported: the
keeper does not open such a partition to admission before.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing, closing, suppress
from itertools import chain
from types import MappingProxyType
from typing import Final, cast

from gateway.core.layout import EARLIER
from gateway.core.model import PARTITIONS, SettleResult
from gateway.core.wait import Wait, in_task
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import TOMBSTONE_MS, Reply
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection, encode, encode_script
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.counters.settlement_log.log import (
    ACKNOWLEDGED,
    BOUNDS,
    HELD,
    OTHERS,
    LogLimits,
    LogSegment,
    Record,
    SettlementLog,
    records_in,
)
from gateway.counters.settlement_log.settlement_record import (
    Positions,
    argument,
    epoch_of,
    noted,
    partition_of,
    recovered,
    unpack,
)
from gateway.errors import CountersUnavailable, NewerLayout, ScriptFailed

# The epoch that each partition is verified under, from the markers that one worker reads.
#
# A marker that was read is valid while its server reports changes and none of it; it is read again at
# intervals all the same. Without reports, and while a partition is unverified, it is read each time.

AGAIN_S: Final = 120.0
# The source of a marker: the connection, the history, the number of its reports, and the time of the read.
_Held = tuple[RedisConnection, bytes, int, float]


class VerifiedEpochs:
    """Reads the epochs of partitions from their markers; `newer` are those of a newer version at the last
    read.

    `layout` is the layout that the others are written in. `clock` is monotonic.
    """

    def __init__(self, wires: RedisConnections, clock: Callable[[], float], say: Callable[..., None]) -> None:
        self.newer = frozenset[int]()
        self._wires, self._clock, self._say = wires, clock, say
        self._epochs = [0] * PARTITIONS
        self._layouts: dict[int, int] = {}
        self._held: list[_Held | None] = [None] * PARTITIONS
        # By partition of a newer version, why this one cannot read it.
        self._why: dict[int, str] = {}

    @property
    def layout(self) -> int:
        """The oldest layout of all partitions; the previous version's if none is known."""
        return min(self._layouts.values(), default=EARLIER)

    def forget_changed(self, name: bytes) -> bool:
        """Forget the markers that a change of the key `name` concerns; return False if it concerns none.

        The empty name means that any key may have changed.
        """
        partition = keys.marked_partition(name)
        if partition is not None:
            self._held[partition] = None
        elif name.startswith((keys.HISTORIES, keys.VERIFIED)):
            self._held = [None] * PARTITIONS
        else:
            return not name
        return True

    async def read(self, *, upkeep: bool) -> list[int]:
        """Return the epoch of each partition; 0 for one that is unverified or belongs to a newer version.

        CountersUnavailable if all are 0. With `upkeep`, the queries serve no caller.
        """
        by_wire: dict[RedisConnection, list[int]] = {}
        for partition in range(PARTITIONS):
            if not self._holds(partition):
                by_wire.setdefault(self._wires.of(partition), []).append(partition)
        asked = [
            (wire, part, self._ask(wire, part, upkeep))
            for wire, partitions in by_wire.items()  # one command, if one server has keys of all slots
            for part in ([partitions] if wire.is_one else [[partition] for partition in partitions])
        ]
        for wire, part, wait in asked:
            markers: list[Reply] = [None] * len(part)
            with suppress(CountersUnavailable):
                markers = cast("list[Reply]", await in_task(wait))
            for partition, marker in zip(part, markers, strict=True):
                self._learn(wire, partition, marker)
        self._note()
        if not any(self._epochs):
            raise CountersUnavailable
        return list(self._epochs)

    def _holds(self, partition: int) -> bool:
        held = self._held[partition]
        if held is None or not self._epochs[partition]:
            return False
        wire, run_id, since, at = held
        return (
            wire is self._wires.of(partition)
            and wire.available
            and (run_id, since) == (wire.run_id, wire.hearing.since)
            and self._clock() - at < AGAIN_S
        )

    def _ask(self, wire: RedisConnection, partitions: list[int], upkeep: bool) -> Wait[Reply]:
        """Query markers; a change reported from now on makes their answer invalid."""
        since = wire.hearing.since
        held = (wire, wire.run_id, since, self._clock()) if since else None
        for partition in partitions:
            self._held[partition] = held
        names = [keys.marker(partition).encode() for partition in partitions]
        return wire.send(encode(b"MGET", *names), upkeep=upkeep)

    def _learn(self, wire: RedisConnection, partition: int, marker: Reply) -> None:
        self._epochs[partition] = 0
        self._why.pop(partition, None)
        try:
            run_id, epoch, _ = packing.read_marker(marker)
        except NewerLayout as error:  # the other partitions are read all the same
            self._why[partition] = error.message
            return
        self._epochs[partition] = epoch if run_id == wire.run_id else 0
        if isinstance(marker, bytes) and self._epochs[partition]:
            self._layouts[partition] = packing.layout_of(marker)

    def _note(self) -> None:
        """Store which partitions belong to a newer version; log when there are some, and when none is."""
        newer = frozenset(self._why)
        if newer and not self.newer:
            why, count = next(iter(self._why.values())), len(newer)
            self._say("this gateway is older than what redis holds", partitions=count, why=why, level="error")
        elif self.newer and not newer:
            self._say("nothing in redis is newer than this gateway any more")
        self.newer = newer


LOOK_S = 1.6
# The pause while only running calls are waited for, and after the first changed marker: others follow.
SOON_S = 0.05
ADOPT_S = 10.0
# If a partition's stream is broken, all its records fail: they are not tried every second.
RECOVER_AGAIN_S = 10.0
AHEAD = "a settlement log knows more"
BATCH_MAX = 64
TURN_MAX = 500
# A settlement that a script refuses so often is set aside, and sent again at this interval.
REFUSALS_MAX = 10
SET_ASIDE_AGAIN_S = 60.0

# For a log with settlements only.
NOTHING_ELSE: Final[Mapping[int, Callable[[bytes], Awaitable[None]]]] = MappingProxyType({})


class Resubmitter:
    """Sends records that Redis may lack again; `resubmitted` and `recovered` count them.

    `set_aside` counts settlements that a script refused `REFUSALS_MAX` times. They stay on the disk, and keep
    no partition waiting.

    `report` gets, for each partition, the epoch that all earlier records were sent again for. `in_flight`
    returns whether a call that began before a time (of `clock`) has not settled, or a lease is not renewed.
    `announce` is called with a connection whose data is older than adopted logs show. `restore` restores what
    only this worker remembers of these partitions, before records are sent that count in it. `others` store
    records that are no settlements, by kind.
    """

    def __init__(
        self,
        wires: RedisConnections,
        log: SettlementLog,
        clock: Callable[[], float],
        say: Callable[..., None],
        *,
        report: Callable[[Sequence[int]], Awaitable[None]],
        in_flight: Callable[[float], bool] = lambda _: False,
        announce: Callable[[RedisConnection, str], Awaitable[None]] | None = None,
        restore: Callable[[Collection[int]], Awaitable[None]] | None = None,
        others: Mapping[int, Callable[[bytes], Awaitable[None]]] = NOTHING_ELSE,
        recall: Callable[[bytes], None] = lambda _: None,
        bounds: LogLimits = BOUNDS,
    ) -> None:
        self.resubmitted = 0
        self.recovered = 0
        self.set_aside = 0
        # By refused record: how often, and when it was sent last.
        self._refusals: dict[tuple[LogSegment, int], tuple[int, float]] = {}
        self._verified = VerifiedEpochs(wires, clock, say)
        self._wires, self._log, self._clock, self._say = wires, log, clock, say
        self._report, self._in_flight, self._announce, self._bounds = report, in_flight, announce, bounds
        self._restore, self._others, self._recall = restore, others, recall
        self._uncompared: list[LogSegment] = []
        self._compared_under: list[int] = []
        self._epochs: list[int] = []
        self._seen: list[int] = []
        self._looked_through_at = float("-inf")
        # By partition, since when it has its present epoch.
        self._seen_at = [clock()] * PARTITIONS
        self._sent_again = [0] * PARTITIONS
        self._reported = [0] * PARTITIONS
        self._recover_at = 0.0
        self._adopted_at = clock() - ADOPT_S
        self._news, self._held_up = asyncio.Event(), False
        wires.hear(self._note_change)

    @property
    def newer(self) -> frozenset[int]:
        """The partitions that a newer version owns, as of the last read: this worker does not serve them."""
        return self._verified.newer

    async def run(self) -> None:
        """Call `resubmit` until cancelled: every other second, and at once after a spooled record or a
        changed marker.

        Five times a second while not everything is verified, sent again and reported; more often while it
        only waits for running calls.
        """
        while True:
            self._log.woken.clear()
            self._news.clear()
            try:
                await self.resubmit()
            except CountersUnavailable:
                self._seen, self._held_up = [], False
            if not self._log.waiting and self.is_calm:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._log.woken.wait(), LOOK_S)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), SOON_S if self._held_up else self._bounds.retry_s)
                await asyncio.sleep(SOON_S)

    @property
    def is_calm(self) -> bool:
        """Whether everything is verified, sent again and reported."""
        return bool(self._seen) and all(self._seen) and self._seen == self._reported

    def _note_change(self, name: bytes) -> None:
        if self._verified.forget_changed(name):
            self._news.set()
            self._log.woken.set()

    async def resubmit(self) -> None:
        """Adopt files, send records that wait or may be lost, report, and drop files that are not needed any
        more.

        CountersUnavailable if Redis is away or nothing is verified.
        """
        if self._clock() - self._adopted_at >= ADOPT_S:
            await self._adopt()
        epochs = await self._verified.read(upkeep=self.is_calm)
        self._log.take_up(self._verified.layout)
        await self._compare(epochs)
        if epochs != self._seen:
            now, seen = self._clock(), self._seen or [-1] * PARTITIONS
            self._seen_at = [
                at if epoch == before else now
                for at, epoch, before in zip(self._seen_at, epochs, seen, strict=True)
            ]
            self._seen = epochs
            self._recover_at = 0.0  # records that failed under other epochs may succeed now
        # In this order: records that running calls spool before they end are sent below.
        going_on = self._going_on(epochs)
        self._held_up = not all(going_on.values())
        waiting = set[int]()
        for segment in list(self._log.segments):
            waiting |= await self._send_spooled(segment, epochs)
        # At once for the first verified partitions, and for the last ones; in between several are collected.
        is_time = all(epochs) or self._clock() - self._looked_through_at >= self._bounds.together_s_max
        if epochs != self._epochs and self._clock() >= self._recover_at and is_time:
            await self._recover_all(epochs)
            self._looked_through_at = self._clock()
        gave_up = False
        for partition in set(range(PARTITIONS)) - waiting:
            at, sent = self._seen_at[partition], self._sent_again[partition]
            if going_on.get(at, True):
                before, self._reported[partition] = self._reported[partition], sent
                gave_up |= at in going_on and before != sent
        if gave_up:
            self._say("reporting before all calls in flight have settled", level="warning")
        await self._report(self._reported)
        if epochs == self._epochs and all(epochs):
            self._log.expire(self._bounds.at_risk_s)

    def _going_on(self, epochs: list[int]) -> dict[float, bool]:
        """Return, by start time of each new epoch, whether to stop waiting for calls that began before it.

        Times without such running calls are omitted.
        """
        now, far = self._clock(), zip(self._seen_at, epochs, self._sent_again, self._reported, strict=True)
        seen = {at for at, epoch, sent, reported in far if not epoch == sent == reported}
        return {at: now - at >= self._bounds.calls_s_max for at in seen if self._in_flight(at)}

    async def _adopt(self) -> None:
        """Adopt the files of dead workers; first withdraw this worker's reports, as they do not cover these.

        The order matters, because other workers may look too, and report that the dead ones left nothing.
        """
        if not self._log.others():
            self._adopted_at = self._clock()
            return
        if any(self._reported):
            self._reported = [0] * PARTITIONS
            await self._report(self._reported)
        if adopted := await self._log.adopt():
            self._uncompared += adopted
            self._compared_under = []
            self._epochs = []  # unknown: no worker has compared the epochs of its records
            self._sent_again = [0] * PARTITIONS
        for segment in adopted:
            async with aclosing(_records_of(segment, HELD, self._bounds.piece_bytes)) as held:
                async for record in held:
                    self._recall(record.arguments)
        self._adopted_at = self._clock()

    async def _compare(self, epochs: list[int]) -> None:
        """Check that Redis' data is not older than records in adopted files; otherwise announce the loss.

        If another process has announced that already, these epochs are outdated. Servers that are away are
        compared once they are back.
        """
        there = {wire: wire.run_id for wire in self._wires.wires if wire.connected}
        whole = self._wires.connected
        if self._announce is None or (not whole and self._compared_under == epochs):
            return
        self._compared_under = epochs
        for segment in list(self._uncompared):
            positions = Positions(epochs)
            async with aclosing(_records_of(segment, ACKNOWLEDGED, self._bounds.piece_bytes)) as answered:
                async for record in answered:
                    caller, answer = unpack(record.arguments).caller, record.answer
                    moved = recovered(caller, argument(answer))
                    positions.add(caller.partition, epoch_of(answer), moved)
            for wire, run_id in there.items():
                if await positions.are_ahead(wire):
                    if wire.run_id == run_id:
                        await self._announce(wire, AHEAD)
                    self._compared_under = []
                    raise CountersUnavailable
            if whole:
                self._uncompared.remove(segment)

    async def _send_spooled(self, segment: LogSegment, epochs: list[int]) -> set[int]:
        """Settle the waiting records of one file; return the partitions with records that still wait."""
        waiting = set[int]()
        await self._send_others(segment)
        offsets = [
            offset
            for offset in segment.waiting
            if segment.kinds.get(offset) not in OTHERS and self._is_due((segment, offset))
        ]
        for start in range(0, len(offsets), BATCH_MAX):
            sent = []
            for record in map(segment.record, offsets[start : start + BATCH_MAX]):
                charges = record.offset not in segment.kinds
                mode = packing.MODE_CHARGE if charges else packing.MODE_RELEASE
                if epochs[partition_of(record.arguments)]:
                    sent.append((record, self._send(record, mode), charges))
                else:
                    waiting.add(partition_of(record.arguments))
            for record, wait, charges in sent:
                try:
                    is_settled = await self._acknowledged(record, wait, notes=charges)
                except ScriptFailed:
                    if not self._sets_aside((segment, record.offset)):
                        waiting.add(partition_of(record.arguments))
                    continue
                if is_settled:
                    self._log.done(segment, record.offset)
                    self._refusals.pop((segment, record.offset), None)
                    self.resubmitted += 1
                else:
                    waiting.add(partition_of(record.arguments))
            await asyncio.sleep(self._bounds.batch_s)
        return waiting

    def _is_due(self, record: tuple[LogSegment, int]) -> bool:
        count, at = self._refusals.get(record, (0, 0.0))
        return count < REFUSALS_MAX or self._clock() - at >= SET_ASIDE_AGAIN_S

    def _sets_aside(self, record: tuple[LogSegment, int]) -> bool:
        """Note that a script refused a record, by its file and offset; return whether it is set aside."""
        count = self._refusals.get(record, (0, 0.0))[0] + 1
        self._refusals[record] = count, self._clock()
        if count == REFUSALS_MAX:
            self.set_aside += 1
            self._say("settlement set aside: its script refuses it", file=record[0].path.name, level="error")
        return count >= REFUSALS_MAX

    async def _send_others(self, segment: LogSegment) -> None:
        """Store one file's records that are no settlements; a failed one waits, and delays no settlement."""
        for offset, kind in list(segment.kinds.items()):
            store = self._others.get(kind)
            if store is not None:
                with suppress(CountersUnavailable):
                    await store(segment.record(offset).arguments)
                    self._log.done(segment, offset)

    async def _recover_all(self, epochs: list[int]) -> None:
        """Send records of every file again that Redis acknowledged under an earlier epoch than `epochs`.

        The newest file goes first, because Redis loses the latest records.
        """
        if self._restore is not None:
            known = self._epochs or [0] * PARTITIONS
            others = [
                partition
                for partition in range(PARTITIONS)
                if epochs[partition] and epochs[partition] != known[partition]
            ]
            await self._restore(others)
        await self._log.written()
        self._log.rotate()
        before, failed = self.recovered, set[int]()
        for segment in sorted(self._log.segments, key=lambda segment: segment.newest, reverse=True):
            if segment in self._log.segments:  # otherwise it was removed meanwhile, to make room
                failed |= await self._recover(segment, epochs)
        if sent := self.recovered - before:
            self._say("settlements sent again", count=sent, level="warning")
        for partition in set(range(PARTITIONS)) - failed:
            self._sent_again[partition] = epochs[partition]
        self._epochs = [] if failed else epochs
        self._recover_at = self._clock() + RECOVER_AGAIN_S if failed else 0.0

    async def _recover(self, segment: LogSegment, epochs: list[int]) -> set[int]:
        """Send one file's records of earlier epochs again; return the partitions where that failed."""
        failed, batch = set[int](), list[Record]()
        async with aclosing(_records_of(segment, ACKNOWLEDGED, self._bounds.piece_bytes)) as answered:
            async for record in answered:
                partition = partition_of(record.arguments)
                if segment.may_be_forgotten(partition, epoch_of(record.answer), epochs[partition]):
                    batch.append(record)
                if len(batch) >= BATCH_MAX:
                    failed |= await self._recover_batch(batch)
                    batch.clear()
        failed |= await self._recover_batch(batch)
        segment.sent_again(epochs, failed)
        return failed

    async def _recover_batch(self, batch: list[Record]) -> set[int]:
        sent = [(record, self._send(record, packing.MODE_RECOVER)) for record in batch]
        failed = set()
        for record, wait in sent:
            try:
                is_settled = await self._acknowledged(record, wait)
            except ScriptFailed:
                is_settled = False
            if is_settled:
                self.recovered += 1
            else:
                failed.add(partition_of(record.arguments))
        await asyncio.sleep(self._bounds.batch_s)
        return failed

    def _send(self, record: Record, mode: int) -> Wait[Reply]:
        settlement = unpack(record.arguments)
        wire = self._wires.of(settlement.caller.partition)
        names, arguments = packing.settle(wire.run_id, TOMBSTONE_MS, settlement, mode)
        if mode == packing.MODE_RECOVER:
            arguments = (*arguments, argument(record.answer))
        return wire.send(encode_script("settle", names, arguments))

    async def _acknowledged(self, record: Record, wait: Wait[Reply], *, notes: bool = True) -> bool:
        """Return whether Redis has a record now; if `notes`, note its answer in the log.

        Raise `ScriptFailed` if the script refuses it.
        """
        try:
            answer = cast("bytes", await in_task(wait))
        except ScriptFailed:
            raise
        except CountersUnavailable:
            if not any(wire.available for wire in self._wires.wires):
                raise
            return False
        if SETTLE_RESULTS.read(answer, unpack(record.arguments).request_id) is SettleResult.UNVERIFIED:
            return False
        if notes:
            self._log.note(record.arguments, noted(answer, record.answer))
        return True


async def _records_of(segment: LogSegment, kind: int, piece_bytes: int) -> AsyncGenerator[Record]:
    """Yield a file's records of one kind; let other tasks run now and then."""
    seen = 0
    with closing(segment.reading()) as reading:
        while blocks := await asyncio.to_thread(reading.piece, piece_bytes):
            for record in chain.from_iterable(records_in(block) for block in blocks if block.kind == kind):
                yield record
                seen += 1
                if seen % TURN_MAX == 0:
                    await asyncio.sleep(0)
