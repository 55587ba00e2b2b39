"""The partitions that this keeper flushes: keepers that are there have all of them among them.

Each says again and again that it is there, and is told which are its own. One that is silent has them no
longer, by the clock of the ledger. That only keeps two from reading the same entries: what makes them store
nothing twice is the lock of a partition, and the guard behind it. Knows neither Redis nor PostgreSQL.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from gateway.core.accounts.outbox import PartitionAssignment
from gateway.errors import LedgerUnavailable

if TYPE_CHECKING:
    from persistence.keeper.sweeps import KeeperShares

# For how long it is believed of a keeper that it is there, and how often it says so.
HELD_S = 5.0
SAID_EACH_S = 1.0
# The same while partitions are on their way from one keeper to another.
CHANGING_EACH_S = 0.2


class KeeperShare:
    """This keeper's part."""

    def __init__(
        self,
        ledger: KeeperShares,
        clock: Callable[[], float] = time.monotonic,
        *,
        held_s: float = HELD_S,
        said_each_s: float = SAID_EACH_S,
    ) -> None:
        self._ledger, self._clock, self._held_s, self._said_each_s = ledger, clock, held_s, said_each_s
        self._assigned, self._until = PartitionAssignment(), 0.0
        self._begun = False

    def partitions(self) -> frozenset[int]:
        """Those to be read now; `LedgerUnavailable` where they may be somebody else's by now.

        Raised, since a ledger that was away may be an older one: its flusher has to look before it stores.
        """
        if self._begun and self._clock() >= self._until:
            raise LedgerUnavailable("PostgreSQL does not say which partitions are flushed here")
        return self._assigned.own

    @property
    def size(self) -> int:
        """How many partitions are flushed here, as far as is known."""
        return len(self._assigned.own) if self._clock() < self._until else 0

    @property
    def changing(self) -> bool:
        """Whether partitions are on their way here, or away from here."""
        return bool(self._assigned.leaving or self._assigned.lacking)

    async def renew(self, reached: Collection[int], in_hand: Callable[[], Collection[int]]) -> None:
        """Say that this keeper is there, and which partitions' counters it reaches.

        Entries `in_hand` were read, or are being read; nothing that is leaving is read any more.
        """
        said = self._clock()
        left = self._assigned.leaving.difference(in_hand())
        self._assigned = await self._ledger.keep(reached, left, self._held_s)
        # By the time it was said at the latest it is known there.
        self._until, self._begun = said + self._held_s, True

    async def run(
        self, reached: Callable[[], Collection[int]], in_hand: Callable[[], Collection[int]]
    ) -> None:
        """Say so until cancelled, sooner where others are reached now: a server that is back has callers who
        wait for what is flushed. While the ledger is away, `partitions` says it.
        """
        while True:
            said = frozenset(reached())
            try:
                await self.renew(said, in_hand)
            except LedgerUnavailable:
                self._begun = True
            until = self._clock() + self._said_each_s
            while self._clock() < until:
                await asyncio.sleep(CHANGING_EACH_S)
                if self.changing or said != frozenset(reached()):
                    break

    async def leave(self) -> None:
        """Have others take over at once what is flushed here."""
        self._assigned = PartitionAssignment()
        await self._ledger.leave()
