"""The counters as the verifier sees them: what lags, what must be written whole."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import cast

from gateway.core.accounts.definitions import OrganizationAccount, ServiceUse, TenantAccount
from gateway.core.billing.pricing import folded, spend_micro
from gateway.core.billing.tiers import are_money, read_tiers
from gateway.core.integrity.recovery import Markers, Report
from gateway.core.layout import LAYOUT
from gateway.core.model import INTEGER_MAX
from gateway.counters.keeper import worker_reports
from gateway.counters.keeper.budgets import BudgetAccounts
from gateway.counters.keeper.client import fields_of
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.settlement_log.settlement_record import release_of
from gateway.errors import NewerLayout

# A service, and whether its units are money: those are counted apart.
Counted = tuple[int, bool]


class KeeperCounters(BudgetAccounts, AccountHeads):
    """The counters as the keeper's loops and people see them, whole; what verification asks is here."""

    async def markers(self) -> Markers:
        """The partitions as their markers stand under the present run id."""
        markers = await self.ask_all(b"GET", keys.marker)
        found = Markers(self.run_id, [], {}, {})
        for partition, raw in markers.items():
            marker = raw if isinstance(raw, bytes) else b""
            try:
                run_id, epoch, catalogue = packing.read_marker(raw)
            except NewerLayout as error:
                self.left_alone.note("partition", str(partition), error.message)
                found.others.append(partition)
                continue
            self.left_alone.forget("partition", [str(partition)])
            if run_id != found.run_id:
                found.unverified.append((partition, marker, epoch))
                continue
            if marker[0] != LAYOUT:  # of a version before: its scripts must not write here any more
                await self.mark(run_id, partition, marker, epoch, catalogue)
            found.verified[partition] = epoch
            if catalogue == packing.CLOSED:
                found.closed[partition] = epoch
        self.newer = frozenset(found.others)
        return found

    async def reports(self) -> dict[str, Report]:
        """What workers reported last, by worker number."""
        fields = fields_of(await self.ask(b"HGETALL", keys.workers(self.wire.part.anchor).encode()))
        read = ((slot.decode(), worker_reports.unpack(cast("bytes", raw))) for slot, raw in fields.items())
        return {worker_slot: report for worker_slot, report in read if report is not None}

    async def dismiss(self, worker_slots: Collection[str]) -> None:
        """Forget the reports of workers that are gone."""
        await self.ask(
            b"HDEL",
            keys.workers(self.wire.part.anchor).encode(),
            *(worker_slot.encode() for worker_slot in worker_slots),
        )

    async def admit(self, run_id: bytes, partition: int, epoch: int, catalogue: int) -> bool:
        """Open a partition that was closed under this epoch; False where the marker moved on."""
        closed = packing.marker(run_id, epoch, packing.CLOSED)
        return await self.mark(run_id, partition, closed, epoch, catalogue)

    async def late_waiting(self) -> frozenset[int]:
        """Partitions with settlements in their late queue, or whose queue does not say."""
        lengths = await self.ask_all(b"XLEN", keys.late)
        return frozenset(partition for partition, length in lengths.items() if length != 0)

    async def behind(
        self, partition: int, organizations: Sequence[OrganizationAccount], tenants: Sequence[TenantAccount]
    ) -> tuple[list[OrganizationAccount], list[TenantAccount]]:
        """Accounts whose state is missing or whose seq lags; none that another version has stored."""
        ids = [(partition, one.definition.organization_id) for one in organizations]
        stored = await self.stored(states.OrganizationState, ids)
        known = await self.stored(
            states.TenantState, [(partition, one.definition.tenant_id) for one in tenants]
        )
        late_organizations = [
            one
            for one in organizations
            if (id_ := one.definition.organization_id) in stored and _organization_behind(one, stored[id_])
        ]
        return late_organizations, [
            one
            for one in tenants
            if (id_ := one.definition.tenant_id) in known and _tenant_behind(one, known[id_])
        ]

    async def restore(
        self,
        partition: int,
        marker: bytes,
        organizations: Sequence[OrganizationAccount],
        tenants: Sequence[TenantAccount],
    ) -> bool:
        """Write these accounts as PostgreSQL has them, with what the holds that are there hold of them.

        False where the marker moved on.
        """
        found = (await self._holds(partition, list(await self.held(partition)))).values()
        holds = [hold for hold, _, _ in found]
        tiers = {(hold.service_id, are_money(tiers)): tiers for hold, _, tiers in found}
        parts: dict[str, bytes] = {}
        for organization in organizations:
            id_ = organization.definition.organization_id
            mine = [hold for hold in holds if hold.organization_id == id_]
            money = [are_money(packed) for hold, _, packed in found if hold.organization_id == id_]
            uses = _with_holds_of_services(organization, mine, money, tiers)
            state = _with_holds_of_organization(organization_state(organization), mine, uses)
            parts[keys.organization_state(partition, id_)] = states.pack(state)
            for (service_id, in_money), use in uses.items():
                name = keys.activation(partition, id_, service_id, in_money=in_money)
                parts[name] = states.pack(use)
        for tenant in tenants:
            name = keys.tenant_state(partition, tenant.definition.tenant_id)
            parts[name] = states.pack(_with_holds_of_tenant(tenant_state(tenant), holds))
        for name, packed in parts.items():
            if not await self.rebuild(partition, name, packed, marker):
                return False
        return True

    async def held(self, partition: int) -> dict[str, int]:
        """The deadlines of all holds of a partition by request id, in ms of Redis' clock."""
        found = await self.ask(b"ZRANGE", keys.deadlines(partition).encode(), b"0", b"-1", b"WITHSCORES")
        flat = found if isinstance(found, list) else []
        return {
            name.decode(): int(float(score))
            for name, score in zip(flat[::2], flat[1::2], strict=True)
            if isinstance(name, bytes) and isinstance(score, bytes)
        }

    async def let_go(self, partition: int, before: bytes, epoch: int, ids: Sequence[str]) -> bytes | None:
        """End these holds without a charge, under a marker only this keeper knows; answers that marker.

        None where the marker moved on.
        """
        run_id = (b"let-go:%b" % uuid.uuid4().hex.encode()).ljust(len(self.run_id), b".")
        marker = packing.marker(run_id, epoch, packing.read_marker(before)[2])
        if not await self.rebuild(partition, keys.marker(partition), marker, before):
            return None
        stored = await self.states([keys.hold(partition, one) for one in ids])
        for request_id, packed in zip(ids, stored, strict=True):
            if packed:
                with self.left_alone.reading("hold", f"{partition} {request_id}"):
                    release = release_of(request_id, packed)
                    await self.run("settle", packing.settle(run_id, 0, release, packing.MODE_RELEASE))
        return marker

    async def _holds(
        self, partition: int, ids: Sequence[str]
    ) -> dict[str, tuple[states.HoldState, str, bytes]]:
        """Holds by request id: what is held, the caller's own user, the tiers; none that cannot be read."""
        raw = await self.states([keys.hold(partition, one) for one in ids])
        found = {}
        for one, packed in zip(ids, raw, strict=True):
            if packed:
                with self.left_alone.reading("hold", f"{partition} {one}"):
                    found[one] = states.unpack_hold(packed)
        return found

    async def forgotten(self, partition: int, ids: Sequence[str]) -> list[str]:
        """Control writes among these that the counters do not remember."""
        if not ids:
            return []
        fields = [one.encode() for one in ids]
        answer = await self.ask(b"HMGET", keys.control(partition).encode(), *fields)
        assert isinstance(answer, list)
        return [one for one, known in zip(ids, answer, strict=True) if known is None]

    async def all_verified(self, run_id: bytes) -> None:
        """Say that whatever is not here does not exist."""
        await self.ask(b"SET", keys.verified(self.wire.part.anchor).encode(), run_id)

    async def said_verified(self, run_id: bytes, unverified: Sequence[object] = ()) -> bool:
        """Whether a keeper has said so under this run id.

        Partitions that are not verified came with slots that were moved here. What is not there of them may
        exist, so it is not said any more.
        """
        name = keys.verified(self.wire.part.anchor).encode()
        said = await self.ask(b"GET", name) == run_id
        if said and unverified:
            await self.ask(b"DEL", name)
        return said


def tenant_state(account: TenantAccount) -> states.TenantState:
    """A tenant's whole state from its account; nothing held, full buckets."""
    definition, terms = account.definition, account.definition.terms
    started = account.seq > 0
    total = -1 if account.total is None else account.total
    has_plan = terms.plan_id > 0 and started
    return states.TenantState(
        **packing.limits(definition.limits),
        **packing.limits(definition.user_limits, "user_"),
        flags=(states.MANUAL_BLOCK if account.manual_block else 0)
        | (states.HAS_PLAN if has_plan else 0)
        | (states.FORGIVES if account.forgives else 0),
        total=total if started else -1,
        limit=account.granted if account.remaining is None else account.remaining + account.used,
        used=account.used,
        cycle=account.cycle,
        next_reset=account.next_reset_ms,
        last_reset=account.last_reset_ms,
        seq=account.seq,
        ledger_at=account.last_reset_ms,
        tenant_id=definition.tenant_id,
        organization_id=definition.organization_id,
        **packing.plan(terms if has_plan else replace(terms, plan_id=0, reset_interval="none")),
    )


def _with_holds_of_tenant(state: states.TenantState, holds: Sequence[states.HoldState]) -> states.TenantState:
    mine = [hold for hold in holds if hold.tenant_id == state.tenant_id]
    return replace(state, inflight=_slots(mine), held=sum(hold.tokens for hold in mine))


def _with_holds_of_services(
    account: OrganizationAccount,
    holds: Sequence[states.HoldState],
    money: Sequence[bool],
    tiers: Mapping[Counted, bytes],
) -> dict[Counted, states.ActivationState]:
    """What is kept of each service, its units in flight included, and what they would cost together.

    `money` says of each hold whether its units are.
    """
    uses = {(use.service_id, use.in_money): activation_state(use) for use in account.uses}
    for hold, in_money in zip(holds, money, strict=True):
        if hold.flags & states.HOLD_USES and not hold.credits:
            use = uses.setdefault((hold.service_id, in_money), states.ActivationState())
            use.held = min(use.held + hold.units, INTEGER_MAX)
    for counted, use in uses.items():
        if use.held and account.definition.cap is not None:
            use.held_price = spend_micro(read_tiers(tiers[counted]), use.quantity, use.held)
    return uses


def _with_holds_of_organization(
    state: states.OrganizationState,
    mine: Sequence[states.HoldState],
    uses: Mapping[Counted, states.ActivationState],
) -> states.OrganizationState:
    paying = [hold for hold in mine if not hold.flags & states.HOLD_ONE_TIME]
    alone = sum(hold.credits for hold in paying if hold.flags & states.HOLD_USES)
    return replace(
        state,
        inflight=_slots(mine),
        credits_held=sum(hold.credits for hold in paying if not hold.flags & states.HOLD_USES),
        spend_held=alone + sum(use.held_price for use in uses.values()),
    )


def _slots(holds: Sequence[states.HoldState]) -> int:
    return sum(not hold.flags & states.HOLD_LEASE for hold in holds)


def activation_state(use: ServiceUse) -> states.ActivationState:
    """What is kept of a service: nothing is paid twice, no tier begins again."""
    quantity = folded(use.quantity) if use.in_money else min(use.quantity, INTEGER_MAX)
    return states.ActivationState(
        flags=states.ACTIVE if use.activated else 0, month=use.month, quantity=quantity
    )


def organization_state(account: OrganizationAccount) -> states.OrganizationState:
    """An organization's whole state from its accounts."""
    definition = account.definition
    return states.OrganizationState(
        **packing.limits(definition.limits),
        credits_used=-account.balance,
        credit_limit=definition.credit_limit,
        credit_seq=account.credit_seq,
        ahead=account.ahead,
        cap=-1 if definition.cap is None else definition.cap,
        spent=account.spent,
        month=account.month,
        spend_seq=account.spend_seq,
        organization_id=definition.organization_id,
    )


def _organization_behind(account: OrganizationAccount, state: states.OrganizationState | None) -> bool:
    return state is None or state.credit_seq < account.credit_seq or state.spend_seq < account.spend_seq


def _tenant_behind(account: TenantAccount, state: states.TenantState | None) -> bool:
    return state is None or state.seq < account.seq
