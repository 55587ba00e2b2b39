"""When to notify about a budget: at thresholds of its amount, and when its pace will use it up. Pure.

The pace is that of the window so far. In a window that is old enough it is that of the last hours or days: at
least `look_back_ms` of its interval and at most twice that, so that a week includes a weekend. One or two bursts
are no pace.

A crossing is reported once a window. After a raise of the amount, thresholds of the new amount above the largest
reported value are reported again. A rolling window has no end: a threshold is reported again once use has fallen
below nine tenths of it in between, and its end at most once in its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Final, NamedTuple

from gateway.core.accounts.intervals import INTERVALS
from gateway.core.accounts.windows import RollingWindow
from gateway.core.billing.money import NANO
from gateway.core.times import DAY_MS

# A pace counts once a tenth of the amount is used, a tenth of the window has passed, and use came in so many
# different twentieths of it.
USED_LEAST: Final = 10
PASSED_LEAST: Final = 10
PARTS: Final = 20
PARTS_LEAST: Final = 3
# A window that never resets counts as one of a day. Its end is reported this far ahead.
TOTAL_LENGTH_MS: Final = DAY_MS
TOTAL_AHEAD_MS: Final = 7 * DAY_MS
# The pace of a window with a length is that of its last sixth.
LOOK_BACK: Final = 6
# A threshold of a rolling window is reported again once use was below this share of it.
FELL_BELOW: Final = Decimal("0.9")


class RunningWindow(NamedTuple):
    """One account of a budget in one window, counted since `began_ms`. `next_ms` is 0 if it never ends.

    `interval` is empty for a window that begins at first use.
    """

    interval: str
    began_ms: int
    next_ms: int
    limit: int
    used: int

    @property
    def length_ms(self) -> int:
        return self.next_ms - self.began_ms if self.next_ms else TOTAL_LENGTH_MS

    @property
    def look_back_ms(self) -> int:
        return INTERVALS[self.interval].look_back_ms if self.interval else self.length_ms // LOOK_BACK

    def part_of(self, at_ms: int) -> int:
        """Return the number of the twentieth of the window at a time."""
        return (at_ms - self.began_ms) * PARTS // max(1, self.length_ms)


class UsageSample(NamedTuple):
    used: int
    at_ms: int


class Samples(NamedTuple):
    """Samples of a window's use: the pace is counted from `before`; `seen` is the latest stored sample.

    `came_ms` are times at which use was seen to come, one in each of up to three twentieths of the window. Until
    there are three, `looked_used` is the use at the last look; None before the first.
    """

    before: UsageSample | None = None
    seen: UsageSample | None = None
    came_ms: tuple[int, ...] = ()
    looked_used: int | None = None


class AlertState(NamedTuple):
    """Reported facts of a window: highest threshold, largest amount reached, and whether it is exceeded."""

    part: Decimal = Decimal()
    level: Decimal = Decimal()
    exceeded: bool = False

    def and_of(self, parts: Iterable[Decimal], exceeded: bool, limit: int) -> AlertState:
        """Return the state after a report that `parts` of `limit` were reached, or all of it (`exceeded`)."""
        level = max([self.level, *(part * limit for part in parts), *([Decimal(limit)] if exceeded else ())])
        return AlertState(max([self.part, *parts]), level, self.exceeded or exceeded)

    def after_fall(self, thresholds: Iterable[Decimal], used: int, limit: int) -> AlertState:
        """Return the state of a rolling window after use fell to `used`: without thresholds well above that."""
        parts = [part for part in {self.part, *thresholds} if part <= self.part]
        part = max([part for part in parts if used >= FELL_BELOW * part * limit], default=Decimal())
        exceeded = self.exceeded and used >= FELL_BELOW * limit
        if (part, exceeded) == (self.part, self.exceeded):
            return self
        return AlertState(part, max(part, Decimal(exceeded)) * limit, exceeded)


def crossed(thresholds: Iterable[Decimal], alert_state: AlertState, used: int, limit: int) -> list[Decimal]:
    """Return the thresholds (parts of `limit`) that `used` reaches, lowest first, but for those in `alert_state`."""
    return sorted(
        part
        for part in set(thresholds)
        if used >= part * limit and (part > alert_state.part or part * limit > alert_state.level)
    )


def exceeds(alert_state: AlertState, used: int, limit: int) -> bool:
    """Return whether `used` reaches `limit` and `alert_state` (what was reported before) does not say so yet."""
    return used >= limit and (not alert_state.exceeded or limit > alert_state.level)


def remembered(samples: Samples, window: RunningWindow, now_ms: int) -> Samples:
    """Return the samples of a window's use to store: the latest is replaced after each `look_back_ms`.

    If less is used than in the latest sample, the window was reset, and earlier samples are dropped.
    """
    now = UsageSample(window.used, now_ms)
    if samples.seen is None or window.used < max(samples.seen.used, samples.looked_used or 0):
        return _add_latest_parts(Samples(None, now), window, now_ms)
    if now_ms - samples.seen.at_ms >= window.look_back_ms:
        samples = samples._replace(before=samples.seen, seen=now)
    return _add_latest_parts(samples, window, now_ms)


def _add_latest_parts(samples: Samples, window: RunningWindow, now_ms: int) -> Samples:
    """Return samples with the twentieth of the window in which use came since the last look."""
    came = samples.came_ms
    if len(came) >= PARTS_LEAST or window.used <= (samples.looked_used or 0):
        return samples
    if not came or window.part_of(came[-1]) != window.part_of(now_ms):
        came = (*came, now_ms)
    return samples._replace(came_ms=came, looked_used=window.used)


def exhausted_ms(window: RunningWindow, samples: Samples, now_ms: int) -> int | None:
    """Return the Unix ms at which a window will be used up, if use goes on as since an earlier sample.

    None if that is after the window's reset, if it is used up already, or if too little use or time is
    known.
    """
    if window.used >= window.limit or window.used * USED_LEAST < window.limit:
        return None
    if (now_ms - window.began_ms) * PASSED_LEAST < window.length_ms or len(samples.came_ms) < PARTS_LEAST:
        return None
    since = samples.before or UsageSample(0, window.began_ms)
    passed, spent = now_ms - since.at_ms, window.used - since.used
    if spent <= 0 or passed <= 0:
        return None
    end_ms = now_ms + (window.limit - window.used) * passed // spent
    return end_ms if end_ms < (window.next_ms or now_ms + TOTAL_AHEAD_MS) else None


class RollingUse(NamedTuple):
    """One account of a budget in a rolling window, by parts: start (Unix ms) and use, the oldest first.

    A part leaves the window `length_ms` after its end.
    """

    length_ms: int
    limit: int
    parts: tuple[tuple[int, int], ...]

    @property
    def part_ms(self) -> int:
        return RollingWindow(self.length_ms).part_ms


def rolling_exhausted_ms(window: RollingUse, now_ms: int) -> int | None:
    """Return the Unix ms at which a rolling window will be used up at its pace, parts that leave taken off.

    None if it is used up already, if it will not be, or if too little use or time is known.
    """
    used, began_ms = (
        sum(use for _, use in window.parts),
        min([start for start, _ in window.parts], default=now_ms),
    )
    came = {start * PARTS // window.length_ms for start, use in window.parts if use}
    if used >= window.limit or used * USED_LEAST < window.limit:
        return None
    if (now_ms - began_ms) * PASSED_LEAST < window.length_ms or len(came) < PARTS_LEAST:
        return None
    look_ms = now_ms - window.length_ms // LOOK_BACK
    since_ms = max(began_ms, look_ms - look_ms % window.part_ms)
    passed, spent = now_ms - since_ms, sum(use for start, use in window.parts if start >= since_ms)
    if spent <= 0 or passed <= 0:
        return None
    at_ms, left = Fraction(now_ms), Fraction(window.limit - used)
    for start, use in sorted(window.parts):
        leaves_ms = start + window.part_ms + window.length_ms
        if (end_ms := at_ms + left * passed / spent) <= leaves_ms:
            return int(end_ms)
        left += use - (leaves_ms - at_ms) * spent / passed
        at_ms = Fraction(leaves_ms)
    return None


# Sudden use: an hour that costs many times what is usual at this time of day. Pure.
#
# Usual is the most that this hour, the one before or the one after it cost on any of the last seven days:
# so weekly use is usual, and use that comes an hour late too. Sudden is three times that. Small numbers do
# not count: sudden use costs at least one unit of the currency, and a hundredth of the organization's average
# spend per day. Callers known for less than three days are not reported. The current hour counts so far.

DAYS: Final = 7
TIMES: Final = 3
COST_LEAST: Final = NANO
OF_A_DAY: Final = 100
KNOWN_LEAST: Final = timedelta(days=3)
_HOUR: Final = timedelta(hours=1)


class HourlySpend(NamedTuple):
    """The cost of the current hour so far, in nano-units, and the history to compare with.

    `usual` is the most that hours at this time of day cost, `average_day` the organization's average spend
    per day.
    """

    cost: int
    usual: int
    average_day: int
    known_since: datetime


def same_hours(hour: datetime) -> list[datetime]:
    """Return the hours to compare `hour` with: three on each of the last `DAYS` days.

    These are the same hour of the day, the one before and the one after.
    """
    days = (hour - timedelta(days=day) for day in range(1, DAYS + 1))
    return [same + shift for same in days for shift in (-_HOUR, timedelta(), _HOUR)]


def is_sudden(hour: HourlySpend, now: datetime) -> bool:
    """Return whether the cost of an hour is so far above the usual cost that it is to be reported."""
    return (
        now - hour.known_since >= KNOWN_LEAST
        and hour.cost >= COST_LEAST
        and hour.cost * OF_A_DAY >= hour.average_day
        and hour.cost >= TIMES * hour.usual
    )
