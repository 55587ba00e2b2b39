"""Whose objects are: kept by organization, for a while, a bounded number."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gateway.core.model import Caller
from gateway.core.wait import in_task
from gateway.counters.admission.objects import Objects
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import driven
from tests.counters.conftest import Connect

MINE = Caller(1, 1, 1, keys.partition_of(1))
OTHERS = Caller(2, 2, 2, keys.partition_of(2))


class Time:
    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


async def ask(objects: Objects, caller: Caller, *ids: str) -> bool:
    return await driven(objects.owned(caller, ids))


async def test_an_object_is_its_organizations_alone(valkey: str, connect: Connect) -> None:
    objects = Objects(await connect(valkey), Time(), 60, 10)
    assert not await ask(objects, MINE, "resp_1")
    await in_task(objects.keep(MINE, ["resp_1", "cntr_1"]))
    assert await ask(objects, MINE, "resp_1")
    assert await ask(objects, MINE, "cntr_1", "resp_1")
    assert await ask(objects, replace(MINE, tenant_id=9, key_id=9), "resp_1")
    assert not await ask(objects, MINE, "resp_1", "resp_2")
    assert not await ask(objects, MINE, "RESP_1")
    assert not await ask(objects, OTHERS, "resp_1")


async def test_an_object_is_forgotten_after_its_time(valkey: str, connect: Connect) -> None:
    time = Time()
    objects = Objects(await connect(valkey), time, 60, 10)
    await in_task(objects.keep(MINE, ["resp_1"]))
    time.now += 59
    assert await ask(objects, MINE, "resp_1")
    time.now += 2
    assert not await ask(objects, MINE, "resp_1")


async def test_an_organization_has_the_newest_and_no_more(valkey: str, connect: Connect, world: Any) -> None:
    time = Time()
    objects = Objects(await connect(valkey), time, 60, 10)
    for number in range(25):
        time.now += 1
        await in_task(objects.keep(MINE, [f"resp_{number}"]))
    assert [await ask(objects, MINE, f"resp_{number}") for number in (14, 15, 24)] == [False, True, True]
    name = keys.objects(MINE.partition, MINE.organization_id)
    assert world.client.zcard(name) == 10
    assert 0 < world.client.ttl(name) <= 60


async def test_to_keep_one_is_one_command_but_for_one_in_a_hundred(
    valkey: str, connect: Connect, world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The set is larger by a hundredth then, and ends a hundredth of its time later."""
    time, wire = Time(), await connect(valkey)
    objects, most = Objects(wire, time, 1000, 200, trims_max=1), 202

    def cuts() -> int:
        found = world.client.info("commandstats")
        return int(found.get("cmdstat_zremrangebyrank", {"calls": 0})["calls"])

    world.client.config_resetstat()
    name = keys.objects(MINE.partition, MINE.organization_id)
    for number in range(300):
        await in_task(objects.keep(MINE, [f"resp_{number}"]))
        assert world.client.zcard(name) <= most
        assert world.client.ttl(name) > 1000
    assert cuts() == 100
    time.now += 10
    await in_task(objects.keep(MINE, ["late"]))
    await in_task(objects.keep(MINE, ["later"]))
    assert cuts() == 101
    world.client.delete(name)
    monkeypatch.setattr(wire, "run_id", b"another")
    await in_task(objects.keep(MINE, ["elsewhere"]))
    assert 1000 < world.client.ttl(name) <= 1010
    for caller in (OTHERS, MINE):
        await in_task(objects.keep(caller, ["evicts"]))
    assert cuts() == 104


async def test_without_redis_nobody_knows(valkey: str, connect: Connect) -> None:
    wire = await connect(valkey)
    objects = Objects(wire, Time(), 60, 10)
    await wire.close()
    wire.connection_lost(None)
    with pytest.raises(CountersUnavailable):
        await ask(objects, MINE, "resp_1")
