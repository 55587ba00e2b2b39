"""Expired holds and the late queue, for the loops that reclaim holds and settle late."""

from __future__ import annotations

import asyncio
import struct
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count as numbers
from typing import cast

from gateway.core.accounts.budgets import (
    OTHERS,
    TOKENS,
    Budget,
    account_of,
    accounts_of,
    define_windows,
    have_own,
    owner_in,
)
from gateway.core.accounts.call_facts import mark_as_correction, read_facts
from gateway.core.accounts.flush_batch import StreamPlace, stream_place
from gateway.core.accounts.holds import (
    ChargedAmounts,
    ExpiredHold,
    LateResolution,
    LateSettlement,
    Verb,
    correction_id,
)
from gateway.core.accounts.outbox import ANYBODYS, read_owner
from gateway.core.accounts.runs import prefix_of, stored_run
from gateway.core.accounts.upstream_jobs import HOLD_MS_MAX
from gateway.core.billing.money import are_money
from gateway.core.due import bounds_ahead
from gateway.core.model import Settlement, SettleResult
from gateway.core.wait import Wait, in_task
from gateway.counters.admission.caller_holds import read_hold
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import Client, are_any_there, await_each, with_late
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import KEPT
from gateway.counters.leases.allowance import IF_OVER, NONE, lease
from gateway.counters.redis import keys
from gateway.counters.redis.calls import TOMBSTONE_MS, AnotherType, Reply
from gateway.counters.redis.settle_results import SETTLE_RESULTS
from gateway.counters.settlement_log.settlement_record import (
    acknowledged,
    record_of,
    recovered,
    release_of,
    settlement_of,
)
from gateway.errors import CountersRefused, CountersUnavailable, NewerLayout

# Entries of the late queue: id, owner and use. Of the outbox: ids and owners.

START: StreamPlace = (0, 0)
# The fields of every entry of the queue; see `queue_late` in lua/settle.lua.
_FIELDS = frozenset({b"a", b"u", b"c", b"m", b"charged"})


@dataclass(frozen=True, slots=True)
class LateEntry:
    """One entry of the late queue, decoded only as far as its owner and request id."""

    place: StreamPlace
    organization_id: int
    request_id: str
    fields: dict[bytes, bytes]


def place_of(entry: Reply) -> StreamPlace:
    """Return the id of an entry in the reply of XRANGE, as two numbers."""
    assert isinstance(entry, list)
    return stream_place(cast("bytes", entry[0]))


def id_of(place: StreamPlace) -> bytes:
    """Return an entry's id in the form that commands take."""
    return b"%d-%d" % place


def next_of(place: StreamPlace) -> StreamPlace:
    """Return the id that follows an id directly."""
    return place[0], place[1] + 1


def owner_of(entry: Reply) -> int:
    """Return the organization id of an outbox entry; `ANYBODYS` if unknown, 0 if the entry is unreadable."""
    assert isinstance(entry, list)
    fields = entry[1]
    packed = fields[1] if isinstance(fields, list) and len(fields) == 2 else None
    return read_owner(packed) if isinstance(packed, bytes) else 0


def read_entry(raw: Reply) -> LateEntry | None:
    """Return an entry of the queue; None if no script up to this version can have written it."""
    assert isinstance(raw, list)
    flat = cast("list[bytes]", raw[1])
    fields = dict(zip(flat[::2], flat[1::2], strict=True))
    if not fields.keys() >= _FIELDS:
        return None
    try:
        kept = KEPT.read(KEPT.today(fields[b"a"]))
        owner, request_id = kept["organization_id"], kept["request_id"].decode()
        int(fields[b"charged"])
        return LateEntry(place_of(raw), owner, request_id, fields)
    except (ValueError, OverflowError, struct.error):
        return None


def late_settlement(entry: LateEntry) -> LateSettlement:
    """Return the use recorded in an entry, with its caller and service."""
    fields = entry.fields
    settlement = settlement_of(
        fields[b"a"], fields[b"u"], fields[b"c"], fields[b"m"], fields.get(b"t", b""),
        paid=fields.get(b"b", b""),
    )  # fmt: skip
    moved = recovered(settlement.caller, fields.get(b"acknowledged", b""))
    charged, record = int(fields[b"charged"]), record_of(fields)
    return LateSettlement(id_of(entry.place), settlement, charged, moved, record)


# Finds late settlements that can be decided: no earlier entry of their organization is in the outbox.
#
# Earlier and later are compared by entry ids, never by times: within one stream ids only rise, whatever the
# clock does. Of two streams, the order of reading tells which entry existed first. This part only reads.

# Entries read by one command.
LOOK_ENTRIES_MIN, LOOK_ENTRIES = 16, 1_000
# Entries of one partition that a pass reads; the next pass continues after them.
LANE_LOOK_MAX = 10_000
OUTBOX_LOOK_MAX = 100_000
# Results stored for one partition: a forgotten one is read again, or its entry waits a little longer.
MARKS_MAX = 1_000
ORGANIZATIONS_MAX = 10_000


@dataclass(slots=True)
class _PartitionState:
    """The results of earlier passes over one partition's queue and outbox.

    `marks`: queue entries up to the first id were added after outbox entries up to the second, at most.
    `clear`: by organization, an outbox id that all of its entries follow. `left`: by organization, its oldest
    queue entry at the last pass.
    """

    under: tuple[bytes, bytes, int] | None = None
    seen: StreamPlace = START
    marks: list[tuple[StreamPlace, StreamPlace]] = field(default_factory=list)
    clear: dict[int, StreamPlace] = field(default_factory=dict)
    left: dict[int, StreamPlace] = field(default_factory=dict)

    def emptied(self) -> _PartitionState:
        """Return a new state for an empty queue, with the positions in the outbox that remain true."""
        return _PartitionState(self.under, clear=self.clear)

    def behind(self, lane: StreamPlace) -> StreamPlace:
        """Return the newest outbox entry that may be older than the queue entry `lane`."""
        return self.marks[bisect_left(self.marks, (lane, START))][1]

    def mark(self, lane: StreamPlace, outbox: StreamPlace) -> None:
        """Note that queue entries up to `lane` exist while `outbox` is the newest outbox entry."""
        if not self.marks or self.marks[-1][0] < lane:
            self.marks.append((lane, outbox))
        oldest = min(self.left.values(), default=lane)
        while len(self.marks) > 1 and (self.marks[0][0] < oldest or len(self.marks) > MARKS_MAX):
            del self.marks[0]

    def ready(self, organization_id: int, lane: StreamPlace) -> bool:
        """Return whether no outbox entry of an organization is older than the queue entry `lane`."""
        return self.clear.get(organization_id, START) > self.behind(lane)


class LateLane:
    """Finds, in the late queues of all partitions, the settlements that can be decided."""

    def __init__(
        self, client: Client, *, look_entries_min: int = LOOK_ENTRIES_MIN, lane_look_max: int = LANE_LOOK_MAX
    ) -> None:
        self._client = client
        self._look_entries_min, self._lane_look_max = look_entries_min, lane_look_max
        self._known: dict[int, _PartitionState] = {}

    async def decidable(self, count: int) -> list[LateSettlement]:
        """Return up to `count` late settlements to decide, shared between partitions, in each queue's order.

        The ledger decides by earlier decisions on the same request, so an entry waits until those are in
        PostgreSQL. A partition with an unreadable stream delays no other.
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
        """Return up to `count` decidable settlements of one partition's queue, found in one pass.

        The pass begins with the oldest entry that may have become decidable.
        """
        known = self._known.setdefault(partition, _PartitionState())
        waiting = {one: known.behind(at) for one, at in known.left.items()}
        await self._advance(partition, known, waiting)
        blocked = {one for one, at in known.left.items() if not known.ready(one, at)}
        blocked |= await self._parked(partition, known.left.keys() - blocked)
        start = min([at for one, at in known.left.items() if one not in blocked] + [next_of(known.seen)])
        late_settlements: list[LateSettlement] = []
        left: dict[int, StreamPlace] = {}
        seen, taken = known.seen, set[str]()
        size, looked = min(LOOK_ENTRIES, max(self._look_entries_min, count)), 0
        while len(late_settlements) < count and looked < self._lane_look_max:
            entries, last, more = await self._page(partition, known, start, size)
            seen = last or seen
            mine = [entry for entry in entries if entry.organization_id not in blocked]
            for one in mine:
                left.setdefault(one.organization_id, one.place)
            free = await self._free(partition, known, mine)
            for one in free:
                # Another entry of the same call waits for the row of this one.
                if one.request_id not in taken and len(late_settlements) < count:
                    taken.add(one.request_id)
                    with self._client.left_alone.reading("settlement", name_of(partition, one.place)):
                        late_settlements.append(late_settlement(one))
            if last is None or not more:
                break
            start, looked, size = next_of(last), looked + size, min(LOOK_ENTRIES, size * 4)
        # Both at once: an entry that is seen and not left is never read again.
        known.seen = seen
        known.left = {one: at for one, at in known.left.items() if one in blocked} | left
        if len(known.clear) > ORGANIZATIONS_MAX:
            known.clear = {one: at for one, at in known.clear.items() if one in known.left}
        return late_settlements

    async def _page(
        self, partition: int, known: _PartitionState, start: StreamPlace, size: int
    ) -> tuple[list[LateEntry], StreamPlace | None, bool]:
        """Return up to `size` queue entries from `start`, the last one's id, and whether there may be more.

        The outbox is read after the queue, so that an outbox entry added later is not older. CountersRefused
        if the order is unknown: a stream is unreadable, or Redis was rebuilt.
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
        """Return the readable entries; count the others, which stay in the queue."""
        read = []
        for raw in page:
            entry = read_entry(raw)
            if entry is not None:
                read.append(entry)
            else:
                name = name_of(partition, place_of(raw))
                self._client.left_alone.note("settlement", name, "it cannot be read")
        return read

    async def _free(
        self, partition: int, known: _PartitionState, entries: Sequence[LateEntry]
    ) -> list[LateEntry]:
        """Return the entries that may be decided now, of one partition's queue.

        All older outbox entries of the organization, and earlier decisions on the same request, must be rows.
        """
        waiting = {entry.organization_id: known.behind(entry.place) for entry in entries}
        await self._advance(partition, known, waiting)
        free = [entry for entry in entries if known.ready(entry.organization_id, entry.place)]
        parked = await self._parked(partition, {one.organization_id for one in free})
        free = [one for one in free if one.organization_id not in parked]
        if not free:
            return []
        # Ids of requests that were posted or corrected, and are not in PostgreSQL yet.
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
        """Return those of these organizations that have parked entries (moved aside from the outbox)."""
        asked = sorted(organizations)
        if not asked:
            return set()
        names = [b"%d" % one for one in asked]
        (counts,) = await self._client.ask_each([(b"HMGET", keys.parked(partition).encode(), *names)])
        if not isinstance(counts, list):
            raise CountersRefused("the number of entries set aside is no hash")
        return {one for one, count in zip(asked, counts, strict=True) if count}

    async def _advance(
        self, partition: int, known: _PartitionState, until: Mapping[int, StreamPlace]
    ) -> None:
        """Find and note the oldest outbox entry of each organization, up to the position in `until`."""
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
                # After the last entry, any new one will be newer than all of these.
                ended = len(entries) < LOOK_ENTRIES
                clear[one] = max(clear.get(one, START), end, next_of(until[one]) if ended else START)
            open_ = {one for one in open_ if clear[one] <= until[one]}
            looked += LOOK_ENTRIES

    async def _still_there(self, partition: int, oldest: Mapping[int, StreamPlace]) -> set[int]:
        """Return those organizations whose entry in `oldest`, an id, is still in the outbox."""
        name = keys.outbox(partition).encode()
        pages = await self._client.ask_each((b"XRANGE", name, id_of(at), id_of(at)) for at in oldest.values())
        return {
            organization_id
            for organization_id, page in zip(oldest, pages, strict=True)
            if isinstance(page, list) and page and owner_of(page[0]) in (organization_id, ANYBODYS)
        }


def _groups_of(late: Settlement) -> tuple[int, ...]:
    """Return the ids of the groups that the caller of a late settlement was in."""
    facts = read_facts(late.metadata)
    return () if facts is None else facts.groups


def name_of(partition: int, place: StreamPlace) -> str:
    """Return the name of an entry for logs."""
    return f"{partition} {id_of(place).decode()}"


# The present windows of budgets, for late settlements, since the windows of their time are gone.
async def windows(
    client: Client, late: Collection[Settlement]
) -> tuple[Mapping[str, bytes], Collection[int]]:
    """Return the current definitions of the budget and run accounts in late settlements, packed, by name.

    Also return the organizations whose terms are unreadable. CountersUnavailable if an account is unknown,
    and may be loaded later.
    """
    owners = {one.caller.organization_id for one in late if one.budgets}
    if not owners:
        return {}, ()
    now_ms, alike_as, unread = await client.now_ms(), dict[str, tuple[Sequence[Budget], bytes]](), set[int]()
    for organization_id in owners:
        name = keys.organization_terms(organization_id)
        unread.add(organization_id)
        try:
            raw = await client.ask(b"GET", name.encode())
        except AnotherType as error:
            client.left_alone.note("account", name, str(error))
            continue
        with client.left_alone.reading("account", name):
            for alike in accounts_of(decode_terms(raw).budgets if isinstance(raw, bytes) else ()):
                prefix = account_of(organization_id, alike[0]).partition(":")[0]
                alike_as[prefix] = alike, define_windows(alike, now_ms)
            unread.discard(organization_id)
    readable = [one for one in late if one.caller.organization_id not in unread]
    found = dict[str, bytes]()
    for one in readable:
        caller = one.caller
        of_runs = prefix_of(caller.organization_id, caller.tenant_id)
        for name in one.budgets:
            prefix, packed = name.partition(":")[0], None
            if prefix in alike_as:
                (budgets, usual), owner = alike_as[prefix], owner_in(name)
                groups = _groups_of(one) if any(budget.has_groups for budget in budgets) else ()
                has_own = owner == OTHERS or have_own(budgets, owner, groups)
                found[name] = define_windows(budgets, now_ms, owner, groups) if has_own else usual
            elif prefix == of_runs:
                packed = await client.ask(b"GET", keys.run(caller.partition, name).encode())
            if isinstance(packed, bytes):
                found[name] = stored_run(caller.organization_id, caller.tenant_id, packed).defined
    known = all(name in found for one in readable for name in one.budgets)
    verified = keys.verified(client.wire.part.anchor).encode()
    if not known and await client.ask(b"GET", verified) != client.run_id:
        raise CountersUnavailable("which budgets there are is not known yet")
    return found, unread


CORRECTED = "settled after its hold was reclaimed"
# What the ledger's row of a reclaimed call lacks: its units, and its tokens if its plan weighs them.
RECLAIMED = b'{"estimated":true,"reclaimed":true,"units":%d}'
RECLAIMED_WEIGHED = b'{"estimated":true,"reclaimed":true,"units":%d,"tokens":%d}'
# Holds of a partition that one look reads, apart from the rest of the last page.
LOOK_MAX = 2_000
# The longest distance of a deadline: that of a job. One look in so many asks for deadlines beyond it.
DEADLINE_MS_MAX, FAR_EACH = HOLD_MS_MAX, 60
_FIRST = b"-inf"
# Our names are UTF-8: a name with other bytes is queried unchanged, found missing, and removed.
STRANGE = "surrogateescape"


class ReclaimClient:
    """The queries and writes of reclaiming and late settlement, over the keeper's connection."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._looks = numbers()
        self._lane = LateLane(client)
        self._looked_under = b""
        self._begun: dict[int, tuple[bytes, bool]] = {}

    async def expired(self, count: int) -> Sequence[ExpiredHold]:
        """Return up to `count` holds of each partition that are past their deadline by Redis' clock.

        An unreadable hold is left unchanged, and the holds after it are found all the same. Every
        `FAR_EACH`th look makes deadlines due that stand too far ahead.
        """
        now_ms = await self._client.now_ms()
        until = b"%d" % now_ms
        asked = list(self._client.partitions)
        begin = {one: self._begun.get(one, (_FIRST, False))[0] for one in asked}
        due: list[Reply] = [None] * len(asked)
        if await are_any_there(self._client, [keys.deadlines(one) for one in asked]):
            if next(self._looks) % FAR_EACH == 0:
                await self._bring_near(asked, now_ms, count)
            due = await self._client.ask_each(_due(one, begin[one], until, count) for one in asked)
        elif not self._begun and not self._client.left_alone.count("hold"):
            return []
        expired_holds: list[ExpiredHold] = []
        for partition, first in zip(asked, due, strict=True):
            expired_holds += await self._look_through(partition, first, until, count)
        return expired_holds

    async def _bring_near(self, partitions: Sequence[int], now_ms: int, most: int) -> None:
        names = [keys.deadlines(partition).encode() for partition in partitions]
        which = *bounds_ahead(now_ms, DEADLINE_MS_MAX), b"BYSCORE", b"LIMIT", b"0", b"%d" % most
        answers = await self._client.ask_each((b"ZRANGE", name, *which) for name in names)
        for name, far in zip(names, answers, strict=True):
            if isinstance(far, list) and far:
                due = [part for id_ in cast("list[bytes]", far) for part in (b"%d" % now_ms, id_)]
                await self._client.ask(b"ZADD", name, b"XX", b"LT", *due)

    async def _look_through(
        self, partition: int, first: Reply, until: bytes, count: int
    ) -> list[ExpiredHold]:
        """Return the readable expired holds of one partition, read in pages.

        Each page begins with the last deadline of the one before, without the holds read already, so that
        concurrent removals shift nothing.
        """
        found, left, ties = list[ExpiredHold](), set[str](), frozenset[str]()
        page, asked, looked, behind = _deadlines(first), count, 0, _FIRST
        while page:
            names = [name for name, _ in page if name not in ties]
            read, unread = await self._read(partition, names)
            found, left, looked = found + read, left | unread, looked + len(names)
            if len(page) < asked or len(found) >= count:
                break
            last = page[-1][1]
            if looked >= LOOK_MAX:
                behind = last
                break
            ties = frozenset(name for name, deadline in page if deadline == last)
            asked = count + len(ties)
            page = _deadlines(await self._client.ask(*_due(partition, last, until, asked)))
        if self._is_whole(partition, behind):
            self._client.left_alone.keep("hold", left, f"{partition} ")
        return found

    def _is_whole(self, partition: int, behind: bytes) -> bool:
        """Return whether a pass read all expired holds; if not, store where the next pass begins.

        Two passes in a row read the same holds, because a hold is reclaimed only after two passes found it.
        """
        since, again = self._begun.pop(partition, (_FIRST, False))
        if since == behind == _FIRST:
            return True
        if not again:
            self._begun[partition] = since, True
        elif behind != _FIRST:  # more holds with one deadline than a look reads are skipped
            self._begun[partition] = behind if behind != since else b"(" + behind, False
        return False

    async def _read(self, partition: int, names: Sequence[str]) -> tuple[list[ExpiredHold], set[str]]:
        """Return existing holds, and the names of unreadable ones; remove deadlines without a hold."""
        found, unread, gone = list[ExpiredHold](), set[str](), list[bytes]()
        asked = (keys.hold(partition, name).encode(errors=STRANGE) for name in names)
        stored = await await_each([self._client.send(b"GET", one) for one in asked])
        for name, packed in zip(names, stored, strict=True):
            if isinstance(packed, CountersRefused):
                raise packed
            if not isinstance(packed, bytes):
                gone.append(name.encode(errors=STRANGE))
                continue
            unread.add(told := f"{partition} {name}")
            with self._client.left_alone.reading("hold", told):
                found.append(_expired(name, packed))
                unread.discard(told)
        await self._tell_of_callers(partition, found)
        if gone:
            await self._client.ask(b"ZREM", keys.deadlines(partition).encode(), *gone)
        return found, unread

    async def _tell_of_callers(self, partition: int, holds: list[ExpiredHold]) -> None:
        """Set, on holds that callers took by the API, what these callers want to happen at the deadline.

        A hold of money or units also holds one token, so that a used-up quota refuses it; the token is not
        charged.
        """
        names = (keys.caller_hold(partition, hold.release.request_id).encode() for hold in holds)
        for at, raw in enumerate(await await_each([self._client.send(b"GET", name) for name in names])):
            if (record := read_hold(raw)) is not None:
                hold = (
                    holds[at]
                    if record.unit == TOKENS
                    else replace(holds[at], held=0, taken=0, held_budget_tokens=0)
                )
                holds[at] = replace(hold, unsettled=record.unsettled)

    async def reclaim(self, hold: ExpiredHold, charge: ChargedAmounts) -> bool:
        """Charge an expired hold, return the rest to the accounts, and leave a tombstone: a mark of its end.

        A lease is only given back; False if its worker has renewed it meanwhile, or the hold is not charged.
        """
        if hold.lease:
            call = lease(self._client.run_id, hold.release.caller, hold.release.request_id, IF_OVER)
            return packing.code_of(await self._client.run("lease", call)) == NONE
        units = hold.said_units if charge.requests else 0
        said = (
            RECLAIMED % units if charge.quota_tokens is None else RECLAIMED_WEIGHED % (units, charge.tokens)
        )
        settlement = replace(
            hold.release, charge=True, metadata=said,
            tokens=charge.tokens, credits=charge.credits, units=charge.units, quota_tokens=charge.quota_tokens,
            money=charge.money, budget_tokens=charge.budget_tokens,
        )  # fmt: skip
        call = packing.settle(
            self._client.run_id, TOMBSTONE_MS, settlement, packing.MODE_RECLAIM, requests=charge.requests
        )
        try:
            answer = await self._client.run("settle", call)
        except NewerLayout as error:
            name = f"{hold.release.caller.partition} {hold.release.request_id}"
            self._client.left_alone.note("hold", name, error.message)
            return False
        result = SETTLE_RESULTS.read(answer, hold.release.request_id)
        if result is SettleResult.UNVERIFIED:
            raise CountersUnavailable
        if result is SettleResult.DONE and hold.unsettled:  # its caller may correct it until then
            caller = hold.release.caller
            record = keys.caller_hold(caller.partition, hold.release.request_id).encode()
            await self._client.ask(b"EXPIRE", record, b"%d" % (TOMBSTONE_MS // 1000))
        return result is SettleResult.DONE  # no other process knows of it, so its loss is counted

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Return up to `count` late settlements that can be decided, because all earlier entries are rows."""
        self._looked_under = self._client.run_id
        return await self._lane.decidable(count)

    async def end(self, endings: Sequence[LateResolution]) -> list[bool]:
        """Apply decisions about late settlements; return for each whether it was applied. Each counts once.

        False if an account is unknown, Redis refuses this one, or its organization's budgets are unreadable.
        CountersUnavailable if some could not be sent, after the others are done; also after a restart of
        Redis, since entries that came back may have been decided by another keeper.
        """
        if self._client.run_id != self._looked_under:
            raise CountersUnavailable("Redis was restarted since these settlements were looked at")
        charges = [ending for ending in endings if ending.verb is not Verb.DROP]
        defined, unread = await windows(self._client, [charge.late.settlement for charge in charges])
        charged = dict.fromkeys([charge for charge in charges if _waits(charge, unread)], False)
        charges = [charge for charge in charges if charge not in charged]
        waits = [self._charge(charge, defined) for charge in charges]
        gone = self._drop([ending.late for ending in endings if ending.verb is Verb.DROP])
        unavailable = None
        for charge, wait in zip(charges, waits, strict=True):
            try:
                charged[charge] = self._applied(charge.late.settlement, cast("bytes", await in_task(wait)))
            except CountersRefused:
                charged[charge] = False
            except CountersUnavailable as error:
                unavailable = error
        for removed in gone:
            await in_task(removed)
        if unavailable is not None:
            raise unavailable
        return [charged.get(ending, True) for ending in endings]

    def _charge(self, ending: LateResolution, definitions: Mapping[str, bytes]) -> Wait[Reply]:
        """Send a late charge without a hold, or a correction of a reclaimed hold's charge.

        Budgets that are not in `definitions`, because they were deleted, are skipped.
        """
        late, used, mode = ending.late.settlement, ending.used, packing.MODE_POST
        if ending.verb is Verb.CORRECT:
            mark = mark_as_correction(late.metadata, late.request_id, CORRECTED)
            late, mode = replace(late, metadata=mark), packing.MODE_CORRECT
        charge = replace(
            late, tokens=used.tokens, credits=used.credits, units=used.units,
            over=used.over, quota_tokens=used.quota_tokens, money=used.money, budget_tokens=used.budget_tokens,
            budgets=tuple(budget for budget in late.budgets if budget in definitions),
        )  # fmt: skip
        call = packing.settle(
            self._client.run_id, TOMBSTONE_MS, charge, mode, ending.late.entry_id, requests=used.requests,
            definitions=tuple(definitions[budget] for budget in charge.budgets),
        )  # fmt: skip
        return self._client.send_script("settle", call)

    def _drop(self, late: Sequence[LateSettlement]) -> list[Wait[Reply]]:
        """Send the removal of entries that are charged already: one command for each queue."""
        by_lane: dict[int, list[bytes]] = {}
        for one in late:
            by_lane.setdefault(one.settlement.caller.partition, []).append(one.entry_id)
        return [
            self._client.send(b"XDEL", keys.late(partition).encode(), *ids)
            for partition, ids in by_lane.items()
        ]

    def _applied(self, late: Settlement, answer: bytes) -> bool:
        """Return whether the charge of a late settlement was applied, and add its movements to `moved`."""
        result = SETTLE_RESULTS.read(answer, late.request_id)
        if result is SettleResult.UNVERIFIED:
            raise CountersUnavailable
        self._client.moved += acknowledged(late.caller, answer)
        return result is SettleResult.DONE


def _expired(request_id: str, packed: bytes) -> ExpiredHold:
    """Return a packed hold as an expired one, with the amounts that it would be charged."""
    state, _, tiers = states.unpack_hold(packed)
    # A price set by tokens is charged by the tokens seen; any other price is known beforehand.
    uses, held, units = state.flags & states.HOLD_USES, state.credits, state.units
    if uses:
        held, credits_, units = 0, 0, units if state.seen < 0 else state.seen
    else:
        credits_ = held if state.seen < 0 else state.seen
    lease = bool(state.flags & states.HOLD_LEASE)
    release = release_of(request_id, packed)
    return ExpiredHold(
        release, state.observed, credits_, units, state.tokens, lease, held,
        state.quota_tokens if state.quota_tokens >= 0 else None,
        max(state.key_tpm, state.user_tpm, state.tenant_tpm, state.organization_tpm), state.units,
        state.money, state.budget_tokens, state.money_seen, 1 if are_money(tiers) else state.units,
    )  # fmt: skip


def _due(partition: int, since: bytes, until: bytes, count: int) -> tuple[bytes, ...]:
    """Return the command for up to `count` deadlines from `since` until `until`, in order."""
    limits = b"BYSCORE", b"LIMIT", b"0", b"%d" % count, b"WITHSCORES"
    return b"ZRANGE", keys.deadlines(partition).encode(), since, until, *limits


def _waits(ending: LateResolution, unread: Collection[int]) -> bool:
    """Return whether a late settlement counts in budgets of an organization in `unread`.

    The terms of these organizations, which define the budgets, are unreadable.
    """
    late = ending.late.settlement
    return bool(late.budgets) and late.caller.organization_id in unread


def _deadlines(answer: Reply) -> list[tuple[str, bytes]]:
    """Return the request ids and deadlines of holds in a reply of ZRANGE with scores."""
    flat = cast("list[bytes]", answer) if isinstance(answer, list) else []
    return [
        (name.decode(errors=STRANGE), deadline) for name, deadline in zip(flat[::2], flat[1::2], strict=True)
    ]


# Settlements that came after their hold had ended.
