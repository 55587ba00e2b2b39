"""The calendar of the scripts: boundaries at the ends of days, weeks, months and leap years."""

from __future__ import annotations

import random
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import pytest
import redis

from gateway.core.accounts.intervals import PERIODS, window_bounds
from gateway.core.times import CLOCK_OF_UTC, ZoneOffset, clock_of
from tests.lua.boundaries import boundary_after
from tests.search import examples

LIB = Path("lua/lib")
CALL = """
bind()
local numbers = {}
for i = 1, #ARGV do numbers[i] = tonumber(ARGV[i]) end
local interval, anchor, now, steps, offset, turns_at, offset_after = unpack(numbers)
local tenant = {
  reset_interval = interval, anchor = 1, anchor_day = anchor,
  offset = offset, turns_at = turns_at, offset_after = offset_after,
}
local first = next_reset_of(tenant, now)
local last = first
for _ = 1, steps do last = next_reset_of(tenant, last) end
return {string.format('%.0f', first), string.format('%.0f', last), cycles_between(tenant, first, last)}
"""
NUMBERS = {"none": 0, "daily": 1, "weekly": 2, "monthly": 3}


class Ask(Protocol):
    """The scripts' calendar: the first boundary after a moment, the last of some, and the cycles between."""

    def __call__(
        self, interval: str, now: int, anchor: int, steps: int, clock: ZoneOffset = ...
    ) -> list[int]: ...


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def ask(valkey: str) -> Ask:
    client = redis.Redis.from_url(valkey)
    text = "local TODAY = 0\n" + "".join((LIB / name).read_text() for name in ("state.lua", "calendar.lua"))
    script = client.register_script((text + CALL).encode())

    def asked(
        interval: str, now: int, anchor: int, steps: int, clock: ZoneOffset = CLOCK_OF_UTC
    ) -> list[int]:
        return [int(number) for number in script(args=[NUMBERS[interval], anchor, now, steps, *clock])]

    return asked


@pytest.mark.parametrize(
    ("interval", "now", "anchor", "then"),
    [
        ("daily", "2024-02-28T23:59:59.999", 1, "2024-02-29"),
        ("daily", "2024-02-29", 1, "2024-03-01"),
        ("weekly", "2024-02-29T12:00", 1, "2024-03-04"),
        ("weekly", "2024-03-04", 1, "2024-03-11"),
        ("weekly", "2024-03-03T23:59:59.999", 1, "2024-03-04"),
        ("weekly", "2024-02-29T12:00", -1, "2024-03-04"),
        ("weekly", "2024-03-04", 7, "2024-03-10"),
        ("weekly", "2024-03-10", 7, "2024-03-17"),
        ("monthly", "2024-02-29T12:00", 1, "2024-03-01"),
        ("monthly", "2024-12-31T12:00", 1, "2025-01-01"),
        ("monthly", "2024-01-31", 31, "2024-02-29"),
        ("monthly", "2023-01-31", 31, "2023-02-28"),
        ("monthly", "2023-02-28", 31, "2023-03-31"),
        ("monthly", "2024-03-31", 30, "2024-04-30"),
        ("monthly", "2024-12-30", 30, "2025-01-30"),
        ("monthly", "2024-01-14T23:59", 15, "2024-01-15"),
    ],
)
def test_the_next_boundary(ask: Ask, interval: str, now: str, anchor: int, then: str) -> None:
    assert ask(interval, ms(now), anchor, 0) == [ms(then), ms(then), 0]
    assert boundary_after(interval, ms(now), max(anchor, 1)) == ms(then)


def test_none_never_resets(ask: Ask) -> None:
    assert ask("none", ms("2024-02-29"), 1, 0)[0] == 0


def test_boundaries_follow_one_another(ask: Ask) -> None:
    some, since, until = random.Random(3), ms("1971-01-01"), ms("2120-01-01")
    for _ in range(examples(2_000)):
        interval = some.choice(["daily", "weekly", "monthly"])
        anchor = some.randint(1, 7 if interval == "weekly" else 31)
        now, steps = some.randint(since, until), some.randint(0, 14)
        if some.random() < 0.3:
            now -= now % 86_400_000
        first = last = boundary_after(interval, now, anchor)
        for _ in range(steps):
            last = boundary_after(interval, last, anchor)
        assert ask(interval, now, anchor, steps) == [first, last, steps], (interval, anchor, now)


# --- in a zone ---------------------------------------------------------------------------

DAY_MS = 86_400_000
# Set on and back at midnight and over it, by half an hour, by a whole day; far from UTC; not changed at all.
ZONES = [
    "Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Asia/Kolkata",
    "Pacific/Chatham", "Pacific/Kiritimati", "Pacific/Niue", "Pacific/Apia", "Etc/GMT+12", "Etc/GMT-14",
    "America/St_Johns", "Asia/Beirut", "Africa/Cairo", "America/Asuncion", "America/Havana",
    "America/Santiago", "Africa/Casablanca", "America/Nuuk", "America/Scoresbysund", "Asia/Tehran",
    "Atlantic/Azores", "UTC",
]  # fmt: skip


def following(interval: str, zone: str, anchor: int, now: int) -> int:
    return window_bounds(PERIODS[interval].name, zone, anchor, now)[1]


def exact_until(zone: str, told: int, clock: ZoneOffset) -> int:
    """Until when a clock is right: its second change, or as far as one is looked for."""
    if not clock.turns_at:
        return told + 390 * DAY_MS
    after = clock_of(zone, clock.turns_at + 2 * DAY_MS)
    return after.turns_at or clock.turns_at + 390 * DAY_MS


@pytest.mark.parametrize("zone", ZONES)
def test_boundaries_in_a_zone_are_those_of_budgets(ask: Ask, zone: str) -> None:
    some = random.Random(zone)
    for _ in range(examples(250)):
        interval = some.choice(["daily", "weekly", "monthly"])
        anchor = some.randint(1, 7) if interval == "weekly" else some.choice([1, 2, 15, 29, 30, 31])
        told = some.randint(ms("2008-01-01"), ms("2036-01-01"))
        clock = clock_of(zone, told)
        right_until = exact_until(zone, told, clock)
        moments = [told, *(told + some.randint(0, 300 * DAY_MS) for _ in range(2))]
        if clock.turns_at:  # near the change: the days about it, and the moments
            moments += [
                clock.turns_at + some.randint(-2 * DAY_MS, 2 * DAY_MS),
                clock.turns_at - 1,
                clock.turns_at,
            ]
        for now in moments:
            chain = [following(interval, zone, anchor, now)]
            for _ in range(some.randint(0, 9)):
                chain.append(following(interval, zone, anchor, chain[-1]))
            chain = [one for one in chain if one < right_until]
            if told <= now and chain:
                expected = [chain[0], chain[-1], len(chain) - 1]
                assert ask(interval, now, anchor, len(chain) - 1, clock) == expected, (
                    interval,
                    anchor,
                    now,
                    clock,
                )
