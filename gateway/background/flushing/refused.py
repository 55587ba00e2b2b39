"""Refused calls, from what the workers tell to their rows and counts.

A batch is deleted only after the commit that stored it, and counts once by its number: whoever dies between
the two, or sends it twice, changes nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.background.loops import Loop, call
from gateway.core.accounts.refusals import RefusedBatch
from gateway.errors import CountersUnavailable, LedgerUnavailable

INTERVAL_S = 0.5
BATCHES_MAX = 16


class Stream(Protocol):
    """The counters' stream of batches."""

    async def read(self, count: int) -> Sequence[tuple[bytes, RefusedBatch | None]]:
        """The oldest batches with their ids; None for what cannot be read."""

    async def forget(self, ids: Sequence[bytes]) -> None:
        """Remove batches that are stored."""


class Journal(Protocol):
    """PostgreSQL."""

    async def store(self, batches: Sequence[RefusedBatch]) -> int:
        """Store those that are not stored, in one transaction; how many calls were counted.

        `LedgerUnavailable` where that cannot be now; any other error is of these batches.
        """


class RefusedDrain:
    """Empties the stream into the journal. What nobody can read, or store, is dropped."""

    def __init__(self, stream: Stream, journal: Journal, *, isolation: Isolation | None = None) -> None:
        self._stream, self._journal, self._isolation = stream, journal, isolation or Isolation()

    async def drain(self) -> int:
        """Store the oldest batches; answers how many there were."""
        found = await self._stream.read(BATCHES_MAX)
        if found:
            batches = [batch for _, batch in found if batch is not None]
            await self._isolation.together("refused", batches, self._journal.store, name=_name)
            await self._stream.forget([entry_id for entry_id, _ in found])
        return len(found)

    def loop(self) -> Loop:
        """Drains twice a second, at once again where there was anything.

        A ledger that cannot store ends a pass, and that is told.
        """
        return Loop("refused", INTERVAL_S, (call(self.drain),), again=True, quiet=(CountersUnavailable,))

    async def finish(self) -> None:
        """Store all there is, before this keeper ends."""
        with suppress(CountersUnavailable, LedgerUnavailable):
            while await self.drain():
                pass


def _name(batch: RefusedBatch) -> str:
    """Which batch it is, without what callers said in it."""
    return f"batch {batch.number} of worker {batch.worker}"
