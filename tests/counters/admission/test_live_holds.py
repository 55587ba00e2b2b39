"""Holds of running calls, which are renewed and raised over a real wire to a real server."""

from __future__ import annotations

from typing import Any

from gateway.core.billing.price_book import TokenRate
from gateway.core.model import HoldExtension
from gateway.counters.admission.live_holds import EXTEND_BATCH_MAX, EXTEND_MARGIN_TOKENS
from tests.builders import BY_TOKEN, World, new_id
from tests.counters.admission.hired_worker import Hire, hire
from tests.waiting import eventually

__all__ = ["hire"]


def milliseconds(told: tuple[int, int]) -> int:
    """What Redis says of the time, as its scripts go by it."""
    return told[0] * 1000 + told[1] // 1000


async def test_extend_renews_watched_calls_alone(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(1000)
    request, other = worker.request(10), worker.request(10)
    await worker.reserve(request)
    await worker.reserve(other)
    observed = HoldExtension(world.caller, request.request_id, held=10, tokens=50)
    gone = HoldExtension(world.caller, new_id(), held=3)
    worker.counters.watch(observed)
    worker.counters.watch(gone)
    before, began = world.deadlines(), world.client.time()
    await eventually(lambda: milliseconds(world.client.time()) > milliseconds(began))
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (50 + EXTEND_MARGIN_TOKENS, False)
    assert (gone.held, gone.exhausted) == (3, False)
    after = world.deadlines()
    assert after[request.request_id] > before[request.request_id]
    assert after[other.request_id] == before[other.request_id]
    assert worker.counters.live == 2
    worker.counters.unwatch(observed)
    worker.counters.unwatch(gone)
    assert worker.counters.live == 0


async def test_extend_holds_at_most_the_maximum_of_call(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(1000)
    world.grant("credits", 1000)
    rate = TokenRate(read=10, input=10**15, output=2 * 10**15)
    call = world.reserve(service=BY_TOKEN, credits_=30)
    priced = HoldExtension(world.caller, call.id, held=20, tokens=15, counts=False, rate=rate, most=20)
    request = worker.request(10)
    await worker.reserve(request)
    counted = HoldExtension(world.caller, request.request_id, held=10, tokens=9, most=12)
    for observed in (priced, counted):
        worker.counters.watch(observed)
        await worker.counters.extend_all()
    assert (priced.held, priced.exhausted, world.organization.credits_held) == (20, False, 30)
    assert (counted.held, counted.exhausted, world.tenant.held) == (12, False, 12)
    counted.tokens = 40  # its upstream does not keep to the maximum: 256 more are held ahead again
    await worker.counters.extend_all()
    assert (counted.held, world.tenant.held) == (40 + 256, 40 + 256)


async def test_extend_holds_credits_by_tokens(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.grant("credits", 1000)
    call = world.reserve(service=BY_TOKEN, credits_=30)
    rate = TokenRate(read=10, input=10**15, output=2 * 10**15)
    observed = HoldExtension(world.caller, call.id, held=20, tokens=50, counts=False, rate=rate)
    worker.counters.watch(observed)
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (50 + EXTEND_MARGIN_TOKENS, False)
    assert world.organization.credits_held == 10 + 2 * (40 + EXTEND_MARGIN_TOKENS)
    observed.tokens = 500
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (10 + 990 // 2, True)


async def test_extend_batches_watched_calls(world: World, hire: Hire) -> None:
    worker = await hire(world)
    world.plan(10**6)
    count = EXTEND_BATCH_MAX * 2 + 1
    for _ in range(count):
        request = worker.request(1)
        await worker.reserve(request)
        worker.counters.watch(HoldExtension(world.caller, request.request_id, held=1, tokens=9))
    await worker.counters.extend_all()
    assert worker.took.count("extend") == 3
    assert world.tenant.held == count * (9 + EXTEND_MARGIN_TOKENS)


async def test_extend_keeps_holds_without_redis(own_valkey: Any, hire: Hire) -> None:
    server = own_valkey()
    world = World(server.url)
    worker = await hire(world)
    observed = HoldExtension(world.caller, new_id(), held=10, tokens=50)
    worker.counters.watch(observed)
    server.stop()
    await worker.counters.extend_all()
    assert (observed.held, observed.exhausted) == (10, False)
