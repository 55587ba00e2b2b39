"""An account that held less than a call gives back: it holds nothing then, and the answer says so once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest

from gateway.core.model import Limits, Settlement, SettleResult
from gateway.counters.layouts import packing, states
from gateway.counters.leases.allowance import GIVE_BACK
from gateway.counters.redis import keys
from tests.builders import CREDITS, ONE_TIME, TOMBSTONE_MS, UNITS, Call, World
from tests.lua.conftest import AMONG_OTHERS
from tests.lua.test_lease import Gateway
from tests.lua.windows import NAME, account, window

HERE = account(window(1, 10**6), window(2, 10**6, "requests"))
WIDE = account(window(1, 10**15 * 10**9))


def code_of_release(call: Call) -> int:
    """The code that `settle` answers to the release of a call."""
    request = call.request
    names = tuple(one.name for one in request.budgets)
    release = Settlement(
        request.caller, request.request_id, request.user, request.service, charge=False, budgets=names
    )
    asked = packing.settle(call.world.run_id, TOMBSTONE_MS, release, packing.MODE_RELEASE)
    return packing.code_of(call.world.run("settle", asked))


def empty_windows(world: World) -> None:
    world.put_windows(NAME, [replace(one, held=0) for one in world.windows(NAME)])


def empty_activation(world: World, **fields: int) -> None:
    name = keys.activation(world.p, 1, UNITS.id if "held" in fields else ONE_TIME.id)
    state = states.unpack(states.ActivationState, world.get(name))
    assert world.rebuild(name, states.pack(replace(state, **fields))) == 1


def held(world: World) -> tuple[int, ...]:
    return (
        world.tenant.held, world.organization.credits_held, *world.slots("ann"),
        *(one.held for one in world.windows(NAME)),
    )  # fmt: skip


CASES: dict[str, tuple[Callable[[World], Call], Callable[[World], object]]] = {
    "quota": (lambda world: world.reserve(need=10), lambda world: world.put_tenant(held=9)),
    "slot": (lambda world: world.reserve(), lambda world: world.put_key(inflight=0)),
    "credits": (
        lambda world: world.reserve(service=CREDITS, credits_=7),
        lambda world: world.put_organization(credits_held=6),
    ),
    "windows": (lambda world: world.reserve(budgets=(HERE,), money=5), empty_windows),
    "wide window": (lambda world: world.reserve(budgets=(WIDE,), money=5), empty_windows),
    "units": (lambda world: world.reserve(service=UNITS, units=3), partial(empty_activation, held=0)),
    "one-time": (
        lambda world: world.reserve(service=ONE_TIME, credits_=50),
        partial(empty_activation, waiting=0),
    ),
}


@AMONG_OTHERS
@pytest.mark.parametrize("kind", CASES)
def test_release_of_unheld_amount_answers_unheld_once(world: World, kind: str) -> None:
    take, lose = CASES[kind]
    world.plan(100)
    world.grant("credits", 100)
    world.define_organization(Limits(concurrency=9), cap=10**9)
    world.define_key(Limits(concurrency=9))
    call = take(world)
    lose(world)
    assert code_of_release(call) == SettleResult.UNHELD
    assert not any(held(world))
    assert code_of_release(take(world)) == SettleResult.DONE


def test_release_of_owner_account_without_calls_answers_unheld(world: World) -> None:
    world.plan(100)
    each = account(window(1, 10**6), value="0" * 24)
    call = world.reserve(budgets=(each,), money=5)
    name = keys.budget_account(world.p, each.name)
    raw = world.get(name)
    at = states.BUDGET.offset("calls")
    world.client.set(name, raw[:at] + bytes(8) + raw[at + 8 :])
    assert code_of_release(call) == SettleResult.UNHELD


def test_settle_charges_call_of_unheld_amount(world: World) -> None:
    world.plan(100)
    call = world.reserve(need=10)
    world.put_tenant(held=0)
    assert call.settle(tokens=30) is SettleResult.DONE
    assert (world.tenant.used, world.tenant.held) == (30, 0)


def test_settle_answers_unheld_for_lease_given_back_before(world: World) -> None:
    world.plan(1000, on_store_failure="allow")
    gateway = Gateway(world)
    gateway.ask()
    call = world.reserve(need=10)
    world.put_tenant(held=10)
    gateway.ask(ttl_ms=GIVE_BACK)
    assert world.tenant.held == 0
    world.put_tenant(held=10)
    assert code_of_release(call) == SettleResult.UNHELD


def test_second_release_answers_unknown_and_never_unheld(world: World) -> None:
    world.plan(100)
    calls = [world.reserve(need=10, budgets=(HERE,), money=5) for _ in range(3)]
    assert [code_of_release(call) for call in calls] == [SettleResult.DONE] * 3
    assert [code_of_release(call) for call in calls] == [SettleResult.UNKNOWN] * 3
