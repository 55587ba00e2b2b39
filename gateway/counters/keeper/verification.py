"""The queries and writes of the verifier: which accounts lag, and which are written whole."""

from __future__ import annotations

import uuid
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from typing import cast

from gateway.core.accounts.budget_amounts import format_number
from gateway.core.accounts.budgets import Budget
from gateway.core.accounts.definitions import KeyDefinition, OrganizationAccount, TenantAccount
from gateway.core.integrity.recovery import KnownOtherwise, LedgerState, Markers
from gateway.core.integrity.roster import WorkerReport
from gateway.core.layout import EARLIER, LAYOUT
from gateway.core.text import batched
from gateway.counters.admission.stored import decode_terms, version_standing
from gateway.counters.history_guard import NOBODY
from gateway.counters.keeper import rebuild, worker_reports
from gateway.counters.keeper.budget_accounts import BudgetAccounts
from gateway.counters.keeper.bulk import BulkLoader
from gateway.counters.keeper.client import (
    APPLIED,
    TOGETHER_MAX,
    fields_of,
    is_readable,
    markers_of,
    read_marker,
    with_late,
)
from gateway.counters.keeper.status import AccountHeads
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.calls import AnotherType
from gateway.counters.settlement_log.settlement_record import release_of
from gateway.errors import NewerLayout

# States written by one script call, which blocks Redis for some tenths of a millisecond.
REBUILT_MAX = 50


class KeeperCounters(BulkLoader, BudgetAccounts, AccountHeads):
    """All access of the keeper's loops and people to the counters; verification is in this class."""

    async def markers(self) -> Markers:
        """Return the state of all partitions by their markers, compared with the current run id."""
        markers = await markers_of(self, self.partitions)
        found = Markers(self.run_id, [], {}, {})
        for partition, raw in markers.items():
            marker = raw if isinstance(raw, bytes) else b""
            try:
                run_id, epoch, catalogue = read_marker(marker)
            except NewerLayout as error:
                self.left_alone.note("partition", str(partition), error.message)
                found.others.append(partition)
                continue
            self.left_alone.forget("partition", [str(partition)])
            if run_id != found.run_id:
                found.unverified.append((partition, marker, epoch))
                found.before[partition] = run_id
                continue
            layout = LAYOUT if self.takes_up() else EARLIER
            if marker[0] < layout:  # no process reads only the older layout here
                await self.mark(run_id, partition, marker, epoch, catalogue, layout=layout)
            found.verified[partition] = epoch
            if catalogue == packing.CLOSED:
                found.closed[partition] = epoch
        self.newer = frozenset(found.others)
        return found

    async def close_again(self, run_id: bytes, partitions: Collection[int]) -> None:
        """Replace markers with this run id by invalid ones, so that these partitions are not served or read.

        Markers with another run id are left unchanged.
        """
        for partition, raw in (await markers_of(self, partitions)).items():
            with suppress(NewerLayout):
                named, epoch, catalogue = packing.read_marker(raw)
                if isinstance(raw, bytes) and named == run_id:
                    closed = packing.marker(NOBODY, epoch, catalogue, packing.layout_of(raw))
                    await self.rebuild(partition, keys.marker(partition), closed, raw)

    async def reports(self) -> dict[str, WorkerReport]:
        """Return the last reports of workers, by worker number."""
        fields = fields_of(await self.ask(b"HGETALL", keys.workers(self.wire.part.anchor).encode()))
        ours = ((slot.decode(), raw) for slot, raw in fields.items() if slot.isascii())
        read = ((slot, worker_reports.unpack(cast("bytes", raw))) for slot, raw in ours)
        return {worker_slot: report for worker_slot, report in read if report is not None}

    async def dismiss(self, worker_slots: Collection[str]) -> None:
        """Delete the reports of workers that are gone."""
        await self.ask(
            b"HDEL",
            keys.workers(self.wire.part.anchor).encode(),
            *(worker_slot.encode() for worker_slot in worker_slots),
        )

    async def admit(self, run_id: bytes, partition: int, epoch: int, catalogue: int) -> bool:
        """Open a partition to admission that was closed under this epoch; False if its marker changed."""
        closed = await self.marker(partition)
        is_it = packing.read_marker(closed) == (run_id, epoch, packing.CLOSED)
        return is_it and await self.mark(run_id, partition, closed, epoch, catalogue)

    async def late_waiting(self) -> frozenset[int]:
        """Return partitions whose late queue is not empty, or cannot be read."""
        return frozenset(partition for partition, _ in await with_late(self))

    async def behind(
        self, partition: int, organizations: Sequence[OrganizationAccount], tenants: Sequence[TenantAccount]
    ) -> tuple[list[OrganizationAccount], list[TenantAccount]]:
        """Return accounts whose stored state is missing or older (has a lower seq) than PostgreSQL's.

        States of another version are left out.
        """
        ids = [(partition, organization.definition.organization_id) for organization in organizations]
        stored = await self.stored(states.OrganizationState, ids)
        known = await self.stored(
            states.TenantState, [(partition, tenant.definition.tenant_id) for tenant in tenants]
        )
        late_organizations = [
            organization
            for organization in organizations
            if (id_ := organization.definition.organization_id) in stored
            and _organization_behind(organization, stored[id_])
        ]
        return late_organizations, [
            tenant
            for tenant in tenants
            if (id_ := tenant.definition.tenant_id) in known and _tenant_behind(tenant, known[id_])
        ]

    async def unknown(self, partition: int, known: Sequence[KeyDefinition]) -> list[KeyDefinition]:
        """Return those of the `known` API keys that have no stored state."""
        raw = await self.states([keys.key_state(partition, key.key_id) for key in known])
        return [key for key, packed in zip(known, raw, strict=True) if packed is None]

    async def find_differences(self, truth: LedgerState) -> dict[int, KnownOtherwise]:
        """Return by organization what Redis knows otherwise than the rows in `truth`, those of one partition.

        It has the ends of keys that Redis knows as revoked or ended earlier, and overrides. Of rows that had
        the same id before PostgreSQL was set back, nothing is returned.
        """
        now_ms, known = await self.now_ms(), defaultdict[int, KnownOtherwise](KnownOtherwise)
        live = [key for key in truth.keys if not key.revoked and not 0 < key.expires_ms <= now_ms]
        names = [keys.key_state(keys.partition_of(key.organization_id), key.key_id) for key in live]
        for key, name, packed in zip(live, names, await self.states(names), strict=True):
            with self.left_alone.reading("account", name):
                state = states.unpack(states.KeyState, packed) if packed else None
                if state is None or state.created not in {0, key.created}:
                    continue
                if state.flags:  # revoked
                    known[key.organization_id].keys[key.key_id] = 0
                elif state.expires and not 0 < key.expires_ms <= state.expires:
                    known[key.organization_id].keys[key.key_id] = state.expires
        rows = [organization.definition for organization in truth.organizations]
        pairs = [(keys.partition_of(row.organization_id), row.organization_id) for row in rows]
        accounts = await self.stored(states.OrganizationState, pairs)
        terms = await self.states([keys.organization_terms(row.organization_id) for row in rows])
        for row, packed in zip(rows, terms, strict=True):
            account = accounts.get(row.organization_id)
            if packed is None or account is None or account.created not in {0, row.created}:
                continue
            with self.left_alone.reading("account", f"organization {row.organization_id}"):
                budgets = {budget.id: budget for budget in decode_terms(packed).budgets}
                for budget in row.terms.budgets:
                    if overrides := _differing_overrides(budget, budgets.get(budget.id, budget), now_ms):
                        known[row.organization_id].overrides[budget.id] = overrides
        return known

    async def restore(self, partition: int, marker: bytes, lost: LedgerState) -> bool:
        """Write accounts and keys as PostgreSQL has them, plus the amounts of existing holds.

        False if the marker changed meanwhile.
        """
        calls = (
            rebuild.load_call(self.run_id_of(partition), partition, some, marker)
            for some in batched(await self.pack_states(partition, lost), REBUILT_MAX)
        )
        answers = await self.run_all("load", calls, TOGETHER_MAX // REBUILT_MAX)
        return all(packing.code_of(answer) == APPLIED for answer in answers)

    async def pack_states(self, partition: int, truth: LedgerState) -> Iterator[tuple[str, bytes]]:
        """Return key and packed state of each account and API key in `truth`, with the amounts of existing holds."""
        holds = await self._holds(partition, list(await self.held(partition)))
        return rebuild.states_of(partition, truth, list(holds.values()))

    def pack_users(self, partition: int, truth: LedgerState) -> dict[str, bytes]:
        """Return the packed state of each user with limits of its own, by key: with full buckets."""
        return {
            keys.user_state(partition, user.tenant_id, user.user): states.pack(
                states.UserState(**packing.limits(user.limits), flags=1, version=truth.version)
            )
            for user in truth.users
        }

    async def look_again(self) -> None:
        """Remove accounts that are readable or gone by now from those that this version cannot read."""
        for name in self.left_alone.names("account"):
            raw = await self.ask(b"GET", name.encode())
            if not isinstance(raw, bytes) or is_readable(name, raw):
                self.left_alone.forget("account", [name])

    async def held(self, partition: int) -> dict[str, int]:
        """Return the deadlines of all holds of a partition by request id, in ms of Redis' clock."""
        raw = await self.ask(b"ZRANGE", keys.deadlines(partition).encode(), b"0", b"-1", b"WITHSCORES")
        flat = raw if isinstance(raw, list) else []
        return {
            name.decode(): int(float(score))
            for name, score in zip(flat[::2], flat[1::2], strict=True)
            if isinstance(name, bytes) and name.isascii() and isinstance(score, bytes) and b"inf" not in score
        }

    async def take_up_layout(self, partition: int, before: bytes, *, is_needed: bool) -> bytes | None:
        """Rewrite an unverified partition in today's layout, if all programs read it; return its marker.

        A partition for which today's layout `is_needed` has budgets that only this can hold: written in the one before,
        they would be cut for good. None if the marker is no longer `before`.
        """
        if not (is_needed or self.takes_up()) or packing.layout_of(before) == LAYOUT:
            return before
        run_id, epoch, catalogue = packing.read_marker(before)
        marker = packing.marker(run_id or NOBODY, epoch, catalogue, LAYOUT)
        return marker if await self.rebuild(partition, keys.marker(partition), marker, before) else None

    async def release_holds(
        self, partition: int, before: bytes, epoch: int, ids: Sequence[str]
    ) -> bytes | None:
        """Release holds without a charge, under a temporary marker of this keeper; return that marker.

        None if the marker changed meanwhile.
        """
        run_id = (b"let-go:%b" % uuid.uuid4().hex.encode()).ljust(len(self.run_id), b".")
        marker = packing.marker(run_id, epoch, packing.read_marker(before)[2], packing.layout_of(before))
        if not await self.rebuild(partition, keys.marker(partition), marker, before):
            return None
        stored = await self.states([keys.hold(partition, id_) for id_ in ids])
        releases = list[packing.Call]()
        for request_id, packed in zip(ids, stored, strict=True):
            if packed:
                with self.left_alone.reading("hold", f"{partition} {request_id}"):
                    release = release_of(request_id, packed)
                    releases.append(packing.settle(run_id, 0, release, packing.MODE_RELEASE))
        await self.run_all("settle", releases, TOGETHER_MAX)
        return marker

    async def _holds(
        self, partition: int, ids: Sequence[str]
    ) -> dict[str, tuple[states.HoldState, str, bytes]]:
        """Return readable holds by request id, each with its caller's own user id and its price tiers."""
        raw = await self.states([keys.hold(partition, id_) for id_ in ids])
        holds = {}
        for id_, packed in zip(ids, raw, strict=True):
            if packed:
                with self.left_alone.reading("hold", f"{partition} {id_}"):
                    holds[id_] = states.unpack_hold(packed)
        return holds

    async def forgotten(self, partition: int, ids: Sequence[str]) -> list[str]:
        """Return those `ids` of control writes that the counters do not have."""
        if not ids:
            return []
        fields = [id_.encode() for id_ in ids]
        answer = await self.ask(b"HMGET", keys.control(partition).encode(), *fields)
        assert isinstance(answer, list)
        return [id_ for id_, known in zip(ids, answer, strict=True) if known is None]

    async def all_verified(self, run_id: bytes) -> None:
        """Store that all data of this server is verified: then a missing key means that nothing exists."""
        await self.ask(b"SET", keys.verified(self.wire.part.anchor).encode(), run_id)

    async def published(self, *, whole: bool) -> dict[str, int]:
        """Return the versions of the global lists by key: 0 for a missing one, -1 for an unreadable one.

        Lists that are only checked to exist are omitted: the prices, and unless `whole` the catalogue.
        """
        positions: dict[str, int] = {}
        for name in (keys.PRICES_HEAD, *((keys.CATALOGUE,) if whole else ())):
            try:
                positions[name] = version_standing(await self.ask_everybodys(b"GET", name.encode()))
            except AnotherType:
                positions[name] = -1
        for name in (keys.PRICES, *(() if whole else (keys.CATALOGUE,))):
            kind = await self.ask_everybodys(b"TYPE", name.encode())
            if kind != b"string":
                positions[name] = 0 if kind == b"none" else -1
        return positions

    async def last_verified(self) -> bytes:
        """Return the run id that all data of this server was last verified for; b"" if never."""
        raw = await self.ask(b"GET", keys.verified(self.wire.part.anchor).encode())
        return raw if isinstance(raw, bytes) else b""

    async def is_marked_verified(self, run_id: bytes, unverified: Sequence[object] = ()) -> bool:
        """Return whether all data of this server is marked as verified under this run id.

        If there are `unverified` partitions, which came with moved slots, the mark is deleted, because their
        missing keys may still be loaded.
        """
        name = keys.verified(self.wire.part.anchor).encode()
        is_marked = await self.ask(b"GET", name) == run_id
        if is_marked and unverified:
            await self.ask(b"DEL", name)
        return is_marked


def _differing_overrides(stored: Budget, known: Budget, at_ms: int) -> dict[str, list[object] | None]:
    """Return, by owner, the overrides in force that differ from those `known`, as a row has the known ones."""
    ours, theirs = (
        {owner: own for owner, own in budget.overrides.items() if own.is_in_force(at_ms)}
        for budget in (stored, known)
    )
    differing = {
        owner: theirs.get(owner) for owner in {**ours, **theirs} if ours.get(owner) != theirs.get(owner)
    }
    return {
        owner: own
        and [None if own.amount is None else format_number(known.unit, own.amount), own.until_ms or None]
        for owner, own in differing.items()
    }


def _organization_behind(account: OrganizationAccount, state: states.OrganizationState | None) -> bool:
    if state is None or state.created not in {0, account.definition.created}:
        return True
    return state.credit_seq < account.credit_seq or state.spend_seq < account.spend_seq


def _tenant_behind(account: TenantAccount, state: states.TenantState | None) -> bool:
    if state is None or state.created not in {0, account.definition.created}:
        return True
    return state.seq < account.seq
