"""Gives back what dead calls hold: a hold nobody renewed ends under the stated policy.

`charge_observed`: what was seen of the call is charged, a call nothing was seen of costs nothing;
`release`: it costs nothing; `charge_hold`: it costs what it held. A hold is taken back only when
two sweeps in a row found it past its deadline, and leaves a tombstone, so that a settlement which
comes after all becomes a correction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gateway.core.accounts.holds import Charged, ExpiredHold, ReclaimPolicy
from gateway.errors import CountersUnavailable

HOLDS_MAX = 1_000


class Holds(Protocol):
    """The counters."""

    async def expired(self, count: int) -> Sequence[ExpiredHold]:
        """Holds past their deadline."""

    async def reclaim(self, hold: ExpiredHold, charge: Charged) -> bool:
        """End one, charging so much; False where it was settled meanwhile."""


class Reclaimer:
    """Sweeps deadlines. `reclaimed` counts holds taken back since the start."""

    def __init__(self, holds: Holds, policy: ReclaimPolicy = ReclaimPolicy.CHARGE_OBSERVED) -> None:
        self._holds = holds
        self._policy = policy
        self._seen: frozenset[str] = frozenset()
        self.reclaimed = 0

    async def sweep(self) -> int:
        """Take back what was past its deadline in the last sweep too; answers how many.

        One that the counters refuse keeps no other from being taken back.
        """
        seen, self._seen = self._seen, frozenset()  # a sweep that fails sees none
        expired = await self._holds.expired(HOLDS_MAX)
        again = [hold for hold in expired if hold.release.request_id in seen]
        self._seen = frozenset(hold.release.request_id for hold in expired)
        done, refused = 0, None
        for hold in again:
            try:
                done += await self._holds.reclaim(hold, hold.charge(self._policy))
            except CountersUnavailable as error:
                refused = error
        self.reclaimed += done
        if refused is not None:
            self._seen = frozenset()
            raise refused
        return done
