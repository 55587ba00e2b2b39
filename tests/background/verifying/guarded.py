"""A keeper that knows by its fence and by what is stored whether the counters are what they were."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count

from gateway.background.flushing.flusher import Flusher
from gateway.background.verifying.rewinds import LOOKED_S_MAX, Rewinds
from gateway.background.verifying.verifier import Verifier
from gateway.counters.history_guard import HistoryGuard
from gateway.counters.keeper.outbox import OrphanReader, Outbox
from gateway.counters.redis.keys import partition_of
from gateway.errors import CountersUnavailable
from persistence.keeper.verification import LedgerReader
from persistence.resources.integrity import Quarantines
from tests.background.backend import Backend
from tests.builders import World


@asynccontextmanager
async def guarded(valkey: str, database: str) -> AsyncIterator[Backend]:
    """A keeper behind its fence."""
    backend = Backend(valkey, database)
    fence = HistoryGuard(backend.wire, "keeper", time.monotonic)
    streams = OrphanReader(backend.counters, fence.check_history)
    rewinds = Rewinds(  # whose looks are a while apart
        fence, backend.counters, streams, Quarantines(backend.engine), clock=count(step=LOOKED_S_MAX).__next__
    )
    backend.verifier = Verifier(LedgerReader(backend.engine, partition_of), backend.counters, rewinds=rewinds)
    backend.flusher = Flusher(
        Outbox(backend.counters, check_history=fence.check_history),
        backend.writer,
        lambda _: None,
        before_storing=rewinds.notice,
    )
    await backend.wire.open()
    try:
        yield backend
    finally:
        await backend.close()


def settle(world: World, count: int, tokens: int) -> None:
    for _ in range(count):
        world.reserve(need=tokens).settle(tokens=tokens)


def stopped(backend: Backend) -> list[dict[str, object]]:
    return backend.rows("select * from quarantine")


async def verified(backend: Backend, world: World) -> None:
    """As the keeper does it; `world` calls under what it finds."""
    with suppress(CountersUnavailable):
        await backend.verify()
    await backend.verify()
    await backend.push()
    world.run_id = backend.wire.run_id


def at_one(backend: Backend, world: World) -> None:
    """Counters and ledger say the same, and nobody is stopped."""
    (quota,) = backend.rows(
        "select tokens_used, last_seq from tenant_quota where tenant_id = %s", world.caller.tenant_id
    )
    assert (quota["tokens_used"], quota["last_seq"]) == (world.tenant.used, world.tenant.seq)
    assert stopped(backend) == []
