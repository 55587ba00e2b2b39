"""Packs calls of the scripts and unpacks their answers: the Python half of `lua/`. Pure functions.

A call is (keys, arguments); an answer is bytes of little-endian doubles. `None` for "no limit" is 0 in
limits, and -1 in totals and caps.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from functools import lru_cache

from gateway.core.accounts import runs
from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.budgets import DEFINED_WINDOW, FLAG_MONEY, FLAG_TOKENS, OTHERS
from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    PricesDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.accounts.outbox import BUDGETED, CARRIED, ENTRY, PRICED
from gateway.core.accounts.plans import TERMS, PlanTerms, Term
from gateway.core.accounts.steps import MATCHES_MAX
from gateway.core.billing.money import NANO, TIER
from gateway.core.joined import numbers
from gateway.core.layout import EARLIER, KINDS, LAYOUT, Layout, UnknownLayout
from gateway.core.model import (
    INTEGER_MAX,
    Admitted,
    BudgetAccount,
    BudgetWindow,
    Caller,
    FreedAmount,
    HoldExtension,
    HoldRequest,
    Limits,
    Refused,
    Service,
    Settlement,
    Verdict,
    Window,
)
from gateway.core.times import DAY_MS, ZoneOffset
from gateway.counters.layouts import states
from gateway.counters.layouts.accounts import FLAG_RAISES, accounts_of, service_flags, tiers_of
from gateway.counters.layouts.states import unpack_windows
from gateway.counters.redis import keys
from gateway.errors import NewerLayout

# The layouts of all values that scripts take or give: arguments, answers, definitions, markers.
#
# States and holds are in `states.py`, an outbox entry in `gateway/core/accounts/outbox.py`, a tier in
# `gateway/core/billing/money.py`; `LAYOUTS` has all of them. Both sides use the names here: Python the
# structs of a layout, the scripts the text that `lua.py` makes of it.

CODE = Layout("CODE", "f64 code")
# By `number`, scripts of another layout know that a partition belongs to another version.
MARKER = Layout("MARKER", "number, s40 run_id, f64 epoch catalogue")

RESERVE = Layout(
    "RESERVE",
    "f64 batch, s40 run_id, f64 catalogue need quota_tokens ceiling least credits_least credits units ttl"
    " service_id plan_id, u8 flags, s36 request_id",
)
ADMITTED = Layout(
    "ADMITTED",
    "i64 verdict now tokens total tokens_free next_reset credits_free credits"
    " requests_scope requests_limit requests_used requests_reset"
    " tokens_scope tokens_limit tokens_used tokens_reset",
)
REFUSED = Layout(
    "REFUSED",
    "i64 verdict now scope kind used limit till budget=0 unit=0 held=0 need=0"
    " limit_rest=0 used_rest=0 held_rest=0",
)
# The amounts that a call wants held on its budgets; after ADMITTED the held ones, and the tightest enforced
# one.
NEED = Layout("NEED", "f64 money money_most money_least budget_tokens budget_tokens_most budget_tokens_least")
# One step of a budget that has another model for a call (after NEED): its part of the limit in millionths, and what it
# does, as `STEP_…` of `gateway/core/accounts/steps.py`.
STEP = Layout("STEP", "f64 budget parts binds")
# Of a wide window limit, used and held are whole units of the currency, what is below these comes last.
BUDGETS = Layout(
    "BUDGETS", "i64 money budget_tokens budget=0 limit=0 used=0 reset=0 unit=0 limit_rest=0 used_rest=0"
)
# After BUDGETS: of the tightest windows that roll, when something is free again, and how much.
FREES = Layout("FREES", "i64 freed_budget ends amount amount_rest freed_unit")

# The log and the late queue store a settlement without the batch.
_KEPT = (
    "number, s40 run_id, u8 mode, f64 tokens quota_tokens=-1@130 credits units over=0@130"
    " service_id tenant_id organization_id key_id, u8 flags, f64 tombstone, s36 request_id"
)
KEPT = Layout("KEPT", _KEPT)
# The amounts of a call that budgets count; the names of its accounts follow.
PAID = Layout("PAID", "f64 money budget_tokens requests")
SETTLEMENT = Layout("SETTLEMENT", f"f64 batch, {_KEPT}")
SETTLED = Layout("SETTLED", "f64 code now seq=0 remaining=0 credits=0 epoch moved=0 credit_seq=0 spend_seq=0")
GONE = Layout("GONE", "f64 code now epoch")
# The answer of `settle`, in the form in which `settle` takes it to recover it.
ACKNOWLEDGED = Layout("ACKNOWLEDGED", "f64 epoch seq moved credit_seq spend_seq")

EXTEND = Layout(
    "EXTEND",
    "f64 observed quota_tokens wanted seen worth money_seen money_wanted budget_tokens_wanted accounts whole,"
    " s36 request_id",
)
# As `whole`: all or nothing, and the definitions of the call's accounts follow.
BY_DEFINITIONS = 2
EXTENDED = Layout("EXTENDED", "f64 tokens credits exhausted money budget_tokens")

LEASE = Layout(
    "LEASE",
    "s40 run_id, f64 ttl share kept spent handed credits_kept credits_spent credits_handed, s36 lease_id",
)
LEASED = Layout("LEASED", "f64 code now tokens credits strict cuts capped charged plan_id")
NO_LEASE = Layout("NO_LEASE", "f64 code now")

GRANT = Layout("GRANT", "s40 run_id, u8 verb, f64 amount, s36 id")
# The window of a budget account, and the money that an amended price takes from it.
AMENDED = Layout("AMENDED", "f64 start amount")
GRANTED = Layout("GRANTED", "f64 code now seq remaining balance epoch moved credit_seq")

LOAD = Layout("LOAD", "s40 run_id, u8 verb kind, f64 version, u8 create")
_LIMITS = "f64 rpm tpm concurrency"
_COUNTED = ("plan_id", "anchor", *ZoneOffset._fields, *(one.name for one in TERMS if one.counts))
_PLAN = f"f64 {' '.join(_COUNTED)}"
PLAN = Layout("PLAN", _PLAN)
DEFINE_KEY = Layout("DEFINE_KEY", f"{_LIMITS} flags expires key_id created")
DEFINE_USER = Layout("DEFINE_USER", _LIMITS)
DEFINE_TENANT = Layout(
    "DEFINE_TENANT",
    f"{_LIMITS} user_rpm user_tpm user_concurrency tenant_id organization_id created, {_PLAN}",
)
DEFINE_ORGANIZATION = Layout("DEFINE_ORGANIZATION", f"{_LIMITS} credit_limit cap organization_id created")

RUN_CALL = Layout("RUN_CALL", "s40 run_id, f64 verb organization_id tenant_id ttl budget_id")
RAN = Layout("RAN", "f64 code now")
RUN_LOOK, RUN_OPEN, RUN_END, RUN_RESTORE, RUN_KEEP = 1, 2, 3, 4, 5
# Answers of `run`: it exists and is kept; it was opened; it exists, and no call of it was admitted yet.
RUN_THERE, RUN_OPENED, RUN_WAITS = 1, 2, 3
# Codes of `run`: it does not exist, or no new one can be opened, and why.
RUN_UNKNOWN, RUN_PARENT_OVER, RUN_TOO_MANY, RUN_KEY_FULL = -1, -2, -3, -4
# How long a run is stored after its end, and without an admitted call; and the most runs of a tenant.
# Of one object: a double of Unix seconds has so many fractions of a second until 2106, and no model reads more tokens.
TEXT_TOKENS_MAX = 1 << 21
RUN_KEPT_MS, RUN_WAITS_MS, RUNS_MAX = DAY_MS, 60_000, runs.RUNS_MAX
ENDED_CALLS = runs.ENDED_CALLS

PARK = Layout("PARK", "s40 run_id, f64 organization_id")
PARKED = Layout("PARKED", "f64 code waiting")
STREAM_ID = Layout("STREAM_ID", "f64 ms number")

# Where an account's windows begin: the used amount, then the held one. And a hold's amounts by scope.
RECORDS = {
    "QUOTA": ("TENANT", "used"), "CREDITS": ("ORGANIZATION", "credits_used"),
    "SPEND": ("ORGANIZATION", "spent"), "TAKEN": ("HOLD", "key_tpm"),
}  # fmt: skip
LAYOUTS = (
    *states.LAYOUTS, *states.WINDOW_LAYOUTS, ENTRY, PRICED, CARRIED, BUDGETED, DEFINED_WINDOW, TIER, CODE,
    MARKER, NEED, STEP, BUDGETS, FREES, PAID, AMENDED,
    RESERVE, ADMITTED, REFUSED, KEPT, SETTLEMENT, SETTLED, GONE, ACKNOWLEDGED, EXTEND, EXTENDED,
    LEASE, LEASED, NO_LEASE, GRANT, GRANTED,
    LOAD, PLAN, DEFINE_KEY, DEFINE_USER, DEFINE_TENANT, DEFINE_ORGANIZATION, PARK, PARKED, STREAM_ID,
    runs.RUN, RUN_CALL, RAN,
)  # fmt: skip


# What calls need of budgets, and their answers: keys after the other keys, arguments after the others. Pure.
#
# An account of one owner is followed by its index wherever the account may be created or deleted.

_ADMITTED_SIZE = ADMITTED.size
_BUDGETS_END = ADMITTED.size + BUDGETS.size
# The unit of a wide window in an answer.
WIDE = FLAG_MONEY | FLAG_TOKENS


def account_keys(partition: int, names: Sequence[str], *, indexed: bool) -> Iterator[str]:
    """Yield the keys of accounts; with `indexed`, the key of its index follows each single owner's."""
    for name in names:
        yield keys.budget_account(partition, name)
        if indexed and ":" in name:
            yield keys.each_accounts(partition, name)


def live_windows(packed: bytes) -> dict[int, LiveWindow]:
    """Return the stored windows of an account, by budget id."""
    return {
        one.budget_id: LiveWindow(
            one.budget_id, one.used, one.held, one.start, one.parts, one.carried, one.at_end, one.next
        )
        for one in unpack_windows(packed)
    }


def budgets_need(request: HoldRequest) -> tuple[bytes, ...]:
    """Return the packed amounts to hold on a call's budgets, and their definitions; () without budgets."""
    if not request.budgets:
        return ()
    packed = NEED.pack(
        request.money, request.money_most, request.money_least,
        request.budget_tokens, request.budget_tokens_most, request.budget_tokens_least,
    )  # fmt: skip
    return packed + pack_steps(request.steps), *(one.defined for one in request.budgets)


@lru_cache(MATCHES_MAX)
def pack_steps(steps: tuple[tuple[int, int, int], ...]) -> bytes:
    """Return the steps of a request, packed."""
    return b"".join([STEP.pack(*step) for step in steps])


def budgets_paid(settlement: Settlement, requests: int = 1) -> tuple[bytes, ...]:
    """Return the packed amounts of a call, with its budget accounts' names; () without budgets.

    A budget of calls counts it as `requests`.
    """
    if not settlement.budgets:
        return ()
    packed = PAID.pack(settlement.money, settlement.budget_tokens, requests if settlement.charge else 0)
    return (packed + " ".join(settlement.budgets).encode(),)


def read_paid(packed: bytes) -> tuple[tuple[str, ...], int, int]:
    """Return the names of accounts, money and tokens; (), 0, 0 for an empty value."""
    if not packed:
        return (), 0, 0
    money, budget_tokens, _ = PAID.struct.unpack_from(packed)
    return tuple(packed[PAID.size :].decode().split(" ")), int(money), int(budget_tokens)


def replaced(accounts: tuple[BudgetAccount, ...], full: int) -> tuple[BudgetAccount, ...]:
    """Return accounts in which those with a bit in `full` are replaced by their budget's shared account."""
    return tuple(
        BudgetAccount(f"{one.name.partition(':')[0]}:{OTHERS}", one.usual or one.defined, one.enforced)
        if full >> place & 1
        else one
        for place, one in enumerate(accounts)
    )


# A catalogue version that no gateway has: `reserve` refuses, everything else runs.
CLOSED = INTEGER_MAX
# For a call that shares no batch: see lua/lib/state.lua.
NO_BATCH = 0
# For a call that is weighed the same under any plan: whichever the tenant follows.
ANY_PLAN = -1
MODE_CHARGE, MODE_RELEASE, MODE_RECLAIM, MODE_POST, MODE_RECOVER, MODE_CORRECT = 1, 2, 3, 4, 5, 6
settle_used = SETTLEMENT.part("batch", "over").pack
_settle_who = SETTLEMENT.part("service_id", "tombstone").pack
# The size of the part before the one that log and late queue store.
BATCH_BYTES = SETTLEMENT.offset("layout")
# Each number that fits one byte (u8 of a layout), packed.
BYTES = [bytes([number]) for number in range(256)]
_TODAY = BYTES[LAYOUT]
_RUN_ID_BYTES = KINDS["s40"].size
_REFUSED, _CODE = REFUSED.struct, CODE.struct
BOUNDED, LEASES, STORE_ALLOW = 2, 2, 1  # LEASES more: the plan allows calls without Redis

# The number of keys, which come first, shared by all calls of a partition; the size of a single call's first
# argument.
SHARED = {"reserve": 3, "settle": 5}
ALONE = {"reserve": RESERVE.size, "settle": SETTLEMENT.size}
Call = tuple[tuple[str, ...], tuple[bytes, ...]]


def reserve(
    run_id: bytes, catalogue: int, ttl_ms: int, request: HoldRequest, batch: int = NO_BATCH, *,
    quota: tuple[int, int, int] | None = None, plan_id: int = ANY_PLAN,
) -> Call:  # fmt: skip
    """Return keys and arguments of the script `reserve`, for a request as number `batch` of several.

    `quota` has need, ceiling and least amount of tokens, weighed by the plan `plan_id`.
    """
    p = request.caller.partition
    names = keys.deadlines(p), keys.outbox(p), keys.marker(p)
    packed = RESERVE.pack(
        batch, run_id, catalogue, request.need, *(quota or (-1, request.ceiling, request.least)),
        request.credits_least, request.credits, request.units, ttl_ms, request.service.id, plan_id,
        service_flags(request) | (FLAG_RAISES if request.raises else 0), request.request_id.encode(),
    )  # fmt: skip
    accounts = account_keys(p, [one.name for one in request.budgets], indexed=True)
    return (
        (*names, *accounts_of(request), *accounts, keys.hold(p, request.request_id)),
        (packed, request.user.encode(), *tiers_of(request), *budgets_need(request)),
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
    """Return keys and arguments of the script `settle`, in one of its modes.

    `late` is the id of the late queue's entry that this settles, with the `definitions` of its accounts.
    Budgets count the call as `requests`.
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
    accounts = account_keys(p, settlement.budgets, indexed=True)
    paid = budgets_paid(settlement, requests)
    return (
        (*names, *accounts_of(settlement), *accounts, keys.hold(p, settlement.request_id)),
        (packed, *texts, *tiers_of(settlement), *paid, *definitions, *entry),
    )


def settle_who(settlement: Settlement, tombstone_ms: int) -> bytes:
    """Return the part of `settle`'s argument that is the same for every call of a caller."""
    caller = settlement.caller
    return _settle_who(
        settlement.service.id, caller.tenant_id, caller.organization_id, caller.key_id,
        service_flags(settlement), tombstone_ms,
    )  # fmt: skip


def pack_run_id(run_id: bytes) -> bytes:
    """Return a run id as layouts have it (s40): cut, or padded with NUL, as `struct` does."""
    return run_id if len(run_id) == _RUN_ID_BYTES else run_id[:_RUN_ID_BYTES].ljust(_RUN_ID_BYTES, b"\0")


def decision(answer: bytes, service: Service) -> Admitted | Refused:
    """Return the decision in an answer of `reserve`, without amounts that the service does not count."""
    if len(answer) >= _ADMITTED_SIZE:
        # By index: 0 to 15 are the fields of ADMITTED, 16 to 24 those of BUDGETS after them.
        field = numbers(answer)
        verdict, total, free = field[0], field[3], field[4]
        counts, pays = service.counts_tokens, service.meter == "consumption"
        admitted = Admitted(
            total if counts and total > 0 else 0,
            field[5], field[1], field[2],
            free if counts and free >= 0 else None,
            field[6] if pays else None,
            Window(field[8], field[9], field[10], field[11]) if field[8] else None,
            Window(field[12], field[13], field[14], field[15]) if field[12] else None,
            field[7] if pays else 0,
            verdict in (BOUNDED, BOUNDED + LEASES), leases=verdict > LEASES,
        )  # fmt: skip
        if len(answer) > _ADMITTED_SIZE:
            admitted.money_held, admitted.budget_tokens_held = field[16], field[17]
            if field[18]:
                admitted.budget = BudgetWindow(field[18], field[19], field[20], field[21], field[22])
                if field[22] == WIDE:
                    limit, used = field[19] * NANO + field[23], field[20] * NANO + field[24]
                    admitted.budget = BudgetWindow(field[18], limit, used, field[21], FLAG_MONEY)
            if len(answer) > _BUDGETS_END:
                admitted.frees = tuple([
                    FreedAmount(budget_id, at_ms, amount * NANO + rest if unit == WIDE else amount,
                                FLAG_MONEY if unit == WIDE else unit)
                    for budget_id, at_ms, amount, rest, unit in FREES.struct.iter_unpack(answer[_BUDGETS_END:])
                ])  # fmt: skip
        return admitted
    if len(answer) == _REFUSED.size:
        code, now, scope, kind, used, limit, until, budget_id, unit, held, need, *rests = _REFUSED.unpack(
            answer
        )
        if unit == WIDE:
            limit, used, held = (
                one * NANO + rest for one, rest in zip((limit, used, held), rests, strict=True)
            )
            unit = FLAG_MONEY
        refused = Refused(Verdict(code), scope, kind, used, limit, until, now)
        if budget_id:
            refused.budget = BudgetWindow(budget_id, limit, used, until, unit, held=held, need=need)
        return refused
    return Refused(Verdict(code_of(answer)), reached=answer[_CODE.size :])


def is_admitted(answer: bytes) -> bool:
    """Return whether an answer of `reserve` admits the call."""
    return len(answer) >= _ADMITTED_SIZE


def code_of(answer: bytes) -> int:
    """Return the first number of a packed answer, its code."""
    return int(_CODE.unpack_from(answer)[0])


def extend(run_id: bytes, ttl_ms: int, partition: int, live: list[tuple[HoldExtension, int]]) -> Call:
    """Return keys and arguments of `extend`; `live` has each call, and the tokens it may need soon."""
    names = [keys.marker(partition), keys.deadlines(partition), keys.outbox(partition)]
    arguments = [run_id, str(ttl_ms).encode()]
    for one, margin in live:
        names += [
            keys.hold(partition, one.request_id),
            keys.tenant_state(partition, one.caller.tenant_id),
            keys.organization_state(partition, one.caller.organization_id),
            *account_keys(partition, one.budgets, indexed=False),
        ]
        tokens, rate = one.tokens, one.rate
        seen, wanted = (-1, 0) if rate is None else (rate.charge_for(tokens), rate.credits(one.ahead(margin)))
        quota_tokens = -1 if one.weights is None else one.quota_tokens
        arguments.append(
            EXTEND.pack(
                tokens, quota_tokens, one.wanted(margin), seen, wanted,
                *one.wanted_of_budgets(margin), len(one.budgets), one.answered is not None,
                one.request_id.encode(),
            )
        )  # fmt: skip
    return tuple(names), tuple(arguments)


def extended(answer: bytes) -> list[tuple[int, int, int, int, int]]:
    """Return `extend`'s answer of each call: held tokens (-1: none), credits, exhausted, money, raw tokens.

    Of a call that was refused, these are the amounts that it could have held.

    Empty if the partition is not verified.
    """
    found = EXTENDED.struct.iter_unpack(answer[CODE.size :])
    return [(int(one[0]), int(one[1]), int(one[2]), int(one[3]), int(one[4])) for one in found]


# --- control: calls of the keeper --------------------------------------------------------

VERBS = {
    "recharge": 1, "reset": 2, "adjust": 3, "block": 4, "unblock": 5, "plan": 6, "credits": 7, "sweep": 8,
    "budget": 9,
}  # fmt: skip
DEFINE, REBUILD, VERIFY = 1, 2, 3
KIND_KEY, KIND_USER, KIND_TENANT, KIND_ORGANIZATION = 1, 2, 3, 4


def plan(terms: PlanTerms) -> dict[str, int]:
    """Return a plan's numbers by field name: -1 for None, the index for a choice."""
    numbers = {"plan_id": terms.plan_id, "anchor": terms.anchor, **terms.clock._asdict()}
    return numbers | {term.name: _number(term, getattr(terms, term.name)) for term in TERMS if term.counts}


def _number(term: Term, value: str | int | None) -> int:
    if isinstance(value, str):
        return term.choices.index(value)
    return -1 if value is None else value


def grant(
    run_id: bytes, verb: str, amount: int, write_id: str, *,
    tenant_id: int, organization_id: int, metadata: bytes = b"", terms: PlanTerms | None = None,
    accounts: Sequence[str] = (), parts: Sequence[tuple[int, int]] = (),
) -> Call:  # fmt: skip
    """Return keys and arguments of `grant`.

    `amount` is signed for adjust and credits. For a plan it is the time (ms) since which it is in force, and
    for a reset of budget `accounts` the budget's id. With `parts` only these amounts are taken from each
    account, from the window with this start (Unix ms).
    """
    assert abs(amount) <= INTEGER_MAX
    p = keys.partition_of(organization_id)
    return (
        keys.marker(p),
        keys.control(p),
        keys.outbox(p),
        keys.tenant_state(p, tenant_id),
        keys.organization_state(p, organization_id),
        *account_keys(p, accounts, indexed=True),
    ), (
        GRANT.pack(run_id, VERBS[verb], amount, write_id.encode()),
        metadata,
        PLAN.pack(*plan(terms).values()) if terms else b"".join(AMENDED.pack(*part) for part in parts),
    )


def define(run_id: bytes, version: int, definition: Definition, *, create: bool = True) -> Call:
    """Return keys and arguments of `load` for one account's definition."""
    assert not isinstance(definition, CatalogueDefinition | PricesDefinition)
    p = keys.partition_of(definition.organization_id)
    match definition:
        case OrganizationDefinition():
            kind, state = KIND_ORGANIZATION, keys.organization_state(p, definition.organization_id)
            cap = -1 if definition.cap is None else definition.cap
            packed = DEFINE_ORGANIZATION.pack(
                *limits(definition.limits).values(), definition.credit_limit, cap, definition.organization_id,
                definition.created,
            )  # fmt: skip
        case TenantDefinition():
            kind, state = KIND_TENANT, keys.tenant_state(p, definition.tenant_id)
            packed = DEFINE_TENANT.pack(
                *limits(definition.limits).values(), *limits(definition.user_limits).values(),
                definition.tenant_id, definition.organization_id, definition.created,
                *plan(definition.terms).values(),
            )  # fmt: skip
        case KeyDefinition(key_id=id_):
            kind, state = KIND_KEY, keys.key_state(p, id_)
            packed = DEFINE_KEY.pack(
                *limits(definition.limits).values(), definition.revoked, definition.expires_ms, id_,
                definition.created,
            )  # fmt: skip
        case UserDefinition():
            kind, state = KIND_USER, keys.user_state(p, definition.tenant_id, definition.user)
            packed = DEFINE_USER.pack(*limits(definition.limits).values())
    names = keys.marker(p), state, keys.outbox(p)
    return names, (LOAD.pack(run_id, DEFINE, kind, version, create), packed, b"")


def run(
    run_id: bytes, verb: int, caller: Caller, id_: str, *, parent_id: str = "", ttl_ms: int = 0,
    budget_id: int = 0, packed: bytes = b"", entry: bytes = b"",
) -> Call:  # fmt: skip
    """Return keys and arguments of `run`, for a caller's run with this id.

    `packed` is the wanted or stored run, or the definition of its account when it ends.
    """
    p = caller.partition
    name = runs.account_of(caller.organization_id, caller.tenant_id, id_)
    parent = runs.account_of(caller.organization_id, caller.tenant_id, parent_id) if parent_id else name
    return (
        keys.marker(p), keys.outbox(p), keys.run(p, name), keys.runs(p, caller.tenant_id),
        keys.budget_account(p, name), keys.each_accounts(p, name), keys.run(p, parent),
        keys.children(p, parent), keys.opened_runs(p, caller.key_id),
    ), (
        RUN_CALL.pack(run_id, verb, caller.organization_id, caller.tenant_id, ttl_ms, budget_id),
        packed, entry, id_.encode(),
    )  # fmt: skip


def rebuild(run_id: bytes, partition: int, state: str, packed: bytes, marker: bytes) -> Call:
    """Return keys and arguments of `load` that write a state, or the marker, if the marker is unchanged."""
    name = keys.marker(partition)
    verb, third = (VERIFY, keys.marked(partition)) if state == name else (REBUILD, keys.outbox(partition))
    written = packed if state == name else as_written(state, packed, marker)
    return (name, state, third), (LOAD.pack(run_id, verb, 0, 0, 0), written, marker)


_BY_KIND = {
    "k": states.KEY, "u": states.USER, "t": states.TENANT, "o": states.ORGANIZATION,
    "a": states.ACTIVATION, "h": states.HOLD,
}  # fmt: skip


def as_written(state: str, packed: bytes, marker: bytes) -> bytes:
    """Return the packed value of a key in the layout that its partition's `marker` names."""
    kind = state.split(":")[2]
    if layout_of(marker) == LAYOUT:
        return packed
    return states.earlier_windows(packed) if kind == "b" else _BY_KIND[kind].earlier(packed)


def layout_of(marker: bytes) -> int:
    """Return the layout that all writes in a partition must have, by its marker."""
    return LAYOUT if marker[:1] == _TODAY else EARLIER


def limits(of: Limits, prefix: str = "") -> dict[str, int]:
    """Return rpm, tpm and concurrency as the fields of a state, named with `prefix`; 0 for no limit."""
    numbers = {"rpm": of.requests_per_minute, "tpm": of.tokens_per_minute, "concurrency": of.concurrency}
    return {prefix + name: number or 0 for name, number in numbers.items()}


def marker(run_id: bytes, epoch: int, catalogue: int, layout: int = LAYOUT) -> bytes:
    """Return the packed marker of a verified partition, with the `layout` of later writes there.

    The catalogue version `CLOSED` closes the partition to admission.
    """
    packed = MARKER.pack(LAYOUT, run_id, epoch, catalogue)
    return packed if layout == LAYOUT else MARKER.earlier(packed)


def read_marker(raw: object) -> tuple[bytes, int, int]:
    """Return run id, epoch and catalogue version of a stored marker; b"", 0, 0 if there is none.

    NewerLayout if a newer version has written it: the partition belongs to that version.
    """
    try:
        today = MARKER.today(raw) if isinstance(raw, bytes) else b""
    except UnknownLayout as error:
        raise NewerLayout(f"the partition is a newer version's: {error}: run that one") from error
    if len(today) != MARKER.size:
        return b"", 0, 0
    _, run_id, epoch, catalogue = MARKER.struct.unpack(today)
    return run_id, int(epoch), int(catalogue)


# Compares a stored state with a definition, to write only those that differ. Pure.

_KINDS: dict[type[AccountDefinition], tuple[type[states.Account], Layout]] = {
    KeyDefinition: (states.KeyState, DEFINE_KEY),
    UserDefinition: (states.UserState, DEFINE_USER),
    TenantDefinition: (states.TenantState, DEFINE_TENANT),
    OrganizationDefinition: (states.OrganizationState, DEFINE_ORGANIZATION),
}
_PLAN_FIELDS = frozenset(one.name for one in PLAN.fields)


def is_as_defined(kind: type[AccountDefinition], packed: bytes, stored: bytes | None) -> bool:
    """Return whether a stored state already has a packed definition, so that only its version would change.

    False for a layout older than EARLIER, to rewrite it. `load` reports a value that cannot be read.
    """
    if not stored or stored[0] not in {EARLIER, LAYOUT}:
        return False
    of, layout = _KINDS[kind]
    try:
        state = states.unpack(of, stored)  # type: ignore[type-var]  # one of those that are stored
    except struct.error:
        return False
    wanted = layout.read(packed)
    if stored[0] == EARLIER:
        wanted.pop("created", None)
    if isinstance(state, states.UserState):
        wanted["flags"] = int(any(wanted.values()))
    if isinstance(state, states.TenantState):
        if not (state.flags & states.HAS_PLAN and state.plan_id == wanted["plan_id"]):
            wanted = {name: value for name, value in wanted.items() if name not in _PLAN_FIELDS}
        elif state.reset_interval and not state.next_reset:  # `load` also computes the end of its cycle
            return False
    return all(getattr(state, name) == value for name, value in wanted.items())
