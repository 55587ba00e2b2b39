"""Makes what a tree's gateway would send: `reserve` and `settle` of calls that leave in one write.

Runs in the tree it is asked about, whatever that one's layouts and packing are: `tests.bench.scripts` gives
its text to a python there. It reads (organizations, calls a write, writes, scene), defines these accounts
on a server once, and answers as many pairs of lists of commands, both pickled, until its input ends; none of
a scene that this tree does not know. Budgets are found as a gateway of that tree finds them.
"""

from __future__ import annotations

import pickle
import sys
import time
import uuid
from collections.abc import Callable
from decimal import Decimal
from functools import cache
from itertools import count
from typing import Any, NamedTuple

from gateway.core.accounts.budgets import UNITS, Budget, CallAttributes
from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.billing.money import PriceTier, ServicePricing
from gateway.core.model import Caller, HoldRequest, Limits, Service, Settlement
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
# Of every budget; and the model of calls.
AMOUNT = 10**15
MODEL = "m" * 8


def defined(*selectors: dict[str, Any], **fields: Any) -> list[Budget]:
    """Return a budget in money of a day for each selector."""
    return [
        Budget(
            at + 1,
            f"budget {at}",
            **{"unit": "money", "amount": AMOUNT, "interval": "day"} | fields | selector,
        )
        for at, selector in enumerate(selectors)
    ]


def owners(caller: Caller, *others: dict[str, Any]) -> list[Budget]:
    """Return budgets of an organization, a tenant and a key, and those of `others`."""
    return defined({}, {"tenant_id": caller.tenant_id}, {"api_key_id": caller.key_id}, *others)


def money(caller: Caller) -> list[Budget]:
    """Return budgets of an organization, a tenant, a key, and each user."""
    return owners(caller, {"each": "user"})


def of_length(caller: Caller, window: str) -> list[Budget]:
    """Return the budget of a tenant with a window that the calendar does not end."""
    return defined({"tenant_id": caller.tenant_id}, interval="", window=window, length_ms=5 * 3_600_000)


def of_models(models: int, windows: int) -> list[Budget]:
    """Return budgets of so many models, each an account with so many windows by turns."""
    return defined(
        *[
            {"model": MODEL[: at + 1] + "*", "unit": UNITS[number % len(UNITS)]}
            for at in range(models)
            for number in range(windows)
        ]
    )


class Scene(NamedTuple):
    """What calls have: a service, limits at every scope or none, budgets, steps of these, users.

    With `in_turn` a write begins behind the organizations of the one before. A step is a budget's id, its part of
    the limit in millionths, and what it does, as a request brings it.
    """

    service: Service = CHAT
    credits: int = 0
    limited: bool = True
    budgets: Callable[[Caller], list[Budget]] | None = None
    steps: tuple[tuple[int, int, int], ...] = ()
    users: bool = False
    in_turn: bool = False


SCENES = {
    "ledger": Scene(limited=False),
    "limits": Scene(),
    "credits": Scene(PAID, 1),
    "tiers": Scene(TIERED),
    "one window": Scene(budgets=lambda _: of_models(1, 1)),
    "two windows": Scene(budgets=lambda _: of_models(1, 2)),
    "eight windows": Scene(budgets=lambda _: of_models(1, 8)),
    "four accounts": Scene(budgets=lambda _: of_models(4, 1)),
    "eight accounts": Scene(budgets=lambda _: of_models(8, 2)),
    "money": Scene(budgets=money),
    "owners": Scene(budgets=owners),
    "rolling": Scene(budgets=lambda caller: of_length(caller, "rolling")),
    "first use": Scene(budgets=lambda caller: of_length(caller, "first_use")),
    "steps": Scene(budgets=money, steps=((1, 950_000, 1), (1, 800_000, 1), (4, 800_000, 1))),
    "users": Scene(users=True),
    "users, owners": Scene(budgets=owners, users=True),
    "users, money": Scene(budgets=money, users=True),
    "users in turn": Scene(users=True, in_turn=True),
}
# Calls of as many organizations that are one call: each has four accounts (`gateway.counters.redis.calls`).
SPREAD = 32
# The ids of organizations without limits: behind those of all others.
UNLIMITED_FROM = 20_001
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


@cache
def budgets_of(caller: Caller, name: str) -> OrganizationBudgets:
    """Return the budgets of a caller's organization in a scene."""
    make = SCENES[name].budgets
    return OrganizationBudgets(caller.organization_id, make(caller) if make else [], "EUR")


def write_of(worlds: list[World], size: int, name: str) -> tuple[list[Any], list[Any]]:
    """What one write of reserves and the one of their settlements are; calls together, or those of each
    partition, as far as this tree has calls that are.
    """
    scene, number, reserves, settles = SCENES[name], next(NUMBERS), [], []
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
        if scene.budgets:
            caller = world.caller
            asked = CallAttributes(caller.tenant_id, caller.key_id, CHAT.id, named, None, (MODEL,))
            budgets = budgets_of(caller, name).find(asked, round(time.time() * 1000))
            request.budgets, request.money, used.budgets, used.money = (
                budgets.accounts,
                900,
                budgets.names,
                810,
            )
            tokens = (
                "budget_tokens" if hasattr(request, "budget_tokens") else "raw_tokens"
            )  # an older tree's name
            setattr(request, tokens, 300)
            setattr(used, tokens, 270)
        if scene.steps:
            request.steps = scene.steps
        reserves.append((world.p, packing.reserve(world.run_id, 1, TTL_MS, request, 2 * number)))
        settles.append(
            (world.p, packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=2 * number + 1))
        )
    return _commands("reserve", reserves), _commands("settle", settles)


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
        try:
            made = [write_of(known[:organizations], size, name) for _ in range(writes)]
        except (AttributeError, TypeError) as error:  # a field that this tree does not have
            print(f"{name}: {error}", file=sys.stderr)
            made = []
        pickle.dump(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
