"""The outbox as the flusher reads it: entries in order, removed only once they are rows, or moved aside.

Entries behind accounts in quarantine are set aside, and are read and acknowledged likewise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from gateway.core.accounts.outbox import (
    VERSION,
    AccountPosition,
    MalformedEvent,
    Owner,
    StreamPlace,
    decode,
    is_newer,
    places_before,
    stream_place,
)
from gateway.core.accounts.refusals import RefusedBatch, read_batch
from gateway.core.integrity.recovery import OrphanEntries
from gateway.core.wait import Wait
from gateway.counters.keeper.client import (
    APPLIED,
    Client,
    are_any_there,
    each,
    entries_behind,
    entries_in,
    entries_of,
    entry_of,
    fields_of,
    markers_of,
    read_marker,
)
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.connection import encode
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout

# Entries that wait behind accounts in quarantine, apart from the outbox: a stream for each organization.
#
# An organization's entries there are older than any of it in the outbox. Only `park` writes here.

# Entries one script moves: half a millisecond of Redis.
MOVED_MAX = 250


def park(run_id: bytes, owner: Owner, *, gone: Iterable[bytes] = (), moved: Iterable[bytes] = ()) -> Call:
    """Return keys and arguments of `park`; `gone` are deleted there, `moved` come from the outbox."""
    partition, organization_id = owner
    return (
        keys.marker(partition),
        keys.outbox(partition),
        keys.parked(partition),
        keys.parked_entries(partition, organization_id),
    ), (packing.PARK.pack(run_id, organization_id), _packed(gone), _packed(moved))


class ParkedEntries:
    """Looks and moves, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def counts(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """Return how many entries wait, by partition and organization."""
        asked = list(partitions)
        if not await are_any_there(self._client, [keys.parked(one) for one in asked]):
            return {}
        answers = await self._client.ask_each((b"HGETALL", keys.parked(p).encode()) for p in asked)
        return {  # nothing of one that is of another type: `park` says so
            (partition, int(owner)): int(cast("bytes", count))
            for partition, answer in zip(asked, answers, strict=True)
            for owner, count in fields_of(answer).items()
        }

    async def move(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Move entries here from the outbox, in their order; answers how many wait by then."""
        return await self._run(entries, "moved")

    async def delete(self, entries: Mapping[Owner, Sequence[bytes]]) -> None:
        await self._run(entries, "gone")

    async def _run(self, entries: Mapping[Owner, Sequence[bytes]], which: str) -> dict[Owner, int]:
        """CountersUnavailable where a partition is of another history; what is refused comes last."""
        run_id = self._client.wire.run_id
        sent = [
            (owner, park(run_id, owner, **{which: ids[start : start + MOVED_MAX]}))
            for owner, ids in entries.items()
            for start in range(0, len(ids), MOVED_MAX)
        ]
        answers = await each([self._client.send_script("park", call) for _, call in sent])
        found: dict[Owner, int] = {}
        refused, unverified = None, False
        for (owner, _), answer in zip(sent, answers, strict=True):
            if isinstance(answer, CountersRefused):
                refused = answer
            elif packing.code_of(cast("bytes", answer)) == APPLIED:
                found[owner] = packing.PARKED.read(cast("bytes", answer))["waiting"]
            else:
                unverified = True
        if unverified:
            raise CountersUnavailable("a partition is of another history since its entries were read")
        if refused is not None:
            raise refused
        return found


def _packed(ids: Iterable[bytes]) -> bytes:
    return b"".join(packing.STREAM_ID.pack(*stream_place(one)) for one in ids)


# The newest entry ever deleted of each partition's outbox, asked again where that may be another by now.

# What others deleted is seen that late.
KEPT_S = 5.0


class DeletedEntries:
    """Keeps what was answered of a partition, under one history, until entries of it are removed here."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._kept: dict[int, tuple[bytes, float]] = {}
        self._kept_under = b""
        self._removals = Counter[int]()

    def forget(self, partitions: Iterable[int]) -> None:
        """Entries of these may have been removed: ask again."""
        for partition in partitions:
            self._removals[partition] += 1
            self._kept.pop(partition, None)

    @property
    def removals(self) -> int:
        """How often this was told."""
        return self._removals.total()

    async def newest(self, partitions: Sequence[int], *, anew: bool = True) -> dict[int, bytes]:
        """By partition, the id; unless `anew`, as of up to `KEPT_S` ago. None where there is no stream."""
        now, run_id = self._clock(), self._client.run_id
        if run_id != self._kept_under:
            self._kept, self._kept_under = {}, run_id
        found = {one: id_ for one, (id_, at) in self._kept.items() if not anew and now - at < KEPT_S}
        asked = [one for one in partitions if one not in found]
        kept, before = self._kept, {one: self._removals[one] for one in asked}
        found |= await self._ask(asked)
        kept |= {one: (found[one], now) for one in asked if self._removals[one] == before[one]}
        return {one: found[one] for one in partitions if found[one]}

    async def _ask(self, partitions: Sequence[int]) -> dict[int, bytes]:
        """Of each of these; b"" of one whose key is no stream."""
        names = [keys.outbox(one).encode() for one in partitions]
        kinds = await self._client.ask_each((b"TYPE", name) for name in names)
        streams = [at for at, kind in enumerate(kinds) if kind == b"stream"]
        facts = await self._client.ask_each((b"XINFO", b"STREAM", names[at]) for at in streams)
        found = dict.fromkeys(partitions, b"")
        for at, said in zip(streams, facts, strict=True):
            newest = fields_of(said).get(b"max-deleted-entry-id")
            found[partitions[at]] = newest if isinstance(newest, bytes) else b""
        return found


LOOK_ENTRIES = 1_000
LOOK_ENTRIES_MAX = 100_000

# A partition, and the key of a stream of it.
_Stream = tuple[int, str]


class Outbox:
    """Streams of all partitions, read and acknowledged on one connection.

    `broken` says of partitions whose stream cannot be read why: they wait, the others go on. The same holds
    for those of a newer version, and those where an entry of one comes next: it stays where it is.
    `check_history` makes sure that entries read until then are of the history the wire speaks to.
    """

    def __init__(
        self,
        client: Client,
        say: Callable[..., None] = lambda _, **__: None,
        *,
        check_history: Callable[[], Awaitable[None]] | None = None,
        deleted: DeletedEntries | None = None,
        look_entries_max: int = LOOK_ENTRIES_MAX,
    ) -> None:
        self.broken: dict[int, str] = {}
        self._client, self._parked, self._deleted = (
            client,
            ParkedEntries(client),
            deleted or DeletedEntries(client),
        )
        self._say, self._look_entries_max, self._check_history = say, look_entries_max, check_history
        self.read_under, self._replaced = b"", False
        self._others: set[_Stream] = set()

    async def read(self, after: Mapping[int, bytes], count: int) -> dict[int, list[tuple[bytes, bytes]]]:
        """Up to `count` entries (id, packed event) of each partition after an id; b"" is the start.

        A partition whose stream is broken has nothing; one that was verified under another history
        has nothing either: its entries may not continue the stored ones.
        """
        found = await self._read({(p, keys.outbox(p)): entry_id for p, entry_id in after.items()}, count)
        for (partition, _), entries in found.items():
            self._tell(partition, entries)
        return {p: entries for (p, _), entries in found.items() if isinstance(entries, list) and entries}

    async def read_parked(
        self, after: Mapping[Owner, bytes], count: int
    ) -> dict[Owner, list[tuple[bytes, bytes]]]:
        """Up to `count` entries that are set aside, by owner; nothing of one that cannot be read now."""
        owners = {(p, keys.parked_entries(p, one)): (p, one) for p, one in after}
        found = await self._read({stream: after[owner] for stream, owner in owners.items()}, count)
        return {owners[stream]: entries for stream, entries in found.items() if isinstance(entries, list)}

    async def parked(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """How many entries are set aside, by owner. Asked after a `read` it counts all moved before that."""
        asked = frozenset(partitions)
        counts = await self._parked.counts(asked)
        there = {keys.parked_entries(*owner) for owner in counts} | {keys.outbox(one) for one in asked}
        self._forget_others({(p, stream) for p, stream in self._others if p in asked and stream not in there})
        return counts

    def keep_to(self, partitions: Collection[int]) -> None:
        """These alone are read from now on: the streams of others have other readers."""
        self._forget_others({(p, stream) for p, stream in self._others if p not in partitions})

    async def _read(
        self, after: Mapping[_Stream, bytes], count: int
    ) -> dict[_Stream, list[tuple[bytes, bytes]] | CountersRefused]:
        """Entries of streams after an id, or why one is broken; of another history there is nothing."""
        self._begin_read()
        markers = await markers_of(self._client, {partition for partition, _ in after})
        ours = {one for one, marker in markers.items() if self._is_ours(one, marker)}
        asked = {stream: behind for stream, behind in after.items() if stream[0] in ours}
        answers = await entries_of(self._client, {name: one for (_, name), one in asked.items()}, count)
        found = {
            stream: answer if isinstance(answer, CountersRefused) else self._known(*stream, answer)
            for stream, answer in zip(asked, answers, strict=True)
        }
        if self._check_history is not None:
            await self._check_history()
            self._begin_read()
        return found

    def _is_ours(self, partition: int, marker: Reply) -> bool:
        """Return whether a partition is of this history, and no newer version's."""
        if not isinstance(marker, bytes):
            return True
        try:
            return read_marker(marker)[0] == self.read_under
        except NewerLayout as error:
            self._client.left_alone.note("partition", str(partition), error.message)
            return False

    def _known(
        self, partition: int, stream: str, entries: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]] | CountersRefused:
        """Return entries up to the first that a newer version has written: what comes behind it may follow
        it.

        Entries set aside are read whole or not at all. One of each stream is counted: the first.
        """
        if not entries and not self._others:
            return entries
        at = next((at for at, (_, packed) in enumerate(entries) if is_newer(packed)), None)
        if at is None:
            self._forget_others({(partition, stream)} & self._others)
            return entries
        entry_id, packed = entries[at]
        why = f"entry of layout {packed[0]}: this version knows up to {VERSION}"
        name = f"{stream} {entry_id.decode()}"
        self._client.left_alone.note("entry", name, why)
        self._client.left_alone.keep("entry", [name], f"{stream} ")
        self._others.add((partition, stream))
        return entries[:at] if stream == keys.outbox(partition) else CountersRefused(why)

    def _forget_others(self, streams: Collection[_Stream]) -> None:
        """Nothing of a newer version comes next there, or it is not read here."""
        for _, stream in streams:
            self._client.left_alone.keep("entry", (), f"{stream} ")
        self._others.difference_update(streams)

    def _tell(self, partition: int, read: list[tuple[bytes, bytes]] | CountersRefused) -> None:
        """Say whose stream is broken, as where its key is of another type, and whose is whole again."""
        if isinstance(read, list):
            if self.broken.pop(partition, None) is not None:
                self._say("outbox stream is whole again", partition=partition)
            return
        if partition not in self.broken:
            self._say("outbox stream is broken", partition=partition, error=read.message, level="error")
        self.broken[partition] = read.message

    def _begin_read(self) -> None:
        """Note the server that is read from; a new one first ends the pass over the old one's entries."""
        if self._client.wire.run_id != self.read_under and self.read_under and not self._replaced:
            self._replaced = True
            raise CountersUnavailable("Redis was restarted in the middle of a pass")
        self._replaced = False
        self.read_under = self._client.wire.run_id

    async def acknowledge(
        self, entries: Mapping[int, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """Remove entries that are rows now, and the ids of control writes and late posts among them.

        The ids go first: one that outlived its entry would say for ever that its row is still to come.
        """
        self._refuse_replaced()
        waits = self._forget(control_ids)
        for partition, ids in entries.items():
            if ids:
                waits.append(self._client.send(b"XDEL", keys.outbox(partition).encode(), *ids))
        try:
            await self._all(waits)
        finally:
            self._deleted.forget(entries)

    async def acknowledge_parked(
        self, entries: Mapping[Owner, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """The same of entries that waited apart."""
        self._refuse_replaced()
        await self._all(self._forget(control_ids))
        await self._parked.delete(entries)

    async def park(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Move entries aside that wait, in their order; answers how many wait of each owner by then."""
        self._refuse_replaced()
        try:
            return await self._parked.move(entries)
        finally:
            self._deleted.forget(partition for partition, _ in entries)

    def _refuse_replaced(self) -> None:
        if self._client.wire.run_id != self.read_under:
            raise CountersUnavailable("Redis was restarted since these entries were read")

    def _forget(self, control_ids: Mapping[int, Sequence[str]]) -> list[Wait[Reply]]:
        return [
            self._client.send(b"HDEL", keys.control(partition).encode(), *(id_.encode() for id_ in ids))
            for partition, ids in control_ids.items()
            if ids
        ]

    async def _all(self, waits: Sequence[Wait[Reply]]) -> None:
        refused = [one for one in await each(waits) if isinstance(one, CountersRefused)]
        if refused:
            raise refused[-1]  # of one partition: what the others had is acknowledged

    @property
    def removals(self) -> int:
        """How often entries were removed here, or may have been."""
        return self._deleted.removals

    async def deleted(self, *, anew: bool = True) -> dict[int, bytes]:
        """Return the newest entry that was ever deleted of each partition's stream, by its id.

        Deleted entries are rows: https://redis.io/docs/latest/commands/xinfo-stream/,
        `max-deleted-entry-id`. A partition that has no stream is left out. Unless it is asked `anew`,
        recent deletions of others may be missing.
        """
        return await self._deleted.newest(self._client.partitions, anew=anew)

    async def waiting(self, partition: int) -> dict[str, AccountPosition] | None:
        """Return where each account stood before its first entry that still waits in a partition.

        None where more waits than is looked at: who comes later cannot be told from who does not.
        """
        # In this order: what is moved aside meanwhile is seen here or there, and is older there.
        waiting = await self._places(keys.outbox(partition))
        for _, owner in await self.parked([partition]):
            apart = await self._places(keys.parked_entries(partition, owner))
            waiting = None if waiting is None or apart is None else waiting | apart
        return waiting

    async def _places(self, stream: str) -> dict[str, AccountPosition] | None:
        """Where each account stood before its first entry of a stream; None where there are too many."""
        found: dict[str, AccountPosition] = {}
        after = b""
        page = min(LOOK_ENTRIES, self._look_entries_max)
        for _ in range(self._look_entries_max // page):
            entries = entries_in(await self._client.ask(*entries_behind(stream, after, page)))
            for _, packed in entries:
                if is_newer(packed):  # whose account it moves, and how, is not known
                    return None
                with suppress(MalformedEvent):
                    for place in places_before(decode(packed)):
                        found.setdefault(place.account, place)
            if len(entries) < page:
                return found
            after = entries[-1][0]
        return None

    async def depth(self) -> tuple[int, int]:
        """Return entries waiting in all partitions, and the oldest one's time in ms (0: none)."""
        names = [keys.outbox(one) for one in self._client.partitions]
        firsts = await entries_of(self._client, dict.fromkeys(names, b""), 1)
        read = zip(names, firsts, strict=True)
        waiting = [(name, one[0][0]) for name, one in read if isinstance(one, list) and one]
        lengths = await self._client.ask_each((b"XLEN", name.encode()) for name, _ in waiting)
        times = [stream_place(first)[0] for _, first in waiting]
        return sum(one for one in lengths if isinstance(one, int)), min(times, default=0)


# Finds and drops what waits in older data's outbox: PostgreSQL's rows do not lead to it.

READ_ENTRIES = 1_000


class OrphanReader:
    """Reads and drops them over the keeper's connection; the fence's `check_history` runs a transaction."""

    def __init__(
        self,
        client: Client,
        check_history: Callable[..., Awaitable[None]],
        deleted: DeletedEntries | None = None,
    ) -> None:
        self._client, self._check_history = client, check_history
        self._deleted = deleted or DeletedEntries(client)

    async def behind(self, marks: Mapping[int, bytes], *, anew: bool = True) -> list[int]:
        """Return the partitions whose stream never had this entry: the data is older than their rows.

        Unless it is asked `anew`, a stream that had it under this history has had it.
        """
        newest = await self._deleted.newest(list(marks), anew=anew)
        had = {one for one, entry_id in newest.items() if stream_place(entry_id) >= stream_place(marks[one])}
        asked = [(partition, mark) for partition, mark in marks.items() if partition not in had]
        self._deleted.forget(partition for partition, _ in asked)
        there = await self._client.ask_each((b"XRANGE", _name(p), mark, mark) for p, mark in asked)
        missing = [one for one, found in zip(asked, there, strict=True) if found == []]
        facts = await self._client.ask_each((b"XINFO", b"STREAM", _name(p)) for p, _ in missing)
        return [
            partition
            for (partition, mark), said in zip(missing, facts, strict=True)
            if _fact(said, b"max-deleted-entry-id") < stream_place(mark)
        ]

    async def read_strays(
        self, partition: int, mark: bytes, stopped: Collection[str] = ()
    ) -> OrphanEntries | None:
        """Return all that waits in a stream that never had `mark`; None where it had."""
        if not await self.behind({partition: mark}):
            return None
        found, after = OrphanEntries(partition, mark, stopped), b""
        while True:
            entries = entries_in(
                await self._client.ask(*entries_behind(keys.outbox(partition), after, READ_ENTRIES))
            )
            for after, packed in entries:
                found.add(after, packed)
            if len(entries) < READ_ENTRIES:
                return found

    async def drop(self, strays: OrphanEntries) -> bytes:
        """Remove them, ids first, and have the stream begin after what is stored; answers from where on.

        CountersUnavailable where the data was exchanged meanwhile, or the stream went on.
        """
        partition, control = strays.partition, keys.control(strays.partition).encode()
        for start in range(0, len(strays.ids), READ_ENTRIES):
            await self._client.ask(b"HDEL", control, *strays.ids[start : start + READ_ENTRIES])
        for start in range(0, len(strays.entries), READ_ENTRIES):
            await self._client.ask(b"XDEL", _name(partition), *strays.entries[start : start + READ_ENTRIES])
        (said,) = await self._client.ask_each([(b"XINFO", b"STREAM", _name(partition))])
        ms, number = max(stream_place(strays.after), _fact(said, b"last-generated-id"))
        begins = b"%d-%d" % (ms, number + 1)
        name = _name(partition)
        await self._check_history(encode(b"XADD", name, begins, b"e", b""), encode(b"XDEL", name, begins))
        return begins


def _name(partition: int) -> bytes:
    return keys.outbox(partition).encode()


def _fact(said: Reply, name: bytes) -> StreamPlace:
    """Return the place that XINFO names; that before all where there is no stream."""
    found = fields_of(said).get(name)
    return stream_place(found if isinstance(found, bytes) else b"")


# Refused calls as the keeper reads them: batches in the order they came, removed once they are rows.
class RefusedStream:
    """The stream that all workers add to."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, count: int) -> list[tuple[bytes, RefusedBatch | None]]:
        """Return the oldest batches with their ids; None for what cannot be read."""
        found = await self._client.ask_everybodys(
            b"XRANGE", keys.REFUSED.encode(), b"-", b"+", b"COUNT", b"%d" % count
        )
        entries = map(entry_of, found) if isinstance(found, list) else ()
        return [(entry_id, read_batch(packed)) for entry_id, packed in entries]

    async def forget(self, ids: Sequence[bytes]) -> None:
        """Remove batches that are stored."""
        await self._client.ask_everybodys(b"XDEL", keys.REFUSED.encode(), *ids)
