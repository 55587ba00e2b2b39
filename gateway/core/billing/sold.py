"""What a cycle of tokens was sold with: whatever a plan says later applies from the next one on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from gateway.core.accounts.budgets import bounds
from gateway.core.billing.early_use import WINDOWS, TokenTerms
from gateway.core.moments import moment_of, ms_of

_ALWAYS = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Said:
    """What a plan said from a moment on."""

    since: datetime
    terms: TokenTerms


def sold_with(said: Sequence[Said], given: Said | None, renewed: datetime | None, at: datetime) -> TokenTerms:
    """The terms of the cycle that ran at a moment; `said` is what the plan says since when, the oldest first.

    They are those of the cycle's beginning: by the calendar, by a reset a person asked for (`renewed`), or as
    the tenant got the plan (`given`), whichever was last. What was said within the cycle is left aside, and
    so is a cycle it would have had: the one that ran is of the terms before.
    """
    place = max((place for place, each in enumerate(said) if each.since <= at), default=0)
    while True:
        each = said[place]
        begins = max(_begin_of(each.terms, at), renewed or _ALWAYS)
        if given is not None and given.since >= begins:
            return given.terms
        if each.since <= begins or place == 0:
            return each.terms
        at, place = each.since, place - 1


def _begin_of(terms: TokenTerms, at: datetime) -> datetime:
    """When a cycle began by the calendar; tokens that are given once have one that always was."""
    window = WINDOWS.get(terms.interval)
    if window is None:
        return _ALWAYS
    return moment_of(bounds(window, terms.time_zone, terms.anchor_day, ms_of(at))[0])
