"""Scheduled invoices: those that are due, and why one was skipped."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date
from typing import NamedTuple

from gateway.errors import Conflict, CountersUnavailable, StoreTimeout, TollkeeperError, Unprocessable

# All reasons why an invoice is skipped; each is a label of a metric.
NOT_STORED, NOT_IN_LEDGER, NOT_AGREED = "not_stored", "not_in_ledger", "not_agreed"
COUNTERS, INCOMPLETE, CONFLICT = "counters_away", "incomplete", "conflict"
TOOK_TOO_LONG, REFUSED = "took_too_long", "refused"

LEFT_REASONS = (
    NOT_STORED, NOT_IN_LEDGER, NOT_AGREED, COUNTERS, INCOMPLETE, CONFLICT, TOOK_TOO_LONG, REFUSED
)  # fmt: skip


class DueInvoice(NamedTuple):
    """An invoice to be drafted or finalized by schedule. `source` is set for a one-off invoice.

    One keeper at a time handles the organizations of a `partition`.
    """

    organization_id: int
    draft_id: int | None
    period_start: date
    period_end: date
    source: str | None
    finalize: bool
    partition: int = 0


class SkipReason(NamedTuple):
    """Why an invoice was skipped: one of `LEFT_REASONS`, and a sentence."""

    reason: str
    why: str


class ScheduledResult(NamedTuple):
    """Organizations whose due work is done, and the reasons why others were skipped."""

    done: Collection[int]
    left: Mapping[int, SkipReason]


def left_by(refusal: TollkeeperError) -> SkipReason:
    """Return the reason to report for an invoice that was not created because of the error `refusal`."""
    if isinstance(refusal, Unprocessable) and refusal.errors:
        reasons = "; ".join(f"{field} {wanted}" for field, wanted in refusal.errors)
        return SkipReason(INCOMPLETE, f"{refusal.message} {reasons}")
    if isinstance(refusal, CountersUnavailable):
        return SkipReason(COUNTERS, str(refusal))
    if isinstance(refusal, StoreTimeout):
        return SkipReason(TOOK_TOO_LONG, str(refusal))
    return SkipReason(CONFLICT if isinstance(refusal, Conflict) else REFUSED, str(refusal))
