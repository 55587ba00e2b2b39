"""Tenants who call while servers of Redis are taken apart, and what each of them was charged."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx2 as httpx

from gateway.counters.redis import keys
from gateway.ops.doctor_redis import Finding, examine_redis
from gateway.settings.settings import load
from tests.journey.stack import Stack
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import HUNG_S, wait_until

USAGE, TOKENS = "3,4", 7
CALLERS = 2  # of each tenant, at once


@dataclass
class Tenant:
    """One tenant of an organization of its own, and what became of its calls."""

    id: int
    key: str
    partition: int
    served: list[str] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)


class Cast:
    """A stack and its tenants."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack

    def tenant(self, total: int | None = None) -> Tenant:
        """A new tenant, with an organization of its own."""
        stack, name = self.stack, f"cluster {time.monotonic_ns()}"
        plan = stack.make("token-plans", name=name, total_amount=total)
        organization = stack.make("organizations", name=name)["id"]
        tenant = stack.make("tenants", name=name, organization_id=organization, plan_id=plan["id"])["id"]
        key = stack.make("api-keys", tenant_id=tenant)["key"]
        return Tenant(tenant, key, keys.partition_of(organization))

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

    def serves(self, everybody: list[Tenant], few: list[Tenant]) -> None:
        """Assert that all are served and charged once, and those with tokens of two calls no third time."""
        with ThreadPoolExecutor(6) as pool:
            assert set(pool.map(self.call, everybody * 5)) == {200}
        for one in few:
            statuses = [self.call(one) for _ in range(3)]
            assert statuses[-1] == 429, statuses
        for one in (*everybody, *few):
            self.is_exact(one)
        status, ready = self.stack.admin("POST", "/reconciliation")
        assert (status, ready["drift_tokens"], ready["drift_credits"]) == (200, 0, 0), ready

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
        wait_until(lambda: len(self.charged(tenant)) >= len(expected), HUNG_S)
        assert sorted(self.charged(tenant)) == expected

        def agrees() -> bool:
            status, quota = self.stack.admin("GET", f"/tenant-quotas/{tenant.id}")
            return status == 200 and (quota["tokens_used"], quota["tokens_held"]) == (
                TOKENS * len(expected),
                0,
            )

        wait_until(agrees, HUNG_S)


def examined(url: str, role: str = "all") -> list[Finding]:
    """What doctor says of the servers at a URL."""

    async def look() -> list[Finding]:
        settings = load({}).with_values(redis_url=url, upstreams=())
        return [one async for one in examine_redis(settings, role)]

    return asyncio.run(look())


class ClusterCast(Cast):
    """The same, whose Redis is a cluster."""

    def __init__(self, stack: Stack, cluster: ValkeyCluster) -> None:
        super().__init__(stack)
        self.cluster = cluster

    def tenants_of(self, member: Member, count: int, total: int | None = None) -> list[Tenant]:
        """So many whose organizations a primary has."""
        found: list[Tenant] = []
        while len(found) < count:
            made = self.tenant(total)
            if self.cluster.owner(made.partition) is member:
                found.append(made)
        return found


def went_on(tenants: list[Tenant], count: int = 10) -> Callable[[], bool]:
    """Whether each of them was served so many times more."""
    before = [len(one.served) for one in tenants]
    return lambda: all(len(one.served) - old >= count for one, old in zip(tenants, before, strict=True))
