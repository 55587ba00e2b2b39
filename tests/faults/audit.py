"""What must hold after every row, whatever was broken: compared call by call, and added up.

The upstream says what each request id used, the callers which answers they have completely, the
counters and the ledger what was charged. Nothing is compared before everything has come to rest.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import redis

from gateway.core.model import PARTITIONS
from gateway.counters.layouts import states
from gateway.counters.layouts.states import unpack_windows
from gateway.counters.redis import keys
from persistence.ledger.checkpoints import INVARIANTS
from tests.faults import budgets
from tests.faults.cast import CREDITS_A_CALL, Cast
from tests.faults.grants import Late, Reports, Window, passed
from tests.faults.truth import ServedCall
from tests.faults.workload import Call
from tests.faults.world import FaultError, World

REST_S_MAX = 180.0
LOOK_S = 0.05
Sums = dict[str, int]

CHARGED = {
    "tokens": (
        "SELECT coalesce(request_id::text, metadata->>'request_id'), "
        "sum(CASE direction WHEN 'OUT' THEN amount ELSE -amount END), "
        "count(*) FILTER (WHERE transaction_type = 'consume'), "
        "bool_or(coalesce(metadata->>'estimated', '') = 'true') FROM token_ledger "
        "WHERE tenant_id = ANY(%s) AND (transaction_type = 'consume' OR metadata ? 'request_id') GROUP BY 1"
    ),
    "credits": (
        "SELECT request_id::text, sum(credits_used), count(*) FILTER (WHERE NOT metadata ? 'corrects'), "
        "false FROM credit_transaction WHERE organization_id = ANY(%s) GROUP BY 1"
    ),
    "units": (
        "SELECT request_id::text, sum(usage_amount), count(*) FILTER (WHERE NOT metadata ? 'corrects'), "
        "false FROM feature_usage WHERE organization_id = ANY(%s) GROUP BY 1"
    ),
}


COUNTED_LOST = (
    "SELECT (SELECT coalesce(sum(last_seq - first_seq + 1), 0) FROM lost_event WHERE account = ANY(%s)) "
    "+ (SELECT coalesce(sum(lost), 0) FROM redis_loss WHERE account = ANY(%s))"
)


@dataclass(slots=True)
class Figures:
    """What a row found. Amounts are tokens, credits or units alike.

    `lost`: of answers received completely and not charged, which were `lost_calls` (`lost_ids`).
    `doubled`: charged beyond what the upstream counted. `lost_nano` and `doubled_nano` are the same of what
    calls cost, in nano-units. `unheard`: used, never received completely, and not charged.
    `disputed_calls`: asked of the upstream and charged nothing, or by estimate; a movement that was lost is
    one of theirs. `over_granted`: charged to the tight tenant beyond its grant. `counted_lost`: movements
    the product itself says were lost. `late`: what processes said of being late.
    `detected_s` and `serving_s`: from the fault to the first refusal, and to the first answer after it.
    """

    calls: int = 0
    complete: int = 0
    lost: int = 0
    lost_nano: int = 0
    doubled_nano: int = 0
    lost_calls: int = 0
    doubled: int = 0
    unheard: int = 0
    unheard_calls: int = 0
    disputed_calls: int = 0
    over_granted: int = 0
    counted_lost: int = 0
    detected_s: float | None = None
    serving_s: float | None = None
    other: dict[str, Any] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    lost_ids: list[str] = field(default_factory=list)
    late: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Expected:
    """What a row may leave.

    Movements lost, and listed as lost; uses nobody received and nobody was charged for; rows of
    PostgreSQL gone, so that the counters have more of budgets. A grant may be passed by calls that were
    made in `unnoticed`; and, where the machine may be `slow`, by those that were made around a moment at
    which a process said so, and by those whose hold was reclaimed too early.
    """

    lost: bool = False
    lost_events: bool = False
    rows_gone: bool = False
    unheard: bool = False
    slow: bool = False
    unnoticed: tuple[Window, ...] = ()


async def at_rest(world: World, within_s: float = REST_S_MAX) -> None:
    """Wait until no call, hold, late settlement or outbox entry is left."""
    end = world.loop.time() + within_s
    while left := await asyncio.to_thread(_left_or_error, world):
        if world.loop.time() > end:
            raise FaultError(f"not at rest after {within_s:g} s: {left}")
        await asyncio.sleep(LOOK_S)


def in_flight(world: World) -> int:
    """Calls that have not ended, as the upstream and the counters see them."""
    left = _left(world)
    return left.get("calls", 0) + left.get("holds", 0)


def _left_or_error(world: World) -> Sums | str:
    """The same where Redis may still be about to answer again."""
    try:
        return _left(world)
    except FaultError as error:
        return str(error)


def _left(world: World) -> Sums:
    left = {"calls": world.upstream.busy}
    try:
        with world.counters() as counters:
            pipe = counters.pipeline(transaction=False)
            for partition in range(PARTITIONS):
                pipe.zcard(keys.deadlines(partition))
                pipe.xlen(keys.late(partition))
                pipe.xlen(keys.outbox(partition))
                pipe.hvals(keys.parked(partition))
            counts = pipe.execute()
    except redis.RedisError as error:
        raise FaultError(f"Redis does not answer: {error}") from error
    left |= {"holds": sum(counts[::4]), "late": sum(counts[1::4]), "outbox": sum(counts[2::4])}
    left["parked"] = sum(int(count) for of_partition in counts[3::4] for count in of_partition)
    return {name: count for name, count in left.items() if count}


async def audit(
    cast: Cast, calls: Iterable[Call], expected: Expected | None = None, reports: Reports | None = None
) -> Figures:
    """Compare everything once it is at rest; `broken` names each promise that does not hold."""
    await at_rest(cast.world)
    late = reports.late() if reports else []
    return await asyncio.to_thread(_audit, cast, list(calls), expected or Expected(), late)


def _audit(cast: Cast, calls: list[Call], expected: Expected, late: list[Late]) -> Figures:
    world = cast.world
    figures = Figures(calls=len(calls), complete=sum(call.complete for call in calls))
    figures.late = [f"{one.who}: {one.what}" for one in late]
    charged = _charged(cast)
    received = {call.request_id for call in calls if call.complete}
    _compare(figures, charged, world.upstream.told, received, expected)
    if world.upstream.repeated:
        figures.broken.append(f"sent upstream twice: {world.upstream.repeated[:3]}")
    windows = (*expected.unnoticed, *(one.window for one in late if expected.slow))
    _balances(cast, figures, calls, windows, slow=expected.slow)
    if cast.budgets.all:
        _budgets(cast, figures, received, expected)
    _slots(cast, figures)
    _views(cast, figures, expected)
    if figures.unheard and not expected.unheard:
        figures.broken.append(f"{figures.unheard} used and not charged")
    return figures


def _charged(cast: Cast) -> dict[str, tuple[str, int, int, bool]]:
    """By request id: the kind of account, what it was charged, in how many rows, whether by estimate."""
    found: dict[str, tuple[str, int, int, bool]] = {}
    for kind, query in CHARGED.items():
        whose = [one.id for one in cast.tenants] if kind == "tokens" else cast.organizations
        for request_id, amount, rows, estimated in cast.world.rows(query, whose):
            if request_id:  # what stands for rows that are gone is no call's
                found[request_id] = (kind, int(amount), int(rows), bool(estimated))
    return found


def _compare(
    figures: Figures,
    charged: dict[str, tuple[str, int, int, bool]],
    told: dict[str, ServedCall],
    received: set[str],
    expected: Expected,
) -> None:
    for request_id in received - told.keys():
        figures.broken.append(f"{request_id} was answered and never asked of the upstream")
    for request_id in received & told.keys():
        amount = charged.get(request_id, ("", 0, 0, False))[1]
        figures.lost += max(0, used(told[request_id]) - amount)
    for request_id, (kind, amount, rows, estimated) in charged.items():
        truth = told.get(request_id)
        if truth is None:
            figures.doubled += amount
            figures.broken.append(f"{request_id} was charged {amount} and never asked of the upstream")
            continue
        if kind != truth.kind or rows > 1:
            figures.broken.append(f"{request_id} ({truth.kind}) has {rows} rows of {kind}")
        exact = request_id in received or not (estimated or truth.cut)
        if exact:
            figures.doubled += max(0, amount - used(truth))
        if exact and amount != used(truth):
            figures.broken.append(f"{request_id} used {used(truth)} and was charged {amount}")
    seen = charged.keys() | received
    unheard = [one for one in told.values() if one.complete and one.request_id not in seen]
    figures.unheard, figures.unheard_calls = sum(map(used, unheard)), len(unheard)
    exact = {request_id for request_id, (*_, estimated) in charged.items() if not estimated}
    figures.disputed_calls = len(told.keys() - exact)
    gone = received - charged.keys()
    figures.lost_calls, figures.lost_ids = len(gone), sorted(gone)
    if not expected.lost:
        figures.broken += [f"{request_id} was received completely and not charged" for request_id in gone]


def used(told: ServedCall) -> int:
    """What a call is charged: tokens, the credits of a use, or units."""
    if told.kind == "tokens":
        return told.tokens
    return told.units * (CREDITS_A_CALL if told.kind == "credits" else 1)


def _balances(
    cast: Cast, figures: Figures, calls: list[Call], windows: Sequence[Window], *, slow: bool
) -> None:
    """Granted − remaining = Σ ledger, live and stored alike; tight ones are within their grant."""
    world = cast.world
    query = (
        "SELECT tenant_id, sum(CASE direction WHEN 'IN' THEN amount ELSE -amount END) "
        "FROM token_ledger WHERE tenant_id = ANY(%s) GROUP BY 1"
    )
    sums = {tenant: int(left) for tenant, left in world.rows(query, [one.id for one in cast.tenants])}
    for tenant in cast.tenants:
        quota = world.admin("GET", f"/tenant-quotas/{tenant.id}")
        if quota["tokens_remaining"] != sums[tenant.id] or quota["tokens_held"]:
            figures.broken.append(f"tenant {tenant.id} has {quota}, its ledger leaves {sums[tenant.id]}")
    if cast.tight is not None:
        beyond = passed(cast, sums[cast.tight.id], calls, windows, reclaims=slow)
        figures.over_granted = beyond.tokens
        figures.broken += beyond.unproven
    for organization in cast.organizations:
        posted = "SELECT coalesce(sum(amount), 0) FROM credit_posting WHERE organization_id = %s"
        spent = "SELECT coalesce(sum(credits_used), 0) FROM credit_transaction WHERE organization_id = %s"
        left = int(world.rows(posted, organization)[0][0]) - int(world.rows(spent, organization)[0][0])
        found = world.admin("GET", f"/organizations/{organization}")["credit_balance"]
        if found != left:
            figures.broken.append(
                f"organization {organization} has {found} credits, its ledger leaves {left}"
            )


def _budgets(cast: Cast, figures: Figures, received: set[str], expected: Expected) -> None:
    """Calls cost what the upstream counted, and of each budget is used what its calls cost."""
    world = cast.world
    costs = budgets.costs_of(world, cast.organizations)
    for request_id in received & world.upstream.told.keys():
        cost, right = costs.get(request_id, 0), budgets.cost_of(world.upstream.told[request_id])
        figures.lost_nano += max(0, right - cost)
        figures.doubled_nano += max(0, cost - right)
        if cost > right or (cost < right and not expected.lost):
            figures.broken.append(f"{request_id} costs {right} nano-units and has {cost}")
    figures.broken += budgets.compare(world, cast.budgets, cast.organizations, rows_gone=expected.rows_gone)


def _slots(cast: Cast, figures: Figures) -> None:
    """No slot, no hold and nothing held is left in the counters."""
    with cast.world.counters() as counters:
        for organization in cast.organizations:
            tag = f"tk:{{p{keys.partition_of(organization):02d}}}:"
            for name in counters.scan_iter(match=f"{tag}[kutob]:*", count=1000):
                packed = counters.get(name)
                if packed is None:  # a user's own is forgotten as soon as it says nothing
                    continue
                assert isinstance(packed, bytes)
                kind = name.decode().removeprefix(tag)[0]
                for state in unpack_windows(packed) if kind == "b" else [UNPACK[kind](packed)]:
                    held = [getattr(state, each, 0) for each in HELD]
                    if any(held):
                        figures.broken.append(f"{name.decode()} still holds {held}")


HELD = ("inflight", "held", "credits_held", "spend_held")
UNPACK: dict[str, Any] = {
    "k": partial(states.unpack, states.KeyState),
    "u": partial(states.unpack, states.UserState),
    "t": partial(states.unpack, states.TenantState),
    "o": partial(states.unpack, states.OrganizationState),
}


def _views(cast: Cast, figures: Figures, expected: Expected) -> None:
    """Invariant views, dead letters, quarantine, and what the product says it lost."""
    world = cast.world
    names = [f"tenant:{one.id}" for one in cast.tenants]
    names += [f"{kind}:{one}" for one in cast.organizations for kind in ("credits", "spend")]
    for view in INVARIANTS:
        for account, seq, detail in world.rows(f"SELECT account, seq, detail FROM invariant_{view}"):
            figures.broken.append(f"invariant {view}: {account} at {seq}: {detail}")
    figures.counted_lost = int(world.rows(COUNTED_LOST, names, names)[0][0])
    if figures.counted_lost and not expected.lost_events:
        figures.broken.append(f"{figures.counted_lost} movements are listed as lost")
    stopped = "SELECT account, reason FROM quarantine WHERE account = ANY(%s) AND released_at IS NULL"
    for account, reason in world.rows(stopped, names):
        figures.broken.append(f"{account} is in quarantine: {reason}")
    dead = "SELECT reason FROM dead_letter WHERE organization_id = ANY(%s)"
    for (reason,) in world.rows(dead, cast.organizations):
        figures.broken.append(f"dead letter: {reason}")
