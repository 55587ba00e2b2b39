"""After a loss somebody is served as soon as it may be: nobody waits for a look that is due later."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from gateway.background.flushing.late import LateSettlements
from gateway.background.verifying.admission_gate import AdmissionGate
from gateway.background.verifying.verifier import INTERVAL_S, WATCH_S, Verifier
from gateway.core.model import Verdict
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from persistence.keeper.sweeps import Sweeps
from persistence.keeper.verification import LedgerReader
from tests.background.backend import backend_at, parted, rejoined
from tests.background.verifying.scene import TOTAL, WAITS_LATE_S, WAITS_S, Scene, scene_at, worker_slots
from tests.conftest import ValkeyServer
from tests.waiting import eventually
from tests.worker import Worker, worker_at

START = Callable[..., ValkeyServer]
AN_HOUR_S = 3_600.0
LOOKS_MIN = 20


@pytest.fixture
def kept(own_valkey: START) -> ValkeyServer:
    return own_valkey("--appendonly", "yes", "--appendfsync", "always")


async def test_another_server_is_looked_at_soon_however_calm_it_was(own_valkey: START, migrated: str) -> None:
    server = own_valkey()
    async with backend_at(server.url, migrated) as backend:
        await backend.verify()
        await backend.verify()
        pauses = [backend.verifier.pause_s]
        server.stop(signal.SIGKILL)
        await parted(backend.wire)
        pauses.append(backend.verifier.pause_s)
        server.start()
        await rejoined(backend.wire)
        pauses.append(backend.verifier.pause_s)
        assert pauses == [WATCH_S, INTERVAL_S, INTERVAL_S]


async def test_what_somebody_waits_for_in_the_late_queue_is_looked_at_at_once(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        backend = scene.backend
        late = LateSettlements(backend.keeping, Sweeps(backend.engine), interval_s=AN_HOUR_S)
        truths = LedgerReader(backend.engine, partition_of)
        gate = AdmissionGate(truths, backend.counters, lambda: 0.0, hurry=late.hurry)
        verifier = Verifier(truths, backend.counters, admission_gate=gate)
        await worker.look()
        assert await verifier.verify() == []
        await scene.use(worker, TOTAL)
        await scene.forget(worker)
        draining, verifying = asyncio.create_task(late.run()), asyncio.create_task(verifier.verify())
        try:
            await eventually(lambda: _looked_until(worker, verifying))
        finally:
            draining.cancel()
            verifying.cancel()
        assert scene.world.tenant.remaining == 0


async def _looked_until(worker: Worker, task: asyncio.Task[object]) -> bool:
    with suppress(CountersUnavailable):  # nothing is verified yet
        await worker.look()
    return task.done()


async def test_a_keeper_knows_who_is_there_once_it_finds_all_verified(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """What is lost a moment later is waited for by name, and not for whoever may show up."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await worker.look()
        assert await scene.verifier.verify() == []
        assert (scene.gate.watched, worker_slots(scene)) == (True, ["1"])


async def test_nobody_is_let_in_on_what_is_brought_and_not_charged_yet(
    kept: ValkeyServer, migrated: str, tmp_path: Path
) -> None:
    """Whom the keeper waits for is bounded sooner than its own work is."""
    async with scene_at(kept, migrated) as scene, worker_at(kept.url, tmp_path) as worker:
        await scene.looked(worker)
        await scene.use(worker, TOTAL)
        await scene.forget(worker)
        verifying = asyncio.create_task(scene.verifier.verify())
        counters = scene.backend.counters
        try:
            await eventually(lambda: _is_late(scene, worker))
            looks = 0

            async def looked() -> bool:
                nonlocal looks
                looks += len(await counters.late_waiting())
                return looks > LOOKS_MIN

            scene.clock.ahead += WAITS_S
            await eventually(looked)
            assert scene.world.reserve(need=1).verdict is Verdict.STALE
            scene.clock.ahead += WAITS_LATE_S
            await verifying
            assert scene.world.reserve(need=1).verdict is Verdict.ADMITTED
        finally:
            verifying.cancel()


async def _is_late(scene: Scene, worker: Worker) -> bool:
    with suppress(CountersUnavailable):
        await worker.look()
    return scene.world.p in await scene.backend.counters.late_waiting()
