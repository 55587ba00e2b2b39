"""The flusher's loop, against fakes: what it reads, when it deletes, how it waits and stops."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import pytest

from gateway.background.flushing.flusher import (
    AWAY_BACK_OFF_MAX_S,
    BACK_OFF_MAX_S,
    BACK_OFF_MIN_S,
    BATCH_ENTRIES_MAX,
    ENTRIES_A_PARTITION_MIN,
    PASS_BATCHES_MAX,
    FailedBatch,
    FlushedBatch,
    Flusher,
    back_off_s,
)
from gateway.core.accounts.flush_batch import Batch, FlushReport, History, Judged, Owner
from gateway.errors import CountersRefused, CountersUnavailable, LedgerUnavailable
from tests.waiting import eventually


class Streams:
    """An outbox in memory."""

    def __init__(self, **sizes: int) -> None:
        self.entries = {
            int(name[1:]): [b"%08d" % n for n in range(1, size + 1)] for name, size in sizes.items()
        }
        self.apart: dict[Owner, list[bytes]] = {}
        self.control_ids: dict[int, list[str]] = {}
        self.reads: list[dict[int, int]] = []
        self.judged_again: list[dict[Owner, int]] = []
        self.away = False

    @property
    def read_under(self) -> bytes:
        return b"r" * 40

    async def read(
        self, after: Mapping[int, bytes], count: int
    ) -> Mapping[int, Sequence[tuple[bytes, bytes]]]:
        await asyncio.sleep(0)
        if self.away:
            raise CountersUnavailable
        found = {}
        for partition, last in after.items():
            behind = [id_ for id_ in self.entries.get(partition, []) if id_ > last][:count]
            if behind:
                found[partition] = [(id_, b"") for id_ in behind]
        self.reads.append({partition: len(entries) for partition, entries in found.items()})
        return found

    async def acknowledge(
        self, entries: Mapping[int, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        await asyncio.sleep(0)
        for partition, ids in entries.items():
            gone = set(ids)
            self.entries[partition] = [id_ for id_ in self.entries[partition] if id_ not in gone]
        for partition, names in control_ids.items():
            self.control_ids.setdefault(partition, []).extend(names)

    async def parked(self, partitions: Iterable[int]) -> Mapping[Owner, int]:
        await asyncio.sleep(0)
        if self.away:
            raise CountersUnavailable
        return {owner: len(ids) for owner, ids in self.apart.items() if owner[0] in partitions and ids}

    async def read_parked(
        self, after: Mapping[Owner, bytes], count: int
    ) -> Mapping[Owner, Sequence[tuple[bytes, bytes]]]:
        await asyncio.sleep(0)
        found = {
            owner: [(id_, b"") for id_ in self.apart.get(owner, []) if id_ > last][:count]
            for owner, last in after.items()
        }
        self.judged_again.append({owner: len(entries) for owner, entries in found.items()})
        return found

    async def park(self, entries: Mapping[Owner, Sequence[bytes]]) -> Mapping[Owner, int]:
        await asyncio.sleep(0)
        for owner, ids in entries.items():
            there, gone = set(self.entries[owner[0]]), set(ids)
            self.apart.setdefault(owner, []).extend(id_ for id_ in ids if id_ in there)
            self.entries[owner[0]] = [id_ for id_ in self.entries[owner[0]] if id_ not in gone]
        return {owner: len(self.apart[owner]) for owner in entries}

    async def acknowledge_parked(
        self, entries: Mapping[Owner, Sequence[bytes]], control_ids: Mapping[int, Sequence[str]]
    ) -> None:
        await asyncio.sleep(0)
        for owner, ids in entries.items():
            gone = set(ids)
            self.apart[owner] = [id_ for id_ in self.apart.get(owner, []) if id_ not in gone]
        for partition, names in control_ids.items():
            self.control_ids.setdefault(partition, []).extend(names)

    def waiting(self) -> int:
        return sum(map(len, self.apart.values()))

    def left(self) -> int:
        return sum(map(len, self.entries.values()))


class Store:
    """A writer in memory that can be away, keep some accounts waiting, or find partitions taken."""

    def __init__(self, outbox: Streams) -> None:
        self.outbox = outbox
        self.stored: dict[int, list[bytes]] = {}
        self.failures = 0
        self.taken: list[frozenset[int]] = []
        self.held_elsewhere, self.looks = frozenset[int](), 0
        self.held: set[bytes] = set()
        self.batches: list[int] = []
        self.outdated: list[frozenset[int]] = []
        self.asked = 0
        self.under: Judged = (1, 1, 0)
        self.histories: list[History] = []

    async def epochs(self) -> Mapping[int, int]:
        self.asked += 1
        return {7: self.asked}

    async def judged(self, partitions: Iterable[int]) -> Mapping[int, Judged]:
        return dict.fromkeys(partitions, self.under)

    async def locked(self, partitions: Iterable[int]) -> frozenset[int]:
        self.looks += 1
        return self.held_elsewhere.intersection(partitions)

    def release(self) -> None:
        """A person lets every account go on."""
        self.held, self.under = set(), (1, 0, self.under[2] + 1)

    async def write(self, batch: Batch, history: History) -> FlushReport:
        await asyncio.sleep(0)
        self.histories.append(history)
        if self.failures:
            self.failures -= 1
            raise LedgerUnavailable
        locked = (self.taken.pop(0) if self.taken else frozenset()) | self.held_elsewhere
        taken = locked | {p for p, judged in history.judged.items() if judged != self.under}
        outdated = self.outdated.pop(0) if self.outdated else frozenset()
        left, locked = (taken | outdated) & batch.keys(), locked & batch.keys()
        report = FlushReport(left_over=left, outdated=outdated, locked=locked)
        self.batches.append(sum(map(len, batch.values())))
        for partition, entries in batch.items():
            there = {*self.outbox.entries[partition], *self.outbox.apart.get((partition, partition), ())}
            assert there.issuperset(entry[0] for entry in entries), "deleted before its commit"
            if partition in taken | outdated:
                continue
            ids = [entry[0] for entry in entries if entry[0] not in self.held]
            self.stored.setdefault(partition, []).extend(ids)
            report.acknowledged[partition] = ids
            report.control_ids[partition] = [f"control-{partition}"]
            if held := len(entries) - len(ids):
                report.held += held
                report.waiting[partition, partition, 1000 + partition] = held
                report.parked[partition, partition] = [e[0] for e in entries if e[0] in self.held]
                report.judged[partition] = self.under
        return report


class Seen:
    def __init__(self) -> None:
        self.flushed: list[FlushReport] = []
        self.failed: list[FailedBatch] = []

    def __call__(self, fact: FlushedBatch | FailedBatch) -> None:
        if isinstance(fact, FailedBatch):
            self.failed.append(fact)
        else:
            self.flushed.append(fact.report)


def flusher(outbox: Streams, store: Store, seen: Seen | None = None, **options: float) -> Flusher:
    return Flusher(outbox, store, seen or Seen(), **options)


def waiting(size: int) -> tuple[Streams, Store]:
    """A partition all of whose entries are kept waiting."""
    outbox = Streams(p3=size)
    store = Store(outbox)
    store.held = set(outbox.entries[3])
    return outbox, store


async def emptied(outbox: Streams) -> None:
    await eventually(lambda: not outbox.left())


async def test_a_pass_stores_everything_in_order_and_deletes_it() -> None:
    outbox = Streams(p1=5, p7=300, p63=1)
    store = Store(outbox)
    assert await flusher(outbox, store).flush() == 306
    assert outbox.left() == 0
    assert all(ids == sorted(ids) for ids in store.stored.values())
    assert {partition: len(ids) for partition, ids in store.stored.items()} == {1: 5, 7: 300, 63: 1}
    assert outbox.control_ids[1] == ["control-1"]


async def test_what_is_outdated_is_read_anew_under_what_is_known_by_then() -> None:
    outbox = Streams(p1=2, p7=2)
    store = Store(outbox)
    store.outdated = [frozenset({7})]
    loop = flusher(outbox, store)
    assert await loop.flush() == 4
    assert (outbox.left(), len(store.stored[7])) == (0, 2)
    assert store.histories == [History(outbox.read_under, {7: known}) for known in (1, 2)]
    assert await loop.flush() == 0
    assert store.asked == 2  # only where it has changed


async def test_one_busy_partition_fills_whole_batches() -> None:
    outbox = Streams(p3=3 * BATCH_ENTRIES_MAX)
    store = Store(outbox)
    assert await flusher(outbox, store).flush() == 3 * BATCH_ENTRIES_MAX
    assert store.stored[3] == sorted(set(store.stored[3]))
    assert len(store.batches) <= 4
    assert max(store.batches) <= BATCH_ENTRIES_MAX + ENTRIES_A_PARTITION_MIN


async def test_an_empty_outbox_costs_one_read_and_no_transaction() -> None:
    outbox = Streams()
    store = Store(outbox)
    assert await flusher(outbox, store).flush() == 0
    assert (len(outbox.reads), store.batches) == (1, [])


async def test_what_waits_is_moved_aside_and_does_not_stop_those_behind() -> None:
    outbox, store = waiting(2 * BATCH_ENTRIES_MAX)
    first = outbox.entries[3][:BATCH_ENTRIES_MAX]
    store.held = set(first)
    assert await flusher(outbox, store).flush() == BATCH_ENTRIES_MAX
    assert outbox.left() == 0
    assert outbox.apart == {(3, 3): first}


async def test_what_waits_is_judged_once_by_a_keeper() -> None:
    outbox, store = waiting(1_000)
    once = flusher(outbox, store)
    assert await once.flush() == 0
    outbox.entries[3] += [b"%08d" % n for n in range(2_001, 2_004)]
    store.held.add(b"%08d" % 2_002)
    assert await once.flush() == 2
    assert await once.flush() == 0
    assert outbox.judged_again == []
    another = flusher(outbox, store)
    for _ in range(3):
        assert await another.flush() == 0
    assert outbox.judged_again == [{(3, 3): 1_001}]


async def test_what_went_on_is_judged_in_order_before_anything_newer() -> None:
    outbox, store = waiting(1_000)
    everything = [*outbox.entries[3], b"99999999"]
    once = flusher(outbox, store)
    assert await once.flush() == 0
    store.release()
    outbox.entries[3].append(b"99999999")
    assert await once.flush() == 1_001
    assert store.stored[3] == everything
    assert outbox.waiting() == 0


async def test_much_that_waited_goes_on_by_batches_while_others_pass() -> None:
    outbox, store = waiting(2 * BATCH_ENTRIES_MAX + 1)
    everything = [*outbox.entries[3], b"99999999"]
    once = flusher(outbox, store)
    await once.flush()
    store.release()
    outbox.entries[3].append(b"99999999")
    outbox.entries[4] = [b"1"]
    assert await once.flush() == BATCH_ENTRIES_MAX + 1
    assert store.stored[4] == [b"1"]
    assert await once.flush() == BATCH_ENTRIES_MAX
    assert await once.flush() == 2
    assert store.stored[3] == everything


async def test_what_another_flusher_moved_aside_comes_before_what_is_read_behind_it() -> None:
    outbox = Streams(p3=10)
    store = Store(outbox)
    everything, read = list(outbox.entries[3]), outbox.read

    async def read_behind(
        after: Mapping[int, bytes], count: int
    ) -> Mapping[int, Sequence[tuple[bytes, bytes]]]:
        outbox.read = read  # type: ignore[method-assign]  # once
        await outbox.park({(3, 3): everything[:4]})
        return await read(after, count)

    outbox.read = read_behind  # type: ignore[method-assign]
    once = flusher(outbox, store)
    assert await once.flush() == 0
    assert await once.flush() == 10
    assert store.stored[3] == everything


async def test_a_release_between_a_read_and_its_transaction_is_seen_there() -> None:
    """What is newer would otherwise be judged without what waits before it."""
    outbox, store = waiting(10)
    everything, judged = [*outbox.entries[3], b"99999999"], store.judged
    once = flusher(outbox, store)
    await once.flush()
    outbox.entries[3].append(b"99999999")

    async def released_behind_it(partitions: Iterable[int]) -> Mapping[int, Judged]:
        before = await judged(partitions)
        store.release()
        store.judged = judged  # type: ignore[method-assign]  # once
        return before

    store.judged = released_behind_it  # type: ignore[method-assign]
    assert await once.flush() == 0
    assert await once.flush() == 11
    assert store.stored[3] == everything


async def test_behind_a_failure_what_waits_is_judged_again() -> None:
    outbox, store = waiting(10)
    once = flusher(outbox, store)
    await once.flush()
    outbox.away = True
    with pytest.raises(CountersUnavailable):
        await once.flush()
    outbox.away = False
    await once.flush()
    assert outbox.judged_again == [{(3, 3): 10}]


async def test_calls_are_refused_where_too_much_waits() -> None:
    outbox, told = Streams(p3=10, p4=10), list[Mapping[int, Sequence[int]]]()
    store = Store(outbox)
    store.held = {*outbox.entries[3], b"11", b"12"}

    async def refuse(tenants: Mapping[int, Sequence[int]]) -> None:
        told.append(tenants)

    outbox.entries[4] = [b"1"]
    once = Flusher(outbox, store, Seen(), refuse=refuse, waiting_entries_max=10)
    await once.flush()
    assert told == []
    # It is what waits there that counts, whoever moved it.
    another = Flusher(outbox, store, Seen(), refuse=refuse, waiting_entries_max=10)
    outbox.entries[3].append(b"11")
    await another.flush()
    await another.flush()
    assert told == [{3: [1003]}]


async def test_a_partition_another_flusher_holds_waits_for_the_next_pass() -> None:
    outbox = Streams(p3=2 * BATCH_ENTRIES_MAX, p4=10)
    store = Store(outbox)
    store.taken = [frozenset({3})]
    once = flusher(outbox, store)
    assert await once.flush() == 10
    assert 3 not in store.stored
    assert await once.flush() == 2 * BATCH_ENTRIES_MAX
    assert outbox.left() == 0


async def test_what_another_flusher_stands_still_with_is_read_once_and_not_each_pass() -> None:
    outbox = Streams(p3=10, p4=10)
    store = Store(outbox)
    store.held_elsewhere = frozenset({3})
    once = flusher(outbox, store)
    assert await once.flush() == 10
    outbox.entries[4] = [b"1"]
    assert [await once.flush() for _ in range(3)] == [1, 0, 0]
    assert sum(read.get(3, 0) for read in outbox.reads) == 10
    store.held_elsewhere = frozenset()
    assert [await once.flush() for _ in range(3)] == [10, 0, 0]
    assert (outbox.left(), store.looks) == (0, 4)


async def test_a_partition_that_is_flushed_elsewhere_from_now_on_is_read_no_further() -> None:
    outbox, mine = Streams(p3=3 * BATCH_ENTRIES_MAX, p4=10), {3, 4}
    store, write = Store(outbox), Store.write
    once = Flusher(outbox, store, Seen(), partitions=lambda: frozenset(mine))
    hands: list[frozenset[int]] = []

    async def taken_away(batch: Batch, history: History) -> FlushReport:
        hands.append(once.in_hand)
        mine.discard(3)
        return await write(store, batch, history)

    store.write = taken_away  # type: ignore[method-assign]  # told of it while the first batch is stored
    stored = await once.flush()
    assert stored == len(store.stored[3]) + 10, "what was read is stored"
    assert stored + outbox.left() == 3 * BATCH_ENTRIES_MAX + 10
    assert outbox.left() >= BATCH_ENTRIES_MAX
    assert all(3 in hand for hand in hands), "it is said to be in hand until then"
    assert once.in_hand == frozenset()


async def test_a_partition_that_comes_is_read_although_another_never_ends() -> None:
    outbox, mine = Streams(p3=(PASS_BATCHES_MAX + 4) * BATCH_ENTRIES_MAX, p4=10), {3}
    store = Store(outbox)
    once = Flusher(outbox, store, Seen(), partitions=lambda: frozenset(mine))
    assert await once.flush() <= PASS_BATCHES_MAX * BATCH_ENTRIES_MAX
    mine.add(4)
    await once.flush()
    assert outbox.left() == 0


async def test_nothing_is_deleted_while_the_ledger_is_away_and_it_recovers() -> None:
    outbox, seen = Streams(p1=10), Seen()
    store = Store(outbox)
    store.failures = 3
    loop = flusher(outbox, store, seen, flush_interval_s=0.001)
    running = asyncio.create_task(loop.run())
    await emptied(outbox)
    loop.stop()
    await running
    assert [failed.failures for failed in seen.failed] == [1, 2, 3]
    assert store.stored == {1: [b"%08d" % n for n in range(1, 11)]}


async def test_a_ledger_that_was_away_is_looked_at_before_anything_is_stored_again() -> None:
    outbox, seen = Streams(p1=10), Seen()
    store = Store(outbox)
    store.failures = 2
    stored: list[int] = []

    async def look() -> None:
        stored.append(len(store.stored))
        if len(stored) == 2:
            raise LedgerUnavailable

    loop = Flusher(outbox, store, seen, before_storing=look, flush_interval_s=0.001)
    running = asyncio.create_task(loop.run())
    await emptied(outbox)
    outbox.entries[2] = [b"1"]
    await emptied(outbox)
    loop.stop()
    await running
    # At first, and behind each failure, its own included; never where all is well.
    assert stored == [0, 0, 0, 0]
    assert len(seen.failed) == 3


def test_the_wait_between_failures_doubles_up_to_a_bound() -> None:
    for error in (LedgerUnavailable(), CountersRefused("a script that is wrong")):
        waits = [back_off_s(failures, error) for failures in range(1, 1_000)]
        assert waits[:3] == [BACK_OFF_MIN_S, 2 * BACK_OFF_MIN_S, 4 * BACK_OFF_MIN_S]
        assert waits == sorted(waits)
        assert waits[-1] == BACK_OFF_MAX_S


def test_counters_that_are_away_are_asked_often() -> None:
    waits = [back_off_s(failures, CountersUnavailable()) for failures in range(1, 1_000)]
    assert max(waits) == AWAY_BACK_OFF_MAX_S


async def test_stopping_drains_what_is_there() -> None:
    outbox = Streams(p1=10, p2=20)
    loop = flusher(outbox, Store(outbox), flush_interval_s=60)
    loop.stop()
    await loop.run()
    assert outbox.left() == 0


async def test_a_drain_that_cannot_finish_ends_in_time() -> None:
    outbox, seen = Streams(p1=10), Seen()
    store = Store(outbox)

    async def never(_batch: Batch, _history: History) -> FlushReport:
        await asyncio.Event().wait()
        raise AssertionError

    store.write = never  # type: ignore[method-assign]  # a writer that hangs
    loop = flusher(outbox, store, seen, drain_timeout_s=0.05)
    loop.stop()
    await loop.run()
    assert isinstance(seen.failed[0].error, TimeoutError)
    assert outbox.left() == 10


async def test_a_drain_without_redis_ends_at_once() -> None:
    outbox, seen = Streams(p1=10), Seen()
    outbox.away = True
    loop = flusher(outbox, Store(outbox), seen)
    loop.stop()
    await loop.run()
    assert isinstance(seen.failed[0].error, CountersUnavailable)


async def test_flusher_keeps_the_time_and_cause_of_a_failure_until_a_flush_succeeds() -> None:
    outbox = Streams(p1=1)
    store, seen = Store(outbox), Seen()
    outbox.away = True
    loop = flusher(outbox, store, seen, flush_interval_s=0.001)
    running = asyncio.create_task(loop.run())
    try:
        await eventually(lambda: isinstance(loop.trouble and loop.trouble[1], CountersUnavailable))
        since = loop.trouble and loop.trouble[0]
        store.failures, outbox.away = 1_000, False
        await eventually(lambda: isinstance(loop.trouble and loop.trouble[1], LedgerUnavailable))
        assert loop.trouble is not None
        assert loop.trouble[0] == since
        store.failures = 0
        await eventually(lambda: loop.trouble is None)
        assert outbox.left() == 0
    finally:
        loop.stop()
        await running
