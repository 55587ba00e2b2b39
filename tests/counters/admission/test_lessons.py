"""What one worker learned of calls' use, a worker that never saw any begins with."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import suppress

import msgspec
import pytest

from gateway.core.calls.call import Body, CallRequest, CallSpec
from gateway.core.calls.estimate import LESSONS_MAX, Estimator
from gateway.core.model import Family, TokenUsage
from gateway.counters.admission.lessons import SHARE_MAX, SharedLessons
from gateway.counters.redis import keys
from tests.builders import World
from tests.counters.conftest import Connect
from tests.waiting import eventually


def call(model: str = "m") -> CallRequest:
    return CallRequest("openai_chat", Family("openai"), Body(), CallSpec(model), input_bytes=300)


def teach(estimator: Estimator, model: str = "m") -> None:
    for _ in range(64):
        used = TokenUsage(100, 3_000, total=3_100, reported=True)
        estimator.learn(call(model), 1, "chat", used, 0.2, key_id=7)


def need(estimator: Estimator, model: str = "m") -> int:
    return estimator.hold(call(model), 1, "chat", 7).need


async def test_others_hear_of_it_at_once_and_one_that_starts_later_reads_it(
    world: World, connect: Connect
) -> None:
    teacher, pupil, later = Estimator(), Estimator(), Estimator()
    sharing = [
        asyncio.create_task(SharedLessons(await connect(world.url), one).keep_sharing(0.01))
        for one in (teacher, pupil)
    ]
    try:
        teach(teacher)
        await eventually(lambda: need(pupil) == need(teacher) == 100 + 3_000)
        teach(pupil, "other")
        await eventually(lambda: need(teacher, "other") == 100 + 3_000)
        assert 0 < world.client.pttl(keys.LESSONS) <= 3_600_000
        await SharedLessons(await connect(world.url), later).share()
        assert [need(later, model) for model in ("m", "other")] == [3_100, 3_100]
    finally:
        for task in sharing:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


async def test_the_key_keeps_the_newest_within_its_bound_and_the_share_of_each_organization(
    world: World, connect: Connect
) -> None:
    """One that makes up names pushes nobody else's lessons out; nor do names that are long."""
    wires = await connect(world.url)
    long = Estimator()
    teach(long, "\U0001f600" * 240)
    await SharedLessons(wires, long).share()
    assert world.client.get(keys.LESSONS) == b"[]"
    for organization_id in (2, 3, 4, 5, 2):
        estimator = Estimator(share=4 * LESSONS_MAX)
        for number in range(LESSONS_MAX + 10):
            used = TokenUsage(100, 3_000, total=3_100, reported=True)
            estimator.learn(call(f"{number}"), organization_id, "chat", used, 0.2, key_id=7)
        await SharedLessons(wires, estimator).share()
    stored = msgspec.json.decode(world.client.get(keys.LESSONS))
    assert Counter(organization_id for organization_id, *_ in stored) == dict.fromkeys(range(2, 6), SHARE_MAX)
    assert {model for organization_id, _, _, model, *_ in stored if organization_id == 5} == {
        f"{number}" for number in range(LESSONS_MAX - SHARE_MAX, LESSONS_MAX)
    }


@pytest.mark.parametrize("raw", [b"[", b"[[1]]", b'[[1,7,"chat","m",false,-1,0.5,1,1]]', b"\xff"])
async def test_what_no_worker_wrote_teaches_nothing(world: World, connect: Connect, raw: bytes) -> None:
    world.client.set(keys.LESSONS, raw)
    estimator = Estimator()
    await SharedLessons(await connect(world.url), estimator).share()
    assert need(estimator) == need(Estimator())
    assert world.client.get(keys.LESSONS) == raw
