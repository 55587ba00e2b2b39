"""A keeper, workers, and a Redis that forgets: what happens before anybody is admitted again."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from gateway.background.verifying.admission_gate import AdmissionGate
from gateway.background.verifying.verifier import Verifier
from gateway.core.integrity.recovery import VerificationResult
from gateway.core.model import PARTITIONS, Verdict
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from persistence.keeper.verification import LedgerReader
from tests.background.backend import Backend, backend_at, parted, rejoined
from tests.builders import World
from tests.conftest import ValkeyServer
from tests.waiting import eventually
from tests.worker import Worker

POSTS_MIN = 6
TOTAL = 1_000
WAITS_S = 60.0  # longer than any of these tests: its own bound is for people
WAITS_LATE_S = 2 * WAITS_S


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
    backend: Backend
    world: World
    clock: Clock = field(default_factory=Clock)
    verifier: Verifier = field(init=False)
    gate: AdmissionGate = field(init=False)
    posted: int = 0
    said: list[tuple[str, dict[str, object]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.verifier = self.keeper(self.backend)

    def keeper(self, backend: Backend) -> Verifier:
        """A keeper's verifier that has seen nothing yet."""
        truths, counters = LedgerReader(backend.engine, partition_of), backend.counters
        self.gate = AdmissionGate(
            truths, counters, self.clock, recovery_s_max=WAITS_S, late_s_max=WAITS_LATE_S, say=self.say
        )
        return Verifier(truths, counters, admission_gate=self.gate, organizations_max=1, say=self.say)

    def say(self, what: str, **facts: object) -> None:
        self.said.append((what, facts))

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
        wires = [self.backend.wire, *(worker.wire for worker in workers)]
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
    ) -> AsyncIterator[asyncio.Task[list[VerificationResult]]]:
        """In the block everything is verified and closed; the late queue is emptied all the while."""
        task = asyncio.create_task((verifier or self.verifier).verify())
        posting = asyncio.create_task(self._post())
        try:
            await eventually(self._all_closed)
            yield task
        finally:
            posting.cancel()
            task.cancel()

    async def _all_closed(self) -> bool:
        return len((await self.backend.counters.markers()).closed) == PARTITIONS

    async def _post(self) -> None:
        while True:
            with suppress(CountersUnavailable):
                await self.backend.flusher.flush()
                await self.backend.late_settlements.drain()
            self.posted += 1
            await asyncio.sleep(0.05)

    async def closed(self) -> bool:
        """Whether that stays so however often the keeper posts what there is."""
        posted = self.posted
        await eventually(lambda: self.posted >= posted + POSTS_MIN)
        return self.world.reserve(need=1).verdict is Verdict.STALE


@asynccontextmanager
async def scene_at(server: ValkeyServer, database: str) -> AsyncIterator[Scene]:
    async with backend_at(server.url, database) as backend:
        scene = Scene(server, backend, await backend.settle_in(TOTAL, admission="strict"))
        await backend.flush()
        shutil.copytree(server.folder / "appendonlydir", server.folder / "copy")
        yield scene


def worker_slots(scene: Scene) -> list[str]:
    return [
        row["worker_slot"] for row in scene.backend.rows("select worker_slot from gateway_worker order by 1")
    ]
