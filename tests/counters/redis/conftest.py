"""A cluster for the tests of one file: whole and empty before each."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.valkey_cluster import ValkeyCluster


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
    servers.mend()
    servers.empty()
    return servers
