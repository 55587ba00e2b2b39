"""Who calls and what is served where Redis is a cluster: each is asked of the primary that has it."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest

from gateway.core.model import Caller
from gateway.core.wait import in_task
from gateway.counters.admission.cache import HEARD
from gateway.counters.admission.callers import AGAIN_S, IDENTITY_S, Directory
from gateway.counters.admission.stored import encode_catalogue, encode_identity
from gateway.counters.redis import keys
from gateway.counters.redis.address import Address
from gateway.counters.redis.cluster import Shards
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable, InvalidApiKey
from tests.builders import CHAT, CREDITS, driven
from tests.valkey_cluster import Member, ValkeyCluster
from tests.waiting import eventually

ORGANIZATION = 1


class Clock:
    """Goes on as it is told, so that nothing is fresh that should not be."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Desk:
    """A worker's directory over all primaries."""

    def __init__(self, cluster: ValkeyCluster) -> None:
        self.cluster, self.clock = cluster, Clock()
        members = tuple(("127.0.0.1", one.port) for one in cluster.members)
        self.shards = Shards(
            Address("", 0, members=members), lambda where: RedisConnection(where, self.clock, hears=HEARD)
        )
        self.directory = Directory(self.shards, self.clock)
        self.caller = Caller(ORGANIZATION, 7, 3, keys.partition_of(ORGANIZATION))

    @property
    def home(self) -> Member:
        """The primary of the organization."""
        return self.cluster.owner(self.caller.partition)

    def digest_at(self, member: Member, number: int = 0) -> str:
        """A credential's digest whose identity stands there."""
        mine = self.cluster.partitions_of(member)
        made = (sha256(b"%d %d" % (number, n)).hexdigest() for n in range(10_000))
        return next(one for one in made if keys.partition_of_digest(one) in mine)

    def introduce(self, digest: str) -> None:
        """Write whom a credential stands for."""
        owner = self.cluster.owner(keys.partition_of_digest(digest))
        owner.client.set(keys.identity(digest), encode_identity(self.caller))

    async def hear(self) -> None:
        """Be told all that changed until now: that comes with the next answer."""
        for wire in self.shards.wires:
            assert await in_task(wire.send(encode(b"PING"))) == b"PONG"

    def vouch(self) -> None:
        """Every primary is verified."""
        for wire in self.shards.wires:
            owner = self.cluster.owner(wire.part.anchor)
            owner.client.set(keys.verified(wire.part.anchor), wire.run_id)


@pytest.fixture
async def desk(cluster: ValkeyCluster) -> AsyncIterator[Desk]:
    made = Desk(cluster)
    await made.shards.open()
    assert await made.shards.connected_within(10)
    yield made
    await made.shards.close()


def elsewhere(desk: Desk) -> Member:
    """A primary that does not have the organization."""
    return next(one for one in desk.cluster.primaries if one is not desk.home)


async def test_an_identity_and_its_terms_may_stand_on_two_servers(desk: Desk) -> None:
    digest = desk.digest_at(elsewhere(desk))
    desk.introduce(digest)
    await desk.hear()
    assert await driven(desk.directory.identify(digest)) == desk.caller
    for _ in range(3):  # nothing of it is read again, while both tell that nothing changed
        desk.clock.ahead += IDENTITY_S * 2 / 3
        await desk.hear()
        assert desk.directory.cached(digest) == desk.caller
    desk.vouch()
    elsewhere_ = desk.cluster.owner(keys.partition_of_digest(digest))
    elsewhere_.client.delete(keys.identity(digest))

    async def is_gone() -> bool:
        desk.clock.ahead += IDENTITY_S
        try:
            await driven(desk.directory.identify(digest))
        except InvalidApiKey:
            return True
        return False

    await eventually(is_gone)


async def test_those_of_several_servers_are_read_again_together(desk: Desk) -> None:
    digests = [desk.digest_at(one) for one in desk.cluster.primaries]
    for digest in digests:
        desk.introduce(digest)
    await desk.hear()
    for digest in digests:
        assert await driven(desk.directory.identify(digest)) == desk.caller
    for wire in desk.shards.wires:
        wire.hearing.listeners = []  # servers that forget to tell
    gone = desk.cluster.owner(keys.partition_of_digest(digests[0]))
    gone.client.delete(keys.identity(digests[0]))
    desk.vouch()
    desk.clock.ahead += AGAIN_S + 1
    await desk.hear()
    assert [desk.directory.cached(digest) for digest in digests] == [desk.caller] * len(digests)
    task = desk.directory._rereading.task
    assert task is not None
    await asyncio.wait_for(task, 30)
    await desk.hear()
    found = [desk.directory.cached(digest) for digest in digests]
    assert found == [None, *[desk.caller] * (len(digests) - 1)]


async def test_who_was_known_stays_known_while_another_server_than_its_own_is_away(desk: Desk) -> None:
    away = elsewhere(desk)
    known, unknown = desk.digest_at(away), desk.digest_at(away, 1)
    desk.introduce(known)
    desk.introduce(unknown)
    assert await driven(desk.directory.identify(known)) == desk.caller
    lost = desk.shards.of(desk.cluster.partitions_of(away)[0])
    for one in desk.cluster.members:  # whoever could take over first
        if one is not away and one.client.info("replication").get("master_port") == away.port:
            one.stop(signal.SIGKILL)
    away.stop(signal.SIGKILL)
    await eventually(lambda: not lost.available)
    desk.clock.ahead += 3600.0
    assert await driven(desk.directory.identify(known)) == desk.caller
    with pytest.raises(CountersUnavailable):
        await driven(desk.directory.identify(unknown))


async def test_an_older_catalogue_counts_where_it_is_verified_alone(desk: Desk) -> None:
    """The replica of its primary may lack the latest, and then everybody's calls would be stale."""
    name = keys.CATALOGUE.encode()
    owner = next(
        one for one in desk.cluster.primaries
        if desk.shards.of_key(name) in {desk.shards.of(p) for p in desk.cluster.partitions_of(one)}
    )  # fmt: skip
    owner.client.set(name, encode_catalogue(8, [CHAT, CREDITS]))
    await driven(desk.directory.refresh())
    owner.client.set(name, encode_catalogue(7, [CHAT]))
    for look in (desk.directory._read_catalogue(), driven(desk.directory.refresh())):
        await look
        assert desk.directory.version == 8
    desk.vouch()
    await desk.directory._read_catalogue()
    assert (desk.directory.version, list(desk.directory.catalogue())) == (7, [CHAT.key])
