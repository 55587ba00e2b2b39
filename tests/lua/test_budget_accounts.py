"""Accounts of budgets as they come and go: those for each, up to a bound, and windows that begin again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import redis

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import BUDGET_ACCOUNTS_MAX, OTHERS, Budget, account_of
from gateway.core.accounts.outbox import EventKind, WindowKey
from gateway.core.model import SettleResult, Verdict
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import live_windows, replaced
from gateway.counters.layouts.states import WindowState, pack_windows
from gateway.counters.redis import keys, scripts
from tests.builders import UNITS, Granted, World, new_id
from tests.lua.clocks import ClockWorld, read
from tests.lua.uses import tell
from tests.lua.windows import NAME, OTHER_NAME, account, fill_places, window

HOUR, DAY = 3_600_000, 86_400_000
KEEPS, LISTS = "  lists[name] = SEEN\n", "test:lists"
OPENED_MAX, BEGIN = 256, 4_102_488_000_000


class ListedWorld(ClockWorld):
    """Its library says how many lists of accounts it keeps."""

    library = staticmethod(
        cache(
            lambda: scripts.assemble(
                lambda name: read(name).replace(KEEPS, f"{KEEPS}  call('SET', '{LISTS}', list_count)\n")
            )
        )
    )


@pytest.fixture(autouse=True)
def plan(world: World) -> None:
    world.plan(None)


def index(world: World) -> dict[str, int]:
    found = world.client.zrange(keys.each_accounts(world.p, NAME), 0, -1, withscores=True)
    return {name.decode(): int(score) for name, score in found}


# --- for each ---------------------------------------------------------------------------------


def test_an_account_for_each_is_forgotten_a_day_after_its_window(world: World) -> None:
    now = world.now_ms()
    hers = account(window(1, 100, at=(now - 1, now + HOUR, now + 2 * HOUR)), value="ann")
    world.client.zadd(keys.each_accounts(world.p, NAME), {"forgotten": now - 1})
    world.reserve(budgets=(hers,), money=10).settle(money=5)
    name = keys.budget_account(world.p, hers.name)
    assert world.client.pexpiretime(name) == now + HOUR + DAY
    assert index(world) == {"ann": now + HOUR + DAY}


def test_one_without_an_end_gives_up_its_place_a_month_after_its_last_call_and_is_kept(world: World) -> None:
    hers = account(window(1, 100), value="ann")
    name = keys.budget_account(world.p, hers.name)
    as_it_was_once = pack_windows([WindowState(1, 100, 0, 0, 0, 9)], 31 * DAY)
    world.client.set(name, as_it_was_once, px=DAY)
    call = world.reserve(budgets=(hers,), money=10)
    today = world.now_ms() // DAY
    assert index(world)["ann"] in {(today + 31) * DAY, (today + 30) * DAY}
    call.settle(money=5)
    assert world.client.pexpiretime(name) == -1
    fill_places(world, until=world.now_ms() - 1)
    world.client.zadd(keys.each_accounts(world.p, NAME), {"ann": world.now_ms() - 1})
    bob = account(window(1, 100), value="bob")
    assert world.reserve(budgets=(bob,), money=10).verdict is Verdict.ADMITTED
    assert world.reserve(budgets=(hers,), money=96).verdict is Verdict.BUDGET_EXCEEDED


@pytest.mark.parametrize("ends", ["a session", "gone"])
def test_one_that_ends_unused_is_forgotten_a_month_after_its_last_call(world: World, ends: str) -> None:
    endless = window(1, 100, at=(0, 0, DAY if ends == "a session" else 0))
    at = world.now_ms() // HOUR * HOUR
    hour = window(2, 100, at=(at, at + HOUR, at + 2 * HOUR))
    for defined in ((endless,), (hour,)) if ends == "gone" else ((endless, hour),):
        hers = account(*defined, value="ann")
        world.reserve(budgets=(hers,), money=10).settle(money=5)
    name, today = keys.budget_account(world.p, hers.name), world.now_ms() // DAY
    assert index(world)["ann"] in {(today + 31) * DAY, (today + 30) * DAY}
    assert world.client.pexpiretime(name) == index(world)["ann"]


def test_a_plain_account_stays_and_is_in_no_index(world: World) -> None:
    world.reserve(budgets=(account(window(1, 100)),), money=10).settle(money=5)
    assert world.client.pttl(keys.budget_account(world.p, NAME)) == -1
    assert index(world) == {}


def test_those_beyond_the_bound_share_an_account(world: World) -> None:
    fill_places(world, until=world.now_ms() + DAY)
    plain = account(window(2, 100), name=OTHER_NAME)
    hers = account(window(1, 100), value="ann")
    before = world.everything()
    refused = world.reserve(budgets=(plain, hers), money=10)
    assert (refused.verdict, refused.decision.used) == (Verdict.OTHER_ACCOUNT, 0b10)
    assert world.everything() == before
    others = replaced((plain, hers), refused.decision.used)
    assert [one.name for one in others] == [OTHER_NAME, f"{NAME}:{OTHERS}"]
    call = world.reserve(budgets=others, money=10)
    assert call.settle(money=7) is SettleResult.DONE
    assert world.events()[-1].budgets == (WindowKey(2, 0), WindowKey(1, 0, OTHERS))
    assert [one.used for one in world.windows(f"{NAME}:{OTHERS}")] == [7]


def test_a_call_that_came_to_nothing_leaves_no_account(world: World) -> None:
    hers = account(window(1, 100), window(2, 5, "requests"), value="ann")
    name = keys.budget_account(world.p, hers.name)
    world.reserve(budgets=(hers,), money=10).release()
    assert (world.client.exists(name), index(world)) == (0, {})
    first, second = (world.reserve(budgets=(hers,), money=10) for _ in range(2))
    first.release()
    assert (world.client.exists(name), list(index(world))) == (1, ["ann"])
    second.settle(money=7)
    assert [one.used for one in world.windows(hers.name)] == [7, 1]
    assert list(index(world)) == ["ann"]


def test_what_a_call_costs_that_held_nothing_is_counted(world: World) -> None:
    hers = account(window(1, 100), value="ann")
    free, first = (world.reserve(budgets=(hers,), money=money) for money in (0, 10))
    first.release()
    free.settle(money=7)
    assert [one.used for one in world.windows(hers.name)] == [7]
    assert world.events()[-1].budgets == (WindowKey(1, 0, "ann"),)


def test_calls_that_come_to_nothing_fill_no_places(world: World) -> None:
    fill_places(world, until=world.now_ms() + DAY)
    world.client.zremrangebyrank(keys.each_accounts(world.p, NAME), 0, 0)
    for made_up in range(3):
        call = world.reserve(budgets=(account(window(1, 100), value=f"x{made_up}"),), money=10)
        assert call.verdict is Verdict.ADMITTED
        call.release()
    assert len(index(world)) == states.EACH_ACCOUNTS_MAX - 1


def test_a_reset_lets_go_of_whoever_holds_nothing(world: World) -> None:
    ann, bob = (account(window(1, 100), value=name) for name in ("ann", "bob"))
    for one in (ann, bob):
        world.reserve(budgets=(one,), money=10).settle(money=7)
    world.reserve(budgets=(bob,), money=10)
    assert reset(world, ann.name, bob.name, write_id=new_id()).code == 1
    assert list(index(world)) == ["bob"]
    assert world.windows(ann.name) == []


def test_whoever_has_an_account_keeps_it_beyond_the_bound(world: World) -> None:
    hers = account(window(1, 100), value="ann")
    world.reserve(budgets=(hers,), money=10).settle(money=7)
    fill_places(world, until=world.now_ms() + DAY)
    assert world.reserve(budgets=(hers,), money=10).verdict is Verdict.ADMITTED


@pytest.mark.parametrize(("windows", "bytes_max"), [(1, 400), (16, 1_500)])
def test_made_up_callers_fill_so_many_bytes_and_no_more(world: World, windows: int, bytes_max: int) -> None:
    """An account for each with its place in the index: of 100,000 of them 40 MB, or 150 with 16 windows."""
    at = world.now_ms() // HOUR * HOUR
    defined = [window(one, 10**9, at=(at, at + HOUR, at + 2 * HOUR)) for one in range(1, windows + 1)]

    for number in range(500):
        here = account(*defined, value=f"{number:024x}")
        world.reserve(budgets=(here,), money=5).settle(money=5)
    places = world.client.memory_usage(keys.each_accounts(world.p, NAME), samples=0)
    kept = world.client.memory_usage(keys.budget_account(world.p, here.name))
    assert places is not None
    assert kept is not None
    assert kept + places / 500 < bytes_max


def test_those_that_are_forgotten_make_room(world: World) -> None:
    fill_places(world, until=world.now_ms() - 1)
    at = world.now_ms() // HOUR * HOUR
    hers = account(window(1, 100, at=(at, at + HOUR, at + 2 * HOUR)), value="ann")
    assert world.reserve(budgets=(hers,), money=10).verdict is Verdict.ADMITTED
    # And leave the index, more of them with each that comes.
    assert len(index(world)) == states.EACH_ACCOUNTS_MAX + 1 - 2


def test_an_index_of_another_type_changes_nothing(world: World) -> None:
    world.client.set(keys.each_accounts(world.p, NAME), "x")
    before = world.everything()
    with pytest.raises(redis.ResponseError, match="WRONGTYPE"):
        world.reserve(budgets=(account(window(1, 100), value="ann"),), money=10)
    assert world.everything() == before


def test_two_values_of_one_budget_have_their_own_accounts(world: World) -> None:
    each = Budget(1, "each", "money", 10, "day", each="user")
    names = [account_of(1, each, user) for user in ("ann", "bob")]
    for name, used in zip(names, (7, 9), strict=True):
        mine = replace(account(window(1, 10)), name=name)
        world.reserve(budgets=(mine,), money=9).settle(money=used)
    assert [world.windows(name)[0].used for name in names] == [7, 9]


# --- a window begins again --------------------------------------------------------------------


def reset(world: World, *names: str, write_id: str, parts: Sequence[tuple[int, int]] = ()) -> Granted:
    call = packing.grant(
        world.run_id, "budget", 1, write_id, tenant_id=0, organization_id=1, metadata=b'{"reason":"r"}',
        accounts=names, parts=parts,
    )  # fmt: skip
    answer = world.run("grant", call)
    return Granted(*(packing.code_of(answer[at : at + 8]) for at in range(0, len(answer), 8)))


def test_a_reset_takes_what_was_used_once_and_tells_it(world: World) -> None:
    ann, bob = (account(window(1, 100), window(2, 100), value=name) for name in ("ann", "bob"))
    for one, used in ((ann, 7), (bob, 9)):
        world.reserve(budgets=(one,), money=10).settle(money=used)
    held = world.reserve(budgets=(ann,), money=5)
    write_id, count = new_id(), len(world.events())
    assert reset(world, ann.name, bob.name, f"{NAME}:nobody", write_id=write_id).code == 1
    told = world.events()[count:]
    assert [(one.kind, one.source, one.money, one.budgets) for one in told] == [
        (EventKind.BUDGET, write_id, 7, (WindowKey(1, 0, "ann"),)),
        (EventKind.BUDGET, write_id, 9, (WindowKey(1, 0, "bob"),)),
    ]
    assert told[0].metadata == b'{"reason":"r"}'
    assert [(one.used, one.held) for one in world.windows(ann.name)] == [(0, 5), (7, 5)]
    assert reset(world, ann.name, write_id=write_id).code == 2
    assert len(world.events()) == count + 2
    held.settle(money=3)
    assert [one.used for one in world.windows(ann.name)] == [3, 10]


def test_a_reset_of_a_part_takes_what_was_used_at_most_and_may_add(world: World) -> None:
    ann, bob, eve = (account(window(1, 100), window(2, 100), value=name) for name in ("ann", "bob", "eve"))
    for one, used in ((ann, 7), (bob, 9), (eve, 3)):
        world.reserve(budgets=(one,), money=10).settle(money=used)
    write_id, count = new_id(), len(world.events())
    names = ann.name, bob.name, eve.name, f"{NAME}:nobody"
    parts = [(0, 5), (0, 10), (0, -4), (0, 1)]
    for code in (1, 2):
        assert reset(world, *names, write_id=write_id, parts=parts).code == code
    told = world.events()[count:]
    assert [(one.source, one.money, one.budgets) for one in told] == [
        (write_id, 5, (WindowKey(1, 0, "ann"),)),
        (write_id, 9, (WindowKey(1, 0, "bob"),)),
        (write_id, -4, (WindowKey(1, 0, "eve"),)),
    ]
    left = [[each.used for each in world.windows(one.name)] for one in (ann, bob, eve)]
    assert left == [[2, 7], [0, 9], [7, 3]]


def test_a_part_is_of_the_window_that_began_then(world: World) -> None:
    now = world.now_ms()
    here = account(window(1, 100, at=(now - 1_000, now + 100_000, now + 200_000)))
    world.reserve(budgets=(here,), money=10).settle(money=7)
    before = len(world.events())
    assert reset(world, NAME, write_id=new_id(), parts=[(now - 2_000, 5)]).code == 1
    [told] = world.events()[before:]
    assert (told.money, told.budgets, world.windows(NAME)[0].used) == (0, (), 7)
    assert reset(world, NAME, write_id=new_id(), parts=[(now - 1_000, 5)]).code == 1
    assert world.windows(NAME)[0].used == 2


def test_a_reset_of_nothing_is_told_too(world: World) -> None:
    write_id, count = new_id(), len(world.events())
    assert reset(world, NAME, write_id=write_id).code == 1
    [told] = world.events()[count:]
    assert (told.kind, told.source, told.budgets) == (EventKind.BUDGET, write_id, ())
    assert world.windows(NAME) == []


def test_accounts_before_the_last_ones_are_not_remembered(world: World) -> None:
    here = account(window(1, 100))
    for used in (7, 9):
        world.reserve(budgets=(here,), money=10).settle(money=used)
        count = len(world.events())
        assert reset(world, NAME, write_id="0" * 36).code == 1
        [told] = world.events()[count:]
        assert (told.source, told.money) == ("", used)
    assert reset(world, NAME, write_id="0" * 36).code == 2


def test_calls_of_units_that_come_alone_all_hold_in_their_budget(world: World) -> None:
    here = account(window(1, 100))
    for calls in range(1, 6):
        world.reserve(service=UNITS, budgets=(here,), money=10)
        assert [one.held for one in world.windows(NAME)] == [10 * calls]


def test_lists_are_kept_for_opened_accounts_alone(valkey: str) -> None:
    """What is kept of others is bounded by the number of opened accounts, not by that of lists."""
    world = ListedWorld(valkey, BEGIN)
    world.plan(None)
    for turn in range(2 * OPENED_MAX // BUDGET_ACCOUNTS_MAX):
        many = [account(window(1, 100), name=f"{turn:08x}{at:08x}") for at in range(BUDGET_ACCOUNTS_MAX)]
        world.reserve(budgets=tuple(many), money=1)
        assert int(world.get(LISTS)) <= OPENED_MAX // BUDGET_ACCOUNTS_MAX + 1
    world.client.close()


# --- use that was before ------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["", "ann"])
def test_a_use_that_was_before_counts_in_the_windows_that_had_begun(world: World, value: str) -> None:
    now = world.now_ms()
    hour = window(1, 1000, at=(now - HOUR, now + HOUR, now + 2 * HOUR))
    day = window(2, 1000, at=(now - DAY, now + DAY, now + 2 * DAY))
    call = world.reserve(budgets=(account(hour, day, value=value),), money=10)
    call.release()
    assert tell(call, money=7, used_ms=now - 2 * HOUR) is SettleResult.DONE
    assert tell(call, money=7, used_ms=now - 2 * HOUR) is SettleResult.DONE
    [(moved, start, _)] = world.events()[-1].budgets
    assert (moved, start) == (2, now - DAY)
    name = account(hour, day, value=value).name
    packed = world.get(keys.budget_account(world.p, name))
    assert packed is not None
    used = {one.budget_id: one.used for one in states_of(packed)}
    assert used == {1: 0, 2: 7}


def states_of(packed: bytes) -> list[LiveWindow]:
    return list(live_windows(packed).values())
