"""A whole Tollkeeper whose Redis is a cluster: three primaries, each with a replica.

Tenants stand on all of them. What each answer said it used is in PostgreSQL once, whatever becomes of a
primary meanwhile, and who is on another one is served all the time. Its user may do nothing that one of the
managed services refuses.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2 as httpx
import pytest

from gateway.counters.redis import keys
from gateway.ops.doctor_servers import examine_redis
from gateway.ops.finding import Finding
from gateway.settings.settings import load
from tests import plain_http
from tests.journey.stack import Stack
from tests.managed_services import SERVICES, user_of_all
from tests.tree import ROOT
from tests.valkey_cluster import NODE_TIMEOUT_MS, Member, ValkeyCluster
from tests.waiting import wait_until

USAGE, TOKENS = "3,4", 7
CALLERS = 2  # of each tenant, at once
RECOVERED_S_MAX = 120.0  # on a machine that does much else


@dataclass
class Tenant:
    """One tenant of an organization of its own, and what became of its calls."""

    id: int
    key: str
    partition: int
    served: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)


class Cast:
    """The stack, its cluster, and its tenants."""

    def __init__(self, stack: Stack, cluster: ValkeyCluster) -> None:
        self.stack, self.cluster = stack, cluster

    def tenant(self, total: int | None = None) -> Tenant:
        """A new tenant, with an organization of its own."""
        stack, name = self.stack, f"cluster {time.monotonic_ns()}"
        plan = stack.make("token-plans", name=name, total_amount=total)
        organization = stack.make("organizations", name=name)["id"]
        tenant = stack.make("tenants", name=name, organization_id=organization, plan_id=plan["id"])["id"]
        key = stack.make("api-keys", tenant_id=tenant)["key"]
        return Tenant(tenant, key, keys.partition_of(organization))

    def tenants_of(self, member: Member, count: int, total: int | None = None) -> list[Tenant]:
        """So many whose organizations a primary has."""
        found: list[Tenant] = []
        while len(found) < count:
            made = self.tenant(total)
            if self.cluster.owner(made.partition) is member:
                found.append(made)
        return found

    def call(self, tenant: Tenant) -> int:
        """One call; its status."""
        try:
            answer = self.stack.chat(tenant.key, USAGE)
        except httpx.HTTPError:
            tenant.refused[0] += 1
            return 0
        if answer.status_code == 200:
            tenant.served.append(answer.headers["x-request-id"])
        else:
            tenant.refused[answer.status_code] += 1
        return answer.status_code

    @contextmanager
    def calling(self, tenants: list[Tenant]) -> Iterator[None]:
        """Have all of them call again and again; their last calls are over when the block is."""
        ends = threading.Event()

        def call_on(tenant: Tenant) -> None:
            while not ends.is_set():
                self.call(tenant)

        with ThreadPoolExecutor(CALLERS * len(tenants)) as pool:
            for tenant in tenants * CALLERS:
                pool.submit(call_on, tenant)
            try:
                yield
            finally:
                ends.set()

    def charged(self, tenant: Tenant) -> list[tuple[str, int]]:
        """Each call's id and amount as PostgreSQL has them."""
        query = (
            "SELECT request_id::text, amount FROM token_ledger"
            f" WHERE tenant_id = {tenant.id} AND transaction_type = 'consume'"
        )
        return [(name, int(amount)) for name, amount in self.stack.rows(query)]

    def is_exact(self, tenant: Tenant) -> None:
        """Each answer that was given is one row of what it said, and there is no other."""
        expected = sorted((name, TOKENS) for name in tenant.served)
        wait_until(lambda: len(self.charged(tenant)) >= len(expected), RECOVERED_S_MAX)
        assert sorted(self.charged(tenant)) == expected

        def agrees() -> bool:
            status, quota = self.stack.admin("GET", f"/tenant-quotas/{tenant.id}")
            return status == 200 and (quota["tokens_used"], quota["tokens_held"]) == (
                TOKENS * len(expected),
                0,
            )

        wait_until(agrees, RECOVERED_S_MAX)


def went_on(tenants: list[Tenant], count: int = 10) -> Callable[[], bool]:
    """Whether each of them was served so many times more."""
    before = [len(one.served) for one in tenants]
    return lambda: all(len(one.served) - old >= count for one, old in zip(tenants, before, strict=True))


@pytest.fixture(scope="module")
def cast(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cast]:
    managed = "managed", *user_of_all(*SERVICES)
    cluster = ValkeyCluster(tmp_path_factory.mktemp("cluster"), NODE_TIMEOUT_MS, "--user", *managed)
    stack: Stack | None = None
    try:
        cluster.start()
        url = cluster.url.replace("://", "://managed:hush@")
        stack = Stack(tmp_path_factory.mktemp("stack") / "data", "--redis-url", url)
        yield Cast(stack, cluster)
    finally:
        if stack is not None:
            stack.stop()
        cluster.stop()


def test_tenants_of_every_primary_are_served_limited_and_charged_once(cast: Cast) -> None:
    everybody = [one for member in cast.cluster.primaries for one in cast.tenants_of(member, 2)]
    few = [one for member in cast.cluster.primaries for one in cast.tenants_of(member, 1, total=2 * TOKENS)]
    with ThreadPoolExecutor(6) as pool:
        assert set(pool.map(cast.call, everybody * 10)) == {200}
    for one in everybody:
        cast.is_exact(one)
    for one in few:
        statuses = [cast.call(one) for _ in range(3)]
        assert statuses[-1] == 429, statuses
        cast.is_exact(one)
    assert cast.stack.chat("tk_nobody_has_this_one").status_code == 401
    status, ready = cast.stack.admin("POST", "/reconciliation")
    assert (status, ready["drift_tokens"], ready["drift_credits"]) == (200, 0, 0), ready


def examined(cast: Cast, role: str, user: str = "") -> list[Finding]:
    """What doctor says of the cluster, as a user of it."""
    url = cast.cluster.url.replace("://", f"://{user}:hush@" if user else "://")
    settings = load({}).with_values(redis_url=url, upstreams=())

    async def look() -> list[Finding]:
        return [one async for one in examine_redis(settings, role)]

    return asyncio.run(look())


def test_doctor_looks_at_each_primary(cast: Cast) -> None:
    members = cast.cluster.primaries
    for one in members:
        one.do("CONFIG SET", "appendonly", "yes")
    found = examined(cast, "all")
    assert [one for one in found if not one.well] == []
    assert "a cluster of 3 primaries" in found[0].says
    for one in members:
        said = [each.says for each in found if each.subject == f"redis 127.0.0.1:{one.port}"]
        assert "maxmemory-policy is noeviction" in said
        assert "cluster-require-full-coverage is no" in said
        assert "a keeper has verified it since its last start" in said
    first = members[0]
    first.do("CONFIG SET", "cluster-require-full-coverage", "yes")
    (wrong,) = [one for one in examined(cast, "all") if not one.well]
    first.do("CONFIG SET", "cluster-require-full-coverage", "no")
    assert wrong.subject == f"redis 127.0.0.1:{first.port}"
    assert "CONFIG SET cluster-require-full-coverage no" in wrong.says


@pytest.mark.parametrize(("role", "user"), [("serve", "tollkeeper-gateway"), ("keeper", "tollkeeper-keeper")])
def test_users_of_ours_may_do_on_a_cluster_what_they_do(cast: Cast, role: str, user: str) -> None:
    lines = (ROOT / "deploy" / "users.acl").read_text().splitlines()
    (rules,) = (line.split()[2:] for line in lines if line.startswith(f"user {user} "))
    for one in cast.cluster.members:
        one.do("CONFIG SET", "appendonly", "yes")
        one.do("ACL SETUSER", user, "reset", *[">hush" if rule[0] == ">" else rule for rule in rules])
    found = examined(cast, role, user)
    assert [one for one in found if not one.well] == []
    said = [one.says for one in found if one.subject.startswith("redis user at ")]
    assert said == [f"{user} may do what a {user.removeprefix('tollkeeper-')} does"] * 3


def test_nothing_is_lost_doubled_or_granted_twice_whatever_becomes_of_a_primary(cast: Cast) -> None:
    cluster = cast.cluster
    first, second, third = ([*cast.tenants_of(member, 1)] for member in cluster.primaries)
    struck, others = first[0], [*second, *third]
    everybody = [struck, *others]
    with cast.calling(everybody):
        wait_until(went_on(everybody))
        # A slot that is moved: its tenant is served too.
        cluster.move(struck.partition, cluster.owner(second[0].partition))
        wait_until(went_on(everybody), RECOVERED_S_MAX)
        assert not any(one.refused for one in others)
        cluster.move(struck.partition, next(one for one in cluster.primaries if _is_other(cast, one, others)))
        wait_until(went_on(everybody), RECOVERED_S_MAX)
        # A primary that stands still, as long as the others take for a while of calls.
        victim = cluster.owner(struck.partition)
        assert victim.process is not None
        os.kill(victim.process.pid, signal.SIGSTOP)
        others_go_on, seen = went_on(others, 30), [ready(cast)]
        try:
            wait_until(lambda: seen.append(ready(cast)) or others_go_on(), RECOVERED_S_MAX)
        finally:
            os.kill(victim.process.pid, signal.SIGCONT)
        assert all(one["counters_verified"] for one in seen), seen
        wait_until(went_on(everybody), RECOVERED_S_MAX)
        wait_until(lambda: ready(cast)["every_partition"], RECOVERED_S_MAX)
        cluster.wait_until_whole()
        # A primary that is killed: its replica takes over.
        victim = cluster.owner(struck.partition)
        victim.stop(signal.SIGKILL)
        wait_until(went_on(others, 30), RECOVERED_S_MAX)
        wait_until(went_on(everybody), RECOVERED_S_MAX)
    assert [one.refused for one in others] == [Counter()] * len(others)
    cluster.mend()
    for one in everybody:
        cast.is_exact(one)


def ready(cast: Cast) -> dict[str, bool]:
    """What the keeper says of what it needs."""
    answer = plain_http.get(f"{cast.stack.admin_url}/readyz", timeout=RECOVERED_S_MAX)
    found: dict[str, bool] = answer.json()["dependencies"]
    return found


def _is_other(cast: Cast, member: Member, tenants: list[Tenant]) -> bool:
    """Whether none of these tenants is on a primary."""
    return all(cast.cluster.owner(one.partition) is not member for one in tenants)
