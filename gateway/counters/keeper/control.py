"""Applies control writes, definitions, identities, the catalogue and prices to the counters in Redis."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from operator import attrgetter
from typing import Any, cast

import msgspec

from gateway.core.accounts.budgets import FLAG_MONEY, FLAG_TOKENS, ends_of
from gateway.core.accounts.budgets import account_of as budget_account_of
from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    ControlWrite,
    Definition,
    KeyDefinition,
    OrganizationAccount,
    OrganizationDefinition,
    PricesDefinition,
    ServiceUse,
    TenantAccount,
    TenantDefinition,
)
from gateway.core.accounts.plans import SINCE_MS, PlanTerms
from gateway.core.accounts.runs import TTL_S_MAX, Run, account_of, packed_run
from gateway.core.billing.money import are_money, folded, read_tiers, spend_micro
from gateway.core.integrity.reconciliation import BudgetAccountUse, Live
from gateway.core.integrity.recovery import LedgerState, NewestWrite
from gateway.core.layout import LAYOUT
from gateway.core.model import BLOCK_CAUSES, INTEGER_MAX, PARTITIONS, BlockCause, Caller, Limits
from gateway.core.text import batched
from gateway.core.times import DAY_MS
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
    entries_behind,
    entries_in,
)
from gateway.counters.keeper.uses import amend, charge_late, charge_use
from gateway.counters.layouts import packing, states
from gateway.counters.layouts.packing import RUN_KEPT_MS, is_as_defined, live_windows
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
        anchors = [one.part.anchor for one in self._wires.wires if one.part.anchor >= 0]
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
        names = [f"{like}:{one}" for one in values] if somebodys else [name]
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
        in_turn = sorted(definitions, key=lambda one: one.key_id)
        newest = {keys.identity(one.digest).encode(): one for one in in_turn}
        before = await self.ask_together(((b"GET", name) for name in newest), everybodys=True)
        wanted = [
            (one.key_id, self.identity_written(one))
            for one, old in zip(newest.values(), before, strict=True)
            if key_of(old) <= one.key_id and (one.gone or self.identity_written(one)[2] != old)
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


# Writes all definitions of a partition: in bulk, and only those that differ.
#
# A batch is bounded, so that a keeper that fills the counters does not delay its other loops.
class BulkLoader(ControlClient):
    async def define_all(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, Exception]]:
        """Write those definitions of one partition that differ from the stored ones; return refused ones with
        errors.

        A newer stored definition is left unchanged. CountersUnavailable if the partition is not verified.
        """
        refused: list[tuple[AccountDefinition, Exception]] = []
        for some in batched(definitions, TOGETHER_MAX):
            wanted = await self._not_as_defined(some, version)
            answers = await self.run_each("load", (call for _, call in wanted))
            if any(isinstance(one, bytes) and packing.code_of(one) == UNVERIFIED for one in answers):
                raise CountersUnavailable
            pairs = zip(wanted, answers, strict=True)
            refused += [(one, error) for (one, _), error in pairs if isinstance(error, Exception)]
        return refused

    async def _not_as_defined(
        self, definitions: Sequence[AccountDefinition], version: int
    ) -> list[tuple[AccountDefinition, packing.Call]]:
        """Return definitions whose stored state is missing or differs, with the call that writes it."""
        calls = [
            packing.define(
                self.run_id_of(keys.partition_of(one.organization_id)), version, one,
                create=not getattr(one, "has_ledger", False),
            )
            for one in definitions
        ]  # fmt: skip
        before = await self.states([names[1] for names, _ in calls])
        return [
            (one, call)
            for one, call, stored in zip(definitions, calls, before, strict=True)
            if not is_as_defined(type(one), call[1][1], stored)
        ]

    async def write_terms(self, organizations: Sequence[OrganizationDefinition], version: int) -> None:
        """Store the terms of organizations of one partition, where they differ; newer stored terms remain."""
        names = [keys.organization_terms(one.organization_id) for one in organizations]
        written = [encode_terms(version, one.terms) for one in organizations]
        before = await self.states(names)
        wanted = {
            name: raw
            for name, raw, old in zip(names, written, before, strict=True)
            if old is None
            or (version_standing(old) <= version and old.partition(b",")[2] != raw.partition(b",")[2])
        }
        sets = ((b"SET", name.encode(), raw, b"GET") for name, raw in wanted.items())
        for name, displaced in zip(wanted, await self.ask_together(sets), strict=True):
            if isinstance(displaced, bytes) and (newer := version_standing(displaced)) > version:
                await self.newest(name, displaced, newer)

    async def identities(self, definitions: Sequence[KeyDefinition]) -> None:
        """Store the identities of credentials in this server's partitions, where they differ."""
        ours = set(self.partitions)
        here = (one for one in definitions if keys.partition_of_digest(one.digest) in ours)
        for some in batched(here, TOGETHER_MAX):
            commands = await self._not_there(self.identity_written(one) for one in some if not one.of_tokens)
            await self.ask_together(_by_slot(commands), everybodys=True)
            await self.of_subjects([one for one in some if one.of_tokens])

    async def _not_there(self, commands: Iterable[tuple[bytes, ...]]) -> list[tuple[bytes, ...]]:
        """Return those commands that would change their key, as each write causes a message to gateways."""
        by_slot = defaultdict[bytes, list[tuple[bytes, ...]]](list)
        for command in commands:
            by_slot[_slot(command[1])].append(command)
        asked = ((b"MGET", *(command[1] for command in its)) for its in by_slot.values())
        stored = [one for some in await self.ask_together(asked, everybodys=True) for one in _answered(some)]
        all_of = [command for its in by_slot.values() for command in its]
        return [one for one, before in zip(all_of, stored, strict=True) if _differs(one, before)]


def _answered(several: Reply) -> list[Reply]:
    assert isinstance(several, list)
    return several


def _differs(command: tuple[bytes, ...], stored: Reply) -> bool:
    """Return whether a command on an identity's key would change the value `stored` there, or its expiry."""
    if command[0] == b"DEL":
        return stored is not None
    return stored != command[2] or b"PX" in command[3:]


def _slot(name: bytes) -> bytes:
    return name[: name.index(b"}")]


def _by_slot(commands: Iterable[tuple[bytes, ...]]) -> Iterator[tuple[bytes, ...]]:
    """Yield the commands, with plain SETs of one slot joined into one MSET."""
    staying = defaultdict[bytes, list[bytes]](list)
    for command in commands:
        verb, name, *rest = command
        if verb == b"SET" and len(rest) == 1:
            staying[_slot(name)] += command[1:]
        else:
            yield command
    for written in staying.values():
        yield b"MSET", *written


# States of accounts, built from PostgreSQL's data and the holds still in Redis. Pure.

# A service id, and whether its units are money: those are counted apart.
Counted = tuple[int, bool]
# A hold, the caller's own user, the price tiers of its service.
Found = tuple[states.HoldState, str, bytes]
# Cached conversions of limits and plans, which many accounts share.
SHARED_MAX = 4_096
_KEY_ID = states.KEY.part("key_id", "created")
assert states.KEY.end("created") == states.KEY.size, "whose it is comes last: all before it is shared"


def states_of(partition: int, lost: LedgerState, found: Sequence[Found]) -> Iterator[tuple[str, bytes]]:
    """Yield the key and packed state of each account and API key in `lost`, with its holds in `found`."""
    of_tenants: dict[int, list[states.HoldState]] = defaultdict(list)
    of_organizations: dict[int, list[tuple[states.HoldState, bool]]] = defaultdict(list)
    for hold, _, packed in found:
        of_tenants[hold.tenant_id].append(hold)
        of_organizations[hold.organization_id].append((hold, are_money(packed)))
    tiers = {(hold.service_id, are_money(packed)): packed for hold, _, packed in found}
    for organization in lost.organizations:
        id_ = organization.definition.organization_id
        mine = of_organizations.get(id_, [])
        holds = [hold for hold, _ in mine]
        uses = _with_holds_of_services(organization, holds, [in_money for _, in_money in mine], tiers)
        state = _with_holds_of_organization(organization_state(organization, lost.version), holds, uses)
        yield keys.organization_state(partition, id_), states.pack(state)
        for (service_id, in_money), use in uses.items():
            yield keys.activation(partition, id_, service_id, in_money=in_money), states.pack(use)
    for tenant in lost.tenants:
        id_ = tenant.definition.tenant_id
        whole = _with_holds_of_tenant(tenant_state(tenant, lost.version), of_tenants.get(id_, []))
        yield keys.tenant_state(partition, id_), states.pack(whole)
    for key in lost.keys:
        yield keys.key_state(partition, key.key_id), packed_key(key, lost.version)


def call_of(
    run_id: bytes, partition: int, written: Sequence[tuple[str, bytes]], marker: bytes
) -> packing.Call:
    """Return keys and arguments of a `load` call that writes several states."""
    (state, packed), *more = written
    names, arguments = packing.rebuild(run_id, partition, state, packed, marker)
    as_written = (packing.as_written(*one, marker) for one in more)
    return (*names, *(name for name, _ in more)), (*arguments, *as_written)


def packed_key(key: KeyDefinition, version: int) -> bytes:
    """Return an API key's packed state: no calls in flight, full buckets."""
    return _key_but_id(key.limits, key.expires_ms, version, revoked=key.revoked) + _KEY_ID.pack(
        key.key_id, key.created
    )


@lru_cache(SHARED_MAX)
def _key_but_id(limits: Limits, expires_ms: int, version: int, *, revoked: bool) -> bytes:
    state = states.KeyState(**_limits(limits), flags=int(revoked), version=version, expires=expires_ms)
    return states.pack(state)[: -_KEY_ID.size]


@lru_cache(SHARED_MAX)
def _limits(of: Limits, prefix: str = "") -> Mapping[str, int]:
    return packing.limits(of, prefix)


@lru_cache(SHARED_MAX)
def _plan(terms: PlanTerms, *, followed: bool) -> Mapping[str, int]:
    return packing.plan(terms if followed else replace(terms, plan_id=0, reset_interval="none"))


def tenant_state(account: TenantAccount, version: int = 0) -> states.TenantState:
    """Return a tenant's state from its stored account: nothing held, full buckets."""
    definition, terms = account.definition, account.definition.terms
    started = account.seq > 0
    total = -1 if account.total is None else account.total
    has_plan = terms.plan_id > 0 and started
    return states.TenantState(
        **_limits(definition.limits),
        **_limits(definition.user_limits, "user_"),
        version=version,
        flags=(states.MANUAL_BLOCK + states.BLOCK_CAUSE * account.block_cause if account.manual_block else 0)
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
        created=definition.created,
        **_plan(terms, followed=has_plan),
    )


def _with_holds_of_tenant(state: states.TenantState, mine: Sequence[states.HoldState]) -> states.TenantState:
    if not mine:
        return state
    held = sum(hold.tokens for hold in mine)
    return replace(state, inflight=_slots(mine, attrgetter("tenant_tpm")), held=held)


def _with_holds_of_services(
    account: OrganizationAccount,
    holds: Sequence[states.HoldState],
    money: Sequence[bool],
    tiers: Mapping[Counted, bytes],
) -> dict[Counted, states.ActivationState]:
    """Return the use of each service, with the units held by calls in flight and the price of these units.

    `money` tells for each hold whether its units are money; `tiers` are the packed price tiers of each use.
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
    if not mine:
        return state
    paying = [hold for hold in mine if not hold.flags & states.HOLD_ONE_TIME]
    alone = sum(hold.credits for hold in paying if hold.flags & states.HOLD_USES)
    return replace(
        state,
        inflight=_slots(mine, attrgetter("organization_tpm")),
        credits_held=sum(hold.credits for hold in paying if not hold.flags & states.HOLD_USES),
        spend_held=alone + sum(use.held_price for use in uses.values()),
    )


def _slots(holds: Sequence[states.HoldState], taken: Callable[[states.HoldState], int]) -> int:
    return sum(not hold.flags & states.HOLD_LEASE and taken(hold) != states.UNCOUNTED for hold in holds)


def activation_state(use: ServiceUse) -> states.ActivationState:
    """Return the stored use of a service, so that nothing is paid twice and no price tier restarts."""
    quantity = folded(use.quantity) if use.in_money else min(use.quantity, INTEGER_MAX)
    return states.ActivationState(
        flags=states.ACTIVE if use.activated else 0, month=use.month, quantity=quantity
    )


def organization_state(account: OrganizationAccount, version: int = 0) -> states.OrganizationState:
    """Return an organization's state from its stored accounts: nothing held."""
    definition = account.definition
    return states.OrganizationState(
        **_limits(definition.limits),
        version=version,
        credits_used=-account.balance,
        credit_limit=definition.credit_limit,
        credit_seq=account.credit_seq,
        ahead=account.ahead,
        cap=-1 if definition.cap is None else definition.cap,
        spent=account.spent,
        month=account.month,
        spend_seq=account.spend_seq,
        organization_id=definition.organization_id,
        created=definition.created,
    )


# Compares and rewrites accounts of budgets for the keeper.

READ_ENTRIES = 1_000
# The most waiting entries of one partition that are read.
WAITING_MAX = 100_000
# Accounts written by one script call, which blocks Redis for some milliseconds.
RESTORED_MAX = 500
# How long the account of one owner is stored after its last window.
KEPT_MS = DAY_MS

# By account and budget: the money, tokens and requests held by calls in flight.
Held = Mapping[tuple[str, int], Sequence[int]]
BudgetHolds = tuple[Held, Counter[str]]


class BudgetAccounts(ControlClient):
    """Reads accounts of budgets and their waiting entries, and rewrites accounts."""

    async def live_budgets(self, partition: int, names: Sequence[str]) -> tuple[Live, frozenset[str]]:
        """Return stored budget accounts by name and budget, and the names of those of another version."""
        keys_of = [keys.budget_account(partition, name) for name in names]
        return self._live(partition, names, await self.states(keys_of))

    async def somebodys_budgets(self, partition: int, name: str) -> list[str]:
        """Return the names of all accounts that have the same budgets as `name`, one for each owner."""
        prefix = name.partition(":")[0]
        return [f"{prefix}:{one}" for one in await self.members(keys.each_accounts(partition, name))]

    async def waiting(self, partition: int, mark: bytes, most: int = WAITING_MAX) -> list[bytes] | None:
        """Return a partition's outbox entries after the id `mark`; None if there are more than `most`."""
        return await self._entries([(keys.outbox(partition), mark)], most)

    async def waiting_apart(self, partition: int, organizations: Iterable[int]) -> list[bytes] | None:
        """Return these organizations' parked (set aside) entries; None for more than `WAITING_MAX`."""
        streams = [(keys.parked_entries(partition, one), b"") for one in organizations]
        return await self._entries(streams, WAITING_MAX)

    async def _entries(self, streams: Iterable[tuple[str, bytes]], most: int) -> list[bytes] | None:
        found: list[bytes] = []
        for stream, after in streams:
            page = [(after, b"")]
            while page:
                page = entries_in(await self.ask(*entries_behind(stream, page[-1][0], READ_ENTRIES)))
                found += (packed for _, packed in page)
                if len(found) > most:
                    return None
        return found

    async def look(
        self, partition: int, mark: bytes, names: Sequence[str]
    ) -> tuple[Live, list[bytes]] | None:
        """Return budget accounts, and the outbox entries after the id `mark`, both as of one moment.

        None if entries came meanwhile, there are too many, or an account is of another version.
        """
        stream = keys.outbox(partition)
        behind = entries_behind(stream, mark, READ_ENTRIES)
        wanted = [keys.budget_account(partition, name).encode() for name in names]
        first, raw, last = await self.ask_each((behind, (b"MGET", *wanted), behind))
        entries, again = entries_in(first), entries_in(last)
        states_ = [one if isinstance(one, bytes) else None for one in raw] if isinstance(raw, list) else []
        whole = len(entries) < READ_ENTRIES and [one for one, _ in entries] == [one for one, _ in again]
        live, others = self._live(partition, names, states_)
        return (live, [packed for _, packed in entries]) if whole and not others else None

    async def restore_budgets(
        self,
        partition: int,
        marker: bytes,
        accounts: Iterable[BudgetAccountUse],
        now_ms: int,
        holds: BudgetHolds,
    ) -> bool:
        """Write accounts with their use and the amounts of existing holds; False if the marker changed."""
        held, calls = holds
        for some in batched(accounts, RESTORED_MAX):
            written, members = list[tuple[str, bytes]](), defaultdict[str, list[bytes]](list)
            for account in some:
                somebody = account.name.partition(":")[2]
                expires = _expiry(account.defined, account.moved_ms or now_ms) if somebody else 0
                packed = _packed(account, held, expires, calls[account.name] if somebody else 0)
                written.append((keys.budget_account(partition, account.name), packed))
                if somebody:
                    index = keys.each_accounts(partition, account.name)
                    members[index] += b"%d" % abs(expires), somebody.encode()
            # The index first: a keeper that dies after it writes the account again, which is then in the
            # index.
            await self.ask_together((b"ZADD", index.encode(), *its) for index, its in members.items())
            call = call_of(self.run_id_of(partition), partition, written, marker)
            if packing.code_of(await self.run("load", call)) != APPLIED:
                return False
        return True

    async def keep_budgets(self, partition: int, names: Sequence[str]) -> list[str]:
        """Remove the expiry that an older version gave to accounts; return the names of missing ones."""
        named = [keys.budget_account(partition, name) for name in names]
        gone, ending = list[str](), list[tuple[bytes, bytes]]()
        for name, key, packed in zip(names, named, await self.states(named), strict=True):
            if packed is None:
                gone.append(name)
                continue
            with self.left_alone.reading("account", key):
                header = states.BUDGET.read(states.BUDGET.today(packed)[: states.BUDGET.size])
                if header["expires"] > 0:
                    ending.append((b"PERSIST", key.encode()))
        await self.ask_together(ending)
        return gone

    async def take_up_budgets(self, partition: int, accounts: Iterable[BudgetAccountUse]) -> None:
        """Write missing accounts with their stored use, unless a call creates them meanwhile."""
        commands, marker = list[tuple[bytes, ...]](), await self.marker(partition)
        for one in accounts:
            expires, value = _expiry(one.defined, one.moved_ms), one.name.partition(":")[2]
            index, name = keys.each_accounts(partition, one.name), keys.budget_account(partition, one.name)
            packed = packing.as_written(name, _packed(one, {}, expires, 0), marker)
            commands += (
                (b"ZADD", index.encode(), b"NX", b"%d" % abs(expires), value.encode()),
                (b"SET", name.encode(), packed, b"NX"),
            )
        await self.ask_together(commands)

    async def restore_runs(self, partition: int, runs: Sequence[Run]) -> None:
        """Restore missing runs, and overwrite those that have ended."""
        for run in runs:
            name, until = run.account.name, b"%d" % (run.expires_ms + RUN_KEPT_MS)
            again = () if run.ended_ms else (b"NX",)
            key, index = keys.run(partition, name).encode(), keys.runs(partition, run.tenant_id).encode()
            await self.ask(b"SET", key, packed_run(run), b"PXAT", until, *again)
            await self.ask(b"ZADD", index, until, name.partition(":")[2].encode())
            if run.parent_id:
                above = account_of(run.organization_id, run.tenant_id, run.parent_id)
                children = keys.children(partition, above).encode()
                await self.ask(b"ZADD", children, until, run.id.encode())
                await self.ask(b"EXPIRE", children, b"%d" % (TTL_S_MAX + RUN_KEPT_MS // 1000))

    def _live(
        self, partition: int, names: Sequence[str], raw: Sequence[bytes | None]
    ) -> tuple[Live, frozenset[str]]:
        found, others = {}, set(names)
        for name, packed in zip(names, raw, strict=True):
            with self.left_alone.reading("account", keys.budget_account(partition, name)):
                if packed:
                    found[name] = live_windows(packed)
                others.discard(name)
        return found, frozenset(others)

    async def held_of_budgets(self, partition: int) -> BudgetHolds:
        """Return the amounts that holds have reserved on each account, and the number of calls of each."""
        ids = await self.members(keys.deadlines(partition))
        found: dict[tuple[str, int], list[int]] = {}
        calls = Counter[str]()
        stored = await self.states([keys.hold(partition, one) for one in ids])
        for request_id, packed in zip(ids, stored, strict=True):
            taken: list[tuple[str, tuple[int, ...]]] = []
            with self.left_alone.reading("hold", f"{partition} {request_id}"):
                if packed is None:
                    continue
                hold, _, _ = states.unpack_hold(packed)
                if hold.flags & states.HOLD_RECLAIMED:
                    continue
                taken = states.held_budgets(packed)
            for name, budgets in taken:
                calls[name] += 1
                for budget in budgets:
                    sums = found.setdefault((name, budget), [0, 0, 0])
                    for at, more in enumerate((hold.money, hold.raw_tokens, 1)):
                        sums[at] += more
        return found, calls


def _held(held: Held, name: str, window: states.WindowState) -> int:
    """Return the amount that calls in flight hold on a window of the account `name`, in the window's unit."""
    money, tokens, requests = held.get((name, window.budget_id), (0, 0, 0))
    if window.flags & FLAG_MONEY:
        return money
    return min(tokens if window.flags & FLAG_TOKENS else requests, INTEGER_MAX)


def _packed(account: BudgetAccountUse, held: Held, expires: int, calls: int) -> bytes:
    """Return a budget account's packed state, with the amounts `held` by its `calls` in flight."""
    windows = states.defined_windows(account.defined)
    for window, used in zip(windows, account.used, strict=True):
        window.used, window.held = used, _held(held, account.name, window) if held else 0
    return states.pack_windows(windows, expires, calls)


def _expiry(defined: bytes, moved_ms: int) -> int:
    """Return when an owner's budget account expires, in ms; `moved_ms` is the time of its last movement.

    The time is negative if the account is kept, but then no longer counts towards its budget's maximum of
    accounts. The rule is that of `lua/lib/kept.lua`.
    """
    forever, ended, unused = ends_of(defined)
    unused_at = (moved_ms // DAY_MS + states.EACH_UNUSED_DAYS + 1) * DAY_MS
    return -unused_at if forever else max(ended + KEPT_MS, unused_at if unused else 0)
