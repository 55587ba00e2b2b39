"""Brings accounts of organizations to a close, so that invoices can be final.

Swept: no reset is due. Drained: everything the counters had done when asked is stored.
Reconciled: counters and ledger say the same, and every movement is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Protocol

from gateway.core.billing.due import COUNTERS, NOT_AGREED, NOT_IN_LEDGER, NOT_STORED, Left
from gateway.core.integrity.reconciliation import Item, LedgerAccount, Owner, Reconciled
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

    async def owners_of(self, organization_ids: Sequence[int]) -> Sequence[Owner]:
        """These organizations with their tenants."""

    async def due(self, organization_ids: Sequence[int]) -> Sequence[tuple[int, int]]:
        """Tenants of organizations whose reset has come, each with its organization."""

    async def unresolved(self, organization_ids: Sequence[int]) -> Mapping[int, Sequence[str]]:
        """Why not all that happened to an organization is in its ledgers, of those of which it is not."""

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> Mapping[str, LedgerAccount]:
        """The accounts named."""


class Check(Protocol):
    """Compares accounts."""

    async def check(self, owners: Sequence[Owner], *, deep: bool) -> Reconciled:
        """Compare the accounts of these organizations."""


class AccountClosing:
    """Closes accounts; says what keeps them open."""

    def __init__(self, counters: Counters, ledger: Ledger, check: Check) -> None:
        self._counters = counters
        self._ledger = ledger
        self._check = check

    async def close(self, organization_id: int) -> None:
        """Wait until everything that has happened is stored and agrees; `Conflict` says what does not."""
        for open_ in (await self.close_all([organization_id])).values():
            raise Conflict(open_.why)

    async def close_all(self, organization_ids: Sequence[int]) -> Mapping[int, Left]:
        """Close those of some organizations together; answers why others are open, by organization."""
        for tenant_id, organization_id in await self._ledger.due(organization_ids):
            await self._counters.sweep(tenant_id, organization_id)
        owners = await self._ledger.owners_of(organization_ids)
        found = await self._drain(owners)
        for organization_id, reasons in (await self._ledger.unresolved(organization_ids)).items():
            said = "; ".join(reasons[:FAULTS_SAID_MAX])
            found.setdefault(
                organization_id, Left(NOT_IN_LEDGER, f"Not everything is in the ledger: {said}.")
            )
        rest = [owner for owner in owners if owner.organization_id not in found]
        faults = (await self._check.check(rest, deep=True)).faults if rest else ()
        for owner in rest:
            mine = [item for item in faults if item.account in owner.accounts]
            if mine:
                found[owner.organization_id] = Left(NOT_AGREED, _said(mine))
        return found

    async def _drain(self, owners: Sequence[Owner]) -> dict[int, Left]:
        """Wait until the movements of these owners' accounts up to now are stored."""
        account_heads = await self._counters.account_heads(owners)
        others = Left(COUNTERS, "A newer version of Tollkeeper keeps its counters: only that can close it.")
        strange = {
            one.organization_id: others for one in owners if not account_heads.keys() >= set(one.accounts)
        }
        seqs = {name: head.seq for name, head in account_heads.items() if head is not None}
        for _ in range(DRAIN_LOOKS_MAX):
            stored = await self._ledger.accounts(seqs, deep=False)
            seqs = {name: seqs[name] for name, account in stored.items() if account.head.seq < seqs[name]}
            if not seqs:
                return strange
            await asyncio.sleep(LOOK_AGAIN_S)
        late = Left(NOT_STORED, "Not everything that happened is stored yet; try again in a moment.")
        return strange | {
            owner.organization_id: late for owner in owners if not seqs.keys().isdisjoint(owner.accounts)
        }


def _said(faults: Sequence[Item]) -> str:
    said = "; ".join(f"{item.account} {item.kind}: {item.detail}" for item in faults[:FAULTS_SAID_MAX])
    return f"The accounts do not agree: {said}. See reconciliation."
