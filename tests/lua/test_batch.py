"""What calls that come together share: the time, if no other call came in between."""

from __future__ import annotations

import time

from gateway.core.model import HoldRequest, Settlement
from gateway.counters.layouts import packing
from tests.builders import CHAT, TTL_MS, World, new_id
from tests.waiting import wait_until


def later() -> None:
    """Let the clock of the scripts, which is this machine's, go on."""
    began = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > began)


def reserved_at(world: World, batch: int) -> int:
    """The time a `reserve` of this batch was taken for, each later than the one before."""
    later()
    request = HoldRequest(world.caller, new_id(), "", CHAT, 1, 1)
    answer = world.run("reserve", packing.reserve(world.run_id, world.catalogue, TTL_MS, request, batch))
    return packing.decision(answer, CHAT).now_ms


def test_one_batch_has_one_time_and_the_next_another(world: World) -> None:
    world.plan(100)
    first = [reserved_at(world, 7) for _ in range(3)]
    second = [reserved_at(world, 8) for _ in range(3)]
    assert (len(set(first)), len(set(second))) == (1, 1)
    assert second[0] > first[0]


def test_a_call_of_somebody_else_in_between_ends_what_is_shared(world: World) -> None:
    world.plan(100)
    times = [reserved_at(world, batch) for batch in (7, 8, 7)]
    assert times == sorted(set(times))


def test_a_call_of_no_batch_asks_for_the_time_and_leaves_none_to_others(world: World) -> None:
    world.plan(100)
    times = [
        reserved_at(world, batch) for batch in (packing.NO_BATCH, packing.NO_BATCH, 7, packing.NO_BATCH, 7)
    ]
    assert times == sorted(set(times))


def test_reserve_and_settle_of_one_batch_share_it(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=1)
    at = reserved_at(world, 9)
    later()
    used = Settlement(world.caller, call.id, "", CHAT, charge=True, tokens=1)
    world.run("settle", packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=9))
    assert world.events()[-1].at_ms == at
