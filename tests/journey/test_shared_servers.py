"""A whole Tollkeeper whose data three plain servers of Redis share, each with a part of the tenants."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from gateway.counters.redis import keys
from gateway.ops.doctor_redis import Finding, examine_redis
from gateway.settings.settings import load
from tests.conftest import ValkeyServer
from tests.journey.callers import RECOVERED_S_MAX, TOKENS, Cast, Tenant, went_on
from tests.journey.stack import Stack
from tests.waiting import wait_until

COUNT = 3


class Shared(Cast):
    """A stack over servers that share its data."""

    def __init__(self, stack: Stack, servers: list[ValkeyServer]) -> None:
        super().__init__(stack)
        self.servers = servers
        self.map = keys.shard_map([("127.0.0.1", one.port) for one in servers])

    def tenants_of(self, server: ValkeyServer, count: int, total: int | None = None) -> list[Tenant]:
        """So many whose organizations a server has."""
        found, own = list[Tenant](), self.map.partitions_of(("127.0.0.1", server.port))
        while len(found) < count:
            made = self.tenant(total)
            found += [made] * (made.partition in own)
        return found


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folders = [tmp_path_factory.mktemp(f"server{number}") for number in range(COUNT)]
    servers = [ValkeyServer(one, "--appendonly", "yes", "--appendfsync", "always") for one in folders]
    stack: Stack | None = None
    try:
        for one in servers:
            one.start()
        stack = Stack(tmp_path_factory.mktemp("stack") / "data", "--redis-url", url_of(servers))
        yield Shared(stack, servers)
    finally:
        if stack is not None:
            stack.stop()
        for one in servers:
            one.stop(signal.SIGKILL)


def url_of(servers: list[ValkeyServer]) -> str:
    return "redis+shards://" + ",".join(f"127.0.0.1:{one.port}" for one in servers)


def examined(url: str) -> list[Finding]:
    """What doctor says of these servers."""

    async def look() -> list[Finding]:
        settings = load({}).with_values(redis_url=url, upstreams=())
        return [one async for one in examine_redis(settings, "all")]

    return asyncio.run(look())


def test_tenants_of_every_server_are_served_limited_and_charged_once(cast: Shared) -> None:
    everybody = [one for server in cast.servers for one in cast.tenants_of(server, 2)]
    few = [one for server in cast.servers for one in cast.tenants_of(server, 1, total=2 * TOKENS)]
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(cast.call, everybody * 10)) == {200}
    for one in few:
        statuses = [cast.call(one) for _ in range(3)]
        assert statuses[-1] == 429, statuses
    for one in (*everybody, *few):
        cast.is_exact(one)
    status, ready = cast.stack.admin("POST", "/reconciliation")
    assert (status, ready["drift_tokens"], ready["drift_credits"]) == (200, 0, 0), ready


def test_a_server_that_stands_still_stops_its_own_tenants_alone(cast: Shared) -> None:
    struck, *others = [one for server in cast.servers for one in cast.tenants_of(server, 1)]
    victim = cast.servers[0]
    with cast.calling([struck, *others]):
        wait_until(went_on([struck, *others]))
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGSTOP)
        try:
            wait_until(went_on(others, 30), RECOVERED_S_MAX)
        finally:
            os.kill(victim.process.pid, signal.SIGCONT)
        wait_until(went_on([struck, *others]), RECOVERED_S_MAX)
        victim.stop(signal.SIGKILL)
        wait_until(went_on(others, 30), RECOVERED_S_MAX)
        victim.start()
        wait_until(went_on([struck, *others]), RECOVERED_S_MAX)
    for one in (struck, *others):
        cast.is_exact(one)


def test_doctor_sees_each_server_and_refuses_another_order(cast: Shared) -> None:
    found = examined(url_of(cast.servers))
    assert [one for one in found if one.well is False] == []
    assert found[0].says.endswith("is 3 servers")
    says = [one.says for one in found if one.subject == f"redis 127.0.0.1:{cast.servers[0].port}"]
    assert "a keeper has verified it since its last start" in says
    first, second, third = cast.servers
    for url, wanted in (
        (url_of([second, first, third]), "it has part 2/3 of the data, and the URL asks it for part 1/3"),
        (url_of([first, second]), "it has part 1/3 of the data, and the URL asks it for part 1/2"),
        (first.url, "it has part 1/3 of the data, and the URL asks it for all of it"),
    ):
        assert any(wanted in one.says for one in examined(url)), examined(url)
