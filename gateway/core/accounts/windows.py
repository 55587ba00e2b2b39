"""The windows of budgets: by the calendar, rolling, or from first use; and what one hands on to the next. Pure.

A `WindowForm` knows when windows of its kind begin and end, and which stored uses count at a time. Uses are
by the time at which they begin to count, as scripts and rows have it: the start of their interval, of their
part of a rolling window, or of the window that a first use began.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Protocol

from gateway.core.accounts.intervals import DAY, HOUR, INTERVALS, TOTAL, WEEK, window_bounds
from gateway.core.times import DAY_MS, HOUR_MS, MINUTE_MS, TimeZone, moment_of

CALENDAR, ROLLING, FIRST_USE = WINDOWS = ("calendar", "rolling", "first_use")
# The shortest and the longest length of a window that rolls or begins at first use.
LENGTH_MIN_MS: Final = 5 * MINUTE_MS
LENGTH_MAX_MS: Final = 366 * DAY_MS
_UNITS: Final = {"d": DAY_MS, "h": HOUR_MS, "m": MINUTE_MS}
_LENGTH: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])", re.ASCII)
# A rolling window is of the running part, which is not over, and of so many whole ones.
WHOLE_PARTS: Final = 30
# Most moments that are named at which a rolling window has something free again.
FREES_MAX: Final = 5
# How much earlier or later another edition of the time zones may begin the same interval.
EDITIONS_APART_MS: Final = 3 * HOUR_MS
# The kinds of a window in the flags by which scripts know it (`lua/lib/windows.lua`).
FLAG_ROLLING, FLAG_FIRST_USE = 64, 128

# Uses by when they begin to count.
WindowUses = Mapping[int, int]


class Times(NamedTuple):
    """A window as scripts are told of it, in Unix ms: its start, that of the next one, and that of the one after.

    In an endless window `after` is how long (ms) an unused account is kept: 0 is for ever. Of a window that rolls
    or waits for its first use scripts know the times themselves: `after` is its length.
    """

    start: int
    next: int
    after: int


class WindowForm(Protocol):
    """The windows of a budget. Times are Unix ms; 0 is never."""

    @property
    def flag(self) -> int:
        """Its flag in definitions, 0 for none."""

    @property
    def length(self) -> str:
        """Its length as `read_length` reads it, empty for a window by the calendar."""

    def times(self, at_ms: int) -> Times:
        """Return the times of the window at a time, as definitions have them."""

    def valid_until(self, at_ms: int) -> int:
        """Return when the result of `times` next changes."""

    def since(self, at_ms: int) -> int:
        """Return the earliest start of uses that count at a time."""

    def start_of(self, at_ms: int, uses: WindowUses) -> int:
        """Return the start by which a use of a time counts, with the uses that are known."""

    def ends(self, at_ms: int, uses: WindowUses) -> int:
        """Return when the window ends that runs at a time."""

    def frees(self, at_ms: int, uses: WindowUses) -> tuple[tuple[int, int], ...]:
        """Return the next moments at which a part of the use ends to count, and these parts."""


def used_at(form: WindowForm, at_ms: int, uses: WindowUses) -> int:
    """Return what is used in the window that runs at a time, of uses by their starts."""
    since = form.since(at_ms) if form.length else form.start_of(at_ms, uses)
    return sum(used for start, used in uses.items() if start >= since)


@dataclass(frozen=True, slots=True)
class CalendarWindow:
    """A window that ends with an interval of the calendar, or never.

    A window that another edition of the time zones began runs to its own end, which its start tells.
    """

    interval: str
    time_zone: str = "UTC"
    anchor_day: int = 1
    kept_ms: int = 0
    flag: int = 0
    length: str = ""

    def times(self, at_ms: int) -> Times:
        start, following, after = window_bounds(self.interval, self.time_zone, self.anchor_day, at_ms)
        return Times(start, following, after if following else self.kept_ms)

    def valid_until(self, at_ms: int) -> int:
        return self.times(at_ms).next

    @property
    def apart_ms(self) -> int:
        """How far apart editions of the time zones may begin the same interval."""
        return 0 if self.interval in {HOUR, TOTAL} else EDITIONS_APART_MS

    def since(self, at_ms: int) -> int:
        start, apart_ms = self.times(at_ms).start, self.apart_ms
        return start - apart_ms if at_ms >= start + apart_ms else self.times(start - 1).start

    def start_of(self, at_ms: int, uses: WindowUses) -> int:
        start, since = self.times(at_ms).start, self.since(at_ms)
        running = (begins for begins in uses if since <= begins <= at_ms and self._end_of(begins) > at_ms)
        return max(running, default=start)

    def ends(self, at_ms: int, uses: WindowUses) -> int:
        return self._end_of(self.start_of(at_ms, uses))

    def _end_of(self, start_ms: int) -> int:
        """Return the end of the window that begins then by some edition of the time zones; 0 is never, or no edition's."""
        start, following, _ = self.times(start_ms + self.apart_ms)
        return start_ms - start + following if start_ms - start <= self.apart_ms else 0

    def frees(self, at_ms: int, uses: WindowUses) -> tuple[tuple[int, int], ...]:
        return ()

    def number(self, start_ms: int) -> int:
        """Return the number of the interval that begins then: the next one has the next number."""
        if self.interval == HOUR:
            return start_ms // HOUR_MS
        facts, zone = INTERVALS[self.interval], TimeZone(self.time_zone)
        day = moment_of(start_ms + EDITIONS_APART_MS).astimezone(zone).date()
        if self.interval in {DAY, WEEK}:
            return day.toordinal() // facts.days
        return (day.year * 12 + day.month - 1) // facts.months

    def place(self, at_ms: int) -> float:
        """Return a time as the number of its interval, with the fraction of that interval before it."""
        times = self.times(at_ms)
        return self.number(times.start) + (at_ms - times.start) / (times.next - times.start)

    def carry_to(self, at_ms: int, carry: Carry, last: LastInterval, present: EndLimit) -> int:
        """Return what the interval at a time carries, by the last one that was used.

        If amounts changed meanwhile, the `present` limit holds from the interval of the change on. The rule is that
        of `lua/lib/carries.lua`.
        """
        number, known = self.number(last.start_ms), last.at_end
        intervals = self.number(self.start_of(at_ms, {last.start_ms: 0})) - number
        if intervals > 0:
            return _carry_over(carry, last, present, number, intervals)
        smaller = least(known.amount, present.amount)
        if smaller is None or not known.changed < present.changed < number:
            return carry.within(last.carried)
        # The interval began with what a limit left that was lower by then, as did each interval since.
        if known.amount is None:
            return carry.within(min(last.carried, 0))
        ended = number - int(present.changed)
        return carry.within(last.carried + ended * (smaller - known.amount))


def _carry_over(carry: Carry, last: LastInterval, present: EndLimit, number: int, intervals: int) -> int:
    """Return what is carried from the last used interval, which has a `number`, over so many `intervals`.

    The limit at its end is as its last call knew it, unless amounts changed later in the same interval: then it is
    the `present` one. An interval without calls leaves the present limit, or the smaller of both if it ended before
    amounts changed.
    """
    known, unused = last.at_end, intervals - 1
    before_change, at_end = unused, known
    if present.changed != known.changed:
        before_change = min(unused, max(0, int(present.changed) - number - 1))
        at_end = present if present.changed < number + 1 else known
    left = carry.leave(last.carried - last.used, at_end.amount)
    left = carry.leave(left, least(known.amount, present.amount), before_change)
    return carry.leave(left, present.amount, unused - before_change)


@dataclass(frozen=True, slots=True)
class RollingWindow:
    """The last `length_ms`. A use counts in its part until all of the part is older than that."""

    length_ms: int
    flag: int = FLAG_ROLLING

    @property
    def length(self) -> str:
        return render_length(self.length_ms)

    @property
    def part_ms(self) -> int:
        return self.length_ms // WHOLE_PARTS

    def times(self, at_ms: int) -> Times:
        return Times(0, 0, self.length_ms)

    def valid_until(self, at_ms: int) -> int:
        return 0

    def since(self, at_ms: int) -> int:
        return max(0, self.start_of(at_ms) - self.length_ms)

    def start_of(self, at_ms: int, uses: WindowUses | None = None) -> int:
        return at_ms - at_ms % self.part_ms

    def ends(self, at_ms: int, uses: WindowUses) -> int:
        return 0

    def frees(self, at_ms: int, uses: WindowUses) -> tuple[tuple[int, int], ...]:
        since = self.since(at_ms)
        counting = sorted(item for item in uses.items() if item[0] >= since and item[1] > 0)
        return tuple([(start + self.length_ms + self.part_ms, used) for start, used in counting[:FREES_MAX]])


@dataclass(frozen=True, slots=True)
class FirstUseWindow:
    """A window that begins with the first call that takes from it, and lasts `length_ms`."""

    length_ms: int
    flag: int = FLAG_FIRST_USE

    @property
    def length(self) -> str:
        return render_length(self.length_ms)

    def times(self, at_ms: int) -> Times:
        return Times(0, 0, self.length_ms)

    def valid_until(self, at_ms: int) -> int:
        return 0

    def since(self, at_ms: int) -> int:
        return max(0, at_ms - self.length_ms + 1)

    def start_of(self, at_ms: int, uses: WindowUses) -> int:
        since = self.since(at_ms)
        return max((start for start in uses if since <= start <= at_ms), default=at_ms)

    def ends(self, at_ms: int, uses: WindowUses) -> int:
        since = self.since(at_ms)
        return max((start + self.length_ms for start in uses if start >= since), default=0)

    def frees(self, at_ms: int, uses: WindowUses) -> tuple[tuple[int, int], ...]:
        return ()


def form_of_length(window: str, length_ms: int) -> RollingWindow | FirstUseWindow:
    """Return the windows of this length that roll, or begin at first use."""
    return RollingWindow(length_ms) if window == ROLLING else FirstUseWindow(length_ms)


@dataclass(frozen=True, slots=True)
class Carry:
    """What the next interval begins with: what was left, up to `max`; with `debt` less what was overspent.

    `max` is in the budget's unit as counted.
    """

    max: int
    debt: bool = False

    def leave(self, left: int, limit: int | None, intervals: int = 1) -> int:
        """Return what is carried after so many intervals that add their `limit`, None for no limit."""
        if not intervals:
            return left
        return self.max if limit is None else self.within(left + limit * intervals)

    def within(self, left: int) -> int:
        """Return the part of an amount that is carried."""
        return min(self.max, left if self.debt else max(0, left))


class EndLimit(NamedTuple):
    """The limit at the end of an interval, None for no limit, and the place of the last change of amounts by then.

    A place is as `CalendarWindow.place` has it.
    """

    amount: int | None
    changed: float


class LastInterval(NamedTuple):
    """When an interval began (Unix ms), what it carried and used, and the limit at its end as it was known."""

    start_ms: int
    carried: int
    used: int
    at_end: EndLimit


def read_end_limit(amount: object, changed: float | None) -> EndLimit | None:
    """Return the limit that a stored row has; None for one that is not stored, without a place `changed`."""
    if changed is None:
        return None
    return EndLimit(None if amount is None else int(str(amount)), changed)


def least(limit: int | None, other: int | None) -> int | None:
    """Return the smaller of two limits; None is no limit."""
    return other if limit is None or (other is not None and other < limit) else limit


def read_length(text: str) -> int:
    """Return a length such as `5h`, `90m` or `7d` in milliseconds; 0 if it is none, or out of bounds."""
    match = _LENGTH.fullmatch(text)
    length_ms = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    return length_ms if LENGTH_MIN_MS <= length_ms <= LENGTH_MAX_MS else 0


def render_length(length_ms: int) -> str:
    """Return a length as `read_length` reads it, in the largest unit that fits."""
    unit = next(unit for unit, unit_ms in _UNITS.items() if length_ms % unit_ms == 0)
    return f"{length_ms // _UNITS[unit]}{unit}"
