"""grow: of each object's text no token is lost, whoever adds to it at once."""

from __future__ import annotations

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from gateway.counters.redis import keys
from tests.builders import World

MOST = 2_097_151
NOW_S = 1_700_000_000
ID = b"d" * 16


def lists(world: World) -> tuple[str, str]:
    return keys.objects(world.p, 1), keys.answers(world.p, 1)


def grow(world: World, upto: int, *, tokens: int = 0, added: int = 0, found: float | None = None) -> None:
    score = b"" if found is None else repr(found).encode()
    world.run("grow", (lists(world), (b"%d" % upto, b"%d" % tokens, b"%d" % added, ID, score)))


def score(world: World, at: int = 0) -> float | None:
    return world.client.zscore(lists(world)[at], ID)  # type: ignore[return-value] # a client that does not wait


def tokens(world: World, at: int = 0) -> int:
    return round((score(world, at) or 0) % 1 * (MOST + 1))


def test_added_tokens_add_up_and_an_answer_alone_replaces_the_sum(world: World) -> None:
    grow(world, NOW_S, added=900)
    first = score(world)
    grow(world, NOW_S, tokens=700, added=20, found=first)
    assert tokens(world) == 700, "the provider's own count goes before the one of the text that came"
    second = score(world)
    grow(world, NOW_S, added=50)
    grow(world, NOW_S, tokens=760, added=60, found=second)
    assert tokens(world) == 700 + 50 + 60, "the 50 came in between, and no answer has read them"
    grow(world, NOW_S, tokens=9_000, added=60, found=second)
    assert tokens(world) == 9_000


def test_an_object_stays_on_its_lists_and_a_new_object_comes_on_the_first(world: World) -> None:
    own, told = lists(world)
    world.client.zadd(told, {ID: NOW_S})
    grow(world, NOW_S + 60, added=5)
    assert (score(world, 0), tokens(world, 1)) == (None, 5)
    world.client.zadd(own, {ID: NOW_S})
    grow(world, NOW_S + 60, added=7)
    assert (tokens(world, 0), tokens(world, 1)) == (7, 12)
    world.client.delete(own, told)
    grow(world, NOW_S + 60, tokens=3)
    assert (score(world, 0), score(world, 1)) == (NOW_S + 60 + 3 / (MOST + 1), None)


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, MOST), st.integers(0, MOST), st.booleans()),
        min_size=1, max_size=12,
    )
)  # fmt: skip
def test_no_order_of_writes_loses_tokens_or_an_end(
    world: World, drawn: list[tuple[int, int, int, bool]]
) -> None:
    """By a second calculation: an answer alone counts as itself, else as what is there and what it may have added."""
    world.client.delete(*lists(world))
    upto, there, stale = NOW_S, 0, None
    for seconds, said, added, alone in drawn:
        before = score(world)
        upto += seconds
        grow(world, upto, tokens=said, added=added, found=before if alone else stale)
        there = min(MOST, said if alone and before is not None else max(said, there + added))
        assert tokens(world) == there
        assert (score(world) or 0) >= upto
        assert before is None or int(score(world) or 0) > int(before), "no earlier score comes back"
        stale = before


def test_grow_refuses_half_a_pair(world: World) -> None:
    with pytest.raises(redis.ResponseError, match="grow takes"):
        world.run("grow", (lists(world), (b"1", b"0", b"0", ID)))
