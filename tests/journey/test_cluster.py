"""A whole Tollkeeper whose Redis is a cluster: three primaries, each with a replica.

Tenants stand on all of them. What each answer said it used is in PostgreSQL once, whatever becomes of a
primary meanwhile, and who is on another one is served all the time. Its user may do nothing that one of the
managed services refuses.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from gateway.core.model import PARTITIONS
from gateway.counters.redis import keys
from tests import plain_http
from tests.journey.callers import TOKENS, ClusterCast, Tenant, examined, went_on
from tests.journey.stack import Stack
from tests.managed_services import SERVICES, user_of_all
from tests.tree import ROOT
from tests.valkey_cluster import NODE_TIMEOUT_MS, Member, ValkeyCluster, slot_of
from tests.waiting import HUNG_S, wait_until


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterCast]:
    managed = "managed", *user_of_all(*SERVICES)
    cluster = ValkeyCluster(tmp_path_factory.mktemp("cluster"), NODE_TIMEOUT_MS, "--user", *managed)
    stack: Stack | None = None
    try:
        cluster.start()
        url = cluster.url.replace("://", "://managed:hush@")
        stack = Stack(tmp_path_factory.mktemp("stack") / "data", "--redis-url", url)
        yield ClusterCast(stack, cluster)
    finally:
        if stack is not None:
            stack.stop()
        cluster.stop()


def test_tenants_of_every_primary_are_served_limited_and_charged_once(cast: ClusterCast) -> None:
    everybody = [one for member in cast.cluster.primaries for one in cast.tenants_of(member, 2)]
    few = [one for member in cast.cluster.primaries for one in cast.tenants_of(member, 1, total=2 * TOKENS)]
    cast.serves(everybody, few)
    assert cast.stack.chat("tk_nobody_has_this_one").status_code == 401


def test_doctor_looks_at_each_primary(cast: ClusterCast) -> None:
    members = cast.cluster.primaries
    for one in members:
        one.do("CONFIG SET", "appendonly", "yes")
    found = examined(cast.cluster.url)
    assert [one for one in found if one.well is False] == []
    assert "a cluster of 3 primaries" in found[0].says
    for one in members:
        said = [each.says for each in found if each.subject == f"redis 127.0.0.1:{one.port}"]
        assert "maxmemory-policy is noeviction" in said
        assert "cluster-require-full-coverage is no" in said
        assert "a keeper has verified it since its last start" in said
    first = members[0]
    first.do("CONFIG SET", "cluster-require-full-coverage", "yes")
    (wrong,) = [one for one in examined(cast.cluster.url) if one.well is False]
    first.do("CONFIG SET", "cluster-require-full-coverage", "no")
    assert wrong.subject == f"redis 127.0.0.1:{first.port}"
    assert "CONFIG SET cluster-require-full-coverage no" in wrong.says


def test_a_catalogue_whose_slot_was_given_out_empty_is_written_again(cast: ClusterCast) -> None:
    """It is of no partition, so nobody who looks after one notices."""
    slot, members = keys.slot_of(keys.CATALOGUE.encode()), cast.cluster.primaries
    assert slot not in map(slot_of, range(PARTITIONS))
    (before,) = [one for one in members if one.do("CLUSTER COUNTKEYSINSLOT", slot)]
    after = next(one for one in members if one is not before)
    for one in cast.cluster.members:
        one.do("CLUSTER DELSLOTS", slot)
    after.do("CLUSTER ADDSLOTS", slot)
    after.do("CLUSTER BUMPEPOCH")
    wait_until(lambda: after.do("CLUSTER COUNTKEYSINSLOT", slot) == 1)
    cast.cluster.wait_until_whole()


@pytest.mark.parametrize(("role", "user"), [("serve", "tollkeeper-gateway"), ("keeper", "tollkeeper-keeper")])
def test_users_of_ours_may_do_on_a_cluster_what_they_do(cast: ClusterCast, role: str, user: str) -> None:
    lines = (ROOT / "deploy" / "users.acl").read_text().splitlines()
    (rules,) = (line.split()[2:] for line in lines if line.startswith(f"user {user} "))
    for one in cast.cluster.members:
        one.do("CONFIG SET", "appendonly", "yes")
        one.do("ACL SETUSER", user, "reset", *[">hush" if rule[0] == ">" else rule for rule in rules])
    found = examined(cast.cluster.url.replace("://", f"://{user}:hush@"), role)
    assert [one for one in found if one.well is False] == []
    said = [one.says for one in found if one.subject.startswith("redis user at ")]
    assert said == [f"{user} may do what a {user.removeprefix('tollkeeper-')} does"] * 3


def test_nothing_is_lost_doubled_or_granted_twice_whatever_becomes_of_a_primary(cast: ClusterCast) -> None:
    cluster = cast.cluster
    first, second, third = ([*cast.tenants_of(member, 1)] for member in cluster.primaries)
    struck, others = first[0], [*second, *third]
    everybody = [struck, *others]
    with cast.calling(everybody):
        wait_until(went_on(everybody))
        # A slot that is moved: its tenant is served too.
        cluster.move(struck.partition, cluster.owner(second[0].partition))
        wait_until(went_on(everybody), HUNG_S)
        cluster.move(struck.partition, next(one for one in cluster.primaries if _is_other(cast, one, others)))
        wait_until(went_on(everybody), HUNG_S)
        # A primary that stands still, as long as the others take for a while of calls.
        victim = cluster.owner(struck.partition)
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGSTOP)
        others_go_on, seen = went_on(others, 30), [ready(cast)]
        try:
            wait_until(lambda: seen.append(ready(cast)) or others_go_on(), HUNG_S)
        finally:
            os.kill(victim.process.pid, signal.SIGCONT)
        assert all(one["counters_verified"] for one in seen), seen
        wait_until(went_on(everybody), HUNG_S)
        wait_until(lambda: ready(cast)["every_partition"], HUNG_S)
        cluster.wait_until_whole()
        # A primary that is killed: its replica takes over.
        victim = cluster.owner(struck.partition)
        victim.stop(signal.SIGKILL)
        wait_until(went_on(others, 30), HUNG_S)
        wait_until(went_on(everybody), HUNG_S)
    # They went on all the while. Where the machine is busy, Redis may have been too late for some call.
    assert {status for one in others for status in one.refused} <= {503}
    cluster.mend()
    for one in everybody:
        cast.is_exact(one)


def ready(cast: ClusterCast) -> dict[str, bool]:
    """What the keeper says of what it needs."""
    answer = plain_http.get(f"{cast.stack.admin_url}/readyz", timeout=HUNG_S)
    found: dict[str, bool] = answer.json()["dependencies"]
    return found


def _is_other(cast: ClusterCast, member: Member, tenants: list[Tenant]) -> bool:
    """Whether none of these tenants is on a primary."""
    return all(cast.cluster.owner(one.partition) is not member for one in tenants)
