"""A whole Tollkeeper whose Redis speaks TLS alone: a cluster, and a primary that a sentinel names.

Servers want a certificate of everybody. Certificates and authorities of both sides are replaced while calls
go on, and then a primary dies: who takes over is met with what the files hold by then.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from gateway.ops.doctor_redis import Finding, examine_redis
from gateway.settings.settings import load
from tests.journey.callers import Cast, ClusterCast, went_on
from tests.journey.stack import Stack
from tests.secured_servers import Files, SecuredCluster, SecuredPair
from tests.waiting import HUNG_S, wait_until


class Both:
    """Files of the servers and of ours, and who signs them."""

    def __init__(self, folder: Path) -> None:
        self.signer = trustme.CA()
        self.theirs, self.ours = Files(folder / "theirs"), Files(folder / "ours")
        for one in (self.theirs, self.ours):
            one.put(self.signer, self.signer)


def examined(url: str, **environ: str) -> list[Finding]:
    """What doctor says of Redis, with these settings."""
    settings = load({"TOLLKEEPER_REDIS_URL": url} | environ).with_values(upstreams=())

    async def look() -> list[Finding]:
        return [one async for one in examine_redis(settings, "all")]

    return asyncio.run(look())


def wrong(url: str, **environ: str) -> str:
    """All that doctor says is wrong."""
    return "\n".join(one.says for one in examined(url, **environ) if one.well is False)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return Both(tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory, files: Both) -> Iterator[ClusterCast]:
    cluster = SecuredCluster(tmp_path_factory.mktemp("cluster"), files.theirs)
    stack: Stack | None = None
    try:
        cluster.start()
        folder = tmp_path_factory.mktemp("stack") / "data"
        stack = Stack(folder, "--redis-url", cluster.url, **files.ours.environ)
        yield ClusterCast(stack, cluster)
    finally:
        if stack is not None:
            stack.stop()
        cluster.stop()


def test_doctor_sees_each_primary_by_its_name_and_says_which_file_is_lacking(
    cast: ClusterCast, files: Both
) -> None:
    for one in cast.cluster.members:
        one.do("CONFIG SET", "appendonly", "yes")
    url, environ = cast.cluster.url, files.ours.environ
    found = examined(url, **environ)
    assert [one.says for one in found if one.well is False] == []
    for one in cast.cluster.primaries:
        said = [each.says for each in found if each.subject == f"redis localhost:{one.port}"]
        assert [each for each in said if each.startswith("its certificate is valid until")]
    authority = {"TOLLKEEPER_REDIS_CA_FILE": environ["TOLLKEEPER_REDIS_CA_FILE"]}
    # By the moment the server says it at: that it wants one, or that the connection is over.
    assert "TOLLKEEPER_REDIS_CERT_FILE and TOLLKEEPER_REDIS_KEY_FILE" in wrong(url, **authority)
    own = {name: value for name, value in environ.items() if name not in authority}
    assert "TOLLKEEPER_REDIS_CA_FILE" in wrong(url, **own)
    assert "must be one of the certificate's names" in wrong(url.replace("localhost", "127.0.0.1"), **environ)
    assert "rediss:// where the server speaks TLS" in wrong(url.replace("rediss", "redis"))


def test_files_are_replaced_with_calls_in_flight_and_a_primary_dies_behind_that(
    cast: ClusterCast, files: Both
) -> None:
    cluster = cast.cluster
    assert isinstance(cluster, SecuredCluster)
    everybody = [one for member in cluster.primaries for one in cast.tenants_of(member, 1)]
    struck, *others = everybody
    with cast.calling(everybody):
        wait_until(went_on(everybody), HUNG_S)
        after = trustme.CA()
        for one in (files.theirs, files.ours):
            one.trust(files.signer, after)
        cluster.read_again()
        for one in (files.theirs, files.ours):
            one.put(after, files.signer, after)
        cluster.read_again()
        for one in (files.theirs, files.ours):
            one.trust(after)
        cluster.read_again()
        wait_until(went_on(everybody), HUNG_S)
        cluster.owner(struck.partition).stop(signal.SIGKILL)
        wait_until(went_on(others, 30), HUNG_S)
        wait_until(went_on(everybody), HUNG_S)
    cluster.mend()
    for one in everybody:
        cast.is_exact(one)


def test_the_primary_that_a_sentinel_names_is_followed(tmp_path: Path) -> None:
    files = Both(tmp_path)
    pair = SecuredPair(tmp_path / "pair", files.theirs)
    stack: Stack | None = None
    try:
        pair.start()
        stack = Stack(tmp_path / "data", "--redis-url", pair.url, **files.ours.environ)
        assert wrong(pair.url, **files.ours.environ) == ""
        said = wrong(pair.url)
        assert "no sentinel knows a primary named main" in said
        assert "name the authority that signed it in TOLLKEEPER_REDIS_CA_FILE" in said
        cast = Cast(stack)
        everybody = [cast.tenant(), cast.tenant()]
        with cast.calling(everybody):
            wait_until(went_on(everybody), HUNG_S)
            files.ours.put(files.signer, files.signer)
            pair.primary.stop(signal.SIGKILL)
            wait_until(went_on(everybody), HUNG_S)
        for one in everybody:
            cast.is_exact(one)
        assert wrong(pair.url, **files.ours.environ) == ""
    finally:
        if stack is not None:
            stack.stop()
        pair.stop()
