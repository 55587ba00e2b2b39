"""Makes what a tree's gateway would send: `reserve` and `settle` of calls that leave in one write.

Runs in the tree it is asked about, whatever that one's layouts and packing are: `tests.bench.scripts` gives
its text to a python there. It defines the accounts on a server, then reads (organizations, calls a write,
writes, kind) and answers as many pairs of lists of commands, both pickled, until its input ends; none of a
kind that this tree does not know.
"""

from __future__ import annotations

import pickle
import sys
import time
import uuid
from decimal import Decimal
from importlib.util import find_spec
from itertools import count
from typing import Any

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
KINDS = {"chat": (CHAT, 0), "credits": (PAID, 1), "tiers": (TIERED, 0)}
# Of each organization, by turns, in the kind `users`.
USERS = 32
# Windows of each account of budgets that a call has, where this tree has budgets; and which of them are
# somebody's, of budgets for each.
BUDGETS = {
    "one window": (1,), "eight windows": (8,), "four accounts": (1, 1, 1, 1), "four scopes": (1, 1, 1, 1),
    "one run": (2,), "eight runs": (2,) * 8,
}  # fmt: skip
EACH = {"four scopes": (2, 3)}
# Calls of as many organizations that are one call: each has four accounts (`gateway.counters.redis.calls`).
SPREAD = 32
DAY_MS = 86_400_000
METADATA = b'{"model":"m","streamed":false,"status":200,"duration_ms":812,"input":20,"output":250}'
NUMBERS = count(1)


def world_of(url: str, organization: int) -> World:
    """One caller of one organization, limited at every scope."""
    world = World(
        url, organization_id=organization, tenant_id=organization + 1000, key_id=organization + 2000
    )
    world.define_organization(WIDE, cap=10**15)
    world.define_tenant(WIDE, users=WIDE)
    world.define_key(WIDE)
    world.plan(10**15, reset_interval="monthly")
    world.grant("credits", 10**12)
    return world


def write_of(worlds: list[World], size: int, kind: str) -> tuple[list[Any], list[Any]]:
    """What one write of reserves and the one of their settlements are; calls together, or those of each
    partition, as far as this tree has calls that are.
    """
    service, credits_ = KINDS.get(kind, (CHAT, 0))
    number, reserves, settles = next(NUMBERS), [], []
    for at in range(size):
        world = worlds[at % len(worlds)]
        user = f"user{(number * size + at) // len(worlds) % USERS}" if kind == "users" else "ann"
        request = HoldRequest(world.caller, str(uuid.uuid4()), user, service, 300, 300, credits_)
        used = Settlement(
            world.caller, request.request_id, user, service, charge=True, tokens=270, credits=credits_,
            metadata=METADATA,
        )  # fmt: skip
        budgets = [
            _account(at, windows, world.caller.organization_id, each=at in EACH.get(kind, ()))
            for at, windows in enumerate(BUDGETS.get(kind, ()))
        ]
        if budgets:
            request.budgets, request.money, request.raw_tokens = tuple(budgets), 900, 300
            used.budgets, used.money, used.raw_tokens = tuple(one.name for one in budgets), 810, 270
        reserves.append((world.p, packing.reserve(world.run_id, 1, TTL_MS, request, 2 * number)))
        settles.append(
            (world.p, packing.settle(world.run_id, 0, used, packing.MODE_CHARGE, batch=2 * number + 1))
        )
    return _commands("reserve", reserves), _commands("settle", settles)


def _account(number: int, windows: int, organization: int, *, each: bool) -> Any:
    """An account with so many windows of money, tokens and requests by turns; they enforce."""
    from gateway.core.accounts import budgets  # an older tree has none
    from gateway.core.model import BudgetAccount  # the same

    start = round(time.time() * 1000) // DAY_MS * DAY_MS
    times = start, start + DAY_MS, start + 2 * DAY_MS
    units = budgets.FLAG_MONEY, budgets.FLAG_TOKENS, budgets.FLAG_REQUESTS
    packed = [
        budgets.DEFINED_WINDOW.pack(at + 1, 10**15, *times, budgets.FLAG_ENFORCE | units[at % len(units)])
        for at in range(windows)
    ]
    name = f"{windows:04x}{organization:04x}{number:08x}" + (":" + "a" * 24 if each else "")
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
    """Serve until the input ends; asked with the server's address and how many organizations there are."""
    url, most = sys.argv[1], int(sys.argv[2])
    worlds = [world_of(url, one) for one in range(1, most + 1)]
    has_budgets = find_spec("gateway.core.accounts.budgets") is not None
    while True:
        try:
            organizations, size, writes, kind = pickle.load(sys.stdin.buffer)  # our parent's
        except EOFError:
            return
        known = kind not in BUDGETS or has_budgets
        made = [write_of(worlds[:organizations], size, kind) for _ in range(writes)] if known else []
        pickle.dump(made, sys.stdout.buffer)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
