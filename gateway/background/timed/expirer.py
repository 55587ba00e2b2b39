"""Takes what is left of credits when they expire: exactly the rest, nothing that was used in time.

Uses are allocated to grants as they are stored. Once everything that happened before a grant's
moment of expiry is allocated, its rest is known for ever, and an intent takes it: whatever the
account did since was paid by others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.core.billing.allocation import ExpiredGrant
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.verified import AccountHead
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.5
ORGANIZATIONS_MAX = 100
EXPIRED_MAX = 500


class Ledger(Protocol):
    """PostgreSQL."""

    async def behind(self, count: int) -> Sequence[int]:
        """Organizations with movements that are not allocated yet."""

    async def allocate(self, organization_id: int) -> bool:
        """Allocate one page of an account; False where there is more."""

    async def expired(self, now_ms: int, count: int) -> Sequence[ExpiredGrant]:
        """Additions whose expiry has come and is not taken yet."""

    async def expire(self, expired: ExpiredGrant, partition: int, seq: int) -> bool:
        """Write the intent that takes the rest, once `seq` is allocated; False before."""


class Counters(Protocol):
    """Where accounts stand now."""

    async def now_ms(self) -> int:
        """The counters' own clock."""

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        """Where the accounts of these organizations and tenants stand, by name."""


class Expirer:
    """The clock's side of credits."""

    def __init__(
        self,
        ledger: Ledger,
        counters: Counters,
        partition_of: Callable[[int], int],
        *,
        isolation: Isolation | None = None,
    ) -> None:
        self._ledger, self._isolation = ledger, isolation or Isolation()
        self._counters = counters
        self._partition_of = partition_of

    async def allocate(self) -> None:
        """Allocate what was stored since."""

        async def allocate(organization_id: int) -> None:
            while not await self._ledger.allocate(organization_id):
                pass

        behind = await self._ledger.behind(ORGANIZATIONS_MAX)
        await self._isolation.each("expirer", behind, allocate, name=lambda one: f"organization {one}")

    async def expire(self) -> int:
        """Take the rest of what has expired, where it is known; answers how many additions."""
        now_ms = await self._counters.now_ms()
        taken = 0

        async def expire(expired: ExpiredGrant) -> None:
            nonlocal taken
            organization_id = expired.organization_id
            try:
                heads = await self._counters.account_heads([Owner(organization_id, ())])
            except CountersUnavailable:  # its server is away: others are not
                return
            if (head := heads.get(f"credits:{organization_id}")) is not None:
                taken += await self._ledger.expire(expired, self._partition_of(organization_id), head.seq)

        expired_now = await self._ledger.expired(now_ms, EXPIRED_MAX)
        await self._isolation.each("expirer", expired_now, expire, name=lambda one: f"addition {one.id}")
        return taken

    async def run(self) -> None:
        """Allocate and expire twice a second, until cancelled."""
        while True:
            await self.allocate()
            with suppress(CountersUnavailable):
                await self.expire()
            await asyncio.sleep(INTERVAL_S)
