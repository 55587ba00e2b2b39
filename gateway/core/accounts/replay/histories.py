"""The use of accounts in the windows of one budget: by the calendar, rolling, or from first use. Pure.

A history is of one account. Calls come in the order of time: `roll` brings a history to the time of a call, then
`used` is what counts there, and `take` adds the call. Amounts are in the budget's unit as counted.

The least amount of a history is the smallest limit that all its use had fitted in. Without carry it is the most
used in a window. With carry at most `max`, and a use S(n) in the first n intervals, an amount A suffices if
S(n) <= n * A, and S(n) - S(m) <= max + (n - m) * A for all 0 < m < n: A is the steepest line from one of the points
(0, 0), (m, S(m) + max) to a point (n, S(n)). The points that may still be steepest are their lower convex hull.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.intervals import INTERVALS, window_bounds
from gateway.core.accounts.windows import FIRST_USE, ROLLING, WHOLE_PARTS, Carry, RollingWindow

FOREVER: Final = 1 << 62
# Bytes of a part of a rolling window: of its number, and of its use.
_NUMBER: Final = 4
_USE: Final = 9
_PART: Final = _NUMBER + _USE

# Returns the limit of an owner at a time (Unix ms); None for no limit.
LimitAt = Callable[[object, int], int | None]


class AccountHistory:
    """The use of one account in its window, the most in one (`peak`), and when the window changes (Unix ms).

    `carried` is what the window has besides the limit; below 0 is what is taken off. There may be a million: two bytes
    here are two megabytes.
    """

    __slots__ = ("peak", "until_ms", "used")
    carried = 0

    def __init__(self) -> None:
        self.used = self.peak = self.until_ms = 0

    def add(self, amount: int) -> None:
        """Add a use to the window; the first one shares its integer with the call."""
        used = self.used = self.used + amount if self.used else amount
        self.peak = max(self.peak, used)

    def fork(self) -> AccountHistory:
        """Return a copy, which goes on by itself."""
        copy = type(self)()
        copy.used, copy.peak, copy.until_ms = self.used, self.peak, self.until_ms
        return copy


class RollingHistory(AccountHistory):
    """Besides, the `parts` of a rolling window that have use: number and use of each, packed one after another."""

    __slots__ = ("parts",)

    def __init__(self) -> None:
        super().__init__()
        self.parts = b""

    def fork(self) -> AccountHistory:
        copy = super().fork()
        assert isinstance(copy, RollingHistory)
        copy.parts = self.parts
        return copy


class CarryingHistory(AccountHistory):
    """Besides, what the least amount follows from.

    `index` is the interval's number in the budget's calendar, `first` that of the first use; -1 before it. `total`
    is the use of earlier intervals; `hull` has the points of the least amount: x and y, one after another.
    """

    __slots__ = ("carried", "first", "hull", "index", "least", "total")

    def __init__(self) -> None:
        super().__init__()
        self.index = self.first = -1
        self.carried = 0
        self.total = self.least = 0
        self.hull = [0, 0]

    def fork(self) -> AccountHistory:
        copy = super().fork()
        assert isinstance(copy, CarryingHistory)
        copy.carried, copy.index, copy.first = self.carried, self.index, self.first
        copy.total, copy.least, copy.hull = self.total, self.least, [*self.hull]
        return copy


H = TypeVar("H", bound=AccountHistory)


class Windows(ABC, Generic[H]):
    """The windows of one budget: the parent of those by the calendar, rolling, and from first use.

    `open` returns the history of a new account.
    """

    __slots__ = ()
    open: Callable[[], H]

    @abstractmethod
    def roll(self, history: H, at_ms: int, owner: object) -> None:
        """Move a history whose window has changed to the time `at_ms`."""

    def take(self, history: H, at_ms: int, amount: int) -> None:
        """Add a use above 0 to a history that was brought to its time."""
        history.add(amount)

    def least_amount(self, history: H) -> int:
        """Return the smallest limit in which all use of a history had fitted, without overrides."""
        return history.peak


class CalendarWindows(Windows[AccountHistory]):
    """Intervals of the calendar, without carry."""

    __slots__ = ("_end_ms", "_interval")
    open = AccountHistory

    def __init__(self, budget: Budget) -> None:
        self._interval = budget.interval, budget.time_zone, budget.anchor_day
        self._end_ms = 0

    def roll(self, history: AccountHistory, at_ms: int, owner: object) -> None:
        if at_ms >= self._end_ms:
            self._end_ms = window_bounds(*self._interval, at_ms)[1] or FOREVER
        history.used, history.until_ms = 0, self._end_ms


class RollingWindows(Windows[RollingHistory]):
    """The last `length`: the running part of it, and thirty whole ones; parts are aligned to the epoch.

    Calls of all accounts come in the order of time, so `roll` knows which part runs.
    """

    __slots__ = ("_end_ms", "_oldest", "_part", "_part_ms")
    open = RollingHistory

    def __init__(self, budget: Budget) -> None:
        self._part_ms = RollingWindow(budget.length_ms).part_ms
        self._end_ms, self._part, self._oldest = 0, b"", b""

    def roll(self, history: RollingHistory, at_ms: int, owner: object) -> None:
        """Drop the parts of a history that have left the window at `at_ms`."""
        if at_ms >= self._end_ms:
            part = at_ms // self._part_ms
            self._end_ms = (part + 1) * self._part_ms
            self._part, self._oldest = (
                number.to_bytes(_NUMBER) for number in (part, max(part - WHOLE_PARTS, 0))
            )
        parts, gone = history.parts, 0
        while parts[gone : gone + _NUMBER] < self._oldest and gone < len(parts):
            history.used -= int.from_bytes(parts[gone + _NUMBER : gone + _PART])
            gone += _PART
        history.parts, history.until_ms = parts[gone:], self._end_ms

    def take(self, history: RollingHistory, at_ms: int, amount: int) -> None:
        parts, use = history.parts, amount
        if parts[-_PART:-_USE] == self._part:
            parts, use = parts[:-_PART], amount + int.from_bytes(parts[-_USE:])
        history.parts = b"".join((parts, self._part, use.to_bytes(_USE)))
        history.add(amount)


class FirstUseWindows(Windows[AccountHistory]):
    """Windows that begin with the first call that takes from them. Before it, `until_ms` is 0."""

    __slots__ = ("_length_ms",)
    open = AccountHistory

    def __init__(self, budget: Budget) -> None:
        self._length_ms = budget.length_ms

    def roll(self, history: AccountHistory, at_ms: int, owner: object) -> None:
        history.used = history.until_ms = 0

    def take(self, history: AccountHistory, at_ms: int, amount: int) -> None:
        history.until_ms = history.until_ms or at_ms + self._length_ms
        history.add(amount)


class CarryingWindows(Windows[CarryingHistory]):
    """Intervals of the calendar that hand on what they leave.

    `limit_at` returns the limit of an owner; None instead of it: the budget's amount, always.
    """

    __slots__ = ("_amount", "_carry", "_ends", "_interval", "_limit_at")
    open = CarryingHistory

    def __init__(self, budget: Budget, carry: Carry, limit_at: LimitAt | None) -> None:
        self._interval = budget.interval, budget.time_zone, budget.anchor_day
        self._carry, self._amount, self._limit_at = carry, budget.amount, limit_at
        # The ends of the intervals since the first call, by number.
        self._ends = list[int]()

    def roll(self, history: CarryingHistory, at_ms: int, owner: object) -> None:
        """Begin a new window, with what the last one carries."""
        ends = self._ends
        while not ends or at_ms >= ends[-1]:
            ends.append(window_bounds(*self._interval, ends[-1] if ends else at_ms)[1])
        now = len(ends) - 1
        if history.first >= 0:
            history.least = self.least_amount(history)
            history.total += history.used
            _add_point(history.hull, now - history.first, history.total + self._carry.max)
            history.carried, history.index = self._carried(history, now, owner), now
        history.used, history.until_ms = 0, ends[-1]

    def take(self, history: CarryingHistory, at_ms: int, amount: int) -> None:
        if history.first < 0:
            history.first = history.index = len(self._ends) - 1
        history.add(amount)

    def least_amount(self, history: CarryingHistory) -> int:
        """Return the least amount that, with what it carries, had been enough in each window so far."""
        if history.first < 0 or not history.used:
            return history.least
        number, total = history.index - history.first + 1, history.total + history.used
        hull, least = history.hull, history.least
        while True:
            while len(hull) > 2 and hull[3] - hull[1] <= least * (hull[2] - hull[0]):
                del hull[:2]
            needed = -((hull[1] - total) // (number - hull[0]))
            if needed <= least:
                return least
            least = needed

    def _carried(self, history: CarryingHistory, now: int, owner: object) -> int:
        """Return what interval `now` begins with; those between the last one and it have no use."""
        carried, used, carry, limit_at = history.carried, history.used, self._carry, self._limit_at
        if limit_at is None:
            first = carry.leave(carried - used, self._amount)
            return carry.leave(first, self._amount, now - history.index - 1)
        for number in range(history.index, now):
            carried, used = carry.leave(carried - used, limit_at(owner, self._ends[number] - 1)), 0
            if carried == carry.max:
                break
        return carried


def _add_point(hull: list[int], x: int, y: int) -> None:
    """Add a point to the right of a lower convex hull, and remove those that are no longer part of it."""
    while len(hull) > 2:
        x1, y1, x2, y2 = hull[-4:]
        if (y2 - y1) * (x - x2) < (y - y2) * (x2 - x1):
            break
        del hull[-2:]
    hull += (x, y)


def windows_of(budget: Budget, limit_at: LimitAt | None) -> Windows[Any]:
    """Return the windows of a budget; `limit_at` is None where nobody has another limit than its amount."""
    if budget.window == ROLLING:
        return RollingWindows(budget)
    if budget.window == FIRST_USE:
        return FirstUseWindows(budget)
    if budget.carry is None or INTERVALS[budget.interval].is_endless:
        return CalendarWindows(budget)
    return CarryingWindows(budget, budget.carry, limit_at)
