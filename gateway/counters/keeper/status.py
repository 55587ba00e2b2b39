"""Where accounts stand in the counters, looked at only: quotas, balances, budgets, seqs, holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gateway.core.accounts.budget_figures import LiveWindow
from gateway.core.accounts.quota import LiveQuota
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.verified import AccountHead
from gateway.core.layout import LAYOUT
from gateway.counters.keeper.client import Client, is_readable
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.budgets import live_windows
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable


class AccountHeads(Client):
    """Looks at accounts."""

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Read the quotas of (partition, tenant id) pairs as they stand; None for one that is not loaded.

        Nothing of one that nobody here can read, here and below.
        """
        found = await self.peek(states.TenantState, tenants)
        return {id_: _quota(state) if state else None for id_, state in found.items()}

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        """Read the credits of (partition, organization id) pairs; None for one that is not loaded."""
        found = await self.peek(states.OrganizationState, organizations)
        return {id_: state.balance if state else None for id_, state in found.items()}

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> dict[str, dict[int, LiveWindow] | None]:
        """Read windows, by budget, of (partition, account name) pairs as they are stored.

        None where there is no such account. CountersUnavailable where a partition is not verified.
        """
        named: dict[int, list[str]] = {}
        for partition, name in accounts:
            named.setdefault(partition, []).append(name)
        await self._require_verified(named)
        found: dict[str, dict[int, LiveWindow] | None] = {}
        for partition, names in named.items():
            raw = await self.states([keys.budget_account(partition, name) for name in names])
            for name, packed in zip(names, raw, strict=True):
                with self.left_alone.reading("account", keys.budget_account(partition, name)):
                    found[name] = None if packed is None else live_windows(packed)
        return found

    async def account_heads(self, owners: Sequence[Owner]) -> dict[str, AccountHead | None]:
        """Read where accounts stand as they are stored, no due reset included, by account name.

        None where the counters have no such account; nothing of one that another version has stored.
        CountersUnavailable where a partition is not verified: what is not there may only not be there yet.
        """
        organizations = [(keys.partition_of(one.organization_id), one.organization_id) for one in owners]
        tenants = [
            (keys.partition_of(one.organization_id), tenant_id)
            for one in owners
            for tenant_id in one.tenant_ids
        ]
        await self._require_verified({partition for partition, _ in organizations})
        found: dict[str, AccountHead | None] = {}
        for id_, tenant in (await self.stored(states.TenantState, tenants)).items():
            found[f"tenant:{id_}"] = AccountHead(tenant.seq, _remaining(tenant)) if tenant else None
        for id_, state in (await self.stored(states.OrganizationState, organizations)).items():
            found[f"credits:{id_}"] = AccountHead(state.credit_seq, state.balance) if state else None
            found[f"spend:{id_}"] = AccountHead(state.spend_seq, state.spent) if state else None
        return found

    async def unreadable(self, owners: Sequence[Owner]) -> set[str]:
        """Which of their accounts are stored as no version up to ours stores them, by account name."""
        found = set[str]()
        for one in owners:
            id_, partition = one.organization_id, keys.partition_of(one.organization_id)
            names = [keys.tenant_state(partition, tenant_id) for tenant_id in one.tenant_ids]
            *tenants, organization = await self.states([*names, keys.organization_state(partition, id_)])
            for tenant_id, raw in zip(one.tenant_ids, tenants, strict=True):
                if _is_nobodys(states.TenantState, raw):
                    found.add(f"tenant:{tenant_id}")
            if _is_nobodys(states.OrganizationState, organization):
                found |= {f"credits:{id_}", f"spend:{id_}"}
        return found

    async def _require_verified(self, partitions: Iterable[int]) -> None:
        """CountersUnavailable where one is not verified: what is not there may only not be there yet."""
        for partition in partitions:
            run_id = self.run_id_of(partition)
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable

    async def holds(self) -> int:
        """Holds of calls in flight, over all partitions."""
        counts = await self.ask_all(b"ZCARD", keys.deadlines)
        return sum(count for count in counts.values() if isinstance(count, int))


def _is_nobodys(kind: type[states.State], raw: bytes | None) -> bool:
    """Whether a state cannot be read, though no newer version may have stored it."""
    return False if not raw or raw[0] > LAYOUT else not is_readable(kind, raw)


def _remaining(tenant: states.TenantState) -> int | None:
    return None if tenant.unlimited else tenant.remaining


def _quota(state: states.TenantState) -> LiveQuota:
    return LiveQuota(
        tokens_used=state.used,
        tokens_remaining=_remaining(state),
        tokens_held=state.held,
        is_blocked=state.is_blocked,
        manual_block=state.manual_block,
        last_reset_ms=state.last_reset,
        next_reset_ms=state.next_reset,
        cycle=state.cycle,
        seq=state.seq,
    )
