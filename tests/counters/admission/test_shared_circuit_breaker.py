"""What one worker heard of an upstream's limits, all workers know; without Redis each has its own."""

from __future__ import annotations

import asyncio
import contextlib
import time

import msgspec
import pytest

from gateway.core.circuit_breaker import ENTRIES_MAX, EVERYBODY
from gateway.counters.admission.shared_circuit_breaker import SharedCircuitBreaker
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable
from tests.builders import World
from tests.counters.conftest import Connect
from tests.waiting import eventually

FIELDS = (b"anthropic-ratelimit-unified-status: rejected",)


class Worker:
    """A worker's table with a clock of its own, which began at another time than others'."""

    def __init__(self, shared: Connect, began: float, s_max: float = 60) -> None:
        self._connect, self.now, self._s_max = shared, began, s_max

    async def start(self, url: str) -> Worker:
        self.wire = await self._connect(url)
        self.shared = SharedCircuitBreaker(self.wire, lambda: self.now)
        self.cooling = self.shared.table
        self.cooling.bound(self._s_max, self.now)
        return self

    def hears(self, name: str, wait_s: float, organization_id: int = EVERYBODY) -> None:
        self.cooling.begin(name, wait_s, FIELDS, self.now, organization_id)

    def left_s(self, name: str) -> float:
        one = self.cooling.of(name, self.now)
        return 0 if one is None else one.until - self.now


async def test_share_brings_backoff_to_all_workers(valkey: str, connect: Connect, world: World) -> None:
    first, second = [await Worker(connect, began).start(valkey) for began in (1_000, 77)]
    first.hears("a model m", 30)
    await first.shared.share()
    await second.shared.share()
    assert 25 < second.left_s("a model m") <= 30.5
    one = second.cooling.of("a model m", second.now)
    assert one is not None
    assert one.fields == FIELDS
    assert 0 < world.client.pttl(keys.COOLING) <= 30_500


async def test_keep_sharing_writes_new_backoff_at_once(valkey: str, connect: Connect, world: World) -> None:
    """Not only at the next look, which is an hour away here."""
    shared = SharedCircuitBreaker(await connect(valkey), time.monotonic)
    world.client.config_resetstat()
    sharing = asyncio.create_task(shared.keep_sharing(0.0, 3600))
    await eventually(lambda: "cmdstat_time" in world.client.info("commandstats"))
    shared.table.begin("a", 30, FIELDS, time.monotonic())
    await eventually(lambda: world.client.exists(keys.COOLING))
    sharing.cancel()


async def test_share_cuts_backoff_to_maximum_of_each_worker(valkey: str, connect: Connect) -> None:
    """Each worker has its own maximum, whatever others say; 0 is none."""
    first = await Worker(connect, 0, s_max=600).start(valkey)
    careful, off = await Worker(connect, 0, s_max=5).start(valkey), await Worker(connect, 0, 0).start(valkey)
    first.hears("a", 287_441)
    for worker in (first, careful, off):
        await worker.shared.share()
    assert first.left_s("a") == 600
    assert careful.left_s("a") == 5
    assert off.left_s("a") == 0
    one = careful.cooling.of("a", careful.now)
    assert one is not None
    assert one.told_until > 280_000


async def test_share_restores_backoffs_lost_to_writes_at_once(valkey: str, connect: Connect) -> None:
    workers = [await Worker(connect, began).start(valkey) for began in (0, 10, 20)]
    for number, worker in enumerate(workers):
        worker.hears(f"m{number}", 30)
    for _ in range(len(workers) + 1):
        await asyncio.gather(*(worker.shared.share() for worker in workers))
    assert all(set(worker.cooling.entries) == {"m0", "m1", "m2"} for worker in workers)


async def test_share_replaces_earlier_end_by_later_one(valkey: str, connect: Connect) -> None:
    first, second = [await Worker(connect, 0).start(valkey) for _ in range(2)]
    first.hears("a", 10)
    await first.shared.share()
    await second.shared.share()
    second.hears("a", 40)
    await second.shared.share()
    await first.shared.share()
    assert first.left_s("a") > 35


async def test_share_extends_backoff_of_two_organizations_to_all(
    valkey: str, connect: Connect, world: World
) -> None:
    workers = [await Worker(connect, began).start(valkey) for began in (0, 500, 900)]
    for organization_id, worker in enumerate(workers[:2], 1):
        worker.hears("a", 30, organization_id)
        worker.hears("b", 30, 1)
    for _ in range(3):
        for worker in workers:
            await worker.shared.share()
    whose = [{name: one.organization_id for name, one in each.cooling.entries.items()} for each in workers]
    assert whose == [{"a": EVERYBODY, "b": 1}] * 3
    world.client.set(keys.COOLING, msgspec.json.encode([["c", 2**52, 2**52, []]]))  # of an older worker
    await workers[0].shared.share()
    assert workers[0].cooling.entries["c"].organization_id == EVERYBODY


async def test_share_writes_only_unknown_backoffs(valkey: str, connect: Connect, world: World) -> None:
    first, second = [await Worker(connect, began).start(valkey) for began in (0, 500)]
    first.hears("a", 30)
    await first.shared.share()
    world.client.config_resetstat()
    for _ in range(3):
        await first.shared.share()
        await second.shared.share()
    assert "cmdstat_set" not in world.client.info("commandstats")


async def test_keep_sharing_forgets_backoffs_at_their_end(
    valkey: str, connect: Connect, world: World
) -> None:
    """By the time of Redis, and by that of the worker."""
    shared = SharedCircuitBreaker(await connect(valkey), time.monotonic)
    cooling = shared.table
    sharing = asyncio.create_task(shared.keep_sharing(0.01, 0.01))
    cooling.begin("a", 0.3, FIELDS, time.monotonic())
    await eventually(lambda: world.client.exists(keys.COOLING))
    await eventually(lambda: not cooling.entries)
    await eventually(lambda: not world.client.exists(keys.COOLING))
    cooling.begin("b", 30, FIELDS, time.monotonic())
    cooling.begin("c", 0.2, FIELDS, time.monotonic())
    await eventually(lambda: set(cooling.entries) == {"b"})
    cooling.begin("d", 30, FIELDS, time.monotonic())
    await eventually(lambda: b'"d"' in world.client.get(keys.COOLING))
    assert [name for name, *_ in msgspec.json.decode(world.client.get(keys.COOLING))] == ["b", "d"]
    sharing.cancel()


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"nonsense", b"{}", b'[["a",1]]', b"[1]", b"\xff", b'[["a",-1,2,[]]]', b'[["a",1e99,2,[]]]',
        b'[["a",99999999999999,2,["x: \\r\\ny: 1"]]]', b"[" * 10_000,
        b"[" + b",".join([b'["a",99999999999999,2,[]]'] * (ENTRIES_MAX + 1)) + b"]",
        b'[["a",9007199254740991,9007199254740991,[]]]' + b" " * (1 << 20),
    ],
)  # fmt: skip
async def test_share_ignores_invalid_entries(valkey: str, connect: Connect, world: World, raw: bytes) -> None:
    world.client.set(keys.COOLING, raw)
    worker = await Worker(connect, 0).start(valkey)
    await worker.shared.share()
    assert not worker.cooling.entries
    worker.hears("b", 30)
    await worker.shared.share()
    assert b'"b"' in world.client.get(keys.COOLING)


async def test_share_keeps_own_backoffs_beside_key_of_another_type(
    valkey: str, connect: Connect, world: World
) -> None:
    world.client.lpush(keys.COOLING, "x")
    worker = await Worker(connect, 0).start(valkey)
    worker.hears("a", 30)
    with contextlib.suppress(CountersUnavailable):
        await worker.shared.share()
    assert worker.left_s("a") == 30


async def test_share_keeps_own_backoffs_without_redis(valkey: str, connect: Connect) -> None:
    worker = await Worker(connect, 0).start(valkey)
    await worker.wire.close()
    worker.wire.connection_lost(None)
    worker.hears("a", 30)
    with pytest.raises(CountersUnavailable):
        await worker.shared.share()
    assert worker.left_s("a") == 30
