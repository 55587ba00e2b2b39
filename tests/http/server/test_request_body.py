"""What is here of a body: who waits for it, for how long, and whose share it counts in."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.http_limits import HttpLimits
from gateway.http.server.buffers import Buffers
from gateway.http.server.exchange import RequestBody
from tests.http.fakes import CALLER
from tests.waiting import eventually

LIMITS = HttpLimits(buffered_bytes_max=1280, body_bytes_max=100)


@pytest.fixture
def buffers() -> Buffers:
    return Buffers(LIMITS)


@pytest.fixture
def body(buffers: Buffers) -> RequestBody:
    return RequestBody(buffers)


def arrive(body: RequestBody, part: bytes) -> bool:
    body.size += len(part)
    body.add(part)
    return body.afford()


def test_what_is_waited_for_counts_once_with_what_was_here(body: RequestBody, buffers: Buffers) -> None:
    body.size = 3
    body.add(b"abc")
    assert buffers.used == 0
    wait = body.arrival(CALLER, 100)
    assert body.afford()
    assert arrive(body, b"de")
    assert (body.take_parts(), body.take_parts(), buffers.used, wait.done) == (b"abcde", b"", 5, False)
    body.wake()
    assert wait.done
    body.stop_counting()
    body.stop_counting()
    assert buffers.used == 0


def test_a_caller_whose_share_is_used_up_may_keep_no_more(body: RequestBody, buffers: Buffers) -> None:
    buffers.add(replace(CALLER, key_id=9), 315)
    body.arrival(CALLER, 100)
    assert arrive(body, b"12345")
    assert not arrive(body, b"6")
    assert buffers.used == 320


def test_bytes_of_nobody_known_are_not_kept(body: RequestBody) -> None:
    body.arrival(None, 100)
    assert not arrive(body, b"1")


async def test_a_moments_wait_ends_by_itself_and_was_paid_for_in_front(
    body: RequestBody, buffers: Buffers
) -> None:
    wait = body.soon(CALLER, 10, replace(LIMITS, body_grace_s=0.001))
    assert wait is not None
    assert (buffers.used, wait.done) == (10, False)
    assert arrive(body, b"123456")
    await eventually(lambda: wait.done)
    assert not body.awaited
    later = body.arrival(CALLER, 10)
    assert body.afford()
    assert buffers.used == 10
    assert not later.done


async def test_a_moment_that_is_over_wakes_nobody_who_comes_later(body: RequestBody) -> None:
    body.soon(CALLER, 10, replace(LIMITS, body_grace_s=0.001))
    body.forget()
    others = RequestBody(Buffers(LIMITS)).soon(CALLER, 10, replace(LIMITS, body_grace_s=0.002))
    later = body.arrival(CALLER, 10)
    assert others is not None
    await eventually(lambda: others.done)
    await asyncio.sleep(0)
    assert not later.done


def test_whoever_waits_is_told_that_it_is_in_vain(body: RequestBody) -> None:
    assert not body.fail(TimeoutError())
    wait = body.arrival(CALLER, 10)
    assert body.fail(TimeoutError())
    with pytest.raises(TimeoutError):
        wait.__await__().send(None)
