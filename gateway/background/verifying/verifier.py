"""Vouches for the counters: after a Redis restart nothing is served until this has looked.

A partition is served under the history the keeper verified it under: a server's run id, or what the fence
made of it since its data was exchanged; PostgreSQL is told which, and stores nothing read under another.
Under another one, each account's seq is compared with PostgreSQL; what is missing or behind is rebuilt; what
older data went on with is dropped; holds of calls that are in the ledger already are let go; control writes
that vanished wait again; then the marker is set, under the next epoch, by which gateways see that something
may have been forgotten; it stays closed to admission until they have sent that again (`admission_gate.py`).
The marker is compared before each write, so of several keepers one does it. Definitions and identities are
written again behind the markers, and only then is it said that whatever is not there does not exist.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from gateway.background.isolation import Isolation
from gateway.background.verifying.admission_gate import AWAY_S, AdmissionGate
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
from gateway.core.integrity.recovery import Markers
from gateway.core.integrity.strays import Strays
from gateway.core.integrity.verified import Truth, Verified
from gateway.core.model import PARTITIONS
from gateway.errors import CountersUnavailable

INTERVAL_S = 0.2
TOGETHER_MAX = 16
WATCH_S = 1.0
# How soon it is tried again where a partition was left: all that is known is read for that.
LEFT_S = 5.0
assert WATCH_S < AWAY_S, "who watches is there"


class Verifier:
    """Compares, rebuilds and confirms. `observe` is told what was done, where anything was.

    `partitions` are those that the counters' server has. Without an `admission_gate` whoever is verified is
    served at once; with one, not before the workers have sent again what may be forgotten. A partition that
    was never verified has nothing to forget. One that cannot be verified keeps no other from it, nor does one
    that another version looks after.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        observe: Callable[[list[Verified]], None] = lambda _: None,
        *,
        admission_gate: AdmissionGate | None = None,
        rewinds: Rewinds | None = None,
        partitions: Callable[[], Sequence[int]] = lambda: range(PARTITIONS),
        isolation: Isolation | None = None,
    ) -> None:
        self._isolation, self._left = isolation or Isolation(), 0
        self._source = source
        self._target = target
        self._observe = observe
        self._vouched, self._watches = b"", False
        self._admission_gate = admission_gate
        self._rewinds = rewinds
        self._partitions = partitions
        self._budgets = BudgetRebuild(source, target)

    @property
    def ready(self) -> bool:
        """Whether everything is verified under the run id of the present connection."""
        return bool(self._vouched) and self._vouched == self._target.run_id

    @property
    def pause_s(self) -> float:
        """How long until the next look. Where all but another version's is verified it only watches, and does
        so as often as ever: the admission gate goes by it.
        """
        return WATCH_S if self.ready or self._watches else LEFT_S if self._left else INTERVAL_S

    async def verify(self) -> list[Verified]:
        """Verify what is not; CountersUnavailable where Redis goes away meanwhile."""
        self._watches = False
        await self._notice_rewind()
        reports = await self._target.reports() if self._admission_gate else {}
        markers = await self._target.markers()
        run_id = markers.run_id  # whoever names another one meanwhile has all of this done again
        if not run_id:
            raise CountersUnavailable
        self._left = len(markers.others)
        if markers.others and not (markers.verified or markers.unverified):
            self._vouched = b""
            return []
        said = await self._target.said_verified(run_id, markers.unverified)
        settled = self._vouched == run_id or bool(markers.others)
        if said and not markers.unverified and not markers.closed and settled:
            if self._admission_gate:
                await self._admission_gate.watch(reports)
            await self._catch_up(markers)
            self._watches = True
            return []
        self._vouched = b""
        known = await self._catch_up(markers)
        epochs = {one: max(epoch, known.get(one, 0)) + 1 for one, _, epoch in markers.unverified}
        await self._source.note(run_id, epochs)
        # Nobody said so yet: a keeper may have died between a marker and the keys written after it.
        wanted = [*epochs, *markers.closed] if said else self._partitions()
        truth = await self._source.truth(wanted)
        if not markers.others:  # else a newer version says them, and more
            await self._publish(truth)
        strays = await self._rewinds.strays(list(epochs)) if self._rewinds else {}
        done = []
        for start in range(0, len(markers.unverified), TOGETHER_MAX):
            together = markers.unverified[start : start + TOGETHER_MAX]
            verifying = [
                self._partition(
                    truth, one, marker, epochs[one], strays.get(one),
                    run_id=run_id, closes=bool(self._admission_gate and known.get(one, 0)),
                )
                for one, marker, _ in together
            ]  # fmt: skip
            found = await asyncio.gather(*verifying, return_exceptions=True)
            done += self._verified([one for one, _, _ in together], found)
        await self._define(truth)
        if self._admission_gate:
            strangers = self._may_be_strange(markers, known)
            await self._admission_gate.open(run_id, reports, truth.version, strangers=strangers)
        await self._notice_rewind()  # what was exchanged meanwhile is verified again
        whole = len(done) == len(markers.unverified) and not markers.others
        if whole and self._target.run_id == run_id:
            await self._target.all_verified(run_id)
            self._vouched = run_id
        return done

    async def run(self) -> None:
        """Look for a new run id, and whether what was confirmed is still there, until cancelled."""
        while True:
            try:
                if done := await self.verify():
                    self._observe(done)
            except CountersUnavailable:
                self._vouched = b""
            await asyncio.sleep(self.pause_s)

    async def _publish(self, truth: Truth) -> None:
        await self._target.publish(truth.prices, truth.version)
        await self._target.publish(truth.catalogue, truth.version)

    async def _define(self, truth: Truth) -> None:
        """Write definitions and identities again; a definition that is refused keeps no other from it."""
        define = partial(self._target.define_account, version=truth.version)
        await self._isolation.each("verifier", truth.definitions, define, name=_name)
        for key in truth.identities:
            await self._target.identity(key)

    def _verified(
        self, partitions: Sequence[int], found: Sequence[Verified | BaseException | None]
    ) -> list[Verified]:
        """Those that were; one that failed by itself is left, and said."""
        done = []
        for partition, one in zip(partitions, found, strict=True):
            if isinstance(one, Verified):
                done.append(one)
            elif isinstance(one, Exception) and not self._isolation.is_everybodys(one):
                self._left += 1
                self._isolation.item_failed("verifier", str(partition), one)
            elif one is not None:
                raise one
        return done

    async def _notice_rewind(self) -> None:
        """Whether the data is what it was, by the fence and by what PostgreSQL has stored of it."""
        if self._rewinds:
            await self._rewinds.notice()

    async def _catch_up(self, markers: Markers) -> dict[int, int]:
        """Tell PostgreSQL where it knows an earlier epoch or another run; answers the epochs it knew.

        It was restored, or a keeper that lagged behind wrote last: nothing would be stored from then on.
        """
        noted = await self._source.noted()
        wrong = {
            one: epoch
            for one, epoch in markers.verified.items()
            if one not in noted or noted[one][0] != markers.run_id or noted[one][1] < epoch
        }
        if wrong:
            await self._source.note(markers.run_id, wrong)
        return {one: epoch for one, (_, epoch) in noted.items()}

    def _may_be_strange(self, markers: Markers, known: Mapping[int, int]) -> bool:
        """Whether there may be workers of which nothing is stored: nobody watched, and Redis is empty."""
        assert self._admission_gate is not None
        emptied = any(not marker and known.get(one, 0) for one, marker, _ in markers.unverified)
        return not self._admission_gate.watched and (emptied or bool(markers.closed))

    async def _partition(
        self,
        truth: Truth,
        partition: int,
        marker: bytes,
        epoch: int,
        strays: Strays | None,
        *,
        run_id: bytes,
        closes: bool,
    ) -> Verified | None:
        """Verify one as of this epoch; None where another keeper was faster."""
        organizations = truth.organizations.get(partition, [])
        tenants = truth.tenants.get(partition, [])
        old_organizations, old_tenants = await self._target.behind(partition, organizations, tenants)
        if strays is not None:
            old_organizations = [
                one for one in organizations
                if one in old_organizations or one.definition.organization_id in strays.organizations
            ]  # fmt: skip
            old_tenants = [
                one for one in tenants if one in old_tenants or one.definition.tenant_id in strays.tenants
            ]
        rebuilt = len(old_organizations) + len(old_tenants)
        if rebuilt and not await self._target.restore(partition, marker, old_organizations, old_tenants):
            return None
        if strays is not None and self._rewinds:
            await self._rewinds.drop(partition, strays)
        # A Redis that was rolled back holds again what was settled since: charged once is enough.
        if ghosts := await self._source.settled(await self._target.held(partition)):
            moved = await self._target.let_go(partition, marker, epoch, ghosts)
            if moved is None:
                return None
            marker = moved
        went_on = strays is not None
        budgets = await self._budgets.rebuild(partition, marker, organizations, went_on=went_on)
        if budgets is None:
            return None
        if lost := await self._target.forgotten(partition, truth.applied.get(partition, [])):
            await self._source.push_again(lost)
        catalogue = None if closes else truth.version
        if not await self._target.mark(run_id, partition, marker, epoch, catalogue):
            return None
        return Verified(partition, epoch, rebuilt + budgets, len(lost), len(ghosts))


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
