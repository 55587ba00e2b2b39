"""What is told of the servers that a keeper looks after, while they come and go."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import cast

from gateway.counters.redis.wire import Wire
from gateway.counters.redis.wires import Wires
from gateway.run.kept_servers import KeptServer, KeptServers, Shared


class Kept:
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
    servers = KeptServers(cast("Wires", None), cast("Shared", SimpleNamespace(share=None)))
    for number in range(3):
        wire = cast("Wire", object())
        kept = Kept(number, lambda wire=wire: servers._kept.pop(wire))
        servers._kept[wire] = cast("KeptServer", kept)
    assert await servers.waiting() == {
        "outbox_entries": 30, "outbox_oldest_seconds": 0.0, "waiting_entries": 3,
        "outbox_streams_broken": 3, "holds": 6,
    }  # fmt: skip
    assert await servers.waiting() == {}
