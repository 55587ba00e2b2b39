"""The servers of Redis that a keeper looks after, and what is told of them, while they come and go."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import cast

from psycopg.errors import DiskFull

from gateway.core.model import PARTITIONS
from gateway.counters.redis.address import Address
from gateway.counters.redis.cluster import RedisConnections
from gateway.counters.redis.connection import RedisConnection
from gateway.errors import CountersRefused, LedgerUnavailable
from gateway.run.keeper import Keeper
from gateway.run.shard_loops import AllShardLoops, LoopContext, ShardLoops
from gateway.settings.settings import Settings
from tests.conftest import ValkeyServer
from tests.persistence.migrated import migrated, shared, template
from tests.waiting import eventually

__all__ = ["migrated", "shared", "template"]


@dataclass(frozen=True)
class Wire:
    """A connection with an address and its server's name."""

    address: Address
    server: str = ""


class LeavingServer:
    """One that goes while it is asked, as in a failover."""

    def __init__(self, number: int, go: Callable[[], object]) -> None:
        self.go, self.counters, self.outbox = go, self, self
        self.wire, self.broken = SimpleNamespace(part=SimpleNamespace(partitions=(number,))), {number}

    async def depth(self) -> tuple[int, int]:
        self.go()
        return 10, 0

    async def parked(self, partitions: Iterable[int]) -> dict[int, int]:
        return dict.fromkeys(partitions, 1)

    async def holds(self) -> int:
        return 2


async def test_what_waits_is_told_while_servers_come_and_go() -> None:
    servers = AllShardLoops(cast("RedisConnections", None), cast("LoopContext", SimpleNamespace(share=None)))
    for number in range(3):
        wire = cast("RedisConnection", object())
        kept = LeavingServer(number, lambda wire=wire: servers._kept.pop(wire))
        servers._kept[wire] = cast("ShardLoops", kept)
    assert await servers.waiting() == {
        "outbox_entries": 30, "outbox_oldest_seconds": 0.0, "waiting_entries": 3,
        "outbox_streams_broken": 3, "holds": 6,
    }  # fmt: skip
    assert await servers.waiting() == {}


def test_unstored_rows_name_the_server_that_has_failed_longest() -> None:
    servers = AllShardLoops(cast("RedisConnections", None), cast("LoopContext", SimpleNamespace(share=None)))
    assert servers.unstored() is None
    now, full = time.monotonic(), LedgerUnavailable("PostgreSQL: 53100 could not extend file")
    full.__cause__ = DiskFull()
    asked = CountersRefused("Redis refused: ASK 11214 127.0.0.1:7002")
    for port, trouble in ((7000, None), (7001, (now - 40, asked)), (7002, (now - 20, full))):
        address = Address("127.0.0.1", port, members=(("127.0.0.1", 7000),))
        wire = Wire(address, f"127.0.0.1:{port}")
        servers._kept[cast("RedisConnection", wire)] = cast("ShardLoops", SimpleNamespace(trouble=trouble))
    said = str(servers.unstored())
    assert said.startswith("no row of 127.0.0.1:7001 could be stored for 4")
    assert said.endswith(f" s: {asked.message}")
    servers._kept = {wire: kept for wire, kept in servers._kept.items() if wire.address.port == 7002}
    unstored = servers.unstored()
    assert unstored is not None
    assert (unstored.server, unstored.why, unstored.code) == ("127.0.0.1:7002", full.message, "53100")


async def test_what_a_server_that_went_had_in_hand_is_in_hand_until_it_has_ended(
    migrated: str, own_valkey: Callable[..., ValkeyServer]
) -> None:
    """Else another keeper is given partitions of which entries are still on their way."""
    valkey = own_valkey()
    keeper = Keeper(Settings(database_url=migrated, redis_url=valkey.url))
    servers = keeper._servers
    await keeper._wires.open()
    servers.start()
    try:
        await eventually(lambda: servers.share.size == PARTITIONS)
        (kept,) = servers._kept.values()
        await eventually(lambda: kept._flusher._epochs is not None)  # it has been through what comes before
        assert valkey.process
        valkey.process.send_signal(signal.SIGSTOP)
        try:
            there = await eventually(servers._in_hand)
            servers._wires = SimpleNamespace(wires=[])  # all that is asked of it here
            servers.look()
            assert servers._in_hand() == there
        finally:
            valkey.process.send_signal(signal.SIGCONT)
        await eventually(lambda: not servers._in_hand())
    finally:
        await servers.stop()
        await keeper._wires.close()
        await keeper._pools.dispose()
