"""Time zones: what is told of their clocks, and what is wrong with days that are counted in one."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from gateway.core.times import (
    APART_MS,
    CLOCK_OF_UTC,
    DAY_MS,
    HOUR_MS,
    ZoneOffset,
    clock_of,
    offset_at,
    wrong_calendar,
)


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000)


@pytest.mark.parametrize(
    ("zone", "at", "clock"),
    [
        ("UTC", "2026-01-01", CLOCK_OF_UTC),
        ("Asia/Kathmandu", "2026-01-01", ZoneOffset(20_700_000, 0, 20_700_000)),
        ("Pacific/Kiritimati", "2026-01-01", ZoneOffset(14 * HOUR_MS, 0, 14 * HOUR_MS)),
        ("Europe/Berlin", "2026-01-01", ZoneOffset(HOUR_MS, ms("2026-03-29T01:00"), 2 * HOUR_MS)),
        ("Europe/Berlin", "2026-07-01", ZoneOffset(2 * HOUR_MS, ms("2026-10-25T01:00"), HOUR_MS)),
        (
            "Australia/Lord_Howe",
            "2026-01-01",
            ZoneOffset(11 * HOUR_MS, ms("2026-04-04T15:00"), 21 * HOUR_MS // 2),
        ),
        ("America/Santiago", "2026-07-01", ZoneOffset(-4 * HOUR_MS, ms("2026-09-06T04:00"), -3 * HOUR_MS)),
    ],
)
def test_a_clock_says_when_it_changes_next(zone: str, at: str, clock: ZoneOffset) -> None:
    assert clock_of(zone, ms(at)) == clock


def test_a_change_is_told_until_no_clock_can_be_before_it() -> None:
    change = ms("2026-03-29T01:00")
    for since in (0, 1, APART_MS - HOUR_MS):
        assert clock_of("Europe/Berlin", change + since).turns_at == change
    assert clock_of("Europe/Berlin", change + APART_MS + HOUR_MS).turns_at == ms("2026-10-25T01:00")


@pytest.mark.parametrize("zone", ["Europe/Berlin", "Africa/Casablanca", "Asia/Beirut", "America/St_Johns"])
def test_a_clock_is_exact_up_to_its_change_and_behind_it(zone: str) -> None:
    for day in range(ms("2024-01-01"), ms("2030-01-01"), 11 * DAY_MS):
        clock = clock_of(zone, day)
        assert clock.turns_at > day - APART_MS
        for at in range(day, clock.turns_at + 27 * DAY_MS, 7 * DAY_MS):
            wanted = clock.offset if at < clock.turns_at else clock.offset_after
            assert offset_at(ZoneInfo(zone), at) == wanted, (zone, day, at)


@pytest.mark.parametrize(
    ("interval", "zone", "anchor", "fields"),
    [
        ("monthly", "Europe/Berlin", 31, []),
        ("weekly", "UTC", 7, []),
        ("weekly", "UTC", None, []),
        ("daily", "Asia/Kolkata", 1, []),
        ("none", "UTC", None, []),
        ("weekly", "UTC", 8, ["anchor_day"]),
        ("daily", "UTC", 2, ["anchor_day"]),
        ("none", "Mars/Base", 31, ["anchor_day", "time_zone"]),
        ("monthly", "europe/berlin", 1, ["time_zone"]),
        ("monthly", "localtime", 1, ["time_zone"]),
        ("monthly", "../etc/passwd", 1, ["time_zone"]),
    ],
)
def test_what_is_wrong_with_days_of_a_zone(
    interval: str, zone: str, anchor: int | None, fields: list[str]
) -> None:
    assert [field for field, _ in wrong_calendar(interval, zone, anchor)] == fields
