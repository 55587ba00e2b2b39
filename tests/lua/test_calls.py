"""Many calls in one call of a function are the same calls one by one: states, entries and answers."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gateway.core.layout import LAYOUT
from gateway.core.model import Caller, HoldRequest, Limits, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import CALLS_MAX
from tests.builders import (
    BY_TOKEN,
    CHAT,
    CREDITS,
    EVERYTHING,
    ONE_TIME,
    TOMBSTONE_MS,
    TTL_MS,
    UNITS,
    World,
    by_partition,
    new_id,
    together,
)
from tests.lua.windows import OTHER_NAME, account, window
from tests.search import examples
from tests.waiting import wait_until

DAY_MS = 86_400_000
NUMBERS = itertools.count(1)
SERVICES = (CHAT, CREDITS, ONE_TIME, UNITS, EVERYTHING, BY_TOKEN)
# Each organization, all in partitions of their own, has two tenants with a key each.
ORGANIZATIONS, TENANTS, KEYS, USERS = (1, 2, 3), (7, 8), (3, 4), ("", "ann", "bob", "limited")
ACCOUNTS = (
    account(window(1, 120), window(2, 200, "tokens"), window(3, 12, "requests")),
    account(window(4, 70), name=OTHER_NAME, value="a" * 24),
    account(window(4, 70), name=OTHER_NAME, value="b" * 24),
)
# What of an account of budgets is defined now and then, in place of what was.
CHANGED = account(window(1, 60), window(5, 90, enforce=False))
REQUESTS = tuple(f"{number:08d}-0000-4000-8000-000000000000" for number in range(12))

CALLS = st.fixed_dictionaries({
    "request": st.integers(0, len(REQUESTS) - 1),
    "organization": st.sampled_from((1, *ORGANIZATIONS)),
    "tenant": st.sampled_from(TENANTS), "key": st.sampled_from(KEYS), "user": st.sampled_from(USERS),
    "service": st.sampled_from(SERVICES), "need": st.integers(0, 60), "more": st.integers(0, 40),
    "credits": st.integers(0, 30), "units": st.integers(0, 9), "raises": st.booleans(),
    "budgets": st.sets(st.sampled_from(range(len(ACCOUNTS))), max_size=3), "changed": st.booleans(),
    "money": st.integers(0, 50),
    "wrong": st.sampled_from([""] * 12 + ["history", "catalogue", "arguments", "user", "tenant"]),
    "mode": st.sampled_from([1, 1, 1, 1, 2, 3, 4, 5, 6]),
    "again": st.sampled_from([0, 0, 1, 3]),
})  # fmt: skip
BATCHES = st.lists(
    st.tuples(st.sampled_from(["reserve", "settle"]), st.lists(CALLS, min_size=1, max_size=9)),
    min_size=1,
    max_size=12,
)


class Both:
    """The same accounts in two databases of one server: here calls come together, there one by one."""

    def __init__(self, url: str) -> None:
        self.here = World(url)
        self.here.client.flushall()
        self.here = here = World(url)
        few = Limits(requests_per_minute=20, tokens_per_minute=400, concurrency=6)
        for organization, tenant in itertools.product(ORGANIZATIONS, TENANTS):
            caller = caller_of(organization, tenant, KEYS[tenant - TENANTS[0]])
            world = World(
                url, organization_id=organization, tenant_id=caller.tenant_id, key_id=caller.key_id, made=True
            )
            world.mark()
            world.define_organization(
                Limits(requests_per_minute=50, concurrency=12), cap=200, credit_limit=20
            )
            world.define_tenant(few, users=Limits(concurrency=3) if tenant == 7 else Limits())
            world.define_key(Limits(tokens_per_minute=300))
            world.define_user("limited", Limits(requests_per_minute=4))
            limited = here.get(world.user_key("limited"))
            here.client.set(world.user_key("newer"), bytes([LAYOUT + 1]) + limited[1:] + bytes(8))
            world.grant("credits", 30)
            world.plan(
                400,
                plan_id=tenant,
                admission="strict" if tenant == 8 else "available",
                reset_interval="daily",
            )
            world.put_tenant(next_reset=world.now_ms() // DAY_MS * DAY_MS)
            world.client.close()
        self.there = World(url.removesuffix("0") + "1", made=True)
        for name in here.client.keys("*"):
            assert here.client.copy(name, name, 1, replace=True)
        self.entries = 0

    def close(self) -> None:
        self.here.client.close()
        self.there.client.close()

    def run(self, verb: str, calls: list[packing.Call]) -> None:
        """Run them both ways; all is equal then."""
        try:
            if len(calls) == 1:
                answers = [self.here.run(verb, calls[0])]
            else:
                answers = self.here.run(verb, together(verb, calls))
        except redis.ResponseError as error:
            answers = [error]
        alone = [self._alone(verb, one) for one in calls]
        order = [at for part in by_partition(verb, calls) for at in part]
        for at, answer in zip(order, answers, strict=True):
            assert _said(answer) == _said(alone[at]), (at, str(answer))
        assert contents(self.here) == contents(self.there)

    def _alone(self, verb: str, call: packing.Call) -> Any:
        try:
            return self.there.run(verb, call)
        except redis.ResponseError as error:
            return error

    def entry(self, partition: int) -> bytes:
        """An entry of the late queue, there both ways."""
        self.entries += 1
        entry = b"%d-0" % (10**14 + self.entries)  # later than what a script appends
        for world in (self.here, self.there):
            world.client.xadd(keys.late(partition), {"a": ""}, id=entry)
        return entry


def _said(answer: Any) -> Any:
    """An answer; of an error that it is one, since Redis says besides where in a script one was raised."""
    return Exception if isinstance(answer, Exception) else answer


def contents(world: World) -> dict[bytes, Any]:
    """What every key holds, a stream by its entries, and whether it ends by itself."""
    client = world.client
    found: dict[bytes, Any] = {}
    for name in client.keys("*"):
        kind = client.type(name)
        if kind == b"stream":
            held: Any = [fields for _, fields in client.xrange(name)]
        elif kind == b"zset":
            held = client.zrange(name, 0, -1, withscores=True)
        elif kind == b"hash":
            held = client.hgetall(name)
        else:
            held = client.get(name)
        if kind != b"stream" or held:
            found[name] = kind, held, client.ttl(name) >= 0
    return found


@pytest.fixture
def both(valkey: str) -> Iterator[Both]:
    made = Both(valkey)
    yield made
    made.close()


def caller_of(organization: int, tenant: int, key: int) -> Caller:
    more = 10 * (organization - 1)
    return Caller(organization, tenant + more, key + more, keys.partition_of(organization))


def reserve_of(both: Both, number: int, said: dict[str, Any]) -> packing.Call:
    world = both.here
    caller = caller_of(said["organization"], said["tenant"], said["key"])
    service: Service = said["service"]
    request = HoldRequest(
        caller, REQUESTS[said["request"]], said["user"], service, said["need"], said["need"] + said["more"],
        said["credits"] or service.credits, said["units"], said["raises"],
        budgets=_budgets(said), money=said["money"], budget_tokens=said["need"],
    )  # fmt: skip
    if said["wrong"] == "user":
        request.user = "newer"
    if said["wrong"] == "tenant":
        request.caller = caller_of(said["organization"], 999, said["key"])
    names, arguments = packing.reserve(
        b"0" * 40 if said["wrong"] == "history" else world.run_id,
        0 if said["wrong"] == "catalogue" else 1, TTL_MS, request, number,
    )  # fmt: skip
    return names, ((*arguments, b"more") if said["wrong"] == "arguments" else arguments)


def settle_of(both: Both, number: int, said: dict[str, Any]) -> packing.Call:
    world, mode = both.here, said["mode"]
    caller = caller_of(said["organization"], said["tenant"], said["key"])
    used = Settlement(
        caller, REQUESTS[said["request"]], "newer" if said["wrong"] == "user" else said["user"],
        said["service"],
        charge=mode != packing.MODE_RELEASE, tokens=said["need"] + said["more"], credits=said["credits"],
        units=said["units"], over=said["more"] * 10**7 if said["service"] is BY_TOKEN else 0,
        attribution="1\t2\tv", metadata=b"{}",
        budgets=tuple(one.name for one in _budgets(said)), money=said["money"], budget_tokens=said["need"],
    )  # fmt: skip
    is_late = mode in {packing.MODE_POST, packing.MODE_CORRECT}
    names, arguments = packing.settle(
        b"0" * 40 if said["wrong"] == "history" else world.run_id, TOMBSTONE_MS, used, mode,
        both.entry(caller.partition) if is_late else None, batch=number,
        definitions=tuple(one.defined for one in _budgets(said)) if is_late else (),
    )  # fmt: skip
    if mode == packing.MODE_RECOVER:
        arguments += (struct.pack("<5d", 1, 2, 1, 0, 0),)
    return names, (arguments[:-1] if said["wrong"] == "arguments" else arguments)


def _budgets(said: dict[str, Any]) -> tuple[Any, ...]:
    chosen = [ACCOUNTS[place] for place in sorted(said["budgets"])]
    if said["changed"] and 0 in said["budgets"]:
        chosen[0] = CHANGED
    return tuple(chosen)


MADE = {"reserve": reserve_of, "settle": settle_of}


@settings(max_examples=examples(60), phases=(Phase.explicit, Phase.generate))
@given(batches=BATCHES)
def test_any_history_is_the_same_one_by_one(
    both: Both, batches: list[tuple[str, list[dict[str, Any]]]]
) -> None:
    both.close()
    both.__init__(both.here.url)  # type: ignore[misc]  # the same accounts, made anew
    for verb, calls in batches:
        number = next(NUMBERS)
        both.run(verb, [MADE[verb](both, number, one) for said in calls for one in _again(said)])


def _again(said: dict[str, Any]) -> list[dict[str, Any]]:
    """A call, and others right behind it of the same accounts."""
    return [said | {"request": (said["request"] + at) % len(REQUESTS)} for at in range(said["again"] + 1)]


# --- who fails, fails alone -------------------------------------------------------------------


def a_call(**said: Any) -> dict[str, Any]:
    return {
        "request": 0, "organization": 1, "tenant": 7, "key": 3, "user": "ann", "service": CHAT,
        "need": 5, "more": 0,
        "credits": 0, "units": 0, "raises": False, "budgets": set(), "changed": False, "money": 0,
        "wrong": "", "mode": 1,
    } | said  # fmt: skip


@pytest.mark.parametrize("wrong", ["history", "catalogue", "arguments", "user", "tenant"])
@pytest.mark.parametrize("verb", ["reserve", "settle"])
def test_who_is_wrong_is_told_alone(both: Both, verb: str, wrong: str) -> None:
    if verb == "settle":
        both.run("reserve", [reserve_of(both, 1, a_call(request=at)) for at in range(3)])
    calls = [MADE[verb](both, 2, a_call(request=at, wrong=wrong if at == 1 else "")) for at in range(3)]
    both.run(verb, calls)
    assert both.here.tenant.inflight == (
        2 if verb == "reserve" else 0 if wrong in {"catalogue", "tenant"} else 1
    )


# Who is settled or reserved together: of one partition, each of his own, and both.
CROWDS = ([1, 1, 1, 1], [1, 2, 3, 1], [2, 1, 3, 3])


@pytest.mark.parametrize("organizations", CROWDS, ids=str)
@pytest.mark.parametrize("place", ["deadlines", "outbox", "late"])
@pytest.mark.parametrize("verb", ["reserve", "settle"])
def test_what_cannot_be_written_leaves_all_calls_as_they_were(
    both: Both, verb: str, place: str, organizations: list[int]
) -> None:
    """But for those that do not write there, and those of other partitions."""
    said = [a_call(request=at, organization=one) for at, one in enumerate(organizations)]
    both.run("reserve", [reserve_of(both, 1, one) for one in said])
    both.here.put_tenant(next_reset=DAY_MS)
    name = getattr(keys, place)(both.here.p)
    both.here.client.delete(name)
    both.here.client.set(name, "no such thing")
    for key in both.here.client.keys("*"):
        both.here.client.copy(key, key, 1, replace=True)
    for one, request, mode in zip(said, (1, 1, 2, 9), (1, 2, 1, 1), strict=True):
        one |= {"request": request if verb == "settle" else (5 + request) % 12, "mode": mode}
    both.run(verb, [MADE[verb](both, 2, one) for one in said])


@pytest.mark.parametrize("verb", ["reserve", "settle"])
def test_a_partition_that_cannot_be_written_holds_up_no_other(both: Both, verb: str) -> None:
    """What its calls decided is forgotten, wherever among the others they come."""
    said = [a_call(request=at, organization=organization) for at, organization in enumerate([1, 2, 3, 2, 1])]
    both.run("reserve", [reserve_of(both, 1, one) for one in said])
    broken, partition = keys.deadlines(keys.partition_of(2)), keys.partition_of(2)
    for world in (both.here, both.there):
        world.client.set(broken, "no such thing")
    marks = [contents(both.here)[name.encode()] for name in _of(both, partition)]
    calls = [MADE[verb](both, 2, one | {"request": one["request"] + 6 * (verb == "reserve")}) for one in said]
    answers = both.here.run(verb, together(verb, calls))
    assert [isinstance(one, Exception) for one in answers] == [False, False, True, True, False]
    for call in calls:
        both._alone(verb, call)
    assert contents(both.here) == contents(both.there)
    assert [contents(both.here)[name.encode()] for name in _of(both, partition)] == marks


def test_a_call_that_fails_leaves_no_account_opened_as_it_made_it(both: Both) -> None:
    """Accounts stay opened from call to call; those of a call that fails halfway are read again."""
    for world in (both.here, both.there):
        World.run(world, "reserve", reserve_of(both, 1, a_call(request=0)))
    broken = keys.deadlines(both.here.p)
    kept = both.here.client.dump(broken)
    both.here.client.set(broken, "no such thing")
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        World.run(both.here, "reserve", reserve_of(both, 2, a_call(request=1)))
    both.here.client.restore(broken, 0, kept, replace=True)  # type: ignore[arg-type]  # what `dump` gave
    for world in (both.here, both.there):
        World.run(world, "reserve", reserve_of(both, 3, a_call(request=2)))
    assert contents(both.here) == contents(both.there)


def _of(both: Both, partition: int) -> list[str]:
    return sorted(name.decode() for name in both.here.client.keys(f"tk:{{p{partition:02}}}:*"))


def test_an_account_that_is_named_twice_is_refused(world: World) -> None:
    world.plan(100)
    names, (shape, *arguments) = together("reserve", [_plain(world), _plain(world)])
    twice = (*names[:4], names[3], *names[5:]), (shape, *arguments)
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="reserve takes"):
        World.run(world, "reserve", twice)
    assert world.everything() == before


def test_a_partition_that_is_there_twice_is_refused(world: World) -> None:
    world.plan(100)
    (d, x, m, *accounts, hold), arguments = _plain(world)
    names = (d, x, d, x, m, *accounts, m, *accounts, hold, hold)
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="reserve takes"):
        World.run(world, "reserve", (names, (b"\2\1\3\2\1\3\2", *arguments, *arguments)))
    assert world.everything() == before


def test_more_calls_than_may_be_are_refused(world: World) -> None:
    world.plan(10**6)
    calls = [_plain(world) for _ in range(CALLS_MAX + 1)]
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="reserve takes"):
        World.run(world, "reserve", together("reserve", calls))
    assert world.everything() == before
    World.run(world, "reserve", together("reserve", calls[1:]))
    assert world.tenant.held == CALLS_MAX


@pytest.mark.parametrize(
    "shape",
    [
        b"\1", b"\1\2\3\2\3\2\3\4", b"\1\2\3\2\3\2\3\4\2\3\2\3\x09", b"\1\3\3\2\3\2\3\4\2\3\2\3\4",
        b"\1\2\4\2\3\2\3\4\2\3\2\3\4", b"\2\2\3\2\3\2\3\4\2\3\2\3\4", b"\2\1\3\2\1\3\2", b"\1\0\3", b"\0",
        b"\xff\xff\xff",
    ],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_refused(world: World, shape: bytes) -> None:
    world.plan(100)
    names, (fitting, *arguments) = together("reserve", [_plain(world), _plain(world)])
    assert fitting == b"\1\2\3\2\3\2\3\4\2\3\2\3\4"
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="reserve takes"):
        World.run(world, "reserve", (names, (shape, *arguments)))
    assert world.everything() == before


def _plain(world: World) -> packing.Call:
    return packing.reserve(world.run_id, 1, TTL_MS, HoldRequest(world.caller, new_id(), "", CHAT, 1, 1))


# --- batch ------------------------------------------------------------------------------
# What calls that come together share: the time, if no other call came in between.


def later() -> None:
    """Let the clock of the scripts, which is this machine's, go on."""
    began = time.time_ns() // 1_000_000
    wait_until(lambda: time.time_ns() // 1_000_000 > began)


def reserved_at(world: World, batch: int) -> int:
    """The time a `reserve` of this batch was taken for, each later than the one before."""
    later()
    request = HoldRequest(world.caller, new_id(), "", CHAT, 1, 1)
    answer = world.run("reserve", packing.reserve(world.run_id, world.catalogue, TTL_MS, request, batch))
    return packing.decision(answer, CHAT).now_ms


def test_one_batch_has_one_time_and_the_next_another(world: World) -> None:
    world.plan(100)
    first = [reserved_at(world, 7) for _ in range(3)]
    second = [reserved_at(world, 8) for _ in range(3)]
    assert (len(set(first)), len(set(second))) == (1, 1)
    assert second[0] > first[0]


def test_a_call_of_somebody_else_in_between_ends_what_is_shared(world: World) -> None:
    world.plan(100)
    times = [reserved_at(world, batch) for batch in (7, 8, 7)]
    assert times == sorted(set(times))


def test_a_call_of_no_batch_asks_for_the_time_and_leaves_none_to_others(world: World) -> None:
    world.plan(100)
    times = [
        reserved_at(world, batch) for batch in (packing.NO_BATCH, packing.NO_BATCH, 7, packing.NO_BATCH, 7)
    ]
    assert times == sorted(set(times))


def test_reserve_and_settle_of_one_batch_share_it(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=1)
    at = reserved_at(world, 9)
    later()
    used = Settlement(world.caller, call.id, "", CHAT, charge=True, tokens=1)
    world.run("settle", packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=9))
    assert world.events()[-1].at_ms == at


# --- opened -----------------------------------------------------------------------------
# Accounts that scripts keep opened are few: calls of more in turn find what is stored, whoever wrote it.


# More than are kept, of now and of before.
MANY = 150


def test_each_of_many_in_turn_goes_by_what_is_stored(valkey: str) -> None:
    worlds = [World(valkey, organization_id=n, tenant_id=n, key_id=n) for n in range(1, MANY + 1)]
    for world in worlds:
        world.plan(1000)
    for turn, many in enumerate((1, 1, 40, 40, 70, 70, MANY, MANY), 1):
        for first in range(0, MANY, many):
            calls = [world.reserve(need=5) for world in worlds[first : first + many]]
            stored = [call.world.get(call.world.tenant_key) for call in calls]
            for call in calls:
                call.settle(tokens=3)
            assert [call.world.tenant.used for call in calls] == [3 * turn] * len(calls)
            # Somebody brings back what was written here before.
            for call, before in zip(calls[::7], stored[::7], strict=True):
                after = call.world.get(call.world.tenant_key)
                assert before
                assert after
                call.world.client.set(call.world.tenant_key, before)
                again = call.world.reserve(need=5)
                assert (call.world.tenant.held, call.world.tenant.inflight) == (10, 2)
                again.release()
                assert (call.world.tenant.used, call.world.tenant.held) == (3 * (turn - 1), 5)
                call.world.client.set(call.world.tenant_key, after)
