"""The late lane: a settlement whose hold is gone is posted, dropped or corrected, once."""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from gateway.background.late import Poster, correction_id
from gateway.core.holds import LateSettlement
from gateway.core.ledger import HEAD, decode, encode
from gateway.core.model import Caller, Settled
from gateway.counters import keeping as keeping_module
from gateway.counters import keys
from tests.background.house import House, house_at
from tests.builders import CHAT, CREDITS, UNITS

# --- alone ------------------------------------------------------------------------------

LATE = LateSettlement(0, b"1-0", str(uuid.UUID(int=1)), Caller(1, 7, 3, 0), "", CHAT, 70, 0, 1, "", b"", 0)


@dataclass
class Lane:
    """A lane in memory, and what was done with its entries."""

    entries: list[LateSettlement]
    known_accounts: bool = True
    done: list[tuple[str, ...]] = field(default_factory=list)

    async def late(self, count: int) -> list[LateSettlement]:
        return self.entries[:count]

    async def post(self, late: LateSettlement) -> bool:
        self.done.append(("post", late.request_id))
        return self.known_accounts

    async def correct(self, late: LateSettlement, write_id: str) -> None:
        self.done.append(("correct", write_id))

    async def drop(self, late: LateSettlement) -> None:
        self.done.append(("drop", late.request_id))


class Ledger:
    """Rows by request id."""

    def __init__(self, **charged: int) -> None:
        self.rows = charged

    async def charged(self, late: object) -> dict[str, int]:
        return self.rows


@pytest.mark.parametrize(
    ("late", "rows", "verbs"),
    [
        (LATE, {}, ["post", "drop"]),
        (LATE, {LATE.request_id: 70}, ["drop"]),
        (LATE, {LATE.request_id: 50}, ["drop"]),  # settled after all, by another answer of the upstream
        (replace(LATE, charged=20), {LATE.request_id: 20}, ["correct", "drop"]),
        (replace(LATE, charged=20), {LATE.request_id: 70}, ["drop"]),
        (replace(LATE, charged=20, service=CREDITS), {LATE.request_id: 0}, ["drop"]),
    ],
    ids=["never arrived", "arrived", "arrived otherwise", "reclaimed", "corrected", "not in tokens"],
)
async def test_what_the_ledger_knows_decides(
    late: LateSettlement, rows: dict[str, int], verbs: list[str]
) -> None:
    lane = Lane([late])
    await Poster(lane, Ledger(**rows)).drain()
    assert [verb for verb, _ in lane.done] == verbs


async def test_an_account_nobody_knows_yet_keeps_its_entry_and_no_others() -> None:
    lane = Lane([LATE], known_accounts=False)
    await Poster(lane, Ledger()).drain()
    assert [verb for verb, _ in lane.done] == ["post"]


def test_a_correction_has_an_id_of_its_own_that_is_a_uuid() -> None:
    request_id = str(uuid.uuid4())
    assert correction_id(request_id) != request_id
    assert uuid.UUID(correction_id(request_id)).version == 8
    assert correction_id(request_id) == correction_id(request_id)


# --- with the counters and the database -------------------------------------------------


async def drained(house: House) -> None:
    """Flush, drain the lane, flush what came of it, until the lane is empty."""
    for _ in range(3):
        await house.flush()
        await house.poster.drain()
    await house.flush()


async def test_a_call_settled_twice_is_one_row(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=10)
        assert [call.settle(tokens=30), call.settle(tokens=30)] == [Settled.DONE, Settled.UNKNOWN]
        await drained(house)
        assert (house.ledger(world.caller.tenant_id)[1:], world.late()) == ([(2, "consume", -30, 70)], [])
        assert world.tenant.remaining == 70


async def test_nothing_is_decided_before_what_came_first_is_in_the_ledger(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=10)
        call.settle(tokens=30)
        call.settle(tokens=30)
        assert await house.poster.drain() == 0
        assert (len(world.late()), world.tenant.used) == (1, 30)


async def test_entries_of_one_millisecond_are_not_taken_for_later_ones(valkey: str, migrated: str) -> None:
    """Each stream numbers a millisecond's entries by itself: 5-9 here may be before 5-0 there."""
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=10)
        await house.flush()
        call.settle(tokens=30)
        entries: Any = world.client.xrange(keys.outbox(world.p))
        call.settle(tokens=30)
        lane: Any = world.client.xrange(keys.late(world.p))
        ((entry_id, fields),), ((_, late),) = entries, lane
        ms = entry_id.split(b"-")[0].decode()
        world.client.delete(keys.outbox(world.p), keys.late(world.p))
        world.client.xadd(keys.outbox(world.p), fields, id=f"{ms}-9")
        world.client.xadd(keys.late(world.p), late, id=f"{ms}-0")
        assert await house.poster.drain() == 0
        await drained(house)
        assert world.tenant.used == 30


async def test_a_call_that_never_arrived_is_posted_with_all_it_carried(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=10, user="ann")
        world.client.delete(keys.hold(world.p, call.id))
        metadata = b'{"model":"m","status":200}'
        assert call.settle(tokens=40, metadata=metadata) is Settled.UNKNOWN
        await drained(house)
        assert house.ledger(world.caller.tenant_id)[-1] == (2, "consume", -40, 60)
        row = house.rows("select request_id::text, metadata, user_id from token_ledger where seq = 2")[0]
        assert row["request_id"] == call.id
        assert row["metadata"]["model"] == "m"
        assert row["user_id"] is not None
        assert (world.tenant.used, world.late()) == (40, [])
        assert world.client.hlen(keys.control(world.p)) == 0


async def test_a_call_settled_after_its_reclaim_is_corrected(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=50)
        call.reclaim(tokens=20)
        assert [call.settle(tokens=35), call.settle(tokens=35)] == [Settled.RECLAIMED] * 2
        await drained(house)
        assert house.ledger(world.caller.tenant_id) == [
            (1, "reset", 100, 100),
            (2, "consume", -20, 80),
            (3, "adjust", -15, 65),
        ]
        row = house.rows("select metadata from token_ledger where seq = 3")[0]
        assert row["metadata"]["request_id"] == call.id
        assert world.tenant.remaining == 65


async def test_a_reclaim_that_charged_too_much_is_given_back(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=50)
        call.reclaim(tokens=40)
        call.settle(tokens=25)
        await drained(house)
        assert house.ledger(world.caller.tenant_id)[-1] == (3, "adjust", 15, 75)


async def test_a_call_reclaimed_for_free_is_charged_when_it_settles(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=50)
        call.reclaim()
        call.settle(tokens=25)
        await drained(house)
        assert house.ledger(world.caller.tenant_id)[-1] == (2, "consume", -25, 75)


@pytest.mark.parametrize("service", [CREDITS, UNITS], ids=lambda one: str(one.key))
async def test_a_service_that_counts_no_tokens_never_moves_them(
    valkey: str, migrated: str, service: object
) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        world.grant("credits", 100)
        call = world.reserve(service=service, credits_=5)  # type: ignore[arg-type]  # parametrized
        call.reclaim(tokens=20, credits=5, units=1)
        call.settle(tokens=35, credits=5, units=1)
        await drained(house)
        assert house.ledger(world.caller.tenant_id) == [(1, "reset", 100, 100)]
        assert (world.tenant.remaining, world.late()) == (100, [])


async def test_a_poster_that_dies_anywhere_posts_once(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        call = world.reserve(need=10)
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=40)
        await house.flush()
        (late,) = await house.keeping.late(10)
        assert await house.keeping.post(late)  # and dies before it drops the entry
        await house.poster.drain()
        await drained(house)
        assert world.tenant.used == 40
        assert len(house.ledger(world.caller.tenant_id)) == 2


async def test_two_posters_at_once_post_once(valkey: str, migrated: str) -> None:
    async with house_at(valkey, migrated) as one, house_at(valkey, migrated) as other:
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
            await asyncio.gather(one.poster.drain(), other.poster.drain())
            await one.flush()
        assert (world.tenant.used, world.tenant.remaining) == (10 * 8, 1000 - 10 * 10)
        assert world.late() == []


async def test_another_accounts_waiting_entries_are_in_nobodys_way(
    valkey: str, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An account in quarantine keeps its entries in the outbox until somebody looks."""
    async with house_at(valkey, migrated) as house:
        world = await house.settle_in(100)
        await house.flush()
        stranger = replace(decode(BLANK), organization_id=999_999)
        world.client.xadd(keys.outbox(world.p), {"e": encode(stranger)})
        world.client.xadd(keys.outbox(world.p), {"e": b"malformed"})
        call = world.reserve(need=10)
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=7)
        assert await house.poster.drain() == 1
        assert world.tenant.used == 7
        call.settle(tokens=7)  # behind the post, which waits itself
        assert await house.poster.drain() == 0
        world.client.xtrim(keys.late(world.p), maxlen=0)
        monkeypatch.setattr(keeping_module, "WAITING_MAX", 1)
        call.settle(tokens=7)  # and behind more than is looked at
        assert await house.poster.drain() == 0


BLANK = HEAD.pack(1, *[0] * 22) + bytes(5)
