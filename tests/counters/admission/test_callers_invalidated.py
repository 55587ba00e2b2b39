"""Identities and terms while Redis tells what changes: not read again, and never older than what was told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
import redis

from gateway.core.wait import in_task
from gateway.counters.admission.cache import CacheLimits
from gateway.counters.admission.callers import IDENTITY_S, Directory
from gateway.counters.admission.key_changes import HEARD
from gateway.counters.admission.stored import encode_catalogue, encode_identity
from gateway.counters.leases.allowance import Allowances
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import InvalidApiKey
from tests.builders import CREDITS, driven
from tests.counters.admission.test_callers_cached import CALLER, DIGEST, ONE, Clock, Desk, negotiate
from tests.waiting import eventually


@pytest.fixture
async def hearing(valkey: str) -> AsyncIterator[Desk]:
    """A desk that is told what changes; all its time passes when told."""
    clock = Clock()
    wire = RedisConnection(parse_url(valkey), clock, hears=HEARD)
    desk = Desk(Directory(wire, clock), wire, clock, redis.Redis.from_url(valkey))
    await wire.open()
    desk.know()
    desk.verify()
    await later(desk, 0.0)
    yield desk
    await wire.close()


async def later(desk: Desk, seconds: float = IDENTITY_S + 0.001) -> None:
    """Time passes, and Redis has just answered something."""
    desk.clock.now += seconds
    await in_task(desk.wire.send(encode(b"ECHO", b"here")))


def reads(desk: Desk, verb: str = "get") -> int:
    found: int = desk.client.info("commandstats").get(f"cmdstat_{verb}", {"calls": 0})["calls"]
    return found


async def test_who_did_not_change_is_not_read_again(hearing: Desk) -> None:
    known = await hearing.identify()
    before = reads(hearing)
    for _ in range(20):
        await later(hearing)
        assert hearing.directory.cached(DIGEST) is known
    assert reads(hearing) == before


async def test_a_key_that_is_revoked_is_unknown_at_once(hearing: Desk) -> None:
    await hearing.identify()
    hearing.client.delete(keys.identity(DIGEST))
    await later(hearing, 0.001)
    with pytest.raises(InvalidApiKey):
        await hearing.identify()


async def test_a_key_that_is_new_is_known_at_once(hearing: Desk) -> None:
    hearing.client.delete(keys.identity(DIGEST))
    with pytest.raises(InvalidApiKey):
        await hearing.identify()
    hearing.know()
    await later(hearing, 0.001)
    assert await hearing.identify() == CALLER


async def test_terms_that_change_are_read_with_whoever_asks_next(hearing: Desk) -> None:
    hearing.client.set(keys.CATALOGUE, encode_catalogue(1, [CREDITS]))
    await driven(hearing.directory.refresh())
    other = "e" * 64
    hearing.client.set(keys.identity(other), encode_identity(replace(CALLER, key_id=4)))
    for digest in (DIGEST, other):
        await hearing.identify(digest)
    negotiate(hearing, 5)
    await later(hearing)
    for digest in (DIGEST, other):
        assert hearing.directory.cached(digest) is None or digest == other
        found = hearing.directory.resolve(await hearing.identify(digest), "images")
        assert found is not None
        assert found.credits == 5
    before = reads(hearing)
    await later(hearing)
    assert hearing.directory.cached(DIGEST) is not None
    assert hearing.directory.cached(other) is not None
    assert reads(hearing) == before


async def test_a_key_expires_by_the_clock_whatever_is_told(hearing: Desk) -> None:
    now = [1_000.0]
    hearing.directory = Directory(hearing.wire, hearing.clock, lambda: now[0])
    hearing.client.set(keys.identity(DIGEST), encode_identity(CALLER, 1_060_000))
    await later(hearing, 0.0)
    await hearing.identify()
    now[0] += 59
    await later(hearing)
    assert hearing.directory.cached(DIGEST) == CALLER
    now[0] += 1
    await later(hearing)
    assert hearing.directory.cached(DIGEST) is None


async def test_nobody_is_renewed_by_a_redis_that_is_silent(hearing: Desk) -> None:
    await hearing.identify()
    hearing.clock.now += IDENTITY_S + 0.001
    assert hearing.directory.cached(DIGEST) is None
    await later(hearing, 0.0)
    assert hearing.directory.cached(DIGEST) == CALLER
    hearing.wire.available = False
    hearing.clock.now += IDENTITY_S / 2
    hearing.wire.heard_at = hearing.clock.now
    hearing.clock.now += IDENTITY_S * 0.9
    assert hearing.directory.cached(DIGEST) is None


async def test_another_connection_knows_nothing_of_what_changed_before(hearing: Desk) -> None:
    await hearing.identify()
    heard = hearing.wire.hearing.since
    hearing.client.client_kill_filter(_type="normal", skipme=True)
    await eventually(lambda: hearing.wire.hearing.since > heard)
    await later(hearing)
    assert hearing.directory.cached(DIGEST) is None
    assert await hearing.identify() == CALLER


async def test_data_that_is_emptied_or_replaced_is_read_anew(hearing: Desk) -> None:
    await hearing.identify()
    hearing.client.flushall()
    await later(hearing)
    assert hearing.directory.cached(DIGEST) is None
    hearing.know()
    await hearing.identify()
    hearing.wire.hearing.again()
    await later(hearing)
    assert hearing.directory.cached(DIGEST) is None


async def test_whoever_is_renewed_is_seen_and_stays(valkey: str) -> None:
    clock = Clock()
    wire, leases = RedisConnection(parse_url(valkey), clock, hears=HEARD), Allowances(clock)
    directory = Directory(wire, clock, allowances=leases, bounds=CacheLimits(known_bytes_max=2 * ONE))
    desk = Desk(directory, wire, clock, redis.Redis.from_url(valkey))
    await wire.open()
    others = [f"{n:064d}" for n in range(3)]
    for digest in (DIGEST, *others):
        desk.client.set(keys.identity(digest), encode_identity(CALLER))
    await later(desk, 0.0)
    leases.wanted(CALLER)
    for digest in others:
        await desk.identify()
        await desk.identify(digest)
        await later(desk)
        assert desk.directory.cached(DIGEST) == CALLER
        assert leases.all()[0].seen == clock.now
    await wire.close()


async def test_where_nothing_may_be_told_all_is_read_as_before(valkey: str) -> None:
    client = redis.Redis.from_url(valkey)
    client.acl_setuser("deaf", enabled=True, nopass=True, keys="*", commands=["+@all", "-client|tracking"])
    clock = Clock()
    wire = RedisConnection(parse_url(valkey.replace("redis://", "redis://deaf:any@")), clock, hears=HEARD)
    desk = Desk(Directory(wire, clock), wire, clock, client)
    await wire.open()
    desk.know()
    assert wire.hearing.since == 0
    assert await desk.identify() == CALLER
    await later(desk)
    assert desk.directory.cached(DIGEST) is None
    assert await desk.identify() == CALLER
    await wire.close()
    client.acl_deluser("deaf")


async def test_terms_that_hold_are_read_for_no_newcomer(hearing: Desk) -> None:
    """They may be of a thousand budgets, 160 KB."""
    hearing.client.set(keys.CATALOGUE, encode_catalogue(1, [CREDITS]))
    await driven(hearing.directory.refresh())
    negotiate(hearing, 5)
    await hearing.identify()
    for number, (credits_, asked) in enumerate([(5, 1), (5, 1), (6, 2), (6, 1)]):
        digest = f"{number}" * 64
        hearing.client.set(keys.identity(digest), encode_identity(replace(CALLER, key_id=10 + number)))
        if (number, credits_) == (2, 6):
            negotiate(hearing, 6)
        await later(hearing, 0.001)
        before = reads(hearing)
        caller = await hearing.identify(digest)
        assert reads(hearing) == before + asked
        found = hearing.directory.resolve(caller, "images")
        assert found is not None
        assert found.credits == credits_
