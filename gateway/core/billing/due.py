"""An invoice that the schedule wants, and why one was left. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import NamedTuple

from gateway.errors import Conflict, CountersUnavailable, TollkeeperError, TookTooLong, Unprocessable

# Why an invoice was left; each is a label, so there are no others.
NOT_STORED, NOT_IN_LEDGER, NOT_AGREED = "not_stored", "not_in_ledger", "not_agreed"
COUNTERS, INCOMPLETE, CONFLICT = "counters_away", "incomplete", "conflict"
TOOK_TOO_LONG, REFUSED = "took_too_long", "refused"
LEFT_REASONS = (
    NOT_STORED, NOT_IN_LEDGER, NOT_AGREED, COUNTERS, INCOMPLETE, CONFLICT, TOOK_TOO_LONG, REFUSED
)  # fmt: skip


class Due(NamedTuple):
    """An invoice to be drafted or, where it is to be final, made so; `source` of a one-off invoice.

    Organizations of one `partition` are one keeper's at a time.
    """

    organization_id: int
    draft_id: int | None
    period_start: date
    period_end: date
    source: str | None
    finalize: bool
    partition: int = 0


class Left(NamedTuple):
    """Why an invoice was left: one of the reasons, and a sentence."""

    reason: str
    why: str


class ScheduledResult(NamedTuple):
    """Organizations of which all that is due is made, and why others were left."""

    done: Collection[int]
    left: Mapping[int, Left]


def left_by(refusal: TollkeeperError) -> Left:
    """Why one is left that was refused so."""
    if isinstance(refusal, Unprocessable) and refusal.errors:
        said = "; ".join(f"{field} {wanted}" for field, wanted in refusal.errors)
        return Left(INCOMPLETE, f"{refusal.message} {said}")
    if isinstance(refusal, CountersUnavailable):
        return Left(COUNTERS, str(refusal))
    if isinstance(refusal, TookTooLong):
        return Left(TOOK_TOO_LONG, str(refusal))
    return Left(CONFLICT if isinstance(refusal, Conflict) else REFUSED, str(refusal))
