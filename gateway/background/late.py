"""Posts settlements whose hold was unknown, each exactly once.

Such a settlement may have happened after all (its answer was lost), may have been reclaimed, or
may never have reached Redis. Once everything that happened before it is in the ledger, the
ledger knows: a request id found there is dropped or corrected, one not found is posted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

from gateway.core.holds import LateSettlement
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.5
ENTRIES_MAX = 500


class Lane(Protocol):
    """The counters' late lane."""

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Late settlements before which nothing of their organization waits in the outbox."""

    async def post(self, late: LateSettlement) -> bool:
        """Charge one without a hold, once by its request id; False where its account is not known."""

    async def correct(self, late: LateSettlement, write_id: str) -> None:
        """Adjust the tokens a reclaim charged to what was really used."""

    async def drop(self, late: LateSettlement) -> None:
        """Remove one that is dealt with."""


class Ledger(Protocol):
    """PostgreSQL."""

    async def charged(self, late: Sequence[LateSettlement]) -> dict[str, int]:
        """Tokens the ledger has for each of these request ids, corrections included; absent: no row."""


class Poster:
    """Empties the late lane."""

    def __init__(self, lane: Lane, ledger: Ledger) -> None:
        self._lane = lane
        self._ledger = ledger

    async def drain(self) -> int:
        """Deal with what can be dealt with now; answers how many."""
        late = await self._lane.late(ENTRIES_MAX)
        if not late:
            return 0
        known = await self._ledger.charged(late)
        for one in late:
            charged = known.get(one.request_id)
            if charged is None:
                if not await self._lane.post(one):
                    continue
            elif one.charged and one.service.counts_tokens and charged != one.tokens:
                await self._lane.correct(one, correction_id(one.request_id))
            await self._lane.drop(one)
        return len(late)

    async def run(self) -> None:
        """Drain twice a second, until cancelled."""
        while True:
            try:
                await self.drain()
            except CountersUnavailable:
                await asyncio.sleep(INTERVAL_S)
            await asyncio.sleep(INTERVAL_S)


def correction_id(request_id: str) -> str:
    """The id of a request's one correction: the request id with its version nibble set to 8."""
    return f"{request_id[:14]}8{request_id[15:]}"
