"""Sums of a batch of fresh entries: the new state of each account, and use by day.

Pure. Only entries that become rows are passed in, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal

from gateway.core.accounts.outbox import EventFlag, EventKind, OutboxEntry
from gateway.core.times import DAY_MS
from persistence.ledger.guard import CREDITS, TOKENS, USAGE, Placed
from persistence.ledger.late_units import report_day, supplied_day
from persistence.ledger.rows import portions

ACTIVATES, CONSUME, RESET = int(EventFlag.ACTIVATES), int(EventKind.CONSUME), int(EventKind.RESET)
ADJUST = int(EventKind.ADJUST)
INWARD, UNLIMITED = int(EventFlag.IN), int(EventFlag.UNLIMITED)

# tenant, day since 1970, service (0: none)
Bucket = tuple[int, int, int]
# The same, and the price of a unit.
PricedBucket = tuple[int, int, int, Decimal]
# And the days since 1970 of supply and of counting, and whether it is a refund.
ToldBucket = tuple[int, int, int, Decimal, int, int, bool]


@dataclass(slots=True)
class RollupDelta:
    """The last movement of each account, and use by bucket.

    `daily` holds organization, requests, tokens, credits, units. `resets` are the times of the last reset by
    tenant. `priced` holds organization, first unit, units; `told` organization and units, for units that were
    supplied on an earlier day or refunded. `beyond` are tenants with possible tokens beyond an ended cycle or
    plan, `granted` organizations that got or lost credits.
    """

    quotas: dict[int, OutboxEntry] = field(default_factory=dict)
    credits: dict[int, OutboxEntry] = field(default_factory=dict)
    spends: dict[int, OutboxEntry] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    activations: list[OutboxEntry] = field(default_factory=list)
    daily: dict[Bucket, list[int]] = field(default_factory=dict)
    priced: dict[PricedBucket, list[int]] = field(default_factory=dict)
    told: dict[ToldBucket, list[int]] = field(default_factory=dict)
    beyond: set[int] = field(default_factory=set)
    granted: set[int] = field(default_factory=set)


def add_up(fresh: Iterable[Placed]) -> RollupDelta:
    """Fold entries, in account order, into account states and sums."""
    moves = RollupDelta()
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


def _add_granted(moves: RollupDelta, event: OutboxEntry) -> None:
    """Note what an entry does to credits and cycles, and tenants whose tokens were below 0."""
    if event.flags & CREDITS:
        moves.credits[event.organization_id] = event
        moves.granted.add(event.organization_id)
    if event.kind == RESET:
        moves.resets[event.tenant_id] = event.at_ms
    if event.flags & TOKENS:
        left = 0 if event.flags & UNLIMITED else event.remaining
        if (left - event.amount if event.flags & INWARD else left + event.amount) < 0:  # before the grant
            moves.beyond.add(event.tenant_id)


def _add_priced(moves: RollupDelta, bucket: Bucket, event: OutboxEntry) -> None:
    """Add the units of an entry to the sums of its price, and of a late report."""
    supplied, is_back = supplied_day(event), event.units < 0
    is_told = is_back or supplied != bucket[1]
    told = max(supplied, report_day(event))
    for first, units, price in portions(event):
        sums = moves.priced.setdefault((*bucket, price), [event.organization_id, first, 0])
        sums[1] = min(sums[1], first)
        sums[2] += units
        if is_told:
            place = (*bucket, price, supplied, told, is_back)
            moves.told.setdefault(place, [event.organization_id, 0])[1] += units
