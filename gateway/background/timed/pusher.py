"""Brings control writes into the counters, account by account, first come first.

An intent is committed before anything is tried. A write is `applied` once the counters have it,
and `done` only by its row in the ledger: an acknowledged write can still vanish with the last
second of Redis, and then it is pushed again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from gateway.background.isolation import Isolation
from gateway.core.accounts.definitions import ControlWrite
from gateway.errors import CountersUnavailable, OutOfRange

INTERVAL_S = 0.25
ACCOUNTS_MAX = 1_000


class Waiting(Protocol):
    """One account's writes that wait."""

    @property
    def writes(self) -> Sequence[ControlWrite]:
        """Oldest first."""

    async def applied(self, write: ControlWrite) -> None:
        """Note that the counters have it."""

    async def refused(self, write: ControlWrite, reason: str) -> None:
        """Note that the counters will never take it."""


class Source(Protocol):
    """Where control writes wait."""

    async def accounts(self, count: int, partitions: Sequence[int] | None = None) -> list[str]:
        """Accounts with writes that wait, of these partitions and of none, or of all."""

    def waiting(self, account: str) -> AbstractAsyncContextManager[Waiting]:
        """One account's writes, held by this keeper alone."""


class Target(Protocol):
    """The counters."""

    async def apply(self, write: ControlWrite) -> bool:
        """False where the account is not known yet; may raise CountersUnavailable and OutOfRange."""


class Pusher:
    """The clock's side of the Admin API, for accounts of some partitions, or of all."""

    def __init__(
        self,
        source: Source,
        target: Target,
        partitions: Callable[[], Sequence[int]] | None = None,
        *,
        isolation: Isolation | None = None,
    ) -> None:
        self._isolation = isolation or Isolation()
        self._source, self._partitions = source, partitions
        self._target = target

    async def push(self, account: str) -> bool:
        """Apply what waits for the account, in order; False where the rest has to happen later."""
        async with self._source.waiting(account) as waiting:
            for write in waiting.writes:
                try:
                    if not await self._target.apply(write):
                        return False
                except CountersUnavailable:
                    return False
                except OutOfRange as refusal:
                    await waiting.refused(write, refusal.message)
                else:
                    await waiting.applied(write)
        return True

    async def push_all(self) -> int:
        """Push every account that waits; answers how many are left with writes."""
        pushed = 0

        async def push(account: str) -> None:
            nonlocal pushed
            pushed += await self.push(account)

        partitions = self._partitions() if self._partitions is not None else None
        accounts = await self._source.accounts(ACCOUNTS_MAX, partitions)
        await self._isolation.each("pusher", accounts, push, name=_name)
        return len(accounts) - pushed

    async def run(self) -> None:
        """Push what the Admin API could not, until cancelled."""
        while True:
            await self.push_all()
            await asyncio.sleep(INTERVAL_S)


def _name(account: str) -> str:
    """Which account it is, without what follows its number: that is a name callers gave."""
    return ":".join(account.split(":")[:2])
