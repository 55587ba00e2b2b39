"""Records that holds by the API leave in Redis are bounded, and stored again by workers if Redis loses them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import cast

import pytest

from gateway.core.accounts.caller_holds import UNITS, CallerHold, HeldAmounts, HoldEnd
from gateway.core.model import Caller, Service
from gateway.core.wait import Wait, begin, in_task
from gateway.counters.admission import caller_holds as admission
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.settlement_log.log import LogLimits, SettlementLog
from gateway.counters.settlement_log.resubmission import Resubmitter
from gateway.errors import CountersUnavailable, HoldNotFound, TooManyHolds
from tests.builders import World, driven, settlement_log
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect
from tests.waiting import eventually

METADATA = '{"job":"' + "x" * 2000 + '"}'


@pytest.fixture
async def holds(world: World, connect: Connect, tmp_path: Path) -> AsyncIterator[admission.CallerHolds]:
    steps = count()  # no two moments are the same millisecond

    def today() -> float:
        return time.time() + next(steps) / 500

    log = settlement_log(tmp_path / "own")
    yield admission.CallerHolds(await connect(world.url), today, log, 2, 2)
    await log.close()


def hold_of(caller: Caller, number: int) -> CallerHold:
    now_ms = int(time.time() * 1000)
    return CallerHold(
        f"00000000-0000-4000-8000-{number:012d}", caller.organization_id, caller.tenant_id, caller.key_id,
        caller.partition, Service(1, "search"), UNITS, 1, HeldAmounts(), now_ms, now_ms + 60_000, "charge",
        metadata=METADATA,
    )  # fmt: skip


def timed_id(ms: int, number: int) -> str:
    """An id that names its time, as those of gateways do."""
    return f"{ms >> 16:08x}-{ms & 0xFFFF:04x}-7000-8000-{number:012d}"


def indexes(world: World) -> list[str]:
    p, caller = world.p, world.caller
    return [keys.open_holds(p, caller.organization_id), keys.key_holds(p, caller.key_id)]


def counted(world: World) -> list[object]:
    return [world.client.zcard(one) for one in indexes(world)]


async def test_an_open_hold_counts_for_its_organization_and_key_until_it_ends(
    world: World, holds: admission.CallerHolds
) -> None:
    hold = hold_of(world.caller, 1)
    await driven(holds.keep(hold))
    await driven(holds.keep(hold))  # extended
    assert counted(world) == [1, 1]
    await driven(holds.ended(hold, HoldEnd(False, True, "facts", "told")))
    assert counted(world) == [0, 0]


@pytest.mark.parametrize("released", [False, True])
async def test_an_ended_hold_keeps_its_answer_and_nothing_else_said(
    world: World, holds: admission.CallerHolds, released: bool
) -> None:
    hold = hold_of(world.caller, 1)
    await driven(holds.keep(hold))
    end = await driven(holds.decide(hold, HoldEnd(released, True, METADATA, "told")))
    await driven(holds.ended(hold, end))
    stored = await driven(holds.end_of(hold))
    assert stored is not None
    assert (stored.applied, stored.answer, stored.facts) == (True, "told", "")
    assert (await driven(holds.find(world.caller, hold.id))).metadata == ""
    life_ms = admission.RELEASED_MS if released else admission.ENDED_MS
    for name in (keys.caller_hold(world.p, hold.id), keys.hold_end(world.p, hold.id)):
        assert 0 < cast("int", world.client.pttl(name)) <= life_ms


async def test_a_key_leaves_as_many_open_holds_to_others_as_it_has(
    world: World, holds: admission.CallerHolds
) -> None:
    later = world.now_ms() + 60_000
    for name in indexes(world):
        world.client.zadd(name, {f"hold {n}": later for n in range(admission.OPEN_MAX // 2)})
    with pytest.raises(TooManyHolds, match="leaves to others"):
        await driven(holds.enter(world.caller, "a"))
    await eventually(lambda: counted(world) == [admission.OPEN_MAX // 2] * 2)
    other = replace(world.caller, key_id=world.caller.key_id + 1)
    await driven(holds.enter(other, "b"))
    world.client.zadd(indexes(world)[0], {f"other {n}": later for n in range(admission.OPEN_MAX // 2)})
    with pytest.raises(TooManyHolds, match="organization has"):
        await driven(holds.enter(other, "c"))
    world.client.zadd(indexes(world)[0], {f"other {n}": 1 for n in range(9)})
    await driven(holds.enter(replace(other, key_id=9), "d"))  # nobody waits for what is over


async def test_of_many_that_ask_at_once_none_passes_the_share_of_its_key(
    world: World, holds: admission.CallerHolds
) -> None:
    half, later = admission.OPEN_MAX // 2, world.now_ms() + 60_000
    for name in indexes(world):
        world.client.zadd(name, {f"hold {n}": later for n in range(half - 3)})
    asked = [begin(holds.enter(world.caller, f"asked {n}")) for n in range(16)]
    taken = [one for one in await asyncio.gather(*map(ended, asked)) if not one]
    assert 1 <= len(taken) <= 3
    await eventually(lambda: counted(world) == [half - 3 + len(taken)] * 2)


async def ended(wait: Wait[None]) -> str:
    """How a place was refused; empty where it was taken."""
    try:
        await in_task(wait)
    except TooManyHolds as refusal:
        return refusal.message
    return ""


async def test_a_place_whose_hold_is_refused_is_given_back(
    world: World, holds: admission.CallerHolds
) -> None:
    hold = hold_of(world.caller, 1)
    await driven(holds.enter(world.caller, hold.id))
    assert counted(world) == [1, 1]
    holds.leave(world.caller, hold.id)
    await eventually(lambda: counted(world) == [0, 0])
    await driven(holds.enter(world.caller, hold.id))
    await driven(holds.keep(hold))
    await driven(holds.enter(world.caller, hold.id))  # the same request, sent again
    holds.leave(world.caller, hold.id)
    assert world.client.zscore(indexes(world)[1], hold.id) == hold.expires_ms + admission.ENDED_MS


async def test_the_first_ended_hold_makes_room(world: World, holds: admission.CallerHolds) -> None:
    for number in range(3):
        hold = hold_of(world.caller, number)
        await driven(holds.keep(hold))
        end = await driven(holds.decide(hold, HoldEnd(False, True, "")))
        await driven(holds.ended(hold, end))
    gone = hold_of(world.caller, 0).id
    assert not world.client.exists(keys.caller_hold(world.p, gone), keys.hold_end(world.p, gone))
    assert (await driven(holds.find(world.caller, hold.id))).id == hold.id


async def test_the_first_idempotent_request_makes_room_and_a_refused_one_has_none(
    world: World, holds: admission.CallerHolds
) -> None:
    for key in ("a", "refused", "b"):
        await driven(holds.begin(world.caller, key, b"{}", key))
        await driven(holds.keep(hold_of(world.caller, 1), key, b"{}", b"told"))
        if key == "refused":
            await driven(holds.forget(world.caller, key))
    told = hold_of(world.caller, 1).id, b"told"
    assert await driven(holds.begin(world.caller, "a", b"{}", "again")) == told
    await driven(holds.begin(world.caller, "c", b"{}", "c"))
    assert await driven(holds.begin(world.caller, "a", b"{}", "new")) == ("new", b"")


def lose(world: World) -> None:
    """Delete what Redis has of holds, and verify the partition anew."""
    names = [keys.caller_hold(world.p, "*"), keys.hold_end(world.p, "*"), keys.open_holds(world.p, 1)]
    found = [one for name in names for one in cast("list[bytes]", world.client.keys(name))]
    world.client.delete(*found, *indexes(world))
    world.mark(epoch=2)
    world.client.set(keys.verified(0), world.run_id)


async def is_known(holds: admission.CallerHolds, hold: CallerHold) -> bool:
    try:
        return (await driven(holds.find(hold.caller, hold.id))).id == hold.id
    except HoldNotFound:
        return False


async def test_worker_stores_lost_holds_again_with_their_ends(
    world: World, holds: admission.CallerHolds
) -> None:
    open_hold, settled, released = (hold_of(world.caller, number) for number in (1, 2, 3))
    for hold in (open_hold, settled, released):
        await driven(holds.keep(hold))
    await driven(holds.ended(settled, HoldEnd(False, True, "facts", "told")))
    await driven(holds.ended(released, HoldEnd(True, False, "facts")))
    lose(world)
    await holds.restore({world.p + 1})
    assert not await is_known(holds, open_hold)
    for restored in (3, 3):  # the second time nothing is lost
        await holds.restore({world.p})
        assert (holds.restored, counted(world)) == (restored, [1, 1])
    assert (await driven(holds.find(world.caller, open_hold.id))).metadata == METADATA
    ends = [await driven(holds.end_of(hold)) for hold in (open_hold, settled, released)]
    assert [end and (end.released, end.applied, end.answer) for end in ends] == [
        None, (False, True, "told"), (True, True, ""),
    ]  # fmt: skip
    record = keys.caller_hold(world.p, open_hold.id)
    assert 60_000 < cast("int", world.client.pttl(record)) <= 60_000 + admission.ENDED_MS


async def test_worker_stores_the_longest_time_of_a_lost_hold_and_none_that_is_over(
    world: World, holds: admission.CallerHolds
) -> None:
    short, over = hold_of(world.caller, 1), hold_of(world.caller, 2)
    over.expires_ms -= 60_000 + admission.ENDED_MS
    for hold in (short, over):
        await driven(holds.keep(hold))
    lose(world)
    await holds.restore({world.p})
    assert (await is_known(holds, short), await is_known(holds, over)) == (True, False)
    short.expires_ms += 1_000  # extended here, and stored by a worker that knows it before that
    await driven(holds.keep(short))
    lose(world)
    short.expires_ms -= 1_000
    await driven(holds._set(world.p, keys.caller_hold(world.p, short.id).encode(), short, 60_000))
    await holds.restore({world.p})
    assert (await driven(holds.find(world.caller, short.id))).expires_ms == short.expires_ms + 1_000


async def test_lost_hold_is_stored_with_the_end_that_another_worker_remembers(
    world: World, holds: admission.CallerHolds, connect: Connect, tmp_path: Path
) -> None:
    hold = hold_of(world.caller, 1)
    hold.expires_ms += 86_400_000
    log = settlement_log(tmp_path / "other")
    other = admission.CallerHolds(await connect(world.url), time.time, log)
    await driven(holds.keep(hold))
    await driven(other.ended(hold, HoldEnd(False, True, "facts", "told")))
    for workers in ((holds, other), (other, holds)):
        lose(world)
        for worker in workers:
            await worker.restore({world.p})
        end = await driven(holds.end_of(hold))
        assert end is not None
        assert (end.answer, counted(world)) == ("told", [0, 0])
        record = cast("int", world.client.pttl(keys.caller_hold(world.p, hold.id)))
        assert 0 < record <= admission.ENDED_MS
    await log.close()


@asynccontextmanager
async def working(
    world: World, connect: Connect, folder: Path
) -> AsyncIterator[tuple[admission.CallerHolds, Resubmitter, SettlementLog]]:
    """A worker with the holds that it takes, and its log in a folder; it ends as if it was killed."""
    wire, log = await connect(world.url), settlement_log(folder)
    holds = admission.CallerHolds(wire, time.time, log)
    resubmitter = Resubmitter(
        wire, log, time.monotonic, lambda *_, **__: None, recall=holds.recall, restore=holds.restore,
        report=WorkerReports(wire, "1", time.time_ns(), time.monotonic).report,
        bounds=LogLimits(batch_s=0.0, at_risk_s=0.0, together_s_max=0.0),
    )  # fmt: skip
    yield holds, resubmitter, log
    await log.written()
    for segment in log.segments:
        segment.leave()
    log.segments.clear()
    await log.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ValkeyServer]:
    server = ValkeyServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.mark.parametrize("has_disk", [True, False])
async def test_next_worker_knows_holds_of_a_killed_worker_by_its_log_after_redis_came_back_empty(
    server: ValkeyServer, connect: Connect, tmp_path: Path, has_disk: bool
) -> None:
    world, folder = World(server.url), tmp_path / "log"
    made_ms = int(time.time() * 1000) - 1_000
    hold, other = hold_of(world.caller, 1), hold_of(world.caller, 2)
    hold.id, other.id = timed_id(made_ms, 1), timed_id(made_ms, 2)
    async with working(world, connect, folder) as (holds, _, _):
        for one in (hold, other):
            await driven(holds.keep(one))
        await driven(holds.ended(other, HoldEnd(False, True, "facts", "told")))
    server.stop(9)
    server.start()  # without a file of its own: empty
    again = World(server.url)
    for partition in range(64):
        again.client.set(keys.marker(partition), packing.marker(again.run_id, 2, 1))
    again.client.set(keys.verified(0), again.run_id)
    folder = folder if has_disk else tmp_path / "another"
    async with working(again, connect, folder) as (holds, resubmitter, _):
        await resubmitter.resubmit()
        assert [await is_known(holds, one) for one in (hold, other)] == [has_disk] * 2
        assert (holds.restored, holds.forgotten) == ((2, 0) if has_disk else (0, 2))
        if has_disk:
            end = await driven(holds.end_of(other))
            assert end is not None
            assert end.answer == "told"
    async with working(again, connect, folder) as (
        holds,
        resubmitter,
        _,
    ):  # killed before it noted anything else
        lose(again)
        await resubmitter.resubmit()
        assert await is_known(holds, hold) is has_disk


DAY_AGO_MS = admission.KNOWN_MS + 60_000


@pytest.mark.parametrize(
    ("ago_ms", "since_ago_ms", "count"),
    [(2_000, 1_000, 1), (1_000, 2_000, 0), (2_000, 0, 0), (DAY_AGO_MS, 1_000, 0), (-60_000, 1_000, 0)],
)  # fmt: skip
async def test_unknown_hold_counts_as_forgotten_if_older_than_the_data_of_redis(
    world: World, holds: admission.CallerHolds, ago_ms: int, since_ago_ms: int, count: int
) -> None:
    world.client.set(keys.verified(0), world.run_id)
    now_ms = int(time.time() * 1000)
    if since_ago_ms:
        world.client.set(keys.holds_since(world.p), b"1 %d" % (now_ms - since_ago_ms))
    with pytest.raises(HoldNotFound):
        await driven(holds.find(world.caller, timed_id(now_ms - ago_ms, 1)))
    assert holds.forgotten == count


async def test_unknown_hold_is_no_answer_until_all_workers_stored_theirs_again(
    world: World, holds: admission.CallerHolds
) -> None:
    hold = hold_of(world.caller, 1)
    world.client.set(keys.verified(0), world.run_id)
    world.mark(epoch=2, catalogue=packing.CLOSED)
    with pytest.raises(CountersUnavailable):
        await driven(holds.find(world.caller, hold.id))
    world.mark(epoch=2)
    assert not await is_known(holds, hold)
    assert holds.forgotten == 0


async def test_worker_notes_the_time_of_each_epoch(world: World, holds: admission.CallerHolds) -> None:
    name, before_ms = keys.holds_since(world.p), int(time.time() * 1000)
    await holds.restore({world.p})
    epoch, first_ms = map(int, cast("bytes", world.client.get(name)).split())
    assert (epoch, first_ms >= before_ms) == (1, True)
    await holds.restore({world.p})
    assert world.client.get(name) == b"1 %d" % first_ms
    world.mark(epoch=2)
    await holds.restore({world.p})
    epoch, later_ms = map(int, cast("bytes", world.client.get(name)).split())
    assert (epoch, later_ms > first_ms) == (2, True)
