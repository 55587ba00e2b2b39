"""Charges settlements whose hold was unknown to Redis, each exactly once.

Such a settlement may have been applied (only the answer was lost), its hold may have been reclaimed, or it
may never have reached Redis. Once all earlier entries are in the ledger, the ledger decides: a request id
found there is dropped or corrected, and one not found is posted. A call that may have been charged in an
archived month becomes a dead letter, for a person to look up. Posting and correcting delete the queue's entry
in the same step, so none is charged twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Protocol

from gateway.background.loops import Isolation, Loop, call
from gateway.core.accounts.flush_batch import stream_place
from gateway.core.accounts.holds import ChargedAmounts, LateResolution, LateSettlement, Verb
from gateway.core.accounts.outbox import AccountPosition
from gateway.core.accounts.refusals import RefusedBatch
from gateway.core.billing.money import NANO, whole_credits
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE
from gateway.core.integrity.reconciliation import NO_MARK, Owner, Rollback
from gateway.core.integrity.recovery import AccountHead
from gateway.core.model import PARTITIONS, Settlement
from gateway.core.text import batched
from gateway.errors import CountersUnavailable, LedgerUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.outbox import Outbox, RefusedStream
    from gateway.counters.keeper.verification import KeeperCounters
    from gateway.counters.late import ReclaimClient
    from persistence.keeper.sweeps import Sweeps
    from persistence.keeper.verification import Accounts
    from persistence.ledger.redrive import RefusedJournal
    from persistence.resources.integrity import Quarantines

INTERVAL_S = 0.5
# Settlements read, looked up and written in one pass.
ENTRIES_MAX = 1_000


class LateSettlements:
    def __init__(self, lane: ReclaimClient, ledger: Sweeps, *, interval_s: float = INTERVAL_S) -> None:
        self._lane = lane
        self._ledger = ledger
        self._interval_s = interval_s
        self._wanted = asyncio.Event()

    def hurry(self) -> None:
        """Start the next pass at once, because an admission waits for the late queue to be empty."""
        self._wanted.set()

    async def drain(self) -> int:
        """Post, correct or drop the late settlements that can be decided now; return how many.

        If the counters refuse one settlement, the others are processed all the same.
        """
        late = await self._lane.late(ENTRIES_MAX)
        if not late:
            return 0
        if acknowledged := [movement for one in late for movement in one.acknowledged]:
            await self._ledger.remember(acknowledged)
        known = await self._ledger.charged(late)
        endings = [resolve_late(one, known.get(one.settlement.request_id)) for one in late]
        unsure = await self._unsure([ending for ending, _ in endings if ending.verb is not Verb.DROP])
        for ending, refund in endings:
            if refund and ending not in unsure:
                await self._ledger.refund(ending.late, refund)
        left = [LateResolution(one.late, Verb.DROP) if one in unsure else one for one, _ in endings]
        return sum(await self._lane.end(left))

    async def _unsure(self, endings: Sequence[LateResolution]) -> set[LateResolution]:
        """Store as dead letters those endings whose call may be charged in an archived month; return them."""
        if not endings:
            return set()
        gone = await self._ledger.maybe_gone([ending.late for ending in endings])
        unsure = [ending for ending in endings if ending.late.settlement.request_id in gone]
        if unsure:
            await self._ledger.set_aside([one.late for one in unsure])
        return set(unsure)

    async def run(self) -> None:
        """Process late settlements twice a second until cancelled; at once after `hurry`, or if some were."""
        while True:
            drained = 0
            self._wanted.clear()
            with suppress(CountersUnavailable):
                drained = await self.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), 0 if drained else self._interval_s)


def resolve_late(late: LateSettlement, charged: ChargedAmounts | None) -> tuple[LateResolution, int]:
    """Return how a late settlement (after its hold was reclaimed) ends, and the credits to give back.

    `charged` is the ledger's charge of the call; with None the settlement is posted. A call charged by a
    settlement is left unchanged, and the late one is dropped. A call charged by a reclaim is corrected by the
    difference, even if that is zero: only the settlement describes the call.
    """
    if charged is None:
        used = late.settlement
        all_of_it = ChargedAmounts(
            used.tokens, used.credits, used.units, over=used.over, quota_tokens=used.quota_tokens,
            money=used.money, budget_tokens=used.budget_tokens, requests=1,
        )  # fmt: skip
        return LateResolution(late, Verb.POST, all_of_it), 0
    if not late.charged and not charged.reclaimed:
        return LateResolution(late, Verb.DROP), 0
    more = difference(late.settlement, charged)
    move = replace(more, credits=max(0, more.credits))
    return LateResolution(late, Verb.CORRECT, move), max(0, -more.credits)


def difference(used: Settlement, charged: ChargedAmounts) -> ChargedAmounts:
    """Return the use that a settlement states, less the amounts that the call was charged.

    Credits of a service with a One-Time price never differ, since its first user pays that price.
    """
    service = used.service
    quota_tokens = used.of_quota - charged.of_quota if service.counts_tokens else 0
    tokens = quota_tokens  # of the ledger's tokens, unless the service's amounts are weighed
    if service.counts_tokens and used.quota_tokens is not None:
        tokens = used.tokens - charged.tokens
    credits_, over = 0, 0
    if service.meter == CONSUMPTION and not service.one_time:
        more = (used.credits - charged.credits) * NANO - (used.over - charged.over)
        credits_, over = whole_credits(more)
    return ChargedAmounts(
        tokens,
        credits_,
        used.units - charged.units if service.meter == PAY_PER_USE else 0,
        over=over,
        quota_tokens=None if quota_tokens == tokens else quota_tokens,
        money=used.money - charged.money,
        budget_tokens=used.budget_tokens - charged.budget_tokens,
        requests=1 - charged.requests,
    )


# Refused calls, reported by workers, are stored as rows and counts.
#
# A batch is deleted only after the commit that stored it. Its number counts once, so a crash between the two,
# or a batch that is sent twice, changes nothing.

BATCHES_MAX = 16


class RefusedDrain:
    """Moves batches of refused calls from a Redis stream to PostgreSQL; drops batches that are unreadable."""

    def __init__(
        self, stream: RefusedStream, journal: RefusedJournal, *, isolation: Isolation | None = None
    ) -> None:
        self._stream, self._journal, self._isolation = stream, journal, isolation or Isolation()

    async def drain(self) -> int:
        """Move the oldest batches of refused calls from Redis to PostgreSQL; return how many."""
        found = await self._stream.read(BATCHES_MAX)
        if found:
            batches = [batch for _, batch in found if batch is not None]
            await self._isolation.together("refused", batches, self._journal.store, name=_name)
            await self._stream.forget([entry_id for entry_id, _ in found])
        return len(found)

    def loop(self) -> Loop:
        """Return the loop that stores batches of refused calls twice a second, or at once after a find.

        An error of PostgreSQL ends a pass and counts as a failure; an unavailable Redis does not.
        """
        return Loop("refused", INTERVAL_S, (call(self.drain),), again=True, quiet=(CountersUnavailable,))

    async def finish(self) -> None:
        """Store all remaining batches of refused calls before this keeper stops, unless a server is away."""
        with suppress(CountersUnavailable, LedgerUnavailable):
            while await self.drain():
                pass


def _name(batch: RefusedBatch) -> str:
    return f"batch {batch.number} of worker {batch.worker}"


# Notices a PostgreSQL that was restored from a backup while Redis went on.
#
# Each flush stores, in its own transaction, the id of the newest entry of each partition. If an entry was
# deleted from the outbox and PostgreSQL does not know it, its rows are lost. Then the partition is marked,
# and each of its accounts is compared. An account whose movements are neither in the ledger nor in the outbox
# is quarantined; nothing of it is guessed or dropped. The flusher waits for this check before it stores
# again, since the next flush stores the id of a newer entry. The mark outlives that, and the keeper that set
# it.

OWNERS_A_BATCH = 500
# The pause after a check without removals here; and there is no check before another keeper has written.
QUIET_LOOK_S = 5.0


class OlderDataCheck(Protocol):
    async def __call__(self, *, anew: bool) -> None:
        """Check whether Redis fell back to older data; with `anew`, do not rely on a recent check."""


class _RollbackCheck(NamedTuple):
    """When a check was made, and how many entries were removed and rows written before it."""

    removals: int
    written: int
    at: float


class Rollbacks:
    """Checks whether PostgreSQL was restored: after removals from the outbox here, or writes of other
    keepers.

    `written` returns a number that grows with writes to PostgreSQL. `quarantined` is the number of accounts
    in quarantine, None before the first check. `first` is awaited before each check: if Redis itself has
    older data, a difference proves nothing about PostgreSQL.
    """

    def __init__(
        self,
        outbox: Outbox,
        counters: KeeperCounters,
        ledger: Accounts,
        marks: Quarantines,
        *,
        partition_of: Callable[[int], int],
        observe: Callable[[list[str]], None] = lambda _: None,
        first: OlderDataCheck | None = None,
        partitions: Callable[[], Sequence[int]] = lambda: range(PARTITIONS),
        owners_a_batch: int = OWNERS_A_BATCH,
        clock: Callable[[], float] = time.monotonic,
        written: Callable[[], int] | None = None,
    ) -> None:
        self._clock, self._last_check = clock, _RollbackCheck(-1, -1, 0.0)
        self._written = written or count().__next__
        self._first, self._partitions = first, partitions
        self._owners_a_batch = owners_a_batch
        self._outbox = outbox
        self._counters = counters
        self._ledger = ledger
        self._marks = marks
        self._partition_of = partition_of
        self._observe = observe
        self.quarantined: int | None = None

    async def look(self) -> list[str]:
        """Check whether PostgreSQL was restored from a backup; return names of quarantined accounts.

        The check is skipped unless entries were removed from the outbox, or rows written, since the last one.
        """
        check, last = _RollbackCheck(self._outbox.removals, self._written(), self._clock()), self._last_check
        is_quiet = check.written == last.written or check.at - last.at < QUIET_LOOK_S
        if is_quiet and check.removals == last.removals:
            return []
        stopped = await self.stop_accounts(anew=False)
        self._last_check = check
        return stopped

    async def stop_accounts(self, *, anew: bool = True) -> list[str]:
        """Quarantine the accounts that lost movements, in partitions that are older in PostgreSQL.

        Return the names of these accounts. Without `anew`, rows that other keepers stored in the last seconds
        may be missed.
        """
        if self._first is not None:
            await self._first(anew=anew)
        deleted = await self._outbox.deleted(anew=anew)
        marks = await self._marks.marks()
        stopped: list[str] = []
        noticed = [
            partition
            for partition, newest in deleted.items()
            if stream_place(newest) > stream_place(marks.get(partition, NO_MARK).entry_id)
        ]
        if noticed:
            await self._marks.fell_back(noticed)
        older = {partition for partition, mark in marks.items() if mark.is_older}
        partitions = older.intersection(self._partitions()).union(noticed)
        owners = await self._owners(partitions)
        for partition in sorted(partitions):
            mark = marks.get(partition, NO_MARK)
            rollbacks = await self._compare(partition, mark.epoch, owners.get(partition, ()))
            if rollbacks is not None:
                stopped += await self._marks.stop(rollbacks)
                await self._marks.catch_up(partition, deleted.get(partition, mark.entry_id))
        if stopped:
            self._observe(stopped)
        self.quarantined = await self._marks.stopped()
        return stopped

    async def _owners(self, partitions: Collection[int]) -> Mapping[int, Sequence[Owner]]:
        """Return the owners (organizations with their tenants) in these partitions, by partition.

        All owners are read once, in batches.
        """
        found: dict[int, list[Owner]] = {}
        after = 0
        while partitions and (owners := await self._ledger.owners(after, self._owners_a_batch)):
            after = owners[-1].organization_id
            for owner in owners:
                if (partition := self._partition_of(owner.organization_id)) in partitions:
                    found.setdefault(partition, []).append(owner)
        return found

    async def _compare(self, partition: int, epoch: int, owners: Sequence[Owner]) -> list[Rollback] | None:
        """Return the accounts of a partition that lost movements; None if its outbox is too long to check.

        The outbox is read before the ledger: entries that are already deleted from it are in the ledger then.
        """
        if not owners:
            return []
        now_ms, account_heads = await self._counters.now_ms(), dict[str, AccountHead | None]()
        for some in batched(owners, self._owners_a_batch):
            account_heads |= await self._counters.account_heads(some)
        waiting = await self._outbox.waiting(partition)
        if waiting is None:
            return None
        rollbacks: list[Rollback] = []
        for some in batched(owners, self._owners_a_batch):
            owner_of = {name: one for one in some for name in one.accounts}
            heads = {name: head for name in owner_of if (head := account_heads.get(name)) is not None}
            seqs = {name: head.seq for name, head in heads.items()}
            for name, account in (await self._ledger.accounts(seqs, deep=False)).items():
                head = heads[name]
                stood = waiting.get(name) or AccountPosition(name, head.seq, head.balance, now_ms, epoch)
                if stood.seq > account.head.seq:
                    rollbacks.append(Rollback(stood, account.head.seq, partition, owner_of[name]))
        return rollbacks
