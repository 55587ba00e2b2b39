"""Records that holds by the API leave in Redis are bounded: of open ones, of ended ones, and of requests."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from itertools import count
from typing import cast

import pytest

from gateway.core.accounts.caller_holds import UNITS, CallerHold, HeldAmounts, HoldEnd
from gateway.core.model import Caller, Service
from gateway.core.wait import Wait, begin, in_task
from gateway.counters.admission import caller_holds as admission
from gateway.counters.redis import keys
from gateway.counters.settlement_log.log import SettlementLog
from gateway.errors import TooManyHolds
from tests.builders import World, driven
from tests.counters.conftest import Connect
from tests.waiting import eventually

METADATA = '{"job":"' + "x" * 2000 + '"}'


@pytest.fixture
async def holds(world: World, connect: Connect) -> admission.CallerHolds:
    steps = count()  # no two moments are the same millisecond

    def today() -> float:
        return time.time() + next(steps) / 500

    return admission.CallerHolds(await connect(world.url), today, cast("SettlementLog", None), 2, 2)


def hold_of(caller: Caller, number: int) -> CallerHold:
    now_ms = int(time.time() * 1000)
    return CallerHold(
        f"00000000-0000-4000-8000-{number:012d}", caller.organization_id, caller.tenant_id, caller.key_id,
        caller.partition, Service(1, "search"), UNITS, 1, HeldAmounts(), now_ms, now_ms + 60_000, "charge",
        metadata=METADATA,
    )  # fmt: skip


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
