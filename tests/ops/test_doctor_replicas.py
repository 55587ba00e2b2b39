"""What doctor says of replicas, which may be primaries a moment later: of sentinels, and of a cluster."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.ops.doctor_redis import Finding, examine_redis, named_replica
from gateway.settings.settings import load
from tests.conftest import ValkeyServer
from tests.sentinel_pair import SentinelPair


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelPair]:
    made = SentinelPair(tmp_path_factory.mktemp("pair"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def examined(url: str, role: str = "keeper") -> list[Finding]:
    settings = load({}).with_values(redis_url=url, upstreams=())
    return [one async for one in examine_redis(settings, role)]


def of_replica(found: list[Finding], server: ValkeyServer) -> dict[str, bool | None]:
    """What is said of it, and whether that is well."""
    subject = f"redis replica 127.0.0.1:{server.port}"
    return {one.says: one.well for one in found if one.subject == subject}


async def test_a_replica_is_looked_at_as_its_primary_is(pair: SentinelPair) -> None:
    said = of_replica(await examined(pair.url), pair.replica)
    memory = said.pop("0% of its maxmemory of 8192 MiB is used")
    assert said == dict.fromkeys(
        ("maxmemory-policy is noeviction", "append-only file is on", "appendfsync is everysec"), True
    )
    assert memory
    with pair.replica.connect() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendfsync", "no")
        said = of_replica(await examined(pair.url), pair.replica)
        assert [one for one, well in said.items() if not well and "is allkeys-lru, which deletes" in one]
        assert [one for one, well in said.items() if not well and "appendfsync is no" in one]
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("appendfsync", "everysec")
        client.config_set("appendonly", "no")
        (remark,) = (one for one in of_replica(await examined(pair.url), pair.replica) if "file" in one)
        assert remark.startswith("append-only file is off: when it has taken over")
        client.config_set("appendonly", "yes")


async def test_one_that_refuses_to_be_looked_at_is_named(pair: SentinelPair) -> None:
    with pair.replica.connect() as client:
        client.execute_command("ACL", "SETUSER", "default", "-info")  # type: ignore[no-untyped-call]  # untyped in redis-py
        said = of_replica(await examined(pair.url), pair.replica)
        client.execute_command("ACL", "SETUSER", "default", "+info")  # type: ignore[no-untyped-call]  # the same
    ((says, well),) = said.items()
    assert well is None
    assert says.startswith("could not be looked at, so look at its configuration: ")
    assert "refused: NOPERM" in says


async def test_a_primary_that_nobody_can_take_over_from_is_told(
    pair: SentinelPair, valkey_cluster: ValkeyServer
) -> None:
    alone = "no replica follows it"
    assert not [one for one in await examined(pair.url) if one.says.startswith(alone)]
    url = f"redis+cluster://127.0.0.1:{valkey_cluster.port}"
    told = [one for one in await examined(url) if one.says.startswith(alone)]
    assert [(one.well, one.subject) for one in told] == [(True, f"redis 127.0.0.1:{valkey_cluster.port}")]
    assert not [
        one for one in await examined(f"redis://127.0.0.1:{valkey_cluster.port}") if alone in one.says
    ]


def test_replicas_are_named_by_what_they_announce() -> None:
    info = {
        "slave0": "ip=valkey-1,port=6379,state=online,offset=1,lag=0",
        "slave1": "ip=,port=6379,state=wait_bgsave",
        "slave_read_only": "1",
        "slave2": "ip=10.0.0.3,port=6380,state=online",
    }
    assert named_replica(info) == [("valkey-1", 6379), ("10.0.0.3", 6380)]
