"""How calls and answers of the scripts are packed: the Python half of what `lua/` states.

Pure functions. A call is (keys, arguments); an answer is bytes of little-endian doubles.
`None` for "no limit" travels as 0 in limits and as -1 in totals and caps.
"""

from __future__ import annotations

from collections.abc import Sequence

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    PricesDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.plan_terms import TERMS, PlanTerms, Term
from gateway.core.layout import EARLIER, LAYOUT, UnknownLayout
from gateway.core.model import (
    INTEGER_MAX,
    BudgetWindow,
    Decision,
    HoldRequest,
    Limits,
    Observed,
    Service,
    Settlement,
    Verdict,
    Window,
)
from gateway.counters.layouts import budgets, states, table, windows
from gateway.counters.layouts.accounts import accounts_of, tiers_of
from gateway.counters.layouts.flags import FLAG_RAISES, service_flags
from gateway.counters.redis import keys
from gateway.errors import NewerLayout

# A catalogue version no gateway has: `reserve` refuses, everything else runs.
CLOSED = INTEGER_MAX
# Of a call that shares its time with no other: see lua/lib/batch.lua.
NO_BATCH = 0
# Of a call whose weights are those of no plan: whichever the tenant follows.
ANY_PLAN = -1
MODE_CHARGE, MODE_RELEASE, MODE_RECLAIM, MODE_POST, MODE_RECOVER, MODE_CORRECT = 1, 2, 3, 4, 5, 6
reserve_packed = table.RESERVE.pack
settle_used = table.SETTLEMENT.part("batch", "over").pack
_settle_who = table.SETTLEMENT.part("service_id", "tombstone").pack
# What comes before that which log and late queue keep.
BATCH_BYTES = table.SETTLEMENT.offset("layout")
_TODAY = bytes([LAYOUT])
_ADMITTED, _REFUSED, _CODE = table.ADMITTED.struct, table.REFUSED.struct, table.CODE.struct
BOUNDED, LEASES, STORE_ALLOW = 2, 2, 1  # LEASES more: the plan allows calls without Redis

# How many keys all calls of a partition share, which come first; the bytes of one call's first argument.
SHARED = {"reserve": 3, "settle": 5}
ALONE = {"reserve": table.RESERVE.size, "settle": table.SETTLEMENT.size}
Call = tuple[tuple[str, ...], tuple[bytes, ...]]


def reserve(
    run_id: bytes, catalogue: int, ttl_ms: int, request: HoldRequest, batch: int = NO_BATCH, *,
    quota: tuple[int, int, int] | None = None, plan_id: int = ANY_PLAN,
) -> Call:  # fmt: skip
    """Keys and arguments of `reserve`; `quota` is need, ceiling and least as a plan weighs them."""
    p = request.caller.partition
    names = keys.deadlines(p), keys.outbox(p), keys.marker(p)
    packed = reserve_packed(
        batch, run_id, catalogue, request.need, *(quota or (-1, request.ceiling, request.least)),
        request.credits_least, request.credits, request.units, ttl_ms, request.service.id, plan_id,
        service_flags(request) | (FLAG_RAISES if request.raises else 0), request.request_id.encode(),
    )  # fmt: skip
    accounts = budgets.account_keys(p, [one.name for one in request.budgets], indexed=True)
    return (
        (*names, *accounts_of(request), *accounts, keys.hold(p, request.request_id)),
        (packed, request.user.encode(), *tiers_of(request), *budgets.need(request)),
    )


def settle(
    run_id: bytes,
    tombstone_ms: int,
    settlement: Settlement,
    mode: int,
    late: bytes | None = None,
    *,
    batch: int = NO_BATCH,
    requests: int = 1,
    definitions: tuple[bytes, ...] = (),
) -> Call:
    """Keys and arguments of `settle`; `late` is the late queue's entry that is dealt with.

    Budgets count so many `requests`; who deals with a late one brings the definitions of its accounts.
    """
    p = settlement.caller.partition
    names = keys.deadlines(p), keys.outbox(p), keys.late(p), keys.control(p), keys.marker(p)
    used = settle_used(
        batch, LAYOUT, run_id, mode,
        settlement.tokens, settlement.of_quota, settlement.credits, settlement.units, settlement.over,
    )  # fmt: skip
    packed = used + settle_who(settlement, tombstone_ms) + settlement.request_id.encode()
    texts = settlement.user.encode(), settlement.attribution.encode(), settlement.metadata
    entry = () if late is None else (late,)
    accounts = budgets.account_keys(p, settlement.budgets, indexed=True)
    paid = budgets.paid(settlement, requests)
    return (
        (*names, *accounts_of(settlement), *accounts, keys.hold(p, settlement.request_id)),
        (packed, *texts, *tiers_of(settlement), *paid, *definitions, *entry),
    )


def settle_who(settlement: Settlement, tombstone_ms: int) -> bytes:
    """The part of `settle`'s argument that is the same for every call of a caller."""
    caller = settlement.caller
    return _settle_who(
        settlement.service.id, caller.tenant_id, caller.organization_id, caller.key_id,
        service_flags(settlement), tombstone_ms,
    )  # fmt: skip


def decision(answer: bytes, service: Service) -> Decision:
    """The answer of `reserve` as a fact; what the service does not move is left out."""
    if len(answer) >= _ADMITTED.size:
        (
            verdict, now, tokens, total, free, next_reset, credits_free,
            requests_scope, requests_limit, requests_used, requests_reset,
            tokens_scope, tokens_limit, tokens_used, tokens_reset, credits_,
        ) = _ADMITTED.unpack_from(answer)  # fmt: skip
        counts, pays = service.counts_tokens, service.meter == "consumption"
        decision = Decision(
            Verdict.ADMITTED, 0, 0, 0,
            total if counts and total > 0 else 0,
            next_reset, now, tokens,
            free if counts and free >= 0 else None,
            credits_free if pays else None,
            Window(requests_scope, requests_limit, requests_used, requests_reset) if requests_scope else None,
            Window(tokens_scope, tokens_limit, tokens_used, tokens_reset) if tokens_scope else None,
            credits_ if pays else 0,
            verdict in (BOUNDED, BOUNDED + LEASES), leases=verdict > LEASES,
        )  # fmt: skip
        if len(answer) > _ADMITTED.size:
            budgets.tell(decision, answer)
        return decision
    if len(answer) == _REFUSED.size:
        code, now, scope, kind, used, limit, until, budget_id, unit = _REFUSED.unpack(answer)
        refused = Decision(Verdict(code), scope, kind, used, limit, until, now)
        if budget_id:
            refused.budget = BudgetWindow(budget_id, limit, used, until, unit)
        return refused
    return Decision(Verdict(int(_CODE.unpack(answer)[0])))


def is_admitted(answer: bytes) -> bool:
    """Whether an answer of `reserve` says that a hold was taken."""
    return len(answer) >= _ADMITTED.size


def code_of(answer: bytes) -> int:
    """The first number of any packed answer."""
    return int(_CODE.unpack_from(answer)[0])


def extend(run_id: bytes, ttl_ms: int, partition: int, live: list[tuple[Observed, int]]) -> Call:
    """Keys and arguments of `extend`; `live` is each call and the tokens it may need besides those seen."""
    names = [keys.marker(partition), keys.deadlines(partition), keys.outbox(partition)]
    arguments = [run_id, str(ttl_ms).encode()]
    for one, margin in live:
        names += [
            keys.hold(partition, one.request_id),
            keys.tenant_state(partition, one.caller.tenant_id),
            keys.organization_state(partition, one.caller.organization_id),
            *budgets.account_keys(partition, one.budgets, indexed=False),
        ]
        tokens, rate = one.tokens, one.rate
        seen, wanted = (-1, 0) if rate is None else (rate.seen(tokens), rate.credits(one.ahead(margin)))
        weighed = -1 if one.weights is None else one.weighed
        arguments.append(
            table.EXTEND.pack(
                tokens, weighed, one.wanted(margin), seen, wanted,
                *one.wanted_of_budgets(margin), len(one.budgets), one.request_id.encode(),
            )
        )  # fmt: skip
    return tuple(names), tuple(arguments)


def extended(answer: bytes) -> list[tuple[int, int, int, int, int]]:
    """The answer of `extend`: (hold in tokens or -1, in credits, exhausted, of budgets in money and tokens)
    a call; none if unverified.
    """
    found = table.EXTENDED.struct.iter_unpack(answer[table.CODE.size :])
    return [(int(one[0]), int(one[1]), int(one[2]), int(one[3]), int(one[4])) for one in found]


# --- control: what the keeper sends -----------------------------------------------------

VERBS = {
    "recharge": 1, "reset": 2, "adjust": 3, "block": 4, "unblock": 5, "plan": 6, "credits": 7, "sweep": 8,
    "budget": 9,
}  # fmt: skip
DEFINE, REBUILD, VERIFY = 1, 2, 3
KIND_KEY, KIND_USER, KIND_TENANT, KIND_ORGANIZATION = 1, 2, 3, 4


def plan(terms: PlanTerms) -> dict[str, int]:
    """A plan as scripts and states hold it, by the names of its fields: null is -1, a choice its place."""
    numbers = {"plan_id": terms.plan_id, "anchor": terms.anchor, **terms.clock._asdict()}
    return numbers | {term.name: _number(term, getattr(terms, term.name)) for term in TERMS if term.counts}


def _number(term: Term, value: str | int | None) -> int:
    if isinstance(value, str):
        return term.choices.index(value)
    return -1 if value is None else value


def grant(
    run_id: bytes, verb: str, amount: int, write_id: str, *,
    tenant_id: int, organization_id: int, metadata: bytes = b"", terms: PlanTerms | None = None,
    accounts: Sequence[str] = (),
) -> Call:  # fmt: skip
    """Keys and arguments of `grant`. `amount` is signed for adjust and credits, of a plan since when it is in
    force (ms), and a budget's id where the use of its window begins again in `accounts`.
    """
    assert abs(amount) <= INTEGER_MAX
    p = keys.partition_of(organization_id)
    return (
        keys.marker(p),
        keys.control(p),
        keys.outbox(p),
        keys.tenant_state(p, tenant_id),
        keys.organization_state(p, organization_id),
        *budgets.account_keys(p, accounts, indexed=True),
    ), (
        table.GRANT.pack(run_id, VERBS[verb], amount, write_id.encode()),
        metadata,
        table.PLAN.pack(*plan(terms).values()) if terms else b"",
    )


def define(run_id: bytes, version: int, definition: Definition, *, create: bool = True) -> Call:
    """Keys and arguments of `load` for one account's definition."""
    assert not isinstance(definition, CatalogueDefinition | PricesDefinition)
    p = keys.partition_of(definition.organization_id)
    match definition:
        case OrganizationDefinition():
            kind, state = KIND_ORGANIZATION, keys.organization_state(p, definition.organization_id)
            cap = -1 if definition.cap is None else definition.cap
            packed = table.DEFINE_ORGANIZATION.pack(
                *limits(definition.limits).values(), definition.credit_limit, cap, definition.organization_id
            )
        case TenantDefinition():
            kind, state = KIND_TENANT, keys.tenant_state(p, definition.tenant_id)
            packed = table.DEFINE_TENANT.pack(
                *limits(definition.limits).values(), *limits(definition.user_limits).values(),
                definition.tenant_id, definition.organization_id, *plan(definition.terms).values(),
            )  # fmt: skip
        case KeyDefinition(key_id=id_):
            kind, state = KIND_KEY, keys.key_state(p, id_)
            packed = table.DEFINE_KEY.pack(
                *limits(definition.limits).values(), definition.revoked, definition.expires_ms, id_
            )
        case UserDefinition():
            kind, state = KIND_USER, keys.user_state(p, definition.tenant_id, definition.user)
            packed = table.DEFINE_USER.pack(*limits(definition.limits).values())
    names = keys.marker(p), state, keys.outbox(p)
    return names, (table.LOAD.pack(run_id, DEFINE, kind, version, create), packed, b"")


def rebuild(run_id: bytes, partition: int, state: str, packed: bytes, marker: bytes) -> Call:
    """Keys and arguments of `load` for a rebuilt state, or for the marker itself, which is told."""
    name = keys.marker(partition)
    verb, third = (VERIFY, keys.marked(partition)) if state == name else (REBUILD, keys.outbox(partition))
    written = packed if state == name else as_written(state, packed, marker)
    return (name, state, third), (table.LOAD.pack(run_id, verb, 0, 0, 0), written, marker)


_BY_KIND = {
    "k": states.KEY, "u": states.USER, "t": states.TENANT, "o": states.ORGANIZATION,
    "a": states.ACTIVATION, "h": states.HOLD, "b": windows.BUDGET,
}  # fmt: skip


def as_written(state: str, packed: bytes, marker: bytes) -> bytes:
    """A state as all of its partition is written, by the marker; its name says of what kind it is."""
    return packed if layout_of(marker) == LAYOUT else _BY_KIND[state.split(":")[2]].earlier(packed)


def layout_of(marker: bytes) -> int:
    """Of which layout all is that is written in a partition: today's where its marker has that."""
    return LAYOUT if marker[:1] == _TODAY else EARLIER


def limits(of: Limits, prefix: str = "") -> dict[str, int]:
    """Limits as states hold them, by the names of their fields: 0 is none."""
    numbers = {"rpm": of.requests_per_minute, "tpm": of.tokens_per_minute, "concurrency": of.concurrency}
    return {prefix + name: number or 0 for name, number in numbers.items()}


def marker(run_id: bytes, epoch: int, catalogue: int, layout: int = LAYOUT) -> bytes:
    """The marker of a verified partition; with `CLOSED` for a catalogue nobody has, nobody is admitted.

    What is written there from now on is of the `layout`.
    """
    packed = table.MARKER.pack(LAYOUT, run_id, epoch, catalogue)
    return packed if layout == LAYOUT else table.MARKER.earlier(packed)


def read_marker(raw: object) -> tuple[bytes, int, int]:
    """Run id, epoch and catalogue version of a marker as it is answered; nothing and zeros of what is none.

    NewerLayout where a newer version has written it: the partition is that one's.
    """
    try:
        today = table.MARKER.today(raw) if isinstance(raw, bytes) else b""
    except UnknownLayout as error:
        raise NewerLayout(f"the partition is a newer version's: {error}: run that one") from error
    if len(today) != table.MARKER.size:
        return b"", 0, 0
    _, run_id, epoch, catalogue = table.MARKER.struct.unpack(today)
    return run_id, int(epoch), int(catalogue)
