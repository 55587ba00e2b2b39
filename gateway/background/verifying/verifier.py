"""Verifies the counters: after a Redis restart nothing is served until a keeper has compared them.

A partition is served under the history that it was verified under: the server's run id, or another name that
the history guard chose because the data was exchanged. PostgreSQL knows this name, and stores nothing read
under another.

To verify a partition under a new history, the seq of each account is compared with PostgreSQL. Missing and
older accounts are rebuilt. Entries added by older data are dropped. Holds of calls that are already in the
ledger are released. Control writes that were lost wait to be pushed again. Then the marker is set under the
next epoch, which shows gateways that something may have been lost. The partition stays closed to admission
until they have sent that again (`admission_gate.py`).

Each partition is read, compared, defined and opened by itself, several at a time, so that none waits for the
last. If a partition's data continues from the last comparison, only changes since then are read. Once all are
verified, a key in Redis states that data which is missing does not exist.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from gateway.background.loops import Isolation
from gateway.background.verifying.admission_gate import AWAY_S, AdmissionGate, DefinedPartitions
from gateway.background.verifying.budget_rebuild import BudgetRebuild
from gateway.background.verifying.published_lists import publish
from gateway.background.verifying.rewinds import Rewinds
from gateway.core.accounts.definitions import (
    AccountDefinition,
    KeyDefinition,
    OrganizationDefinition,
    TenantDefinition,
    UserDefinition,
)
from gateway.core.integrity.recovery import LedgerState, Markers, OrphanEntries, VerificationResult
from gateway.core.integrity.roster import WorkerReport
from gateway.core.model import PARTITIONS
from gateway.core.text import batched
from gateway.errors import CountersUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import LedgerReader
    from persistence.resources.integrity import Quarantines

# The groups of partitions that are read at once, and their order: calls of the first are served soon.
#
# Some are packed while PostgreSQL reads others and Redis writes a third.

# Organizations read at once: as many partitions as have no more than this, or a single larger one.
ORGANIZATIONS_MAX = 2_000
# The number of groups that are read and written concurrently.
TOGETHER_MAX = 3
# The first group is smaller, and has a head start of this many seconds.
FIRST_ORGANIZATIONS_MAX, HEAD_START_S = 200, 0.5


def together(
    wanted: Iterable[int], organizations: Mapping[int, Sequence[int]], most: int = ORGANIZATIONS_MAX
) -> Iterator[list[int]]:
    """Yield groups of the `wanted` partitions to read at once, with up to `most` organizations each.

    `organizations` has the organization ids by partition. A partition with more is a group by itself, and the
    first group is smaller.
    """
    some, count, bound = list[int](), 0, min(FIRST_ORGANIZATIONS_MAX, most)
    for partition in wanted:
        size = len(organizations.get(partition, ()))
        if some and count + size > bound:
            yield some
            some, count, bound = [], 0, most
        some.append(partition)
        count += size
    if some:
        yield some


async def in_turns(
    groups: Iterable[list[int]],
    read: Callable[[list[int]], Awaitable[None]],
    *,
    head_start_s: float = HEAD_START_S,
) -> None:
    """Call `read` for each group, a few concurrently. After a failure start no more, and raise it."""
    left, begun = deque(groups), asyncio.Event()

    async def work() -> None:
        while left:
            try:
                await read(left.popleft())
            except BaseException:
                left.clear()
                raise
            finally:
                begun.set()

    async def follow() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(head_start_s):
                await begun.wait()
        await work()

    await all_of((work(), *(follow() for _ in range(TOGETHER_MAX - 1))))


async def all_of(doing: Iterable[Coroutine[None, None, None]]) -> None:
    """Wait for all coroutines to end, then raise the first failure."""
    for failed in await asyncio.gather(*doing, return_exceptions=True):
        if isinstance(failed, BaseException):
            raise failed


# Partitions that PostgreSQL knows as verified later, under another history than these counters have.
#
# Then two keepers see two servers. A primary that was cut off answers until its cluster tells it, while a
# replica has already taken over. The keeper that is behind reports and stores nothing, because otherwise the
# other one's comparison with PostgreSQL would be wrong. If that lasts, the other server is gone, and this
# data is verified again under a later epoch.

# Longer than a primary that was cut off answers: a cluster's node timeout, by default 15 s.
OVERTAKEN_S: Final = 20.0


class SupersededPartitions:
    """The times (monotonic seconds) since when PostgreSQL knows partitions as verified on another server."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # The run id that `_since` is about: another server's partitions may be those PostgreSQL knows.
        self._run_id = b""
        self._since: dict[int, float] = {}

    def due(self, run_id: bytes) -> frozenset[int]:
        """Return the partitions to verify again, because another server has verified them for some time.

        Empty if `look` has last seen another `run_id`.
        """
        until = self._clock() - OVERTAKEN_S
        return frozenset(
            partition for partition, since in self._since.items() if since <= until and run_id == self._run_id
        )

    def look(self, markers: Markers, noted: Mapping[int, tuple[bytes, int]]) -> None:
        """Update since when partitions of this server are verified on another one.

        `markers` are the partitions' markers in Redis, and `noted` the run ids and epochs in PostgreSQL.
        """
        now = self._clock()
        if markers.run_id != self._run_id:
            self._run_id, self._since = markers.run_id, {}
        self._since = {
            partition: self._since.get(partition, now)
            for partition, epoch in markers.verified.items()
            if _is_elsewhere(noted.get(partition), (markers.run_id, epoch))
        }


def _is_elsewhere(noted: tuple[bytes, int] | None, marked: tuple[bytes, int]) -> bool:
    """Return whether PostgreSQL notes another run id or a later epoch (`noted`) than a partition's marker has."""
    return noted is not None and noted[1] >= marked[1] and noted != marked


@dataclass(frozen=True, slots=True)
class UnverifiedPartition:
    """An unverified partition, its present marker, and the epoch to verify it under.

    If it `closes`, calls are not admitted until workers have sent their logs again. `strays` are the entries
    that older data added. With `since`, only changes after that position may be missing.
    """

    partition: int
    marker: bytes
    epoch: int
    closes: bool
    strays: OrphanEntries | None
    since: int | None


class Partitions:
    """Compares one partition with PostgreSQL, and writes missing or older states: accounts, then definitions.

    Each write of a state compares the marker first, so only one of several keepers does it. A state that was
    written whole includes its definition, which is not written a second time.
    """

    def __init__(
        self, source: LedgerReader, target: KeeperCounters, rewinds: Rewinds | None, isolation: Isolation
    ) -> None:
        self._source, self._target, self._rewinds, self._isolation = source, target, rewinds, isolation
        self._budgets = BudgetRebuild(source, target)

    async def define(self, truth: LedgerState) -> None:
        await self._define(truth, LedgerState([], [], [], [], [], truth.version))

    async def verify(
        self, run_id: bytes, unverified_partition: UnverifiedPartition, truth: LedgerState, catalogue: int
    ) -> VerificationResult | None:
        """Compare and rebuild a partition by PostgreSQL's state `truth`, then mark it verified and define it.

        Return None if another keeper did so meanwhile. `catalogue` is the version of the list of services.
        """
        partition, strays = unverified_partition.partition, unverified_partition.strays
        newest = any(
            budget.needs_newest_layout
            for organization in truth.organizations
            for budget in organization.definition.terms.budgets
        )
        marker = await self._target.take_up_layout(partition, unverified_partition.marker, is_needed=newest)
        if marker is None:
            return None
        lost = await self._lost_state(partition, truth, strays)
        rebuilt = len(lost.organizations) + len(lost.tenants)
        if (rebuilt or lost.keys) and not await self._target.restore(partition, marker, lost):
            return None
        if strays is not None and self._rewinds:
            await self._rewinds.drop(partition, strays)
        # A Redis that was rolled back has holds that were settled since: they must not be charged twice.
        if ghosts := await self._source.settled(await self._target.held(partition)):
            marker = await self._target.release_holds(partition, marker, unverified_partition.epoch, ghosts)
            if marker is None:
                return None
        budgets = await self._budgets.rebuild(
            partition, marker, truth.organizations, went_on=strays is not None
        )
        if budgets is None:
            return None
        if pushed := await self._target.forgotten(partition, truth.applied):
            await self._source.push_again(pushed)
        as_of = None if unverified_partition.closes else catalogue
        if not await self._target.mark(run_id, partition, marker, unverified_partition.epoch, as_of):
            return None
        refused = await self._define(truth, lost)
        return VerificationResult(
            partition, unverified_partition.epoch, rebuilt + budgets, len(pushed), len(ghosts), refused
        )

    async def _lost_state(
        self, partition: int, truth: LedgerState, strays: OrphanEntries | None
    ) -> LedgerState:
        """Return the part of PostgreSQL's state `truth` that must be written to Redis completely.

        It has the accounts and keys that Redis lacks, that are older there, or that `strays` (entries added
        by older data) changed.
        """
        organizations, tenants = await self._target.behind(partition, truth.organizations, truth.tenants)
        if strays is not None:
            ids = strays.organizations.union(account.definition.organization_id for account in organizations)
            organizations = [
                account for account in truth.organizations if account.definition.organization_id in ids
            ]
            ids = strays.tenants.union(account.definition.tenant_id for account in tenants)
            tenants = [account for account in truth.tenants if account.definition.tenant_id in ids]
        keys = await self._target.unknown(partition, truth.keys)
        return replace(truth, organizations=organizations, tenants=tenants, keys=keys)

    async def _define(self, truth: LedgerState, written: LedgerState) -> int:
        """Write a partition's definitions (terms, accounts, keys, users) to Redis.

        Return how many were refused. States that were just `written` whole are skipped. A refused definition
        does not stop the others. Terms are written before the accounts that use them, and credentials last.
        """
        version = truth.version
        await self._target.write_terms(
            [organization.definition for organization in truth.organizations], version
        )
        organizations = {organization.definition.organization_id for organization in written.organizations}
        tenants = {tenant.definition.tenant_id for tenant in written.tenants}
        keys = {key.key_id for key in written.keys}
        left: list[AccountDefinition] = [
            *(
                organization.definition
                for organization in truth.organizations
                if organization.definition.organization_id not in organizations
            ),
            *(tenant.definition for tenant in truth.tenants if tenant.definition.tenant_id not in tenants),
            *(key for key in truth.keys if key.key_id not in keys),
            *truth.users,
        ]
        refused = await self._target.define_all(left, version)
        for definition, error in refused:
            self._isolation.item_failed("verifier", _account(definition), error)
        await self._target.identities(truth.keys)
        return len(refused)


def _account(definition: AccountDefinition) -> str:
    """Return the account of a definition, for logs too: without a user's name."""
    match definition:
        case OrganizationDefinition():
            return f"organization:{definition.organization_id}"
        case TenantDefinition():
            return f"tenant:{definition.tenant_id}"
        case KeyDefinition():
            return f"key:{definition.key_id}"
        case UserDefinition():
            return f"user:{definition.tenant_id}"


class RestoredRows:
    """Compares the rows of a PostgreSQL that was set back, or restored again, with what Redis knows.

    A key that Redis knows as ended, and an override that Redis knows otherwise, are held so: until a person
    releases them, each definition of the row is as Redis knows it. `observe` gets the quarantined accounts.
    """

    def __init__(
        self,
        source: LedgerReader,
        target: KeeperCounters,
        marks: Quarantines,
        isolation: Isolation | None = None,
        observe: Callable[[list[str]], None] = lambda _: None,
    ) -> None:
        self._source, self._target, self._marks, self._observe = source, target, marks, observe
        self._each = Partitions(source, target, None, isolation or Isolation())

    async def compare(self) -> None:
        """Hold what Redis knows otherwise; then define all rows again, since some may have come back.

        Rows with a pending definition are left to it: it also ends the account of another row with the same id.
        """
        await self.hold()
        pending = await self._source.pending_definitions()
        async for _, truth in self._truths():
            await self._each.define(
                replace(
                    truth,
                    organizations=[
                        row for row in truth.organizations if _account(row.definition) not in pending
                    ],
                    tenants=[row for row in truth.tenants if _account(row.definition) not in pending],
                    keys=[key for key in truth.keys if _account(key) not in pending],
                )
            )

    async def hold(self) -> None:
        """Hold what Redis knows otherwise; raise CountersUnavailable if a partition could not be asked."""
        away: CountersUnavailable | None = None
        async for partition, truth in self._truths():
            try:
                if known := await self._target.find_differences(truth):
                    self._observe(await self._marks.hold(partition, known))
            except CountersUnavailable as error:
                away = error
        if away is not None:
            raise away

    async def _truths(self) -> AsyncIterator[tuple[int, LedgerState]]:
        places = await self._source.places(range(PARTITIONS), {})
        for group in together(sorted(places.organizations), places.organizations):
            truths = await self._source.truth({number: places.organizations[number] for number in group})
            for item in truths.items():
                yield item


INTERVAL_S = 0.2
# Partitions compared at once: each may need a connection to PostgreSQL, and others wait for theirs.
PARTITIONS_AT_ONCE_MAX = 16
CREDENTIALS_MAX = 1_000
WATCH_S = 1.0
# While nothing changes, the epochs in PostgreSQL are queried at this interval.
CAUGHT_UP_S_MAX = 5.0
# The pause after a partition was skipped: a new attempt reads all that is stored of it.
LEFT_S = 5.0
assert WATCH_S < AWAY_S, "who watches is there"


class Verifier:
    """Compares, rebuilds and marks the partitions of one Redis server. `observe` gets the results, if any.

    `partitions` returns the partitions of that server. Without an `admission_gate` a verified partition is
    served at once; with one, only after workers have sent again what may be lost. A partition that was never
    verified has lost nothing. A partition that cannot be verified, or belongs to another version, delays no
    other. `hold_back` is awaited before definitions are read: a PostgreSQL that was set back may open keys that
    Redis knows as revoked. `say` logs the progress of a recovery, with the seconds since it began.
    """

    def __init__(
        self,
        source: LedgerReader,
        target: KeeperCounters,
        observe: Callable[[list[VerificationResult]], None] = lambda _: None,
        *,
        admission_gate: AdmissionGate | None = None,
        rewinds: Rewinds | None = None,
        partitions: Callable[[], Sequence[int]] = lambda: range(PARTITIONS),
        isolation: Isolation | None = None,
        organizations_max: int = ORGANIZATIONS_MAX,
        watch_s: float = WATCH_S,
        overtaken: SupersededPartitions | None = None,
        hold_back: Callable[[], Awaitable[object]] = lambda: asyncio.sleep(0),
        clock: Callable[[], float] = time.monotonic,
        say: Callable[..., None] = lambda *_, **__: None,
    ) -> None:
        self._isolation, self._failed_partitions = isolation or Isolation(), 0
        self._source = source
        self._target = target
        self._observe = observe
        # The run ids with everything verified, and with nothing left to do; and that of the last pass.
        self._vouched, self._watched = b"", b""
        self._pass = b"", DefinedPartitions()
        self._admission_gate = admission_gate
        self._rewinds, self._hold_back = rewinds, hold_back
        self._partitions, self._organizations_max = partitions, organizations_max
        self._watch_s, self._clock, self._say = watch_s, clock, say
        self._overtaken = overtaken or SupersededPartitions()
        self._begun_at: float | None = None
        # The verified partitions of the last time the keeper caught up, and that time.
        self._caught_up: tuple[bytes, Mapping[int, int]] = b"", {}
        self._caught_up_at = 0.0
        self._each = Partitions(source, target, rewinds, self._isolation)
        self._free = asyncio.Semaphore(PARTITIONS_AT_ONCE_MAX)

    @property
    def ready(self) -> bool:
        """Whether all partitions are verified under the run id of the present connection to Redis."""
        return bool(self._vouched) and self._vouched == self._target.run_id

    @property
    def open_count(self) -> int:
        """The number of partitions that admit calls: all once verified, until then as a pass opens them."""
        run_id, defined = self._pass
        if self.ready:
            return len(self._partitions())
        return len(defined.served) if run_id == self._target.run_id else 0

    @property
    def pause_s(self) -> float:
        """The seconds until the next `verify`.

        If all partitions are verified, except those of another version, it is the regular interval, because
        the admission gate relies on regular calls. After Redis gets a new run id it is shorter.
        """
        if (run_id := self._target.run_id) and run_id in (self._vouched, self._watched):
            return self._watch_s
        return LEFT_S if self._failed_partitions else INTERVAL_S

    async def verify(self) -> list[VerificationResult]:
        """Verify the unverified partitions; raise CountersUnavailable if Redis goes away meanwhile."""
        self._watched = b""
        await self._notice_rewind(anew=not self.ready)
        reports = await self._target.reports() if self._admission_gate else {}
        await self._close_overtaken()
        markers = await self._target.markers()
        run_id = markers.run_id  # if the history is renamed meanwhile, all of this is repeated
        if not run_id:
            raise CountersUnavailable
        self._failed_partitions = len(markers.others)
        if markers.others and not (markers.verified or markers.unverified):
            self._vouched = b""
            return []
        said = await self._target.is_marked_verified(run_id, markers.unverified)
        serves_all = said and not markers.unverified and not markers.closed
        if serves_all and (self._vouched == run_id or markers.others):
            self._pass = run_id, DefinedPartitions(served=frozenset(markers.verified))
            if self._admission_gate:
                await self._admission_gate.watch(reports)
            stands, now = (run_id, markers.verified), self._clock()
            if stands != self._caught_up or now - self._caught_up_at >= CAUGHT_UP_S_MAX:
                await self._catch_up(markers)
                self._caught_up, self._caught_up_at = stands, now
            self._watched = run_id
            return []
        self._vouched = b""
        self._begun_at = self._clock() if markers.unverified or markers.closed else None
        self._stage("begun", unverified=len(markers.unverified), closed=len(markers.closed))
        await self._hold_back()
        known, everybodys = await asyncio.gather(self._catch_up(markers), self._source.everybodys())
        epochs = {one: max(epoch, known.get(one, 0)) + 1 for one, _, epoch in markers.unverified}
        noted = await self._source.note(run_id, epochs)
        epochs = {one: epochs[one] for one in noted}  # others have a later epoch by now
        if not markers.others:  # otherwise a newer version writes them
            await publish(self._target, everybodys)
            if self._rewinds and epochs and not markers.verified:  # otherwise some may be older still
                await self._rewinds.keep_promotion(run_id)
        strays = await self._rewinds.strays(list(epochs)) if self._rewinds else {}
        since = await self._compared_positions(markers, strays)
        self._stage("outboxes read", go_on=len(since), older=len(strays))
        found = {
            one: UnverifiedPartition(
                one, marker, epochs[one], closes=bool(self._admission_gate and known.get(one, 0)),
                strays=strays.get(one), since=since.get(one),
            )
            for one, marker, _ in markers.unverified if one in epochs
        }  # fmt: skip
        # Not marked complete: a keeper may have died between setting a marker and the keys written after it.
        left = {one for one, _, _ in markers.unverified} - epochs.keys()
        ours = set(self._partitions()) - left.union(markers.others)
        wanted = [*epochs, *markers.closed] if said else sorted(ours)
        strangers = bool(self._admission_gate) and self._may_be_strange(markers, known)
        async with self._open_partitions(run_id, reports, everybodys.version, strangers=strangers) as defined:
            done = await self._all(run_id, wanted, found, everybodys.version, defined)
            self._stage("compared", partitions=len(done))
        self._stage("open")
        if whole_of := {one.partition: one.epoch for one in done if not one.refused}:
            await self._source.note_compared(run_id, whole_of, everybodys.position)
        await self._notice_rewind(anew=True)  # data that was exchanged meanwhile is verified again
        whole = len(done) == len(markers.unverified) and not self._failed_partitions
        if whole and self._target.run_id == run_id:
            if not said or markers.unverified:
                await self._target.all_verified(run_id)
            self._vouched = run_id
            if serves_all and self._admission_gate:  # data may be lost before the next look
                await self._admission_gate.watch(reports)
        return done

    async def run(self) -> None:
        """Verify at intervals, until cancelled, so that new run ids and lost markers are noticed."""
        await self._target.wire.connected_within(self._watch_s)
        while True:
            try:
                if done := await self.verify():
                    self._observe(done)
            except CountersUnavailable:
                self._vouched = b""
            slept_s = 0.0
            while slept_s < self.pause_s:  # it shrinks as soon as the connection has another run id
                await asyncio.sleep(INTERVAL_S)
                slept_s += INTERVAL_S

    def _stage(self, what: str, **facts: int) -> None:
        if self._begun_at is not None:
            self._say(f"recovery: {what}", **facts, seconds=round(self._clock() - self._begun_at, 2))

    async def _notice_rewind(self, *, anew: bool) -> None:
        """Check whether Redis was set back to older data; with `anew`, do not rely on a recent check."""
        if self._rewinds:
            await self._rewinds.notice(anew=anew)

    async def _close_overtaken(self) -> None:
        """Close partitions that were verified on another server meanwhile, so that they are verified again.

        Else their entries would be read as entries of the next epoch.
        """
        run_id = self._target.run_id
        if due := self._overtaken.due(run_id):
            await self._target.close_again(run_id, due)

    async def _catch_up(self, markers: Markers) -> dict[int, int]:
        """Store the epochs of verified partitions where PostgreSQL has an earlier one or none.

        Without that, a PostgreSQL that was restored would store nothing from then on. A later epoch, or
        another history with the same epoch, is left unchanged. Return PostgreSQL's epochs by partition, as
        they were before.
        """
        noted = await self._source.noted()
        wrong = {
            one: epoch for one, epoch in markers.verified.items() if one not in noted or noted[one][1] < epoch
        }
        self._overtaken.look(markers, noted)
        if wrong:
            await self._source.note(markers.run_id, wrong)
        return {one: epoch for one, (_, epoch) in noted.items()}

    async def _compared_positions(self, markers: Markers, strays: Collection[int]) -> dict[int, int]:
        """Return, by partition, the database position up to which Redis has all definitions.

        It contains only partitions whose data continues from the last comparison, which confirmed all of it;
        none of those in `strays`, whose data is older.
        """
        if self._rewinds is None:
            return {}
        last_run_id, compared = await self._target.last_verified(), await self._source.compared()

        def continues(partition: int, epoch: int) -> bool:
            last, before = compared[partition], markers.before[partition]
            is_confirmed = (last.run_id, last.epoch) == (last_run_id, epoch)
            return is_confirmed and before == last_run_id != markers.run_id

        candidates = compared.keys() - set(strays)
        return {
            partition: compared[partition].position
            for partition, _, epoch in markers.unverified
            if partition in candidates and continues(partition, epoch)
        }

    def _may_be_strange(self, markers: Markers, known: Mapping[int, int]) -> bool:
        """Return whether gateway workers may exist that no report names.

        They may if this keeper has not watched the workers, and Redis lost data or has closed partitions.
        `known` are PostgreSQL's epochs.
        """
        assert self._admission_gate is not None
        emptied = any(not marker and known.get(one, 0) for one, marker, _ in markers.unverified)
        return not self._admission_gate.watched and (emptied or bool(markers.closed))

    @asynccontextmanager
    async def _open_partitions(
        self, run_id: bytes, reports: Mapping[str, WorkerReport], catalogue: int, *, strangers: bool
    ) -> AsyncIterator[DefinedPartitions]:
        """Open partitions as soon as the block has defined them; at its end, wait until all are open."""
        defined = DefinedPartitions()
        self._pass = run_id, defined
        if self._admission_gate is None:
            yield defined
            return
        opening = asyncio.create_task(
            self._admission_gate.open(run_id, reports, catalogue, defined, strangers=strangers)
        )
        try:
            yield defined
            defined.is_all = True
            await opening
        finally:
            opening.cancel()
            await asyncio.gather(opening, return_exceptions=True)

    async def _all(
        self,
        run_id: bytes,
        wanted: Collection[int],
        unverified_partitions: Mapping[int, UnverifiedPartition],
        catalogue: int,
        defined: DefinedPartitions,
    ) -> list[VerificationResult]:
        """Verify the unverified partitions in `unverified_partitions`, and write the definitions of all `wanted`.

        Return the results, without partitions that another keeper verified, and without those that failed,
        which are logged. `defined` gets the partitions that are finished, and `catalogue` is the version of
        the list of services.
        """
        if not wanted:
            return []
        since = {
            marker.partition: marker.since
            for marker in unverified_partitions.values()
            if marker.since is not None
        }
        places, done = await self._source.places(wanted, since), list[VerificationResult]()

        async def compare_one(partition: int, truth: LedgerState) -> None:
            try:
                async with self._free:
                    await compared(partition, truth)
            except Exception as error:
                if self._isolation.is_everybodys(error):
                    raise
                self._failed_partitions += 1
                self._isolation.item_failed("verifier", str(partition), error)

        async def compared(partition: int, truth: LedgerState) -> None:
            if partition not in unverified_partitions:
                await self._each.define(truth)
            elif verified := await self._each.verify(
                run_id, unverified_partitions[partition], truth, catalogue
            ):
                done.append(verified)
            else:
                return
            defined.partitions.add(partition)

        async def read(some: list[int]) -> None:
            organizations = {partition: places.organizations.get(partition, ()) for partition in some}
            truths = await self._source.truth(organizations)
            await all_of(compare_one(partition, truth) for partition, truth in truths.items())

        await in_turns(together(wanted, places.organizations, self._organizations_max), read)
        for some in batched(places.credentials, CREDENTIALS_MAX):
            await self._target.identities(await self._source.credentials(some))
        return sorted(done, key=lambda result: result.partition)
