"""Whose objects are: the first one's whose answer told of it, for a while, a bounded number of each."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.accounts.cache_payment import CachePayment, write_payment
from gateway.core.families.family import KEPT_ANSWERS, KEPT_BRIEFLY
from gateway.core.model import PARTITIONS, Caller
from gateway.core.wait import in_task
from gateway.counters.admission.objects import BRIEF_S, ObjectOwners
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import driven
from tests.counters.conftest import Connect
from tests.waiting import eventually

MINE = Caller(1, 1, 1, keys.partition_of(1))
OTHERS = Caller(2, 2, 2, keys.partition_of(2))


class Time:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def ask(objects: ObjectOwners, caller: Caller, *ids: str) -> bool:
    return await driven(objects.owned(caller, ids))


async def test_an_object_is_its_organizations_alone(valkey: str, connect: Connect) -> None:
    objects = ObjectOwners(await connect(valkey), Time(), 60, 10)
    assert not await ask(objects, MINE, "resp_1")
    await in_task(objects.keep(MINE, ["resp_1", "cntr_1"]))
    assert await ask(objects, MINE, "resp_1")
    assert await ask(objects, MINE, "cntr_1", "resp_1")
    assert await ask(objects, replace(MINE, tenant_id=9, key_id=9), "resp_1")
    assert not await ask(objects, MINE, "resp_1", "resp_2")
    assert not await ask(objects, MINE, "RESP_1")
    assert not await ask(objects, OTHERS, "resp_1")


def owner_key(id_: str) -> str:
    return keys.object_owner(sha256(id_.encode()).hexdigest()[:32])


def list_of(caller: Caller) -> str:
    return keys.objects(caller.partition, caller.organization_id)


async def test_the_first_owner_stays(valkey: str, connect: Connect, world: Any) -> None:
    said = list[dict[str, Any]]()
    objects = ObjectOwners(await connect(valkey), Time(), 60, 10, log=lambda _, **facts: said.append(facts))
    await in_task(objects.keep(MINE, ["resp_1"]))
    world.client.expire(owner_key("resp_1"), 30)
    for _ in range(2):
        await in_task(objects.keep(OTHERS, ["resp_2", "resp_1"]))
        assert (await ask(objects, MINE, "resp_1"), await ask(objects, OTHERS, "resp_1")) == (True, False)
        assert world.client.zcard(list_of(OTHERS)) == 1
        assert world.client.ttl(owner_key("resp_1")) <= 30
    assert await ask(objects, OTHERS, "resp_2")
    assert [(one["organization_id"], one["ids_until_now"]) for one in said] == [(OTHERS.organization_id, 1)]
    await in_task(objects.keep(MINE, ["resp_1"]))
    assert world.client.ttl(owner_key("resp_1")) > 30


async def test_of_two_workers_at_once_one_gives_it_an_owner(
    valkey: str, connect: Connect, world: Any
) -> None:
    workers = [ObjectOwners(await connect(valkey), Time(), 60, 1_000) for _ in range(2)]
    ids = [f"resp_{number}" for number in range(100)]
    waits = [
        one.keep(caller, [id_]) for id_ in ids for one, caller in zip(workers, (MINE, OTHERS), strict=True)
    ]
    await asyncio.gather(*map(in_task, waits))
    owners = [
        [caller for caller in (MINE, OTHERS) if await ask(worker, caller, id_)]
        for id_ in ids
        for worker in workers
    ]
    assert {len(one) for one in owners} == {1}
    assert world.client.zcard(list_of(MINE)) + world.client.zcard(list_of(OTHERS)) == len(ids)


async def test_an_object_is_forgotten_after_its_time(valkey: str, connect: Connect, world: Any) -> None:
    time = Time()
    objects = ObjectOwners(await connect(valkey), time, 60, 10)
    await in_task(objects.keep(MINE, ["resp_1"]))
    assert 0 < world.client.ttl(owner_key("resp_1")) <= 60
    time.now += 59
    assert await ask(objects, MINE, "resp_1")
    time.now += 2
    world.client.pexpire(owner_key("resp_1"), 0)
    assert not await ask(objects, MINE, "resp_1")
    await in_task(objects.keep(OTHERS, ["resp_1"]))
    assert await ask(objects, OTHERS, "resp_1")


async def test_what_an_older_version_kept_is_claimed_when_it_is_named(
    valkey: str, connect: Connect, world: Any
) -> None:
    """It wrote the list alone; so it is of what is told while its owner's server is away."""
    time = Time()
    objects = ObjectOwners(await connect(valkey), time, 60, 10)
    listed = ["resp_1", "resp_2", "resp_4", "resp_5"]
    await in_task(objects.keep(MINE, listed))
    assert world.client.delete(*map(owner_key, listed)) == 4
    assert not await ask(objects, OTHERS, "resp_1")
    assert not await ask(objects, MINE, "resp_1", "resp_3")
    time.now += 20
    assert await ask(objects, MINE, "resp_1")
    assert 30 < world.client.ttl(owner_key("resp_1")) <= 40
    await in_task(objects.keep(OTHERS, ["resp_1"]))
    assert not await ask(objects, OTHERS, "resp_1")
    await in_task(objects.keep(OTHERS, ["resp_2"]))
    assert (await ask(objects, MINE, "resp_2"), await ask(objects, OTHERS, "resp_2")) == (False, True)
    time.now += 39
    assert await ask(objects, MINE, "resp_4"), "in its last second"
    time.now += 1
    assert not await ask(objects, MINE, "resp_5")


async def test_an_organization_has_the_newest_and_no_more(valkey: str, connect: Connect, world: Any) -> None:
    time = Time()
    objects = ObjectOwners(await connect(valkey), time, 60, 10)
    await in_task(objects.keep(OTHERS, ["resp_0"]))
    for number in range(25):
        time.now += 1
        await in_task(objects.keep(MINE, [f"resp_{number}"]))
    world.client.zadd(list_of(MINE), {sha256(b"resp_0").digest()[:16]: 1})  # as of data that was lost
    await in_task(objects.keep(MINE, ["resp_25"]))
    await eventually(lambda: world.client.zcard(list_of(MINE)) == 10)
    assert [await ask(objects, MINE, f"resp_{number}") for number in (0, 15, 16, 25)] == [
        False, False, True, True,
    ]  # fmt: skip
    assert await ask(objects, OTHERS, "resp_0")
    await eventually(lambda: len(world.client.keys("tk:{p*}:obj:*")) == 10 + 1)
    assert 0 < world.client.ttl(list_of(MINE)) <= 60


async def test_no_answer_pushes_out_what_was_made_to_be_kept(
    valkey: str, connect: Connect, world: Any
) -> None:
    time = Time()
    objects = ObjectOwners(await connect(valkey), time, 86_400, 10)
    await in_task(objects.keep(MINE, ["file-1", "conv_1"]))
    for number in range(25):
        time.now += 1
        await in_task(objects.keep(MINE, [f"resp_{number}"], KEPT_ANSWERS))
        await in_task(objects.keep(MINE, [f"msg_{number}", "conv_1"], KEPT_BRIEFLY))
    answers = keys.answers(MINE.partition, MINE.organization_id)
    await eventually(lambda: world.client.zcard(answers) == 10)
    assert await ask(objects, MINE, "file-1", "conv_1", "resp_24")
    assert not await ask(objects, MINE, "msg_1")
    assert world.client.ttl(owner_key("conv_1")) > BRIEF_S, "a brief note shortens nothing"
    await in_task(objects.keep(MINE, ["cntr_1"], KEPT_BRIEFLY))
    assert 0 < world.client.ttl(owner_key("cntr_1")) <= BRIEF_S


async def test_a_note_of_an_object_ends_at_its_time_or_with_its_owner(
    valkey: str, connect: Connect, world: Any
) -> None:
    clock = Time()
    objects = ObjectOwners(await connect(valkey), clock, 60, 1)
    until_s = world.client.time()[0] + 5_000
    paid = write_payment(CachePayment(1, "m", 5, until_s))
    for name in ("cachedContents/1", "cachedContents/2"):
        clock.now += 1
        assert await in_task(objects.note(name, paid)) is None
        assert await in_task(objects.noted(name)) == paid == await in_task(objects.note(name, paid))
        assert world.client.expiretime(keys.object_note(sha256(name.encode()).digest()[:16].hex())) == until_s
        await in_task(objects.keep(MINE, [name]))
    await eventually(lambda: len(world.client.keys("tk:{p*}:note:*")) == 1)
    assert await in_task(objects.noted("cachedContents/1")) is None
    assert await in_task(objects.noted("cachedContents/2")) == paid
    await in_task(objects.note("cachedContents/3", write_payment(CachePayment(1, "m", 5, until_s - 9_000))))
    assert await in_task(objects.noted("cachedContents/3")) is None


async def sizes(objects: ObjectOwners, caller: Caller, *ids: str) -> list[int | None]:
    found = await in_task(objects.sizes(caller, ids))
    return [tokens if end else None for end, tokens in found]


@given(
    st.lists(st.integers(1, 2_097_151), min_size=1, max_size=20), st.integers(1_700_000_000, 4_294_000_000)
)
async def test_each_number_of_tokens_is_read_back_unchanged(
    valkey: str, connect: Connect, world: Any, drawn: list[int], now_s: int
) -> None:
    world.client.flushall()
    clock = Time()
    clock.now = float(now_s)
    objects = ObjectOwners(await connect(valkey), clock, 60, 1_000)
    for number, tokens in enumerate(drawn):
        await in_task(objects.keep(MINE, [f"resp_{number}"], KEPT_ANSWERS, tokens))
    assert await sizes(objects, MINE, *[f"resp_{number}" for number in range(len(drawn))]) == drawn


async def test_the_tokens_of_an_object_are_its_organizations_and_last_as_long_as_its_owner(
    valkey: str, connect: Connect, world: Any
) -> None:
    """Versions that know no tokens take whole seconds, and write them: their objects have none."""
    clock = Time()
    objects = ObjectOwners(await connect(valkey), clock, 60, 2)
    await in_task(objects.keep(MINE, ["resp_1"], KEPT_ANSWERS))
    assert await sizes(objects, MINE, "resp_1", "resp_2") == [0, None]
    await in_task(objects.keep(MINE, ["resp_1", "conv_1"], KEPT_ANSWERS, 3_000_000))
    assert world.client.get(owner_key("resp_1")) == b"1", "older programs compare it byte by byte"
    assert await sizes(objects, MINE, "conv_1", "resp_1") == [2_097_151] * 2
    assert await sizes(objects, OTHERS, "conv_1") == [None]
    clock.now += 10
    found = dict(zip(["conv_1"], await in_task(objects.sizes(MINE, ["conv_1"])), strict=True))
    await in_task(objects.keep(MINE, ["conv_1"], KEPT_ANSWERS, 7, 5, found))
    clock.now += 10
    await in_task(objects.keep(MINE, ["conv_1"], KEPT_ANSWERS))
    assert await sizes(objects, MINE, "conv_1") == [7], "an answer that only tells of it leaves them"
    await in_task(objects.keep(OTHERS, ["conv_1"], KEPT_ANSWERS, 9))
    assert await sizes(objects, OTHERS, "conv_1") == [None]
    world.client.delete(owner_key("conv_1"))
    clock.now += 59
    assert await ask(objects, MINE, "conv_1")
    clock.now += 1
    assert not await ask(objects, MINE, "conv_1", "conv_2")
    for number in range(9):
        clock.now += 1
        await in_task(objects.keep(MINE, [f"msg_{number}"], KEPT_ANSWERS))
    await eventually(lambda: world.client.zcard(keys.answers(MINE.partition, 1)) == 2)
    assert await sizes(objects, MINE, "resp_1", "conv_1") == [None, None]


async def test_the_tokens_of_an_object_take_no_memory(valkey: str, connect: Connect, world: Any) -> None:
    objects, taken = ObjectOwners(await connect(valkey), Time(), 60, 1_000), []
    for caller, tokens in ((MINE, 0), (OTHERS, 123_456)):
        for number in range(500):
            await in_task(objects.keep(caller, [f"{caller.tenant_id} {number}"], KEPT_ANSWERS, tokens))
        taken.append(
            world.client.memory_usage(keys.answers(caller.partition, caller.organization_id), samples=0)
        )
    assert abs(taken[1] - taken[0]) < 500 * 8, "what differs is chance: levels of a skiplist"


async def test_ten_thousand_references_are_asked_for_at_once(
    valkey: str, connect: Connect, world: Any
) -> None:
    objects = ObjectOwners(await connect(valkey), Time(), 600, 100_000)
    ids = [f"msg_{number}" for number in range(10_000)]
    await in_task(objects.keep(MINE, ids, KEPT_ANSWERS))
    world.client.config_resetstat()
    assert await ask(objects, MINE, *ids)
    asked = world.client.info("commandstats")
    assert asked["cmdstat_mget"]["calls"] == PARTITIONS
    assert "cmdstat_get" not in asked
    assert not await ask(objects, OTHERS, *ids)
    world.client.delete(*map(owner_key, ids))
    assert await ask(objects, MINE, *ids), "they are claimed by the list"
    assert not await ask(objects, OTHERS, *ids)


async def test_a_list_is_cut_by_one_in_a_hundred(
    valkey: str, connect: Connect, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is longer by a hundredth then, and ends a hundredth of its time later."""
    time, wire = Time(), await connect(valkey)
    objects, most = ObjectOwners(wire, time, 1000, 200, trims_max=1), 202

    def cuts() -> int:
        found = world.client.info("commandstats")
        return int(found.get("cmdstat_zrange", {"calls": 0})["calls"])

    world.client.config_resetstat()
    name = list_of(MINE)
    for number in range(300):
        await in_task(objects.keep(MINE, [f"resp_{number}"]))
        await eventually(lambda: world.client.zcard(name) <= most)
        assert world.client.ttl(name) > 1000
    await eventually(lambda: cuts() == 100)
    time.now += 10
    await in_task(objects.keep(MINE, ["late"]))
    await in_task(objects.keep(MINE, ["later"]))
    await eventually(lambda: cuts() == 101)
    world.client.delete(name)
    monkeypatch.setattr(wire, "run_id", b"another")
    await in_task(objects.keep(MINE, ["elsewhere"]))
    assert 1000 < world.client.ttl(name) <= 1010
    for caller in (OTHERS, MINE):
        await in_task(objects.keep(caller, [f"evicts {caller.organization_id}"]))
    await eventually(lambda: cuts() == 104)


async def test_without_redis_nobody_knows(valkey: str, connect: Connect) -> None:
    wire = await connect(valkey)
    objects = ObjectOwners(wire, Time(), 60, 10)
    await wire.close()
    wire.connection_lost(None)
    with pytest.raises(CountersUnavailable):
        await ask(objects, MINE, "resp_1")
