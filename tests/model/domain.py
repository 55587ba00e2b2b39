"""The domain in one page: what limits, prices and accounts come to, without storage, clock or failure.

Nothing here is the product's own code. A call is admitted against what is free, settled by what it
used; every movement is a row with the balance after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import ceil

NEVER = 10**18
Tiers = tuple[tuple[int | None, Fraction], ...]
# Kind of movement, signed amount, balance after it (None: unlimited), the request it belongs to.
Row = tuple[str, int, int | None, str]


@dataclass(frozen=True)
class Plan:
    id: int = 0
    total: int | None = None
    policy: str = "block"
    rollover: int = 0


@dataclass(frozen=True)
class Price:
    """A service as a call was admitted to it."""

    key: str
    meter: str
    counts: bool = False
    credits: int = 0
    once: bool = False
    tiers: Tiers = ()
    per_million: tuple[int, int] | None = None

    def cost(self, read: int, written: int, units: int) -> int:
        """Credits of one use."""
        if self.meter != "consumption" or self.once:
            return self.credits if self.once else 0
        if self.per_million is None:
            return self.credits * units
        return ceil(Fraction(read * self.per_million[0] + written * self.per_million[1], 10**6))


def worth(tiers: Tiers, units: int) -> int:
    """What a month's first units cost, in millionths; what is given back beyond them, negative."""
    if units < 0:
        return -worth(tiers, -units)
    total, below = Fraction(0), 0
    for end, price in tiers:
        upto = units if end is None or end == tiers[-1][0] else min(units, end)
        total += max(0, upto - below) * price
        below = max(below, upto)
    return ceil(total * 10**6)


@dataclass
class Tenant:
    plan: Plan = field(default_factory=Plan)
    total: int | None = None
    remaining: int = 0
    used: int = 0
    held: int = 0
    cycle: int = 0
    blocked: bool = False
    forgives: bool = False  # what is beyond a plan that carries now, at its next reset
    rows: list[Row] = field(default_factory=list)

    @property
    def balance(self) -> int | None:
        return None if self.total is None else self.remaining

    def move(self, kind: str, amount: int, request: str = "") -> None:
        if kind != "reset" and (self.total is not None or kind != "consume"):
            self.remaining += amount  # while unlimited: what is granted beyond the plan
        self.rows.append((kind, amount, self.balance, request))

    def reset(self) -> None:
        before, left = self.balance or 0, self.remaining
        carried = min(left, self.plan.rollover) if left > 0 else 0
        if left <= 0 and self.plan.policy == "carry" and not self.forgives:
            carried = left
        self.forgives = False
        self.total, self.used, self.cycle = self.plan.total, 0, self.cycle + 1
        self.remaining = (self.total or 0) + carried
        self.move("reset", (self.balance or 0) - before)

    def follow(self, plan: Plan) -> None:
        """Move to another plan, now."""
        before, old = self.balance or 0, self.total
        self.forgives |= before < 0 and self.plan.policy != "carry"
        self.plan = plan
        if not self.rows:
            self.reset()
            return
        beyond = self.remaining if old is None else self.remaining - old + self.used
        self.total = plan.total
        self.remaining = beyond if self.total is None else self.total + beyond - self.used
        after = self.balance or 0
        self.rows.append(("adjust", after - before, self.balance, ""))

    def hold(self, need: int) -> tuple[int, str]:
        if self.total is None or self.plan.policy == "bill" or not need:
            return need, ""
        if self.remaining <= 0:
            return 0, "QUOTA_EXCEEDED"
        free = self.remaining - self.held
        return (min(free, need), "") if free > 0 else (0, "QUOTA_HELD")


@dataclass
class Once:
    """A One-Time service: nobody paid, somebody is about to, paid."""

    state: str = "unpaid"
    waiting: int = 0
    price: int = 0


@dataclass
class Call:
    tenant: Tenant
    price: Price
    request: str
    tokens: int = 0
    credits: int = 0
    held_units: int = 0
    seen: tuple[int, int] = (0, 0)  # tokens, credits
    units: int = 0  # charged by a reclaim
    state: str = "open"  # then done, reclaimed (charged what was seen), or lost with its hold


@dataclass
class Grant:
    id: int
    amount: int
    promotional: bool
    priority: int
    left: int = 0
    until: int = NEVER


@dataclass
class Organization:
    balance: int = 0
    limit: int = 0
    held: int = 0
    cap: int | None = None
    spent: int = 0
    quantity: dict[str, int] = field(default_factory=dict)
    units_held: dict[str, int] = field(default_factory=dict)
    worth_held: dict[str, int] = field(default_factory=dict)  # what all units held would cost together
    once: dict[str, Once] = field(default_factory=dict)
    credit_rows: list[Row] = field(default_factory=list)
    unit_rows: list[tuple[int, int, int, str]] = field(default_factory=list)  # units, cost, spent, request
    grants: dict[int, Grant] = field(default_factory=dict)
    debts: list[int] = field(default_factory=list)

    def reserve(self, tenant: Tenant, price: Price, request: str, need: int, units: int) -> Call | str:
        """The call, or which limit refused it."""
        if tenant.blocked:
            return "TENANT_BLOCKED"
        call = Call(tenant, price, request)
        if price.counts:
            call.tokens, refusal = tenant.hold(need)
            if refusal:
                return refusal
        wanted = price.cost(need, 0, units)
        once = self.once.setdefault(price.key, Once()) if price.once else None
        if once is not None and once.state != "unpaid":
            wanted = 0
        if wanted > 0:
            there = self.balance + self.limit
            if wanted > there - self.held:
                return "INSUFFICIENT_CREDITS" if wanted > there else "QUOTA_HELD"
            call.credits = wanted
        if price.meter == "pay_per_use":
            before = self.units_held.get(price.key, 0)
            more = self._worth(price, before + units) - self._worth(price, before)
            if self.cap is not None and more > 0:
                others = self.spend_held - self.worth_held.get(price.key, 0)
                if self.spent + others + self._worth(price, before + units) > self.cap:
                    alone = self.spent + self._worth(price, units)
                    return "SPEND_CAP_REACHED" if alone > self.cap else "QUOTA_HELD"
            self._hold_units(call, units)
        if once is not None and once.state != "paid":
            once.waiting += 1
            if once.state == "unpaid":
                once.state, once.price = "pending", wanted
        tenant.held += call.tokens
        self.held += call.credits
        return call

    @property
    def spend_held(self) -> int:
        """What of the cap is held."""
        return sum(self.worth_held.values())

    def _hold_units(self, call: Call, units: int) -> None:
        """Hold so many units for a call, or all of its own no more (below 0)."""
        key = call.price.key
        self.units_held[key] = self.units_held.get(key, 0) + units
        call.held_units += units
        self._keep(call.price)

    def _keep(self, price: Price) -> None:
        self.worth_held[price.key] = (
            0 if self.cap is None else self._worth(price, self.units_held.get(price.key, 0))
        )

    def extend(self, call: Call, seen: int, worth_: int, wanted: tuple[int, int]) -> None:
        """Note what was seen of a call, and hold more where it is free."""
        tenant = call.tenant
        call.seen = (max(seen, call.seen[0]), max(worth_, call.seen[1]))
        more = wanted[0] - call.tokens
        if call.price.counts and more > 0:
            if tenant.total is not None and tenant.plan.policy != "bill":
                more = min(more, max(0, tenant.remaining - tenant.held))
            call.tokens, tenant.held = call.tokens + more, tenant.held + more
        more = wanted[1] - call.credits
        if call.price.per_million is not None and more > 0:
            more = min(more, max(0, self.balance + self.limit - self.held))
            call.credits, self.held = call.credits + more, self.held + more

    def release(self, call: Call) -> None:
        """The hold goes; what it pays for a One-Time service stays with those who wait."""
        call.tenant.held -= call.tokens
        if call.price.meter == "pay_per_use":
            self._hold_units(call, -call.held_units)
        if not call.price.once:
            self.held -= call.credits
        call.tokens = call.credits = 0

    def fail(self, call: Call) -> None:
        self.release(call)
        once = self.once.get(call.price.key)
        if once is not None:
            once.waiting = max(0, once.waiting - 1)
            if once.state == "pending" and not once.waiting:
                self.held -= once.price
                once.state, once.price = "unpaid", 0

    def charge(self, call: Call, tokens: int, paid: int, units: int, *, held: bool = True) -> None:
        """Settle a call by what it used; `held` says whether its hold is still there."""
        price, once = call.price, self.once.get(call.price.key)
        if held:
            self.release(call)
        if once is not None:
            once.waiting = max(0, once.waiting - held)
            if once.state != "paid":
                if once.state == "pending":
                    self.held -= once.price
                    paid = once.price
                once.state = "paid"
                self.pay(paid, call.request)
        elif price.meter == "consumption":
            self.pay(paid, call.request)
        if price.meter == "pay_per_use":
            self.use(price, units, call.request)
        if price.counts:
            call.tenant.used += tokens
            call.tenant.move("consume", -tokens, call.request)

    def correct(self, call: Call, tokens: int, paid: int, units: int) -> None:
        """Make good what a reclaim charged; credits only upward."""
        if paid:
            self.pay(paid, call.request)
        if units:
            self.use(call.price, units, call.request)
        if tokens:
            call.tenant.move("adjust", -tokens, call.request)

    def pay(self, paid: int, request: str) -> None:
        self.balance -= paid
        self.credit_rows.append(("use", -paid, self.balance, request))
        self._allocate(paid)

    def use(self, price: Price, units: int, request: str) -> None:
        cost = self._worth(price, units)
        self.quantity[price.key] = self.quantity.get(price.key, 0) + units
        self.spent += cost
        self._keep(price)
        self.unit_rows.append((units, cost, self.spent, request))

    def grant(self, amount: int, grant: Grant | None = None) -> None:
        """Credits added, or taken back."""
        self.balance += amount
        self.credit_rows.append(("grant", amount, self.balance, ""))
        if amount < 0:
            self._allocate(-amount)
        elif grant is not None:
            grant.left = amount
            self.grants[grant.id] = grant
            while grant.left and self.debts:
                part = min(grant.left, self.debts[0])
                grant.left -= part
                self.debts[0] -= part
                self.debts = [debt for debt in self.debts if debt]

    def expire(self, grant: Grant) -> None:
        rest, grant.left = grant.left, 0
        if rest:
            self.balance -= rest
            self.credit_rows.append(("grant", -rest, self.balance, ""))

    def _worth(self, price: Price, units: int) -> int:
        before = self.quantity.get(price.key, 0)
        return worth(price.tiers, before + units) - worth(price.tiers, before)

    def _allocate(self, amount: int) -> None:
        order: Sequence[Grant] = sorted(
            self.grants.values(), key=lambda one: (one.priority, one.until, not one.promotional, one.id)
        )
        for grant in order:
            part = min(grant.left, amount)
            grant.left, amount = grant.left - part, amount - part
        if amount:
            self.debts.append(amount)
