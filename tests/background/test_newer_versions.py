"""What a newer version has stored: left where it is, told, and in nobody's way.

Each of these is an older keeper beside a newer program: it never makes a letter or a quarantine of it, drops
nothing, and serves everybody else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.background.timed.pusher import HOLDS_MAX
from gateway.core.accounts.outbox import VERSION, is_newer
from gateway.core.layout import LAYOUT
from gateway.core.model import Verdict
from gateway.counters.late import LOOK_MAX
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from tests.background.backend import Backend, backend_at
from tests.background.timed.test_reclaimer import dead, sweep_twice
from tests.builders import World

NEWER = bytes([LAYOUT + 1])


@pytest.fixture
async def backend(valkey: str, migrated: str) -> AsyncIterator[Backend]:
    async with backend_at(valkey, migrated) as one:
        yield one


async def two_organizations(backend: Backend) -> tuple[World, World]:
    """In partitions of their own."""
    first = await backend.settle_in(100)
    while (second := await backend.settle_in(100)).p == first.p:
        pass
    return first, second


def left(backend: Backend) -> dict[str, int]:
    rows: Any = backend.counters.left_alone.figures()["left_alone"]
    return {kind: count for kind, count in rows if count}


def wrong(backend: Backend) -> list[int]:
    """Letters and quarantines."""
    return [len(backend.rows(f"select from {table}")) for table in ("dead_letter", "quarantine")]


def newer_entry(world: World) -> bytes:
    """The entry of a call, as the next layout would have it: with more behind."""
    (_, fields), *_ = world.client.xrevrange(keys.outbox(world.p), count=1)
    return bytes([VERSION + 1]) + fields[b"e"][1:] + bytes(24)


async def test_an_entry_of_a_newer_version_stops_its_partition_alone(backend: Backend) -> None:
    ours, others = await two_organizations(backend)
    await backend.flush()
    ours.reserve(need=5).settle(tokens=5)
    newer = newer_entry(ours)
    assert is_newer(newer)
    added = ours.client.xadd(keys.outbox(ours.p), {"e": newer})
    ours.reserve(need=7).settle(tokens=7)
    others.reserve(need=9).settle(tokens=9)
    for _ in range(3):
        await backend.flush()
    assert [row[1:3] for row in backend.ledger(ours.caller.tenant_id)] == [("reset", 100), ("consume", -5)]
    assert backend.ledger(others.caller.tenant_id)[-1][1:3] == ("consume", -9)
    assert next(iter(ours.client.xrange(keys.outbox(ours.p))))[0] == added
    assert (wrong(backend), left(backend)) == ([0, 0], {"entry": 1})
    ours.client.xdel(keys.outbox(ours.p), added)  # as a keeper that can read it does
    await backend.flush()
    assert backend.ledger(ours.caller.tenant_id)[-1][1:3] == ("consume", -7)
    assert (wrong(backend), left(backend)) == ([0, 0], {})


async def test_what_is_no_entry_at_all_is_a_letter_as_ever(backend: Backend) -> None:
    ours = await backend.settle_in(100)
    await backend.flush()
    for garbage in (bytes([VERSION + 1]), b"\xff" * 400, bytes([VERSION + 1]) + bytes(400)):
        assert not is_newer(garbage)
        ours.client.xadd(keys.outbox(ours.p), {"e": garbage})
    await backend.flush()
    assert (wrong(backend), left(backend)) == ([3, 0], {})


async def test_a_partition_of_a_newer_version_is_left_to_its_keepers(backend: Backend) -> None:
    theirs, ours = await two_organizations(backend)
    await backend.flush()
    theirs.reserve(need=5).settle(tokens=5)
    marker = theirs.get(keys.marker(theirs.p))
    theirs.client.set(keys.marker(theirs.p), NEWER + marker[1:])
    ours.reserve(need=9).settle(tokens=9)
    await backend.write("tenants", "change", theirs.caller.tenant_id, limits={"requests_per_minute": 3})
    terms = ours.client.get(keys.organization_terms(theirs.caller.organization_id))
    await backend.write("organizations", "change", theirs.caller.organization_id, spend_cap="7.00")
    for _ in range(2):
        await backend.verify()
        await backend.flush()
        assert await backend.push() > 0
    assert backend.ledger(theirs.caller.tenant_id)[-1][1] == "reset"
    assert backend.ledger(ours.caller.tenant_id)[-1][1:3] == ("consume", -9)
    assert ours.client.get(keys.organization_terms(theirs.caller.organization_id)) == terms
    assert theirs.get(keys.marker(theirs.p)) == NEWER + marker[1:]
    assert (wrong(backend), left(backend)) == ([0, 0], {"partition": 1})
    assert backend.counters.newer == {theirs.p}
    theirs.client.set(keys.marker(theirs.p), marker)
    await backend.verify()
    assert backend.counters.newer == frozenset()
    await backend.flush()
    assert await backend.push() == 0
    assert backend.ledger(theirs.caller.tenant_id)[-1][1:3] == ("consume", -5)
    assert (wrong(backend), left(backend)) == ([0, 0], {})


async def test_one_hold_of_another_version_keeps_no_other_from_being_reclaimed(backend: Backend) -> None:
    theirs, others = await two_organizations(backend)
    calls = [dead(theirs, 10), dead(theirs, 20), dead(others, 30)]
    name = keys.hold(theirs.p, calls[0].id)
    held = theirs.get(name)
    for unreadable in (NEWER + held[1:] + bytes(8), held[:30]):
        theirs.client.set(name, unreadable)
        assert await sweep_twice(backend) == (2 if unreadable[0] == LAYOUT + 1 else 0)
        assert (theirs.get(name), left(backend)) == (unreadable, {"hold": 1})
        assert (theirs.tenant.held, others.tenant.held) == (10, 0)
        assert list(theirs.deadlines()) == [calls[0].id]
    theirs.client.set(name, held)
    assert await sweep_twice(backend) == 1
    assert (theirs.tenant.held, left(backend)) == (0, {})
    taken = dead(theirs, 10)
    theirs.client.set(keys.hold(theirs.p, taken.id), NEWER + held[1:])
    assert (await sweep_twice(backend), left(backend)) == (0, {"hold": 1})
    theirs.client.zrem(keys.deadlines(theirs.p), taken.id)  # as a keeper that can read it does
    assert (await sweep_twice(backend), left(backend)) == (0, {})


async def test_holds_behind_a_whole_page_of_unreadable_ones_are_found(backend: Backend) -> None:
    world = await backend.settle_in(100)
    first = [dead(world, 1) for _ in range(4)]
    for call in first:
        world.client.set(keys.hold(world.p, call.id), NEWER + bytes(20))
        world.client.zadd(keys.deadlines(world.p), {call.id: 1})
    last = dead(world, 9)
    found = await backend.keeping.expired(2)
    assert [one.release.request_id for one in found] == [last.id]
    assert left(backend) == {"hold": 4}


async def test_names_that_are_none_of_ours_end_no_look(backend: Backend) -> None:
    world = await backend.settle_in(100)
    strange = b"\xff\x00"
    world.client.zadd(keys.deadlines(world.p), {strange: 1, b"\xfe": float("inf"), b"late": float("inf")})
    world.client.hset(keys.workers(backend.counters.wire.part.anchor), strange, strange)
    call = dead(world, 9)
    assert list(await backend.counters.held(world.p)) == [call.id]
    assert all(slot.isascii() for slot in await backend.counters.reports())
    found = await backend.keeping.expired(2)
    assert [one.release.request_id for one in found] == [call.id]
    assert world.client.zscore(keys.deadlines(world.p), strange) is None


async def test_deadlines_of_no_hold_shift_no_page(backend: Backend) -> None:
    """Those that are gone are removed on the way: what is behind them is looked at in the same look."""
    world = await backend.settle_in(100)
    name, newer = keys.deadlines(world.p), NEWER + bytes(20)
    order = "".join(f"{at:02d}" for at in range(12))
    for at in range(12):  # an unreadable one and a gone one by turns, some of one deadline
        world.client.zadd(name, {f"{at:02d}": 1 + at // 3})
        if at % 2 == 0:
            world.client.set(keys.hold(world.p, f"{at:02d}"), newer)
    last = dead(world, 9)
    found = await backend.keeping.expired(2)
    assert [one.release.request_id for one in found] == [last.id]
    assert left(backend) == {"hold": 6}
    assert "".join(list(world.deadlines())[:6]) == "".join(order[at : at + 2] for at in range(0, 24, 4))


@pytest.mark.parametrize("deadline", [0, 5], ids=["one by one", "of one deadline"])
async def test_behind_more_unreadable_holds_than_one_look_goes_through_a_hold_is_taken_back(
    backend: Backend, deadline: int
) -> None:
    world = await backend.settle_in(100)
    names = [f"{at:05d}" for at in range(2 * LOOK_MAX + 10)]
    world.client.mset({keys.hold(world.p, one): NEWER + bytes(20) for one in names})
    world.client.zadd(keys.deadlines(world.p), {one: deadline or at + 1 for at, one in enumerate(names)})
    call = dead(world, 9)
    asked = backend.counters.send
    looked: list[bytes] = []

    def send(*parts: bytes) -> Any:
        looked.extend(parts[:1])
        return asked(*parts)

    backend.counters.send = send  # type: ignore[method-assign]  # counted on its way
    for _ in range(8):
        looked.clear()
        if await backend.reclaimer.sweep():
            break
        assert looked.count(b"GET") <= LOOK_MAX + HOLDS_MAX
    assert (world.tenant.held, call.id in world.deadlines()) == (0, False)


async def test_a_state_of_another_version_is_rebuilt_by_nobody_and_the_rest_is_verified(
    backend: Backend,
) -> None:
    theirs, others = await two_organizations(backend)
    await backend.flush()
    newer = NEWER + theirs.get(theirs.tenant_key)[1:] + bytes(8)
    theirs.client.set(theirs.tenant_key, newer)
    call = dead(others, 5)
    others.client.set(keys.hold(others.p, call.id), NEWER + bytes(20))
    theirs.client.delete(keys.marker(theirs.p))
    others.client.delete(keys.marker(others.p), others.tenant_key)
    assert {one.partition for one in await backend.verify()} == {theirs.p, others.p}
    assert theirs.get(theirs.tenant_key) == newer
    assert others.again().reserve(need=100).verdict is Verdict.ADMITTED
    assert left(backend) == {"account": 1, "hold": 1}
    pairs = [(one.p, one.caller.tenant_id) for one in (theirs, others)]
    peeked = await backend.counters.peek_tenants(pairs)
    assert pairs[0][1] not in peeked
    assert getattr(peeked[pairs[1][1]], "tokens_held", None) == 100


async def test_nothing_late_is_decided_while_a_newer_entry_may_say_it_was_charged(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await backend.flush()
    call = world.reserve(need=5)
    call.settle(tokens=5)
    newer = newer_entry(world)
    await backend.flush()
    lost = world.reserve(need=6)
    world.client.delete(keys.hold(world.p, lost.id))
    lost.settle(tokens=6)
    added = world.client.xadd(keys.outbox(world.p), {"e": newer})
    assert [await backend.late_settlements.drain() for _ in range(2)] == [0, 0]
    world.client.xdel(keys.outbox(world.p), added)
    await backend.flush()
    assert await backend.late_settlements.drain() == 1
    await backend.flush()
    assert backend.ledger(world.caller.tenant_id)[-1][1:3] == ("consume", -6)


async def test_a_late_settlement_of_another_version_stays_in_its_queue(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await backend.flush()
    calls = [world.reserve(need=6) for _ in range(2)]
    for call in calls:
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=6)
    (_, fields), *_ = world.client.xrange(keys.late(world.p))
    fields[b"a"] = NEWER + fields[b"a"][1:]
    world.client.delete(keys.late(world.p))
    for one in (fields, {**fields, b"charged": b"much", b"a": bytes([LAYOUT]) + fields[b"a"][1:]}):
        world.client.xadd(keys.late(world.p), one)
    calls[1].settle(tokens=6)
    assert await backend.late_settlements.drain() == 1
    assert len(world.late()) == 2
    assert left(backend) == {"settlement": 2}


def test_a_marker_that_is_none_is_of_nobody() -> None:
    assert packing.read_marker(b"what is this") == (b"", 0, 0)
    assert packing.read_marker(None) == (b"", 0, 0)
