"""The late queue: a settlement whose hold is gone is posted, dropped or corrected, once."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gateway.background.flushing.late import LateSettlements
from gateway.core.accounts.holds import (
    ChargedAmounts,
    LateResolution,
    LateSettlement,
    Verb,
    correction_id,
    refund_id,
)
from gateway.core.model import Caller, Settlement, SettleResult
from gateway.counters.redis import keys
from persistence.keeper.sweeps import Sweeps
from tests.background.backend import Backend, backend_at
from tests.builders import CHAT, CREDITS, EVERYTHING, ONE_TIME, UNITS, World
from tests.persistence.scenario import broken

# --- alone ------------------------------------------------------------------------------

USED = Settlement(Caller(1, 7, 3, 0), str(uuid.UUID(int=1)), "", CHAT, charge=True, tokens=70, units=1)
LATE = LateSettlement(b"1-0", USED, 0)


@dataclass
class Lane:
    """A queue in memory, and what was done with its entries."""

    entries: list[LateSettlement]
    done: list[tuple[object, ...]] = field(default_factory=list)

    async def late(self, count: int) -> list[LateSettlement]:
        return self.entries[:count]

    async def end(self, endings: Sequence[LateResolution]) -> list[bool]:
        for one in endings:
            moved = (one.used.tokens, one.used.credits, one.used.units)
            what = moved if one.verb is Verb.CORRECT else (one.late.settlement.request_id,)
            self.done.append((str(one.verb), *what))
        return [True] * len(endings)


class Ledger:
    """What is charged by request id, and what was given back."""

    def __init__(self, charged: dict[str, ChargedAmounts]) -> None:
        self.rows = charged
        self.refunds: list[int] = []

    async def remember(self, acknowledged: object) -> None:
        raise AssertionError("nothing was acknowledged before")

    async def charged(self, late: object) -> dict[str, ChargedAmounts]:
        return self.rows

    async def maybe_gone(self, late: object) -> set[str]:
        return set()

    async def set_aside(self, late: object) -> None:
        raise AssertionError("no month is archived")

    async def refund(self, late: LateSettlement, amount: int) -> None:
        self.refunds.append(amount)


def reclaimed(**used: Any) -> LateSettlement:
    return LateSettlement(LATE.entry_id, replace(USED, **used), 20)


RECLAIMED = reclaimed()
PAID = reclaimed(service=CREDITS, tokens=0, credits=9)
UNITS_LATE = reclaimed(service=UNITS, tokens=0, units=3)
ONCE = reclaimed(service=ONE_TIME, tokens=0, credits=50)


@pytest.mark.parametrize(
    ("late", "charged", "done", "refunds"),
    [
        (LATE, None, [("post", USED.request_id)], []),
        (LATE, ChargedAmounts(70), [("drop", USED.request_id)], []),
        (LATE, ChargedAmounts(50), [("drop", USED.request_id)], []),  # settled after all, by another answer
        (RECLAIMED, ChargedAmounts(20), [("correct", 50, 0, 0)], []),
        (RECLAIMED, ChargedAmounts(90), [("correct", -20, 0, 0)], []),
        (RECLAIMED, ChargedAmounts(70), [("correct", 0, 0, 0)], []),  # only what the call was is told
        (LATE, ChargedAmounts(20, reclaimed=True), [("correct", 50, 0, 0)], []),  # its tombstone is gone
        (PAID, ChargedAmounts(0, 5), [("correct", 0, 4, 0)], []),
        (PAID, ChargedAmounts(0, 9), [("correct", 0, 0, 0)], []),
        (PAID, ChargedAmounts(0, 30), [("correct", 0, 0, 0)], [21]),
        (reclaimed(service=CREDITS, tokens=35, credits=5), ChargedAmounts(0, 5), [("correct", 0, 0, 0)], []),
        (reclaimed(service=EVERYTHING, credits=9), ChargedAmounts(20, 30), [("correct", 50, 0, 0)], [21]),
        (UNITS_LATE, ChargedAmounts(units=5), [("correct", 0, 0, -2)], []),
        (UNITS_LATE, ChargedAmounts(units=1), [("correct", 0, 0, 2)], []),
        (ONCE, ChargedAmounts(0, 0), [("correct", 0, 0, 0)], []),  # somebody else paid
    ],
    ids=[
        "never arrived", "arrived", "arrived otherwise", "more tokens", "fewer tokens", "corrected",
        "reclaimed long ago", "more credits", "the same credits", "fewer credits", "tokens of credits",
        "more and fewer", "fewer units", "more units", "paid once by another",
    ],
)  # fmt: skip
async def test_what_the_ledger_knows_decides(
    late: LateSettlement, charged: ChargedAmounts | None, done: list[tuple[object, ...]], refunds: list[int]
) -> None:
    lane = Lane([late])
    ledger = Ledger({} if charged is None else {late.settlement.request_id: charged})
    await LateSettlements(lane, ledger).drain()
    assert (lane.done, ledger.refunds) == (done, refunds)


def test_a_correction_has_an_id_of_its_own_that_is_a_uuid() -> None:
    request_id = str(uuid.uuid4())
    assert correction_id(request_id) != request_id
    assert uuid.UUID(correction_id(request_id)).version == 8
    assert uuid.UUID(refund_id(request_id)).version == 9


# --- with the counters and the database -------------------------------------------------


async def drained(backend: Backend) -> None:
    """Flush, drain the queue, flush what came of it, until the queue is empty."""
    for _ in range(3):
        await backend.flush()
        await backend.late_settlements.drain()
    await backend.flush()


async def test_a_call_settled_twice_is_one_row(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=10)
    assert [call.settle(tokens=30), call.settle(tokens=30)] == [SettleResult.DONE, SettleResult.UNKNOWN]
    await drained(backend)
    assert (backend.ledger(world.caller.tenant_id)[1:], world.late()) == ([(2, "consume", -30, 70)], [])
    assert world.tenant.remaining == 70


async def test_nothing_is_decided_before_what_came_first_is_in_the_ledger(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=10)
    call.settle(tokens=30)
    call.settle(tokens=30)
    assert await backend.late_settlements.drain() == 0
    assert (len(world.late()), world.tenant.used) == (1, 30)


async def test_entries_of_one_millisecond_are_not_taken_for_later_ones(backend: Backend) -> None:
    """Each stream numbers a millisecond's entries by itself: 5-9 here may be before 5-0 there."""
    world = await backend.settle_in(100)
    call = world.reserve(need=10)
    await backend.flush()
    call.settle(tokens=30)
    entries: Any = world.client.xrange(keys.outbox(world.p))
    call.settle(tokens=30)
    lane: Any = world.client.xrange(keys.late(world.p))
    ((entry_id, fields),), ((_, late),) = entries, lane
    ms = entry_id.split(b"-")[0].decode()
    world.client.delete(keys.outbox(world.p), keys.late(world.p))
    world.client.xadd(keys.outbox(world.p), fields, id=f"{ms}-9")
    world.client.xadd(keys.late(world.p), late, id=f"{ms}-0")
    assert await backend.late_settlements.drain() == 0
    await drained(backend)
    assert world.tenant.used == 30


async def test_a_call_that_never_arrived_is_posted_with_all_it_carried(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=10, user="ann")
    world.client.delete(keys.hold(world.p, call.id))
    metadata = b'{"model":"m","status":200}'
    assert call.settle(tokens=40, metadata=metadata) is SettleResult.UNKNOWN
    await drained(backend)
    assert backend.ledger(world.caller.tenant_id)[-1] == (2, "consume", -40, 60)
    row = backend.rows("select request_id::text, metadata, user_id from token_ledger where seq = 2")[0]
    assert row["request_id"] == call.id
    assert row["metadata"]["model"] == "m"
    assert row["user_id"] is not None
    assert (world.tenant.used, world.late()) == (40, [])
    assert world.client.hlen(keys.control(world.p)) == 0


async def test_a_call_settled_after_its_reclaim_is_corrected(backend: Backend) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=50)
    call.reclaim(tokens=20)
    assert [call.settle(tokens=35), call.settle(tokens=35)] == [SettleResult.RECLAIMED] * 2
    await drained(backend)
    assert backend.ledger(world.caller.tenant_id) == [
        (1, "reset", 100, 100),
        (2, "consume", -20, 80),
        (3, "adjust", -15, 65),
    ]
    row = backend.rows("select request_id::text, metadata from token_ledger where seq = 3")[0]
    assert (row["request_id"], row["metadata"]["corrects"]) == (call.id, call.id)
    assert world.tenant.remaining == 65


async def paid(backend: Backend, world: World) -> None:
    """100 credits, as an administrator adds them."""
    await backend.made("credit-additions", organization_id=world.caller.organization_id, credits_added=100)
    await backend.push()


async def test_credits_a_reclaim_charged_too_many_are_given_back_once(backend: Backend) -> None:
    world = await backend.settle_in(100)
    await paid(backend, world)
    call = world.reserve(service=CREDITS, credits_=30)
    call.reclaim(tokens=20, credits=30, metadata=b'{"reclaimed":true}')
    for _ in range(2):
        call.settle(credits=12)
    await backend.flush()
    (late,) = await backend.keeping.late(10)  # of a call one entry at a time
    charged = await Sweeps(backend.engine).charged([late])
    assert charged[call.id] == ChargedAmounts(0, 30, 0, reclaimed=True, requests=1)
    for _ in range(2):  # and dies before it drops the entry
        await Sweeps(backend.engine).refund(late, 18)
    await drained(backend)
    assert await backend.push() == 0
    await backend.flush()
    listed = "select category, credits_added from credit_addition order by id"
    assert [tuple(row.values()) for row in backend.rows(listed)] == [("paid", 100), ("refund", 18)]
    assert (world.organization.balance, world.late()) == (88, [])
    assert await broken(backend.database) == []


async def test_a_call_twice_in_the_lane_is_posted_once_however_soon_its_row_is_stored(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = await backend.settle_in(100)
    call = world.reserve(need=10)
    world.client.delete(keys.hold(world.p, call.id))
    call.settle(tokens=7)
    call.settle(tokens=7)
    assert len(world.late()) == 2
    await backend.flush()
    end = backend.keeping.end

    async def stored_at_once(endings: Sequence[LateResolution]) -> list[bool]:
        done = []
        for one in endings:
            done += await end([one])
            await backend.flush()
        return done

    monkeypatch.setattr(backend.keeping, "end", stored_at_once)
    await drained(backend)
    assert (world.tenant.used, world.late()) == (7, [])


async def test_two_posters_at_once_post_once(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as one, backend_at(valkey, migrated) as other:
        world = await one.settle_in(1000)
        for _ in range(10):
            call = world.reserve(need=10)
            world.client.delete(keys.hold(world.p, call.id))
            call.settle(tokens=7)
            reclaimed = world.reserve(need=10)
            reclaimed.reclaim(tokens=1)
            reclaimed.settle(tokens=3)
        await one.flush()
        for _ in range(3):
            await asyncio.gather(one.late_settlements.drain(), other.late_settlements.drain())
            await one.flush()
        assert (world.tenant.used, world.tenant.remaining) == (10 * 10, 1000 - 10 * 10)
        assert world.late() == []


async def test_another_accounts_waiting_entries_are_in_nobodys_way(backend: Backend) -> None:
    """An account in quarantine keeps its entries in the outbox until somebody looks."""
    world = await backend.settle_in(100)
    await backend.flush()
    world.moved(999_999, 2_500)
    world.client.xadd(keys.outbox(world.p), {"e": b"malformed"})
    call = world.reserve(need=10)
    world.client.delete(keys.hold(world.p, call.id))
    call.settle(tokens=7)
    assert await backend.late_settlements.drain() == 1
    assert world.tenant.used == 7
    call.settle(tokens=7)  # behind the post, which waits itself
    assert await backend.late_settlements.drain() == 0


async def test_one_that_the_counters_refuse_keeps_no_other(backend: Backend) -> None:
    world, other = await backend.settle_in(100), await backend.settle_in(100)
    assert world.p != other.p
    await backend.flush()
    for one in (world, other):
        call = one.reserve(need=10)
        one.client.delete(keys.hold(one.p, call.id))
        call.settle(tokens=7)
    world.client.hset(keys.control(world.p), "x", "1")
    late = await backend.keeping.late(10)
    world.client.set(keys.outbox(world.p), "not a stream")
    endings = [LateResolution(one, Verb.POST, ChargedAmounts(one.settlement.tokens)) for one in late]
    done = await backend.keeping.end(endings)
    assert dict(zip([one.settlement.caller.tenant_id for one in late], done, strict=True)) == {
        world.caller.tenant_id: False,
        other.caller.tenant_id: True,
    }
    assert (world.tenant.used, other.tenant.used, len(world.late()), other.late()) == (0, 7, 1, [])


async def test_entries_that_are_charged_already_go_in_one_command(backend: Backend) -> None:
    """After Redis lost its last second, everything that was acknowledged comes by once more."""
    world = await backend.settle_in(1000)
    for _ in range(30):
        call = world.reserve(need=1)
        call.settle(tokens=1)
        call.settle(tokens=1)
    await backend.flush()
    world.client.config_resetstat()
    assert await backend.late_settlements.drain() == 30
    stats: Any = world.client.info("commandstats")
    assert (stats["cmdstat_xdel"]["calls"], world.late(), world.tenant.used) == (1, [], 30)
