"""Runs after a loss: stored ones are there again, with what they used; those that ended stay so."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from gateway.core.accounts.budgets import CallAttributes
from gateway.core.accounts.call_budgets import OrganizationBudgets, with_runs
from gateway.core.accounts.runs import Run, read_run
from gateway.core.families.refusal import from_refused
from gateway.core.model import PARTITIONS, Refused, Settlement, Verdict
from gateway.counters.late import windows
from gateway.counters.redis import keys
from gateway.errors import RunEnded
from gateway.features.runs.opening import Runs
from persistence.keeper.verification import BudgetUses
from tests.background.backend import Backend, backend_at
from tests.builders import CHAT, Call, World, driven
from tests.waiting import eventually

NOBODYS = OrganizationBudgets(1, (), "USD").find(CallAttributes(7, 3, 1), 0)


def reason_of(call: Call) -> str:
    """The reason that the caller of a refused call hears."""
    assert isinstance(call.decision, Refused)
    return from_refused(call.decision).reason


@dataclass
class RunWorld:
    """A tenant whose callers open runs, before a keeper with rows."""

    backend: Backend
    world: World

    async def run(self, field: str, *, keep: bool = False) -> Run:
        """A run as a worker has it that knows none yet; it is kept where a call of it is admitted."""
        runs = Runs(self.backend.wire, time.monotonic, time.time, os.urandom)
        run = await driven(runs.find(self.world.caller, read_run(field)))
        if keep:
            await kept_by(runs, self.world, run)
        return run

    async def call(self, field: str, money: int) -> Call:
        taken = with_runs(NOBODYS, await self.run(field, keep=True))
        call = self.world.reserve(10, budgets=taken.accounts, money=money)
        if call.decision.budget is not None:
            taken.name_in(call.decision.budget)
        return call

    async def spent(self, field: str, money: int) -> None:
        call = await self.call(field, money)
        assert call.verdict is Verdict.ADMITTED
        call.settle(money=money)

    async def end(self, id_: str) -> None:
        runs = Runs(self.backend.wire, time.monotonic, time.time, os.urandom)
        await driven(runs.end(self.world.caller, id_))

    async def used(self, id_: str) -> dict[int, int]:
        """What is used of its windows: of its calls first, then of its amount."""
        run = await self.run(id_)
        return {one.budget_id - run.budget_id: one.used for one in self.world.windows(run.account.name)}

    async def emptied(self) -> None:
        self.world.client.flushall()
        await self.backend.verify()
        self.world = self.world.again()


async def kept_by(runs: Runs, world: World, run: Run) -> None:
    """Have a worker keep a run, as when it admits a call of it."""
    runs.admitted(world.caller, run)
    await eventually(lambda: not runs._waits)


@pytest.fixture
async def kept(valkey: str, migrated: str) -> AsyncIterator[RunWorld]:
    async with backend_at(valkey, migrated) as backend:
        yield RunWorld(backend, await backend.settle_in(None))


async def test_an_emptied_redis_has_the_runs_that_are_stored_and_what_they_used(kept: RunWorld) -> None:
    await kept.spent("root; max=0.000001", 300)
    await kept.spent("child; max=0.000001; parent=root", 400)
    await kept.backend.flush()
    child = await kept.run("child")
    await kept.emptied()
    assert await kept.run("child") == child
    assert [await kept.used(one) for one in ("root", "child")] == [{0: 2, 1: 700}, {0: 1, 1: 400}]
    refused = await kept.call("child", 301)
    assert (refused.verdict, reason_of(refused)) == (Verdict.BUDGET_EXCEEDED, "run_exceeded")
    await kept.spent("child", 300)
    await kept.backend.flush()
    await kept.emptied()
    assert await kept.used("root") == {0: 3, 1: 1000}


async def test_one_that_no_row_has_is_restored_with_its_windows(kept: RunWorld) -> None:
    await kept.backend.flush()
    worker = Runs(kept.backend.wire, time.monotonic, time.time, os.urandom)
    run = await driven(worker.find(kept.world.caller, read_run("job; max=0.000001")))
    await kept_by(worker, kept.world, run)
    await kept.emptied()  # before its entry was stored
    await worker.restore(range(PARTITIONS))
    assert await kept.run("job") == run
    await kept.spent("job", 300)
    await kept.backend.flush()
    (stored,) = await BudgetUses(kept.backend.engine).runs([kept.world.caller.organization_id])
    assert stored == run
    await kept.emptied()
    assert await kept.used("job") == {0: 1, 1: 300}


async def test_one_that_was_ended_stays_so(kept: RunWorld) -> None:
    await kept.spent("job", 300)
    await kept.run("unused")
    await kept.end("job")
    await kept.end("unused")
    await kept.backend.flush()
    await kept.emptied()
    for id_ in ("job", "unused"):
        with pytest.raises(RunEnded):
            await kept.run(id_)
    (stored, _) = await BudgetUses(kept.backend.engine).runs([kept.world.caller.organization_id])
    open_still = replace(stored, ended_ms=0)
    taken = with_runs(NOBODYS, open_still)  # of a worker that has not heard of it
    refused = kept.world.reserve(10, budgets=taken.accounts, money=1)
    assert reason_of(refused) == "run_ended"


async def test_entries_that_come_again_move_nothing_again(kept: RunWorld) -> None:
    await kept.spent("job", 300)
    entries = kept.world.client.xrange(keys.outbox(kept.world.p))
    await kept.backend.flush()
    for _, fields in entries:  # type: ignore[union-attr]  # a client that does not wait
        kept.world.client.xadd(keys.outbox(kept.world.p), fields)
    await kept.backend.flush()
    await kept.emptied()
    assert await kept.used("job") == {0: 1, 1: 300}


async def test_a_settlement_that_comes_late_counts_in_its_run(kept: RunWorld) -> None:
    run = await kept.run("job")
    late = Settlement(kept.world.caller, "r" * 36, "", CHAT, charge=True, budgets=(run.account.name,))
    known, unread = await windows(kept.backend.counters, [late])
    assert (known, list(unread)) == ({run.account.name: run.defined}, [])
