"""What calls add up to by hour, and by everything that is asked by.

Pure. Each call is in one row of its hour; a correction takes the call out as it was and puts it in as it is.
What hours add up to in other spans, PostgreSQL adds up (`usage_spans.ROLL_UP_CALLS`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gateway.core.accounts.facts import (
    CACHE_READ,
    CACHE_WRITE,
    CACHE_WRITE_1H,
    INPUT,
    OUTPUT,
    REASONING,
    CallFacts,
)
from gateway.core.accounts.ledger import Event, attributed
from gateway.core.accounts.usage import DIMENSIONS, NO_PROJECT, SUMS
from gateway.core.moments import HOUR_MS
from persistence.ledger.call_rows import amounts_of, counts_of, stored_text, used_at
from persistence.ledger.statements import columns_of
from persistence.ledger.sums import bounded

# Organization, start in ms, tenant, key, user (0: none), project (-1: none), service, model, currency.
Bucket = tuple[int, int, int, int, int, int, int, str, str]
Rollup = dict[Bucket, list[int]]


def add_call(hours: Rollup, event: Event, facts: CallFacts, user_id: int | None) -> None:
    """Put a call into the roll-up of its hour."""
    _, project, _ = attributed(event.attribution)
    tokens, credits_, units = amounts_of(event, facts)
    cost, counts, at_ms = facts.cost, counts_of(facts), used_at(event, facts)
    bucket = (
        event.organization_id, at_ms - at_ms % HOUR_MS, event.tenant_id, event.key_id,
        user_id or 0, int(project) if project else NO_PROJECT, event.service_id,
        stored_text(facts.model), stored_text(facts.currency),
    )  # fmt: skip
    more = (
        1, 0, counts[INPUT], counts[CACHE_READ], counts[CACHE_WRITE] + counts[CACHE_WRITE_1H],
        counts[OUTPUT], counts[REASONING], tokens, credits_, units,
        bounded(cost or 0), facts.estimated, bool(facts.unpriced) or (cost is None and tokens > 0),
        counts[CACHE_WRITE_1H],
    )  # fmt: skip
    sums = hours.get(bucket)
    if sums is None:
        hours[bucket] = list(map(int, more))
    else:
        for at, count in enumerate(more):
            sums[at] += count


def rows_of(hours: Rollup) -> list[tuple[object, ...]]:
    """The rows of hours, none with a sum beyond what a column holds: the largest one stays the largest."""
    return [(*bucket, *map(bounded, sums)) for bucket, sums in hours.items()]


def moved(before: Sequence[Any], after: Sequence[Any], hours: Rollup) -> None:
    """Take a call out of its hour as its row was, and put it in as it is; both as `statements.CALL_SUMS`."""
    for row, sign in ((before, -1), (after, 1)):
        bucket, counts = tuple(row[: len(DIMENSIONS)]), row[len(DIMENSIONS) : len(DIMENSIONS) + len(SUMS)]
        sums = hours.setdefault(bucket, [0] * len(SUMS))
        for at, count in enumerate(counts):
            sums[at] += sign * int(count)


def moved_columns(calls: Iterable[tuple[Sequence[Any], Sequence[Any]]]) -> tuple[list[Any], ...]:
    """What `usage_spans.ROLL_UP_CALLS` takes of calls whose rows changed: each as it was, and is."""
    hours: Rollup = {}
    for before, after in calls:
        moved(before, after, hours)
    return tuple(columns_of(rows_of(hours)))
