"""Brings an organization's accounts to a close, so that an invoice can be final.

Swept: no reset is due. Drained: everything the counters had done when asked is stored.
Reconciled: counters and ledger say the same, and every movement is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.integrity.reconciliation import LedgerAccount, Owner, Reconciled
from gateway.core.integrity.verified import AccountHead
from gateway.errors import Conflict

DRAIN_LOOKS_MAX = 100
LOOK_AGAIN_S = 0.1
FAULTS_SAID_MAX = 3


class Counters(Protocol):
    """The counters."""

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        """Run a tenant's reset if it is due."""

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        """Where the accounts of these organizations and tenants stand, by name."""


class Ledger(Protocol):
    """PostgreSQL."""

    async def owner(self, organization_id: int) -> Owner:
        """One organization with its tenants."""

    async def due(self, organization_id: int) -> Sequence[int]:
        """Tenants of an organization whose reset has come."""

    async def unresolved(self, organization_id: int) -> Sequence[str]:
        """Why not all that happened to an organization is in its ledgers."""

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> Mapping[str, LedgerAccount]:
        """The accounts named."""


class Check(Protocol):
    """Compares accounts."""

    async def check(self, owners: Sequence[Owner], *, deep: bool) -> Reconciled:
        """Compare the accounts of these organizations."""


class AccountClosing:
    """Closes accounts; raises what keeps them open."""

    def __init__(self, counters: Counters, ledger: Ledger, check: Check) -> None:
        self._counters = counters
        self._ledger = ledger
        self._check = check

    async def close(self, organization_id: int) -> None:
        """Wait until everything that has happened is stored and agrees; `Conflict` says what does not."""
        for tenant_id in await self._ledger.due(organization_id):
            await self._counters.sweep(tenant_id, organization_id)
        owner = await self._ledger.owner(organization_id)
        await self._drain(owner)
        unresolved = await self._ledger.unresolved(organization_id)
        if unresolved:
            raise Conflict(f"Not everything is in the ledger: {'; '.join(unresolved[:FAULTS_SAID_MAX])}.")
        faults = (await self._check.check([owner], deep=True)).faults
        if faults:
            said = "; ".join(
                f"{item.account} {item.kind}: {item.detail}" for item in faults[:FAULTS_SAID_MAX]
            )
            raise Conflict(f"The accounts do not agree: {said}. See reconciliation.")

    async def _drain(self, owner: Owner) -> None:
        account_heads = await self._counters.account_heads([owner])
        seqs = {name: head.seq for name, head in account_heads.items() if head is not None}
        for _ in range(DRAIN_LOOKS_MAX):
            stored = await self._ledger.accounts(seqs, deep=False)
            if all(account.head.seq >= seqs[name] for name, account in stored.items()):
                return
            await asyncio.sleep(LOOK_AGAIN_S)
        raise Conflict("Not everything that happened is stored yet; try again in a moment.")
