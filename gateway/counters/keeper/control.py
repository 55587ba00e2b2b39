"""What the keeper brings into the counters: control writes, definitions, identities, catalogue, prices."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from gateway.core.accounts.definitions import (
    AccountDefinition,
    CatalogueDefinition,
    ControlWrite,
    Definition,
    KeyDefinition,
    OrganizationDefinition,
    PricesDefinition,
)
from gateway.core.accounts.plan_terms import SINCE_MS, PlanTerms
from gateway.core.layout import LAYOUT
from gateway.core.model import PARTITIONS, Caller
from gateway.counters.admission.stored import (
    encode_catalogue,
    encode_head,
    encode_identity,
    encode_prices,
    encode_terms,
    key_of,
    version_standing,
)
from gateway.counters.keeper.client import (
    APPLIED,
    APPLIED_BEFORE,
    OUT_OF_RANGE,
    UNKNOWN_ACCOUNT,
    UNVERIFIED,
    Client,
)
from gateway.counters.keeper.uses import amend, charge_late, charge_use
from gateway.counters.layouts import packing
from gateway.counters.layouts.frame import NO_ID
from gateway.counters.redis import keys
from gateway.counters.redis.calls import AnotherType
from gateway.counters.settlement_log.acknowledged import acknowledged
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange

# Accounts whose use begins again in one step.
RESET_ACCOUNTS = 250
# Under which a partition is verified that nobody has served ever.
FIRST_EPOCH = 1
CHARGES = {"use": charge_use, "amend": amend, "late": charge_late}


class Control(Client):
    """Control writes and definitions."""

    async def apply(self, write: ControlWrite) -> bool:
        """Bring one control write into the counters; False where its account is not known yet.

        OutOfRange where the account would pass what is counted exactly. CountersRefused where a newer version
        looks after it: what that writes says more than is known here.
        """
        await self._refuse_newer(write.organization_id)
        if write.verb == "define":
            for definition in write.definitions:
                if not await self.define(definition, write.position):
                    return False
            return True
        if write.verb == "budget":
            return await self.reset_budget(write)
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
        """Look at the marker of an organization's partition, or of one of each server."""
        anchors = [one.part.anchor for one in self._wires.wires if one.part.anchor >= 0]
        for partition in [keys.partition_of(organization_id)] if organization_id else anchors:
            try:
                packing.read_marker(await self.marker(partition))
            except CountersRefused:
                raise
            except CountersUnavailable:  # others of its servers are there
                continue

    async def reset_budget(self, write: ControlWrite) -> bool:
        """Have the use of a budget's window begin again in all its accounts, some at a time.

        What is remembered are the last ones: who dies before them begins anew, and takes what is used since.
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

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        """Run a tenant's reset if it is due; True where it was."""
        return await self.grant("sweep", tenant_id, organization_id) == APPLIED

    async def grant(
        self, verb: str, tenant_id: int, organization_id: int, *,
        amount: int = 0, write_id: str = NO_ID, metadata: bytes = b"", terms: PlanTerms | None = None,
        accounts: Sequence[str] = (),
    ) -> int:  # fmt: skip
        """Run `grant` and remember what it moved; its code."""
        partition = keys.partition_of(organization_id)
        call = packing.grant(
            self.run_id_of(partition), verb, amount, write_id,
            tenant_id=tenant_id, organization_id=organization_id, metadata=metadata, terms=terms,
            accounts=accounts,
        )  # fmt: skip
        answer = await self.run("grant", call)
        self.moved += acknowledged(Caller(organization_id, tenant_id, 0, partition), answer)
        return packing.code_of(answer)

    async def define(self, definition: Definition, version: int) -> bool:
        """Bring one definition into the counters; False where its account must be rebuilt first."""
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
        """The same of what stands in its organization's partition: all but whom a credential stands for."""
        if isinstance(definition, OrganizationDefinition):  # before anything of it can be served
            await self._refuse_newer(definition.organization_id)
            name = keys.organization_terms(definition.organization_id)
            await self.newest(name, encode_terms(version, definition.terms), version)
        create = not getattr(definition, "has_ledger", False)
        run_id = self.run_id_of(keys.partition_of(definition.organization_id))
        call = packing.define(run_id, version, definition, create=create)
        code = packing.code_of(await self.run("load", call))
        if code == UNVERIFIED:
            raise CountersUnavailable
        return code != UNKNOWN_ACCOUNT

    async def identity(self, definition: KeyDefinition) -> None:
        """Write whom a credential stands for."""
        if definition.of_tokens:
            await self.of_subjects([definition])
        else:
            await self.ask_everybodys(*self.identity_written(definition))

    def identity_written(self, definition: KeyDefinition) -> tuple[bytes, ...]:
        """The command that writes whom a credential stands for; a revoked one stands for nobody.

        Of tokens' subjects it is kept who that was: a token of several is nobody's then, instead of the next
        one's.
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
        )
        raw = encode_identity(caller, definition.expires_ms, revoked=definition.revoked)
        until: list[bytes] = []
        if definition.gone:
            until = [b"PX", b"1"]
        elif definition.expires_ms and not definition.of_tokens:
            until = [b"PXAT", b"%d" % definition.expires_ms]
        return b"SET", name, raw, *until

    async def of_subjects(self, definitions: Iterable[KeyDefinition]) -> None:
        """Write whom subjects' tokens stand for, as the newest key of each says; an older one is ignored.

        Who displaces a newer one, written since it looked, puts it back: as with `newest`.
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
        """Write the catalogue, or the prices.

        Partitions marked with a catalogue's version make gateways read it; for prices they look often.
        """
        if isinstance(everybodys, PricesDefinition):
            raw = encode_prices(version, everybodys.prices)
            await self.newest(keys.PRICES, raw, version)
            await self.newest(keys.PRICES_HEAD, encode_head(version, raw), version)
        else:
            raw = encode_catalogue(version, everybodys.services, everybodys.weights)
            await self.newest(keys.CATALOGUE, raw, version)

    async def newest(self, key: str, raw: bytes, version: int) -> None:
        """Write what carries its version; an older one is ignored.

        Whoever displaces a newer one puts it back: an older catalogue than markers ask for refuses all calls.
        """
        name = key.encode()
        try:
            before = await self.ask_everybodys(b"GET", name)
        except AnotherType:  # nobody can read that; SET that tells what it displaced would be refused too
            await self.ask_everybodys(b"SET", name, raw)
            before = await self.ask_everybodys(b"GET", name)
        while before != raw and version_standing(before) <= version:
            displaced = await self.ask_everybodys(b"SET", name, raw, b"GET")
            if not isinstance(displaced, bytes) or (newer := version_standing(displaced)) <= version:
                break
            raw, version = displaced, newer

    async def _catalogue(self, definition: CatalogueDefinition, version: int) -> None:
        """Publish it, and have each partition ask for it; those of a server that is away, later."""
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
        """Vouch for a partition under the run id it was compared under; False where the marker moved on.

        Without a catalogue nobody is admitted yet. Without a `layout` what is written there is of the same as
        before; where nobody has served it ever, nothing is older than this program.
        """
        is_first = not before and epoch == FIRST_EPOCH
        layout = layout or (LAYOUT if is_first else packing.layout_of(before))
        new = packing.marker(run_id, epoch, packing.CLOSED if catalogue is None else catalogue, layout)
        return await self.rebuild(partition, keys.marker(partition), new, before)

    async def rebuild(self, partition: int, state: str, packed: bytes, before: bytes) -> bool:
        """Write one account's whole state, or the marker, while the marker is as it was read."""
        call = packing.rebuild(self.run_id_of(partition), partition, state, packed, before)
        return packing.code_of(await self.run("load", call)) == APPLIED


def _amount(write: ControlWrite) -> int:
    """How much is granted; of a plan, since when it is in force."""
    amount = write.payload.get(SINCE_MS if write.verb == "plan" else "amount", 0)
    assert isinstance(amount, int)
    return -amount if write.payload.get("direction") == "OUT" else amount


def _metadata(write: ControlWrite) -> bytes:
    reason = write.payload.get("reason")
    return msgspec.json.encode({"reason": reason}) if reason else b""
