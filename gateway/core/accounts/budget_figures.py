"""What is used of a budget now: the counters' word over PostgreSQL's, window by window. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.core.accounts.budgets import Budget, bounds


@dataclass(frozen=True, slots=True)
class LiveWindow:
    """A window of an account as the counters hold it, in what it counts; `start_ms` is when it began."""

    budget_id: int
    used: int
    held: int
    start_ms: int


@dataclass(frozen=True, slots=True)
class Figures:
    """What is used and held of a budget in the window that runs, and until when; 0 is for ever."""

    limit: int
    used: int
    held: int
    resets_ms: int


def window_of(budget: Budget, at_ms: int) -> tuple[int, int]:
    """When the window that runs has begun, and when it ends; 0 is never."""
    start, following, _ = bounds(budget.interval, budget.time_zone, budget.anchor_day, at_ms)
    return start, following


def figures(
    budget: Budget,
    at_ms: int,
    stored: tuple[int, int] | None,
    live: Mapping[int, LiveWindow] | None = None,
) -> Figures:
    """The figures of one account.

    `stored` is what PostgreSQL has of its last window: when that began, and what was used. `live` are the
    account's windows by budget; None where the counters do not have it, or cannot be asked. What is of a
    window before this one is over.
    """
    start, following = window_of(budget, at_ms)
    limit = budget.limit_at(at_ms)
    window = (live or {}).get(budget.id)
    if window is not None:
        return Figures(limit, window.used if window.start_ms >= start else 0, window.held, following)
    used = stored[1] if stored is not None and stored[0] >= start else 0
    return Figures(limit, used, 0, following)
