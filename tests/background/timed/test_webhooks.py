"""Messages go out side by side: a receiver that answers late keeps nobody waiting but itself."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

import pytest

from gateway.background.loops import FailureTeller
from gateway.background.timed.deliveries import DELIVERIES_AT_ONCE, DELIVERIES_EACH, WebhookDeliveries
from gateway.background.timed.price_list import PriceList
from gateway.core.accounts.administration import Row
from gateway.core.accounts.intervals import window_bounds
from gateway.core.alerts.messages import Delivery, DeliveryOutcome
from gateway.core.failures import FailureReport, Failures
from gateway.core.times import HOUR_MS, ZoneOffset, clock_of
from gateway.counters.redis.keys import partition_of
from gateway.run.timed_loops import clock_changes
from persistence import engine as engines
from persistence.keeper.definitions import ClockReports
from persistence.resources import audit
from tests.background.backend import Backend, backend_at
from tests.builders import World
from tests.waiting import eventually

NOW = datetime(2026, 4, 1, 12, tzinfo=UTC)


class Waiting:
    """A queue: messages of webhooks, by id."""

    def __init__(self, **messages: int) -> None:
        ids = iter(range(1, 10_000))
        self.due = [
            Delivery(next(ids), f"https://{name}/", "whsec_AAAA", "webhook.test", {}, NOW, 1, number)
            for number, (name, count) in enumerate(messages.items(), 1)
            for _ in range(count)
        ]
        self.results: list[tuple[str, DeliveryOutcome]] = []
        self.fails = False

    async def claim_due(self, count: int, each: int, busy: Collection[int]) -> Sequence[Delivery]:
        if self.fails:
            raise ConnectionError
        found: list[Delivery] = []
        for delivery in self.due:
            mine = [one for one in found if one.webhook_id == delivery.webhook_id]
            if len(found) < count and len(mine) < each and delivery.webhook_id not in busy:
                found.append(delivery)
        self.due = [one for one in self.due if one not in found]
        return found

    async def done(self, delivery: Delivery, outcome: DeliveryOutcome) -> None:
        self.results.append((delivery.url, outcome))

    def delivered(self, name: str) -> int:
        return sum(url == f"https://{name}/" for url, _ in self.results)


class Receivers:
    """The other side: answers at once, but those called slow."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.under_way = self.most = 0

    async def send(self, url: str, headers: dict[str, str], body: bytes) -> DeliveryOutcome:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        if "slow" in url:
            await self.goes_on.wait()
        await asyncio.sleep(0)
        self.under_way -= 1
        return DeliveryOutcome(204)


async def stopped(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_a_slow_receiver_keeps_no_other_waiting() -> None:
    waiting, receivers = Waiting(slow=500, quick=50), Receivers()
    running = asyncio.create_task(WebhookDeliveries(waiting, receivers, lambda: NOW).run())
    await eventually(lambda: waiting.delivered("quick") == 50)
    assert waiting.delivered("slow") == 0
    assert receivers.under_way == DELIVERIES_EACH
    receivers.goes_on.set()
    await eventually(lambda: waiting.delivered("slow") == 500)
    await stopped(running)


async def test_no_more_than_so_many_are_under_way() -> None:
    waiting, receivers = Waiting(**{f"slow{n}": 9 for n in range(20)}), Receivers()
    running = asyncio.create_task(WebhookDeliveries(waiting, receivers, lambda: NOW).run())
    await eventually(lambda: receivers.under_way == DELIVERIES_AT_ONCE)
    receivers.goes_on.set()
    await eventually(lambda: len(waiting.results) == 180)
    assert receivers.most == DELIVERIES_AT_ONCE
    await stopped(running)


async def test_after_a_failure_everything_may_be_under_way_again() -> None:
    waiting, receivers = Waiting(slow=9), Receivers()
    webhook_deliveries = WebhookDeliveries(waiting, receivers, lambda: NOW)
    running = asyncio.create_task(webhook_deliveries.run())
    await eventually(lambda: receivers.under_way == DELIVERIES_EACH)
    await stopped(running)
    receivers.goes_on.set()
    running = asyncio.create_task(webhook_deliveries.run())
    await eventually(lambda: waiting.delivered("slow") == 5)
    waiting.fails = True
    with suppress(ExceptionGroup):
        await running
    assert running.done()


# --- clock changes ----------------------------------------------------------------------
# Clocks that change: tenants are told in time, each once, however long nobody looked.


BERLIN = "Europe/Berlin"
DAY_MS = 24 * HOUR_MS


def told(backend: Backend) -> ClockReports:
    return ClockReports(backend.engine, partition_of)


def clock(world: World) -> ZoneOffset:
    tenant = world.tenant
    return ZoneOffset(tenant.offset, tenant.turns_at, tenant.offset_after)


def waiting(backend: Backend) -> list[str]:
    query = "select account from control_write where state = 'pending' order by position"
    return [row["account"] for row in backend.rows(query)]


async def in_zone(backend: Backend, count: int = 1, **plan: Any) -> list[World]:
    return [
        await backend.settle_in(100, reset_interval="daily", time_zone=BERLIN, **plan) for _ in range(count)
    ]


async def test_a_keeper_that_was_away_over_a_change_of_clocks_tells_of_it(backend: Backend) -> None:
    [world] = await in_zone(backend)
    now, right = world.now_ms(), clock(world)
    assert right == clock_of(BERLIN, now)
    boundary = window_bounds("day", BERLIN, 1, now)[1]
    assert world.tenant.next_reset == boundary
    # As half a year ago: clocks were others, which would have changed twice since.
    stale = ZoneOffset(right.offset + HOUR_MS, now - 90 * DAY_MS, right.offset - HOUR_MS)
    late = boundary + right.offset - stale.offset_after
    world.put_tenant(**stale._asdict(), next_reset=late)
    changes = clock_changes(told(backend), lambda: datetime.now(UTC))
    assert await changes.turn() == 1
    assert await backend.push() == 0
    assert (clock(world), world.tenant.next_reset) == (right, boundary)
    assert (world.tenant.cycle, world.tenant.remaining) == (1, 100)


async def test_a_reset_that_stale_clocks_delayed_runs_when_they_are_told(backend: Backend) -> None:
    [world] = await in_zone(backend)
    world.reserve(need=1).settle(tokens=130)
    now, right = world.now_ms(), clock(world)
    begun = window_bounds("day", BERLIN, 1, now)[0]
    # By these clocks today begins in an hour.
    stale = ZoneOffset(begun + right.offset - now - HOUR_MS)
    world.put_tenant(**stale._asdict(), next_reset=now + HOUR_MS)
    assert world.sweep().code == 2
    assert await clock_changes(told(backend), lambda: datetime.now(UTC)).turn() == 1
    assert await backend.push() == 0
    assert world.tenant.next_reset == begun
    assert world.sweep().code == 1
    assert (world.tenant.cycle, world.tenant.remaining) == (2, 100)
    assert world.tenant.next_reset == window_bounds("day", BERLIN, 1, now)[1]


async def test_all_tenants_of_a_zone_are_told_once_some_at_a_time(backend: Backend) -> None:
    worlds = await in_zone(backend, 3)
    await backend.settle_in(100, reset_interval="daily", time_zone="Asia/Tokyo")
    await backend.settle_in(100, reset_interval="daily")
    clocks, winter = told(backend), ZoneOffset(HOUR_MS, 5, 2 * HOUR_MS)
    accounts = [f"tenant:{world.caller.tenant_id}" for world in worlds]
    assert await clocks.zones() == ["Asia/Tokyo", BERLIN]
    assert [await clocks.tell(BERLIN, winter, 2) for _ in range(3)] == [2, 1, 0]
    assert waiting(backend) == accounts
    assert await backend.push() == 0
    # What changes begins with the first tenant, also where not all were told of what was before.
    assert await clocks.tell(BERLIN, ZoneOffset(1, 6, 0), 1) == 1
    assert [await clocks.tell(BERLIN, ZoneOffset(0, 7, 1), 3) for _ in range(3)] == [3, 0, 0]
    assert waiting(backend) == [accounts[0], *accounts]


async def test_who_follows_another_plan_or_is_gone_is_not_told(backend: Backend) -> None:
    moved, gone, here = await in_zone(backend, 3)
    plan = await backend.made("token-plans", name="Tokyo", total_amount=5, time_zone="Asia/Tokyo")
    await backend.write("tenant-quotas", "change", moved.caller.tenant_id, plan_id=plan)
    await backend.write("api-keys", "revoke", gone.caller.key_id)
    await backend.flush()  # all movements are rows
    await backend.write("tenants", "delete", gone.caller.tenant_id)
    assert await backend.push() == 0
    assert await told(backend).tell(BERLIN, ZoneOffset(1, 2, 3), 10) == 1
    assert waiting(backend) == [f"tenant:{here.caller.tenant_id}"]


async def test_two_keepers_tell_nobody_twice(valkey: str, migrated: str) -> None:
    async with backend_at(valkey, migrated) as backend, backend_at(valkey, migrated) as other:
        await in_zone(backend, 2)
        one, two, winter = told(backend), told(other), ZoneOffset(1, 2, 3)
        assert await one.tell(BERLIN, winter, 1) == 1
        assert await two.tell(BERLIN, winter, 1) == 1
        assert [await two.tell(BERLIN, winter, 1), await one.tell(BERLIN, winter, 1)] == [0, 0]
        assert len(waiting(backend)) == 2


async def test_a_tenant_that_is_written_anew_has_its_days_again(backend: Backend) -> None:
    world = await backend.settle_in(
        100, reset_interval="monthly", time_zone="Pacific/Chatham", anchor_day=31, overage_policy="carry"
    )
    world.reserve(need=1).settle(tokens=130)
    await backend.flush()
    before = world.tenant
    backend.client().flushall()
    world.load_library()
    await backend.verify()
    await backend.push()
    after = world.tenant
    names = (
        "anchor_day",
        "offset",
        "turns_at",
        "offset_after",
        "next_reset",
        "cycle",
        "remaining",
        "seq",
    )
    assert [getattr(after, name) for name in names] == [getattr(before, name) for name in names]
    assert after.next_reset == window_bounds("month", "Pacific/Chatham", 31, world.now_ms())[1]


# --- failures ---------------------------------------------------------------------------
# Who sends wrong credentials is told of: a line a site and interval, and on file for people's port.


async def test_a_line_a_site_and_a_row_where_there_is_a_file() -> None:
    lines: list[tuple[str, dict[str, object]]] = []
    kept: list[FailureReport] = []

    async def keep(told: Sequence[FailureReport]) -> None:
        kept.extend(told)

    failures = Failures(lambda: 0.0)
    teller = FailureTeller("admin", failures, lambda event, /, **facts: lines.append((event, facts)), keep)
    for _ in range(300):
        failures.count("192.0.2.1", "unknown")
    await teller.tell()
    await teller.tell()
    [(event, facts)] = lines
    assert (event, facts["port"], facts["address"], facts["attempts"]) == (
        "wrong credentials", "admin", "192.0.2.1", 300,
    )  # fmt: skip
    assert [(one.site, one.attempts) for one in kept] == [("192.0.2.1", 300)]


async def test_rows_of_the_audit_log(migrated: str) -> None:
    engine = engines.create(migrated)
    try:
        await audit.note_failures(
            engine, [FailureReport("192.0.2.1", 3, {"unknown": 3}), FailureReport("", 1, {"missing": 1})]
        )
        async with engine.connect() as connection:
            rows = (
                await connection.exec_driver_sql(
                    "select actor, action, resource, resource_id, after from audit_log order by id"
                )
            ).all()
    finally:
        await engine.dispose()
    assert [tuple(row) for row in rows] == [
        ("nobody", "fail", "authentication", "192.0.2.1", {"attempts": 3, "reasons": {"unknown": 3}}),
        ("nobody", "fail", "authentication", None, {"attempts": 1, "reasons": {"missing": 1}}),
    ]


# --- price list -------------------------------------------------------------------------
# The bundled list is put in once, and nobody waits for it longer than that takes.


ROWS: Sequence[Row] = ({"model": "m"},)


class Table:
    """A table in memory; `other` is whether another keeper fills it meanwhile."""

    def __init__(self, *, there: bool, other: bool = False) -> None:
        self.there = there
        self.other = other
        self.rows: list[Row] = []

    async def has_bundled(self) -> bool:
        return self.there

    async def put_in_bundled(self, rows: Sequence[Row]) -> int:
        self.rows += () if self.other else rows
        return 0 if self.other else len(rows)


@pytest.mark.parametrize(
    ("table", "reads", "told"),
    [
        (Table(there=False), 1, [1]),
        (Table(there=True), 0, []),
        (Table(there=False, other=True), 1, []),
    ],
)
async def test_the_list_is_read_only_where_there_is_none_and_compared_where_there_is_one(
    table: Table, reads: int, told: list[int]
) -> None:
    read: list[int] = []
    said: list[int] = []
    compared = asyncio.Event()
    loop = asyncio.get_running_loop()

    def rows() -> Sequence[Row]:
        read.append(1)
        return ROWS

    price_list = PriceList(table, rows, said.append, lambda: loop.call_soon_threadsafe(compared.set))
    assert not price_list.there.is_set()
    task = asyncio.create_task(price_list.run())
    async with asyncio.timeout(30):
        await price_list.there.wait()
        if table.there:
            await compared.wait()
    assert not task.done()
    assert compared.is_set() is table.there
    task.cancel()
    assert (len(read), said) == (reads, told)
