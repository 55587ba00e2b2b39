"""The current use of a budget: per window, Redis's value if it has one, else PostgreSQL's. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.intervals import window_bounds


@dataclass(frozen=True, slots=True)
class LiveWindow:
    """A window of an account as Redis has it, in its budget's unit; it began at `start_ms` (Unix ms)."""

    budget_id: int
    used: int
    held: int
    start_ms: int


@dataclass(frozen=True, slots=True)
class BudgetBalance:
    """The limit, used and held amounts of a budget in its current window, and its end; 0 is never.

    `limit` is None for no limit. `limit_by` is the origin of the limit, one of `LIMITS_BY`. `carried` is what
    earlier intervals left, below 0 what is taken off. `frees` are the next moments at which a rolling window gives
    back, and how much.
    """

    limit: int | None
    used: int
    held: int
    resets_ms: int
    limit_by: str
    carried: int = 0
    frees: tuple[tuple[int, int], ...] = ()

    @property
    def remaining(self) -> int | None:
        """The settled rest, below 0 if the limit is passed; None for no limit."""
        return None if self.limit is None else self.limit - self.used


def window_of(budget: Budget, at_ms: int) -> tuple[int, int]:
    """Return the start and end of a budget's current window (Unix ms); 0 is never."""
    if not budget.interval:
        return 0, 0
    start, following, _ = window_bounds(budget.interval, budget.time_zone, budget.anchor_day, at_ms)
    return start, following


def compute_balance(
    budget: Budget,
    at_ms: int,
    stored: tuple[int, int] | None,
    live: Mapping[int, LiveWindow] | None = None,
    owner: str = "",
    *,
    groups: Collection[int] = (),
) -> BudgetBalance:
    """Return the limit, use and held amount of the account of an `owner` in a budget at `at_ms` (Unix ms).

    `groups` are those that the owner is in.

    `stored` is the start and the use of the last window in PostgreSQL. `live` are the account's windows
    in Redis by budget id, or None if Redis lacks the account or is unreachable. Use in an earlier window
    counts as 0.
    """
    start, following = window_of(budget, at_ms)
    limit, by = budget.limit_of(owner, at_ms, groups)
    window = (live or {}).get(budget.id)
    if window is not None:
        used = window.used if window.start_ms >= start else 0
        return BudgetBalance(limit, used, window.held, following, by)
    used = stored[1] if stored is not None and stored[0] >= start else 0
    return BudgetBalance(limit, used, 0, following, by)
