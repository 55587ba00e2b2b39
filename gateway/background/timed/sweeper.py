"""Resets tenants nobody calls: a reset that is due runs in every script that touches a tenant,
and for the rest here, so that ledger and invoices have their cycles on time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Protocol

from gateway.errors import CountersUnavailable

INTERVAL_S = 1.0
TENANTS_MAX = 1_000


class Due(Protocol):
    """PostgreSQL."""

    async def due(self, count: int) -> Sequence[tuple[int, int]]:
        """(tenant, organization) of tenants whose next reset has come, by the last flushed row."""


class Target(Protocol):
    """The counters."""

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        """Run a tenant's reset if it is due."""


class Sweeper:
    """Runs due resets."""

    def __init__(self, source: Due, target: Target) -> None:
        self._source = source
        self._target = target

    async def sweep(self) -> int:
        """Run what is due; answers how many resets ran. One that cannot run keeps no other from it."""
        ran, fault = 0, None
        for tenant_id, organization_id in await self._source.due(TENANTS_MAX):
            try:
                ran += await self._target.sweep(tenant_id, organization_id)
            except CountersUnavailable as error:
                fault = error
        if fault is not None:
            raise fault
        return ran

    async def run(self) -> None:
        """Sweep every second, until cancelled."""
        while True:
            with suppress(CountersUnavailable):
                await self.sweep()
            await asyncio.sleep(INTERVAL_S)
