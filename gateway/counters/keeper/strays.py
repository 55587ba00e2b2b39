"""Finds and drops entries of the outbox that went on beside what PostgreSQL has stored (`core/strays.py`)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from gateway.core.accounts.outbox import stream_place
from gateway.core.integrity.strays import Strays
from gateway.counters.keeper.control import Control
from gateway.counters.redis import keys

READ_ENTRIES = 1_000


class StrayReader:
    """Reads and drops them, over the keeper's connection."""

    def __init__(self, control: Control) -> None:
        self._control = control

    async def behind(self, marks: Mapping[int, bytes]) -> list[int]:
        """The partitions whose stream never had this entry: the data is older than what was stored of it."""
        asked = list(marks.items())
        there = await self._control.ask_each((b"XRANGE", _name(p), mark, mark) for p, mark in asked)
        missing = [one for one, found in zip(asked, there, strict=True) if found == []]
        facts = await self._control.ask_each((b"XINFO", b"STREAM", _name(p)) for p, _ in missing)
        return [
            partition
            for (partition, mark), said in zip(missing, facts, strict=True)
            if _fact(said, b"max-deleted-entry-id") < stream_place(mark)
        ]

    async def read(self, partition: int, mark: bytes, stopped: Collection[str] = ()) -> Strays | None:
        """What went on behind `mark` where the stream never had that; None where it had."""
        if not await self.behind({partition: mark}):
            return None
        found, after = Strays(partition, mark, stopped), mark
        while True:
            page = await self._control.ask(
                *(b"XRANGE", _name(partition), b"(" + after, b"+"), *(b"COUNT", b"%d" % READ_ENTRIES)
            )
            entries = page if isinstance(page, list) else []
            for entry in entries:
                assert isinstance(entry, list)
                after = entry[0] if isinstance(entry[0], bytes) else b""
                fields = entry[1]
                packed = fields[1] if isinstance(fields, list) and len(fields) == 2 else b""
                found.add(after, packed if isinstance(packed, bytes) else b"")
            if len(entries) < READ_ENTRIES:
                return found

    async def drop(self, strays: Strays) -> bytes:
        """Remove them, ids first, and have the stream begin behind what is stored; answers from where on."""
        partition, control = strays.partition, keys.control(strays.partition).encode()
        for start in range(0, len(strays.ids), READ_ENTRIES):
            await self._control.ask(b"HDEL", control, *strays.ids[start : start + READ_ENTRIES])
        for start in range(0, len(strays.entries), READ_ENTRIES):
            await self._control.ask(b"XDEL", _name(partition), *strays.entries[start : start + READ_ENTRIES])
        (said,) = await self._control.ask_each([(b"XINFO", b"STREAM", _name(partition))])
        ms, number = max(stream_place(strays.after), _fact(said, b"last-generated-id"))
        begins = b"%d-%d" % (ms, number + 1)
        await self._control.ask_together(
            (b"MULTI",),
            (b"XADD", _name(partition), begins, b"e", b""),
            (b"XDEL", _name(partition), begins),
            (b"EXEC",),
        )
        return begins


def _name(partition: int) -> bytes:
    return keys.outbox(partition).encode()


def _fact(said: object, name: bytes) -> tuple[int, int]:
    """The place that XINFO names; that before all where there is no stream."""
    facts: Sequence[object] = said if isinstance(said, list) else []
    found = dict(zip(facts[::2], facts[1::2], strict=True)).get(name)
    return stream_place(found if isinstance(found, bytes) else b"")
