"""Compares counters and ledger, at the same seq, with traffic running: a sample always, all each night and on
demand. With all of them it asks whether rows contradict each other.

Finds and says; repairs only when asked, by appending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import datetime, time, timedelta
from typing import Protocol

from gateway.background.verifying.budgets import LOOK_AGAIN_S, LOOKS_MAX, BudgetComparison
from gateway.background.verifying.budgets import Source as BudgetSource
from gateway.background.verifying.budgets import Target as BudgetTarget
from gateway.core.accounts.administration import Row
from gateway.core.integrity.reconciliation import (
    RUN_S_MAX,
    UNASKED,
    Item,
    Kind,
    LedgerAccount,
    Owner,
    Reconciled,
    compare,
    reconcile,
    unreadable,
)
from gateway.core.integrity.verified import AccountHead
from gateway.errors import Overloaded

SAMPLE_OWNERS_MAX = 50
OWNERS_A_BATCH = 100
# Closed months that are added up again with so many owners: each is a million movements at most.
PROOFS_A_BATCH = 1
# Of a run, for keeping what it found.
KEEP_S = 15.0
# How long rows are asked where nobody wants to wait for all of them.
ROWS_S_MAX = 60.0
# Each night after this time, UTC, everything is compared; so long at most. What fails is tried again later.
NIGHT = time(3)
NIGHT_S_MAX = 7_200.0
AGAIN = timedelta(hours=1)
UNDER_WAY = "A comparison is under way already: try again in a while."


class Counters(BudgetTarget, Protocol):
    """Where accounts stand now."""

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        """Where the accounts of these organizations and tenants stand, by name."""

    async def unreadable(self, owners: Sequence[Owner]) -> Collection[str]:
        """Which of their accounts no version can read."""


class Ledger(BudgetSource, Protocol):
    """PostgreSQL, as accounts."""

    async def owners(self, after: int, count: int) -> Sequence[Owner]:
        """Organizations by id, with their tenants."""

    async def some_owners(self, count: int) -> Sequence[Owner]:
        """Organizations whose turn it is to be looked at, with their tenants."""

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> Mapping[str, LedgerAccount]:
        """The accounts named, each with its balance at the seq given for it."""

    async def disproved(self, owners: Sequence[Owner], count: int) -> Sequence[Item]:
        """Of the checkpoints of these owners' accounts, so many at random: those that say something false."""

    async def contradictions(self, *, within_s: float) -> Sequence[Item] | None:
        """What rows say against each other; None where that takes longer."""


class Results(Protocol):
    """Where results are kept, and whose turn it is to have one."""

    def turn(self) -> AbstractAsyncContextManager[bool]:
        """Have the only run of all keepers; False where another one has it."""

    async def keep(self, started: datetime, finished: datetime, found: Reconciled) -> Row:
        """Store one result; answers it as it is shown."""

    async def last(self) -> Row | None:
        """The last result; None where there is none yet."""

    async def asked(self) -> datetime | None:
        """When the last run began that asked all rows; None where there is none yet."""

    async def repair(self, item: Item) -> None:
        """Write the intent that undoes a drift."""


class Reconciler:
    """Looks, keeps what it found, repairs when asked. `latest` is the last sample or run."""

    def __init__(
        self,
        counters: Counters,
        ledger: Ledger,
        results: Results,
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
        self.latest = Reconciled(0, 0, ())
        self._looked: datetime | None = None
        self._running = False
        # The last night everything was compared in, as far as is known; and when to look next.
        self._began = self._again = clock()
        self._compared = self._began - timedelta(days=2)

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """Have the only run of all keepers at a time; `Overloaded` while there is another.

        Two that repair at once would both make the same drift good.
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
        """What metrics say of the last look, and when that was."""
        drift = {"drift_tokens": self.latest.drift_tokens, "drift_credits": self.latest.drift_credits}
        when = {} if self._looked is None else {"reconciliation_timestamp_seconds": self._looked.timestamp()}
        return {**drift, **when}

    async def check(self, owners: Sequence[Owner], *, deep: bool) -> Reconciled:
        """Compare the accounts of these organizations; what differs is looked at again before it counts."""
        found = await self._compare(owners, deep=deep)
        for _ in range(LOOKS_MAX - 1):
            if not found.items:
                break
            await asyncio.sleep(self._look_again_s)
            names = {item.account for item in found.items}
            again = await self._compare(_only(owners, names), deep=deep)
            still = tuple(item for item in again.items if item.account in names)
            found = Reconciled(found.checked, sum(item.kind == Kind.LAG for item in still), still)
        return found

    async def run_now(self, *, repair: bool = False, whole: bool = False, within_s: float = RUN_S_MAX) -> Row:
        """Compare everything there is, and keep the result; drifts are made good only if asked.

        Then rows are asked whether they contradict each other: for a minute, or, where the `whole` of them is
        wanted, in all the time that is left. What was compared is repaired and kept whatever comes of that.
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
        self.latest, self._looked = Reconciled(checked, pending, tuple(items)), self._clock()
        if repair:
            for item in drifts:
                if item.kind == Kind.DRIFT:
                    await self._results.repair(item)
        kept = await self._results.keep(started, self._clock(), self.latest.joined(UNASKED))
        left = until - asyncio.get_running_loop().time()
        left = left if whole else min(left, ROWS_S_MAX)
        said = await self._ledger.contradictions(within_s=left) if left > 0 else None
        if said is None:
            return kept
        self.latest = self.latest.joined(Reconciled(0, 0, tuple(said)))
        return await self._results.keep(started, self._clock(), self.latest)

    async def last(self) -> Row | None:
        """The last kept result."""
        return await self._results.last()

    async def sample(self) -> None:
        """Compare some accounts, others each time."""
        owners = await self._ledger.some_owners(SAMPLE_OWNERS_MAX)
        found = await self.check(owners, deep=False)
        self.latest, self._looked = found.joined(await self._look(owners)), self._clock()

    async def look_at_night(self) -> None:
        """Compare everything unless a keeper did since it was last night.

        A night without a keeper is made up for, once anything was ever compared.
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

    async def _look(self, owners: Sequence[Owner]) -> Reconciled:
        """What is only told, since no row puts it right: budgets, and what months that are over came to."""
        disproved = await self._ledger.disproved(owners, PROOFS_A_BATCH)
        budgets = await self._budgets.compare([one.organization_id for one in owners])
        return budgets.joined(Reconciled(0, 0, tuple(disproved)))

    async def _compare(self, owners: Sequence[Owner], *, deep: bool) -> Reconciled:
        before = await self._counters.account_heads(owners)
        # An account that is not told of here is another version's, or nobody's.
        untold = [one for one in owners if not before.keys() >= set(one.accounts)]
        unread = await self._counters.unreadable(untold) if untold else ()
        seqs = {name: head.seq if head else 0 for name, head in before.items()} | dict.fromkeys(unread, 0)
        ledger = await self._ledger.accounts(seqs, deep=deep)
        after = await self._counters.account_heads(owners)
        # An account that another version stored meanwhile is not told of: nothing is said of it here.
        items = [
            unreadable(account) if name in unread else compare(before[name], account, after[name])
            for name, account in ledger.items()
            if name in unread or (name in before and name in after)
        ]
        return reconcile(items)


def _only(owners: Sequence[Owner], names: set[str]) -> list[Owner]:
    """Those of the owners whose accounts are named."""
    kept = [
        Owner(one.organization_id, tuple(id_ for id_ in one.tenant_ids if f"tenant:{id_}" in names))
        for one in owners
    ]
    return [one for one in kept if names.intersection(one.accounts)]
