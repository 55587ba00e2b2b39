"""Finds and drops what waits in older data's outbox: PostgreSQL's rows do not lead to it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping

from gateway.core.accounts.outbox import StreamPlace, stream_place
from gateway.core.integrity.strays import Strays
from gateway.counters.keeper.client import Client, entries_behind, entries_in, fields_of
from gateway.counters.keeper.deleted import DeletedEntries
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.counters.redis.wire import encode

READ_ENTRIES = 1_000


class StrayReader:
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
        """The partitions whose stream never had this entry: the data is older than what was stored of it.

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

    async def read_strays(self, partition: int, mark: bytes, stopped: Collection[str] = ()) -> Strays | None:
        """All that waits in a stream that never had `mark`; None where it had."""
        if not await self.behind({partition: mark}):
            return None
        found, after = Strays(partition, mark, stopped), b""
        while True:
            entries = entries_in(
                await self._client.ask(*entries_behind(keys.outbox(partition), after, READ_ENTRIES))
            )
            for after, packed in entries:
                found.add(after, packed)
            if len(entries) < READ_ENTRIES:
                return found

    async def drop(self, strays: Strays) -> bytes:
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
    """The place that XINFO names; that before all where there is no stream."""
    found = fields_of(said).get(name)
    return stream_place(found if isinstance(found, bytes) else b"")
