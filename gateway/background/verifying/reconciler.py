"""Compares counters and ledger, at the same seq, with traffic running: a sample always, and every account
each night and on demand. A full run also checks whether rows contradict each other.

Reports differences; repairs them only on request, by appending rows.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, time, timedelta
from typing import TYPE_CHECKING

from gateway.background.verifying.budget_comparison import LOOK_AGAIN_S, LOOKS_MAX, BudgetComparison
from gateway.core.accounts.administration import Row
from gateway.core.integrity.reconciliation import (
    RUN_S_MAX,
    UNASKED,
    DifferenceKind,
    Item,
    Owner,
    ReconciliationSummary,
    compare,
    reconcile,
    unreadable,
)
from gateway.errors import Overloaded

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from persistence.keeper.verification import Accounts
    from persistence.resources.integrity import ReconciliationResults


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
        if (await self._results.last_deep_start() or self._began) >= night:
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
        """Compare the ledger's accounts of these owners with the counters, read before and after."""
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
    return [owner for owner in kept if names.intersection(owner.accounts)]
