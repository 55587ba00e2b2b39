"""throttle: a bucket that stands apart from every account."""

from __future__ import annotations

import pytest
import redis

from gateway.counters.redis import keys
from tests.builders import World


def throttle(world: World, a_minute: int = 60, key_id: int = 3) -> int:
    answer = world.run("throttle", ((keys.bucket(world.p, key_id),), (b"%d" % a_minute,)))
    assert isinstance(answer, int)
    return answer


def drained_at(world: World) -> int:
    return int(world.client.get(keys.bucket(world.p, 3)) or 0)  # type: ignore[arg-type] # a client that does not wait


def test_so_many_at_once_and_then_one_as_each_has_drained(world: World) -> None:
    admitted = 0
    while not (wait := throttle(world)):
        admitted += 1
        assert admitted < 200
    assert admitted >= 60
    assert 0 < wait <= 1000
    world.client.set(keys.bucket(world.p, 3), world.now_ms() + 58_999)
    assert throttle(world) == 0
    assert throttle(world) > 0


def test_a_refusal_changes_nothing(world: World) -> None:
    world.client.set(keys.bucket(world.p, 3), world.now_ms() + 60_000)
    before = drained_at(world)
    assert throttle(world) > 0
    assert drained_at(world) == before


def test_a_bucket_is_gone_when_it_has_drained(world: World) -> None:
    throttle(world)
    assert 0 < world.client.pttl(keys.bucket(world.p, 3)) <= 1000  # type: ignore[operator] # as above


def test_keys_do_not_share_a_bucket_and_no_account_is_touched(world: World) -> None:
    before = world.everything()
    while not throttle(world):
        pass
    assert throttle(world, key_id=4) == 0
    world.client.delete(keys.bucket(world.p, 3), keys.bucket(world.p, 4))
    assert world.everything() == before


def test_a_clock_that_was_set_back_keeps_nobody_for_longer_than_a_bucket(world: World) -> None:
    world.client.set(keys.bucket(world.p, 3), world.now_ms() + 10**9)
    assert 0 < throttle(world) <= 1000


def test_it_takes_one_key_and_one_argument(world: World) -> None:
    with pytest.raises(redis.ResponseError, match="throttle takes"):
        world.run("throttle", ((keys.bucket(world.p, 3),), ()))
