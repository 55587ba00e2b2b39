"""The current use of a budget: per window, Redis's value if it has one, else PostgreSQL's. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import reduce

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.windows import (
    CALENDAR,
    CalendarWindow,
    EndLimit,
    LastInterval,
    WindowUses,
    least,
    used_at,
)


@dataclass(frozen=True, slots=True)
class LiveWindow:
    """A window of an account as Redis has it, in its budget's unit: from `start_ms` to `ends_ms` (Unix ms; 0 is unknown).

    A window that rolls has the use of its `parts` by their starts. `carried` is what it carries over, None if it
    does not, or was not used yet; `at_end` the limit at its interval's end as its last call knew it.
    """

    budget_id: int
    used: int
    held: int
    start_ms: int
    parts: WindowUses = field(default_factory=dict)
    carried: int | None = None
    at_end: EndLimit | None = None
    ends_ms: int = 0

    @property
    def uses(self) -> WindowUses:
        """Its used amounts by when these begin to count."""
        return self.parts or {self.start_ms: self.used}


@dataclass(frozen=True, slots=True)
class StoredUse:
    """The use of an account as PostgreSQL has it, by when it begins to count (Unix ms).

    `carried` is what the interval of the last one carried, None if it was not used yet, and `at_end` the limit at
    its end as it was told, None if it was not.
    """

    uses: WindowUses
    carried: int | None = None
    at_end: EndLimit | None = None


@dataclass(frozen=True, slots=True)
class BudgetBalance:
    """The limit, used and held amounts of a budget in its current window, and its end; 0 is never.

    `limit` is None for no limit, `limit_by` its origin, one of `LIMITS_BY`, and `group_id` the group whose override it
    is, 0 for none. `carried` is added to it, or taken
    off if below 0; it is 0 without carry-over. `frees` are the next times (Unix ms) at which a rolling window
    has something free again, each with the amount.
    """

    limit: int | None
    used: int
    held: int
    resets_ms: int
    limit_by: str
    carried: int = 0
    frees: tuple[tuple[int, int], ...] = ()
    group_id: int = 0

    @property
    def limit_in_force(self) -> int | None:
        """What the window may use, 0 or more: limit and carried amount; None for no limit."""
        return None if self.limit is None else max(0, self.limit + self.carried)

    @property
    def remaining(self) -> int | None:
        """The settled rest of limit and carried amount, below 0 if it is passed; None for no limit."""
        return None if self.limit is None else self.limit + self.carried - self.used


def window_of(budget: Budget, at_ms: int) -> tuple[int, int]:
    """Return the start and end of a budget's window at a time by the calendar (Unix ms); 0 is never.

    Of any other window the start is that of the earliest uses which count.
    """
    form = budget.form
    return (form.since(at_ms) if form.length else form.start_of(at_ms, {})), form.ends(at_ms, {})


def compute_balance(
    budget: Budget,
    at_ms: int,
    stored: StoredUse | None,
    live: Mapping[int, LiveWindow] | None = None,
    owner: str = "",
    *,
    groups: Collection[int] = (),
) -> BudgetBalance:
    """Return the limit, use and held amount of the account of an `owner` in a budget at `at_ms` (Unix ms).

    `groups` are those that the owner is in.

    `stored` is the use in PostgreSQL: it may begin before the current window, and must if the budget carries.
    `live` are the account's windows in Redis by budget id, or None if Redis lacks the account or is
    unreachable. Use in an earlier window counts as 0. A live window by the calendar runs until its end, also where
    another edition of the time zones began it.
    """
    limit, by, group_id = budget.limit_of(owner, at_ms, groups)
    window = (live or {}).get(budget.id)
    held, known = 0, stored or StoredUse({})
    if window is not None:
        held, known = window.held, StoredUse(window.uses, window.carried, window.at_end)
    form, uses = budget.form, known.uses
    used, ends_ms = used_at(form, at_ms, uses), form.ends(at_ms, uses)
    if window is not None and budget.window == CALENDAR and window.ends_ms > at_ms:
        used, ends_ms = window.used, window.ends_ms
    return BudgetBalance(
        limit, used, held, ends_ms, by,
        carried_to(budget, at_ms, known, owner, groups), form.frees(at_ms, uses), group_id,
    )  # fmt: skip


def carried_to(
    budget: Budget, at_ms: int, known: StoredUse, owner: str = "", groups: Collection[int] | None = ()
) -> int:
    """Return what the interval at a time carries, by the last one that was used.

    An interval whose calls did not know that the budget carries leaves nothing. `groups` are those of the owner,
    None if nobody knows them.
    """
    carry, form, uses, carried = budget.carry_of(owner), budget.form, known.uses, known.carried
    # A gateway whose clock was ahead did not know when the running interval began: its uses begin at 0.
    begun = [start for start in uses if start]
    if carry is None or carried is None or not begun or not isinstance(form, CalendarWindow):
        return 0
    last = max(begun)
    present = end_limit(budget, at_ms, owner, known.at_end, groups)
    interval = LastInterval(last, carried, uses[last], known.at_end or present)
    return form.carry_to(at_ms, carry, interval, present)


def end_limit(
    budget: Budget, at_ms: int, owner: str, known: EndLimit | None, groups: Collection[int] | None
) -> EndLimit:
    """Return the limit of ended intervals by the present amounts: of now, or of the interval's end if that is less.

    With `groups` None it is not above that in any groups.
    """
    form = budget.form
    assert isinstance(form, CalendarWindow)
    times, changed = (at_ms, form.ends(at_ms, {}) - 1), form.place(budget.changed_ms)
    limits = [budget.limit_of(owner, time_ms, groups or ()).amount for time_ms in times]
    if groups is None and (every := budget.overridden_groups):
        if known is not None and known.changed == changed:
            limits.append(known.amount)
        else:
            limits += [budget.limit_of(owner, time_ms, every).amount for time_ms in times]
    return EndLimit(reduce(least, limits), changed)
