"""What a worker may admit by itself while Redis is away: what it leased before, tenant by tenant.

Nothing here asks Redis or waits: `Leaser` brings what is leased, `Counters` takes calls in on it. A
call counts with its hold while it lives and with its use afterwards, until Redis has charged it; so
a lease never has used tokens again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import UUID, uuid4, uuid5

from gateway.core.accounts.plans import Weights
from gateway.core.calls.tariff import CONSUMPTION, extended
from gateway.core.model import (
    Caller,
    Decision,
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

# The amount set aside for one gateway: how `lease` is asked for it, and its answer.
#
# Pure. `AccountLease` is one account's part, in tokens or credits: `kept` is what the gateway still counts
# on, `spent` what it used of that and nobody has charged yet, `handed` what of that has come into
# the late queue.

MILLION = 1_000_000
GIVE_BACK, IF_OVER = 0, -1
LEASED, NONE, RENEWED, UNVERIFIED, UNKNOWN = 1, 2, 3, 0, -2


class AccountLease(NamedTuple):
    """One account's part of a lease, as the gateway sees it."""

    kept: int = 0
    spent: int = 0
    handed: int = 0


NOTHING = AccountLease()


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What a gateway may count on. `tokens` is None where nothing limits them.

    `strict` and `cuts` are the plan's; `capped` says that a spend cap limits the organization;
    `charged` that all it said to have handed in is charged by now; `plan_id` is the plan.
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
    """Return keys and arguments of `lease`; a `ttl_ms` of GIVE_BACK or IF_OVER ends it."""
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
    """Return the answer of `lease`; None where there is no lease or nobody can know."""
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
    """One account's part: `kept` may be used, `spent` is, `settled` of that by calls that are over."""

    kept: int = 0
    spent: int = 0
    settled: int = 0

    @property
    def left(self) -> int:
        """The amount that may still be used; below 0 where calls used more than they held."""
        return self.kept - self.spent

    def share(self, handed_in: bool) -> AccountLease:
        """Return what to ask of `lease`."""
        return AccountLease(max(self.kept, self.spent), self.spent, self.settled if handed_in else 0)

    def renew(self, kept: int, charged: int) -> None:
        """Count on `kept` from now on; so much of the settled use is charged."""
        self.kept = kept
        self.spent -= charged
        self.settled -= charged


@dataclass(slots=True)
class Allowance:
    """One tenant's lease, in force `until` (monotonic seconds); what follows it is the leaser's. Tokens are
    those of the quota, by the weights of its plan.

    `held` says that Redis may hold something for it, `ends` that it is being given back.
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
        """Whether anything was used of it that nobody has charged yet."""
        return self.tokens.spent > 0 or self.credits.spent > 0

    def renew(self, found: LeaseTerms, until: float, tokens: AccountLease, credits_: AccountLease) -> None:
        """Go by a lease that was asked for with these shares."""
        self.until, self.unlimited, self.held = until, found.tokens is None, True
        self.strict, self.cuts, self.capped = found.strict, found.cuts, found.capped
        self.plan_id = found.plan_id
        self.tokens.renew(found.tokens or 0, tokens.handed if found.charged else 0)
        self.credits.renew(found.credits, credits_.handed if found.charged else 0)

    def drop(self) -> None:
        """Count on nothing any more."""
        self.until, self.unlimited = 0.0, False
        self.tokens.kept = self.credits.kept = 0
        self.charged()

    def charged(self) -> None:
        """All that is settled is charged, or will be without being held until then."""
        for share in (self.tokens, self.credits):
            share.renew(share.kept, share.settled)


@dataclass(slots=True)
class _LeaseUse:
    """What one call holds of an allowance; `alone` says that Redis has no hold of it that is known of."""

    allowance: Allowance
    tokens: int
    credits: int
    alone: bool = True


class Allowances:
    """Every tenant's lease in one worker, and the calls admitted on them.

    `worker_slot` is in the ids of its leases: the next worker there finds them again. `fresh` are tenants
    nobody has asked a lease for yet, `hurried` those whose lease should be looked at. `calls` are in flight,
    by request id; `admitted` counts them since the start, `left_out` those of tenants that have none since
    there are so many already.
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
        """How many tenants have a lease that is in force."""
        now = self._clock()
        return sum(one.until > now for one in self._tenants.values())

    def snapshot(self) -> dict[str, int]:
        return {
            "leases": self.in_force, "leases_left_out": self.left_out, "admitted_locally": self.admitted
        }  # fmt: skip

    def all(self) -> list[Allowance]:
        """Return every tenant that was seen lately."""
        return list(self._tenants.values())

    def seen(self, caller: Caller) -> None:
        """A caller is there: the lease that its tenant has stays."""
        one = self._tenants.get(caller.tenant_id)
        if one is not None:
            one.seen = self._clock()

    def wanted(self, caller: Caller) -> None:
        """Redis admitted a call whose plan lets calls go on without it: its tenant should have a lease."""
        one = self._tenants.get(caller.tenant_id)
        if one is None:
            if len(self._tenants) >= self._tenants_max:
                self.left_out += 1
                return
            lease_id = str(uuid5(self._worker_slot, str(caller.tenant_id)))
            one = self._tenants[caller.tenant_id] = Allowance(caller, lease_id)
            self.fresh.append(one)
        one.seen = self._clock()

    def forget(self, allowance: Allowance) -> None:
        """Nobody of this tenant was seen for long."""
        self._tenants.pop(allowance.caller.tenant_id, None)
        self.hurried.pop(allowance.caller.tenant_id, None)

    def covers(self, caller: Caller) -> bool:
        """Return whether this caller may be served without Redis, as far as its allowance goes."""
        one = self._tenants.get(caller.tenant_id)
        return one is not None and one.until > self._clock()

    def refused(self, caller: Caller, verdict: Verdict) -> None:
        """Redis refused a call: what was leased must not let it through later."""
        one = self._tenants.get(caller.tenant_id)
        if verdict is Verdict.REVOKED:
            if len(self._revoked) >= REVOKED_MAX:
                del self._revoked[next(iter(self._revoked))]
            self._revoked[caller.key_id] = None
        elif one is not None and one.held and verdict in {Verdict.TENANT_BLOCKED, Verdict.QUOTA_HELD}:
            self.hurried[caller.tenant_id] = one
            if verdict is Verdict.TENANT_BLOCKED:
                one.until = 0.0

    def admit(self, request: HoldRequest, by_plan: Mapping[int, Weights] = _NO_WEIGHTS) -> Decision:
        """Take a call in on what is leased. CountersUnavailable where nothing is, or not enough is left."""
        caller, service = request.caller, request.service
        one = self._tenants.get(caller.tenant_id)
        if one is None or one.until <= self._clock():
            raise CountersUnavailable
        if caller.key_id in self._revoked:
            raise InvalidApiKey
        if any(account.enforced for account in request.budgets):
            raise CountersUnavailable("The rest of a budget cannot be known while the counters are away.")
        if service.one_time or (one.capped and service.pricing.ladder):
            raise CountersUnavailable("What this service costs cannot be known while the counters are away.")
        weights = by_plan.get(one.plan_id) if by_plan and service.counts_tokens else None
        tokens = _tokens_for(one, request, weights)
        credits_ = _credits_for(one, request)
        one.tokens.spent += tokens
        one.credits.spent += credits_
        head = self.calls.get(request.request_id)  # a top-up takes over what its head had: nothing of this
        alone = not request.raises if head is None else head.alone
        self.calls[request.request_id] = _LeaseUse(one, tokens, credits_, alone)
        self.admitted += head is None
        return _decision(one, service, tokens, credits_, weights)

    def admitted_there(self, request: HoldRequest, decision: Decision) -> None:
        """Redis has a hold of a call now, which may have been admitted here by its head."""
        if request.raises and (taken := self.calls.get(request.request_id)) is not None:
            taken.alone = False
        if decision.leases:
            self.wanted(request.caller)

    def over(self, settlement: Settlement, settled: SettleResult) -> None:
        """A call admitted here is over: it counts with its use until that is charged."""
        taken = self.calls.pop(settlement.request_id, None)
        if taken is None:
            return
        used = settlement.charge and settled is not SettleResult.DONE
        taken.allowance.used_at = self._clock()
        _correct(taken.allowance.tokens, taken.tokens, settlement.of_quota if used else 0)
        _correct(taken.allowance.credits, taken.credits, settlement.credits if used else 0)

    def outgrown(self, observed: HoldExtension, margin: int) -> bool:
        """Take more for a live call that was admitted here; False where it was not."""
        taken = self.calls.get(observed.request_id)
        if taken is None:
            return False
        one, short = taken.allowance, False
        if observed.counts:
            want = observed.wanted(margin) - taken.tokens
            more = want if one.unlimited else min(want, max(0, one.tokens.left))
            one.tokens.spent += more
            taken.tokens += more
            short = more < want
        if observed.rate is not None:
            want = max(0, observed.rate.credits(observed.ahead(margin)) - taken.credits)
            more = min(want, max(0, one.credits.left))
            one.credits.spent += more
            taken.credits += more
            short = short or more < want
        extended(observed, taken.tokens, taken.credits)
        if short:
            observed.exhausted, observed.cut = True, one.cuts
        return True


def _correct(share: LeaseShare, held: int, used: int) -> None:
    share.spent += used - held
    share.settled += used


def _tokens_for(one: Allowance, request: HoldRequest, weights: Weights | None) -> int:
    """Return tokens to hold, as `reserve` would: clamped to what is left, or all where the plan is strict."""
    need, ceiling, least = request.need, request.ceiling, request.least
    if weights is not None:
        need, ceiling, least = request.weighed(weights)
    if not request.service.counts_tokens or not ceiling:
        return 0
    if one.unlimited:
        return need
    left = one.tokens.left
    if left <= 0 or (one.strict and left < (least or ceiling)):
        raise CountersUnavailable(_USED_UP)
    if left < ceiling:
        return left
    return ceiling if one.strict else need


def _credits_for(one: Allowance, request: HoldRequest) -> int:
    """Return credits to hold: all of them, or the rest where that bounds the call."""
    left = one.credits.left
    if request.credits <= max(0, left):  # what costs nothing is covered
        return request.credits
    if 0 < request.credits_least <= left:
        return left
    raise CountersUnavailable(_USED_UP)


def _decision(
    one: Allowance, service: Service, tokens: int, credits_: int, weights: Weights | None
) -> Decision:
    """Return the rest of the allowance, in place of the account's."""
    limited = service.counts_tokens and not one.unlimited
    return Decision(
        Verdict.ADMITTED,
        limit=one.tokens.kept if limited else 0,
        held_tokens=tokens,
        tokens_remaining=max(0, one.tokens.left) if limited else None,
        credits_remaining=max(0, one.credits.left) if service.meter == CONSUMPTION else None,
        held_credits=credits_,
        bounded=limited and one.strict and tokens > 0,
        weights=weights,
    )


_USED_UP = "The counters are away, and the share set aside for this tenant until they return is used up."
