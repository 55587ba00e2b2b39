"""Posts settlements whose hold was unknown, each exactly once.

Such a settlement may have happened after all (its answer was lost), may have been reclaimed, or
may never have reached Redis. Once everything that happened before it is in the ledger, the
ledger knows: a request id found there is dropped or corrected, one not found is posted. The
lane's entry is the token: posting and correcting delete it in the same step.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.holds import Charged, LateSettlement
from gateway.core.losses import Movement
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.5
ENTRIES_MAX = 500


class Lane(Protocol):
    """The counters' late lane."""

    async def late(self, count: int) -> Sequence[LateSettlement]:
        """Late settlements that can be decided: what came before them is on its way no more."""

    async def post(self, late: LateSettlement) -> bool:
        """Charge one without a hold, once by its entry; False where its account is not known."""

    async def correct(self, late: LateSettlement, more: Charged) -> bool:
        """Move tokens (more or less), credits (more) and units (more or less), once by the entry."""

    async def drop(self, late: LateSettlement) -> None:
        """Remove one that is dealt with."""


class Ledger(Protocol):
    """PostgreSQL."""

    async def charged(self, late: Sequence[LateSettlement]) -> Mapping[str, Charged]:
        """What is charged for each of these request ids, corrections included; absent: nothing."""

    async def refund(self, late: LateSettlement, amount: int) -> None:
        """Give credits of a request back, once by its id."""

    async def remember(self, acknowledged: Sequence[Movement]) -> None:
        """Keep as evidence what the counters acknowledged and the ledger of that epoch has not."""


class Poster:
    """Empties the late lane."""

    def __init__(self, lane: Lane, ledger: Ledger) -> None:
        self._lane = lane
        self._ledger = ledger

    async def drain(self) -> int:
        """Deal with what can be dealt with now; answers how many.

        One that the counters refuse keeps no other from being dealt with.
        """
        late = await self._lane.late(ENTRIES_MAX)
        if not late:
            return 0
        if acknowledged := [movement for one in late for movement in one.acknowledged]:
            await self._ledger.remember(acknowledged)
        known = await self._ledger.charged(late)
        refused = None
        for one in late:
            charged = known.get(one.request_id)
            try:
                await (self._lane.post(one) if charged is None else self._correct(one, charged))
            except CountersUnavailable as error:
                refused = error
        if refused is not None:
            raise refused
        return len(late)

    async def run(self) -> None:
        """Drain twice a second, at once again where there was much, until cancelled."""
        while True:
            drained = 0
            try:
                drained = await self.drain()
            except CountersUnavailable:
                await asyncio.sleep(INTERVAL_S)
            await asyncio.sleep(INTERVAL_S if drained < ENTRIES_MAX else 0)

    async def _correct(self, one: LateSettlement, charged: Charged) -> None:
        """Make good what a reclaim charged; what settled after all stays as it is."""
        more = difference(one, charged) if one.charged or charged.reclaimed else Charged()
        if more.credits < 0:
            await self._ledger.refund(one, -more.credits)
        move = Charged(more.tokens, max(0, more.credits), more.units)
        if move == Charged():
            await self._lane.drop(one)
        else:
            await self._lane.correct(one, move)


def difference(late: LateSettlement, charged: Charged) -> Charged:
    """What a call used beyond what is charged for it. A One-Time price is paid by whoever came first."""
    service = late.service
    return Charged(
        late.tokens - charged.tokens if service.counts_tokens else 0,
        late.credits - charged.credits if service.meter == "consumption" and not service.one_time else 0,
        late.units - charged.units if service.meter == "pay_per_use" else 0,
    )
