"""Where accounts stand in the counters, looked at only: quotas, balances, seqs, holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.verified import AccountHead
from gateway.core.model import PARTITIONS, LiveQuota
from gateway.counters.keeper.client import Client
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import KIND_ORGANIZATION, KIND_TENANT
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable


class AccountHeads(Client):
    """Looks at accounts."""

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Read the quotas of (partition, tenant id) pairs as they stand; None for one that is not loaded."""
        found = await self.peek(KIND_TENANT, tenants)
        return {
            id_: _quota(states.unpack(states.TenantState, packed)) if packed else None
            for id_, packed in found.items()
        }

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        """Read the credits of (partition, organization id) pairs; None for one that is not loaded."""
        found = await self.peek(KIND_ORGANIZATION, organizations)
        return {
            id_: states.unpack(states.OrganizationState, packed).balance if packed else None
            for id_, packed in found.items()
        }

    async def account_heads(self, owners: Sequence[Owner]) -> dict[str, AccountHead | None]:
        """Read where accounts stand as they are stored, no due reset included, by account name.

        None where the counters have no such account. CountersUnavailable where a partition is not
        verified: what is not there may only not be there yet.
        """
        run_id = self.run_id
        organizations = [(keys.partition_of(one.organization_id), one.organization_id) for one in owners]
        tenants = [
            (keys.partition_of(one.organization_id), tenant_id)
            for one in owners
            for tenant_id in one.tenant_ids
        ]
        for partition in {partition for partition, _ in organizations}:
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable
        found: dict[str, AccountHead | None] = {}
        for tenant_id, packed in (await self.stored(KIND_TENANT, tenants)).items():
            found[f"tenant:{tenant_id}"] = (
                _tokens(states.unpack(states.TenantState, packed)) if packed else None
            )
        for organization_id, packed in (await self.stored(KIND_ORGANIZATION, organizations)).items():
            credits_ = spend = None
            if packed is not None:
                organization = states.unpack(states.OrganizationState, packed)
                credits_ = AccountHead(organization.credit_seq, organization.balance)
                spend = AccountHead(organization.spend_seq, organization.spent)
            found[f"credits:{organization_id}"], found[f"spend:{organization_id}"] = credits_, spend
        return found

    async def holds(self) -> int:
        """Holds of calls in flight, over all partitions."""
        counts = await self.ask_each(
            (b"ZCARD", keys.deadlines(partition).encode()) for partition in range(PARTITIONS)
        )
        return sum(count for count in counts if isinstance(count, int))


def _tokens(tenant: states.TenantState) -> AccountHead:
    return AccountHead(tenant.seq, None if tenant.unlimited else tenant.remaining)


def _quota(state: states.TenantState) -> LiveQuota:
    return LiveQuota(
        tokens_used=state.used,
        tokens_remaining=None if state.unlimited else state.remaining,
        tokens_held=state.held,
        is_blocked=state.is_blocked,
        manual_block=state.manual_block,
        last_reset_ms=state.last_reset,
        next_reset_ms=state.next_reset,
        cycle=state.cycle,
        seq=state.seq,
    )
