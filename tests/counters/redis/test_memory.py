"""How much memory Redis says it uses."""

from __future__ import annotations

from collections.abc import Callable

import redis

from gateway.counters.redis.memory import memory
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect


async def test_memory_is_what_the_server_uses_of_what_it_may(
    own_valkey: Callable[..., ValkeyServer], connect: Connect
) -> None:
    server = own_valkey("--maxmemory", "64mb")
    wire = await connect(server.url)
    before, most = await memory(wire)
    assert most == 64 * 1024 * 1024
    with redis.Redis.from_url(server.url) as client:
        client.set("much", b"x" * 4_000_000)
        client.config_set("maxmemory", 0)
    after, most = await memory(wire)
    assert after - before > 3_900_000
    assert most == 0
