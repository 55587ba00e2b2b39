"""After a loss nobody is admitted until every worker that lives has sent again what was forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from gateway.background.verifying import admission_gate as module
from gateway.background.verifying.loss_counter import LossCounter
from gateway.core.integrity.recovery import LedgerState, VerificationResult
from gateway.core.integrity.roster import RETURN_S_MAX, SILENT_S_MAX
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS, Verdict
from gateway.counters.keeper import worker_reports
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from persistence.keeper.sweeps import Losses
from tests.background.backend import backend_at
from tests.background.verifying.scene import POSTS_MIN, TOTAL, WAITS_S, scene_at, worker_slots
from tests.conftest import ValkeyServer
from tests.waiting import eventually
from tests.worker import Worker, worker_at

START = Callable[..., ValkeyServer]


@pytest.fixture
def kept(own_valkey: START) -> ValkeyServer:
    return own_valkey("--appendonly", "yes", "--appendfsync", "always")


@pytest.mark.parametrize("empty", [False, True], ids=["older", "empty"])
async def test_a_slow_worker_is_waited_for_and_nobody_is_let_in_on_what_it_charged(
    kept: ValkeyServer, migrated: str, tmp_path: Path, empty: bool
) -> None:
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path / "one", worker_slot="one") as one,
        worker_at(kept.url, tmp_path / "other", worker_slot="other") as slow,
    ):
        await scene.looked(one, slow)
        await scene.use(slow, TOTAL)
        await scene.forget(one, slow, empty=empty)
        async with scene.verifying() as verifying:
            await one.look()
            # It has not sent again what used up the quota; everything else runs meanwhile.
            assert await scene.closed()
            assert not verifying.done()
            await slow.look()
            assert {done.epoch for done in await verifying} == {2}
        # Nobody is let in on what was used up before.
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED
        assert scene.world.tenant.remaining == 0
        assert [what for what, _ in scene.said if "waiting" not in what] == [
            f"recovery: {stage}" for stage in ("begun", "outboxes read", "compared", "open")
        ]


async def test_a_worker_that_is_waited_for_is_named_once(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path / "one", worker_slot="one") as one,
        worker_at(kept.url, tmp_path / "other", worker_slot="other") as slow,
    ):
        await scene.looked(one, slow)
        await scene.use(slow, TOTAL)
        scene.said.clear()
        await scene.forget(one, slow, empty=True)
        async with scene.verifying() as verifying:
            await one.look()
            assert await scene.closed()
            scene.clock.ahead += module.NAMED_S
            named = [{"workers": ["other"], "late": 0}]
            await eventually(lambda: named == [facts for what, facts in scene.said if "waiting" in what])
            await slow.look()
            await verifying
        assert named == [facts for what, facts in scene.said if "waiting" in what]


async def test_where_all_have_reported_it_is_opened_at_once(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.looked(worker)
        await scene.forget(worker)
        scene.clock.ahead -= 1_000  # whatever it waits for, it is no time
        async with scene.verifying() as verifying:
            await worker.look()
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.ADMITTED


async def test_a_partition_is_opened_before_others_are_compared(
    kept: ValkeyServer, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not before its own workers have sent again what was forgotten of it."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        other = scene.world.p
        while other == scene.world.p:
            other = (await scene.backend.settle_in(TOTAL)).p
        await scene.looked(worker)
        await scene.use(worker, TOTAL - 1)
        await scene.forget(worker, empty=True)
        source, looks_on = scene.verifier._source, asyncio.Event()
        original = source.truth

        async def slow(organizations: Mapping[int, Sequence[int]]) -> Mapping[int, LedgerState]:
            if other in organizations:
                await looks_on.wait()
            return await original(organizations)

        async def opened() -> bool:
            await worker.look()
            return other not in (await scene.backend.counters.markers()).verified and admits()

        def admits() -> bool:
            return scene.world.reserve(need=1).verdict is not Verdict.STALE

        monkeypatch.setattr(source, "truth", slow)
        posting, verifying = asyncio.create_task(scene._post()), asyncio.create_task(scene.verifier.verify())
        try:
            await eventually(lambda: scene.world.reserve(need=1).verdict is Verdict.STALE)
            assert await scene.closed()
            await eventually(opened)
            assert scene.world.tenant.remaining == 1
            assert not verifying.done()
            looks_on.set()
            await eventually(lambda: _looked_until(worker, verifying))
        finally:
            posting.cancel()
            verifying.cancel()
        assert scene.verifier.ready


async def _looked_until(worker: Worker, task: asyncio.Task[list[VerificationResult]]) -> bool:
    await worker.look()
    return task.done()


async def test_a_dead_worker_holds_the_door_no_longer_than_a_bound(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene:
        async with worker_at(kept.url, tmp_path) as worker:
            await scene.looked(worker)
        await scene.forget()
        async with scene.verifying() as verifying:
            assert await scene.closed()
            scene.clock.ahead += WAITS_S
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.ADMITTED


async def test_nothing_is_counted_as_lost_while_somebody_may_bring_it(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """The door is opened without the slow one; what it knows of is lost no sooner than it has said so."""
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path / "one", worker_slot="one") as one,
        worker_at(kept.url, tmp_path / "other", worker_slot="other") as slow,
    ):
        said: list[dict[str, object]] = []
        losses = Losses(scene.backend.engine, quiet_s=0)
        counter = LossCounter(losses, (), lambda _, **f: said.append(f), at_rest=scene.gate.at_rest)
        await scene.looked(one, slow)
        assert await scene.gate.at_rest() == frozenset(range(PARTITIONS))
        await scene.use(slow, 1)
        await scene.use(one, 1)
        for worker in (one, slow):
            await worker.log.written()
        await scene.forget(one, slow)
        async with scene.verifying() as verifying:
            await one.look()
            assert await scene.closed()
            scene.clock.ahead += WAITS_S
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.ADMITTED
        for _ in range(5):  # nor once it was silent so long that nobody waits for it
            await counter.count()
            assert (await scene.gate.at_rest(), said) == (frozenset(), [])
            scene.clock.ahead += SILENT_S_MAX / 4
            await scene.looked(one)
        await slow.look()
        assert scene.world.p not in await scene.gate.at_rest()  # what it sent waits in the late queue
        await counter.count()
        assert said == []
        posted = scene.posted
        posting = asyncio.create_task(scene._post())
        await eventually(lambda: scene.posted >= posted + POSTS_MIN)
        posting.cancel()
        await counter.count()
        assert [(fact["recovered"], fact["lost"]) for fact in said] == [(2, 0)]


async def test_who_does_not_come_back_is_not_waited_for_when_losses_are_counted(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene:
        async with worker_at(kept.url, tmp_path / "gone", worker_slot="gone") as gone:
            await scene.looked(gone)
        async with worker_at(kept.url, tmp_path / "here", worker_slot="here") as here:
            await scene.looked(here)
            at_rest = []
            for _ in range(20):
                scene.clock.ahead += SILENT_S_MAX / 4
                await scene.looked(here)
                at_rest.append(bool(await scene.gate.at_rest()))
        # What it said last is true until nobody waits for it, and again once it had its time to come back.
        assert (at_rest[0], at_rest[-1]) == (True, True)
        assert at_rest.count(False) >= int(RETURN_S_MAX / (SILENT_S_MAX / 4))


async def test_while_another_version_has_a_partition_nobody_waits_for_the_dead(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """Looks are as far apart as this keeper says, and what each of them takes."""
    async with scene_at(kept, migrated) as scene:
        theirs = (scene.world.p + 1) % PARTITIONS
        async with worker_at(kept.url, tmp_path / "gone", worker_slot="gone") as gone:
            await scene.looked(gone)
        async with worker_at(kept.url, tmp_path / "here", worker_slot="here") as here:
            marker = scene.world.get(keys.marker(theirs))
            assert marker is not None
            scene.world.client.set(keys.marker(theirs), bytes([LAYOUT + 1]) + marker[1:])
            scene.clock.stop()
            waited = 0.0
            while waited <= 2 * SILENT_S_MAX + RETURN_S_MAX:
                await here.look()
                assert await scene.verifier.verify() == []
                passed = scene.verifier.pause_s + 0.5
                scene.clock.ahead, waited = scene.clock.ahead + passed, waited + passed
            assert "gone" not in await scene.backend.counters.reports()
            assert await scene.gate.at_rest() == frozenset(range(PARTITIONS)) - {theirs}


async def test_whoever_takes_a_dead_workers_slot_and_log_reports_for_it(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene:
        async with worker_at(kept.url, tmp_path) as worker:
            await scene.looked(worker)
            await scene.use(worker, TOTAL)
            await worker.log.written()
            worker.die()
            await scene.forget(worker)
        async with scene.verifying() as verifying:
            assert await scene.closed()
            async with worker_at(kept.url, tmp_path) as successor:
                await successor.look()
                await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


async def test_while_a_dead_workers_log_is_taken_over_nothing_counts_as_reported(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """Its successor finds no log any more: whoever took it has to be waited for, reported before or not."""
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path, worker_slot="a") as heir,
    ):
        await scene.backend.verify()
        await heir.look()
        reported = heir.resubmitter._reported
        assert all(reported)
        async with worker_at(kept.url, tmp_path, worker_slot="b") as worker:
            await scene.use(worker, 5)
            await worker.log.written()
            worker.die()
        seen = []
        adopt = heir.log.adopt

        async def adopting() -> list[object]:
            seen.append((await scene.backend.counters.reports())["a"].epochs)
            return list(await adopt())

        heir.log.adopt = adopting  # type: ignore[method-assign, assignment]  # looked at from outside
        await heir.look()
        assert seen == [(0,) * PARTITIONS]
        assert all((await scene.backend.counters.reports())["a"].epochs)
        await heir.look()  # nobody's log is there any more
        assert len(seen) == 1


async def test_a_worker_that_starts_meanwhile_is_waited_for_too(
    kept: ValkeyServer, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path / "one", worker_slot="one") as one,
    ):
        await scene.looked(one)
        await scene.forget(one)
        async with scene.verifying() as verifying:
            new = worker_reports.WorkerReports(scene.backend.wire, "new", 1, time.monotonic)
            await new.report([0] * PARTITIONS)
            await one.look()
            assert await scene.closed()
            await new.report([2] * PARTITIONS)
            await verifying


async def test_a_keeper_started_after_redis_knows_who_was_there(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """What one keeper knew is on file: Redis came back empty, and nobody watched."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.looked(worker)
        await scene.use(worker, TOTAL)
        await scene.forget(worker, empty=True)
        scene.clock.ahead += module.STRANGERS_S  # nothing but the file makes it wait
        async with scene.verifying(scene.keeper(scene.backend)) as verifying:
            assert await scene.closed()
            await worker.look()
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


async def test_a_keeper_that_knows_nobody_gives_strangers_time_to_show_up(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.backend.verify()
        await worker.look()
        await scene.use(worker, TOTAL)
        await scene.forget(worker, empty=True)
        scene.clock.stop()
        async with scene.verifying(scene.keeper(scene.backend)) as verifying:
            assert await scene.closed()
            await worker.look()
            scene.clock.ahead += module.STRANGERS_S
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


async def test_another_keeper_opens_what_one_that_died_left_closed(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.looked(worker)
        await scene.use(worker, TOTAL)
        await scene.forget(worker)
        async with scene.verifying() as dying:
            dying.cancel()
        async with (
            backend_at(kept.url, migrated) as backend,
            scene.verifying(scene.keeper(backend)) as verifying,
        ):
            assert await scene.closed()
            await worker.look()
            assert await verifying == []
        marker = scene.world.get(keys.marker(scene.world.p))
        assert packing.read_marker(marker)[1] == 2
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


async def test_who_left_or_fell_silent_is_not_waited_for(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene:
        silent = worker_reports.WorkerReports(scene.backend.wire, "silent", 1, time.monotonic)
        await silent.report([1] * PARTITIONS)
        async with worker_at(kept.url, tmp_path) as worker:
            await scene.looked(worker)
            assert worker_slots(scene) == ["1", "silent"]
            await worker_reports.WorkerReports(worker.wire, "1", 0, time.monotonic).leave()
            await scene.looked()
            assert worker_slots(scene) == ["silent"]
            for _ in range(5):  # it was there all the time
                scene.clock.ahead += SILENT_S_MAX / 4
                await scene.looked()
        assert (worker_slots(scene), await scene.backend.counters.reports()) == ([], {})
