"""Makes what a tree's gateway would send: `reserve` and `settle` of calls that leave in one write.

Runs in the tree it is asked about, whatever that one's layouts and packing are: `tests.bench.scripts` gives
its text to a python there. It reads (organizations, calls a write, writes, scene), defines these accounts
on a server once, and answers as many pairs of lists of commands, both pickled, until its input ends; none of
a scene that this tree does not know.
"""

from __future__ import annotations

import pickle
import sys
import time
import uuid
from decimal import Decimal
from importlib.util import find_spec
from itertools import count
from typing import Any, NamedTuple

from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import HoldRequest, Limits, Service, Settlement
from gateway.counters.layouts import packing
from gateway.counters.redis.scripts import library
from tests import builders
from tests.builders import CHAT, TTL_MS, World

WIDE = Limits(requests_per_minute=10**6, tokens_per_minute=10**9, concurrency=10**5)
PAID = Service(id=2, key="images", meter="consumption", counts_tokens=True, credits=1)
TIERED = Service(
    id=4, key="search", meter="pay_per_use", counts_tokens=True,
    pricing=ServicePricing(tiers=(PriceTier(10_000, Decimal("0.001")), PriceTier(None, Decimal("0.0008")))),
)  # fmt: skip
# Of each organization, by turns, where a scene has users.
USERS = 32


class Scene(NamedTuple):
    """What calls have: limits at every scope, budget accounts by their number of windows, users.

    The accounts in `each` are one owner's; with users, the last of them is the user's. With `in_turn` a write
    begins behind the organizations of the one before. Windows are by the calendar, or named as flags of budgets.
    """

    service: Service = CHAT
    credits: int = 0
    limited: bool = True
    accounts: tuple[int, ...] = ()
    each: tuple[int, ...] = ()
    users: bool = False
    in_turn: bool = False
    window: str = ""


MONEY = (1, 1, 1, 1)
SCENES = {
    "ledger": Scene(limited=False),
    "limits": Scene(),
    "credits": Scene(PAID, 1),
    "tiers": Scene(TIERED),
    "one window": Scene(accounts=(1,)),
    "eight windows": Scene(accounts=(8,)),
    "four accounts": Scene(accounts=MONEY),
    "money": Scene(accounts=MONEY, each=(2, 3)),
    "rolling": Scene(accounts=MONEY, window="FLAG_ROLLING"),
    "first use": Scene(accounts=MONEY, window="FLAG_FIRST_USE"),
    "one run": Scene(accounts=(2,)),
    "eight runs": Scene(accounts=(2,) * 8),
    "users": Scene(users=True),
    "users, money": Scene(accounts=MONEY, each=(2, 3), users=True),
    "users in turn": Scene(users=True, in_turn=True),
}
# Calls of as many organizations that are one call: each has four accounts (`gateway.counters.redis.calls`).
SPREAD = 32
# The ids of organizations without limits: behind those of all others.
UNLIMITED_FROM = 20_001
DAY_MS = 86_400_000
METADATA = b'{"model":"m","streamed":false,"status":200,"duration_ms":812,"input":20,"output":250}'
NUMBERS = count(1)


def world_of(url: str, organization: int, limits: Limits) -> World:
    """One caller of one organization, with the same limits at every scope."""
    world = World(
        url, organization_id=organization, tenant_id=organization + 10**5, key_id=organization + 2 * 10**5
    )
    world.define_organization(limits, cap=10**15)
    world.define_tenant(limits, users=limits)
    world.define_key(limits)
    world.plan(10**15, reset_interval="monthly")
    world.grant("credits", 10**12)
    world.client.close()
    return world


def write_of(worlds: list[World], size: int, scene: Scene) -> tuple[list[Any], list[Any]]:
    """What one write of reserves and the one of their settlements are; calls together, or those of each
    partition, as far as this tree has calls that are.
    """
    number, reserves, settles = next(NUMBERS), [], []
    for at in range(size):
        turn = number * size + at
        world = worlds[(turn if scene.in_turn else at) % len(worlds)]
        user = 0 if scene.in_turn else turn // len(worlds) % USERS
        named = f"user{user}" if scene.users else "ann"
        request = HoldRequest(world.caller, str(uuid.uuid4()), named, scene.service, 300, 300, scene.credits)
        used = Settlement(
            world.caller, request.request_id, named, scene.service, charge=True, tokens=270,
            credits=scene.credits, metadata=METADATA,
        )  # fmt: skip
        budgets = [
            _account(place, windows, world.caller.organization_id, _owner(scene, place, user), scene.window)
            for place, windows in enumerate(scene.accounts)
        ]
        if budgets:
            request.budgets, request.money, request.budget_tokens = tuple(budgets), 900, 300
            used.budgets, used.money, used.budget_tokens = tuple(one.name for one in budgets), 810, 270
        reserves.append((world.p, packing.reserve(world.run_id, 1, TTL_MS, request, 2 * number)))
        settles.append(
            (world.p, packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=2 * number + 1))
        )
    return _commands("reserve", reserves), _commands("settle", settles)


def _owner(scene: Scene, place: int, user: int) -> str:
    """Return whose the account at a place is; empty for an account that is no single owner's."""
    if place not in scene.each:
        return ""
    return f"{user:024x}" if scene.users and place == scene.each[-1] else "a" * 24


def _account(number: int, windows: int, organization: int, owner: str, window: str) -> Any:
    """An account with so many windows of money, tokens and requests by turns; they enforce."""
    from gateway.core.accounts import budgets  # an older tree has none
    from gateway.core.model import BudgetAccount  # the same

    start = round(time.time() * 1000) // DAY_MS * DAY_MS
    times = (0, 0, DAY_MS) if window else (start, start + DAY_MS, start + 2 * DAY_MS)
    kind = getattr(budgets, window) if window else 0
    units = budgets.FLAG_MONEY, budgets.FLAG_TOKENS, budgets.FLAG_REQUESTS
    packed = [
        budgets.DEFINED_WINDOW.pack(
            at + 1, 10**15, *times, budgets.FLAG_ENFORCE | kind | units[at % len(units)]
        )
        for at in range(windows)
    ]
    name = f"{windows:03x}{kind >> 6:x}{organization:04x}{number:08x}" + (f":{owner}" if owner else "")
    return BudgetAccount(name, b"".join(packed), enforced=True)


def _commands(verb: str, calls: list[tuple[int, packing.Call]]) -> list[Any]:
    together = getattr(builders, "together", None)
    groups = [[call] for _, call in calls]
    if hasattr(builders, "by_partition"):
        most = SPREAD if len({p for p, _ in calls}) > 1 else len(calls)
        groups = [[call for _, call in calls[at : at + most]] for at in range(0, len(calls), most)]
    elif together is not None:
        by_partition: dict[int, list[packing.Call]] = {}
        for p, call in calls:
            by_partition.setdefault(p, []).append(call)
        groups = list(by_partition.values())
    merged = [together(verb, group) if together and len(group) > 1 else group[0] for group in groups]
    function = library().functions[verb]
    return [("FCALL", function, len(names), *names, *arguments) for names, arguments in merged]


def main() -> None:
    """Serve until the input ends; the argument is the server's address."""
    url, worlds = sys.argv[1], dict[Limits, list[World]]()
    has_budgets = find_spec("gateway.core.accounts.budgets") is not None
    while True:
        try:
            organizations, size, writes, name = pickle.load(sys.stdin.buffer)  # our parent's
        except EOFError:
            return
        scene = SCENES[name]
        limits = WIDE if scene.limited else Limits()
        known = worlds.setdefault(limits, [])
        first = UNLIMITED_FROM if not scene.limited else 1
        known += [world_of(url, first + at, limits) for at in range(len(known), organizations)]
        made = []
        if has_budgets or not scene.accounts:
            made = [write_of(known[:organizations], size, scene) for _ in range(writes)]
        pickle.dump(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
