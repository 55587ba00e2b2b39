"""Compares counters and ledger, at the same seq, with traffic running: a sample always, and every account
each night and on demand. A full run also checks whether rows contradict each other.

Reports differences; repairs them only on request, by appending rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime, time, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import Budget, account_of, accounts_of, ends_of
from gateway.core.accounts.definitions import OrganizationAccount
from gateway.core.accounts.holds import MovementRange
from gateway.core.accounts.outbox import WindowKey
from gateway.core.integrity.reconciliation import (
    ACCOUNTS_MAX,
    NO_FAULTS,
    RUN_S_MAX,
    UNASKED,
    BudgetAccountUse,
    DifferenceKind,
    Item,
    Owner,
    ReconciliationSummary,
    WaitingUses,
    as_they_should_be,
    carrying,
    compare,
    differences,
    differing,
    forgettable,
    reconcile,
    run_as_it_should_be,
    unreadable,
    waiting_in,
    windows_at,
)
from gateway.core.text import batched
from gateway.errors import Overloaded

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.sweeps import Losses
    from persistence.keeper.verification import Accounts, BudgetUses
    from persistence.resources.integrity import ReconciliationResults

# Compares accounts of budgets with their stored use plus the entries that wait to be stored.
#
# While a partition is being verified, nothing moves: the flusher stores no entries that it read under another
# history, and scripts refuse. So the sum is exact, whatever the counters lost or added. With traffic running,
# accounts are compared only if nothing moved between two looks.

# A difference may be a movement in flight: it counts only if several looks find it.
LOOKS_MAX = 5
LOOK_AGAIN_S = 0.3
# Accounts that are compared and written before other work gets a turn.
REBUILT_AT_ONCE = 5_000


class BudgetRebuild:
    """Compares and rewrites the budget accounts of one partition at a time."""

    def __init__(self, source: BudgetUses, target: KeeperCounters) -> None:
        self._source, self._target = source, target

    async def rebuild(
        self, partition: int, marker: bytes, organizations: Iterable[OrganizationAccount], *, went_on: bool
    ) -> int | None:
        """Rewrite wrong budget counters of organizations and runs in a partition; return how many.

        None if the partition's `marker` changed meanwhile. Counters above the use in PostgreSQL are lowered
        only with `went_on`, that is if Redis continued with older data. Otherwise, or if too many entries
        wait, they are left unchanged, since PostgreSQL may be the older one.
        """
        here = [organization.definition for organization in organizations]
        defined = [one for one in here if one.terms.budgets]
        # Most partitions have no organizations: a query for each would be most of a verification.
        runs = await self._source.runs([one.organization_id for one in here]) if here else []
        if not defined and not runs:
            return 0
        now_ms, ids = await self._target.now_ms(), [one.organization_id for one in here]
        of_runs = [window for run in runs for window in run.budgets]
        budgets = [budget for one in defined for budget in one.terms.budgets]
        begun = [WindowKey(budget.id, run.created_ms) for run in runs for budget in run.budgets]
        windows = [*windows_at(budgets, now_ms), *begun]
        stored = await self._source.stored(partition, ids, windows, carrying(budgets))
        entries = await self._target.waiting(partition, stored.mark)
        apart = await self._target.waiting_apart(partition, ids)
        less_only = not went_on or entries is None or apart is None
        packed = [*(entries or ()), *(apart or ()), *stored.aside]
        waiting = waiting_in(packed, [*budgets, *of_runs])
        accounts = [run_as_it_should_be(run, stored.used, waiting.used) for run in runs]
        holds = await self._target.held_of_budgets(partition)
        wrong = await self._wrong(partition, accounts, less_only=less_only)
        if wrong and not await self._target.restore_budgets(partition, marker, wrong, now_ms, holds):
            return None
        written = len(wrong)
        for one in defined:
            names = [
                name
                for alike in accounts_of(one.terms.budgets)
                if alike[0].each
                for name in await self._target.somebodys_budgets(
                    partition, account_of(one.organization_id, alike[0])
                )
            ]
            every = as_they_should_be(one.organization_id, one.terms.budgets, stored, waiting, now_ms, names)
            for some in batched(every, REBUILT_AT_ONCE):
                wrong = await self._wrong(partition, some, less_only=less_only)
                written += len(wrong)
                if wrong and not await self._target.restore_budgets(partition, marker, wrong, now_ms, holds):
                    return None
        await self._target.restore_runs(partition, runs)
        return written

    async def _wrong(
        self, partition: int, accounts: Sequence[BudgetAccountUse], *, less_only: bool
    ) -> list[BudgetAccountUse]:
        """Return the accounts whose counters in Redis differ; with `less_only`, those with too low ones.

        Accounts that another version wrote are omitted.
        """
        live, others = await self._target.live_budgets(partition, [account.name for account in accounts])
        return differing(
            [account for account in accounts if account.name not in others], live, less_only=less_only
        )


@dataclass(slots=True, eq=False)
class BudgetComparison:
    """Compares budgets with traffic running; `partition_of` returns the partition of an organization id."""

    source: Accounts
    target: KeeperCounters
    partition_of: Callable[[int], int]
    look_again_s: float = LOOK_AGAIN_S

    async def compare(self, organizations: Sequence[int]) -> ReconciliationSummary:
        """Return differences that several comparisons found.

        A budget that changed in each counts as pending.
        """
        found: list[Item] = []
        checked = pending = 0
        defined = await self.source.budgets(organizations)
        for one, budgets in defined.items():
            items = await self._differing(one, budgets)
            checked += len(budgets)
            pending += len(budgets) if items is None else 0
            found += items or ()
        return ReconciliationSummary(checked, pending, tuple(found))

    async def _differing(self, organization_id: int, budgets: Sequence[Budget]) -> list[Item] | None:
        """Return differences found by several comparisons; None if something moved during each of them."""
        items: list[Item] | None = None
        for look in range(LOOKS_MAX):
            if look:
                await asyncio.sleep(self.look_again_s)
            found = await self._look(organization_id, budgets)
            if found is None:
                continue
            again, gone = found
            before = {item.account for item in (again if items is None else items)}
            items = [item for item in again if item.account in before]
            if all(item.kind in NO_FAULTS for item in items):
                break
        if items and gone:
            now_ms = await self.target.now_ms()
            await self.target.take_up_budgets(self.partition_of(organization_id), gone, now_ms)
        return items

    async def _look(
        self, organization_id: int, budgets: Sequence[Budget]
    ) -> tuple[list[Item], list[BudgetAccountUse]] | None:
        """Return the differences, and the accounts missing in Redis; None if anything moved meanwhile.

        Missing accounts are compared before others.
        """
        partition, now_ms = self.partition_of(organization_id), await self.target.now_ms()
        windows = windows_at(budgets, now_ms)
        stored = await self.source.stored(partition, [organization_id], windows, carrying(budgets))
        may_lack = forgettable(budgets)
        known = list(as_they_should_be(organization_id, budgets, stored, WaitingUses(), now_ms))
        named = {one.name: one for one in known}
        kept = [one.name for one in known if ":" in one.name and ends_of(one.defined).never and any(one.used)]
        gone = await self.target.keep_budgets(partition, kept)
        names = list(islice(dict.fromkeys([*gone, *named]), ACCOUNTS_MAX))
        if not names:
            return [], []
        looked = await self.target.look(partition, stored.mark, names)
        apart = await self.target.waiting_apart(partition, [organization_id])
        again = await self.source.stored(partition, [organization_id], windows, carrying(budgets))
        if looked is None or apart is None or again != stored:
            return None
        live, entries = looked
        waiting = waiting_in([*entries, *apart, *stored.aside], budgets)
        accounts = as_they_should_be(organization_id, budgets, stored, waiting, now_ms)
        wanted = set(names)
        items = list(differences((account for account in accounts if account.name in wanted), live, may_lack))
        return items, [named[name] for name in gone if name in wanted and name not in live]


SAMPLE_OWNERS_MAX = 50
OWNERS_A_BATCH = 100
# Closed months added up again for each batch of owners: each is a million movements at most.
PROOFS_A_BATCH = 1
# Time reserved at the end of a run for storing its result.
KEEP_S = 15.0
# The longest time that rows are checked in a run that does not ask for all of them.
ROWS_S_MAX = 60.0
# Everything is compared each night after this time (UTC), within this time. A failed run is repeated later.
NIGHT = time(3)
NIGHT_S_MAX = 7_200.0
AGAIN = timedelta(hours=1)
UNDER_WAY = "A comparison is under way already: try again in a while."


class Reconciler:
    """Compares, stores results, and repairs on request. `latest` is the result of the last sample or run."""

    def __init__(
        self,
        counters: KeeperCounters,
        ledger: Accounts,
        results: ReconciliationResults,
        clock: Callable[[], datetime],
        *,
        partition_of: Callable[[int], int],
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._counters = counters
        self._ledger = ledger
        self._results = results
        self._clock = clock
        self._look_again_s = look_again_s
        self._budgets = BudgetComparison(ledger, counters, partition_of, look_again_s)
        self.latest = ReconciliationSummary(0, 0, ())
        self._looked: datetime | None = None
        self._running = False
        # The last night in which everything was compared, as far as is known; and the time of the next check.
        self._began = self._again = clock()
        self._compared = self._began - timedelta(days=2)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Reserve the comparison of accounts for a block; `Overloaded` if one runs in any keeper.

        Two repairs at once would both correct the same drift.
        """
        if self._running:
            raise Overloaded(UNDER_WAY)
        self._running = True
        try:
            async with self._results.turn() as is_ours:
                if not is_ours:
                    raise Overloaded(UNDER_WAY)
                yield
        finally:
            self._running = False

    def figures(self) -> dict[str, object]:
        """Return the metrics of the last comparison, and its time."""
        drift = {"drift_tokens": self.latest.drift_tokens, "drift_credits": self.latest.drift_credits}
        when = {} if self._looked is None else {"reconciliation_timestamp_seconds": self._looked.timestamp()}
        return {**drift, **when}

    async def check(self, owners: Sequence[Owner], *, deep: bool) -> ReconciliationSummary:
        """Compare accounts of these organizations with the ledger; `deep` also adds up the ledger's rows.

        Only differences that repeated comparisons find count.
        """
        found = await self._compare(owners, deep=deep)
        for _ in range(LOOKS_MAX - 1):
            if not found.items:
                break
            await asyncio.sleep(self._look_again_s)
            names = {item.account for item in found.items}
            again = await self._compare(_only(owners, names), deep=deep)
            still = tuple(item for item in again.items if item.account in names)
            found = ReconciliationSummary(
                found.checked, sum(item.kind == DifferenceKind.LAG for item in still), still
            )
        return found

    async def run_now(self, *, repair: bool = False, whole: bool = False, within_s: float = RUN_S_MAX) -> Row:
        """Compare all accounts and store the result; correct drifts only with `repair`.

        Then check, in the rest of `within_s` seconds, whether rows contradict each other: up to a minute, or
        for all of that time if `whole`. The comparison is stored, and repaired, before that.
        """
        until = asyncio.get_running_loop().time() + within_s - KEEP_S
        started, after = self._clock(), 0
        checked = pending = 0
        items: list[Item] = []
        drifts: list[Item] = []
        while owners := await self._ledger.owners(after, OWNERS_A_BATCH):
            found = await self.check(owners, deep=True)
            part = found.joined(await self._look(owners))
            checked, pending = checked + part.checked, pending + part.pending
            items, drifts = items + list(part.items), drifts + list(found.items)
            after = owners[-1].organization_id
        self.latest, self._looked = ReconciliationSummary(checked, pending, tuple(items)), self._clock()
        if repair:
            for item in drifts:
                if item.kind == DifferenceKind.DRIFT:
                    await self._results.repair(item)
        kept = await self._results.keep(started, self._clock(), self.latest.joined(UNASKED))
        left = until - asyncio.get_running_loop().time()
        left = left if whole else min(left, ROWS_S_MAX)
        contradictions = await self._ledger.contradictions(within_s=left) if left > 0 else None
        if contradictions is None:
            return kept
        self.latest = self.latest.joined(ReconciliationSummary(0, 0, tuple(contradictions)))
        return await self._results.keep(started, self._clock(), self.latest)

    async def last(self) -> Row | None:
        return await self._results.last()

    async def sample(self) -> None:
        """Compare a random sample of accounts, a different one each time."""
        owners = await self._ledger.some_owners(SAMPLE_OWNERS_MAX)
        found = await self.check(owners, deep=False)
        self.latest, self._looked = found.joined(await self._look(owners)), self._clock()

    async def look_at_night(self) -> None:
        """Compare everything, unless a keeper has done so since the last night began.

        A night without a running keeper is made up for, once there has ever been a comparison.
        """
        now = self._clock()
        night = datetime.combine(now.date(), NIGHT, now.tzinfo)
        if night > now:
            night -= timedelta(days=1)
        if night <= self._compared or now < self._again:
            return
        self._again = now + AGAIN
        if (await self._results.asked() or self._began) >= night:
            self._compared = night
            return
        with suppress(Overloaded):
            async with self.alone():
                await self.run_now(whole=True, within_s=NIGHT_S_MAX)
                self._compared = night

    async def _look(self, owners: Sequence[Owner]) -> ReconciliationSummary:
        """Return differences that are reported but never repaired: of budgets and of past months."""
        disproved = await self._ledger.disproved(owners, PROOFS_A_BATCH)
        budgets = await self._budgets.compare([owner.organization_id for owner in owners])
        return budgets.joined(ReconciliationSummary(0, 0, tuple(disproved)))

    async def _compare(self, owners: Sequence[Owner], *, deep: bool) -> ReconciliationSummary:
        before = await self._counters.account_heads(owners)
        # An account without an entry here belongs to another version, or does not exist.
        untold = [owner for owner in owners if not before.keys() >= set(owner.accounts)]
        unread = await self._counters.unreadable(untold) if untold else ()
        seqs = {name: head.seq if head else 0 for name, head in before.items()} | dict.fromkeys(unread, 0)
        ledger = await self._ledger.accounts(seqs, deep=deep)
        after = await self._counters.account_heads(owners)
        # An account that another version stored meanwhile has no entry: it is not compared.
        items = [
            unreadable(account) if name in unread else compare(before[name], account, after[name])
            for name, account in ledger.items()
            if name in unread or (name in before and name in after)
        ]
        return reconcile(items)


def _only(owners: Sequence[Owner], names: set[str]) -> list[Owner]:
    kept = [
        Owner(owner.organization_id, tuple(id_ for id_ in owner.tenant_ids if f"tenant:{id_}" in names))
        for owner in owners
    ]
    return [one for one in kept if names.intersection(one.accounts)]


class LossCounter:
    """Counts movements that Redis acknowledged and then lost; `lost` is their number since the start.

    `evidence` are the movements acknowledged lately, and `at_rest` returns the partitions whose workers have
    sent their logs again.
    """

    def __init__(
        self,
        losses: Losses,
        evidence: Iterable[Iterable[MovementRange]],
        log: Callable[..., None],
        *,
        at_rest: Callable[[], Awaitable[Collection[int]]],
    ) -> None:
        self._losses, self._at_rest = losses, at_rest
        self._evidence = tuple(evidence)
        self._log = log
        self.lost = 0

    async def count(self) -> Mapping[str, object]:
        """Count and log movements that Redis acknowledged and then lost; return {}.

        Late evidence lowers a loss in its row, but not the number counted here.
        """
        if not await self._losses.any_open():
            return {}
        # Asked first: workers of partitions at rest have by now brought all their evidence.
        at_rest = await self._at_rest()
        for loss in await self._losses.count([one for known in self._evidence for one in known], at_rest):
            level = "error" if loss.lost else "info"
            self.lost += max(0, loss.more)
            self._log("redis forgot what it had acknowledged", **asdict(loss), level=level)
        return {}
