"""A Redis that forgets what it acknowledged: with the workers' logs nothing is lost, nothing is doubled."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from gateway.background.verifying.loss_counter import LossCounter
from gateway.core.accounts.holds import Loss
from gateway.core.model import PARTITIONS, Service, SettleResult
from gateway.counters.settlement_log.log import LogLimits
from persistence.keeper.gauges import watch_gauges
from persistence.keeper.sweeps import Losses
from tests.background.backend import Backend, backend_at, parted, rejoined
from tests.builders import CHAT, CREDITS, ONE_TIME, UNITS, Call, World
from tests.conftest import ValkeyServer
from tests.search import histories
from tests.waiting import eventually
from tests.worker import Worker, worker_at

START = Callable[..., ValkeyServer]
BOOKED = """
select request_id::text as request, amount from token_ledger where transaction_type = 'consume'
union all select request_id::text, credits_used from credit_transaction
union all select request_id::text, usage_amount from feature_usage"""


QUICK = LogLimits(batch_s=0.0)


@dataclass(slots=True)
class Scene:
    """A keeper, a worker, an account, and what the upstream counted."""

    server: ValkeyServer
    backend: Backend
    worker: Worker
    world: World
    folder: Path
    truth: dict[str, int] = field(default_factory=dict)

    async def settle(self, call: Call, tokens: int) -> SettleResult:
        """One complete answer."""
        settled = await self.worker.settle(call, tokens, credits=tokens, units=tokens)
        self.truth[call.id] = tokens
        return settled

    async def settle_some(self, count: int, service: Service = CHAT) -> None:
        for tokens in range(1, count + 1):
            await self.settle(self.world.reserve(need=tokens, service=service, credits_=tokens), tokens)

    def copy(self) -> Path:
        """The append-only file as it is now."""
        shutil.copytree(self.server.folder / "appendonlydir", self.folder / "copy")
        return self.folder / "copy"

    async def crash(self, older: Path | None = None) -> None:
        """Kill Redis; with `older` it comes back as it was then."""
        self.server.stop(signal.SIGKILL)
        await parted(self.backend.wire, self.worker.wire)
        if older is not None:
            shutil.rmtree(self.server.folder / "appendonlydir")
            shutil.copytree(older, self.server.folder / "appendonlydir")
        self.server.start()
        await rejoined(self.backend.wire, self.worker.wire)
        self.world = self.world.again()

    async def recover(self) -> None:
        """Everything the keeper and the worker do by themselves."""
        self.backend.verifier._vouched = b""
        await self.backend.verify()
        await self.backend.push()
        await self.worker.log.written()
        await self.worker.look()
        for _ in range(3):
            await self.backend.flush()
            await self.backend.late_settlements.drain()
        await self.backend.flush()

    def check(self) -> None:
        """Every request that was answered in full is in the books once, at what it used."""
        rows = self.backend.rows(BOOKED)
        assert Counter((row["request"], int(row["amount"])) for row in rows) == Counter(self.truth.items())
        self.check_accounts()

    async def losses(self) -> list[Loss]:
        """What was forgotten, counted once everything has had its time."""
        known = self.backend.counters.moved
        return await Losses(self.backend.engine, quiet_s=0).count(known, range(PARTITIONS))

    def check_accounts(self) -> None:
        """Nothing is held, nothing waits, and counters and ledger say the same."""
        assert self.backend.rows("select * from quarantine") == []
        assert self.world.late() == []
        tenant, organization = self.world.tenant, self.world.organization
        assert (tenant.held, tenant.inflight, organization.inflight) == (0, 0, 0)
        assert (organization.credits_held, organization.spend_held, self.world.deadlines()) == (0, 0, {})
        (quota,) = self.backend.rows(
            "select tokens_used, last_seq from tenant_quota where tenant_id = %s", tenant.tenant_id
        )
        (account,) = self.backend.rows(
            "select credit_balance, credit_last_seq, spend_last_seq from organization where id = %s",
            organization.organization_id,
        )
        assert (quota["tokens_used"], quota["last_seq"]) == (tenant.used, tenant.seq)
        assert tuple(account.values()) == (
            organization.balance, organization.credit_seq, organization.spend_seq,
        )  # fmt: skip


@asynccontextmanager
async def scene_at(server: ValkeyServer, database: str, folder: Path) -> AsyncIterator[Scene]:
    async with backend_at(server.url, database) as backend:
        world = await backend.settle_in(100_000)
        await backend.made(
            "credit-additions", organization_id=world.caller.organization_id, credits_added=9000
        )
        await backend.push()
        async with worker_at(server.url, folder / "settlements", bounds=QUICK) as worker:
            yield Scene(server, backend, worker, world, folder)


async def forgotten(scene: Scene, service: Service) -> None:
    """Some of what is forgotten is in the ledger already, some was on its way, some holds come back."""
    world = scene.world
    await scene.settle_some(3, service)
    calls = [world.reserve(need=5, service=service, credits_=5, user="ann") for _ in range(4)]
    copy = scene.copy()
    for call in calls[:2]:
        await scene.settle(call, 5)
    await scene.settle_some(3, service)
    await scene.backend.flush()
    await scene.settle(calls[2], 5)
    await scene.settle_some(3, service)
    await scene.crash(copy)
    await scene.recover()
    assert await scene.settle(calls[3], 5) is SettleResult.DONE
    await scene.recover()
    assert scene.world.user("ann").inflight == 0


async def test_an_older_append_only_file_costs_nothing(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        await forgotten(scene, CREDITS)
        scene.check()
        assert [(one.recovered, one.lost) for one in await scene.losses()] == [(4, 0)]
        assert await scene.losses() == []


async def test_what_is_paid_once_is_paid_once_whatever_is_forgotten(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        await forgotten(scene, ONE_TIME)
        scene.check_accounts()
        assert len(scene.backend.rows(BOOKED)) == 1


async def test_a_first_payment_that_is_forgotten_is_made_by_somebody_once(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        copy = scene.copy()
        await scene.settle_some(3, ONE_TIME)
        await scene.crash(copy)
        await scene.recover()
        scene.check_accounts()
        assert len(scene.backend.rows(BOOKED)) == 1


async def test_an_emptied_redis_costs_nothing(
    valkey_server: ValkeyServer, valkey: str, migrated: str, tmp_path: Path
) -> None:
    """The same server, the same run id: only the epoch tells."""
    assert valkey
    async with scene_at(valkey_server, migrated, tmp_path) as scene:
        await scene.settle_some(3)
        await scene.backend.flush()
        await scene.settle_some(3)
        open_call = scene.world.reserve(need=5)
        scene.world.client.flushall()
        assert await scene.settle(open_call, 5) is SettleResult.SPOOLED
        await scene.recover()
        scene.check()


async def test_redis_and_the_worker_killed_together_lose_nothing_that_was_written(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        copy = scene.copy()
        await scene.settle_some(5)
        await scene.worker.log.written()
        scene.worker.die()
        await scene.crash(copy)
        async with worker_at(server.url, tmp_path / "settlements", bounds=QUICK) as scene.worker:
            await scene.recover()
            scene.check()


async def test_what_nobody_can_bring_back_is_counted_exactly(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    """One worker dies with Redis before it could write; another knows of what came later."""
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        tenant_id = scene.world.caller.tenant_id
        await scene.settle_some(2)
        await scene.backend.flush()
        copy, first = scene.copy(), scene.world.tenant.seq
        async with worker_at(server.url, tmp_path / "settlements", bounds=QUICK) as other:
            await scene.worker.write_no_more()
            await scene.settle_some(3)
            lost = list(scene.truth)[-3:]
            scene.worker.die()
            await scene.backend.write("tenants", "recharge", tenant_id, amount=50)
            await scene.backend.push()
            scene.worker = other
            await scene.settle_some(2)
            await scene.crash(copy)
            await scene.recover()
        for one in lost:
            del scene.truth[one]
        scene.check()
        said: list[dict[str, object]] = []
        await Losses(scene.backend.engine).count(scene.backend.counters.moved, range(PARTITIONS))
        assert (await watch_gauges(scene.backend.engine))["lost_events_pending"] == 3
        keepers = [counter_of(scene, said), counter_of(scene, said)]
        for _ in range(2):
            await asyncio.gather(*(one.count() for one in keepers))
        # What keepers report may be added up: the one that counted it has it.
        assert sorted(one.lost for one in keepers) == [0, 3]
        assert (await watch_gauges(scene.backend.engine))["lost_events_pending"] == 0
        loss = Loss(f"tenant:{tenant_id}", 1, first + 1, first + 6, recovered=3, lost=3, more=3)
        assert said == [{**asdict(loss), "level": "error"}]


async def test_what_is_forgotten_again_before_a_keeper_looked_is_no_loss(
    own_valkey: START, migrated: str, tmp_path: Path
) -> None:
    """What one worker sent again is forgotten too; the other worker knows of what came later."""
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        await scene.settle_some(2)
        await scene.backend.flush()
        copy, worker = scene.copy(), scene.worker
        async with worker_at(server.url, tmp_path / "others", bounds=QUICK) as other:
            await scene.settle_some(3)
            scene.worker = other
            await scene.settle_some(1)
            scene.worker = worker
            for _ in range(2):
                await scene.crash(copy)
                await eventually(lambda: other.wire.run_id == scene.backend.wire.run_id)
                await scene.backend.verify()
                await worker.log.written()
                await worker.look()
                assert len(scene.world.late()) == 5
            await other.log.written()
            await other.look()
            await scene.recover()
        scene.check()
        assert [(one.recovered, one.lost) for one in await scene.losses()] == [(4, 0)]


def counter_of(scene: Scene, said: list[dict[str, object]]) -> LossCounter:
    """The count of one keeper."""
    evidence, losses = (scene.backend.counters.moved,), Losses(scene.backend.engine, quiet_s=0)

    async def at_rest() -> Collection[int]:
        return range(PARTITIONS)

    return LossCounter(losses, evidence, lambda _, **facts: said.append(facts), at_rest=at_rest)


@pytest.mark.parametrize("seed", range(histories(1)))
async def test_any_mix_of_losses_books_each_call_once(
    own_valkey: START, migrated: str, tmp_path: Path, seed: int
) -> None:
    dice = random.Random(seed)
    server = own_valkey("--appendonly", "yes", "--appendfsync", "always")
    async with scene_at(server, migrated, tmp_path) as scene:
        copy, calls = scene.copy(), list[Call]()
        for _ in range(20):
            match dice.choice(
                ["hold", "hold", "settle", "settle", "settle", "flush", "copy", "crash", "empty"]
            ):
                case "hold":
                    calls.append(scene.world.reserve(need=5, service=dice.choice([CHAT, CREDITS, UNITS])))
                case "settle" if calls:
                    await scene.settle(calls.pop(dice.randrange(len(calls))), dice.randint(1, 9))
                case "flush":
                    await scene.backend.flush()
                case "copy":
                    shutil.rmtree(copy)
                    copy = scene.copy()
                case "crash":
                    await scene.crash(copy if dice.random() < 0.7 else None)
                    await scene.recover()
                case "empty":
                    scene.world.client.flushall()
                    await scene.recover()
        for call in calls:
            await scene.settle(call, 3)
        await scene.recover()
        scene.check()
