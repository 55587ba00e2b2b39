"""The counters as the keeper uses them: control writes, definitions, looks, verification.

The keeper speaks over one `Wire` too, so that the run id it vouches for is the run id of the
connection it writes on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

import msgspec

from gateway.core.accounts.definitions import (
    CatalogueDefinition,
    ControlWrite,
    Definition,
    KeyDefinition,
    OrganizationDefinition,
)
from gateway.core.accounts.losses import Movement
from gateway.core.model import PARTITIONS, Caller, LiveQuota
from gateway.core.wait import in_task
from gateway.counters.admission.stored import encode_catalogue, encode_identity, encode_terms, version_of
from gateway.counters.layouts import packing, states
from gateway.counters.redis import keys
from gateway.counters.redis.wire import Reply, Wire, encode, encode_script
from gateway.counters.settlement_log.acknowledged import of_grant
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange

PEEK_BATCH_MAX = 256
MOVED_MAX = 20_000
APPLIED, APPLIED_BEFORE, UNVERIFIED, UNKNOWN_ACCOUNT, OUT_OF_RANGE = 1, 2, 0, -2, -3


class Control:
    """Writes and looks of the keeper. Every method may raise CountersUnavailable.

    `moved` is what it had acknowledged of late: evidence, should Redis forget it.
    """

    def __init__(self, wire: Wire) -> None:
        self.moved: deque[Movement] = deque(maxlen=MOVED_MAX)
        self._wire = wire

    @property
    def run_id(self) -> bytes:
        """The server's run id on this connection; empty while there is none."""
        return self._wire.run_id if self._wire.connected else b""

    async def ask(self, *parts: bytes) -> Reply:
        """Send one plain command."""
        return await in_task(self._wire.send(encode(*parts)))

    async def ask_each(self, commands: Iterable[Sequence[bytes]]) -> list[Reply]:
        """Send plain commands together; their answers in order, None of one that is refused.

        A key of the wrong type is the trouble of its own partition.
        """
        waits = [self._wire.send(encode(*command)) for command in commands]
        answers: list[Reply] = []
        for wait in waits:
            try:
                answers.append(await in_task(wait))
            except CountersRefused:
                answers.append(None)
        return answers

    async def ask_together(self, *commands: Sequence[bytes]) -> None:
        """Send plain commands between which nothing else of this connection comes."""
        for wait in self._wire.send_together(*(encode(*command) for command in commands)):
            await in_task(wait)

    async def run(self, verb: str, call: packing.Call) -> Reply:
        """Run one script."""
        return await in_task(self._wire.send(encode_script(verb, *call)))

    async def apply(self, write: ControlWrite) -> bool:
        """Bring one control write into the counters; False where its account is not known yet.

        OutOfRange where the account would pass what is counted exactly.
        """
        if write.verb == "define":
            for definition in write.definitions:
                if not await self.define(definition, write.position):
                    return False
            return True
        amount = _signed_amount(write)
        call = packing.grant(
            self.run_id,
            write.verb,
            amount,
            write.id,
            tenant_id=write.tenant_id,
            organization_id=write.organization_id,
            metadata=_metadata(write),
            terms=write.terms,
        )
        code = await self.grant(write.tenant_id, write.organization_id, call)
        if code == UNVERIFIED:
            raise CountersUnavailable
        if code == OUT_OF_RANGE:
            raise OutOfRange
        return code in {APPLIED, APPLIED_BEFORE}

    async def sweep(self, tenant_id: int, organization_id: int) -> bool:
        """Run a tenant's reset if it is due; True where it was."""
        call = packing.grant(
            self.run_id, "sweep", 0, "0" * 36, tenant_id=tenant_id, organization_id=organization_id
        )
        return await self.grant(tenant_id, organization_id, call) == APPLIED

    async def grant(self, tenant_id: int, organization_id: int, call: packing.Call) -> int:
        """Run `grant` and remember what it moved; its code."""
        answer = cast("bytes", await self.run("grant", call))
        partition = keys.partition_of(organization_id)
        self.moved += of_grant(partition, tenant_id, organization_id, answer)
        return packing.code_of(answer)

    async def define(self, definition: Definition, version: int) -> bool:
        """Bring one definition into the counters; False where its account must be rebuilt first."""
        if isinstance(definition, CatalogueDefinition):
            await self._catalogue(definition, version)
            return True
        if isinstance(definition, OrganizationDefinition):
            await self._terms(definition, version)
        create = not getattr(definition, "has_ledger", False)
        call = packing.define(self.run_id, version, definition, create=create)
        code = packing.code_of(cast("bytes", await self.run("load", call)))
        if code == UNVERIFIED:
            raise CountersUnavailable
        if code != UNKNOWN_ACCOUNT and isinstance(definition, KeyDefinition):
            await self.identity(definition)
        return code != UNKNOWN_ACCOUNT

    async def identity(self, definition: KeyDefinition) -> None:
        """Write whom a credential stands for; a revoked one stands for nobody."""
        name = keys.identity(definition.digest).encode()
        if definition.revoked:
            await self.ask(b"DEL", name)
            return
        caller = Caller(
            definition.organization_id,
            definition.tenant_id,
            definition.key_id,
            keys.partition_of(definition.organization_id),
            definition.user,
            definition.models,
            definition.user_header,
        )
        until = [b"PXAT", b"%d" % definition.expires_ms] if definition.expires_ms else []
        await self.ask(b"SET", name, encode_identity(caller, definition.expires_ms), *until)

    async def _terms(self, definition: OrganizationDefinition, version: int) -> None:
        """Write an organization's terms, before anything of it can be served."""
        name = keys.organization_terms(definition.organization_id)
        await self._newest(name, encode_terms(version, definition.terms), version)

    async def publish(self, catalogue: CatalogueDefinition, version: int) -> None:
        """Write the catalogue; partitions marked with its version make gateways read it."""
        await self._newest(keys.CATALOGUE, encode_catalogue(version, list(catalogue.services)), version)

    async def _newest(self, key: str, raw: bytes, version: int) -> None:
        """Write what carries its version; an older one is ignored.

        Whoever displaces a newer one, written since it looked, puts it back: an older catalogue
        than the markers ask for would leave every call refused.
        """
        name = key.encode()
        before = await self.ask(b"GET", name)
        while not isinstance(before, bytes) or version_of(before) <= version:
            displaced = await self.ask(b"SET", name, raw, b"GET")
            if not isinstance(displaced, bytes) or version_of(displaced) <= version:
                break
            raw, version = displaced, version_of(displaced)

    async def _catalogue(self, definition: CatalogueDefinition, version: int) -> None:
        await self.publish(definition, version)
        for partition in range(PARTITIONS):
            marker = await self.marker(partition)
            run_id, epoch, before = packing.read_marker(marker)
            if run_id != self.run_id:
                raise CountersUnavailable
            if before < version:
                await self.mark(run_id, partition, marker, epoch, version)

    async def peek_tenants(self, tenants: Sequence[tuple[int, int]]) -> Mapping[int, LiveQuota | None]:
        """Read the quotas of (partition, tenant id) pairs as they stand, a due reset included."""
        by_partition: dict[int, list[int]] = {}
        for partition, tenant_id in tenants:
            by_partition.setdefault(partition, []).append(tenant_id)
        found: dict[int, LiveQuota | None] = {}
        for partition, ids in by_partition.items():
            for start in range(0, len(ids), PEEK_BATCH_MAX):
                batch = ids[start : start + PEEK_BATCH_MAX]
                names = (keys.marker(partition), *(keys.tenant_state(partition, one) for one in batch))
                answer = await self.run("peek", (names, (self.run_id, b"3")))
                assert isinstance(answer, list)
                if answer and not isinstance(answer[0], bytes | None):
                    raise CountersUnavailable
                for tenant_id, packed in zip(batch, answer, strict=True):
                    state = states.unpack_tenant(packed) if isinstance(packed, bytes) else None
                    found[tenant_id] = _quota(state) if state else None
        return found

    async def holds(self) -> int:
        """Holds of calls in flight, over all partitions."""
        counts = await self.ask_each(
            (b"ZCARD", keys.deadlines(partition).encode()) for partition in range(PARTITIONS)
        )
        return sum(count for count in counts if isinstance(count, int))

    # --- verification -------------------------------------------------------------------

    async def marker(self, partition: int) -> bytes:
        """The partition's marker as it stands; empty where there is none."""
        raw = await self.ask(b"GET", keys.marker(partition).encode())
        return raw if isinstance(raw, bytes) else b""

    async def mark(
        self, run_id: bytes, partition: int, before: bytes, epoch: int, catalogue: int | None
    ) -> bool:
        """Vouch for a partition under the run id it was compared under; False where the marker moved on.

        Without a catalogue nobody is admitted yet.
        """
        new = packing.marker(run_id, epoch, packing.CLOSED if catalogue is None else catalogue)
        return await self._rebuild(partition, keys.marker(partition), new, before)

    async def rebuild(self, partition: int, state: str, packed: bytes, before: bytes) -> bool:
        """Write one account's whole state while the marker is as it was read."""
        return await self._rebuild(partition, state, packed, before)

    async def _rebuild(self, partition: int, state: str, packed: bytes, before: bytes) -> bool:
        call = packing.rebuild(self.run_id, partition, state, packed, before)
        return packing.code_of(cast("bytes", await self.run("load", call))) == APPLIED

    async def states(self, names: Sequence[str]) -> list[bytes | None]:
        """Raw states of one partition, in order."""
        if not names:
            return []
        answer = await self.ask(b"MGET", *(name.encode() for name in names))
        assert isinstance(answer, list)
        return [one if isinstance(one, bytes) else None for one in answer]


def _signed_amount(write: ControlWrite) -> int:
    amount = write.payload.get("amount", 0)
    assert isinstance(amount, int)
    return -amount if write.payload.get("direction") == "OUT" else amount


def _metadata(write: ControlWrite) -> bytes:
    reason = write.payload.get("reason")
    return msgspec.json.encode({"reason": reason}) if reason else b""


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
