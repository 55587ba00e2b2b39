"""Doctor on a cluster whose slots are being moved, and on what a move that was ended wrongly has left behind."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gateway.counters.redis.cluster import WHY_MOVING
from gateway.ops.doctor_redis import examine_redis
from gateway.settings.settings import load
from tests.valkey_cluster import ValkeyCluster, slot_of


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ValkeyCluster]:
    made = ValkeyCluster(tmp_path_factory.mktemp("cluster"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


async def complaints(cluster: ValkeyCluster) -> dict[str, list[str]]:
    """What doctor says of slots, by the server it says it of."""
    settings = load({}).with_values(redis_url=cluster.url, upstreams=())
    found: dict[str, list[str]] = {}
    async for one in examine_redis(settings, "serve"):
        if one.well is False and " slot " in f" {one.says}":
            found.setdefault(one.subject, []).append(one.says)
    return found


async def test_doctor_names_a_slot_that_is_being_moved_and_keys_that_were_left_behind(
    cluster: ValkeyCluster,
) -> None:
    partition = 0
    source, slot = cluster.owner(partition), slot_of(partition)
    to = next(one for one in cluster.primaries if one is not source)
    for number in range(4):
        source.client.set(f"tk:{{p00}}:{number}", "1")
    assert await complaints(cluster) == {}
    cluster.open_slot(partition, to)
    assert await complaints(cluster) == {f"redis 127.0.0.1:{source.port}": [f"slot {slot}: {WHY_MOVING}"]}
    for one in (source, to):
        one.do("CLUSTER SETSLOT", slot, "STABLE")
    ((subject, (said,)),) = (await complaints(cluster)).items()
    assert subject == f"redis 127.0.0.1:{to.port}"
    assert said.startswith(f"it has 2 keys of slot {slot}, which is another primary's: no call finds them.")
    # What doctor says to do: the slot is opened again, and the keys go to its primary.
    to.do("CLUSTER SETSLOT", slot, "IMPORTING", source.id)
    names = to.do("CLUSTER GETKEYSINSLOT", slot, 10)
    to.do("MIGRATE", "127.0.0.1", source.port, "", 0, 5000, "KEYS", *names)
    to.do("CLUSTER SETSLOT", slot, "STABLE")
    assert await complaints(cluster) == {}
    assert source.do("CLUSTER COUNTKEYSINSLOT", slot) == 4
