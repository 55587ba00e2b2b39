"""The outbox as the flusher reads it: entries in order, removed only once they are rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

from gateway.core.ledger import MalformedEvent, Place, decode, places_before
from gateway.core.model import PARTITIONS
from gateway.core.outbox import stream_place
from gateway.core.wait import Wait, in_task
from gateway.counters import keys, packing
from gateway.counters.wire import Reply, Wire, encode
from gateway.errors import CountersRefused, CountersUnavailable

LOOK_ENTRIES = 1_000
LOOK_ENTRIES_MAX = 100_000


class Outbox:
    """Streams of all partitions, read and acknowledged on one connection.

    `broken` says of partitions whose stream cannot be read why: they wait, the others go on. `look` makes
    sure that what was read until then is of the history the wire speaks to.
    """

    def __init__(
        self,
        wire: Wire,
        say: Callable[..., None] = lambda _, **__: None,
        *,
        look: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self.broken: dict[int, str] = {}
        self._wire = wire
        self._say = say
        self._look = look
        self._read_under = b""
        self._replaced = False

    @property
    def read_under(self) -> bytes:
        """The run id of the server that was read from last; within a pass it is always the same."""
        return self._read_under

    async def read(self, after: Mapping[int, bytes], count: int) -> dict[int, list[tuple[bytes, bytes]]]:
        """Up to `count` entries (id, packed event) of each partition behind an id; b"" is the start.

        A partition whose stream is broken has none, nor has one that was verified under another history:
        its entries may be no continuation of what is stored.
        """
        limit = b"%d" % count
        self._begin_read()
        markers = {one: self._wire.send(encode(b"GET", keys.marker(one).encode())) for one in after}
        waits = {
            partition: self._wire.send(
                encode(
                    b"XRANGE",
                    keys.outbox(partition).encode(),
                    b"(" + entry_id if entry_id else b"-",
                    b"+",
                    b"COUNT",
                    limit,
                )
            )
            for partition, entry_id in after.items()
        }
        found: dict[int, list[tuple[bytes, bytes]]] = {}
        for partition, wait in waits.items():
            marker = await in_task(markers[partition])
            entries = await self._read(partition, wait)
            if isinstance(entries, list) and entries and self._is_of_this_history(marker):
                found[partition] = [_entry(entry) for entry in entries]
        if self._look is not None:
            await self._look()
            self._begin_read()
        return found

    def _is_of_this_history(self, marker: Reply) -> bool:
        return not isinstance(marker, bytes) or packing.read_marker(marker)[0] == self._read_under

    async def _read(self, partition: int, wait: Wait[Reply]) -> Reply:
        """What a stream has; None of one that is broken, as where its key is of another type."""
        try:
            entries = await in_task(wait)
        except CountersRefused as error:
            if partition not in self.broken:
                self._say("outbox stream is broken", partition=partition, error=error.message, level="error")
            self.broken[partition] = error.message
            return None
        if self.broken.pop(partition, None) is not None:
            self._say("outbox stream is whole again", partition=partition)
        return entries

    def _begin_read(self) -> None:
        """Note the server that is read from; a new one first ends the pass over the old one's entries."""
        if self._wire.run_id != self._read_under and self._read_under and not self._replaced:
            self._replaced = True
            raise CountersUnavailable("Redis was restarted in the middle of a pass")
        self._replaced = False
        self._read_under = self._wire.run_id

    async def acknowledge(
        self, entries: Mapping[int, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """Remove entries that are rows now, and the ids of control writes and late posts among them.

        The ids go first: one that outlived its entry would say for ever that its row is still to come.
        """
        if self._wire.run_id != self._read_under:
            raise CountersUnavailable("Redis was restarted since these entries were read")
        waits: list[Wait[Reply]] = []
        for partition, sources in control_ids.items():
            if sources:
                fields = [one.encode() for one in sources]
                waits.append(self._wire.send(encode(b"HDEL", keys.control(partition).encode(), *fields)))
        for partition, ids in entries.items():
            if ids:
                waits.append(self._wire.send(encode(b"XDEL", keys.outbox(partition).encode(), *ids)))
        refused = None
        for wait in waits:
            try:
                await in_task(wait)
            except CountersRefused as error:
                refused = error  # of one partition: what the others had is acknowledged
        if refused is not None:
            raise refused

    async def deleted(self) -> dict[int, bytes]:
        """The newest entry that was ever deleted of each partition's stream, by its id.

        What is deleted is a row: https://redis.io/docs/latest/commands/xinfo-stream/,
        `max-deleted-entry-id`. A partition that has no stream is left out.
        """
        there = [self._wire.send(encode(b"TYPE", keys.outbox(p).encode())) for p in range(PARTITIONS)]
        streams = [partition for partition, wait in enumerate(there) if await in_task(wait) == b"stream"]
        waits = {p: self._wire.send(encode(b"XINFO", b"STREAM", keys.outbox(p).encode())) for p in streams}
        found: dict[int, bytes] = {}
        for partition, wait in waits.items():
            facts = await in_task(wait)
            assert isinstance(facts, list)
            said = dict(zip(facts[::2], facts[1::2], strict=True))
            newest = said.get(b"max-deleted-entry-id")
            if isinstance(newest, bytes):
                found[partition] = newest
        return found

    async def waiting(self, partition: int) -> dict[str, Place] | None:
        """Where each account stood before its first entry that still waits in a partition.

        None where more waits than is looked at: who comes later cannot be told from who does not.
        """
        found: dict[str, Place] = {}
        after, looked = b"", 0
        while True:
            entries = (await self.read_ahead(partition, after)) or []
            for _, packed in entries:
                with suppress(MalformedEvent):
                    for place in places_before(decode(packed)):
                        found.setdefault(place.account, place)
            looked += len(entries)
            if len(entries) < LOOK_ENTRIES:
                return found
            if looked >= LOOK_ENTRIES_MAX:
                return None
            after = entries[-1][0]

    async def read_ahead(self, partition: int, after: bytes) -> list[tuple[bytes, bytes]]:
        """Entries behind an id, whoever reads them to store them."""
        start = b"(" + after if after else b"-"
        answer = await in_task(
            self._wire.send(
                encode(
                    *(b"XRANGE", keys.outbox(partition).encode(), start, b"+"),
                    *(b"COUNT", b"%d" % LOOK_ENTRIES),
                )
            )
        )
        return [_entry(entry) for entry in answer] if isinstance(answer, list) else []

    async def depth(self) -> tuple[int, int]:
        """Entries waiting in all partitions, and the oldest one's time in ms (0: none)."""
        names = [keys.outbox(partition).encode() for partition in range(PARTITIONS)]
        lengths = [self._wire.send(encode(b"XLEN", name)) for name in names]
        firsts = [self._wire.send(encode(b"XRANGE", name, b"-", b"+", b"COUNT", b"1")) for name in names]
        total, oldest = 0, 0
        for wait in lengths:
            length = await _unless_refused(wait)
            total += length if isinstance(length, int) else 0
        for wait in firsts:
            entries = await _unless_refused(wait)
            if isinstance(entries, list) and entries:
                at, _ = stream_place(_entry(entries[0])[0])
                oldest = min(oldest or at, at)
        return total, oldest


async def _unless_refused(wait: Wait[Reply]) -> Reply:
    with suppress(CountersRefused):
        return await in_task(wait)
    return None


def _entry(raw: Reply) -> tuple[bytes, bytes]:
    """An XRANGE entry; one without the field is an empty event, which the writer refuses by name."""
    assert isinstance(raw, list)
    entry_id, fields = raw
    assert isinstance(entry_id, bytes)
    if isinstance(fields, list) and len(fields) == 2 and isinstance(fields[1], bytes):
        return entry_id, fields[1]
    return entry_id, b""
