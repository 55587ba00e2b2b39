"""Budgets in money of a cast, of organizations, tenants, keys and each user; and what they come to.

Some are by the calendar, some roll, and some owners have overrides of their own or of a group. What each call costs is known by the upstream's count of its tokens. Of every budget what is used is compared
with that, in nano-units, in the counters and in the ledger.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gateway.core.accounts.budgets import owner_of
from tests.faults.truth import PROMPT_TOKENS, ServedCall
from tests.faults.world import LOOK_S, FaultError, World

if TYPE_CHECKING:
    from tests.faults.cast import Tenant

MODEL, CURRENCY = "truth", "USD"
# Nano-units a token: 2.5 and 10 a million.
INPUT_NANO, OUTPUT_NANO = 2_500, 10_000
WIDE, TIGHT_NANO = "1000000", 8_000_000
# A rolling window holds all of a row, whichever clock jumps by an hour; a part of it takes twelve minutes.
TAKEN_UP_S_MAX = 180.0
ROLLING = {"window": "rolling", "length": "6h"}
# Who has another limit in the tight tenant's rolling budget, by an override of the user and of a group.
TIGHT_USERS = {"ann": 1_200_000, "bob": 1_800_000}
USED = (
    "SELECT b.id, coalesce(sum(u.used), 0) FROM budget AS b LEFT JOIN budget_use AS u ON u.budget_id = b.id"
    " WHERE b.id = ANY(%s) GROUP BY 1"
)
USED_BY = "SELECT value, sum(used) FROM budget_use WHERE budget_id = %s GROUP BY 1"
# What runs now is what began last, and every part of a rolling window.
USED_NOW = (
    "SELECT budget_id, sum(used) FROM budget_use AS u JOIN budget AS b ON b.id = budget_id WHERE b.id = ANY(%s)"
    " AND (b.\"window\" = 'rolling' OR start = (SELECT max(start) FROM budget_use WHERE budget_id = b.id))"
    " GROUP BY 1"
)
COSTS = (
    "SELECT request_id::text, organization_id, tenant_id, api_key_id, coalesce(cost, 0) FROM call"
    " WHERE organization_id = ANY(%s) AND NOT refused"
)


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget, and whose calls it is of: a column of the journal and its value."""

    id: int
    of: str
    owner: int


@dataclass(slots=True)
class Budgets:
    """A cast's budgets. `tight` and `tight_each` run out: one of all calls, and one of each user by overrides;
    `before` is what calls cost that no gateway counted yet, by budget.
    """

    all: list[Budget] = field(default_factory=list)
    tight: int | None = None
    tight_each: int | None = None
    before: dict[int, int] = field(default_factory=dict)


def cost_of(told: ServedCall) -> int:
    """What a call costs in nano-units; only models do."""
    if told.kind != "tokens":
        return 0
    return PROMPT_TOKENS * INPUT_NANO + (told.tokens - PROMPT_TOKENS) * OUTPUT_NANO


def price_truth(world: World) -> None:
    """Give the upstream's model its price, once."""
    if not world.admin("GET", f"/prices?model={MODEL}")["items"]:
        price = {
            "model": MODEL, "currency": CURRENCY, "effective_from": "2024-01-01T00:00:00Z",
            "input": "2.5", "output": "10",
        }  # fmt: skip
        world.admin("POST", "/prices", price)


def make_budgets(world: World, tenants: Sequence[Tenant], tight: Tenant | None) -> Budgets:
    """Make them: each organization has one, each tenant, each key, and everybody in each organization."""
    found = Budgets()
    for organization in sorted({one.organization_id for one in tenants}):
        add_budget(world, found, organization, "organization_id", organization, interval="total")
        rolling = add_budget(
            world, found, organization, "organization_id", organization, each="key", **ROLLING
        )
        for one in tenants:
            if one.organization_id == organization:
                world.admin("PUT", f"/budgets/{rolling}/overrides/{one.key_id}", {"amount": None})
        add_budget(world, found, organization, "organization_id", organization, each="user", interval="week")
    for one in tenants:
        of = one.organization_id
        add_budget(world, found, of, "tenant_id", one.id, tenant_id=one.id, interval="month")
        add_budget(world, found, of, "api_key_id", one.key_id, api_key_id=one.key_id, interval="day")
    if tight is not None:
        of = tight.organization_id
        found.tight = add_budget(
            world, found, of, "tenant_id", tight.id,
            tenant_id=tight.id, interval="year", amount=_decimal(TIGHT_NANO),
        )  # fmt: skip
        found.tight_each = add_budget(
            world, found, of, "tenant_id", tight.id, tenant_id=tight.id, each="user", **ROLLING
        )
        members = {"kind": "user", "members": [*TIGHT_USERS, "cem"]}
        group = {"organization_id": of, "name": "all but one", **members}
        group_id = world.admin("POST", "/groups", group)["id"]
        for who, user in (("ann", "ann"), (f"group:{group_id}", "bob")):
            override = {"amount": _decimal(TIGHT_USERS[user])}
            world.admin("PUT", f"/budgets/{found.tight_each}/overrides/{who}", override)
    return found


def _decimal(nano: int) -> str:
    return f"{Decimal(nano) / 10**9:.9f}"


def add_budget(
    world: World, found: Budgets, organization: int, of: str, owner: int, *, amount: str = WIDE, **said: Any
) -> int:
    """Make one of an organization's budgets, of whose calls a column of the journal tells the owner; its id.

    Where Redis has lost its data, one with a length waits until no earlier program may run.
    """
    name = f"{of} {owner} {said.get('each')} {said.get('interval')}"
    fields = {"organization_id": organization, "name": name, "unit": "money", "amount": amount, **said}
    end, made = time.monotonic() + TAKEN_UP_S_MAX, 0
    while not made:
        try:
            made = int(world.admin("POST", "/budgets", fields)["id"])
        except FaultError as error:
            if ": 409 " not in str(error) or time.monotonic() > end:
                raise
            time.sleep(LOOK_S)
    found.all.append(Budget(made, of, owner))
    return made


def begin(world: World, budgets: Budgets, organizations: Sequence[int]) -> None:
    """Remember what calls cost before every gateway knew of the budgets; everything is at rest."""
    costs, stored = _by_budget(world, budgets, organizations), _stored(world, budgets)
    budgets.before = {one.id: costs[one.id] - stored[one.id] for one in budgets.all}


def compare(
    world: World, budgets: Budgets, organizations: Sequence[int], *, rows_gone: bool
) -> Iterable[str]:
    """What does not come to the same: a budget in the ledger, in the counters, and its calls.

    Where rows of PostgreSQL are gone, what the counters have is more than what rows come to.
    """
    costs, stored = _by_budget(world, budgets, organizations), _stored(world, budgets)
    live, now = _live(world, organizations), dict.fromkeys(stored, 0)
    now |= {budget: int(used) for budget, used in world.rows(USED_NOW, list(stored))}
    for one in budgets.all:
        what = f"budget {one.id} of {one.of} {one.owner}"
        expected = costs[one.id] - budgets.before.get(one.id, 0)
        if stored[one.id] != expected:
            yield f"{what} has {stored[one.id]} nano-units stored, its calls cost {expected}"
        if live[one.id] < now[one.id] or (live[one.id] > now[one.id] and not rows_gone):
            yield f"{what} has {live[one.id]} nano-units in the counters, {now[one.id]} stored"


def over_granted(world: World, budgets: Budgets) -> int:
    """How many nano-units a tight budget was passed by, the one that was passed by most."""
    if budgets.tight is None:
        return 0
    used = {owner: int(amount) for owner, amount in world.rows(USED_BY, budgets.tight_each)}
    beyond = [_stored(world, budgets)[budgets.tight] - TIGHT_NANO]
    beyond += [used.get(owner_of(user), 0) - limit for user, limit in TIGHT_USERS.items()]
    return max(0, *beyond)


def costs_of(world: World, organizations: Sequence[int]) -> dict[str, int]:
    """What the journal says each request cost."""
    return {row[0]: int(row[4]) for row in world.rows(COSTS, list(organizations))}


def _by_budget(world: World, budgets: Budgets, organizations: Sequence[int]) -> dict[int, int]:
    columns = {"organization_id": 1, "tenant_id": 2, "api_key_id": 3}
    rows = world.rows(COSTS, list(organizations))
    return {
        one.id: sum(int(row[4]) for row in rows if row[columns[one.of]] == one.owner) for one in budgets.all
    }


def _stored(world: World, budgets: Budgets) -> dict[int, int]:
    rows = world.rows(USED, [one.id for one in budgets.all])
    return {budget: int(used) for budget, used in rows}


def _live(world: World, organizations: Sequence[int]) -> Mapping[int, int]:
    """What the counters say is used of each, by the Admin API; of those for each of all accounts."""
    found = {}
    for organization in organizations:
        for one in world.admin("GET", f"/budgets?organization_id={organization}&limit=100")["items"]:
            told = [one]
            if one["each"]:
                told = world.admin("GET", f"/budgets/{one['id']}/accounts?limit=100")["items"]
            found[one["id"]] = sum(int(Decimal(each["used"]) * 10**9) for each in told)
    return found
