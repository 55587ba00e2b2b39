"""A keeper that wakes with entries of a history that Redis has forgotten stores none of them."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from itertools import count
from typing import Any

import pytest

from gateway.admin.http import bodies
from gateway.admin.resources.budgets import BudgetCreate
from gateway.background.flushing.flusher import Flusher
from gateway.background.flushing.late import resolve_late
from gateway.background.timed.pusher import Pusher
from gateway.core.accounts.definitions import ControlWrite
from gateway.core.accounts.flush_batch import Batch, FlushReport, History, Judged
from gateway.core.billing.events import request_of
from gateway.core.integrity.recovery import NewestWrite
from gateway.counters.keeper.client import Client
from gateway.counters.keeper.outbox import Outbox
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable, StoreUnavailable
from gateway.run.timed_loops import charge
from persistence.keeper.definitions import Pushes
from persistence.ledger.writer import LedgerWriter
from tests.background.backend import Backend, backend_at, parted, rejoined
from tests.background.test_zones import compared
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.connections import connected
from tests.persistence.scenario import broken
from tests.search import histories
from tests.waiting import eventually

START = Callable[..., ValkeyServer]


class Frozen:
    """A writer whose process is stopped between reading a batch and writing it."""

    def __init__(self, writer: LedgerWriter) -> None:
        self._writer = writer
        self.stopped, self.woken = asyncio.Event(), asyncio.Event()

    async def write(self, batch: Batch, history: History) -> FlushReport:
        self.stopped.set()
        await self.woken.wait()
        return await self._writer.write(batch, history)

    async def epochs(self) -> Mapping[int, int]:
        return await self._writer.epochs()


async def set_back(server: ValkeyServer, houses: list[Backend]) -> None:
    """Kill Redis and start it with the append-only file that was copied."""
    server.stop(signal.SIGKILL)
    wires = [backend.wire for backend in houses]
    await parted(*wires)
    shutil.rmtree(server.folder / "appendonlydir")
    shutil.copytree(server.folder / "copy", server.folder / "appendonlydir")
    server.start()
    await rejoined(*wires)


async def emptied(server: ValkeyServer, houses: list[Backend]) -> None:
    """Empty Redis while it runs: the same server, another history."""
    with houses[0].client() as client:
        client.flushall()


@pytest.mark.parametrize("stored_before", [True, False], ids=["stored before", "stored after"])
@pytest.mark.parametrize("forget", [set_back, emptied])
async def test_a_keeper_that_slept_through_a_rollback_stops_no_account(
    own_valkey: START,
    migrated: str,
    forget: Callable[[ValkeyServer, list[Backend]], Awaitable[None]],
    stored_before: bool,
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as keeper, backend_at(server.url, migrated) as other:
        world = await keeper.settle_in(1000)
        await keeper.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        world.reserve(need=300).settle(tokens=300)

        frozen = Frozen(other.writer)
        sleeping = Flusher(Outbox(Client(other.wire)), frozen, lambda _: None)
        passing = asyncio.create_task(sleeping.flush())
        await frozen.stopped.wait()
        await forget(server, [keeper, other])
        await keeper.verify()
        world = world.again()
        world.reserve(need=50).settle(tokens=50)

        if stored_before:
            await keeper.flush()
        frozen.woken.set()
        with suppress(CountersUnavailable):
            await passing
        await keeper.flush()

        assert keeper.rows("select * from quarantine") == []
        rows = [(1, "reset", 1000, 1000), (2, "consume", -50, 950)]
        assert keeper.ledger(world.caller.tenant_id) == rows

        # It goes on from what is there now.
        world.reserve(need=20).settle(tokens=20)
        for _ in range(3):
            with suppress(CountersUnavailable):
                await sleeping.flush()
        assert keeper.ledger(world.caller.tenant_id) == [*rows, (3, "consume", -20, 930)]


async def test_a_keeper_that_slept_through_a_rollback_posts_nothing_a_second_time(
    own_valkey: START, migrated: str
) -> None:
    """The queue has its entry again, and the id of what was posted is forgotten once it is a row."""
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with backend_at(server.url, migrated) as keeper, backend_at(server.url, migrated) as other:
        world = await keeper.settle_in(1000)
        call = world.reserve(need=300)
        world.client.delete(keys.hold(world.p, call.id))
        call.settle(tokens=300)
        await keeper.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        asleep = [resolve_late(one, None)[0] for one in await other.keeping.late(10)]
        assert len(asleep) == 1
        assert await keeper.late_settlements.drain() == 1
        await keeper.flush()

        await set_back(server, [keeper, other])
        await keeper.verify()
        with pytest.raises(CountersUnavailable):
            await other.keeping.end(asleep)
        await other.late_settlements.drain()
        await keeper.flush()
        rows = [(1, "reset", 1000, 1000), (2, "consume", -300, 700)]
        assert keeper.ledger(world.caller.tenant_id) == rows
        assert world.again().tenant.remaining == 700


# --- killed events ----------------------------------------------------------------------
# Events whose keeper, Redis or PostgreSQL is lost between two steps: each moves everything it moves once.
# An event is a row and an intent, a write to Redis, an outbox entry, rows. Each round loses something at
# one of these steps; then everything is delivered again, and what is there is compared with what was sent.


TOTAL, CREDITS, SETUP, EACH = 100_000, 10_000, 50, 3
PRICE = Decimal("0.25")
ROUNDS = 14


class KeeperKilled(Exception):
    """The keeper is gone."""


@dataclass
class Target:
    """The counters, lost at a step: before they were asked, or after they did it, once."""

    backend: Backend
    before: Exception | None = None
    behind: Exception | None = None

    async def newest_write(self) -> NewestWrite | None:
        return await self.backend.counters.newest_write()

    async def note_newest(self, write: NewestWrite) -> None:
        await self.backend.counters.note_newest(write)

    async def apply(self, write: ControlWrite) -> bool:
        error, self.before = self.before, None
        if error is not None:
            raise error
        done = await self.backend.counters.apply(write)
        error, self.behind = self.behind, None
        if error is not None:
            raise error
        return done


@dataclass
class Store:
    """The ledger, lost before it stored a batch, or after it did, once."""

    backend: Backend
    before: bool = False
    behind: bool = False

    async def write(self, batch: Batch, history: History) -> FlushReport:
        lost, self.before = self.before, False
        if lost:
            raise KeeperKilled
        report = await self.backend.writer.write(batch, history)
        lost, self.behind = self.behind, False
        if lost:
            raise KeeperKilled
        return report

    async def epochs(self) -> Mapping[int, int]:
        return await self.backend.writer.epochs()

    async def judged(self, partitions: Iterable[int]) -> Mapping[int, Judged]:
        return await self.backend.writer.judged(partitions)

    async def locked(self, partitions: Iterable[int]) -> frozenset[int]:
        return await self.backend.writer.locked(partitions)


@dataclass
class Scene:
    """An account, the events there are, and the rounds' own randomness."""

    backend: Backend
    world: World
    services: Mapping[str, str]
    chance: random.Random
    sent: list[dict[str, Any]] = field(default_factory=list)
    numbers: count[int] = field(default_factory=count)

    def some(self) -> list[dict[str, Any]]:
        """New events, and some that were sent before."""
        new = [self.event(kind) for kind in self.services for _ in range(self.chance.randint(0, 3))]
        again = self.chance.sample(self.sent, min(len(self.sent), 5))
        self.sent += new
        return self.chance.sample(both := new + again, len(both))

    def event(self, kind: str) -> dict[str, Any]:
        amount = self.chance.randint(1, 40)
        used = {"usage": {"input": amount}} if kind == "tokens" else {"units": amount}
        return {
            "id": str(next(self.numbers)), "source": "killed", "type": "use", "time": datetime.now(UTC),
            "subject": f"tenant:{self.world.caller.tenant_id}",
            "data": {"service": self.services[kind], **used},
        }  # fmt: skip

    async def deliver(self, events: Sequence[dict[str, Any]]) -> None:
        for at in range(0, len(events), 500):
            named = list(enumerate(events[at : at + 500]))
            written = await self.backend.write("events", "create", events=named, rejected=[])
            assert written.row["rejected"] == []

    async def push(self, target: Target) -> None:
        with suppress(KeeperKilled):
            await Pusher(Pushes(self.backend.engine), target).push_more()

    async def flush(self, store: Store) -> None:
        flusher = Flusher(Outbox(self.backend.counters), store, lambda _: None)
        with suppress(KeeperKilled, CountersUnavailable):
            await flusher.flush()
        with suppress(KeeperKilled, CountersUnavailable):
            await flusher.flush()  # a keeper's first reading of a partition only says under what it reads

    async def forget(self) -> None:
        """Everything in Redis is lost, and what PostgreSQL knows is written again."""
        self.world.client.flushall()
        await self.backend.verify()


async def between_row_and_intent(scene: Scene) -> None:
    """PostgreSQL ends the connection of a batch that has its rows, and no intent yet."""
    waiting = (
        "select pid from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock'"
    )
    with connected(scene.backend.database) as other:
        other.execute("lock table control_write in share mode")
        new = [scene.event(kind) for kind in scene.services]
        scene.sent += new
        delivering = asyncio.create_task(scene.deliver(new))
        with connected(scene.backend.database, autocommit=True) as looking:
            await eventually(lambda: looking.execute(waiting).fetchall())
            [(pid,)] = looking.execute(waiting).fetchall()
            looking.execute("select pg_terminate_backend(%s)", [pid])
        with pytest.raises(StoreUnavailable):
            await delivering


async def before_redis(scene: Scene) -> None:
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend, before=KeeperKilled()))


async def redis_away(scene: Scene) -> None:
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend, before=CountersUnavailable()))


async def behind_redis(scene: Scene) -> None:
    """The counters have it; nobody noted that."""
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend, behind=KeeperKilled()))


async def answer_of_redis_lost(scene: Scene) -> None:
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend, behind=CountersUnavailable()))


async def nobody_noted_and_stored(scene: Scene) -> None:
    """The counters have it, the rows are stored; the control write still waits."""
    await behind_redis(scene)
    await scene.flush(Store(scene.backend))


async def redis_forgets(scene: Scene) -> None:
    """What was applied, and noted so, is lost before it is a row."""
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend))
    await scene.forget()


async def before_commit(scene: Scene) -> None:
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend))
    await scene.flush(Store(scene.backend, before=True))


async def behind_commit(scene: Scene) -> None:
    """The rows are stored; the entries are still in the outbox, and come again."""
    await scene.deliver(scene.some())
    await scene.push(Target(scene.backend))
    await scene.flush(Store(scene.backend, behind=True))


async def redis_forgets_what_is_stored(scene: Scene) -> None:
    await behind_commit(scene)
    await scene.forget()


async def two_keepers(scene: Scene) -> None:
    await scene.deliver(scene.some())
    pushers = [scene.push(Target(scene.backend)) for _ in range(2)]
    await asyncio.gather(*pushers, scene.deliver(scene.some()))


FAULTS: list[Callable[[Scene], Awaitable[None]]] = [
    between_row_and_intent, before_redis, redis_away, behind_redis, answer_of_redis_lost,
    nobody_noted_and_stored, redis_forgets, before_commit, behind_commit, redis_forgets_what_is_stored,
    two_keepers,
]  # fmt: skip


async def set_up(backend: Backend, chance: random.Random) -> Scene:
    world = await backend.settle_in(TOTAL)
    owner = world.caller.organization_id
    models = {row["meter"]: row["id"] for row in backend.rows("select id, meter from business_model")}
    kinds: dict[str, dict[str, Any]] = {
        "credits": {"business_model_id": models["consumption"], "credits": EACH},
        "once": {
            "business_model_id": models["consumption"], "credits": SETUP, "service_type": "One-Time",
        },
        "units": {
            "business_model_id": models["pay_per_use"], "credits": 0,
            "pricing": {"tiers": [{"up_to": None, "unit_price": str(PRICE)}]},
        },
    }  # fmt: skip
    usual = {"service_type": "Pay-As-You-Go"}
    for kind, fields in kinds.items():
        await backend.made("services", **{**usual, "name": kind, "key": f"{kind}-{owner}", **fields})
    await backend.made("credit-additions", organization_id=owner, credits_added=CREDITS)
    for unit in ("tokens", "requests"):
        asked = {"organization_id": owner, "name": unit, "unit": unit, "amount": TOTAL, "interval": "total"}
        await backend.made("budgets", **bodies.check_body(BudgetCreate, asked))
    await backend.push()
    await backend.flush()
    return Scene(
        backend, world, {"tokens": "chat", **{kind: f"{kind}-{owner}" for kind in kinds}}, chance
    )  # fmt: skip


def booked(backend: Backend, table: str, amount: str, where: str = "true") -> Counter[tuple[str, int]]:
    rows = backend.rows(f"select request_id::text as request, {amount} as amount from {table} where {where}")
    return Counter((row["request"], row["amount"]) for row in rows)


@pytest.mark.parametrize("seed", range(1, 1 + histories(1)))
async def test_each_event_moves_everything_once_whatever_is_lost(
    valkey: str, migrated: str, seed: int
) -> None:
    chance = random.Random(seed)
    async with backend_at(valkey, migrated) as backend:
        scene = await set_up(backend, chance)
        for fault in chance.sample(FAULTS, len(FAULTS)) + chance.choices(FAULTS, k=ROUNDS - len(FAULTS)):
            await fault(scene)
            if chance.random() < 0.5:  # now and then all goes well between two of them
                await backend.push()
                await backend.flush()
        await scene.deliver(chance.sample(scene.sent, len(scene.sent)))
        assert await backend.push() == 0
        await backend.flush()
        await backend.verify()
        await scene.deliver(scene.sent)
        assert await backend.push() == 0
        await backend.flush()
        await agree(scene)


async def agree(scene: Scene) -> None:
    """The stored rows against the sent entries."""
    backend, world = scene.backend, scene.world
    owner = world.caller.organization_id
    of: dict[str, list[tuple[str, int]]] = {kind: [] for kind in scene.services}
    for event in scene.sent:
        kind = next(kind for kind, key in scene.services.items() if key == event["data"]["service"])
        used = event["data"].get("units") or event["data"]["usage"]["input"]
        of[kind].append((str(request_of("killed", event["id"])), used))
    tokens = sum(used for _, used in of["tokens"])
    units = sum(used for _, used in of["units"])
    credits_ = EACH * sum(used for _, used in of["credits"]) + (SETUP if of["once"] else 0)
    every = [request for kind in of.values() for request, _ in kind]
    # Ledgers and journal.
    assert booked(backend, "token_ledger", "amount", "transaction_type = 'consume'") == Counter(of["tokens"])
    assert booked(backend, "feature_usage", "usage_amount") == Counter(of["units"])
    paid = booked(backend, "credit_transaction", "credits_used")
    whole = Counter((request, EACH * used) for request, used in of["credits"])
    assert paid & whole == whole
    [once] = (paid - whole).elements()
    assert once[0] in dict(of["once"])
    assert once[1] == SETUP
    assert sorted(row["r"] for row in backend.rows("select request_id::text as r from call")) == sorted(every)
    # Accounts, in Redis and as stored.
    [quota] = backend.rows("select tokens_used, tokens_remaining from tenant_quota")
    assert (world.tenant.used, quota["tokens_used"], quota["tokens_remaining"]) == (
        tokens, tokens, TOTAL - tokens,
    )  # fmt: skip
    [stored] = backend.rows("select credit_balance from organization where id = %s", owner)
    assert (world.organization.balance, stored["credit_balance"]) == (CREDITS - credits_,) * 2
    assert world.organization.spent == units * int(PRICE * 1_000_000)
    # Budgets.
    used = {row["unit"]: row["used"] for row in backend.rows(
        "select b.unit, sum(u.used)::bigint as used"
        " from budget_use as u join budget as b on b.id = u.budget_id group by 1"
    )}  # fmt: skip
    assert used == {"tokens": tokens, "requests": len(every)}
    # What is owed.
    await charge(backend.store, datetime.now(UTC).date, [owner])
    [owed] = backend.rows("select sum(amount) as amount from charge where kind = 'usage'")
    assert owed["amount"] == units * PRICE
    # Every intent is done, and nothing contradicts itself.
    assert backend.rows("select verb, state from control_write where state <> 'done'") == []
    assert await broken(backend.database) == []
    assert await compared(backend) == []
