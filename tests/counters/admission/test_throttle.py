"""The bucket of what a key asks of its own usage: exact over workers, and cheap to refuse."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest

from gateway.counters.admission.throttle import Throttle
from gateway.counters.admission.usage import Usages
from gateway.errors import RateLimited
from tests.builders import World, driven
from tests.counters.conftest import Connect


class Clock:
    """Seconds that pass when told."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def until_refused(ask: Callable[[int], Coroutine[Any, Any, object]]) -> int:
    """How often one may ask before it is refused."""
    for n in range(200):
        try:
            await driven(ask(n))
        except RateLimited as refusal:
            if refusal.scope != "key":
                raise
            return n
    raise AssertionError("it is never refused")


def calls(world: World) -> int:
    """Scripts that ran in this server so far."""
    stats = world.client.info("commandstats")
    return int(stats.get("cmdstat_fcall", {}).get("calls", 0))  # type: ignore[union-attr] # a client that does not wait


async def test_throttle_shares_bucket_of_key_between_workers(connect: Connect, world: World) -> None:
    workers = [Throttle(await connect(world.url), Clock()) for _ in range(2)]
    assert 60 <= await until_refused(lambda n: workers[n % 2].admit(world.caller)) < 100
    await driven(workers[0].admit(replace(world.caller, key_id=99)))


async def test_throttle_refuses_again_without_redis(connect: Connect, world: World) -> None:
    clock = Clock()
    one = Throttle(await connect(world.url), clock, a_minute=1)
    await driven(one.admit(world.caller))
    with pytest.raises(RateLimited) as first:
        await driven(one.admit(world.caller))
    assert first.value.retry_after_s is not None
    assert 50 < first.value.retry_after_s <= 60
    assert first.value.retry_helps is True
    before = calls(world)
    for _ in range(50):
        with pytest.raises(RateLimited):
            await driven(one.admit(world.caller))
    assert calls(world) == before
    clock.now += 61
    with pytest.raises(RateLimited):
        await driven(one.admit(world.caller))
    assert calls(world) == before + 1


async def test_throttle_remembers_refused_keys_within_bounds(connect: Connect, world: World) -> None:
    one = Throttle(await connect(world.url), Clock(), a_minute=1, waiting_max=3)
    for key_id in range(50, 60):
        caller = replace(world.caller, key_id=key_id)
        await driven(one.admit(caller))
        with pytest.raises(RateLimited):
            await driven(one.admit(caller))
    assert len(one._waiting) == 3


async def test_usage_of_blocked_tenant_is_throttled(connect: Connect, world: World) -> None:
    world.put_tenant(flags=1)
    usages = Usages(await connect(world.url), Clock())
    assert b'"is_blocked":true' in await driven(usages.usage_of(world.caller))
    assert await until_refused(lambda n: usages.usage_of(world.caller)) >= 59
