"""Applies control writes, definitions, identities, the catalogue and prices to the counters in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import suppress
from typing import Any, cast

import msgspec

from gateway.core.accounts.budgets import account_of as budget_account_of
from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    ControlWrite,
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    PricesDefinition,
    TenantDefinition,
)
from gateway.core.accounts.plans import SINCE_MS, PlanTerms
from gateway.core.integrity.recovery import NewestWrite
from gateway.core.layout import LAYOUT
from gateway.core.model import BLOCK_CAUSES, PARTITIONS, BlockCause, Caller
from gateway.core.wait import in_task
from gateway.counters.admission.stored import (
    decode_terms,
    encode_catalogue,
    encode_head,
    encode_identity,
    encode_prices,
    encode_terms,
    key_of,
    version_standing,
)
from gateway.counters.keeper.client import (
    ANOTHERS,
    APPLIED,
    APPLIED_BEFORE,
    OUT_OF_RANGE,
    TOGETHER_MAX,
    UNKNOWN_ACCOUNT,
    UNREADABLE,
    UNVERIFIED,
    Client,
)
from gateway.counters.keeper.uses import amend, charge_late, charge_use
from gateway.counters.layouts import packing
from gateway.counters.redis import keys
from gateway.counters.redis.calls import NO_ID, AnotherType, Reply
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.counters.settlement_log.settlement_record import acknowledged
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange

# Accounts reset by one script call.
RESET_ACCOUNTS = 250
# The epoch of a partition that was never served before.
FIRST_EPOCH = 1
CHARGES = {"use": charge_use, "amend": amend, "late": charge_late}


# Without an answer in this time the newest write that was known last counts: an id may be given twice, but no
# writer waits longer.
NEWEST_TIMEOUT_S = 1.0


class _StoredNewest(msgspec.Struct):
    write: NewestWrite


_read_newest = msgspec.json.Decoder(_StoredNewest).decode


class ControlClient(Client):
    # The newest control write that this process knows, and whether Redis has ever answered.
    _newest: NewestWrite | None = None
    _has_answered = False

    async def apply(self, write: ControlWrite) -> bool:
        """Apply one control write to the counters; False if its account does not exist yet.

        OutOfRange if an amount would become too large for exact integers. CountersRefused if a newer version
        owns the partition, because its writes have fields that this version does not know.
        """
        await self._refuse_newer(write.organization_id)
        if write.verb == "define":
            for definition in write.definitions:
                if not await self.define(definition, write.position):
                    return False
            return True
        if write.verb == "budget":
            return await self.reset_budget(write)
        if "taken" in write.payload:
            return await self.take_from_budget(write)
        if write.verb in CHARGES:
            return await CHARGES[write.verb](self, write)
        code = await self.grant(
            write.verb, write.tenant_id, write.organization_id,
            amount=_amount(write), write_id=write.id, metadata=_metadata(write), terms=write.terms,
        )  # fmt: skip
        if code == UNVERIFIED:
            raise CountersUnavailable
        if code == OUT_OF_RANGE:
            raise OutOfRange
        return code in {APPLIED, APPLIED_BEFORE}

    async def _refuse_newer(self, organization_id: int) -> None:
        """Raise CountersRefused if a newer version owns an organization's partition; for id 0, any server."""
        anchors = [wire.part.anchor for wire in self._wires.wires if wire.part.anchor >= 0]
        for partition in [keys.partition_of(organization_id)] if organization_id else anchors:
            try:
                packing.read_marker(await self.marker(partition))
            except CountersRefused:
                raise
            except CountersUnavailable:  # other servers may be available
                continue

    async def reset_budget(self, write: ControlWrite) -> bool:
        """Reset a budget's window in all its accounts, some at a time.

        Only the last batch stores the id of the write: a keeper that dies before that starts over, and also
        resets use that came meanwhile.
        """
        organization_id, budget_id = write.organization_id, write.payload["budget_id"]
        assert isinstance(budget_id, int)
        name, partition = str(write.payload["account"]), keys.partition_of(organization_id)
        if await self.ask(b"HEXISTS", keys.control(partition).encode(), write.id.encode()):
            return True
        like, _, somebodys = name.partition(":")
        values = await self.members(keys.each_accounts(partition, name)) if somebodys else []
        names = [f"{like}:{value}" for value in values] if somebodys else [name]
        cuts = range(0, len(names), RESET_ACCOUNTS) or range(1)
        for start in cuts:
            code = await self.grant(
                "budget", 0, organization_id,
                amount=budget_id, metadata=_metadata(write),
                write_id=write.id if start == cuts[-1] else NO_ID,
                accounts=names[start : start + RESET_ACCOUNTS],
            )  # fmt: skip
            if code == UNVERIFIED:
                raise CountersUnavailable
        return code in {APPLIED, APPLIED_BEFORE}

    async def take_from_budget(self, write: ControlWrite) -> bool:
        """Subtract from a budget's window the cost that an amended price has taken off, in some accounts.

        A window that is over stays as it is.
        """
        payload: Any = write.payload
        code = await self.grant(
            "budget", 0, write.organization_id, amount=payload["budget_id"], write_id=write.id,
            metadata=_metadata(write), accounts=list(payload["taken"]),
            parts=[(payload["start_ms"], amount) for amount in payload["taken"].values()],
        )  # fmt: skip
        if code == UNVERIFIED:
            raise CountersUnavailable
        return code in {APPLIED, APPLIED_BEFORE}

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        """Reset a tenant's quota if its period is over; return whether it was reset."""
        return await self.grant("sweep", tenant_id, organization_id) == APPLIED

    async def grant(
        self, verb: str, tenant_id: int, organization_id: int, *,
        amount: int = 0, write_id: str = NO_ID, metadata: bytes = b"", terms: PlanTerms | None = None,
        accounts: Sequence[str] = (), parts: Sequence[tuple[int, int]] = (),
    ) -> int:  # fmt: skip
        """Run the script `grant`; add its answer's movements to `moved`, and return the answer's code."""
        partition = keys.partition_of(organization_id)
        call = packing.grant(
            self.run_id_of(partition), verb, amount, write_id,
            tenant_id=tenant_id, organization_id=organization_id, metadata=metadata, terms=terms,
            accounts=accounts, parts=parts,
        )  # fmt: skip
        answer = await self.run("grant", call)
        self.moved += acknowledged(Caller(organization_id, tenant_id, 0, partition), answer)
        return packing.code_of(answer)

    async def define(self, definition: Definition, version: int) -> bool:
        """Write one definition to the counters; False if its account must be rebuilt first."""
        if isinstance(definition, CatalogueDefinition):
            await self._catalogue(definition, version)
            return True
        if isinstance(definition, PricesDefinition):
            await self.publish(definition, version)
            return True
        if isinstance(definition, KeyDefinition) and definition.gone:
            await self.identity(definition)
            return True
        known = await self.define_account(definition, version)
        if known and isinstance(definition, KeyDefinition):
            await self.identity(definition)
        return known

    async def define_account(self, definition: AccountDefinition, version: int) -> bool:
        """Write an account's definition in its organization's partition; False if it must be rebuilt.

        If the account is that of another row, which had the same id before PostgreSQL was set back, all other
        values of that row are deleted too.
        """
        before: Reply = None
        if isinstance(definition, OrganizationDefinition):  # before anything of it is served
            await self._refuse_newer(definition.organization_id)
            name = keys.organization_terms(definition.organization_id)
            before = await self.ask(b"GET", name.encode())
            await self.newest(name, encode_terms(version, definition.terms), version)
        create = not getattr(definition, "has_ledger", False)
        run_id = self.run_id_of(keys.partition_of(definition.organization_id))
        call = packing.define(run_id, version, definition, create=create)
        code = packing.code_of(await self.run("load", call))
        if code == UNVERIFIED:
            raise CountersUnavailable
        if code == ANOTHERS:
            match definition:
                case OrganizationDefinition():
                    await self._end_organization(definition.organization_id, before)
                case TenantDefinition():
                    await self._end_runs(definition)
        return code != UNKNOWN_ACCOUNT

    async def _end_organization(self, organization_id: int, terms: Reply) -> None:
        """Delete the use of services and of the budgets of another organization, which had these terms."""
        partition, names = keys.partition_of(organization_id), list[str]()
        with suppress(*UNREADABLE):
            for budget in decode_terms(terms).budgets if isinstance(terms, bytes) else ():
                name = budget_account_of(organization_id, budget)
                index = keys.each_accounts(partition, name)
                accounts = await self.members(index) if budget.each else [name]
                names += [index, *(keys.budget_account(partition, account) for account in accounts)]
        like = keys.activation(partition, organization_id, 0)[:-1]
        async for stored in self._named(self._wires.of(partition), like.encode()):
            names += [name.decode() for name in stored]
        await self._delete(names)

    async def _end_runs(self, definition: TenantDefinition) -> None:
        """Delete the runs of another tenant, which had this id."""
        partition = keys.partition_of(definition.organization_id)
        index = keys.runs(partition, definition.tenant_id)
        kinds = keys.run, keys.children, keys.budget_account
        names = [kind(partition, run) for run in await self.members(index) for kind in kinds]
        await self._delete([index, *names])

    async def _delete(self, names: Iterable[str]) -> None:
        await self.ask_together((b"DEL", name.encode()) for name in names)

    async def _named(self, wire: RedisConnection, begins: bytes) -> AsyncIterator[list[bytes]]:
        """Yield a server's keys whose names begin with `begins`, some at a time, some of them twice."""
        at, begun = b"0", False
        while at != b"0" or not begun:
            command = b"SCAN", at, b"MATCH", begins + b"*", b"COUNT", b"%d" % TOGETHER_MAX
            answer, begun = await in_task(wire.send(encode(*command))), True
            assert isinstance(answer, list)
            at, names = cast("bytes", answer[0]), cast("list[bytes]", answer[1])
            yield names

    async def identity(self, definition: KeyDefinition) -> None:
        """Store the identity of a credential."""
        if definition.of_tokens:
            await self.of_subjects([definition])
        else:
            await self.ask_everybodys(*self.identity_written(definition))

    async def credentials(self) -> AsyncIterator[list[str]]:
        """Yield the digests of all stored credentials, some at a time, some of them twice."""
        for wire in self._wires.wires:
            async for names in self._named(wire, keys.IDENTITIES):
                yield [keys.own_name(name) for name in names]

    async def forget_credentials(self, digests: Iterable[str]) -> None:
        """Delete the identities of these credentials: gateways refuse their calls at once."""
        names = (keys.identity(digest).encode() for digest in digests)
        await self.ask_together(((b"DEL", name) for name in names), everybodys=True)

    def identity_written(self, definition: KeyDefinition) -> tuple[bytes, ...]:
        """Return the command that stores a credential's identity, or deletes it if the key is revoked.

        A revoked key for the subject of tokens stays stored: otherwise a token with several subjects would
        count as the next subject's.
        """
        name = keys.identity(definition.digest).encode()
        if definition.revoked and not definition.of_tokens:
            return b"DEL", name
        caller = Caller(
            definition.organization_id,
            definition.tenant_id,
            definition.key_id,
            keys.partition_of(definition.organization_id),
            definition.user,
            definition.models,
            definition.user_header,
            definition.unsettled,
            definition.priority,
            definition.runs,
            definition.spent,
            definition.tags,
        )
        raw = encode_identity(caller, definition.expires_ms, revoked=definition.revoked)
        until: list[bytes] = []
        if definition.gone:
            until = [b"PX", b"1"]
        elif definition.expires_ms and not definition.of_tokens:
            until = [b"PXAT", b"%d" % definition.expires_ms]
        return b"SET", name, raw, *until

    async def of_subjects(self, definitions: Iterable[KeyDefinition]) -> None:
        """Store the identities of tokens' subjects; of several keys for a subject, the newest counts.

        If a write displaces a newer identity, written meanwhile, the newer one is written again.
        """
        in_turn = sorted(definitions, key=lambda definition: definition.key_id)
        newest = {keys.identity(identity.digest).encode(): identity for identity in in_turn}
        before = await self.ask_together(((b"GET", name) for name in newest), everybodys=True)
        wanted = [
            (identity.key_id, self.identity_written(identity))
            for identity, old in zip(newest.values(), before, strict=True)
            if key_of(old) <= identity.key_id and (identity.gone or self.identity_written(identity)[2] != old)
        ]
        while wanted:
            sets = ((*command, b"GET") for _, command in wanted)
            displaced = await self.ask_together(sets, everybodys=True)
            wanted = [
                (key_of(old), (b"SET", command[1], old))
                for (own, command), old in zip(wanted, displaced, strict=True)
                if isinstance(old, bytes) and key_of(old) > own
            ]

    async def publish(self, everybodys: CatalogueDefinition | PricesDefinition, version: int) -> None:
        """Store the catalogue, or the prices (`everybodys`), for all gateways to read.

        Gateways read a new catalogue when a partition's marker has its version; they check the prices at
        intervals.
        """
        if isinstance(everybodys, PricesDefinition):
            raw = encode_prices(version, everybodys.prices, everybodys.rates)
            await self.newest(keys.PRICES, raw, version)
            await self.newest(keys.PRICES_HEAD, encode_head(version, raw), version)
        else:
            raw = encode_catalogue(
                version, everybodys.services, everybodys.weights, everybodys.models, everybodys.shares
            )
            await self.newest(keys.CATALOGUE, raw, version)

    async def newest_write(self) -> NewestWrite | None:
        """Return the newest control write that Redis was told of; without an answer, the one known last.

        CountersUnavailable if Redis has not answered yet.
        """
        with suppress(CountersUnavailable, TimeoutError, msgspec.DecodeError):
            async with asyncio.timeout(NEWEST_TIMEOUT_S):
                raw = await self.ask_everybodys(b"GET", keys.NEWEST_WRITE.encode())
            self._has_answered = True
            self._newest = _read_newest(raw).write if isinstance(raw, bytes) else None
        if not self._has_answered:
            raise CountersUnavailable
        return self._newest

    async def note_newest(self, write: NewestWrite) -> None:
        """Store the newest control write, before Redis is told of any up to it; skip it without an answer."""
        self._newest = write
        raw = msgspec.json.encode({"version": write.position, "write": write})
        with suppress(CountersUnavailable, TimeoutError):
            async with asyncio.timeout(NEWEST_TIMEOUT_S):
                await self.newest(keys.NEWEST_WRITE, raw, write.position)

    async def newest(self, key: str, raw: bytes, version: int) -> None:
        """Store a value that contains its `version`, unless the value stored under the key is newer.

        If the write displaces a newer value, that one is written again: with a catalogue older than markers
        require, all calls would be refused.
        """
        name = key.encode()
        try:
            before = await self.ask_everybodys(b"GET", name)
        except AnotherType:  # an unreadable key, for which SET with GET would be refused too
            await self.ask_everybodys(b"SET", name, raw)
            before = await self.ask_everybodys(b"GET", name)
        while before != raw and version_standing(before) <= version:
            displaced = await self.ask_everybodys(b"SET", name, raw, b"GET")
            if not isinstance(displaced, bytes) or (newer := version_standing(displaced)) <= version:
                break
            raw, version = displaced, newer

    async def _catalogue(self, definition: CatalogueDefinition, version: int) -> None:
        """Publish a catalogue and set its version in all markers; CountersUnavailable if a server is away."""
        await self.publish(definition, version)
        fault: CountersUnavailable | None = None
        for partition in range(PARTITIONS):
            try:
                await self._ask_for(partition, version)
            except CountersUnavailable as error:
                fault = error
        if fault is not None:
            raise fault

    async def _ask_for(self, partition: int, version: int) -> None:
        marker = await self.marker(partition)
        run_id, epoch, before = packing.read_marker(marker)
        if run_id != self.run_id_of(partition):
            raise CountersUnavailable
        if before < version:
            await self.mark(run_id, partition, marker, epoch, version)

    async def mark(
        self, run_id: bytes, partition: int, before: bytes, epoch: int, catalogue: int | None,
        *, layout: int | None = None,
    ) -> bool:  # fmt: skip
        """Mark a partition as verified under this run id and epoch; False if the marker is not `before`.

        Without a `catalogue` version, the partition is closed to admission. Without a `layout`, the one in
        `before` remains; a partition that was never served gets this version's layout.
        """
        is_first = not before and epoch == FIRST_EPOCH
        layout = layout or (LAYOUT if is_first else packing.layout_of(before))
        new = packing.marker(run_id, epoch, packing.CLOSED if catalogue is None else catalogue, layout)
        return await self.rebuild(partition, keys.marker(partition), new, before)

    async def rebuild(self, partition: int, state: str, packed: bytes, before: bytes) -> bool:
        """Write an account's whole state, or the marker; False if the marker is no longer `before`."""
        call = packing.rebuild(self.run_id_of(partition), partition, state, packed, before)
        return packing.code_of(await self.run("load", call)) == APPLIED


def _amount(write: ControlWrite) -> int:
    """Return the amount of a control write, negative for OUT.

    For a plan it is the ms from which it applies, for a block the number of its cause.
    """
    if write.verb == "block":
        return BLOCK_CAUSES.get(str(write.payload.get("cause")), BlockCause.MANUAL)
    amount = write.payload.get(SINCE_MS if write.verb == "plan" else "amount", 0)
    assert isinstance(amount, int)
    return -amount if write.payload.get("direction") == "OUT" else amount


def _metadata(write: ControlWrite) -> bytes:
    reason = write.payload.get("reason")
    return msgspec.json.encode({"reason": reason}) if reason else b""
