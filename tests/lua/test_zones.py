"""Cycles by the clocks of a plan's zone: resets, changes of plan and of zone while a cycle runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from gateway.core.accounts.intervals import PERIODS, window_bounds
from gateway.core.accounts.outbox import EventKind
from gateway.core.accounts.plans import PlanTerms
from gateway.core.model import Verdict
from gateway.core.times import HOUR_MS, ZoneOffset, clock_of
from tests.builders import Call, World

DAY_MS = 24 * HOUR_MS
ZONES = ["Europe/Berlin", "Asia/Kolkata", "Pacific/Chatham", "Pacific/Kiritimati", "Pacific/Niue"]


def terms(zone: str, interval: str = "daily", at_ms: int = 0, **more: Any) -> PlanTerms:
    more |= {"reset_interval": interval, "time_zone": zone, "clock": clock_of(zone, at_ms)}
    return PlanTerms(plan_id=1, total_amount=100, **more)


def window(world: World, zone: str, interval: str = "daily", anchor: int = 1) -> tuple[int, int]:
    return window_bounds(PERIODS[interval].name, zone, anchor, world.now_ms())[:2]


def follow(world: World, zone: str, interval: str = "daily", **more: Any) -> None:
    assert world.grant("plan", terms=terms(zone, interval, world.now_ms(), **more)).code == 1


def shown(zone: str, at_ms: int) -> str:
    """What a zone's clocks show."""
    return datetime.fromtimestamp(at_ms / 1000, ZoneInfo(zone)).isoformat()[: len("2026-01-31T00:00:00")]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(
    ("interval", "anchor"),
    [("daily", None), ("weekly", 7), ("weekly", None), ("monthly", 29), ("monthly", 31)],
)
def test_a_plan_begins_its_cycles_on_the_days_of_its_zone(
    world: World, zone: str, interval: str, anchor: int | None
) -> None:
    follow(world, zone, interval, anchor_day=anchor, anchor=17)
    assert world.tenant.next_reset == window(world, zone, interval, anchor or 1)[1]


def test_without_a_day_of_its_own_a_monthly_plan_has_the_tenants(world: World) -> None:
    follow(world, "Pacific/Niue", "monthly", anchor=30)
    assert world.tenant.next_reset == window(world, "Pacific/Niue", "monthly", 30)[1]
    follow(world, "Pacific/Niue", "monthly", anchor=30, anchor_day=12)
    assert world.tenant.next_reset == window(world, "Pacific/Niue", "monthly", 12)[1]


def reserve(world: World) -> None:
    assert world.reserve(need=1).verdict is Verdict.ADMITTED


def sweep(world: World) -> None:
    assert world.sweep().code == 1


def define(world: World) -> None:
    zone = "Pacific/Chatham"
    assert world.define_tenant(terms=terms(zone, at_ms=world.now_ms())) == 1


@pytest.mark.parametrize("script", [reserve, sweep, define])
def test_every_script_resets_by_the_zones_clocks(world: World, script: Any) -> None:
    follow(world, "Pacific/Chatham")
    begun, next_reset = window(world, "Pacific/Chatham")
    world.put_tenant(next_reset=begun - 2 * DAY_MS, remaining=-5)
    script(world)
    tenant = world.tenant
    assert (tenant.cycle, tenant.next_reset, tenant.remaining) == (4, next_reset, 100)
    assert world.events()[1].metadata == b'{"cycles":3,"forgiven":5}'
    assert (tenant.offset, tenant.turns_at) == clock_of("Pacific/Chatham", world.now_ms())[:2]


def test_a_call_ends_in_the_cycle_of_the_zones_clocks(world: World) -> None:
    follow(world, "Pacific/Kiritimati")
    call: Call = world.reserve(need=60)
    begun, next_reset = window(world, "Pacific/Kiritimati")
    world.put_tenant(next_reset=begun)
    call.settle(tokens=70)
    assert [event.kind for event in world.events()] == [EventKind.RESET, EventKind.RESET, EventKind.CONSUME]
    assert {event.next_reset_ms for event in world.events()[1:]} == {next_reset}


@pytest.mark.parametrize("by", ["plan", "define"])
@pytest.mark.parametrize(
    ("before", "after"), [("Pacific/Kiritimati", "Pacific/Niue"), ("Asia/Kolkata", "UTC")]
)
def test_a_running_cycle_ends_on_its_day_by_the_clocks_of_the_other_zone(
    world: World, by: str, before: str, after: str
) -> None:
    follow(world, before)
    world.reserve(need=1).settle(tokens=30)
    day = shown(before, world.tenant.next_reset)
    assert day.endswith("T00:00:00")
    if by == "plan":
        follow(world, after)
    else:
        assert world.define_tenant(terms=terms(after, at_ms=world.now_ms())) == 1
    tenant = world.tenant
    assert shown(after, tenant.next_reset) == day
    assert (tenant.cycle, tenant.remaining, tenant.used) == (1, 70, 30)


def test_a_cycle_that_is_over_by_the_clocks_of_the_other_zone_ends_at_once_and_once(world: World) -> None:
    follow(world, "UTC")
    world.reserve(need=1).settle(tokens=30)
    now, utc_end = world.now_ms(), world.tenant.next_reset
    # A zone whose clocks show tomorrow's first minute.
    ahead = ZoneOffset(utc_end - now + HOUR_MS // 60)
    assert world.grant("plan", terms=PlanTerms(1, 1, ahead, 100, "daily")).code == 1
    assert (world.tenant.next_reset, world.tenant.cycle) == (utc_end - ahead.offset, 1)
    assert world.sweep().code == 1
    tenant = world.tenant
    assert (tenant.cycle, tenant.remaining, tenant.next_reset) == (2, 100, utc_end + DAY_MS - ahead.offset)
    assert world.grant("plan", terms=PlanTerms(1, 1, total_amount=100, reset_interval="daily")).code == 1
    assert (world.tenant.cycle, world.tenant.next_reset) == (2, utc_end + DAY_MS)
    assert world.sweep().code == 2


def test_another_anchor_or_interval_goes_by_its_next_boundary(world: World) -> None:
    follow(world, "Asia/Kolkata", "monthly", anchor_day=31)
    follow(world, "Asia/Kolkata", "monthly", anchor_day=2)
    assert world.tenant.next_reset == window(world, "Asia/Kolkata", "monthly", 2)[1]
    follow(world, "Pacific/Niue", "weekly", anchor_day=3)
    assert world.tenant.next_reset == window(world, "Pacific/Niue", "weekly", 3)[1]
    follow(world, "Pacific/Niue", "none")
    assert (world.tenant.next_reset, world.sweep().code) == (0, 2)


def test_a_clock_told_again_moves_nothing(world: World) -> None:
    follow(world, "Europe/Berlin", "monthly", anchor_day=31)
    before = world.tenant
    assert world.define_tenant(terms=terms("Europe/Berlin", "monthly", world.now_ms(), anchor_day=31)) == 1
    assert (world.tenant.next_reset, world.tenant.cycle) == (before.next_reset, before.cycle)
    entries = len(world.events())
    assert world.sweep().code == 2
    assert len(world.events()) == entries
