"""A whole Tollkeeper whose data three plain servers of Redis share, each with a part of the tenants."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.local.embedded import valkey
from tests import plain_http
from tests.journey.callers import TOKENS, Cast, Tenant, examined, went_on
from tests.journey.stack import Stack
from tests.waiting import HUNG_S, wait_until

COUNT = 3


class Shared(Cast):
    """A stack over servers of its own that share its data."""

    def __init__(self, data: Path) -> None:
        self.data = data
        super().__init__(Stack(data, TOLLKEEPER_REDIS_SERVERS=str(COUNT)))
        self.address = parse_url(self.stack.redis_url)
        self.map = keys.shard_map(self.address.shards)

    def tenants_of(self, server: int, count: int, total: int | None = None) -> list[Tenant]:
        """So many whose organizations a server has."""
        found, own = list[Tenant](), self.map.partitions_of(self.address.shards[server])
        while len(found) < count:
            made = self.tenant(total)
            found += [made] * (made.partition in own)
        return found

    def process_of(self, server: int) -> int:
        """The process id of a server."""
        folder = self.data / ("redis" if server == 0 else f"redis-{server + 1}")
        return int((folder / "valkey.pid").read_text())

    def url(self, ports: Sequence[int]) -> str:
        """The URL that lists these servers."""
        return valkey.url(ports, self.address.password)

    def asked(self, path: str) -> str:
        """Return what the gateway's admin port answers."""
        return plain_http.get(f"{self.stack.admin_url}{path}", timeout=HUNG_S).text

    def reasons(self) -> Any:
        """Return why the gateway is not ready for each partition."""
        return json.loads(self.asked("/readyz")).get("reasons", {})


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    found = Shared(tmp_path_factory.mktemp("stack") / "data")
    yield found
    found.stack.stop()


def test_tenants_of_every_server_are_served_limited_and_charged_once(cast: Shared) -> None:
    everybody = [one for server in range(COUNT) for one in cast.tenants_of(server, 2)]
    few = [one for server in range(COUNT) for one in cast.tenants_of(server, 1, total=2 * TOKENS)]
    cast.serves(everybody, few)


def test_a_server_that_stands_still_or_dies_stops_its_own_tenants_alone(cast: Shared) -> None:
    struck, *others = [one for server in range(COUNT) for one in cast.tenants_of(server, 1)]
    victim = cast.process_of(0)
    with cast.calling([struck, *others]):
        wait_until(went_on([struck, *others]))
        os.kill(victim, signal.SIGSTOP)
        try:
            wait_until(went_on(others, 20), HUNG_S)
        finally:
            os.kill(victim, signal.SIGCONT)
        wait_until(went_on([struck, *others]), HUNG_S)
        os.kill(victim, signal.SIGKILL)
        wait_until(went_on(others, 20), HUNG_S)
        wait_until(lambda: cast.process_of(0) != victim, HUNG_S)
        wait_until(went_on([struck, *others]), HUNG_S)
    for one in (struck, *others):
        cast.is_exact(one)


def test_each_place_names_two_servers_that_hang(cast: Shared) -> None:
    """The log of gateway and keeper, the reasons of readiness, and the metric; the third server goes on."""
    names = [f"127.0.0.1:{port}" for _, port in cast.address.shards]
    hang = f"{names[0]}, {names[2]}: does not answer in time"

    def loggers(why: str) -> set[str]:
        lines = [
            json.loads(line) for line in cast.stack.log.read_text().splitlines() if "redis is away" in line
        ]
        return {line["logger"] for line in lines if line["why"] == why}

    for server in (0, 2):
        os.kill(cast.process_of(server), signal.SIGSTOP)
    try:
        wait_until(lambda: cast.reasons().get("every_partition") == hang)
        samples = [
            f'tollkeeper_redis_away{{server="{name}"}} {away}'
            for name, away in zip(names, (1.0, 0.0, 1.0), strict=True)
        ]
        wait_until(lambda: all(sample in cast.asked("/metrics") for sample in samples))
        wait_until(lambda: loggers(hang) == {"tollkeeper.gateway", "tollkeeper.keeper"})
    finally:
        for server in (0, 2):
            os.kill(cast.process_of(server), signal.SIGCONT)
    wait_until(lambda: not cast.reasons(), HUNG_S)


def test_doctor_sees_each_server_and_refuses_another_order(cast: Shared) -> None:
    ports = [port for _, port in cast.address.shards]
    found = examined(cast.url(ports))
    assert [one for one in found if one.well is False] == []
    assert found[0].says.endswith("is 3 servers")
    says = [one.says for one in found if one.subject == f"redis 127.0.0.1:{ports[0]}"]
    assert "a keeper has verified it since its last start" in says
    first, second, third = ports
    for listed, wanted in (
        ((second, first, third), "it has part 2/3 of the data, and the URL asks it for part 1/3"),
        ((first, second), "it has part 1/3 of the data, and the URL asks it for part 1/2"),
        ((first,), "it has part 1/3 of the data, and the URL asks it for all of it"),
    ):
        found = examined(cast.url(listed))
        assert any(wanted in one.says for one in found), found


def test_the_number_of_servers_is_that_of_the_directory(cast: Shared) -> None:
    """Then all starts again, and what was used is known."""
    (tenant,) = cast.tenants_of(2, 1)
    assert cast.call(tenant) == 200
    cast.is_exact(tenant)
    cast.stack.stop()
    with pytest.raises(AssertionError, match=r"TOLLKEEPER_REDIS_SERVERS is 2, and .* has 3"):
        Stack(cast.data, TOLLKEEPER_REDIS_SERVERS="2")
    cast.stack.start()
    wait_until(lambda: not cast.reasons(), HUNG_S)  # each server is verified by itself
    assert cast.call(tenant) == 200
    cast.is_exact(tenant)
