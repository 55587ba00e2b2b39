"""The calendar of the scripts: boundaries at the ends of days, weeks, months and leap years."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import redis

from tests.lua.boundaries import boundary_after

LIB = Path("lua/lib")
CALL = """
bind()
local interval, anchor = tonumber(ARGV[1]), tonumber(ARGV[2])
local now, steps = tonumber(ARGV[3]), tonumber(ARGV[4])
local first = boundary(interval, anchor, now)
local last = first
for _ = 1, steps do last = boundary(interval, anchor, last) end
return {string.format('%.0f', first), string.format('%.0f', last), cycles_between(interval, first, last)}
"""
NUMBERS = {"none": 0, "daily": 1, "weekly": 2, "monthly": 3}

# An interval, a moment, an anchor day and steps: the first boundary, the last, and the cycles between.
Ask = Callable[[str, int, int, int], list[int]]


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.fixture
def ask(valkey: str) -> Ask:
    client = redis.Redis.from_url(valkey)
    text = "".join((LIB / name).read_text() for name in ("state.lua", "cycle.lua"))
    script = client.register_script((text + CALL).encode())

    def asked(interval: str, now: int, anchor: int, steps: int) -> list[int]:
        return [int(number) for number in script(args=[NUMBERS[interval], anchor, now, steps])]

    return asked


@pytest.mark.parametrize(
    ("interval", "now", "anchor", "then"),
    [
        ("daily", "2024-02-28T23:59:59.999", 1, "2024-02-29"),
        ("daily", "2024-02-29", 1, "2024-03-01"),
        ("weekly", "2024-02-29T12:00", 1, "2024-03-04"),
        ("weekly", "2024-03-04", 1, "2024-03-11"),
        ("weekly", "2024-03-03T23:59:59.999", 1, "2024-03-04"),
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
    assert boundary_after(interval, ms(now), anchor) == ms(then)


def test_none_never_resets(ask: Ask) -> None:
    assert ask("none", ms("2024-02-29"), 1, 0)[0] == 0


def test_boundaries_follow_one_another(ask: Ask) -> None:
    some, since, until = random.Random(3), ms("1971-01-01"), ms("2120-01-01")
    for _ in range(2000):
        interval = some.choice(["daily", "weekly", "monthly"])
        anchor, now, steps = some.randint(1, 31), some.randint(since, until), some.randint(0, 14)
        if some.random() < 0.3:
            now -= now % 86_400_000
        first = last = boundary_after(interval, now, anchor)
        for _ in range(steps):
            last = boundary_after(interval, last, anchor)
        assert ask(interval, now, anchor, steps) == [first, last, steps], (interval, anchor, now)
