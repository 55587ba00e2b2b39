"""One partition compared with PostgreSQL, and what is missing or behind written: accounts, then definitions.

The marker is compared before each write of a state, so of several keepers one does it. What was written whole
is as it is defined, and not defined again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gateway.background.isolation import Isolation
from gateway.background.verifying.budgets import BudgetRebuild
from gateway.background.verifying.ports import Source, Target
from gateway.background.verifying.rewinds import Rewinds
from gateway.core.accounts.definitions import (
    AccountDefinition,
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.integrity.strays import Strays
from gateway.core.integrity.verified import Truth, Verified


@dataclass(frozen=True, slots=True)
class Found:
    """An unverified partition as it stands, and under which epoch it is to be verified.

    Where it `closes`, nobody is admitted yet; `strays` are what went on in older data. With `since`, nothing
    may be missing but what was changed behind that position.
    """

    partition: int
    marker: bytes
    epoch: int
    closes: bool
    strays: Strays | None
    since: int | None


class Partitions:
    """Looks after one partition at a time."""

    def __init__(self, source: Source, target: Target, rewinds: Rewinds | None, isolation: Isolation) -> None:
        self._source, self._target, self._rewinds, self._isolation = source, target, rewinds, isolation
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
        refused = await self._define(truth, lost)
        return Verified(partition, found.epoch, rebuilt + budgets, len(pushed), len(ghosts), refused)

    async def _lost(self, partition: int, truth: Truth, strays: Strays | None) -> Truth:
        """What of it has to be written whole: what is missing, or behind, or went on in older data."""
        organizations, tenants = await self._target.behind(partition, truth.organizations, truth.tenants)
        if strays is not None:
            wrong = {one.definition.organization_id for one in organizations} | strays.organizations
            organizations = [one for one in truth.organizations if one.definition.organization_id in wrong]
            wrong = {one.definition.tenant_id for one in tenants} | strays.tenants
            tenants = [one for one in truth.tenants if one.definition.tenant_id in wrong]
        keys = await self._target.unknown(partition, truth.keys)
        return replace(truth, organizations=organizations, tenants=tenants, keys=keys)

    async def _define(self, truth: Truth, written: Truth) -> int:
        """Bring its definitions in, but into states that were written from them. One that is refused keeps no
        other from it; answers how many are.

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
        refused = await self._target.define_all(left, version)
        for definition, error in refused:
            self._isolation.item_failed("verifier", _name(definition), error)
        await self._target.identities(truth.keys)
        return len(refused)


def _name(definition: AccountDefinition) -> str:
    """Which definition it is; a user's own name is nobody's business."""
    match definition:
        case OrganizationDefinition():
            return f"organization {definition.organization_id}"
        case TenantDefinition():
            return f"tenant {definition.tenant_id}"
        case KeyDefinition():
            return f"key {definition.key_id}"
        case UserDefinition():
            return f"a user of tenant {definition.tenant_id}"
