"""Wires to real servers, closed after each test, and a verified world."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gateway.counters.admission.callers import Directory
from gateway.counters.admission.counters import Counters
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.keeper.worker_reports import WorkerReports
from gateway.counters.leases.allowance import Allowances
from gateway.counters.leases.leaser import Leaser
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection
from gateway.counters.settlement_log.resubmission import Resubmitter
from tests.builders import CHAT, TTL_MS, World, driven, new_id, settlement_log
from tests.counters.lease_stage import LEASE_S, Clock, Employ, Worker, silent
from tests.valkey_cluster import ValkeyCluster

WITHIN_S = 30.0
Connect = Callable[..., Awaitable[RedisConnection]]


@pytest.fixture
def world(valkey: str) -> Iterator[World]:
    made = World(valkey)
    yield made
    made.client.close()


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens a wire to a URL or address; more keywords are the wire's own."""
    wires: list[RedisConnection] = []

    async def opened(where: Any, **more: Any) -> RedisConnection:
        wire = RedisConnection(parse_url(where) if isinstance(where, str) else where, time.monotonic, **more)
        wires.append(wire)
        await wire.open()
        return wire

    yield opened
    for wire in wires:
        await wire.close()


@pytest.fixture
def employ(connect: Connect, tmp_path: Path) -> Employ:
    async def hired(world: World, fraction: float = 0.1, **more: Any) -> Worker:
        wire, clock = await connect(world.url, **more), Clock()
        allowances, log = Allowances(clock), settlement_log(tmp_path / new_id(), say=silent)
        directory = Directory(wire, clock)
        counters = Counters(
            wire, directory, TTL_MS, clock,
            dict.fromkeys(("reserve", "settle", "extend"), lambda _: None), log=log, allowances=allowances,
        )  # fmt: skip
        leaser = Leaser(
            wire, allowances, clock, fraction=fraction, lease_s=LEASE_S, pending=lambda: log.waiting
        )
        world.client.set(keys.CATALOGUE, encode_catalogue(1, [CHAT]))
        await driven(directory.refresh())
        worker_reports = WorkerReports(wire, new_id(), 0, clock)
        resubmitter = Resubmitter(wire, log, clock, silent, report=worker_reports.report)
        return Worker(world, wire, allowances, counters, leaser, clock, log, resubmitter)

    return hired


@pytest.fixture
def allowing(world: World) -> World:
    world.plan(1000, on_store_failure="allow")
    world.grant("credits", 200)
    return world


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    made = ValkeyCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def cluster(servers: ValkeyCluster) -> ValkeyCluster:
    """Three primaries with a replica each, whole and empty before each test of a file."""
    servers.mend()
    servers.empty()
    return servers
