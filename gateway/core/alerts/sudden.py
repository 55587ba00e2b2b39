"""Sudden use: an hour that costs many times what is usual at this time of day. Pure.

Usual is the most that this hour, the one before or the one after it cost on any of the last seven days: what
comes once a week is usual, and what comes an hour late as well. Sudden is three times that. Small numbers say
nothing: it is at least one unit of the currency, and a hundredth of what the organization spends on an
average day. Nobody is told of who is known for less than three days. The running hour counts as far as it is.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from gateway.core.billing.pricing import NANO

DAYS: Final = 7
TIMES: Final = 3
COST_LEAST: Final = NANO
OF_A_DAY: Final = 100
KNOWN_LEAST: Final = timedelta(days=3)
_HOUR: Final = timedelta(hours=1)


class Hour(NamedTuple):
    """What somebody has cost in a running hour, in nano-units, and what is known of before.

    `usual` is the most that hours at this time of day cost, `average_day` what the organization spends on a
    day.
    """

    cost: int
    usual: int
    average_day: int
    known_since: datetime


def same_hours(hour: datetime) -> list[datetime]:
    """The hours of the last days that are compared with one."""
    days = (hour - timedelta(days=day) for day in range(1, DAYS + 1))
    return [same + shift for same in days for shift in (-_HOUR, timedelta(), _HOUR)]


def is_sudden(hour: Hour, now: datetime) -> bool:
    """Whether it is to be told."""
    return (
        now - hour.known_since >= KNOWN_LEAST
        and hour.cost >= COST_LEAST
        and hour.cost * OF_A_DAY >= hour.average_day
        and hour.cost >= TIMES * hour.usual
    )
