"""A deployment whose Redis is a cluster: three primaries and a replica of each, behind proxies of their own.

Everybody goes to a server by what it announces, which are its proxies: clients, replicas and the bus of the
cluster. Each server goes to others from an address of its own, so a proxy knows who comes.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

import redis

from gateway.counters.redis.keys import partition_of
from tests.faults.proxy import Proxy
from tests.faults.world import Node, World
from tests.valkey_cluster import Member, ValkeyCluster

# The first address that members go out from; the next ones follow it.
FIRST_HOST = 11
# Members hear of each other by proxies of this process: a busy machine must not make them miss each other.
NODE_TIMEOUT_MS = 5_000
# As whom all keepers but the first come: servers may tell that one less.
SECOND, PASSWORD = "second", "password-of-the-second"
SECOND_OPTIONS = ("--user", SECOND, "on", f">{PASSWORD}", "~*", "&*", "+@all")


class ClusteredWorld(World):
    """A world with a cluster in place of the one Redis."""

    def __init__(self, seed: int, *, gateways: int = 2, keepers: int = 1, **settings: Any) -> None:
        super().__init__(seed, gateways=gateways, keepers=keepers, **settings)
        folder = self.folder / "cluster"
        folder.mkdir()
        self.cluster = ValkeyCluster(folder, NODE_TIMEOUT_MS, *SECOND_OPTIONS)
        self._login = ""
        # By member, in their order: where clients and replicas find it, and where the bus does.
        self.doors = [Proxy(one.port) for one in self.cluster.members]
        self.buses = [Proxy(one.bus) for one in self.cluster.members]

    async def start_redis(self) -> None:
        """Start six servers and make them one cluster."""
        for number, one in enumerate(self.cluster.members):
            await self.doors[number].start()
            await self.buses[number].start()
            one.announce(self.doors[number].port, self.buses[number].port, _host(number))
        await asyncio.to_thread(self.cluster.start)

    def stop_redis(self) -> None:
        """End them."""
        self.cluster.stop()

    def redis_address(self, link: Proxy) -> str:
        """All members, as they announce themselves; the node's own proxy is not used."""
        return self.cluster.url.replace("://", f"://{self._login}")

    async def add_keeper(self, **environment: str) -> Node:
        """Start one more keeper; the second one logs in as somebody else."""
        self._login = f"{SECOND}:{PASSWORD}@" if self.keepers else ""
        try:
            return await super().add_keeper(**environment)
        finally:
            self._login = ""

    def links(self) -> list[Proxy]:
        """Every proxy there is."""
        return [*super().links(), *self.doors, *self.buses]

    def counters(self) -> redis.Redis:
        """A client of all of it, in the words of a client of one."""
        living = [one for one in self.cluster.members if one.lives]
        nodes = [redis.cluster.ClusterNode("127.0.0.1", one.announced) for one in living]
        return cast("redis.Redis", redis.RedisCluster(startup_nodes=nodes, socket_timeout=10))

    # --- who has whom ----------------------------------------------------------------------

    def primary_of(self, organization: int) -> Member:
        """The server that has an organization now."""
        return self.cluster.owner(partition_of(organization))

    def replica_of(self, primary: Member) -> Member:
        """Its replica."""
        return self.cluster.replica_of(primary)

    # --- parting -----------------------------------------------------------------------------

    def part_replica(self, primary: Member, replica: Member) -> None:
        """Let nothing pass from a primary to its replica; the bus and everybody else's go on."""
        self.doors[self._number(primary)].hold_back(_host(self._number(replica)))

    def part(self, lonely: Member) -> None:
        """Let nothing pass between one server and all others; clients reach it still."""
        number = self._number(lonely)
        others = [_host(one) for one in range(len(self.cluster.members)) if one != number]
        self.buses[number].hold_back(*others)
        self.doors[number].hold_back(*others)
        for one in range(len(self.cluster.members)):
            if one != number:
                self.buses[one].hold_back(_host(number))
                self.doors[one].hold_back(_host(number))

    def heal(self) -> None:
        """Let everything pass again."""
        for one in (*self.doors, *self.buses):
            one.let_go()

    # --- who is told of it ------------------------------------------------------------------

    def mislead(self, *tell: Member) -> None:
        """Have the second keeper told by these alone who has which slots: by nobody, where there are none."""
        for one in self.cluster.members:
            if one.lives:
                one.do("ACL SETUSER", SECOND, "+cluster" if one in tell else "-cluster")

    def _number(self, member: Member) -> int:
        return self.cluster.members.index(member)


def _host(number: int) -> str:
    return f"127.0.0.{FIRST_HOST + number}"
