"""How much memory Redis says it uses."""

from __future__ import annotations

from collections.abc import Callable

import redis

from gateway.counters.keeper.client import Client
from tests.conftest import ValkeyServer
from tests.counters.conftest import Connect


async def test_memory_is_what_the_server_uses_of_what_it_may(
    own_valkey: Callable[..., ValkeyServer], connect: Connect
) -> None:
    server = own_valkey("--maxmemory", "64mb")
    client = Client(await connect(server.url))
    before, most = await client.memory()
    assert most == 64 * 1024 * 1024
    with redis.Redis.from_url(server.url) as server_client:
        server_client.set("much", b"x" * 4_000_000)
        server_client.config_set("maxmemory", 0)
    after, most = await client.memory()
    assert after - before > 3_900_000
    assert most == 0
