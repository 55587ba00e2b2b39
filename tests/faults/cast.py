"""Who calls in a row: tenants, keys and services of its own, and what a call of theirs looks like."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.faults.budgets import Budgets, make_budgets, price_truth
from tests.faults.workload import Caller, Kind, Load, PlannedCall
from tests.faults.world import SERVING_S_MAX, FaultError, World

WIDE_TOKENS = 10**12
CREDITS = 10**9
CREDITS_A_CALL = 3
LIMITS = {"requests_per_minute": 10**7, "tokens_per_minute": 10**10, "concurrency": 10**5}
UNITS_MAX = 7
# Whom calls are for, where they say it.
USERS = ("ann", "bob", "cem", "")

_numbers = itertools.count(1)


@dataclass(slots=True)
class Tenant:
    """One tenant with a token plan of so many tokens, and a key."""

    id: int
    organization_id: int
    key: str
    granted: int
    key_id: int


@dataclass(slots=True)
class Cast:
    """Two organizations: one with a wide and a tight tenant, one with another wide one; credits, units."""

    world: World
    tenants: list[Tenant] = field(default_factory=list)
    tight: Tenant | None = None
    credited: int = 0
    budgets: Budgets = field(default_factory=Budgets)

    @property
    def organizations(self) -> list[int]:
        """Their ids."""
        return sorted({one.organization_id for one in self.tenants})

    def draw(self, draw: random.Random) -> PlannedCall:
        """A call of the usual mix; one in twelve is left by its caller."""
        tenant = draw.choice(self.tenants)
        leave_at = draw.randrange(6) if draw.random() < 1 / 12 else None
        kind = draw.choice((Kind.CHAT, Kind.CHAT, Kind.STREAM, Kind.STREAM, Kind.CREDITS, Kind.UNITS))
        return self.ask(kind, tenant, draw, leave_at)

    def ask(
        self, kind: Kind, tenant: Tenant, draw: random.Random, leave_at: int | None = None, **fields: str
    ) -> PlannedCall:
        """A call of one kind for a tenant."""
        path, said = "/v1/chat/completions", dict(fields)
        if user := draw.choice(USERS):
            said.setdefault("x_tollkeeper_user", user)
        if kind is Kind.STREAM:
            said.setdefault("x_fault_pause_s", f"{draw.uniform(0, 0.01):.4f}")
        elif kind is Kind.CREDITS:
            path = "/services/faults-credits/x"
        elif kind is Kind.UNITS:
            path, said["x_fault_units"] = "/services/faults-units/x", str(draw.randint(1, UNITS_MAX))
        named = tuple((name.replace("_", "-"), value) for name, value in said.items())
        return PlannedCall(kind, tenant.key, path, leave_at, named)

    def load(self, draw: Callable[[random.Random], PlannedCall] | None = None, **options: Any) -> Load:
        """Callers of these tenants, at every gateway in turn."""
        return Load(
            [node.door for node in self.world.gateways], draw or self.draw, self.world.seed, **options
        )

    async def until_budgeted(self, within_s: float = SERVING_S_MAX) -> None:
        """Wait until every gateway knows the budgets, and note what calls cost that were counted by none."""
        draw = random.Random(0)
        for node in self.world.gateways:
            caller = Caller(node.door)
            end = self.world.loop.time() + within_s
            for tenant in self.tenants:
                while not (call := await caller.call(self.ask(Kind.CHAT, tenant, draw))).budget:
                    if self.world.loop.time() > end:
                        raise FaultError(f"no budget is told: {call.status} {call.reason}")
                    await asyncio.sleep(0.05)
            caller.leave()

    async def until_served(self, within_s: float = SERVING_S_MAX) -> None:
        """Wait until every gateway serves every kind of call to every tenant."""
        draw = random.Random(0)
        for node in self.world.gateways:
            caller = Caller(node.door)
            end = self.world.loop.time() + within_s
            for kind in Kind:
                while not (call := await caller.call(self.ask(kind, self.tenants[0], draw))).complete:
                    if self.world.loop.time() > end:
                        raise FaultError(f"{kind.value} is not served: {call.status} {call.reason}")
                    await asyncio.sleep(0.05)
            caller.leave()


async def assemble(
    world: World, tight_tokens: int | None = None, *, budgets: bool = True, **plan: Any
) -> Cast:
    """Make a cast through the Admin API and wait until it is served; with budgets, unless without."""
    cast = Cast(world)
    await asyncio.to_thread(_services, world)
    first = await asyncio.to_thread(make_tenant, world, WIDE_TOKENS, None, plan)
    second = await asyncio.to_thread(make_tenant, world, WIDE_TOKENS, None, plan)
    cast.tenants = [first, second]
    if tight_tokens is not None:
        strict = plan | {"admission": "strict"}  # no call is admitted on less than it may use
        cast.tight = await asyncio.to_thread(make_tenant, world, tight_tokens, first.organization_id, strict)
        cast.tenants.append(cast.tight)
    for organization in cast.organizations:
        addition = {"organization_id": organization, "credits_added": CREDITS}
        await asyncio.to_thread(world.admin, "POST", "/credit-additions", addition)
    if budgets:
        await asyncio.to_thread(price_truth, world)
        cast.budgets = await asyncio.to_thread(make_budgets, world, cast.tenants, cast.tight)
    await cast.until_served()
    return cast


def _services(world: World) -> None:
    present = {one["key"] for one in world.admin("GET", "/services?limit=100")["items"]}
    models = {one["name"]: one["id"] for one in world.admin("GET", "/business-models?limit=100")["items"]}
    common = {"service_type": "Pay-As-You-Go", "counts_tokens": False}
    pricing = {"tiers": [{"up_to": 500, "unit_price": "0.003"}, {"up_to": None, "unit_price": "0.001"}]}
    wanted: dict[str, dict[str, Any]] = {
        "chat": {"credits": 0, "business_model_id": models["Subscription"], "counts_tokens": True},
        "faults-credits": {"credits": CREDITS_A_CALL, "business_model_id": models["Consumption"]},
        "faults-units": {"credits": 0, "business_model_id": models["Pay-Per-Use"], "pricing": pricing},
    }
    for key, fields in wanted.items():
        if key not in present:
            world.admin("POST", "/services", common | {"key": key, "name": key} | fields)


def make_tenant(world: World, tokens: int, organization: int | None, plan: dict[str, Any]) -> Tenant:
    """Make a tenant with a plan and a key, in an organization of its own where none is named."""
    name = f"cast {next(_numbers)}"
    made = world.admin("POST", "/token-plans", {"name": name, "total_amount": tokens} | plan)
    fields: dict[str, Any] = {"name": name, "plan_id": made["id"], "limits": LIMITS, "user_limits": LIMITS}
    if organization is not None:
        fields["organization_id"] = organization
    tenant = world.admin("POST", "/tenants", fields)
    key = world.admin("POST", "/api-keys", {"tenant_id": tenant["id"], "limits": LIMITS})
    return Tenant(tenant["id"], tenant["organization_id"], key["key"], tokens, key["id"])
