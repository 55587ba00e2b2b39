"""Rows in which clients, upstreams and clocks misbehave; and a soak of everything at once."""

from __future__ import annotations

import asyncio
import datetime as dt
import itertools
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from gateway.features.archive.archiving import archive
from gateway.features.archive.reading import prove
from gateway.ops.storage import FileStore
from tests.faults import audit
from tests.faults.audit import Expected, Figures
from tests.faults.budgets import add_budget, begin, costs_of
from tests.faults.cast import USERS
from tests.faults.scene import Scene, row
from tests.faults.servers import ROOT
from tests.faults.truth import PIECES
from tests.faults.workload import Call, Caller, Kind, Load, PlannedCall
from tests.faults.world import MissingError, World
from tests.features.archive.aging import held

ABORTS_SHORT, ABORTS_LONG = 150, 10_000
AT_ONCE = 32
# A whole day of 1,000,000 would take hours of this machine.
DAY_CALLS_SHORT, DAY_CALLS_LONG, DAY_BYTES_MAX = 5_000, 100_000, 20
SOAK_S_SHORT, SOAK_S_LONG = 3.0, 1_200.0
MEMORY_GROWTH_MAX = 1.25
LIBFAKETIME = "/usr/lib/{machine}-linux-gnu/faketime/libfaketime.so.1"
INSTALL_S_MAX = 120
HOUR_S = 3_600
BUSY = "counters_unavailable"  # Redis has not answered within its second, whatever the upstream does


async def _each(scene: Scene, asked: list[PlannedCall]) -> None:
    """Make these calls, many at once, spread over the gateways."""
    waiting = iter(asked)

    async def one(number: int) -> None:
        caller = Caller(scene.world.gateways[number % len(scene.world.gateways)].door)
        for each in waiting:
            scene.calls.append(await caller.call(each))
            if len(scene.calls) % 500 == 0:
                scene.say(f"{len(scene.calls)} of {len(asked)} calls")
        caller.leave()

    await asyncio.gather(*(one(number) for number in range(AT_ONCE)))


@row("Clients disconnect at every event")
async def clients_leave(scene: Scene) -> Figures:
    """Whatever a client leaves behind is read to its end and charged, and holds nothing."""
    cast = await scene.set_up()
    draw = scene.draw

    def asked(number: int) -> PlannedCall:
        kind = (Kind.STREAM, Kind.STREAM, Kind.CHAT, Kind.CREDITS, Kind.UNITS)[number % 5]
        # 0: nothing read; 1: the head; then one piece after another
        leave_at = draw.randrange(PIECES + 4) if kind is Kind.STREAM else draw.randrange(2)
        return cast.ask(kind, draw.choice(cast.tenants[:2]), draw, leave_at)

    aborts = ABORTS_LONG if scene.long else ABORTS_SHORT
    await _each(scene, [asked(number) for number in range(aborts)])
    figures = await scene.finish()
    figures.other = {"aborts": sum(not call.complete for call in scene.calls)}
    return figures


@row("One organization makes many calls in a day", limit_s=3600)
async def calls_of_a_day(scene: Scene) -> Figures:
    """Each is a row, and its day, budgets and balances have all of them; Redis does not grow by calls that ended."""
    cast = await scene.set_up()
    tenant = cast.tenants[0]
    kinds = (Kind.CHAT, Kind.CHAT, Kind.CHAT, Kind.STREAM)
    calls = DAY_CALLS_LONG if scene.long else DAY_CALLS_SHORT
    with scene.world.counters() as counters:
        before = int(counters.info("memory")["used_memory"])
        began = time.monotonic()
        await _each(scene, [cast.ask(kinds[number % 4], tenant, scene.draw) for number in range(calls)])
        called = time.monotonic()
        await scene.rest()
        rested = time.monotonic()
        grown = int(counters.info("memory")["used_memory"]) - before
    figures = await scene.finish()
    query = "SELECT count(*) FROM call WHERE tenant_id = %s AND NOT refused"
    ((rows,),) = scene.world.rows(query, tenant.id)
    figures.other = {
        "calls_a_second": round(calls / (called - began)), "stored_s": round(rested - called, 1),
        "redis_bytes_a_call": round(grown / calls), "rows": rows,
    }  # fmt: skip
    if scene.long and grown > calls * DAY_BYTES_MAX:
        figures.broken.append(f"Redis has {grown} bytes more behind {calls} calls")
    return figures


@row("Upstreams reset")
async def upstream_resets(scene: Scene) -> Figures:
    """At every piece of an answer, and all connections at once: what came is charged."""
    cast = await scene.set_up()
    draw = scene.draw

    def asked(number: int) -> PlannedCall:
        kind = (Kind.STREAM, Kind.CHAT, Kind.UNITS)[number % 3]
        cut = {"x_fault_cut": str(number // 3 % (PIECES + 1))} if number % 2 else {}
        return cast.ask(kind, draw.choice(cast.tenants[:2]), draw, None, **cut)

    async def drop() -> None:
        while True:
            await asyncio.sleep(0.1)
            scene.world.upstream_link.reset()

    dropping = asyncio.create_task(drop())
    try:
        await _each(scene, [asked(number) for number in range(5_000 if scene.long else 120)])
    finally:
        dropping.cancel()
    # What an upstream has handed to the network may be lost there.
    return await scene.finish(Expected(unheard=True))


@row("Stale sockets: the upstream closed what was pooled")
async def stale_sockets(scene: Scene) -> Figures:
    """A connection its upstream has closed is never written to: no call fails, none is sent twice."""
    cast = await scene.set_up()
    failed: list[Call] = []
    for number in range(200 if scene.long else 10):
        before = len(scene.calls)
        await _each(scene, [cast.ask(Kind.CHAT, cast.tenants[0], scene.draw) for _ in range(AT_ONCE)])
        calls = scene.calls[before:]
        failed += [one for one in calls if not (one.complete or one.reason == BUSY)]
        if number % 2:
            scene.world.upstream.drop()
        else:
            scene.world.upstream_link.reset()
        await scene.world.until(lambda: not scene.world.upstream_link.open, what="what was pooled is closed")
        await asyncio.sleep(0.05)
    figures = await scene.finish()
    if failed:
        figures.broken.append(f"{len(failed)} calls failed, the first with {failed[0].status}")
    return figures


# --- clocks -----------------------------------------------------------------------------


def libfaketime() -> str:
    """Where libfaketime is, installed where it is missing and may be; "" where it cannot be had."""
    place = LIBFAKETIME.format(machine=os.uname().machine)
    if not Path(place).exists() and shutil.which("apt-get") and os.geteuid() == 0:
        install = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "faketime"]
        for command in (install, ["apt-get", "update", "-qq"], install):
            with suppress(subprocess.TimeoutExpired):
                subprocess.run(command, capture_output=True, check=False, timeout=INSTALL_S_MAX)
            if Path(place).exists():
                break
    return place if Path(place).exists() else ""


class Clock:
    """A wall clock that processes started with `environment` believe in."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.set(0)
        self.environment = {
            "LD_PRELOAD": libfaketime(),
            "FAKETIME_TIMESTAMP_FILE": str(file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, ahead_s: float) -> None:
        """Be so many seconds ahead of the truth."""
        self._file.write_text(f"{ahead_s:+.0f}\n")


def _all_called(scene: Scene, load: Load, since: float) -> bool:
    """Whether each tenant and each organization's users had a call that was made and answered since a moment.

    Tenants count on from there when the clock goes back; who is met later would begin with the day before.
    """
    answered = [one.asked for one in load.calls if one.complete and one.began > since]
    of = {one.key: one.organization_id for one in scene.cast.tenants}
    users = {
        (of[one.key], user)
        for one in answered
        if one.kind in (Kind.CHAT, Kind.STREAM)
        for name, user in one.fields
        if name == "x-tollkeeper-user"
    }
    wanted = itertools.product(scene.cast.organizations, filter(None, USERS))
    return {one.key for one in answered} >= of.keys() and users.issuperset(wanted)


def _until_night_s(before_s: float) -> float:
    """Seconds from now to so many before the next midnight, UTC."""
    now = dt.datetime.now(dt.UTC)
    night = (now + dt.timedelta(days=1)).replace(hour=0, minute=0, second=0, microsecond=0)
    return (night - now).total_seconds() - before_s


@row("Clocks jump by an hour, forwards and backwards", alone=True, only_long=True)
async def clocks_jump(scene: Scene) -> Figures:
    """Redis' clock over a midnight and back, and a gateway's: a daily quota is granted once for each day."""
    world = scene.world
    if not libfaketime():
        raise MissingError("libfaketime is missing and cannot be installed (Debian's package faketime)")
    night_s = _until_night_s(1_800)
    theirs, ours = Clock(world.folder / "redis-clock"), Clock(world.folder / "gateway-clock")
    theirs.set(night_s)
    world.valkey.environment |= theirs.environment
    await asyncio.to_thread(world.valkey.stop, signal.SIGTERM)
    await asyncio.to_thread(world.valkey.start)
    program = world.gateways[0].program
    program.environment |= ours.environment
    await asyncio.to_thread(program.stop)
    cast = await scene.set_up(reset_interval="daily")
    hold_s = 3.0 if scene.long else 0.8
    async with scene.load() as load:
        for _ in range(5 if scene.long else 1):
            # the gateway's wall clock first, then Redis' over midnight, then both back
            for their_s, our_s in (
                (0, HOUR_S),
                (HOUR_S, HOUR_S),
                (HOUR_S, -HOUR_S),
                (0, -HOUR_S),
                (-HOUR_S, 0),
            ):
                theirs.set(night_s + their_s)
                ours.set(our_s)
                began = time.monotonic()
                await asyncio.sleep(hold_s)
                if their_s > 0:  # everybody's day has ended by now, once somebody looks
                    await world.until(partial(_all_called, scene, load, began), what="a call of each tenant")
        await load.more(10)
    theirs.set(night_s)
    figures = await scene.finish()
    query = (
        "SELECT tenant_id, count(*) FROM token_ledger "
        "WHERE tenant_id = ANY(%s) AND transaction_type = 'reset' GROUP BY 1"
    )
    resets = {int(count) for _, count in world.rows(query, [one.id for one in cast.tenants])}
    figures.other = {"resets_a_tenant": sorted(resets)}
    if resets != {2}:
        figures.broken.append(f"one midnight passed and {resets} resets were made, the first grant included")
    return figures


# Clocks in Berlin change at 01:00 UTC of the last Sunday of March and of October (2000/84/EC). By month, in seconds
# from then: the beginning of that day, which has 23 hours or 25, and its end.
CHANGES = {3: (-7_200, 75_600), 10: (-10_800, 79_200)}
ARCHIVED_S_MAX = 60.0
LEAD_S, CLOSE_S = 4.0, 1.0


def _next_day_of_change(now: dt.datetime) -> tuple[dt.datetime, dt.datetime]:
    """The beginning and end of the next day in Berlin on which clocks change."""
    for year, month in itertools.product((now.year, now.year + 1), CHANGES):
        last = dt.datetime(year, month, 31, 1, tzinfo=dt.UTC)
        change = last - dt.timedelta(days=last.isoweekday() % 7)
        begins, ends = (change + dt.timedelta(seconds=one) for one in CHANGES[month])
        if begins > now:
            return begins, ends
    raise AssertionError(now)


async def _believe(world: World, clock: Clock) -> None:
    """Have all programs and Redis start again with this clock; PostgreSQL, whose user is another, has its own."""
    world.valkey.environment |= clock.environment
    await asyncio.to_thread(world.valkey.stop, signal.SIGTERM)
    await asyncio.to_thread(world.valkey.start)
    for program in (one.program for one in (*world.keepers, *world.gateways)):
        starts = program.starts
        program.environment |= clock.environment
        program.send(signal.SIGTERM)
        await world.until(lambda program=program, starts=starts: program.starts > starts)
    await world.until_admin()


@row("A budget's day of 23 or 25 hours ends while calls are in flight", alone=True)
async def budgets_at_a_change_of_clocks(scene: Scene) -> Figures:
    """It ends when clocks there show midnight, for each call once. Redis, gateways and keeper have one clock."""
    world = scene.world
    if not libfaketime():
        raise MissingError("libfaketime is missing and cannot be installed (Debian's package faketime)")
    clock, now = Clock(world.folder / "clock"), dt.datetime.now(dt.UTC)
    begins, ends = _next_day_of_change(now)
    ahead_s = (ends - now).total_seconds() - HOUR_S
    clock.set(ahead_s)
    await _believe(world, clock)
    cast = await scene.set_up()
    of = cast.tenants[0].organization_id
    calendar = {"interval": "day", "time_zone": "Europe/Berlin"}
    budget = await asyncio.to_thread(add_budget, world, cast.budgets, of, "organization_id", of, **calendar)
    await _until_counted(scene, budget)
    await scene.rest()
    await asyncio.to_thread(begin, world, cast.budgets, cast.organizations)
    made = dt.datetime.now(dt.UTC) + dt.timedelta(seconds=ahead_s)  # PostgreSQL has not that clock
    world.rows("UPDATE budget SET updated_at = %s WHERE organization_id = %s", made, of)
    clock.set((ends - dt.datetime.now(dt.UTC)).total_seconds() - LEAD_S)
    ended = time.monotonic() + LEAD_S
    async with scene.load() as load:
        await asyncio.sleep(LEAD_S + CLOSE_S)
        await world.until(partial(_all_called, scene, load, ended + CLOSE_S), what="a call of each tenant")
    figures = await scene.finish()
    costs, ours = costs_of(world, [of]), {one.key for one in cast.tenants if one.organization_id == of}
    calls = [one for one in load.calls if one.complete and one.asked.key in ours]
    least = {
        begins: sum(costs.get(one.request_id, 0) for one in calls if one.ended < ended - CLOSE_S),
        ends: sum(costs.get(one.request_id, 0) for one in calls if one.began > ended + CLOSE_S),
    }
    query = "SELECT start, used FROM budget_use WHERE budget_id = %s ORDER BY start"
    used = {start: int(amount) for start, amount in world.rows(query, budget)}
    figures.other = {"day": f"{begins:%d %B %H:%M} to {ends:%H:%M} UTC", "calls": len(calls)}
    if used.keys() != least.keys() or any(not 0 < least[one] <= used[one] for one in least):
        figures.broken.append(f"the budget's days: {used}, and at least {least} was used")
    return figures


@row("A closed month is archived, proven and dropped while calls are in flight", alone=True)
async def month_archived(scene: Scene) -> Figures:
    """Each movement is a row or in a file, once, and a backup of what is left is proven."""
    world = scene.world
    if not libfaketime():
        raise MissingError("libfaketime is missing and cannot be installed (Debian's package faketime)")
    cast, clock = await scene.set_up(), Clock(world.folder / "clock")
    async with scene.load() as load:
        await load.more(100)
    figures = await scene.finish()
    first = dt.datetime.now(dt.UTC).date().replace(day=1)
    over = (first + dt.timedelta(days=31)).replace(day=1)
    today = (over + dt.timedelta(days=31)).replace(day=10)
    clock.set((dt.datetime.combine(today, dt.time(12), dt.UTC) - dt.datetime.now(dt.UTC)).total_seconds())
    keeper = world.keepers[0].program
    keeper.settings = keeper.settings.with_values(invoice_issuer="Tollkeeper Ltd\n12 Gate Street")
    await _believe(world, clock)
    place = FileStore(str(world.folder / "archive"))
    await cast.until_served()
    async with scene.load(pause_s=0.05) as load:
        await load.more(20)
        await asyncio.to_thread(_bill, world, cast.organizations, first, over)
        began, rows = time.monotonic(), 0
        while True:
            done = await asyncio.to_thread(archive, world.postgres.url, place, today, None, drop_after=0)
            rows += sum(one.rows for one in done.files)
            if not done.open or time.monotonic() > began + ARCHIVED_S_MAX:
                break
            await asyncio.sleep(1.0)  # keepers charge, allocate and close the month meanwhile
        archived = time.monotonic()
        await load.more(50)
    await scene.rest()
    figures.other = {"rows": rows, "archived_s": round(archived - began, 1), "meanwhile": len(load.calls)}
    figures.broken += await asyncio.to_thread(_archived_wrongly, scene, place, load)
    figures.broken += [f"{one.month:%B} is open: {one.reasons}" for one in done.open]
    if not rows:
        figures.broken.append("nothing was archived")
    return figures


def _archived_wrongly(scene: Scene, place: FileStore, load: Load) -> Iterator[str]:
    """Yield what an archive and its database do not have once, and what a backup of it is not proven by."""
    world, cast = scene.world, scene.cast
    yield from prove(world.postgres.url, place).broken
    movements = held(world.postgres.url, place)
    for owner, seq in world.rows("SELECT organization_id, seq FROM credit_posting"):
        movements[("credit_transaction", owner, seq)] += 1
    last: dict[tuple[str, object], int] = {}
    for ledger, owner, seq in movements:
        last[ledger, owner] = max(last.get((ledger, owner), 0), int(str(seq)))
    for (ledger, owner), most in last.items():
        times = {seq: movements[ledger, owner, seq] for seq in range(1, most + 1)}
        if wrong := {seq: count for seq, count in times.items() if count != 1}:
            yield f"{ledger} of {owner}: {wrong} are not there once"
    charged = audit._charged(cast)
    for request_id in (one.request_id for one in load.calls if one.complete):
        right = audit.used(world.upstream.told[request_id])
        if charged.get(request_id, ("", 0))[1] != right:
            yield f"{request_id} used {right} while its ledger was archived, and has {charged.get(request_id)}"
    figures = Figures()
    audit._views(cast, figures, Expected())
    yield from figures.broken
    backup = [sys.executable, "-m", "gateway", "backup", "--prove", "--to", str(world.folder / "after.tar")]
    backup += ["--database-url", world.postgres.url]
    done = subprocess.run(backup, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        yield f"a backup of it: {done.stdout[-300:]}{done.stderr[-300:]}"


def _bill(world: World, organizations: list[int], first: dt.date, over: dt.date) -> None:
    for organization in organizations:
        period = {"period_start": f"{first}", "period_end": f"{over}"}
        made = world.admin("POST", "/invoices", {"organization_id": organization} | period)
        world.admin("POST", f"/invoices/{made['id']}/finalize", {})


async def _until_counted(scene: Scene, budget: int) -> None:
    """Wait until calls at every gateway are counted by a budget of the first tenant's organization."""
    asked = scene.cast.ask(Kind.CHAT, scene.cast.tenants[0], scene.draw)
    path, used = f"/budgets/{budget}", "0"
    for node in scene.world.gateways:
        caller, before = Caller(node.door), used
        while used == before:
            await caller.call(asked)
            used = (await asyncio.to_thread(scene.world.admin, "GET", path))["used"]
        caller.leave()


# --- everything at once -----------------------------------------------------------------


def _troubles(world: World, draw: random.Random) -> list[Callable[[], Awaitable[None]]]:
    """What may happen to a deployment in a soak."""

    async def kill_gateway() -> None:
        draw.choice(world.gateways[1:]).program.send(signal.SIGKILL)

    async def kill_keeper() -> None:
        draw.choice(world.keepers).program.send(signal.SIGKILL)

    async def freeze_keeper() -> None:
        keeper = draw.choice(world.keepers).program
        keeper.send(signal.SIGSTOP)
        await asyncio.sleep(draw.uniform(0.5, 3))
        keeper.send(signal.SIGCONT)

    async def freeze_valkey() -> None:
        world.valkey.send(signal.SIGSTOP)
        await asyncio.sleep(draw.uniform(0.2, 3))
        world.valkey.send(signal.SIGCONT)

    async def kill_valkey() -> None:
        world.valkey.kill()
        await asyncio.to_thread(world.valkey.start)

    async def crash_postgres() -> None:
        await asyncio.to_thread(world.postgres.stop, signal.SIGQUIT)
        await asyncio.sleep(draw.uniform(0, 2))
        await asyncio.to_thread(world.postgres.start)

    async def reset_links() -> None:
        for link in world.links():
            link.reset()

    async def slow_link() -> None:
        link = draw.choice(world.links())
        link.latency_s, link.slice_bytes = draw.uniform(0, 0.05), draw.choice((0, 1, 7, 100))
        await asyncio.sleep(2)
        link.latency_s, link.slice_bytes = 0.0, 0

    async def flush_scripts() -> None:
        with world.counters() as counters:
            counters.execute_command("FUNCTION", "FLUSH", "SYNC")

    return [
        kill_gateway, kill_keeper, freeze_keeper, freeze_valkey, kill_valkey, crash_postgres, reset_links,
        slow_link, flush_scripts,
    ]  # fmt: skip


@row("A mixed soak of 20 minutes", limit_s=3600)
async def soak(scene: Scene) -> Figures:
    """All of it in a row that the seed draws, under load; the worker that is spared keeps its size."""
    await scene.set_up()
    world = scene.world
    seconds = SOAK_S_LONG if scene.long else SOAK_S_SHORT
    spared = psutil.Process(world.gateways[0].program.pid)
    end = time.monotonic() + seconds
    settled_kib, happened = 0, 0
    async with scene.load(callers=12, pause_s=0.01) as load:
        while time.monotonic() < end:
            trouble = scene.draw.choice(_troubles(world, scene.draw))
            await trouble()
            happened += 1
            left = end - time.monotonic()
            scene.say(f"{happened} troubles, {load.complete} answers, {left:.0f} s to go")
            if not settled_kib and left < seconds * 0.75:
                settled_kib = spared.memory_info().rss // 1024
            await asyncio.sleep(scene.draw.uniform(0.2, 4 if scene.long else 1))
        await load.more(20)
    last_kib = spared.memory_info().rss // 1024
    figures = await scene.finish(Expected(unheard=True, slow=not scene.long))
    figures.other = {
        "seconds": seconds, "troubles": happened, "worker_kib_after_a_quarter": settled_kib,
        "worker_kib_at_the_end": last_kib,
    }  # fmt: skip
    if scene.long and settled_kib and last_kib > settled_kib * MEMORY_GROWTH_MAX:
        figures.broken.append(f"a worker grew from {settled_kib} to {last_kib} KiB")
    return figures
