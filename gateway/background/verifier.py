"""Vouches for the counters: after a Redis restart nothing is served until this has looked.

A partition is served under the run id the keeper verified it under. Under another run id, each
account's seq is compared with PostgreSQL; what is missing or behind is rebuilt; holds of calls
that are in the ledger already are let go; control writes that vanished wait again; then the
marker is set, under the next epoch, by which gateways see that something may have been forgotten.
The marker is compared before each write, so of several keepers one does it. Definitions and
identities are written anew behind the markers, and only then is it said that whatever is not
there does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from gateway.core.definitions import CatalogueDefinition, Definition, OrganizationAccount, TenantAccount
from gateway.core.model import PARTITIONS
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.2
WATCH_S = 1.0
# A worker looks for a new epoch once a second.
RECOVERY_S, RECOVERY_S_MAX = 2.0, 4.0


class Truth(Protocol):
    """What PostgreSQL knows of some partitions: accounts by partition, definitions, open writes."""

    organizations: dict[int, list[OrganizationAccount]]
    tenants: dict[int, list[TenantAccount]]
    definitions: dict[int, list[Definition]]
    applied: dict[int, list[str]]
    catalogue: CatalogueDefinition
    version: int


@dataclass(frozen=True, slots=True)
class Verified:
    """What verifying one partition did."""

    partition: int
    epoch: int
    rebuilt: int
    repushed: int
    let_go: int = 0


def summary(done: Sequence[Verified]) -> dict[str, int]:
    """What verifying some partitions did, in numbers for a log line."""
    return {
        "partitions": len(done),
        "accounts_rebuilt": sum(each.rebuilt for each in done),
        "control_writes_repushed": sum(each.repushed for each in done),
        "holds_let_go": sum(each.let_go for each in done),
    }


class Source(Protocol):
    """PostgreSQL."""

    async def truth(self, partitions: Sequence[int]) -> Truth:
        """What is known of these partitions."""

    async def settled(self, request_ids: Sequence[str]) -> list[str]:
        """Which of these requests have a row."""

    async def push_again(self, ids: Sequence[str]) -> None:
        """Have these applied control writes wait again."""

    async def note(self, run_id: bytes, epochs: Mapping[int, int]) -> None:
        """Keep what partitions are verified as: no later epoch is ever one of these.

        Flushes that are under way have ended then: the truth that is read next is not older.
        """

    async def epochs(self) -> Mapping[int, int]:
        """The last epoch of each partition; absent: never verified."""


class Target(Protocol):
    """The counters."""

    @property
    def run_id(self) -> bytes:
        """The server's run id on this connection; empty while there is none."""

    async def unverified(self) -> list[tuple[int, bytes, int]]:
        """Partitions not verified under the present run id: (partition, marker, epoch)."""

    async def behind(
        self, partition: int, organizations: Sequence[OrganizationAccount], tenants: Sequence[TenantAccount]
    ) -> tuple[list[OrganizationAccount], list[TenantAccount]]:
        """Accounts whose state is missing or whose seq is behind."""

    async def restore(
        self,
        partition: int,
        marker: bytes,
        organizations: Sequence[OrganizationAccount],
        tenants: Sequence[TenantAccount],
    ) -> bool:
        """Write these accounts as PostgreSQL has them, holds apart; False where the marker moved on."""

    async def held(self, partition: int) -> list[str]:
        """The request ids of all holds of a partition."""

    async def let_go(self, partition: int, before: bytes, epoch: int, ids: Sequence[str]) -> bytes | None:
        """End these holds without a charge; answers the marker that is there now, None where it moved on."""

    async def forgotten(self, partition: int, ids: Sequence[str]) -> list[str]:
        """Control writes among these that the counters do not remember."""

    async def mark(self, partition: int, before: bytes, epoch: int, catalogue: int) -> bool:
        """Vouch for a partition; False where the marker moved on."""

    async def close_mark(self, partition: int, before: bytes, epoch: int) -> bool:
        """Vouch for a partition and admit nobody yet; False where the marker moved on."""

    async def admit(self, partition: int, epoch: int, catalogue: int) -> bool:
        """Open a partition that was closed under this epoch; False where the marker moved on."""

    async def late_waiting(self) -> int:
        """Settlements in the late lanes of all partitions."""

    async def define(self, definition: Definition, version: int) -> bool:
        """Bring one definition into the counters."""

    async def publish(self, catalogue: CatalogueDefinition, version: int) -> None:
        """Write the catalogue."""

    async def all_verified(self, run_id: bytes) -> None:
        """Say that whatever is not here does not exist."""

    async def said_verified(self, run_id: bytes) -> bool:
        """Whether a keeper has said so under this run id."""


class Verifier:
    """Compares, rebuilds and vouches. `observe` is told what was done, where anything was.

    `recovery_s` is how long nobody is admitted to a Redis that was restarted while this keeper
    watched: the workers send again what it may have forgotten, and who used up a quota in its last
    second is not let in twice.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        observe: Callable[[list[Verified]], None] = lambda _: None,
        *,
        recovery_s: float = 0.0,
    ) -> None:
        self._source = source
        self._target = target
        self._observe = observe
        self._vouched = b""
        self._recovery_s = recovery_s
        self._has_vouched = False

    @property
    def ready(self) -> bool:
        """Whether everything is verified under the run id of the present connection."""
        return bool(self._vouched) and self._vouched == self._target.run_id

    async def verify(self) -> list[Verified]:
        """Verify what is not; CountersUnavailable where Redis goes away meanwhile."""
        run_id = self._target.run_id
        if not run_id:
            raise CountersUnavailable
        open_partitions = await self._target.unverified()
        said = await self._target.said_verified(run_id)
        if said and not open_partitions and self._vouched == run_id:
            return []
        self._vouched = b""
        opened = [partition for partition, _, _ in open_partitions]
        # Nobody said so yet: a keeper may have died between a marker and the keys behind it.
        known = await self._source.epochs()
        epochs = {one: max(epoch, known.get(one, 0)) + 1 for one, _, epoch in open_partitions}
        await self._source.note(run_id, epochs)
        truth = await self._source.truth(opened if said else range(PARTITIONS))
        await self._target.publish(truth.catalogue, truth.version)
        closes = bool(self._recovery_s and self._has_vouched and open_partitions)
        done = [
            verified
            for partition, marker, _ in open_partitions
            if (verified := await self._partition(truth, partition, marker, epochs[partition], closes=closes))
        ]
        for definitions in truth.definitions.values():
            for definition in definitions:
                await self._target.define(definition, truth.version)
        if closes:
            await self._recovered()
            done = [one for one in done if await self._target.admit(one.partition, one.epoch, truth.version)]
        if len(done) == len(open_partitions) and self._target.run_id == run_id:
            self._has_vouched = True
            await self._target.all_verified(run_id)
            self._vouched = run_id
        return done

    async def run(self) -> None:
        """Look for a new run id, and whether what was vouched for is still there, until cancelled."""
        while True:
            try:
                if done := await self.verify():
                    self._observe(done)
            except CountersUnavailable:
                self._vouched = b""
            await asyncio.sleep(WATCH_S if self.ready else INTERVAL_S)

    async def _recovered(self) -> None:
        """Wait, bounded, until workers had the time to send again, and nothing of it waits any more."""
        await asyncio.sleep(self._recovery_s)
        for _ in range(int(RECOVERY_S_MAX / INTERVAL_S)):
            if not await self._target.late_waiting():
                return
            await asyncio.sleep(INTERVAL_S)

    async def _partition(
        self, truth: Truth, partition: int, marker: bytes, epoch: int, *, closes: bool
    ) -> Verified | None:
        """Verify one as of this epoch; None where another keeper was faster."""
        organizations = truth.organizations.get(partition, [])
        tenants = truth.tenants.get(partition, [])
        old_organizations, old_tenants = await self._target.behind(partition, organizations, tenants)
        rebuilt = len(old_organizations) + len(old_tenants)
        if rebuilt and not await self._target.restore(partition, marker, old_organizations, old_tenants):
            return None
        # A Redis that was rolled back holds again what was settled since: charged once is enough.
        ghosts = await self._source.settled(await self._target.held(partition))
        if ghosts:
            moved = await self._target.let_go(partition, marker, epoch, ghosts)
            if moved is None:
                return None
            marker = moved
        lost = await self._target.forgotten(partition, truth.applied.get(partition, []))
        if lost:
            await self._source.push_again(lost)
        if closes:
            marked = await self._target.close_mark(partition, marker, epoch)
        else:
            marked = await self._target.mark(partition, marker, epoch, truth.version)
        if not marked:
            return None
        return Verified(partition, epoch, rebuilt, len(lost), len(ghosts))
