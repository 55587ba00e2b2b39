"""note: what is paid of contents, each second of it by one call."""

from __future__ import annotations

import json

import pytest
import redis

from gateway.counters.redis import keys
from tests.builders import World

NAME = keys.object_note("ab" * 16)


def payment(until_s: int, organization_id: int = 1) -> bytes:
    said = {"organization_id": organization_id, "model": "flash", "tokens": 900_000, "until_s": until_s}
    return json.dumps(said).encode()


def note(world: World, paid: bytes) -> bytes | None:
    answer = world.run("note", ((NAME,), (paid,)))
    assert answer is None or isinstance(answer, bytes)
    return answer


def kept(world: World) -> tuple[bytes | None, int]:
    return world.client.get(NAME), world.client.expiretime(NAME)  # type: ignore[return-value] # a client that does not wait


def test_a_later_end_replaces_an_earlier_one_and_gets_it(world: World) -> None:
    now_s = world.now_ms() // 1000
    assert note(world, payment(now_s + 100)) is None
    assert kept(world) == (payment(now_s + 100), now_s + 100)
    assert note(world, payment(now_s + 300)) == payment(now_s + 100)
    assert kept(world) == (payment(now_s + 300), now_s + 300)


def test_an_earlier_end_and_the_same_change_nothing(world: World) -> None:
    now_s = world.now_ms() // 1000
    note(world, payment(now_s + 300))
    before = world.everything()
    for seconds in (100, 300):
        assert note(world, payment(now_s + seconds)) == payment(now_s + 300)
    assert world.everything() == before


def test_a_payment_of_another_organization_is_replaced(world: World) -> None:
    now_s = world.now_ms() // 1000
    note(world, payment(now_s + 300, organization_id=2))
    assert note(world, payment(now_s + 100)) == payment(now_s + 300, organization_id=2)
    assert kept(world) == (payment(now_s + 100), now_s + 100)


def test_a_value_that_is_no_payment_is_an_error_and_stays(world: World) -> None:
    world.client.set(NAME, "x")
    before = world.everything()
    with pytest.raises(redis.ResponseError):
        note(world, payment(world.now_ms() // 1000 + 100))
    assert world.everything() == before


def test_it_takes_one_key_and_one_argument(world: World) -> None:
    with pytest.raises(redis.ResponseError, match="note takes"):
        world.run("note", ((NAME,), ()))
