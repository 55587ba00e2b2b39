"""Which late settlements are handed out, and when: by places in streams, whatever the clock does."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.accounts.holds import LateSettlement
from gateway.core.accounts.outbox import VERSION, decode
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import park
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.late import ANYBODYS, LOOK_ENTRIES, LateLane, ReclaimClient, owner_of
from gateway.counters.redis import keys
from tests.builders import BLANK, Call, World, encode
from tests.counters.conftest import Connect

HOUR_MS = 3_600_000


@pytest.fixture
async def keeping(world: World, connect: Connect) -> ReclaimClient:
    world.plan(100_000)
    world.client.xtrim(keys.outbox(world.p), maxlen=0)
    return ReclaimClient(Client(await connect(world.url)))


def late_call(world: World) -> Call:
    """A call whose hold is gone when it settles."""
    call = world.reserve(need=1)
    world.client.delete(keys.hold(world.p, call.id))
    call.settle(tokens=1)
    return call


def stored(world: World, entries: list[bytes]) -> None:
    """As the flusher does once they are rows."""
    world.client.xdel(keys.outbox(world.p), *entries)


def ids(found: list[LateSettlement] | Any) -> list[str]:
    return [one.settlement.request_id for one in found]


def dealt_with(world: World, found: Any) -> None:
    world.client.xdel(keys.late(world.p), *(one.entry_id for one in found))


PACKED = encode(replace(decode(BLANK), organization_id=7))


@pytest.mark.parametrize(
    ("packed", "owner"),
    [
        (PACKED, 7),
        (bytes([VERSION + 1]) + PACKED[1:] + bytes(24), ANYBODYS),
        (PACKED[:10], 0),
        (bytes([VERSION - 1]) + PACKED[1:], 0),
        (b"", 0),
    ],
)
def test_an_entry_is_its_organizations_anybodys_or_nobodys(packed: bytes, owner: int) -> None:
    assert owner_of([b"1-0", [b"e", packed]]) == owner


# --- what waits -------------------------------------------------------------------------


async def test_more_entries_of_another_organization_than_are_read_at_once_are_in_nobodys_way(
    world: World, keeping: ReclaimClient
) -> None:
    world.moved(999, LOOK_ENTRIES * 2 + 1)
    call = late_call(world)
    assert ids(await keeping.late(10)) == [call.id]


async def test_an_organization_waits_for_all_of_its_own_entries(world: World, keeping: ReclaimClient) -> None:
    world.moved(999, LOOK_ENTRIES)
    mine = world.moved(1, 2)
    world.moved(999)
    call = late_call(world)
    assert await keeping.late(10) == []
    stored(world, mine[:1])
    assert await keeping.late(10) == []
    stored(world, mine[1:])
    assert ids(await keeping.late(10)) == [call.id]


async def test_an_organization_waits_for_what_was_moved_aside_of_it(
    world: World, keeping: ReclaimClient
) -> None:
    """That waits behind a stopped account, until a person has looked."""
    mine, other = world.moved(1, 2), World(world.url, organization_id=same_partition(world), tenant_id=8)
    other.plan(1000)
    world.client.xdel(keys.outbox(world.p), *(one for one, _ in other.entries(keys.outbox(other.p))[2:]))
    call = late_call(world)
    for _ in range(2):  # also where it has been looked for once
        assert await keeping.late(10) == []
        world.run("park", park(world.run_id, (world.p, 1), moved=mine))
    theirs = late_call(other)
    assert ids(await keeping.late(10)) == [theirs.id]
    world.run("park", park(world.run_id, (world.p, 1), gone=mine))
    assert call.id in ids(await keeping.late(10))


async def test_it_never_waits_for_what_came_behind_it(world: World, keeping: ReclaimClient) -> None:
    before = world.moved(1)
    call = late_call(world)
    assert await keeping.late(10) == []
    world.moved(1, 3)
    late_call(world)
    assert await keeping.late(10) == []
    stored(world, before)
    assert ids(await keeping.late(10)) == [call.id]


async def test_a_stopped_organizations_settlements_keep_no_others_however_many_they_are(
    world: World, keeping: ReclaimClient
) -> None:
    """More of them than a pass looks at, in front of everybody else's."""
    keeping._lane = LateLane(keeping._client, lane_look_max=20)
    stopped = world.moved(1)
    waiting = [late_call(world).id for _ in range(50)]
    other = World(world.url, organization_id=same_partition(world), tenant_id=8, key_id=4)
    other.plan(1000)
    other.client.xdel(keys.outbox(world.p), *(one for one, _ in other.entries(keys.outbox(world.p))[1:]))
    call = late_call(other)
    found = [await keeping.late(10) for _ in range(4)]
    assert [ids(one) for one in found if one][:1] == [[call.id]]
    dealt_with(world, [one for each in found[-1:] for one in each])
    assert await keeping.late(10) == []
    stored(world, stopped)
    seen: list[str] = []
    while found_now := await keeping.late(10):
        seen += ids(found_now)
        dealt_with(world, found_now)
    assert seen == waiting


async def test_what_was_handed_out_and_not_dealt_with_is_handed_out_again(
    world: World, keeping: ReclaimClient
) -> None:
    calls = [late_call(world).id for _ in range(5)]
    assert [ids(await keeping.late(3)) for _ in range(2)] == [calls[:3]] * 2


async def test_an_id_that_outlived_its_entry_keeps_nothing_waiting(
    world: World, keeping: ReclaimClient
) -> None:
    call = late_call(world)
    world.client.hset(keys.control(world.p), call.id, 1)
    world.moved(999, 1)
    assert ids(await keeping.late(10)) == []
    world.client.xtrim(keys.outbox(world.p), maxlen=0)
    assert ids(await keeping.late(10)) == [call.id]


async def test_an_entry_no_script_has_written_keeps_none_that_one_has(
    world: World, keeping: ReclaimClient
) -> None:
    late_call(world)
    lane: Any = world.client.xrange(keys.late(world.p))
    [(entry, theirs)] = lane
    world.client.xdel(keys.late(world.p), entry)
    for packed in (b"?", theirs[b"a"]):  # the second lacks the rest
        world.client.xadd(keys.late(world.p), {"a": packed})
    call = late_call(world)
    assert ids(await keeping.late(10)) == [call.id]


# --- clocks -----------------------------------------------------------------------------


async def test_a_clock_that_was_set_back_doubles_nothing(world: World, keeping: ReclaimClient) -> None:
    """The outbox goes on from its newest entry, an hour ahead; an empty lane begins at the hour it is."""
    ahead(world, keys.outbox(world.p))
    call = world.reserve(need=1)
    call.settle(tokens=1)
    call.settle(tokens=1)
    (entry,) = world.entries(keys.outbox(world.p))
    assert entry[0] > world.entries(keys.late(world.p))[0][0]
    assert await keeping.late(10) == []
    stored(world, [entry[0]])
    assert ids(await keeping.late(10)) == [call.id]


async def test_a_clock_that_was_set_back_keeps_nothing_waiting(world: World, keeping: ReclaimClient) -> None:
    """The queue goes on an hour ahead: whatever the outbox has from now on looks older."""
    ahead(world, keys.late(world.p))
    before = world.moved(1)
    call = late_call(world)
    assert await keeping.late(10) == []
    stored(world, before)
    world.moved(1)
    assert ids(await keeping.late(10)) == [call.id]


async def test_what_was_seen_of_a_redis_is_forgotten_with_it(world: World, keeping: ReclaimClient) -> None:
    """Emptied and rebuilt, its streams begin anew, maybe at an earlier hour."""
    world.moved(999)
    late_call(world)
    assert len(await keeping.late(10)) == 1
    ahead_of = world.entries(keys.outbox(world.p))[0][0]
    world.client.delete(keys.outbox(world.p))
    world.mark(epoch=2)
    packed = encode(replace(decode(BLANK), organization_id=1))
    world.client.xadd(keys.outbox(world.p), {"e": packed}, id="1-1")
    assert ahead_of > b"1-1"
    for _ in range(3):
        assert await keeping.late(10) == []


def ahead(world: World, stream: str) -> None:
    """Have a stream's newest entry, which is gone, be of a clock that was an hour ahead."""
    entry: Any = world.client.xadd(stream, {"e": ""}, id=f"{world.now_ms() + HOUR_MS}-0")
    world.client.xdel(stream, entry)


# --- broken streams ---------------------------------------------------------------------


@pytest.mark.parametrize("broken", [keys.outbox, keys.late, keys.control], ids=["outbox", "late", "control"])
async def test_a_broken_partition_keeps_no_other(world: World, keeping: ReclaimClient, broken: Any) -> None:
    other = World(world.url, organization_id=2, tenant_id=8, key_id=4)
    assert other.p != world.p
    other.plan(1000)
    other.client.xtrim(keys.outbox(other.p), maxlen=0)
    late_call(world)
    call = late_call(other)
    world.client.set(broken(world.p), "something else")
    assert ids(await keeping.late(10)) == [call.id]


async def test_a_lane_that_does_not_say_is_taken_to_hold_something(world: World, connect: Connect) -> None:
    verification = KeeperCounters(await connect(world.url))
    assert await verification.late_waiting() == frozenset()
    world.client.set(keys.late(world.p), "something else")
    assert await verification.late_waiting() == {world.p}


async def test_what_waits_in_an_outbox_that_was_away_is_waited_for_when_it_is_back(
    world: World, keeping: ReclaimClient
) -> None:
    world.moved(1)
    world.client.rename(keys.outbox(world.p), "aside")
    world.client.set(keys.outbox(world.p), "not a stream")
    late_call(world)
    assert await keeping.late(10) == []
    world.client.rename("aside", keys.outbox(world.p))
    assert await keeping.late(10) == []


async def test_a_pass_that_failed_in_the_middle_forgets_nobody(world: World, keeping: ReclaimClient) -> None:
    keeping._lane = LateLane(keeping._client, look_entries_min=2)
    other = World(world.url, organization_id=same_partition(world), tenant_id=8, key_id=4)
    other.plan(1000)
    world.client.xtrim(keys.outbox(world.p), maxlen=0)
    before = world.moved(1)
    mine = [late_call(world).id for _ in range(2)]
    theirs = late_call(other).id
    world.client.rename(keys.control(world.p), "aside")
    world.client.set(keys.control(world.p), "something else")
    assert await keeping.late(2) == []
    world.client.rename("aside", keys.control(world.p))
    stored(world, before)
    assert ids(await keeping.late(10)) == [*mine, theirs]


def same_partition(world: World) -> int:
    return next(one for one in range(2, 10_000) if keys.partition_of(one) == world.p)
