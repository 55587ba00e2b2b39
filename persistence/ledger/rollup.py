"""What a batch of fresh entries adds up to: where accounts stand after it, and use by day.

Pure. Only entries that really become rows are passed in, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from gateway.core.accounts.ledger import Event, EventFlag, EventKind
from gateway.core.moments import DAY_MS
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed
from persistence.ledger.portions import portions
from persistence.ledger.told_units import supplied_day, told_day

ACTIVATES, CONSUME, RESET = int(EventFlag.ACTIVATES), int(EventKind.CONSUME), int(EventKind.RESET)
ADJUST = int(EventKind.ADJUST)
INWARD, UNLIMITED = int(EventFlag.IN), int(EventFlag.UNLIMITED)

# tenant, day since 1970, service (0: none)
Bucket = tuple[int, int, int]
# The same, and what a unit costs.
PricedBucket = tuple[int, int, int, Decimal]
# And the days since 1970 that it was supplied and told on, and whether it is taken back.
ToldBucket = tuple[int, int, int, Decimal, int, int, bool]


@dataclass(slots=True)
class Moves:
    """The last movement of each account, and what was used by bucket.

    `daily` holds organization, requests, tokens, credits, units. `resets` are the moments
    of the last reset by tenant. `priced` holds organization, first unit, units; `told` organization, units
    of those that were supplied on an earlier day, or are taken back. `beyond` are tenants whose cycle or plan
    may have ended with tokens beyond it, `granted` organizations that got or lost credits.
    """

    quotas: dict[int, Event] = field(default_factory=dict)
    credits: dict[int, Event] = field(default_factory=dict)
    spends: dict[int, Event] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    activations: list[Event] = field(default_factory=list)
    daily: dict[Bucket, list[int]] = field(default_factory=dict)
    priced: dict[PricedBucket, list[int]] = field(default_factory=dict)
    told: dict[ToldBucket, list[int]] = field(default_factory=dict)
    beyond: set[int] = field(default_factory=set)
    granted: set[int] = field(default_factory=set)


def add_up(fresh: Iterable[Placed]) -> Moves:
    """Fold entries, in account order, into what they come to."""
    moves = Moves()
    quotas, daily = moves.quotas, moves.daily
    for _, (_, _, event) in fresh:
        assert event is not None
        flags = event.flags
        if flags & TOKENS:
            quotas[event.tenant_id] = event
        kind = event.kind
        if kind == CONSUME or (kind == ADJUST and flags & (CREDITS | USAGE)):
            bucket = (event.tenant_id, event.at_ms // DAY_MS, event.service_id)
            sums = daily.get(bucket)
            if sums is None:
                sums = daily[bucket] = [event.organization_id, 0, 0, 0, 0]
            if kind == CONSUME:
                sums[1] += 1
                if flags & TOKENS:
                    sums[2] += event.amount
            if flags & CREDITS:
                sums[3] += event.credits
                moves.credits[event.organization_id] = event
            if flags & USAGE:
                sums[4] += event.units
                _add_priced(moves, bucket, event)
                moves.spends[event.organization_id] = event
            if flags & ACTIVATES:
                moves.activations.append(event)
        else:
            _add_granted(moves, event)
    return moves


def _add_granted(moves: Moves, event: Event) -> None:
    if event.flags & CREDITS:
        moves.credits[event.organization_id] = event
        moves.granted.add(event.organization_id)
    if event.kind == RESET:
        moves.resets[event.tenant_id] = event.at_ms
    if event.flags & TOKENS and _left_before(event) < 0:
        moves.beyond.add(event.tenant_id)


def _left_before(event: Event) -> int:
    """What remained of a tenant's tokens before a grant."""
    left = 0 if event.flags & UNLIMITED else event.remaining
    return left - event.amount if event.flags & INWARD else left + event.amount


def _add_priced(moves: Moves, bucket: Bucket, event: Event) -> None:
    supplied, is_back = supplied_day(event), event.units < 0
    is_told = is_back or supplied != bucket[1]
    told = max(supplied, told_day(event))
    for first, units, price in portions(event):
        sums = moves.priced.setdefault((*bucket, price), [event.organization_id, first, 0])
        sums[1] = min(sums[1], first)
        sums[2] += units
        if is_told:
            place = (*bucket, price, supplied, told, is_back)
            moves.told.setdefault(place, [event.organization_id, 0])[1] += units
