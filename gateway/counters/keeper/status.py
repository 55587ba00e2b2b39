"""Read-only queries of the counters: quotas, balances, budgets, seqs and holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from gateway.core.accounts.budget_balances import LiveWindow
from gateway.core.accounts.flush_batch import stream_place
from gateway.core.accounts.plans import LiveQuota
from gateway.core.integrity.reconciliation import Owner
from gateway.core.integrity.recovery import AccountHead
from gateway.core.layout import LAYOUT
from gateway.counters.keeper.client import Client, are_any_there, entries_of
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import live_windows
from gateway.counters.redis import keys
from gateway.errors import CountersUnavailable


class AccountHeads(Client):
    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Return the quotas of (partition, tenant id) pairs as of now; None for a tenant that is not loaded.

        A quota that this version cannot read is omitted.
        """
        found = await self.peek(states.TenantState, tenants)
        return {id_: _quota(state) if state else None for id_, state in found.items()}

    async def peek_balances(self, organizations: Sequence[tuple[int, int]]) -> Mapping[int, int | None]:
        found = await self.peek(states.OrganizationState, organizations)
        return {id_: state.balance if state else None for id_, state in found.items()}

    async def peek_budgets(
        self, accounts: Sequence[tuple[int, str]]
    ) -> dict[str, dict[int, LiveWindow] | None]:
        """Return the stored windows of (partition, account name) pairs, by account name and budget.

        None for a missing account. CountersUnavailable if a partition is not verified.
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
        """Return the balances of stored accounts, and the numbers (seq) of their last movements, by name.

        Due resets are not applied. None for a missing account; one of another version is omitted.
        CountersUnavailable if a partition is not verified, since a missing account may be loaded later.
        """
        organizations = [
            (keys.partition_of(owner.organization_id), owner.organization_id) for owner in owners
        ]
        tenants = [
            (keys.partition_of(owner.organization_id), tenant_id)
            for owner in owners
            for tenant_id in owner.tenant_ids
        ]
        await self._require_verified({partition for partition, _ in organizations})
        account_heads: dict[str, AccountHead | None] = {}
        for id_, tenant in (await self.stored(states.TenantState, tenants)).items():
            account_heads[f"tenant:{id_}"] = AccountHead(tenant.seq, _remaining(tenant)) if tenant else None
        for id_, state in (await self.stored(states.OrganizationState, organizations)).items():
            account_heads[f"credits:{id_}"] = AccountHead(state.credit_seq, state.balance) if state else None
            account_heads[f"spend:{id_}"] = AccountHead(state.spend_seq, state.spent) if state else None
        return account_heads

    async def open_calls(self, organization_id: int, tenant_ids: Sequence[int]) -> int:
        """Return how many calls, holds by the API and jobs of an organization's tenants are open.

        CountersUnavailable if the partition is not verified, since a missing tenant may be loaded later.
        """
        partition = keys.partition_of(organization_id)
        await self._require_verified([partition])
        found = await self.stored(states.TenantState, [(partition, id_) for id_ in tenant_ids])
        return sum(state.inflight for state in found.values() if state)

    async def unreadable(self, owners: Sequence[Owner]) -> set[str]:
        """Return the names of accounts whose stored layout no version up to this one can read."""
        found = set[str]()
        for owner in owners:
            id_, partition = owner.organization_id, keys.partition_of(owner.organization_id)
            names = [keys.tenant_state(partition, tenant_id) for tenant_id in owner.tenant_ids]
            organization = keys.organization_state(partition, id_)
            unread = await self.unreadable_states([*names, organization])
            nobodys = {name for name, raw in unread.items() if raw[0] <= LAYOUT}  # no newer version stored it
            pairs = zip(owner.tenant_ids, names, strict=True)
            found.update(f"tenant:{tenant_id}" for tenant_id, name in pairs if name in nobodys)
            if organization in nobodys:
                found |= {f"credits:{id_}", f"spend:{id_}"}
        return found

    async def _require_verified(self, partitions: Iterable[int]) -> None:
        """Raise CountersUnavailable if a partition is not verified: missing keys may be loaded later."""
        for partition in partitions:
            run_id = self.run_id_of(partition)
            if not run_id or packing.read_marker(await self.marker(partition))[0] != run_id:
                raise CountersUnavailable

    async def depth(self) -> tuple[int, int]:
        """Return the number of entries in all outboxes, and the oldest one's time in ms (0: none)."""
        names = [keys.outbox(partition) for partition in self.partitions]
        firsts = await entries_of(self, dict.fromkeys(names, b""), 1)
        waiting = [
            (name, read[0][0])
            for name, read in zip(names, firsts, strict=True)
            if isinstance(read, list) and read
        ]
        lengths = await self.ask_each((b"XLEN", name.encode()) for name, _ in waiting)
        times = [stream_place(first)[0] for _, first in waiting]
        return sum(length for length in lengths if isinstance(length, int)), min(times, default=0)

    async def holds(self) -> int:
        """Return the number of holds of calls in flight, over all partitions."""
        if not await are_any_there(self, [keys.deadlines(partition) for partition in self.partitions]):
            return 0
        counts = await self.ask_all(b"ZCARD", keys.deadlines)
        return sum(count for count in counts.values() if isinstance(count, int))


def _remaining(tenant: states.TenantState) -> int | None:
    return None if tenant.unlimited else tenant.remaining


def _quota(state: states.TenantState) -> LiveQuota:
    cause = state.block_cause
    return LiveQuota(
        tokens_used=state.used,
        tokens_remaining=_remaining(state),
        tokens_held=state.held,
        is_blocked=state.is_blocked,
        manual_block=state.manual_block,
        block_cause=None if cause is None else cause.word,
        last_reset_ms=state.last_reset,
        next_reset_ms=state.next_reset,
        cycle=state.cycle,
        seq=state.seq,
    )


HOST_CHARS_MAX = 253
