"""What a batch of fresh entries adds up to: where accounts stand after it, and use by day.

Pure. Only entries that really become rows are passed in, so nothing is counted twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from gateway.core.ledger import Event, EventFlag, EventKind
from persistence.guard import Placed

DAY_MS = 86_400_000
TOKENS, CREDITS, USAGE = int(EventFlag.TOKENS), int(EventFlag.CREDITS), int(EventFlag.USAGE)
ACTIVATES, CONSUME, RESET = int(EventFlag.ACTIVATES), int(EventKind.CONSUME), int(EventKind.RESET)
ADJUST = int(EventKind.ADJUST)

# tenant, day since 1970, service (0: none)
Bucket = tuple[int, int, int]


@dataclass(slots=True)
class Moves:
    """The last movement of each account, and what was used by bucket.

    `daily` holds organization, requests, tokens, credits, units. `resets` are the moments
    of the last reset by tenant.
    """

    quotas: dict[int, Event] = field(default_factory=dict)
    credits: dict[int, Event] = field(default_factory=dict)
    spends: dict[int, Event] = field(default_factory=dict)
    resets: dict[int, int] = field(default_factory=dict)
    activations: list[Event] = field(default_factory=list)
    daily: dict[Bucket, list[int]] = field(default_factory=dict)


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
                moves.spends[event.organization_id] = event
            if flags & ACTIVATES:
                moves.activations.append(event)
        else:
            if flags & CREDITS:
                moves.credits[event.organization_id] = event
            if kind == RESET:
                moves.resets[event.tenant_id] = event.at_ms
    return moves
