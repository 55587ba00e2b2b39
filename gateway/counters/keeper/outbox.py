"""The outbox for the flusher: entries in order, deleted only once they are rows, or parked.

Entries of accounts in quarantine are parked, that is moved to streams of their own, and read and deleted
there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import cast

from gateway.core.accounts.flush_batch import Owner, StreamPlace, stream_place
from gateway.core.accounts.outbox import (
    VERSION,
    AccountPosition,
    MalformedEvent,
    decode,
    is_newer,
    places_before,
)
from gateway.core.accounts.refusals import RefusedBatch, read_batch
from gateway.core.integrity.recovery import OrphanEntries
from gateway.core.wait import Wait
from gateway.counters.keeper.client import (
    APPLIED,
    Client,
    are_any_there,
    await_each,
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

# Parked entries: they wait because an account is in quarantine, in one stream for each organization.
#
# An organization's parked entries are older than its entries in the outbox. Only the script `park` moves
# entries there.

# Entries moved by one script call: half a millisecond of Redis.
MOVED_MAX = 250


def park(run_id: bytes, owner: Owner, *, gone: Iterable[bytes] = (), moved: Iterable[bytes] = ()) -> Call:
    """Return keys and arguments of the script `park`, which moves an organization's outbox entries aside.

    `moved` are entries to park in a stream of their own, `gone` parked entries to delete.
    """
    partition, organization_id = owner
    return (
        keys.marker(partition),
        keys.outbox(partition),
        keys.parked(partition),
        keys.parked_entries(partition, organization_id),
    ), (packing.PARK.pack(run_id, organization_id), _packed(gone), _packed(moved))


class ParkedEntries:
    """Counts, parks and deletes entries, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def counts(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """Return the number of parked entries (moved out of the outbox), by partition and organization."""
        asked = list(partitions)
        if not await are_any_there(self._client, [keys.parked(one) for one in asked]):
            return {}
        answers = await self._client.ask_each((b"HGETALL", keys.parked(p).encode()) for p in asked)
        return {  # a key of another type has no fields: `park` raises its error
            (partition, int(owner)): int(cast("bytes", count))
            for partition, answer in zip(asked, answers, strict=True)
            for owner, count in fields_of(answer).items()
        }

    async def move(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Park entries, in order, in streams of their owners; return the number of parked ones by owner."""
        return await self._run(entries, "moved")

    async def delete(self, entries: Mapping[Owner, Sequence[bytes]]) -> None:
        await self._run(entries, "gone")

    async def _run(self, entries: Mapping[Owner, Sequence[bytes]], which: str) -> dict[Owner, int]:
        """Run `park` in batches, with entries as its argument `which`; return the number parked by owner.

        CountersUnavailable if a partition has another history. An error of one owner is raised after all
        others are done.
        """
        run_id = self._client.wire.run_id
        sent = [
            (owner, park(run_id, owner, **{which: ids[start : start + MOVED_MAX]}))
            for owner, ids in entries.items()
            for start in range(0, len(ids), MOVED_MAX)
        ]
        answers = await await_each([self._client.send_script("park", call) for _, call in sent])
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
    return b"".join(packing.STREAM_ID.pack(*stream_place(id_)) for id_ in ids)


# The newest entry ever deleted of each partition's outbox, cached.

# Deletions of other keepers are noticed after this time at the latest.
KEPT_S = 5.0


class DeletedEntries:
    """Caches the newest deleted id by partition, under one history, until entries are deleted here."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._kept: dict[int, tuple[bytes, float]] = {}
        self._kept_under = b""
        self._removals = Counter[int]()

    def forget(self, partitions: Iterable[int]) -> None:
        """Drop the cached newest deleted ids of partitions, because this process may have deleted entries."""
        for partition in partitions:
            self._removals[partition] += 1
            self._kept.pop(partition, None)

    @property
    def removals(self) -> int:
        """The number of times that this process deleted entries, or may have."""
        return self._removals.total()

    async def newest(self, partitions: Sequence[int], *, anew: bool = True) -> dict[int, bytes]:
        """Return the newest deleted entry's id by partition, without partitions that have no such stream.

        With `anew` every id is queried; without, an id may be up to `KEPT_S` seconds old.
        """
        now, run_id = self._clock(), self._client.run_id
        if run_id != self._kept_under:
            self._kept, self._kept_under = {}, run_id
        found = {one: id_ for one, (id_, at) in self._kept.items() if not anew and now - at < KEPT_S}
        asked = [partition for partition in partitions if partition not in found]
        kept, before = self._kept, {one: self._removals[one] for one in asked}
        found |= await self._ask(asked)
        kept |= {one: (found[one], now) for one in asked if self._removals[one] == before[one]}
        return {partition: found[partition] for partition in partitions if found[partition]}

    async def _ask(self, partitions: Sequence[int]) -> dict[int, bytes]:
        """Query the newest deleted entry's id of each partition's stream; b"" if there is no stream."""
        names = [keys.outbox(partition).encode() for partition in partitions]
        kinds = await self._client.ask_each((b"TYPE", name) for name in names)
        streams = [at for at, kind in enumerate(kinds) if kind == b"stream"]
        facts = await self._client.ask_each((b"XINFO", b"STREAM", names[at]) for at in streams)
        found = dict.fromkeys(partitions, b"")
        for at, fact in zip(streams, facts, strict=True):
            newest = fields_of(fact).get(b"max-deleted-entry-id")
            found[partitions[at]] = newest if isinstance(newest, bytes) else b""
        return found


LOOK_ENTRIES = 1_000
LOOK_ENTRIES_MAX = 100_000

# A partition, and the key of one of its streams.
_Stream = tuple[int, str]


class Outbox:
    """The outbox streams of all partitions, read and deleted on one connection.

    A partition whose stream cannot be read waits, with its error in `broken`, and the others go on. A
    partition of a newer version waits, too, and so do entries from the first that a newer version wrote.
    `check_history` verifies that the entries read so far belong to the connection's history.
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
        """Return up to `count` entries (id, packed event) of each partition after an id; b"" is the start.

        A partition is omitted if its stream is broken, or if it was verified under another history: then its
        entries may not continue the stored ones.
        """
        found = await self._read({(p, keys.outbox(p)): entry_id for p, entry_id in after.items()}, count)
        for (partition, _), entries in found.items():
            self._tell(partition, entries)
        return {p: entries for (p, _), entries in found.items() if isinstance(entries, list) and entries}

    async def read_parked(
        self, after: Mapping[Owner, bytes], count: int
    ) -> dict[Owner, list[tuple[bytes, bytes]]]:
        """Return up to `count` parked entries after an id, by owner, without streams that cannot be read."""
        owners = {(p, keys.parked_entries(p, one)): (p, one) for p, one in after}
        found = await self._read({stream: after[owner] for stream, owner in owners.items()}, count)
        return {owners[stream]: entries for stream, entries in found.items() if isinstance(entries, list)}

    async def parked(self, partitions: Iterable[int]) -> dict[Owner, int]:
        """Return the number of parked entries by owner, including all that were parked before a `read`."""
        asked = frozenset(partitions)
        counts = await self._parked.counts(asked)
        there = {keys.parked_entries(*owner) for owner in counts} | {keys.outbox(one) for one in asked}
        self._forget_others({(p, stream) for p, stream in self._others if p in asked and stream not in there})
        return counts

    def keep_to(self, partitions: Collection[int]) -> None:
        """Forget unreadable entries of other partitions, whose streams another keeper reads from now on."""
        self._forget_others({(p, stream) for p, stream in self._others if p not in partitions})

    async def _read(
        self, after: Mapping[_Stream, bytes], count: int
    ) -> dict[_Stream, list[tuple[bytes, bytes]] | CountersRefused]:
        """Return up to `count` entries of each stream after an id, or the error of a broken stream.

        Streams of partitions with another history are left out.
        """
        self._begin_read()
        markers = await markers_of(self._client, {partition for partition, _ in after})
        ours = {one for one, marker in markers.items() if self._is_ours(one, marker)}
        asked = {stream: behind for stream, behind in after.items() if stream[0] in ours}
        answers = await entries_of(self._client, {name: one for (_, name), one in asked.items()}, count)
        found = {
            stream: answer if isinstance(answer, CountersRefused) else self._readable_entries(*stream, answer)
            for stream, answer in zip(asked, answers, strict=True)
        }
        if self._check_history is not None:
            await self._check_history()
            self._begin_read()
        return found

    def _is_ours(self, partition: int, marker: Reply) -> bool:
        """Return whether a partition has the history being read, and belongs to no newer version."""
        if not isinstance(marker, bytes):
            return True
        try:
            return read_marker(marker)[0] == self.read_under
        except NewerLayout as error:
            self._client.left_alone.note("partition", str(partition), error.message)
            return False

    def _readable_entries(
        self, partition: int, stream: str, entries: list[tuple[bytes, bytes]]
    ) -> list[tuple[bytes, bytes]] | CountersRefused:
        """Return the entries before the first one of a newer version, because later ones may depend on it.

        A parked stream with such an entry is refused as a whole. The entry is counted once.
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
        """Forget entries of newer versions in these streams: they are gone, or another keeper reads them."""
        for _, stream in streams:
            self._client.left_alone.keep("entry", (), f"{stream} ")
        self._others.difference_update(streams)

    def _tell(self, partition: int, read: list[tuple[bytes, bytes]] | CountersRefused) -> None:
        """Log when a partition's stream becomes unreadable, such as by its type, and when it recovers."""
        if isinstance(read, list):
            if self.broken.pop(partition, None) is not None:
                self._say("outbox stream is whole again", partition=partition)
            return
        if partition not in self.broken:
            self._say("outbox stream is broken", partition=partition, error=read.message, level="error")
        self.broken[partition] = read.message

    def _begin_read(self) -> None:
        """Note the history of the entries to read; raise CountersUnavailable once if it has changed.

        The error ends the pass over entries of the former history.
        """
        if self._client.wire.run_id != self.read_under and self.read_under and not self._replaced:
            self._replaced = True
            raise CountersUnavailable("Redis was restarted in the middle of a pass")
        self._replaced = False
        self.read_under = self._client.wire.run_id

    async def acknowledge(
        self, entries: Mapping[int, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        """Delete outbox entries that are rows now, and the ids of control writes and late charges in them.

        Ids are deleted first: an id without its entry would mean that the row is still to come.
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
        """Delete parked entries that are rows now, and the ids of control writes in them."""
        self._refuse_replaced()
        await self._all(self._forget(control_ids))
        await self._parked.delete(entries)

    async def park(self, entries: Mapping[Owner, Sequence[bytes]]) -> dict[Owner, int]:
        """Park entries that must wait, in order, by owner; return the number of each owner's parked ones."""
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
        refused = [one for one in await await_each(waits) if isinstance(one, CountersRefused)]
        if refused:
            raise refused[-1]  # of one partition: the others' entries are deleted

    @property
    def removals(self) -> int:
        """The number of times that this process deleted outbox entries, or may have."""
        return self._deleted.removals

    async def deleted(self, *, anew: bool = True) -> dict[int, bytes]:
        """Return the id of the newest entry ever deleted from each partition's stream, which is a row.

        It is the `max-deleted-entry-id` of https://redis.io/docs/latest/commands/xinfo-stream/. Partitions
        without a stream are omitted. Unless `anew`, recent deletions of other keepers may be missing.
        """
        return await self._deleted.newest(self._client.partitions, anew=anew)

    async def waiting(self, partition: int) -> dict[str, AccountPosition] | None:
        """Return each account's position: the last one before its first entry in the outbox, or parked.

        None if there are more entries than are read, so that some accounts may be missing.
        """
        # In this order: an entry parked meanwhile is seen in one place or both, and is older where it is
        # parked.
        waiting = await self._places(keys.outbox(partition))
        for _, owner in await self.parked([partition]):
            apart = await self._places(keys.parked_entries(partition, owner))
            waiting = None if waiting is None or apart is None else waiting | apart
        return waiting

    async def _places(self, stream: str) -> dict[str, AccountPosition] | None:
        """Return each account's position: the last one before its first entry of a stream.

        None if the stream has more entries than are read.
        """
        account_positions: dict[str, AccountPosition] = {}
        after = b""
        page = min(LOOK_ENTRIES, self._look_entries_max)
        for _ in range(self._look_entries_max // page):
            entries = entries_in(await self._client.ask(*entries_behind(stream, after, page)))
            for _, packed in entries:
                if is_newer(packed):  # its accounts and movements are unknown
                    return None
                with suppress(MalformedEvent):
                    for place in places_before(decode(packed)):
                        account_positions.setdefault(place.account, place)
            if len(entries) < page:
                return account_positions
            after = entries[-1][0]
        return None


# Finds and deletes the entries that older data added to an outbox, which do not follow from PostgreSQL's
# rows.

READ_ENTRIES = 1_000


class OrphanReader:
    """Reads and deletes entries of older data; the history guard's `check_history` runs a transaction."""

    def __init__(
        self,
        client: Client,
        check_history: Callable[..., Awaitable[None]],
        deleted: DeletedEntries | None = None,
    ) -> None:
        self._client, self._check_history = client, check_history
        self._deleted = deleted or DeletedEntries(client)

    async def behind(self, marks: Mapping[int, bytes], *, anew: bool = True) -> list[int]:
        """Return the partitions whose stream never had its entry in `marks`: PostgreSQL is ahead of Redis.

        Unless `anew`, a stream that had the entry before, under the present history, is not checked again.
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
            for (partition, mark), fact in zip(missing, facts, strict=True)
            if _fact(fact, b"max-deleted-entry-id") < stream_place(mark)
        ]

    async def read_strays(
        self, partition: int, mark: bytes, stopped: Collection[str] = ()
    ) -> OrphanEntries | None:
        """Return all entries of a stream that never had the entry `mark`; None if it had.

        Entries of `stopped` accounts, which are in quarantine, are left out.
        """
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
        """Delete the entries of older data; return an id that all new entries of the stream will follow.

        CountersUnavailable if the data was exchanged meanwhile, or new entries came.
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


def _fact(reply: Reply, name: bytes) -> StreamPlace:
    """Return the stream id in the field `name` of an XINFO reply; the lowest id if there is no stream."""
    field = fields_of(reply).get(name)
    return stream_place(field if isinstance(field, bytes) else b"")


class RefusedStream:
    """The stream of refused calls, to which all workers add; a keeper deletes those that are rows."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def read(self, count: int) -> list[tuple[bytes, RefusedBatch | None]]:
        """Return up to `count` of the oldest batches of refused calls, with ids; None for unreadable ones."""
        found = await self._client.ask_everybodys(
            b"XRANGE", keys.REFUSED.encode(), b"-", b"+", b"COUNT", b"%d" % count
        )
        entries = map(entry_of, found) if isinstance(found, list) else ()
        return [(entry_id, read_batch(packed)) for entry_id, packed in entries]

    async def forget(self, ids: Sequence[bytes]) -> None:
        """Delete batches of refused calls that PostgreSQL has now."""
        await self._client.ask_everybodys(b"XDEL", keys.REFUSED.encode(), *ids)
