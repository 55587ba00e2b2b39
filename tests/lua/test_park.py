"""park: entries that wait leave the outbox, in order, once, with their ids."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from gateway.counters.keeper.outbox import park
from gateway.counters.redis import keys
from tests.builders import World

OTHER = 2


def outbox(world: World) -> list[bytes]:
    return [entry_id for entry_id, _ in world.entries(keys.outbox(world.p))]


def apart(world: World, organization_id: int = 1) -> list[bytes]:
    return [entry_id for entry_id, _ in world.entries(keys.parked_entries(world.p, organization_id))]


def counts(world: World) -> dict[bytes, bytes]:
    return world.client.hgetall(keys.parked(world.p))  # type: ignore[return-value] # a client that does not wait


def run(
    world: World, organization_id: int = 1, *, gone: Sequence[bytes] = (), moved: Sequence[bytes] = ()
) -> tuple[float, ...]:
    answer = world.run("park", park(world.run_id, (world.p, organization_id), gone=gone, moved=moved))
    assert isinstance(answer, bytes)
    return struct.unpack(f"<{len(answer) // 8}d", answer)


def filled(world: World, count: int = 4) -> list[bytes]:
    for number in range(count):
        world.client.xadd(keys.outbox(world.p), {"e": b"%d" % number})
    return outbox(world)


def test_entries_move_as_they_are(world: World) -> None:
    one, two, three, four = filled(world)
    before = dict(world.entries(keys.outbox(world.p)))
    assert run(world, moved=[one, three]) == (1, 2)
    assert run(world, OTHER, moved=[four]) == (1, 1)
    assert outbox(world) == [two]
    assert (apart(world), apart(world, OTHER)) == ([one, three], [four])
    assert counts(world) == {b"1": b"2", b"2": b"1"}
    assert dict(world.entries(keys.parked_entries(world.p, 1))) == {one: before[one], three: before[three]}


def test_what_is_not_in_the_outbox_any_more_is_left_alone(world: World) -> None:
    one, two, *_ = filled(world)
    run(world, moved=[one, two])
    world.client.xdel(keys.parked_entries(world.p, 1), one)
    assert run(world, moved=[one, two]) == (1, 1)
    assert apart(world) == [two]


def test_what_is_gone_leaves_nothing_behind(world: World) -> None:
    one, two, *_ = filled(world)
    run(world, moved=[one, two])
    assert run(world, gone=[one]) == (1, 1)
    assert counts(world) == {b"1": b"1"}
    assert run(world, gone=[two]) == (1, 0)
    assert not world.client.exists(keys.parked(world.p), keys.parked_entries(world.p, 1))


def test_an_entry_older_than_those_that_wait_stays_where_it_is(world: World) -> None:
    """As where the outbox was replaced: the order of what waits is the order of an account."""
    one, two, *_ = filled(world)
    run(world, moved=[two])
    assert run(world, moved=[one]) == (1, 1)
    assert one in outbox(world)
    assert apart(world) == [two]


def test_an_unverified_partition_moves_nothing(world: World) -> None:
    one, *_ = filled(world)
    call = park(b"another" * 5 + b"-----", (world.p, 1), moved=[one])
    assert world.run("park", call) == struct.pack("<d", 0)
    assert apart(world) == []


def test_one_call_moves_as_many_as_are_sent(world: World) -> None:
    ids = filled(world, 250)
    assert run(world, moved=ids) == (1, 250)
    assert (outbox(world), apart(world)) == ([], ids)
