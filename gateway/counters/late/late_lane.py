"""Which settlements of the late queue can be decided: nothing of their organization waits from before them.

Before and behind are places in streams, never times: within one stream ids only rise, whatever the
clock does, and of two streams only who was read first says which entry was there first. Reads alone.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from gateway.core.accounts.holds import LateSettlement, correction_id
from gateway.core.accounts.outbox import StreamPlace
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.one_question import with_late
from gateway.counters.late.late_entry import (
    ANYBODYS,
    START,
    LateEntry,
    id_of,
    late_settlement,
    next_of,
    owner_of,
    place_of,
    read_entry,
)
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import Reply
from gateway.errors import CountersRefused

# Entries one command brings.
LOOK_ENTRIES_MIN, LOOK_ENTRIES = 16, 1_000
# Entries of one partition that a pass looks at; the next pass goes on from there.
LANE_LOOK_MAX = 10_000
OUTBOX_LOOK_MAX = 100_000
# Remembered of one partition: what is forgotten is looked at again, or waits a little longer.
MARKS_MAX = 1_000
ORGANIZATIONS_MAX = 10_000


@dataclass(slots=True)
class _Known:
    """What was seen of one partition.

    `marks`: queue entries up to the first place came behind outbox entries up to the second, at most.
    `clear`: by organization, the place before which the outbox has nothing of it.
    `left`: by organization, its oldest queue entry that was there when it was last looked at.
    """

    under: tuple[bytes, bytes, int] | None = None
    seen: StreamPlace = START
    marks: list[tuple[StreamPlace, StreamPlace]] = field(default_factory=list)
    clear: dict[int, StreamPlace] = field(default_factory=dict)
    left: dict[int, StreamPlace] = field(default_factory=dict)

    def emptied(self) -> _Known:
        """What is still worth knowing once the queue is empty."""
        return _Known(self.under, clear=self.clear)

    def behind(self, lane: StreamPlace) -> StreamPlace:
        """The newest outbox entry that may have been there before this one of the queue."""
        return self.marks[bisect_left(self.marks, (lane, START))][1]

    def mark(self, lane: StreamPlace, outbox: StreamPlace) -> None:
        """Note that queue entries up to a place are there, and the outbox's newest entry now."""
        if not self.marks or self.marks[-1][0] < lane:
            self.marks.append((lane, outbox))
        oldest = min(self.left.values(), default=lane)
        while len(self.marks) > 1 and (self.marks[0][0] < oldest or len(self.marks) > MARKS_MAX):
            del self.marks[0]

    def ready(self, organization_id: int, lane: StreamPlace) -> bool:
        """Whether nothing of an organization is in the outbox that was there before this entry."""
        return self.clear.get(organization_id, START) > self.behind(lane)


class LateLane:
    """The late queues of all partitions, looked through for what can be decided."""

    def __init__(
        self, client: Client, *, look_entries_min: int = LOOK_ENTRIES_MIN, lane_look_max: int = LANE_LOOK_MAX
    ) -> None:
        self._client = client
        self._look_entries_min, self._lane_look_max = look_entries_min, lane_look_max
        self._known: dict[int, _Known] = {}

    async def decidable(self, count: int) -> list[LateSettlement]:
        """Up to `count` late settlements, shared between partitions, in the order of each queue.

        Of a request that was dealt with already, none before that is in PostgreSQL: then the ledger
        knows what to do with another one. A partition whose streams are broken keeps no other waiting.
        """
        lanes = [one for one, first in await with_late(self._client) if isinstance(first, list)]
        for partition in self._known.keys() - set(lanes):
            self._known[partition] = self._known[partition].emptied()
            self._client.left_alone.keep("settlement", (), f"{partition} ")
        share = max(1, count // max(1, len(lanes)))
        looks = (self._look(partition, share) for partition in lanes)
        found = await asyncio.gather(*looks, return_exceptions=True)
        decidable: list[LateSettlement] = []
        for one in found:
            if isinstance(one, BaseException) and not isinstance(one, CountersRefused):
                raise one
            decidable += [] if isinstance(one, BaseException) else one
        return decidable[:count]

    async def _look(self, partition: int, count: int) -> list[LateSettlement]:
        """One pass over one queue, from the first entry that may have become decidable."""
        known = self._known.setdefault(partition, _Known())
        waiting = {one: known.behind(at) for one, at in known.left.items()}
        await self._advance(partition, known, waiting)
        blocked = {one for one, at in known.left.items() if not known.ready(one, at)}
        blocked |= await self._parked(partition, known.left.keys() - blocked)
        start = min([at for one, at in known.left.items() if one not in blocked] + [next_of(known.seen)])
        found: list[LateSettlement] = []
        left: dict[int, StreamPlace] = {}
        seen, taken = known.seen, set[str]()
        size, looked = min(LOOK_ENTRIES, max(self._look_entries_min, count)), 0
        while len(found) < count and looked < self._lane_look_max:
            entries, last, more = await self._page(partition, known, start, size)
            seen = last or seen
            mine = [one for one in entries if one.organization_id not in blocked]
            for one in mine:
                left.setdefault(one.organization_id, one.place)
            free = await self._free(partition, known, mine)
            for one in free:
                # Another entry of the same call waits for this one's row.
                if one.request_id not in taken and len(found) < count:
                    taken.add(one.request_id)
                    with self._client.left_alone.reading("settlement", name_of(partition, one.place)):
                        found.append(late_settlement(one))
            if last is None or not more:
                break
            start, looked, size = next_of(last), looked + size, min(LOOK_ENTRIES, size * 4)
        # Both or neither: what was seen and is not left is looked at by nobody any more.
        known.seen = seen
        known.left = {one: at for one, at in known.left.items() if one in blocked} | left
        if len(known.clear) > ORGANIZATIONS_MAX:
            known.clear = {one: at for one, at in known.clear.items() if one in known.left}
        return found

    async def _page(
        self, partition: int, known: _Known, start: StreamPlace, size: int
    ) -> tuple[list[LateEntry], StreamPlace | None, bool]:
        """Entries of a queue from a place on, the last one's place, and whether there may be more.

        The outbox is looked at behind them: what is not in it then was not there before them. CountersRefused
        where that cannot be said: a stream is broken, or its Redis was rebuilt.
        """
        page, newest, marker = await self._client.ask_each(
            (
                (b"XRANGE", keys.late(partition).encode(), id_of(start), b"+", b"COUNT", b"%d" % size),
                (b"XREVRANGE", keys.outbox(partition).encode(), b"+", b"-", b"COUNT", b"1"),
                (b"GET", keys.marker(partition).encode()),
            )
        )
        run_id, epoch, _ = packing.read_marker(marker)
        under = (self._client.run_id, run_id, epoch)
        if known.under not in (None, under):
            del self._known[partition]
            raise CountersRefused("Redis is another server, or was rebuilt: its streams are not the same")
        if not isinstance(page, list) or not isinstance(newest, list):
            raise CountersRefused("the queue or the outbox is no stream")
        known.under = under
        if not page:
            return [], None, False
        last = place_of(page[-1])
        known.mark(last, place_of(newest[0]) if newest else START)
        return self._read(partition, page), last, len(page) == size

    def _read(self, partition: int, page: Sequence[Reply]) -> list[LateEntry]:
        """Those that can be read; the others stay in the queue."""
        read = []
        for raw in page:
            entry = read_entry(raw)
            if entry is not None:
                read.append(entry)
            else:
                name = name_of(partition, place_of(raw))
                self._client.left_alone.note("settlement", name, "it cannot be read")
        return read

    async def _free(self, partition: int, known: _Known, entries: Sequence[LateEntry]) -> list[LateEntry]:
        """Those of which nothing waits any more, neither from before them nor of themselves."""
        waiting = {one.organization_id: known.behind(one.place) for one in entries}
        await self._advance(partition, known, waiting)
        free = [one for one in entries if known.ready(one.organization_id, one.place)]
        parked = await self._parked(partition, {one.organization_id for one in free})
        free = [one for one in free if one.organization_id not in parked]
        if not free:
            return []
        # Requests that were posted or corrected, and are not in PostgreSQL yet.
        names = [name.encode() for one in free for name in (one.request_id, correction_id(one.request_id))]
        known_ids, length = await self._client.ask_each(
            ((b"HMGET", keys.control(partition).encode(), *names), (b"XLEN", keys.outbox(partition).encode()))
        )
        if not isinstance(known_ids, list):
            raise CountersRefused("the ids of control writes are no hash")
        if length == 0:  # an id whose entry is gone is a row
            return free
        pairs = zip(free, known_ids[::2], known_ids[1::2], strict=True)
        return [one for one, *ids in pairs if not any(ids)]

    async def _parked(self, partition: int, organizations: Collection[int]) -> set[int]:
        """Of organizations that have nothing in the outbox, those of which something was moved aside."""
        asked = sorted(organizations)
        if not asked:
            return set()
        names = [b"%d" % one for one in asked]
        (counts,) = await self._client.ask_each([(b"HMGET", keys.parked(partition).encode(), *names)])
        if not isinstance(counts, list):
            raise CountersRefused("the number of entries set aside is no hash")
        return {one for one, count in zip(asked, counts, strict=True) if count}

    async def _advance(self, partition: int, known: _Known, until: Mapping[int, StreamPlace]) -> None:
        """Look in the outbox for each organization's oldest entry, as far as it matters."""
        clear = known.clear
        open_ = {one for one, at in until.items() if clear.get(one, START) <= at}
        open_ -= await self._still_there(partition, {one: clear[one] for one in open_ if one in clear})
        looked = 0
        while open_ and looked < OUTBOX_LOOK_MAX:
            start = min(clear.get(one, START) for one in open_)
            name, count = keys.outbox(partition).encode(), b"%d" % LOOK_ENTRIES
            page = await self._client.ask(b"XRANGE", name, id_of(start), b"+", b"COUNT", count)
            entries = page if isinstance(page, list) else []
            for raw in entries:
                owner = owner_of(raw)
                for one in open_ if owner == ANYBODYS else open_ & {owner}:
                    clear[one] = place_of(raw)
                open_ = set() if owner == ANYBODYS else open_ - {owner}
            end = next_of(place_of(entries[-1])) if entries else start
            for one in open_:
                # At the end of the stream, whatever comes yet comes after all that ever was in it.
                ended = len(entries) < LOOK_ENTRIES
                clear[one] = max(clear.get(one, START), end, next_of(until[one]) if ended else START)
            open_ = {one for one in open_ if clear[one] <= until[one]}
            looked += LOOK_ENTRIES

    async def _still_there(self, partition: int, oldest: Mapping[int, StreamPlace]) -> set[int]:
        """Of organizations and where their oldest entry was: those that have it in the outbox still."""
        name = keys.outbox(partition).encode()
        pages = await self._client.ask_each((b"XRANGE", name, id_of(at), id_of(at)) for at in oldest.values())
        return {
            organization_id
            for organization_id, page in zip(oldest, pages, strict=True)
            if isinstance(page, list) and page and owner_of(page[0]) in (organization_id, ANYBODYS)
        }


def name_of(partition: int, place: StreamPlace) -> str:
    """How people are told of an entry."""
    return f"{partition} {id_of(place).decode()}"
