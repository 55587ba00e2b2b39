"""share: what an upstream can take, drawn from by shares."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from gateway.counters.redis import keys
from gateway.features.capacity.accounts import CapacityAsk, CapacityEnd
from tests.builders import World

P, NAMES = keys.capacity("openai", "")
A_MINUTE = 60_000  # a thousand a second, which is what an account holds when nobody asked for long


def ask(id_: str, share: str = "o1", **more: Any) -> CapacityAsk:
    values = {"weight": 1, "requests": 0, "tokens": 0, "batch": 0, "need": 0, "more": 0}
    return CapacityAsk(id_, share, **values | more)


def share(
    world: World,
    *asks: CapacityAsk,
    requests: int = 0,
    tokens: int = 0,
    concurrency: int = 0,
    ended: Sequence[CapacityEnd] = (),
    over: Sequence[str] = (),
) -> list[int]:
    limits = {"requests": requests, "tokens": tokens, "concurrency": concurrency}
    told = [limits, [_fields(one) for one in asks], [_fields(one) for one in ended], list(over), []]
    answer = world.run("share", (NAMES, tuple(json.dumps(one).encode() for one in told)))
    assert isinstance(answer, list)
    return answer


def _fields(one: Any) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def drained(world: World) -> None:
    """Take all there is: one request a minute flows in, so the next to ask has to wait."""
    assert share(world, ask("all"), requests=1)[1] == 1


def test_what_is_there_is_let_in_and_the_rest_waits_until_it_flows_in(world: World) -> None:
    answer = share(world, *(ask(str(number)) for number in range(20)), requests=600)
    assert (answer[1:10], answer[-9:]) == ([1] * 9, [0] * 9)
    assert 0 < answer[0] <= 102
    world.client.delete(*NAMES)
    wait, *_ = share(world, ask("large", need=500), tokens=600)
    assert wait == 0  # larger than a second of it: it needs a full one, and leaves debt
    wait, let_in = share(world, ask("next", need=1), tokens=600)
    assert let_in == 0
    assert 40_000 < wait <= 60_000


def test_what_is_guaranteed_is_let_in_whatever_others_took(world: World) -> None:
    drained(world)
    mine = ask("mine", "o2", requests=60)
    assert share(world, ask("more"), mine, requests=1)[1:] == [0, 2]
    other = ask("other", "o3", requests=60)  # the account has as much debt as it may
    assert share(world, other, requests=1)[1:] == [0]
    world.client.delete(*NAMES)
    share(world, *(ask(str(number)) for number in range(40)), requests=600)
    mine, again = ask("mine", "o2", requests=12), ask("again", "o2", requests=12)  # one in five seconds
    assert share(world, ask("more"), mine, again, requests=600)[1:] == [0, 2, 0]


def test_the_least_use_by_weight_is_next_and_interactive_calls_go_first(world: World) -> None:
    asks = [ask(f"{name}{number}", name, weight=weight) for number in range(9) for name, weight in
            (("o1", 1), ("o2", 2))]  # fmt: skip
    answer = share(world, *asks, requests=600)[1:]
    had = {name: sum(answer[at] for at, one in enumerate(asks) if one.share == name) for name in ("o1", "o2")}
    assert had == {"o1": 3, "o2": 6}
    world.client.delete(*NAMES)
    both = [ask(str(number), "o1", batch=1) for number in range(9)] + [ask("now", "o2")]
    assert share(world, *both, requests=600)[-1] == 1


def test_a_share_that_waits_at_another_gateway_goes_before_one_that_had_more(world: World) -> None:
    share(world, *(ask(str(number)) for number in range(9)), requests=600)
    assert share(world, ask("other", "o2", need=10), requests=600)[1] == 0
    ended = [CapacityEnd("o1", 2, 1, 1, 0)]
    wait, let_in = share(world, ask("again"), requests=600, ended=ended)
    assert (wait > 0, let_in) == (True, 0)
    assert share(world, ask("other", "o2"), requests=600)[1] == 1


@pytest.mark.parametrize(("more", "let_in"), [(0, 1), (1, 0)])
def test_a_share_of_which_more_wait_goes_on_before_one_that_had_more(
    world: World, more: int, let_in: int
) -> None:
    share(world, *(ask(str(number)) for number in range(7)), requests=600)
    assert share(world, ask("other", "o2", weight=100, more=more), requests=600)[1] == 1
    assert share(world, ask("again"), requests=600)[1] == let_in


def test_what_a_call_did_not_use_is_given_back(world: World) -> None:
    full = A_MINUTE
    assert share(world, ask("a", need=900), tokens=full)[1] == 1
    assert share(world, ask("b", need=900), tokens=full)[1] == 0
    ended = [CapacityEnd("o1", 1, 1, 0, 890)]
    assert share(world, ask("b", need=900), tokens=full, ended=ended)[1] == 1


def test_calls_at_once_are_bounded_until_they_are_over(world: World) -> None:
    assert share(world, ask("a"), ask("b", requests=60), ask("c"), concurrency=2)[1:] == [1, 2, 0]
    assert share(world, ask("c"), concurrency=2)[1:] == [0]
    assert share(world, ask("c"), concurrency=2, over=["a"])[1:] == [1]


def test_a_clock_that_was_set_back_lets_nothing_flow_in_and_keeps_nobody_waiting(world: World) -> None:
    """The account is as one that was asked an hour from now: by Lua's own packing, with its share waiting."""
    drained(world)
    share(world, ask("b", "o2"), requests=1)
    later = """
    local one, hour = cmsgpack.unpack(redis.call('GET', KEYS[1])), 3600000
    one.at = one.at + hour
    for _, share in pairs(one.shares) do share.seen, share.waits = share.seen + hour, share.waits + hour end
    redis.call('SET', KEYS[1], cmsgpack.pack(one))"""
    world.client.eval(later, 1, NAMES[0])
    wait, let_in = share(world, ask("c"), requests=1)
    assert (let_in, 0 < wait <= 62_000) == (0, True)
    ended = [CapacityEnd("o1", 1, 1, 1, 0)]
    assert share(world, ask("c"), requests=1, ended=ended)[1] == 1
