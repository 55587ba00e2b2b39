"""Attempts that a vendor reports and does not bill: a table by outcome, category and date.

An answer states its outcome, and this table alone decides whether that is billed. The charge reads the table
by the time of the use, as it reads prices. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

from gateway.core.billing.price_book import Counts


class VendorOutcome(NamedTuple):
    """The outcome of an attempt by one of `models` before any output, as their vendor names it."""

    models: str
    kind: str
    category: str | None = None


class Declined(NamedTuple):
    """An attempt that ended in `outcome`: its model and tokens, within a use; None for the whole use."""

    outcome: VendorOutcome
    part: tuple[str, Counts] | None = None


def _since(year: int, month: int, day: int) -> int:
    return 1000 * round(datetime(year, month, day, tzinfo=UTC).timestamp())


# The categories that are billed, by models and kind of outcome, from a time (Unix ms) on: newer ones first.
# Before the oldest, and of models or outcomes that are not here, all are billed.
_BILLED: Final[Mapping[tuple[str, str], tuple[tuple[int, frozenset[str]], ...]]] = {
    # On all platforms: platform.claude.com/docs/en/release-notes, of 2 June and 24 September 2026.
    ("claude", "refusal"): (
        (_since(2026, 9, 24), frozenset({"bio", "frontier_llm", "reasoning_extraction"})),
        (_since(2026, 6, 2), frozenset()),
    ),
}


def is_billed(outcome: VendorOutcome, at_ms: int) -> bool:
    """Return whether a vendor bills an outcome at a time (Unix ms)."""
    dated = _BILLED.get((outcome.models, outcome.kind), ())
    billed = next((categories for since_ms, categories in dated if since_ms <= at_ms), None)
    return billed is None or outcome.category in billed
