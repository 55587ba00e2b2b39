"""One partition compared with PostgreSQL, and what is missing or behind written: accounts, then definitions.

The marker is compared before each write of a state, so of several keepers one does it. What was written whole
is as it is defined, and not defined again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from gateway.background.verifying.budgets import BudgetRebuild
from gateway.background.verifying.budgets import Source as BudgetSource
from gateway.background.verifying.budgets import Target as BudgetTarget
from gateway.background.verifying.rewinds import Rewinds
from gateway.core.accounts.definitions import (
    AccountDefinition,
    KeyDefinition,
    OrganizationAccount,
    OrganizationDefinition,
    TenantAccount,
)
from gateway.core.integrity.strays import Strays
from gateway.core.integrity.verified import Truth, Verified


class Source(BudgetSource, Protocol):
    """PostgreSQL."""

    async def settled(self, held: Mapping[str, int]) -> list[str]:
        """Which of these requests have a row, or may have had one, by the deadlines of their holds in ms."""

    async def push_again(self, ids: Sequence[str]) -> None:
        """Have these applied control writes wait again."""


class Target(BudgetTarget, Protocol):
    """The counters."""

    async def behind(
        self, partition: int, organizations: Sequence[OrganizationAccount], tenants: Sequence[TenantAccount]
    ) -> tuple[list[OrganizationAccount], list[TenantAccount]]:
        """Accounts whose state is missing or whose seq lags."""

    async def unknown(self, partition: int, known: Sequence[KeyDefinition]) -> list[KeyDefinition]:
        """Keys that have no state."""

    async def restore(self, partition: int, marker: bytes, lost: Truth) -> bool:
        """Write these accounts and keys as PostgreSQL has them; False where the marker moved on."""

    async def held(self, partition: int) -> Mapping[str, int]:
        """The deadlines of all holds of a partition by request id, in ms of the counters' clock."""

    async def let_go(self, partition: int, before: bytes, epoch: int, ids: Sequence[str]) -> bytes | None:
        """End these holds without a charge; answers the marker that is there now, None where it moved on."""

    async def forgotten(self, partition: int, ids: Sequence[str]) -> list[str]:
        """Control writes among these that the counters do not remember."""

    async def mark(
        self, run_id: bytes, partition: int, before: bytes, epoch: int, catalogue: int | None
    ) -> bool:
        """Vouch for a partition, without a catalogue admitting nobody; False where the marker moved on."""

    async def define_all(self, definitions: Sequence[AccountDefinition], version: int) -> None:
        """Bring definitions of one partition into the counters, but for terms and identities."""

    async def write_terms(self, organizations: Sequence[OrganizationDefinition], version: int) -> None:
        """Write the terms of organizations of one partition."""

    async def identities(self, definitions: Sequence[KeyDefinition]) -> None:
        """Write whom credentials stand for."""


@dataclass(frozen=True, slots=True)
class Found:
    """An unverified partition as it stands, and under which epoch it is to be verified.

    Where it `closes`, nobody is admitted yet; `strays` are what went on in older data.
    """

    partition: int
    marker: bytes
    epoch: int
    closes: bool
    strays: Strays | None


class Partitions:
    """Looks after one partition at a time."""

    def __init__(self, source: Source, target: Target, rewinds: Rewinds | None) -> None:
        self._source, self._target, self._rewinds = source, target, rewinds
        self._budgets = BudgetRebuild(source, target)

    async def define(self, truth: Truth) -> None:
        """Bring every definition of a verified partition in again."""
        await self._define(truth, Truth([], [], [], [], [], truth.version))

    async def verify(self, run_id: bytes, found: Found, truth: Truth, catalogue: int) -> Verified | None:
        """Compare and rebuild, vouch for it, then define; None where another keeper was faster."""
        partition, marker, strays = found.partition, found.marker, found.strays
        lost = await self._lost(partition, truth, strays)
        rebuilt = len(lost.organizations) + len(lost.tenants)
        if (rebuilt or lost.keys) and not await self._target.restore(partition, marker, lost):
            return None
        if strays is not None and self._rewinds:
            await self._rewinds.drop(partition, strays)
        # A Redis that was rolled back holds again what was settled since: charged once is enough.
        if ghosts := await self._source.settled(await self._target.held(partition)):
            moved = await self._target.let_go(partition, marker, found.epoch, ghosts)
            if moved is None:
                return None
            marker = moved
        went_on = strays is not None
        budgets = await self._budgets.rebuild(partition, marker, truth.organizations, went_on=went_on)
        if budgets is None:
            return None
        if pushed := await self._target.forgotten(partition, truth.applied):
            await self._source.push_again(pushed)
        as_of = None if found.closes else catalogue
        if not await self._target.mark(run_id, partition, marker, found.epoch, as_of):
            return None
        await self._define(truth, lost)
        return Verified(partition, found.epoch, rebuilt + budgets, len(pushed), len(ghosts))

    async def _lost(self, partition: int, truth: Truth, strays: Strays | None) -> Truth:
        """What of it has to be written whole: what is missing, or behind, or went on in older data."""
        organizations, tenants = await self._target.behind(partition, truth.organizations, truth.tenants)
        if strays is not None:
            organizations = [
                one for one in truth.organizations
                if one in organizations or one.definition.organization_id in strays.organizations
            ]  # fmt: skip
            tenants = [
                one for one in truth.tenants if one in tenants or one.definition.tenant_id in strays.tenants
            ]
        keys = await self._target.unknown(partition, truth.keys)
        return replace(truth, organizations=organizations, tenants=tenants, keys=keys)

    async def _define(self, truth: Truth, written: Truth) -> None:
        """Bring its definitions in, but into states that were written from them.

        Terms come before whoever is served by them, and credentials last.
        """
        version = truth.version
        await self._target.write_terms([one.definition for one in truth.organizations], version)
        organizations = {one.definition.organization_id for one in written.organizations}
        tenants = {one.definition.tenant_id for one in written.tenants}
        keys = {one.key_id for one in written.keys}
        left: list[AccountDefinition] = [
            *(
                one.definition
                for one in truth.organizations
                if one.definition.organization_id not in organizations
            ),
            *(one.definition for one in truth.tenants if one.definition.tenant_id not in tenants),
            *(one for one in truth.keys if one.key_id not in keys),
            *truth.users,
        ]
        await self._target.define_all(left, version)
        await self._target.identities(truth.keys)
