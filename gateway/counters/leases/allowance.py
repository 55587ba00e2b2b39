"""What a worker may admit by itself while Redis is away: the amounts that it leased before, by tenant.

This module neither calls Redis nor waits: `Leaser` renews the leases, and `Counters` admits calls on them. A
call counts with its hold while it runs, and with its use afterwards until Redis has charged it. So no token
of a lease is used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

from gateway.core.accounts.weights import Weights
from gateway.core.calls.tariff import CONSUMPTION, extended
from gateway.core.model import (
    Admitted,
    Caller,
    HoldExtension,
    HoldRequest,
    Service,
    Settlement,
    SettleResult,
    Verdict,
)
from gateway.counters.layouts import packing
from gateway.counters.layouts.packing import Call
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable, InvalidApiKey

# The script `lease`: its arguments and its answer. Pure.
#
# `AccountLease` is one account's part, in tokens or credits. `kept` is the amount that the gateway still
# counts on, `spent` the used part of it that is not charged yet, and `handed` the part of `spent`
# that the late queue has.

MILLION = 1_000_000
GIVE_BACK, IF_OVER = 0, -1
LEASED, NONE, RENEWED, UNVERIFIED, UNKNOWN = 1, 2, 3, 0, -2


class AccountLease(NamedTuple):
    """One account's part of a lease, as the gateway reports it."""

    kept: int = 0
    spent: int = 0
    handed: int = 0


NOTHING = AccountLease()


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """The terms of a lease in the answer of `lease`. `tokens` is None without a limit.

    `strict` and `cuts` are the plan's, with id `plan_id`; `capped` is whether the organization has a spend
    cap; `charged` is whether all use that was reported as handed in is charged by now.
    """

    tokens: int | None
    credits: int
    strict: bool
    cuts: bool
    capped: bool
    charged: bool
    plan_id: int = 0


def lease(
    run_id: bytes, caller: Caller, lease_id: str, ttl_ms: int, *, fraction: float = 0.0,
    tokens: AccountLease = NOTHING, credits_: AccountLease = NOTHING,
) -> Call:  # fmt: skip
    """Return keys and arguments of the script `lease`; a `ttl_ms` of GIVE_BACK or IF_OVER ends the lease.

    `fraction` of the account's free amounts is leased; `tokens` and `credits_` are the parts leased before.
    """
    p = caller.partition
    return (
        keys.deadlines(p),
        keys.outbox(p),
        keys.late(p),
        keys.marker(p),
        keys.hold(p, lease_id),
        keys.tenant_state(p, caller.tenant_id),
        keys.organization_state(p, caller.organization_id),
    ), (packing.LEASE.pack(run_id, ttl_ms, round(fraction * MILLION), *tokens, *credits_, lease_id.encode()),)


def leased(answer: bytes) -> LeaseTerms | None:
    """Return the terms in an answer of `lease`; None if there is no lease, or Redis cannot tell."""
    if len(answer) != packing.LEASED.size:
        return None
    found = packing.LEASED.read(answer)
    strict, cuts, capped, charged = (bool(found[name]) for name in ("strict", "cuts", "capped", "charged"))
    tokens = None if found["tokens"] < 0 else found["tokens"]
    return LeaseTerms(tokens, found["credits"], strict, cuts, capped, charged, found["plan_id"])


_NO_WEIGHTS: Mapping[int, Weights] = {}
TENANTS_MAX = 10_000
REVOKED_MAX = 10_000


@dataclass(slots=True)
class LeaseShare:
    """One account's part: `kept` is leased, `spent` is used of it, `settled` is used by ended calls."""

    kept: int = 0
    spent: int = 0
    settled: int = 0

    @property
    def left(self) -> int:
        """The amount that may still be used; below 0 if calls used more than they held."""
        return self.kept - self.spent

    def share(self, handed_in: bool) -> AccountLease:
        """Return one account's part of a lease as arguments of the script `lease`.

        `handed_in` is whether Redis has all settlements of the leased amount.
        """
        return AccountLease(max(self.kept, self.spent), self.spent, self.settled if handed_in else 0)

    def renew(self, kept: int, charged: int) -> None:
        """Set the leased amount to `kept`; subtract `charged` from the spent and the settled amount."""
        self.kept = kept
        self.spent -= charged
        self.settled -= charged


@dataclass(slots=True)
class Allowance:
    """One tenant's lease, valid `until` (monotonic seconds); the fields after it are the leaser's.

    Tokens are those of the quota, as its plan weighs them. `held` is whether Redis may hold an amount for
    this lease, and `ends` whether it is being given back.
    """

    caller: Caller
    lease_id: str
    tokens: LeaseShare = field(default_factory=LeaseShare)
    credits: LeaseShare = field(default_factory=LeaseShare)
    unlimited: bool = False
    strict: bool = False
    cuts: bool = False
    capped: bool = False
    plan_id: int = 0
    until: float = 0.0
    seen: float = 0.0
    turn: int = 0
    used_at: float = 0.0
    held: bool = False
    ends: bool = False

    @property
    def spent(self) -> bool:
        """Whether calls used tokens or credits of this lease that are not charged yet."""
        return self.tokens.spent > 0 or self.credits.spent > 0

    def renew(self, terms: LeaseTerms, until: float, tokens: AccountLease, credits_: AccountLease) -> None:
        """Adopt the terms of a renewed lease, valid `until` a monotonic time.

        `tokens` and `credits_` are the shares that were sent for it.
        """
        self.until, self.unlimited, self.held = until, terms.tokens is None, True
        self.strict, self.cuts, self.capped = terms.strict, terms.cuts, terms.capped
        self.plan_id = terms.plan_id
        self.tokens.renew(terms.tokens or 0, tokens.handed if terms.charged else 0)
        self.credits.renew(terms.credits, credits_.handed if terms.charged else 0)

    def drop(self) -> None:
        """End the lease: admit nothing more on it."""
        self.until, self.unlimited = 0.0, False
        self.tokens.kept = self.credits.kept = 0
        self.charged()

    def charged(self) -> None:
        """Remove all settled use from the lease: it is charged, or will be, without being held until then."""
        for share in (self.tokens, self.credits):
            share.renew(share.kept, share.settled)


@dataclass(slots=True)
class _LeaseUse:
    """The amounts one call holds of a lease; `alone` is whether Redis has no known hold of the call."""

    allowance: Allowance
    tokens: int
    credits: int
    alone: bool = True


class Allowances:
    """All tenants' leases in one worker, and the calls admitted on them.

    `worker_slot` is part of the leases' ids, so that the next worker in this slot finds them. `fresh` are
    tenants whose first lease is to be requested, `hurried` those to be renewed soon. `calls` are in flight,
    by request id; `admitted` counts them since the start, and `left_out` the calls of tenants beyond the
    maximum of leases.
    """

    def __init__(
        self, clock: Callable[[], float], worker_slot: UUID | None = None, *, tenants_max: int = TENANTS_MAX
    ) -> None:
        self.fresh: list[Allowance] = []
        self.hurried: dict[int, Allowance] = {}
        self.admitted = self.left_out = 0
        self.calls: dict[str, _LeaseUse] = {}
        self._clock, self._tenants_max = clock, tenants_max
        self._worker_slot = worker_slot or uuid4()
        self._tenants: dict[int, Allowance] = {}
        self._revoked: dict[int, None] = {}

    @property
    def in_force(self) -> int:
        """The number of tenants with a valid lease."""
        now = self._clock()
        return sum(tenant.until > now for tenant in self._tenants.values())

    def snapshot(self) -> dict[str, int]:
        return {
            "leases": self.in_force, "leases_left_out": self.left_out, "admitted_locally": self.admitted
        }  # fmt: skip

    def all(self) -> list[Allowance]:
        """Return the leases of all tenants seen lately."""
        return list(self._tenants.values())

    def note_caller(self, caller: Caller) -> None:
        """Note that a caller was seen, so that its tenant's lease is kept."""
        tenant = self._tenants.get(caller.tenant_id)
        if tenant is not None:
            tenant.seen = self._clock()

    def wanted(self, caller: Caller) -> None:
        """Request a lease for the tenant of an admitted call, whose plan allows calls without Redis."""
        allowance = self._tenants.get(caller.tenant_id)
        if allowance is None:
            if len(self._tenants) >= self._tenants_max:
                self.left_out += 1
                return
            lease_id = str(uuid5(self._worker_slot, str(caller.tenant_id)))
            allowance = self._tenants[caller.tenant_id] = Allowance(caller, lease_id)
            self.fresh.append(allowance)
        allowance.seen = self._clock()

    def forget(self, allowance: Allowance) -> None:
        """Drop the lease of a tenant without recent calls."""
        self._tenants.pop(allowance.caller.tenant_id, None)
        self.hurried.pop(allowance.caller.tenant_id, None)

    def covers(self, caller: Caller) -> bool:
        """Return whether this caller's tenant has a valid lease, so that it may be served without Redis."""
        tenant = self._tenants.get(caller.tenant_id)
        return tenant is not None and tenant.until > self._clock()

    def refused(self, caller: Caller, verdict: Verdict) -> None:
        """Note that Redis refused a call, so that the lease does not admit it later."""
        tenant = self._tenants.get(caller.tenant_id)
        if verdict is Verdict.REVOKED:
            if len(self._revoked) >= REVOKED_MAX:
                del self._revoked[next(iter(self._revoked))]
            self._revoked[caller.key_id] = None
        elif tenant is not None and tenant.held and verdict in {Verdict.TENANT_BLOCKED, Verdict.QUOTA_HELD}:
            self.hurried[caller.tenant_id] = tenant
            if verdict is Verdict.TENANT_BLOCKED:
                tenant.until = 0.0

    def admit(self, request: HoldRequest, by_plan: Mapping[int, Weights] = _NO_WEIGHTS) -> Admitted:
        """Admit a call on its tenant's lease; CountersUnavailable without one, or if too little is left."""
        caller, service = request.caller, request.service
        tenant = self._tenants.get(caller.tenant_id)
        if tenant is None or tenant.until <= self._clock():
            raise CountersUnavailable
        if caller.key_id in self._revoked:
            raise InvalidApiKey
        if any(account.enforced for account in request.budgets):
            raise CountersUnavailable("The rest of a budget cannot be known while the counters are away.")
        if service.one_time or (tenant.capped and service.pricing.ladder):
            raise CountersUnavailable("What this service costs cannot be known while the counters are away.")
        weights = by_plan.get(tenant.plan_id) if by_plan and service.counts_tokens else None
        tokens = _tokens_for(tenant, request, weights)
        credits_ = _credits_for(tenant, request)
        tenant.tokens.spent += tokens
        tenant.credits.spent += credits_
        head = self.calls.get(request.request_id)  # a top-up keeps its head's amounts, which count already
        alone = not request.raises if head is None else head.alone
        self.calls[request.request_id] = _LeaseUse(tenant, tokens, credits_, alone)
        self.admitted += head is None
        return _decision(tenant, service, tokens, credits_, weights)

    def admitted_there(self, request: HoldRequest, decision: Admitted) -> None:
        """Note that Redis has a hold of this call, even if its first part was admitted on the lease.

        Request a renewed lease if the decision allows one.
        """
        if request.raises and (taken := self.calls.get(request.request_id)) is not None:
            taken.alone = False
        if decision.leases:
            self.wanted(request.caller)

    def over(self, settlement: Settlement, settled: SettleResult) -> None:
        """End a call admitted here: its use counts against the lease until it is charged."""
        taken = self.calls.pop(settlement.request_id, None)
        if taken is None:
            return
        used = settlement.charge and settled is not SettleResult.DONE
        taken.allowance.used_at = self._clock()
        _correct(taken.allowance.tokens, taken.tokens, settlement.of_quota if used else 0)
        _correct(taken.allowance.credits, taken.credits, settlement.credits if used else 0)

    def request_extension(self, extension: HoldExtension, margin: int) -> bool:
        """Hold more of the lease for a running call, `margin` tokens ahead; False if not admitted here."""
        taken = self.calls.get(extension.request_id)
        if taken is None:
            return False
        lease, tokens, credits_, short = taken.allowance, 0, 0, False
        if extension.counts:
            want = extension.wanted(margin) - taken.tokens
            tokens = want if lease.unlimited else min(want, max(0, lease.tokens.left))
            short = tokens < want
        if extension.rate is not None:
            want = max(0, extension.rate.credits(extension.ahead(margin)) - taken.credits)
            credits_ = min(want, max(0, lease.credits.left))
            short = short or credits_ < want
        refused = short and extension.answered is not None
        extended(extension, taken.tokens + tokens, taken.credits + credits_, refused=refused)
        if refused:
            return True
        lease.tokens.spent += tokens
        lease.credits.spent += credits_
        taken.tokens += tokens
        taken.credits += credits_
        if short:
            extension.exhausted, extension.cut = True, lease.cuts
        return True


def _correct(share: LeaseShare, held: int, used: int) -> None:
    share.spent += used - held
    share.settled += used


def _tokens_for(allowance: Allowance, request: HoldRequest, weights: Weights | None) -> int:
    """Return the tokens to hold on the lease `allowance`, as `reserve` would; CountersUnavailable for too few."""
    need, ceiling, least = request.need, request.ceiling, request.least
    if weights is not None:
        need, ceiling, least = request.weigh(weights)
    if not request.service.counts_tokens or not ceiling:
        return 0
    if allowance.unlimited:
        return need
    left = allowance.tokens.left
    if left <= 0 or (allowance.strict and left < (least or ceiling)):
        raise CountersUnavailable(_USED_UP)
    if left < ceiling:
        return left
    return ceiling if allowance.strict else need


def _credits_for(allowance: Allowance, request: HoldRequest) -> int:
    """Return the credits to hold on the lease `allowance`: all, or the rest if that covers the least amount.

    CountersUnavailable if the rest covers neither.
    """
    left = allowance.credits.left
    if request.credits <= max(0, left):  # a free call is covered
        return request.credits
    if 0 < request.credits_least <= left:
        return left
    raise CountersUnavailable(_USED_UP)


def _decision(
    allowance: Allowance, service: Service, tokens: int, credits_: int, weights: Weights | None
) -> Admitted:
    """Return an admission on the lease `allowance`, whose remaining amounts it has instead of the account's."""
    limited = service.counts_tokens and not allowance.unlimited
    return Admitted(
        limit=allowance.tokens.kept if limited else 0,
        held_tokens=tokens,
        tokens_remaining=max(0, allowance.tokens.left) if limited else None,
        credits_remaining=max(0, allowance.credits.left) if service.meter == CONSUMPTION else None,
        held_credits=credits_,
        bounded=limited and allowance.strict and tokens > 0,
        weights=weights,
    )


_USED_UP = "The counters are away, and the share set aside for this tenant until they return is used up."
