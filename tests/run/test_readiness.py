"""A probe answers in time, whatever it asks does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from gateway.core.model import PARTITIONS
from gateway.core.processes import report, there
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.run.health import DiskWatch
from gateway.run.readiness import CachedLookup, Probe, all_answer, of_gateway, one_answers
from gateway.settings.settings import Settings
from gateway.telemetry import metrics as tallies
from tests.conftest import ValkeyServer
from tests.waiting import eventually

OF_WORKERS = ("redis", "counters_verified", "every_partition")


async def test_what_answers_is_told_and_an_error_is_a_no() -> None:
    async def refuses() -> bool:
        raise OSError("nobody there")

    assert await Probe(lambda: asyncio.sleep(0, True)).answers()
    assert not await Probe(lambda: asyncio.sleep(0, False)).answers()
    assert not await Probe(refuses).answers()


async def test_what_hangs_is_a_no_in_time_and_asked_once() -> None:
    asked, release = [], asyncio.Event()

    async def hangs() -> bool:
        asked.append(1)
        return await release.wait()

    probe = Probe(hangs, answer_s_max=0.01)
    assert [await probe.answers() for _ in range(3)] == [False] * 3
    assert len(asked) == 1
    release.set()
    await asyncio.sleep(0)
    assert await Probe(hangs).answers()
    assert await probe.answers()


async def test_whoever_asks_within_a_moment_has_what_was_found_and_one_at_a_time_looks() -> None:
    looks, now, wrong = [0], [0.0], [False]

    async def look() -> int:
        looks[0] += 1
        await asyncio.sleep(0)
        if wrong[0]:
            raise OSError("nobody there")
        return looks[0]

    recent = CachedLookup(look, fresh_s=1.0, clock=lambda: now[0])
    assert await asyncio.gather(*(recent.now() for _ in range(5))) == [1] * 5
    now[0], wrong[0] = 1.0, True
    with pytest.raises(OSError, match="nobody there"):
        await recent.now()
    wrong[0] = False
    assert await recent.now() == 3, "a failure is not kept"


async def test_one_primary_that_answers_is_enough_and_whether_all_do_is_known(
    own_valkey: Callable[..., ValkeyServer],
) -> None:
    first, second = own_valkey(), own_valkey()
    wires = [RedisConnection(parse_url(one.url), time.monotonic) for one in (first, second)]
    try:
        for one in wires:
            await one.open()
        assert await one_answers(wires)
        assert await all_answer(wires)
        second.stop()
        await eventually(lambda: not wires[1].connected)
        assert await one_answers(wires)
        assert not await all_answer(wires)
        first.stop()
        await eventually(lambda: not wires[0].connected)
        assert not await one_answers(wires)
        assert not await one_answers([])
        assert not await all_answer([])
    finally:
        for one in wires:
            await one.close()


@pytest.mark.parametrize(
    ("away", "unverified", "ready", "every"),
    [
        (0, 0, True, True),
        (21, 0, True, False),
        (0, 21, True, False),
        (21, 21, True, False),
        (PARTITIONS, 0, False, False),
        (0, PARTITIONS, False, False),
    ],
)
async def test_a_gateway_is_ready_while_it_serves_any_partition(
    tmp_path: Path, away: int, unverified: int, ready: bool, every: bool
) -> None:
    settings = Settings(data_dir=str(tmp_path), gateway_host="127.0.0.1")
    disk = DiskWatch(settings, lambda *_, **__: None)
    nobody = await of_gateway(settings, lambda: False, disk)
    assert not any(there(nobody)[name] for name in ("gateway", *OF_WORKERS))
    assert report(False, nobody)["reasons"] == {"gateway": "no worker accepts calls"}
    numbers = {"partitions_away": away, "partitions_unverified": unverified}
    telling = asyncio.create_task(tallies.publish(settings.metrics_dir, lambda: numbers))
    try:
        await eventually(lambda: any(settings.metrics_dir.glob("*.json")))
        said = dict(await of_gateway(settings, lambda: True, disk))
        disk.full = (str(tmp_path),)  # as was seen last
        full = await of_gateway(settings, lambda: True, disk)
        assert full["disk"] == f"the disk of {tmp_path} is full"
    finally:
        telling.cancel()
    assert said.pop("every_partition") is every
    assert [said.pop(name) for name in ("disk", "configuration", "open_files", "clock")] == [True] * 4
    assert all(there(said).values()) is ready
    assert said.keys() == {"gateway", "redis", "counters_verified"}


@pytest.mark.parametrize(
    ("refusing", "taking", "ready"),
    [({}, PARTITIONS, True), ({"OOM": 21}, 43, True), ({"OOM": PARTITIONS}, 0, False)],
)
async def test_a_gateway_whose_redis_refuses_all_calls_is_not_ready_and_says_why(
    tmp_path: Path, refusing: dict[str, int], taking: int, ready: bool
) -> None:
    settings = Settings(data_dir=str(tmp_path))
    disk = DiskWatch(settings, lambda *_, **__: None)
    numbers = {"partitions_refusing": [*refusing.items()], "partitions_taking": taking}
    numbers |= {"clock_offset_seconds": [("redis", -7200.0)]}
    telling = asyncio.create_task(tallies.publish(settings.metrics_dir, lambda: numbers))
    try:
        await eventually(lambda: any(settings.metrics_dir.glob("*.json")))
        said = await of_gateway(settings, lambda: True, disk)
    finally:
        telling.cancel()
    assert said["redis"] == (True if ready else "OOM: its memory is full")
    assert said["every_partition"] == ("OOM: its memory is full" if refusing else True)
    assert said["clock"] == "the clock is 7,200 s behind that of redis"
