"""Written-out windows hold and count as loops over windows do, in any history of calls."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import pytest

from gateway.core.accounts.budgets import INTEGER_MAX
from gateway.core.model import BudgetAccount, HoldRequest, Settlement
from gateway.counters.layouts import packing
from gateway.counters.redis import scripts
from tests.builders import CHAT, TOMBSTONE_MS, TTL_MS, together
from tests.lua import clocks
from tests.lua.windows import account, window
from tests.search import examples

BEGIN, HOUR_MS = 4_102_488_000_000, 3_600_000
SERVICE = replace(CHAT, needs_plan=False)
FORM_OF = "local function form_of(accounts)\n"
STEPS, CALLS_MAX = 60, 4
MODES = [packing.MODE_CHARGE] * 4 + [packing.MODE_RELEASE, packing.MODE_RECLAIM]
# How many structures are kept, and how many lookups that find no place empty that cache.
MAXIMA = "local FORMS_MAX, FORMS_MISSED_MAX, WRITTEN_WINDOWS_MAX = 128, 100000, 24"
FORMS_MAX = 128
PARSE, PARSES = "return loadstring(", "test:parses"


def changed(before: str, after: str) -> Any:
    """Return what makes the library with another text in its file of budgets."""

    def read(name: str) -> str:
        text = clocks.read(name)
        assert (before in text) is (name == "lib/budgets.lua")
        return text.replace(before, after)

    return staticmethod(cache(lambda: scripts.assemble(read)))


class Looped(clocks.ClockWorld):
    """In its library nothing is written out."""

    library = changed(FORM_OF, f"{FORM_OF}  do return false end\n")


class Few(clocks.ClockWorld):
    """Its library keeps few structures, and forgets them again and again."""

    library = changed(MAXIMA, "local FORMS_MAX, FORMS_MISSED_MAX, WRITTEN_WINDOWS_MAX = 5, 3, 4")


class Counting(clocks.ClockWorld):
    """Its library counts what it parses."""

    library = changed(PARSE, f"call('INCR', '{PARSES}') {PARSE}")


def accounts(hour: int, owner: str) -> list[BudgetAccount]:
    """Accounts of windows of all units: endless ones, and those of an hour; the last two have room for more than one number holds."""
    at = (hour, hour + HOUR_MS, hour + 2 * HOUR_MS)
    return [
        account(window(1, 5_000, at=at), name="0" * 16),
        account(
            window(2, 10**15),
            window(3, 900, "tokens", at=at),
            window(4, 40, "requests", at=at),
            name="1" * 16,
        ),
        account(window(5, 10**15, enforce=False), window(6, 2_000, "tokens"), name="2" * 16, value=owner),
        account(window(7, 4_000, cut=True, at=at), name="3" * 16, value=owner),
        account(window(8, INTEGER_MAX, enforce=False), name="4" * 16),
        account(window(9, INTEGER_MAX, "tokens", at=at, enforce=False), name="5" * 16),
    ]


def amount(dice: random.Random, *, is_large: bool) -> int:
    return dice.choice([0, INTEGER_MAX // 3, INTEGER_MAX // 2] if is_large else [0, 7, dice.randint(1, 900)])


def play(world: clocks.ClockWorld, seed: int) -> list[Any]:
    """Return all that a history of calls was answered, and what it left."""
    dice = random.Random(seed)
    answers, live, now = list[Any](), list[list[HoldRequest]](), BEGIN

    def run(verb: str, calls: list[packing.Call]) -> None:
        answers.append(world.run(verb, together(verb, calls) if len(calls) > 1 else calls[0]))

    for step in range(STEPS):
        now += dice.choice([0, 1, 1_000, HOUR_MS // 7])
        world.set_clock(now)
        if dice.random() < 0.6 or not live:
            is_large, known = (
                dice.random() < 0.3,
                accounts(now - now % HOUR_MS, dice.choice(["ann", "bob"]).ljust(24, "x")),
            )
            taken = tuple(known[-2:] if is_large else dice.sample(known, dice.randint(1, 4)))
            requests = [
                HoldRequest(
                    world.caller, f"00000000-0000-4000-8000-{step:06}{at:06}", "ann", SERVICE, 5, 5,
                    least=dice.choice([0, 1]), budgets=taken, money=amount(dice, is_large=is_large), budget_tokens=amount(dice, is_large=is_large),
                )
                for at in range(dice.randint(1, CALLS_MAX))
            ]  # fmt: skip
            run("reserve", [packing.reserve(world.run_id, 1, TTL_MS, request) for request in requests])
            live.append(requests)
        else:
            requests, mode = live.pop(dice.randrange(len(live))), dice.choice(MODES)
            is_large = requests[0].money > 900 or requests[0].budget_tokens > 900
            settled = [
                Settlement(
                    request.caller, request.request_id, "ann", SERVICE, charge=mode != packing.MODE_RELEASE,
                    tokens=dice.randint(0, 9), budgets=tuple(one.name for one in request.budgets),
                    money=amount(dice, is_large=is_large), budget_tokens=amount(dice, is_large=is_large),
                )
                for request in requests
            ]  # fmt: skip
            run("settle", [packing.settle(world.run_id, TOMBSTONE_MS, one, mode) for one in settled])
    kept = {
        name: value for name, (value, _) in world.everything().items() if world.client.type(name) != b"stream"
    }
    assert world.events()
    return [*answers, kept, world.events()]


@pytest.mark.parametrize("seed", range(examples(60)))
def test_written_text_does_the_same_as_the_loops(valkey: str, seed: int) -> None:
    written, loops = (
        play(kind(valkey.replace("/0", f"/{place}"), BEGIN), seed)
        for place, kind in ((1, Few if seed % 2 else clocks.ClockWorld), (2, Looped))
    )
    assert written == loops


def test_of_more_structures_than_are_kept_the_others_are_not_parsed(valkey: str) -> None:
    world = Counting(valkey, BEGIN)
    world.plan(None)
    kinds = list(product(("money", "tokens", "requests"), (True, False)))
    for _ in range(3):
        for at, structure in enumerate(product(kinds, repeat=3)):
            windows = [
                window(at * 3 + n, 10**9, unit, enforce=enforce)
                for n, (unit, enforce) in enumerate(structure, 1)
            ]
            world.reserve(budgets=(account(*windows, name=f"{at:016x}"),), money=1).release()
    assert int(world.client.get(PARSES) or 0) == 2 * FORMS_MAX
    world.client.close()
