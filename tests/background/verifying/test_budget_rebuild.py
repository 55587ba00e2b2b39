"""Budgets after a loss are what rows and waiting entries come to, and a drift of one is told."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from hashlib import sha256
from typing import Any

import pytest
from sqlalchemy import text

from gateway.background.verifying import budget_comparison, budget_rebuild
from gateway.background.verifying.reconciler import Reconciler
from gateway.core.accounts.budgets import (
    EACH,
    EACH_UNUSED_DAYS,
    FLAG_ENFORCE,
    Budget,
    account_of,
    accounts_of,
    define_windows,
)
from gateway.core.accounts.intervals import INTERVALS, window_bounds
from gateway.core.accounts.outbox import EventKind, WindowKey
from gateway.core.layout import LAYOUT
from gateway.core.model import INTEGER_MAX, PARTITIONS, BudgetAccount, SettleResult, Verdict
from gateway.core.times import DAY_MS, EPOCH, moment_of, ms_of
from gateway.counters.admission.stored import decode_terms
from gateway.counters.keeper.client import NAMES_MAX
from gateway.counters.keeper.verification import KeeperCounters
from gateway.counters.layouts import packing
from gateway.counters.layouts.states import WindowState, pack_windows, unpack_windows
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from persistence.keeper import definitions
from persistence.keeper.verification import Accounts, BudgetUses
from persistence.resources.integrity import ReconciliationResults
from tests.background.backend import Backend, backend_at
from tests.builders import Call, World, encode
from tests.connections import connected
from tests.persistence.scenario import BLANK, stop

ADA, BOB, CAY = "a" * 24, "b" * 24, "c" * 24


@dataclass
class BudgetWorld:
    """An organization with budgets: money a day, tokens for ever, and requests a month for each user."""

    backend: Backend
    world: World
    budgets: tuple[Budget, ...]

    @property
    def organization_id(self) -> int:
        return self.world.caller.organization_id

    def window(self, budget: Budget, value: str = "") -> WindowKey:
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        start = window_bounds(budget.interval, budget.time_zone, budget.anchor_day, now_ms)[0]
        return WindowKey(budget.id, start, value)

    def use(self, money: int, user: str = ADA, **facts: Any) -> bytes:
        """A use that moves no account but those of budgets, as `settle` leaves it in the outbox."""
        day, total, each = self.budgets
        windows = (self.window(day), self.window(total), self.window(each, user))
        event = replace(
            BLANK, kind=int(EventKind.CONSUME), organization_id=self.organization_id,
            tenant_id=self.world.caller.tenant_id, source=str(uuid.uuid4()), money=money, raw_tokens=7,
            requests=1, budgets=windows, metadata=b"{}", at_ms=int(datetime.now(UTC).timestamp() * 1000),
        )  # fmt: skip
        packed = encode(replace(event, **facts))
        self.world.client.xadd(keys.outbox(self.world.p), {"e": packed})
        return packed

    def name(self, budget: Budget, value: str = "") -> str:
        prefix = account_of(self.organization_id, budget).partition(":")[0]
        return f"{prefix}:{value}" if value else prefix

    def live(self, budget: Budget, value: str = "") -> WindowState | None:
        packed = self.world.get(keys.budget_account(self.world.p, self.name(budget, value)))
        windows = unpack_windows(packed) if packed else []
        return next((one for one in windows if one.budget_id == budget.id), None)

    def used(self) -> list[int | None]:
        """Of each in the counters: the day's money, tokens, requests of Ada and of Bob; None: not there."""
        day, total, each = self.budgets
        found = [self.live(day), self.live(total), self.live(each, ADA), self.live(each, BOB)]
        return [None if one is None else one.used for one in found]

    def put(self, budget: Budget, used: int, value: str = "") -> None:
        """Have the counters say something else."""
        name = keys.budget_account(self.world.p, self.name(budget, value))
        packed = self.world.get(name)
        assert packed is not None
        windows = unpack_windows(packed)
        changed = [replace(one, used=used) if one.budget_id == budget.id else one for one in windows]
        self.world.client.set(name, pack_windows(changed))

    def reserve(self, money: int, user: str = "ada") -> Call:
        """A call through the scripts, which takes from all of them."""
        now_ms = int(datetime.now(UTC).timestamp() * 1000)
        accounts = tuple(
            BudgetAccount(
                account_of(self.organization_id, alike[0], user), define_windows(alike, now_ms), True
            )
            for alike in accounts_of(self.budgets)
        )
        call = self.world.reserve(10, user=user, budgets=accounts, money=money, budget_tokens=10)
        assert call.verdict is Verdict.ADMITTED
        return call

    def held(self, budget: Budget) -> tuple[int, int]:
        """What is used and held of it, of Ada's own where it is of each."""
        live = self.live(budget, digest("ada") if budget.each else "")
        assert live is not None
        return live.used, live.held

    def used_by_ada(self) -> tuple[int, ...]:
        """The day's money, tokens, and Ada's requests."""
        return tuple(self.held(one)[0] for one in self.budgets)

    async def rebuilt(self, *, went_on: bool = True, unread: bool = False) -> int | None:
        """How many accounts are written, by data that went on beside its rows; `unread`: too much waits."""
        backend = self.backend
        target = Unread(backend.wire) if unread else backend.counters
        marker = self.world.client.get(keys.marker(self.world.p))
        assert isinstance(marker, bytes)
        async with backend.engine.connect() as connection:
            ids = [*await connection.scalars(text("SELECT id FROM organization"))]
            organizations = await definitions.organizations(connection, ids)
        return await budget_rebuild.BudgetRebuild(BudgetUses(backend.engine), target).rebuild(
            self.world.p, marker, organizations, went_on=went_on
        )

    def take_up_layout(self) -> None:
        """Have the partition written in today's layout, as once all programs read it."""
        marker = keys.marker(self.world.p)
        self.world.client.set(marker, packing.marker(*packing.read_marker(self.world.get(marker))))

    async def verify_again(self) -> int:
        """As after a restart of Redis; how many accounts of the partition were written."""
        for partition in range(PARTITIONS):
            self.world.client.set(keys.marker(partition), packing.marker(b"o" * 40, 1, 1))
        self.backend.verifier._vouched = b""
        done = {one.partition: one for one in await self.backend.verify()}
        return done[self.world.p].rebuilt


@pytest.fixture
async def kept(valkey: str, migrated: str) -> AsyncIterator[BudgetWorld]:
    async with backend_at(valkey, migrated) as backend:
        world = await backend.settle_in(1000)
        said = (("money", "day", None), ("tokens", "total", None), ("requests", "month", "user"))
        for unit, interval, each in said:
            await backend.made(
                "budgets", organization_id=world.caller.organization_id, name=f"{unit} {interval}",
                unit=unit, amount=Decimal(5) if unit == "money" else 1000, interval=interval, each=each,
            )  # fmt: skip
        await backend.push()
        found = await BudgetUses(backend.engine).budgets([world.caller.organization_id])
        yield BudgetWorld(backend, world, tuple(found[world.caller.organization_id]))


class Unread(KeeperCounters):
    """Counters of which more waits than is looked at."""

    async def waiting(self, partition: int, mark: bytes) -> list[bytes] | None:
        return await super().waiting(partition, mark, most=-1)


def digest(value: str) -> str:
    return sha256(value.encode()).hexdigest()[:24]


def reconciler_of(backend: Backend) -> Reconciler:
    return Reconciler(
        backend.counters, Accounts(backend.engine), ReconciliationResults(backend.engine, partition_of),
        lambda: datetime.now(UTC), partition_of=partition_of, look_again_s=0.01,
    )  # fmt: skip


async def compared(kept: BudgetWorld) -> list[tuple[str, str, int]]:
    row: Any = await reconciler_of(kept.backend).run_now()
    return [(item["account"], item["kind"], item["difference"]) for item in row["items"]]


async def endless(kept: BudgetWorld, each: str) -> Budget:
    """A budget of tokens without an end, for each of a kind; of four who used 100, silent for some days."""
    organization_id = kept.world.caller.organization_id
    await kept.backend.made(
        "budgets", organization_id=organization_id, name=each, unit="tokens", amount=500,
        interval="total", each=each,
    )  # fmt: skip
    await kept.backend.push()
    await kept.backend.flush()
    found = await BudgetUses(kept.backend.engine).budgets([organization_id])
    [budget] = [one for one in found[organization_id] if one.name == each]
    with connected(kept.backend.database, autocommit=True) as connection:
        for value, days in (("0" * 24, 0), ("1" * 24, 29), ("2" * 24, 32), ("3" * 24, 500)):
            connection.execute(
                "INSERT INTO budget_use (budget_id, start, value, used, moved_at)"
                " VALUES (%s, 'epoch', %s, 100, now() - make_interval(days => %s))",
                (budget.id, value, days),
            )
    return budget


# --- rebuilt ----------------------------------------------------------------------------


@pytest.mark.parametrize(("each", "there"), [("user", [100] * 4), ("session", [100, 100, None, None])])
async def test_an_emptied_redis_keeps_silent_users_without_a_place(
    kept: BudgetWorld, each: str, there: list[int | None]
) -> None:
    budget = await endless(kept, each)
    kept.world.client.flushall()
    await kept.backend.verify()
    kept.world = kept.world.again()
    found = [kept.live(budget, str(number) * 24) for number in range(4)]
    assert [one and one.used for one in found] == there
    index = keys.each_accounts(kept.world.p, kept.name(budget, ADA))
    assert kept.world.client.zcount(index, kept.world.now_ms(), "+inf") == 2
    assert kept.world.client.zcard(index) == sum(one is not None for one in there)
    ends = [
        kept.world.client.pttl(keys.budget_account(kept.world.p, kept.name(budget, str(number) * 24)))
        for number in range(2)
    ]
    assert all(one > 0 for one in ends) if each == "session" else ends == [-1, -1]


async def test_an_emptied_redis_has_what_rows_say(kept: BudgetWorld) -> None:
    kept.use(5)
    kept.use(9, BOB)
    await kept.backend.flush()
    kept.world.client.flushall()
    await kept.backend.verify()
    kept.world = kept.world.again()
    assert kept.used() == [14, 14, 1, 1]
    day, _, each = kept.budgets
    live, somebodys = kept.live(day), kept.live(each, ADA)
    assert live is not None
    assert somebodys is not None
    now_ms = int(datetime.now(UTC).timestamp() * 1000)
    assert (live.limit, live.held, live.flags) == (5 * 10**9, 0, 9)
    assert (live.start, live.next, live.after) == window_bounds("day", "UTC", 1, now_ms)
    name = keys.budget_account(kept.world.p, kept.name(each, ADA))
    assert kept.world.client.pttl(name) > somebodys.next - now_ms
    assert kept.world.client.pttl(keys.budget_account(kept.world.p, kept.name(day))) == -1
    index = keys.each_accounts(kept.world.p, kept.name(each, ADA))
    assert sorted(kept.world.client.zrange(index, 0, -1)) == [ADA.encode(), BOB.encode()]


async def test_emptied_redis_has_raises_and_overrides_of_single_owners_again(kept: BudgetWorld) -> None:
    each = kept.budgets[2]
    for user in (ADA, BOB, CAY):
        kept.use(5, user)
    await kept.backend.flush()
    with connected(kept.backend.database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO budget_raise (budget_id, value, name, amount, until, reason)"
            " VALUES (%s, %s, 'ada', 2000, now() + interval '1 day', 'a fair')",
            (each.id, ADA),
        )
        connection.execute(
            "INSERT INTO budget_override (budget_id, value, name, amount) VALUES (%s, %s, 'bob', 7), (%s, %s, 'cay', NULL)",
            (each.id, BOB, each.id, CAY),
        )
    kept.world.client.flushall()
    await kept.backend.verify()
    kept.world = kept.world.again()
    live = [kept.live(each, user) for user in (ADA, BOB, CAY)]
    assert [one and (one.limit, one.used, one.flags & FLAG_ENFORCE) for one in live] == [
        (2000, 1, FLAG_ENFORCE), (7, 1, FLAG_ENFORCE), (INTEGER_MAX, 1, 0),
    ]  # fmt: skip
    # A gateway learns it from the terms, which calls go by.
    raw = kept.world.client.get(keys.organization_terms(kept.organization_id))
    assert isinstance(raw, bytes)
    told = {one.id: (one.raises, one.overrides) for one in decode_terms(raw).budgets}
    raises, overrides = told[each.id]
    assert {owner: own.amount for owner, own in raises.items()} == {ADA: 2000}
    assert overrides == {BOB: (7, 0), CAY: (None, 0)}
    assert [of for id_, of in told.items() if id_ != each.id] == [({}, {})] * 2


PAUSES_DAYS = (0, 1 / 24, 1, 8, 29, 32, 100, 400, 800)


def begins(interval: str, at: datetime) -> datetime:
    """When the window at a moment began, in UTC."""
    day = at.replace(hour=0, minute=0, second=0, microsecond=0)
    return {
        "hour": at.replace(minute=0, second=0, microsecond=0), "day": day,
        "week": day - timedelta(days=day.weekday()), "month": day.replace(day=1),
        "quarter": day.replace(day=1, month=(day.month - 1) // 3 * 3 + 1),
        "year": day.replace(day=1, month=1), "total": EPOCH,
    }[interval]  # fmt: skip


async def test_no_window_that_runs_is_forgotten_however_long_nobody_calls(kept: BudgetWorld) -> None:
    """Of every interval, kind and pause: behind an emptied Redis, and for as long as that remembers it."""
    organization_id, now = kept.world.caller.organization_id, datetime.now(UTC)
    for each in EACH:
        for interval in INTERVALS:
            await kept.backend.made(
                "budgets", organization_id=organization_id, name=f"{each} {interval}", unit="tokens",
                amount=500, interval=interval, model=f"of-{interval}", each=each,
            )  # fmt: skip
    await kept.backend.push()
    found = (await BudgetUses(kept.backend.engine).budgets([organization_id]))[organization_id]
    budgets = [one for one in found if one.model]
    with connected(kept.backend.database, autocommit=True) as connection:
        for budget in budgets:
            for at, days in enumerate(PAUSES_DAYS):
                moved = now - timedelta(days=days)
                connection.execute(
                    "INSERT INTO budget_use (budget_id, start, value, used, moved_at)"
                    " VALUES (%s, %s, %s, 7, %s)",
                    (budget.id, begins(budget.interval, moved), str(at) * 24, moved),
                )
    kept.world.client.flushall()
    await kept.backend.verify()
    kept.world, later = kept.world.again(), datetime.now(UTC)
    for budget in (one for one in budgets if begins(one.interval, now) == begins(one.interval, later)):
        for at, days in enumerate(PAUSES_DAYS):
            moved = now - timedelta(days=days)
            runs = begins(budget.interval, moved) == begins(budget.interval, now)
            ends_unused = (budget.each, budget.interval) == ("session", "total")
            until = begins("day", moved) + timedelta(days=EACH_UNUSED_DAYS + 1)
            name = kept.name(budget, str(at) * 24)
            live = kept.live(budget, str(at) * 24)
            remembered = kept.world.client.pexpiretime(keys.budget_account(kept.world.p, name))
            known = (budget.each, budget.interval, days)
            if not runs or (ends_unused and until <= now):
                assert live is None, known
                continue
            assert live is not None, known
            assert live.used == 7, known
            place = kept.world.client.zscore(keys.each_accounts(kept.world.p, name), str(at) * 24)
            if budget.interval == "total":
                assert place == ms_of(until), known
                assert remembered == (ms_of(until) if ends_unused else -1), known
            else:
                assert remembered == place == live.next + DAY_MS, known
                assert begins(budget.interval, moment_of(live.next)) > begins(budget.interval, now), known


async def test_what_is_right_is_left_alone(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    # the one account of both plain budgets, and Ada's
    assert await kept.verify_again() == 2
    assert await kept.verify_again() == 0
    kept.use(3)
    assert await kept.verify_again() == 2
    assert kept.used() == [8, 14, 2, None]
    await kept.backend.flush()
    assert await kept.verify_again() == 0


async def test_older_data_comes_to_rows_and_what_waits(kept: BudgetWorld) -> None:
    kept.use(5)
    kept.use(9, BOB)
    await kept.backend.flush()
    await kept.verify_again()
    day, _, each = kept.budgets
    kept.put(day, 1)
    kept.put(each, 70, BOB)
    kept.use(30)
    assert await kept.verify_again() == 2
    # What is more than rows know of may be known to the counters alone, unless these went on.
    assert kept.used() == [44, 21, 2, 70]
    assert await kept.rebuilt() == 1
    assert kept.used() == [44, 21, 2, 1]
    await kept.backend.flush()
    assert await kept.verify_again() == 0


async def test_somebody_of_whom_no_row_speaks_has_used_nothing(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    each = kept.budgets[2]
    name = keys.budget_account(kept.world.p, kept.name(each, BOB))
    kept.world.client.copy(keys.budget_account(kept.world.p, kept.name(each, ADA)), name)
    kept.world.client.zadd(keys.each_accounts(kept.world.p, kept.name(each, BOB)), {BOB: 10**13})
    assert kept.used()[3] == 1
    assert await kept.rebuilt() == 1
    assert kept.used() == [5, 7, 1, 0]


async def test_what_is_set_aside_is_counted_before_it_is_stored(kept: BudgetWorld) -> None:
    stop(kept.backend.database, kept.world.p, kept.organization_id, kept.world.caller.tenant_id)
    kept.use(5, flags=1, seq=1, cycle=1, amount=1, remaining=999, used=1)
    await kept.backend.flusher.flush()
    assert kept.world.client.xlen(keys.outbox(kept.world.p)) == 0
    await kept.verify_again()
    assert kept.used() == [5, 7, 1, None]


async def test_dead_letters_are_counted(kept: BudgetWorld) -> None:
    packed = kept.use(5)
    with connected(kept.backend.database, autocommit=True) as connection:
        connection.execute(
            "INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id)"
            " VALUES (%s, '1-1', %s, 'a test', %s)",
            (kept.world.p, packed, kept.organization_id),
        )
    await kept.backend.flush()
    await kept.verify_again()
    assert kept.used() == [10, 14, 2, None]


async def test_where_too_much_waits_nothing_is_taken_away(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    day, total, _ = kept.budgets
    kept.put(day, 50)
    assert await kept.rebuilt(unread=True) == 0
    kept.put(total, 1)
    assert await kept.rebuilt(unread=True) == 1
    assert kept.used()[1] == 7


async def test_what_a_newer_version_has_stored_is_never_written_over(kept: BudgetWorld) -> None:
    """However much of it there is: more than is counted, here."""
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    day, _, each = kept.budgets
    for number in range(NAMES_MAX):
        kept.backend.counters.left_alone.note("account", str(number), "a test")
    name = keys.budget_account(kept.world.p, kept.name(day))
    newer = bytes([LAYOUT + 1]) + (kept.world.get(name) or b"")[1:] + bytes(24)
    kept.world.client.set(name, newer)
    kept.put(each, 0, ADA)
    assert await kept.rebuilt() == 1
    adas = kept.live(each, ADA)
    assert adas is not None
    assert (kept.world.get(name), adas.used) == (newer, 1)
    look = await kept.backend.counters.look(kept.world.p, b"", [kept.name(day)])
    assert look is None  # nothing can be said of it


async def test_a_call_in_flight_holds_again_what_it_held(kept: BudgetWorld) -> None:
    call, ended = kept.reserve(300), kept.reserve(20)
    ended.settle(money=9, budget_tokens=7)
    await kept.backend.flush()
    day, _, each = kept.budgets
    names = [keys.budget_account(kept.world.p, kept.name(day))]
    names.append(keys.budget_account(kept.world.p, kept.name(each, digest("ada"))))
    kept.world.client.delete(*names)
    assert await kept.verify_again() == 2
    kept.world.run_id = kept.backend.wire.run_id
    assert [kept.held(one) for one in kept.budgets] == [(9, 300), (7, 10), (1, 1)]
    call.settle(money=40, budget_tokens=8)
    assert [kept.held(one) for one in kept.budgets] == [(49, 0), (15, 0), (2, 0)]
    assert await kept.verify_again() == 0
    await kept.backend.flush()
    assert await compared(kept) == []


async def test_what_comes_late_after_a_loss_counts_once(kept: BudgetWorld) -> None:
    call = kept.reserve(300)
    kept.reserve(20).settle(money=9, budget_tokens=7)
    backend, client = kept.backend, kept.world.client
    await backend.flush()
    client.flushall()
    await backend.verify()
    assert call.settle(money=40, budget_tokens=8) is SettleResult.UNKNOWN
    terms, verified = keys.organization_terms(kept.organization_id), client.get(keys.verified(0))
    defined = client.get(terms)
    client.delete(terms, keys.verified(0))
    with pytest.raises(CountersUnavailable):  # what budgets there are is not known yet
        await backend.late_settlements.drain()
    assert kept.used_by_ada() == (9, 7, 1)
    client.mset({terms: defined, keys.verified(0): verified})
    assert await backend.late_settlements.drain() == 1
    assert kept.used_by_ada() == (49, 15, 2)
    assert await kept.verify_again() == 0
    await backend.flush()
    assert await backend.late_settlements.drain() == 0
    assert await kept.verify_again() == 0
    assert await compared(kept) == []


# --- compared ---------------------------------------------------------------------------


async def test_what_is_full_is_told_as_full(kept: BudgetWorld) -> None:
    """Numbers in the counters are exact up to 2^53: tokens count no further, and nothing wraps."""
    for call in [kept.reserve(1) for _ in range(3)]:
        call.settle(money=1, budget_tokens=INTEGER_MAX // 2)
    await kept.backend.flush()
    assert kept.used_by_ada()[1] == INTEGER_MAX
    assert await compared(kept) == [(f"budget:{kept.budgets[1].id}", "full", 0)]
    assert await kept.verify_again() == 0
    kept.put(kept.budgets[1], 5)
    assert await compared(kept) == [(f"budget:{kept.budgets[1].id}", "drift", 5 - INTEGER_MAX)]
    assert await kept.verify_again() == 1
    assert kept.used_by_ada()[1] == INTEGER_MAX


async def test_money_beyond_2_to_53_is_counted_compared_and_rebuilt_exactly(kept: BudgetWorld) -> None:
    kept.take_up_layout()
    for call in [kept.reserve(1) for _ in range(3)]:
        call.settle(money=INTEGER_MAX - 1, budget_tokens=1)
    await kept.backend.flush()
    used = 3 * (INTEGER_MAX - 1)
    assert kept.used_by_ada()[0] == used
    assert await compared(kept) == []
    kept.put(kept.budgets[0], 5)
    assert await compared(kept) == [(f"budget:{kept.budgets[0].id}", "drift", 5 - used)]
    assert await kept.verify_again() == 1
    assert (kept.used_by_ada()[0], await compared(kept)) == (used, [])


@pytest.mark.parametrize("is_known", [True, False])
async def test_a_lost_redis_counts_money_beyond_2_to_53_as_before(kept: BudgetWorld, is_known: bool) -> None:
    """By a keeper that knows that all programs read today's layout, or by one that has only begun."""
    backend, client = kept.backend, kept.world.client
    kept.take_up_layout()
    for call in [kept.reserve(1) for _ in range(3)]:
        call.settle(money=INTEGER_MAX - 1, budget_tokens=1)
    await backend.flush()
    client.flushall()
    if is_known:
        backend.counters.takes_up = lambda: True
    else:  # no older program counts to the budget's limit
        await backend.write("budgets", "change", kept.budgets[0].id, amount=Decimal(10**9))
    await backend.verify()
    assert (kept.used_by_ada()[0], await compared(kept)) == (3 * (INTEGER_MAX - 1), [])


async def test_drift_is_told_with_its_budget(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    assert await compared(kept) == []
    day, _, each = kept.budgets
    kept.put(day, 9)
    kept.put(each, 0, ADA)
    assert await compared(kept) == [
        (f"budget:{day.id}", "drift", 4),
        (f"budget:{each.id}:{ADA}", "drift", -1),
    ]
    row: Any = await reconciler_of(kept.backend).run_now(repair=True)
    assert (row["drift_tokens"], row["drift_credits"]) == (0, 0)
    assert kept.used()[0] == 9
    assert kept.backend.rows("select * from known_drift") == []


async def test_what_waits_is_no_drift(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    kept.use(9)
    day, total, each = kept.budgets
    kept.put(day, 14)
    kept.put(total, 14)
    kept.put(each, 2, ADA)
    assert await compared(kept) == []


async def test_what_is_not_there_is_told(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    day, total, each = kept.budgets
    assert await compared(kept) == [
        (f"budget:{day.id}", "drift", -5), (f"budget:{total.id}", "drift", -7),
        (f"budget:{each.id}:{ADA}", "drift", -1),
    ]  # fmt: skip


async def test_an_amount_without_end_that_was_forgotten_is_told_and_taken_up(kept: BudgetWorld) -> None:
    budget = await endless(kept, "user")
    await kept.verify_again()
    name, quiet = (
        keys.budget_account(kept.world.p, kept.name(budget, value)) for value in ("0" * 24, "3" * 24)
    )
    kept.world.client.delete(quiet)
    older = kept.live(budget, "0" * 24)
    assert older is not None
    kept.world.client.set(name, pack_windows([older], 10**13), px=10**9)
    assert await compared(kept) == [(f"budget:{budget.id}:{'3' * 24}", "drift", -100)]
    assert (kept.world.client.pttl(name), kept.world.client.pttl(quiet)) == (-1, -1)
    assert await compared(kept) == []
    kept.put(budget, 30, "3" * 24)
    assert await compared(kept) == [(f"budget:{budget.id}:{'3' * 24}", "drift", -70)]


async def test_what_never_stands_still_is_pending(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    look = kept.backend.counters.look

    async def moving(*asked: Any) -> Any:
        found = await look(*asked)
        kept.use(1)
        await kept.backend.flush()
        return found

    kept.backend.counters.look = moving  # type: ignore[method-assign]  # traffic between two looks
    comparison = budget_comparison.BudgetComparison(
        Accounts(kept.backend.engine), kept.backend.counters, partition_of, 0
    )
    found = await comparison.compare([kept.organization_id])
    assert (found.checked, found.pending, found.items) == (3, 3, ())


async def test_traffic_is_no_drift(kept: BudgetWorld) -> None:
    kept.use(5)
    await kept.backend.flush()
    await kept.verify_again()
    done: Callable[[], bool] = (task := asyncio.create_task(_called(kept, 40))).done
    found: list[tuple[str, str, int]] = []
    while not done():
        found += await compared(kept)
        await asyncio.sleep(0)
    await task
    assert [one for one in found if one[0].startswith("budget")] == []


async def _called(kept: BudgetWorld, count: int) -> None:
    """Calls as the scripts count them: account and entry in one step, stored now and then."""
    day, total, each = kept.budgets
    for number in range(count):
        with kept.world.client.pipeline(transaction=True) as pipe:
            windows = {}
            for budget, value, more in ((day, "", 5), (total, "", 7), (each, ADA, 1)):
                name = keys.budget_account(kept.world.p, kept.name(budget, value))
                known = windows.get(name) or unpack_windows(kept.world.get(name) or b"")
                windows[name] = [
                    replace(one, used=one.used + more) if one.budget_id == budget.id else one for one in known
                ]
            for name, changed in windows.items():
                pipe.set(name, pack_windows(changed))
            client, kept.world.client = kept.world.client, pipe
            kept.use(5)
            kept.world.client = client
            pipe.execute()
        if number % 3 == 0:
            await kept.backend.flush()
        await asyncio.sleep(0)
