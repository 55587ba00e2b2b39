"""Bytes kept for slow ends: within a worker's, an organization's and a key's share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.errors import Overloaded
from gateway.http.server.buffers import Buffers
from tests.http.fakes import CALLER

LIMITS = HttpLimits(buffered_bytes_max=1280, body_bytes_max=100, heads_bytes_max=50)
OTHER_KEY = replace(CALLER, key_id=99)
OTHER = replace(CALLER, organization_id=8, key_id=98)


def sheds(buffers: Buffers, caller: Caller) -> bool:
    try:
        buffers.check_new(caller)
    except Overloaded:
        return True
    return False


def test_a_key_has_a_part_of_its_organizations_part_of_the_whole() -> None:
    buffers = Buffers(LIMITS)
    assert buffers.acquire(CALLER, 160)
    assert not buffers.acquire(CALLER, 1)
    assert buffers.acquire(OTHER_KEY, 160)
    assert not buffers.acquire(OTHER_KEY, 1)
    assert buffers.acquire(OTHER, 160)
    assert buffers.used == 480
    assert buffers.shed == 2


def test_the_largest_body_fits_whatever_the_parts_are() -> None:
    buffers = Buffers(replace(LIMITS, buffered_bytes_max=10, body_bytes_max=100))
    assert buffers.acquire(CALLER, 100)
    assert not buffers.acquire(CALLER, 1)
    assert buffers.acquire(OTHER, 100)


def test_new_calls_are_shed_while_what_is_there_already_is_too_much() -> None:
    buffers = Buffers(LIMITS)
    assert not buffers.pressed
    buffers.add(CALLER, 500)
    assert buffers.pressed
    assert sheds(buffers, CALLER)
    assert sheds(buffers, OTHER_KEY)
    assert not sheds(buffers, OTHER)
    buffers.release(CALLER, 500)
    assert not sheds(buffers, CALLER)
    assert not buffers.pressed
    assert buffers.used == 0


@pytest.mark.parametrize("size", [1, 80, 160, 320])
def test_whoever_would_be_shed_is_asked_about(size: int) -> None:
    """`pressed` saves the usual call the question; it is never unset where the answer could be yes."""
    buffers = Buffers(LIMITS)
    callers = [replace(CALLER, organization_id=one % 3, key_id=one) for one in range(6)]
    for _ in range(5):
        for caller in callers:
            buffers.add(caller, size)
            assert buffers.pressed or not any(sheds(buffers, each) for each in callers)


def test_heads_that_are_not_complete_have_a_maximum_of_their_own() -> None:
    buffers = Buffers(LIMITS)
    free = LIMITS.head_free_bytes
    assert buffers.keep_head(free, 0) == 0
    assert buffers.keep_head(free + 50, 0) == 50
    assert buffers.keep_head(free + 1, 0) is None
    assert buffers.keep_head(free + 40, 50) == 40
    assert buffers.keep_head(free + 10, 0) == 10
    assert (buffers.heads, buffers.shed) == (50, 1)
    assert buffers.used == 0
