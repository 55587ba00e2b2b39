"""After a loss nobody is admitted until every worker that lives has sent again what was forgotten."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.background.verifying import opener as module
from gateway.background.verifying.opener import Opener
from gateway.background.verifying.verifier import Verified, Verifier
from gateway.core.integrity.recovery import SILENT_S_MAX
from gateway.core.model import PARTITIONS, Verdict
from gateway.counters.keeper import attendance
from gateway.counters.keeper.verification import Verification
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from persistence.keeper.verification import Truths
from tests.background.house import WITHIN_S, House, house_at, parted, rejoined
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.worker import Worker, worker_at

START = Callable[..., ValkeyServer]
TOTAL = 1_000
WAITS_S = 60.0  # longer than any of these tests: its own bound is for people


@dataclass(slots=True)
class Clock:
    """Time that passes by itself until it is stopped, and more where it is told to."""

    ahead: float = 0.0
    stopped_at: float | None = None

    def __call__(self) -> float:
        return (time.monotonic() if self.stopped_at is None else self.stopped_at) + self.ahead

    def stop(self) -> None:
        self.stopped_at = time.monotonic()


@dataclass(slots=True)
class Scene:
    """A keeper that closes what it verifies, and an account whose quota may be used up."""

    server: ValkeyServer
    house: House
    world: World
    clock: Clock = field(default_factory=Clock)
    verifier: Verifier = field(init=False)

    def __post_init__(self) -> None:
        self.verifier = self.keeper(self.house)

    def keeper(self, house: House) -> Verifier:
        """A keeper's verifier that has seen nothing yet."""
        truths, counters = Truths(house.engine, partition_of), Verification(house.wire)
        opener = Opener(truths, counters, self.clock, recovery_s_max=WAITS_S)
        return Verifier(truths, counters, opener=opener)

    async def use(self, worker: Worker, tokens: int) -> None:
        await worker.settle(self.world.reserve(need=tokens), tokens)

    async def looked(self, *workers: Worker) -> None:
        """Workers report, and the keeper takes note."""
        for worker in workers:
            await worker.look()
        for _ in range(2):  # once to vouch for what is there
            assert await self.verifier.verify() == []

    async def forget(self, *workers: Worker, empty: bool = False) -> None:
        """Kill Redis; it comes back as it was when it was copied."""
        self.server.stop(signal.SIGKILL)
        wires = [self.house.wire, *(worker.wire for worker in workers)]
        await parted(*wires)
        shutil.rmtree(self.server.folder / "appendonlydir")
        if not empty:
            shutil.copytree(self.server.folder / "copy", self.server.folder / "appendonlydir")
        self.server.start()
        await rejoined(*wires)
        self.world = self.world.again()

    @asynccontextmanager
    async def verifying(
        self, verifier: Verifier | None = None
    ) -> AsyncIterator[asyncio.Task[list[Verified]]]:
        """In the block everything is verified and closed; the late lane is emptied all the while."""
        task = asyncio.create_task((verifier or self.verifier).verify())
        posting = asyncio.create_task(self._post())
        try:
            async with asyncio.timeout(WITHIN_S):
                while len((await self.house.verification.markers()).closed) < PARTITIONS:
                    await asyncio.sleep(0.01)
            yield task
        finally:
            posting.cancel()
            task.cancel()

    async def _post(self) -> None:
        while True:
            with suppress(CountersUnavailable):
                await self.house.flusher.flush()
                await self.house.poster.drain()
            await asyncio.sleep(0.05)

    async def closed(self) -> bool:
        """Whether that stays so for a while."""
        await asyncio.sleep(0.4)
        return self.world.reserve(need=1).verdict is Verdict.STALE


@asynccontextmanager
async def scene_at(server: ValkeyServer, database: str) -> AsyncIterator[Scene]:
    async with house_at(server.url, database) as house:
        scene = Scene(server, house, await house.settle_in(TOTAL, admission="strict"))
        await house.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        yield scene


@pytest.fixture
def kept(own_valkey: START) -> ValkeyServer:
    return own_valkey("--appendonly", "yes", "--appendfsync", "always")


@pytest.mark.parametrize("empty", [False, True], ids=["older", "empty"])
async def test_a_slow_worker_is_waited_for_and_nobody_is_let_in_on_what_it_charged(
    kept: ValkeyServer, migrated: str, tmp_path: Path, empty: bool
) -> None:
    async with (
        scene_at(kept, migrated) as scene,
        worker_at(kept.url, tmp_path / "one", seat="one") as one,
        worker_at(kept.url, tmp_path / "other", seat="other") as slow,
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


async def test_whoever_takes_a_dead_workers_seat_and_log_reports_for_it(
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
        worker_at(kept.url, tmp_path, seat="a") as heir,
    ):
        await scene.house.verify()
        async with worker_at(kept.url, tmp_path, seat="b") as worker:
            await scene.use(worker, 5)
            await worker.log.written()
            worker.die()
        await heir.look()
        reported = heir.resubmitter._reported
        assert all(reported)
        seen = []
        adopt = heir.log.files.adopt

        async def adopting() -> list[object]:
            seen.append((await scene.house.verification.reports())["a"].epochs)
            return list(await adopt())

        heir.log.files.adopt = adopting  # type: ignore[method-assign, assignment]  # looked at from outside
        await heir.look()
        assert seen == [(0,) * PARTITIONS]
        assert all((await scene.house.verification.reports())["a"].epochs)


async def test_a_worker_that_starts_meanwhile_is_waited_for_too(
    kept: ValkeyServer, migrated: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path / "one", seat="one") as one:
        await scene.looked(one)
        await scene.forget(one)
        async with scene.verifying() as verifying:
            new = attendance.Attendance(scene.house.wire, "new", 1)
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
        async with scene.verifying(scene.keeper(scene.house)) as verifying:
            assert await scene.closed()
            await worker.look()
            await verifying
        assert scene.world.reserve(need=1).verdict is Verdict.QUOTA_EXCEEDED


async def test_a_keeper_that_knows_nobody_gives_strangers_time_to_show_up(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.house.verify()
        await worker.look()
        await scene.use(worker, TOTAL)
        await scene.forget(worker, empty=True)
        scene.clock.stop()
        async with scene.verifying(scene.keeper(scene.house)) as verifying:
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
        async with house_at(kept.url, migrated) as house, scene.verifying(scene.keeper(house)) as verifying:
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
        silent = attendance.Attendance(scene.house.wire, "silent", 1)
        await silent.report([1] * PARTITIONS)
        async with worker_at(kept.url, tmp_path) as worker:
            await scene.looked(worker)
            assert seats(scene) == ["1", "silent"]
            await attendance.Attendance(worker.wire, "1", 0).leave()
            await scene.looked()
            assert seats(scene) == ["silent"]
            for _ in range(5):  # it was there all the time
                scene.clock.ahead += SILENT_S_MAX / 4
                await scene.looked()
        assert (seats(scene), await scene.house.verification.reports()) == ([], {})


def seats(scene: Scene) -> list[str]:
    return [row["seat"] for row in scene.house.rows("select seat from gateway_worker order by 1")]
