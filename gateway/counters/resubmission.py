"""Brings the settlement log and the counters together again after either was away.

What was spooled is settled as soon as a verified Redis is there. Whenever a partition is found
under a later epoch than records were acknowledged under, that Redis may have forgotten them: they
are sent once more, and the keeper, who knows the ledger, posts those that are in nobody's books.
Files of workers that died are adopted and treated the same. Traffic goes on meanwhile: what is
sent again is sent in bounded batches at a bounded rate.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from gateway.core.model import PARTITIONS, Settled
from gateway.core.wait import Wait, in_task
from gateway.counters import keys, packing
from gateway.counters.acknowledged import argument, epoch_of
from gateway.counters.quota import TOMBSTONE_MS
from gateway.counters.segment import Record, acknowledged
from gateway.counters.segment_file import Segment
from gateway.counters.settlement_log import AT_RISK_S, SettlementLog
from gateway.counters.settlement_record import partition_of, unpack
from gateway.counters.wire import Reply, Wire, encode, encode_script
from gateway.errors import CountersUnavailable

LOOK_S = 1.0
RETRY_S = 0.2
ADOPT_S = 10.0
# A partition whose stream is broken has all of its records fail: not every second.
RECOVER_AGAIN_S = 10.0
BATCH_MAX = 64
BATCH_S = 0.02
SKIPS_MAX = 500

_FINAL = frozenset({int(Settled.DONE), int(Settled.RECLAIMED), int(Settled.UNKNOWN)})


class Resubmitter:
    """Sends again what the log has and the counters may not. `resubmitted` and `recovered` count."""

    def __init__(
        self, wire: Wire, log: SettlementLog, clock: Callable[[], float], say: Callable[..., None]
    ) -> None:
        self.resubmitted = 0
        self.recovered = 0
        self._wire, self._log, self._clock, self._say = wire, log, clock, say
        self._epochs: list[int] = []
        self._recover_at = 0.0
        self._adopted_at = clock() - ADOPT_S

    async def run(self) -> None:
        """Look once a second, at once when something was spooled, until cancelled."""
        while True:
            try:
                await self.look()
            except CountersUnavailable:
                await asyncio.sleep(RETRY_S)
            self._log.woken.clear()
            if not self._log.waiting:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._log.woken.wait(), LOOK_S)
            await asyncio.sleep(RETRY_S)

    async def look(self) -> None:
        """Adopt, send what waits and what may be forgotten; drop what nobody needs any more.

        CountersUnavailable where Redis is away or nothing is verified.
        """
        log = self._log
        if self._clock() - self._adopted_at >= ADOPT_S:
            if await log.files.adopt():
                self._epochs = []  # nobody has looked under which they were acknowledged
            self._adopted_at = self._clock()
        if log.files.empty and not log.waiting:
            return
        epochs = await self._verified_epochs()
        for segment in list(log.files.segments):
            await self._send_spooled(segment, epochs)
        if epochs != self._epochs and self._clock() >= self._recover_at:
            await self._recover_all(epochs)
        if epochs == self._epochs and all(epochs):
            sure = self._clock() - AT_RISK_S  # what is younger, Redis may still forget
            for segment in log.files.segments:
                if segment.adopted and not segment.waiting and segment.newest <= sure:
                    log.drop(segment)
            log.expire()

    async def _verified_epochs(self) -> list[int]:
        """The epoch of each partition; 0 where it is not verified on this connection."""
        waits = [self._wire.send(encode(b"GET", keys.marker(one).encode())) for one in range(PARTITIONS)]
        markers = [await in_task(wait) for wait in waits]
        epochs = []
        for raw in markers:
            run_id, epoch, _ = packing.read_marker(raw if isinstance(raw, bytes) else b"")
            epochs.append(epoch if run_id == self._wire.run_id else 0)
        if not any(epochs):
            raise CountersUnavailable
        return epochs

    async def _send_spooled(self, segment: Segment, epochs: list[int]) -> None:
        """Settle what waits in one file; what fails waits on."""
        offsets = list(segment.waiting)
        for start in range(0, len(offsets), BATCH_MAX):
            records = [segment.record(offset) for offset in offsets[start : start + BATCH_MAX]]
            sent = [
                (record, self._send(record, packing.MODE_CHARGE))
                for record in records
                if epochs[partition_of(record.arguments)]
            ]
            for record, wait in sent:
                if await self._acknowledged(record, wait):
                    self._log.done(segment, record.offset)
                    self.resubmitted += 1
            await asyncio.sleep(BATCH_S)

    async def _recover_all(self, epochs: list[int]) -> None:
        """Send again what was acknowledged under an earlier epoch, in every file there is now."""
        await self._log.written()
        self._log.files.rotate()
        before, failed = self.recovered, set[int]()
        for segment in list(self._log.files.segments):
            if segment in self._log.files.segments:  # else it made room for what is spooled, meanwhile
                content = await asyncio.to_thread(segment.reading())
                failed |= await self._recover(segment, content, epochs)
        if sent := self.recovered - before:
            self._say("settlements sent again", count=sent, level="warning")
        self._epochs = [] if failed else epochs
        self._recover_at = self._clock() + RECOVER_AGAIN_S if failed else 0.0

    async def _recover(self, segment: Segment, content: bytes, epochs: list[int]) -> set[int]:
        """Send again what one file has of earlier epochs; the partitions where that failed."""
        failed, batch, skipped = set[int](), list[Record](), 0
        for record in acknowledged(content):
            if _forgotten(record, segment, epochs):
                batch.append(record)
            else:
                skipped += 1
            if len(batch) >= BATCH_MAX:
                failed |= await self._recover_batch(batch)
                batch.clear()
            elif skipped >= SKIPS_MAX:
                skipped = 0
                await asyncio.sleep(0)
        failed |= await self._recover_batch(batch)
        for partition, epoch in enumerate(epochs):
            if partition not in failed:
                segment.recovered[partition] = max(epoch, segment.recovered[partition])
        return failed

    async def _recover_batch(self, batch: list[Record]) -> set[int]:
        sent = [(record, self._send(record, packing.MODE_RECOVER)) for record in batch]
        failed = set()
        for record, wait in sent:
            if await self._acknowledged(record, wait):
                self.recovered += 1
            else:
                failed.add(partition_of(record.arguments))
        await asyncio.sleep(BATCH_S)
        return failed

    def _send(self, record: Record, mode: int) -> Wait[Reply]:
        settlement = unpack(record.arguments)
        names, arguments = packing.settle(self._wire.run_id, TOMBSTONE_MS, settlement, mode)
        if mode == packing.MODE_RECOVER:
            arguments = (*arguments, argument(record.answer))
        return self._wire.send(encode_script("settle", names, arguments))

    async def _acknowledged(self, record: Record, wait: Wait[Reply]) -> bool:
        """Whether the counters have a record now; then that is noted in its turn."""
        try:
            answer = cast("bytes", await in_task(wait))
        except CountersUnavailable:
            if not self._wire.available:
                raise
            return False
        if packing.code_of(answer) not in _FINAL:
            return False
        self._log.note(record.arguments, answer)
        return True


def _forgotten(record: Record, segment: Segment, epochs: list[int]) -> bool:
    """Whether the partition is under a later epoch, and this record was not noted anew since."""
    partition = partition_of(record.arguments)
    return segment.recovered[partition] <= epoch_of(record.answer) < epochs[partition]
