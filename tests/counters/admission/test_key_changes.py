"""What was read holds until a change of it is told, whichever comes first."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis

from gateway.core.wait import in_task
from gateway.counters.admission.key_changes import HEARD, NEVER, Changes
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable
from tests.builders import driven
from tests.waiting import eventually

NAME = keys.TERMS + b"1"


@pytest.fixture
async def wire(valkey: str) -> AsyncIterator[RedisConnection]:
    made = RedisConnection(parse_url(valkey), time.monotonic, hears=(keys.TERMS,))
    await made.open()
    yield made
    await made.close()


@pytest.fixture
def told() -> list[bytes]:
    return []


@pytest.fixture
def changes(wire: RedisConnection, told: list[bytes]) -> Changes:
    return Changes(wire, told.append)


async def test_what_is_read_holds_as_long_as_nothing_else_is_heard(
    wire: RedisConnection, changes: Changes, told: list[bytes], valkey: str
) -> None:
    client = redis.Redis.from_url(valkey)
    client.set(NAME, b"one")
    await eventually(lambda: told == [NAME])
    assert await driven(changes.read(NAME).answer()) == (b"one", wire.hearing.since)
    client.set(keys.IDENTITIES + b"1", b"of no prefix that is heard")
    client.set(NAME, b"two")
    await eventually(lambda: len(told) > 1)
    assert told == [NAME, NAME]
    assert changes.hold_until(wire.hearing.since, 0.8) == wire.heard_at + 0.8
    assert changes.hold_until(NEVER, 0.8) == changes.hold_until(wire.hearing.since + 1, 0.8) == 0


async def test_what_changes_between_question_and_use_does_not_hold(
    wire: RedisConnection, changes: Changes, told: list[bytes], valkey: str
) -> None:
    reading = changes.read(NAME)
    await in_task(wire.send(encode(b"ECHO", b"answered")))
    redis.Redis.from_url(valkey).set(NAME, b"late")
    await eventually(lambda: told == [NAME])
    assert await driven(reading.answer()) == (None, NEVER)


async def test_of_two_readings_both_hold_unless_a_change_is_told_between(
    wire: RedisConnection, changes: Changes, told: list[bytes], valkey: str
) -> None:
    first, second = changes.read(NAME), changes.read(NAME)
    assert await driven(first.answer()) == (None, wire.hearing.since)
    assert await driven(second.answer()) == (None, wire.hearing.since)
    early = changes.read(NAME)
    await in_task(wire.send(encode(b"ECHO", b"answered")))
    redis.Redis.from_url(valkey).set(NAME, b"late")
    await eventually(lambda: told == [NAME])
    late = changes.read(NAME)
    assert await driven(late.answer()) == (b"late", wire.hearing.since)
    assert await driven(early.answer()) == (None, NEVER)
    assert (early.told, late.told) == (True, False)
    assert not changes._reading


async def test_what_is_asked_in_vain_leaves_nothing(changes: Changes) -> None:
    reading = changes.read(NAME)
    reading.leave()
    reading.leave()
    assert not changes._reading


async def test_a_question_without_an_answer_leaves_nothing(wire: RedisConnection, changes: Changes) -> None:
    await wire.close()
    with pytest.raises(CountersUnavailable):
        await driven(changes.read(NAME).answer())
    assert not changes._reading


async def test_other_prices_and_another_catalogue_are_heard_at_once(valkey: str) -> None:
    wire = RedisConnection(parse_url(valkey), time.monotonic, hears=HEARD)
    await wire.open()
    changes, client = Changes(wire, lambda _: None), redis.Redis.from_url(valkey)
    for name in (keys.PRICES, keys.PRICES_HEAD, keys.CATALOGUE):
        waiting = asyncio.create_task(changes.others(within_s=3600.0))
        client.set(keys.organization_terms(1), b"of one organization")
        client.set(name, b"other")
        await asyncio.wait_for(waiting, 10)
    await changes.others(within_s=0.001)  # nothing is told: it is looked all the same
    client.set(keys.PRICES, b"while nobody waits")
    await in_task(wire.send(encode(b"ECHO", b"here")))
    await asyncio.wait_for(changes.others(within_s=3600.0), 10)
    await wire.close()


def test_a_wire_hears_all_that_is_read_and_nothing_that_calls_or_reports_write() -> None:
    read = keys.identity("0" * 64), keys.organization_terms(1), keys.CATALOGUE, keys.PRICES, keys.COOLING
    assert all(
        name.encode().startswith(HEARD) for name in (*read, keys.marked(1), keys.LESSONS, "tk:verified:{p00}")
    )
    states = keys.marker(1), keys.hold(1, "x"), keys.deadlines(1)
    written = *states, "tk:programs", "tk:pulses:{p00}", "tk:busy:1", "tk:keepers", "tk:refused"
    assert not any(name.encode().startswith(HEARD) for name in written)
