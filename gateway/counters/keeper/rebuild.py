"""States of accounts, built from PostgreSQL's data and the holds still in Redis. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter

from gateway.core.accounts.definitions import KeyDefinition, OrganizationAccount, ServiceUse, TenantAccount
from gateway.core.accounts.plans import PlanTerms
from gateway.core.billing.money import are_money, folded, read_tiers, spend_micro
from gateway.core.integrity.recovery import LedgerState
from gateway.core.model import INTEGER_MAX, Limits
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys

# A service id, and whether its units are money: those are counted apart.
Counted = tuple[int, bool]
# A hold, the caller's own user, the price tiers of its service.
Found = tuple[states.HoldState, str, bytes]
# Cached conversions of limits and plans, which many accounts share.
SHARED_MAX = 4_096
_KEY_ID = states.KEY.part("key_id", "created")
assert states.KEY.end("created") == states.KEY.size, "whose it is comes last: all before it is shared"


def states_of(partition: int, lost: LedgerState, found: Sequence[Found]) -> Iterator[tuple[str, bytes]]:
    """Yield the key and packed state of each account and API key in `lost`, with its holds in `found`."""
    of_tenants: dict[int, list[states.HoldState]] = defaultdict(list)
    of_organizations: dict[int, list[tuple[states.HoldState, bool]]] = defaultdict(list)
    for hold, _, packed in found:
        of_tenants[hold.tenant_id].append(hold)
        of_organizations[hold.organization_id].append((hold, are_money(packed)))
    tiers = {(hold.service_id, are_money(packed)): packed for hold, _, packed in found}
    for organization in lost.organizations:
        id_ = organization.definition.organization_id
        mine = of_organizations.get(id_, [])
        holds = [hold for hold, _ in mine]
        uses = _with_holds_of_services(organization, holds, [in_money for _, in_money in mine], tiers)
        state = _with_holds_of_organization(organization_state(organization, lost.version), holds, uses)
        yield keys.organization_state(partition, id_), states.pack(state)
        for (service_id, in_money), use in uses.items():
            yield keys.activation(partition, id_, service_id, in_money=in_money), states.pack(use)
    for tenant in lost.tenants:
        id_ = tenant.definition.tenant_id
        whole = _with_holds_of_tenant(tenant_state(tenant, lost.version), of_tenants.get(id_, []))
        yield keys.tenant_state(partition, id_), states.pack(whole)
    for key in lost.keys:
        yield keys.key_state(partition, key.key_id), packed_key(key, lost.version)


def load_call(
    run_id: bytes, partition: int, written: Sequence[tuple[str, bytes]], marker: bytes
) -> packing.Call:
    """Return keys and arguments of a `load` call that writes several states."""
    (state, packed), *more = written
    names, arguments = packing.rebuild(run_id, partition, state, packed, marker)
    as_written = (packing.as_written(*call, marker) for call in more)
    return (*names, *(name for name, _ in more)), (*arguments, *as_written)


def packed_key(key: KeyDefinition, version: int) -> bytes:
    """Return an API key's packed state: no calls in flight, full buckets."""
    return _key_but_id(key.limits, key.expires_ms, version, revoked=key.revoked) + _KEY_ID.pack(
        key.key_id, key.created
    )


@lru_cache(SHARED_MAX)
def _key_but_id(limits: Limits, expires_ms: int, version: int, *, revoked: bool) -> bytes:
    state = states.KeyState(**_limits(limits), flags=int(revoked), version=version, expires=expires_ms)
    return states.pack(state)[: -_KEY_ID.size]


@lru_cache(SHARED_MAX)
def _limits(of: Limits, prefix: str = "") -> Mapping[str, int]:
    return packing.limits(of, prefix)


@lru_cache(SHARED_MAX)
def _plan(terms: PlanTerms, *, followed: bool) -> Mapping[str, int]:
    return packing.plan(terms if followed else replace(terms, plan_id=0, reset_interval="none"))


def tenant_state(account: TenantAccount, version: int = 0) -> states.TenantState:
    """Return a tenant's state from its stored account: nothing held, full buckets."""
    definition, terms = account.definition, account.definition.terms
    started = account.seq > 0
    total = -1 if account.total is None else account.total
    has_plan = terms.plan_id > 0 and started
    return states.TenantState(
        **_limits(definition.limits),
        **_limits(definition.user_limits, "user_"),
        version=version,
        flags=(states.MANUAL_BLOCK + states.BLOCK_CAUSE * account.block_cause if account.manual_block else 0)
        | (states.HAS_PLAN if has_plan else 0)
        | (states.FORGIVES if account.forgives else 0),
        total=total if started else -1,
        limit=account.granted if account.remaining is None else account.remaining + account.used,
        used=account.used,
        cycle=account.cycle,
        next_reset=account.next_reset_ms,
        last_reset=account.last_reset_ms,
        seq=account.seq,
        ledger_at=account.last_reset_ms,
        tenant_id=definition.tenant_id,
        organization_id=definition.organization_id,
        created=definition.created,
        **_plan(terms, followed=has_plan),
    )


def _with_holds_of_tenant(state: states.TenantState, mine: Sequence[states.HoldState]) -> states.TenantState:
    if not mine:
        return state
    held = sum(hold.tokens for hold in mine)
    return replace(state, inflight=_slots(mine, attrgetter("tenant_tpm")), held=held)


def _with_holds_of_services(
    account: OrganizationAccount,
    holds: Sequence[states.HoldState],
    money: Sequence[bool],
    tiers: Mapping[Counted, bytes],
) -> dict[Counted, states.ActivationState]:
    """Return the use of each service, with the units held by calls in flight and the price of these units.

    `money` tells for each hold whether its units are money; `tiers` are the packed price tiers of each use.
    """
    uses = {(use.service_id, use.in_money): activation_state(use) for use in account.uses}
    for hold, in_money in zip(holds, money, strict=True):
        if hold.flags & states.HOLD_USES and not hold.credits:
            use = uses.setdefault((hold.service_id, in_money), states.ActivationState())
            use.held = min(use.held + hold.units, INTEGER_MAX)
    for counted, use in uses.items():
        if use.held and account.definition.cap is not None:
            use.held_price = spend_micro(read_tiers(tiers[counted]), use.quantity, use.held)
    return uses


def _with_holds_of_organization(
    state: states.OrganizationState,
    mine: Sequence[states.HoldState],
    uses: Mapping[Counted, states.ActivationState],
) -> states.OrganizationState:
    if not mine:
        return state
    paying = [hold for hold in mine if not hold.flags & states.HOLD_ONE_TIME]
    alone = sum(hold.credits for hold in paying if hold.flags & states.HOLD_USES)
    return replace(
        state,
        inflight=_slots(mine, attrgetter("organization_tpm")),
        credits_held=sum(hold.credits for hold in paying if not hold.flags & states.HOLD_USES),
        spend_held=alone + sum(use.held_price for use in uses.values()),
    )


def _slots(holds: Sequence[states.HoldState], taken: Callable[[states.HoldState], int]) -> int:
    return sum(not hold.flags & states.HOLD_LEASE and taken(hold) != states.UNCOUNTED for hold in holds)


def activation_state(use: ServiceUse) -> states.ActivationState:
    """Return the stored use of a service, so that nothing is paid twice and no price tier restarts."""
    quantity = folded(use.quantity) if use.in_money else min(use.quantity, INTEGER_MAX)
    return states.ActivationState(
        flags=states.ACTIVE if use.activated else 0, month=use.month, quantity=quantity
    )


def organization_state(account: OrganizationAccount, version: int = 0) -> states.OrganizationState:
    """Return an organization's state from its stored accounts: nothing held."""
    definition = account.definition
    return states.OrganizationState(
        **_limits(definition.limits),
        version=version,
        credits_used=-account.balance,
        credit_limit=definition.credit_limit,
        credit_seq=account.credit_seq,
        ahead=account.ahead,
        cap=-1 if definition.cap is None else definition.cap,
        spent=account.spent,
        month=account.month,
        spend_seq=account.spend_seq,
        organization_id=definition.organization_id,
        created=definition.created,
    )
