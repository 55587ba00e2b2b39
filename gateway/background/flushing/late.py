"""Posts settlements whose hold was unknown, each exactly once.

Such a settlement may have happened after all (its answer was lost), may have been reclaimed, or may
never have reached Redis. Once everything that happened before it is in the ledger, the ledger knows:
a request id found there is dropped or corrected, one not found is posted. A call that may have been
charged in a month that is archived becomes a dead letter, for a person who looks there. The queue's
entry is the token: posting and correcting delete it in the same step.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Protocol

from gateway.background.loops import Isolation, Loop, call
from gateway.core.accounts.holds import ChargedAmounts, LateResolution, LateSettlement, Verb
from gateway.core.accounts.jobs import OPENING, Job
from gateway.core.accounts.outbox import AccountPosition, stream_place
from gateway.core.accounts.refusals import RefusedBatch
from gateway.core.billing.money import NANO, whole_credits
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE
from gateway.core.integrity.reconciliation import Owner, Rollback
from gateway.core.integrity.recovery import AccountHead
from gateway.core.model import PARTITIONS, Settlement
from gateway.core.text import batched
from gateway.errors import CountersUnavailable, LedgerUnavailable

if TYPE_CHECKING:
    from gateway.counters.keeper.jobs import ListedJobs
    from gateway.counters.keeper.outbox import Outbox, RefusedStream
    from gateway.counters.keeper.verification import KeeperCounters
    from gateway.counters.late import ReclaimClient
    from persistence.jobs import JobRows
    from persistence.keeper.sweeps import Sweeps
    from persistence.keeper.verification import Accounts
    from persistence.ledger.redrive import RefusedJournal
    from persistence.resources.integrity import Quarantines

INTERVAL_S = 0.5
# What one pass reads, looks up and writes at once.
ENTRIES_MAX = 1_000


class LateSettlements:
    def __init__(self, lane: ReclaimClient, ledger: Sweeps, *, interval_s: float = INTERVAL_S) -> None:
        self._lane = lane
        self._ledger = ledger
        self._interval_s = interval_s
        self._wanted = asyncio.Event()

    def hurry(self) -> None:
        """Look at once: somebody is not served before what waits is dealt with."""
        self._wanted.set()

    async def drain(self) -> int:
        """Deal with what can be dealt with now; answers how many were.

        One that the counters refuse keeps no other from being dealt with.
        """
        late = await self._lane.late(ENTRIES_MAX)
        if not late:
            return 0
        if acknowledged := [movement for one in late for movement in one.acknowledged]:
            await self._ledger.remember(acknowledged)
        known = await self._ledger.charged(late)
        endings = [ended(one, known.get(one.settlement.request_id)) for one in late]
        unsure = await self._unsure([ending for ending, _ in endings if ending.verb is not Verb.DROP])
        for ending, refund in endings:
            if refund and ending not in unsure:
                await self._ledger.refund(ending.late, refund)
        left = [LateResolution(one.late, Verb.DROP) if one in unsure else one for one, _ in endings]
        return sum(await self._lane.end(left))

    async def _unsure(self, endings: Sequence[LateResolution]) -> set[LateResolution]:
        """Return those that move something although their calls may be charged: dead letters from here on."""
        if not endings:
            return set()
        gone = await self._ledger.maybe_gone([one.late for one in endings])
        unsure = [one for one in endings if one.late.settlement.request_id in gone]
        if unsure:
            await self._ledger.set_aside([one.late for one in unsure])
        return set(unsure)

    async def run(self) -> None:
        """Drain twice a second, at once where there was anything to do or one hurries, until cancelled."""
        while True:
            drained = 0
            self._wanted.clear()
            with suppress(CountersUnavailable):
                drained = await self.drain()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), 0 if drained else self._interval_s)


def ended(late: LateSettlement, charged: ChargedAmounts | None) -> tuple[LateResolution, int]:
    """Return how a late settlement ends by what the ledger has of it, and the credits to give back.

    What settled after all stays as it is; what a reclaim charged is made good, and told where nothing of it
    differs: only its settlement knows what the call was.
    """
    if charged is None:
        used = late.settlement
        all_of_it = ChargedAmounts(
            used.tokens, used.credits, used.units, over=used.over, weighed=used.weighed,
            money=used.money, raw_tokens=used.raw_tokens, requests=1,
        )  # fmt: skip
        return LateResolution(late, Verb.POST, all_of_it), 0
    if not late.charged and not charged.reclaimed:
        return LateResolution(late, Verb.DROP), 0
    more = difference(late.settlement, charged)
    move = replace(more, credits=max(0, more.credits))
    return LateResolution(late, Verb.CORRECT, move), max(0, -more.credits)


def difference(used: Settlement, charged: ChargedAmounts) -> ChargedAmounts:
    """Return a call's use beyond the charged amounts. A One-Time price is paid by the first user."""
    service = used.service
    weighed = used.of_quota - charged.of_quota if service.counts_tokens else 0
    tokens = weighed  # by the ledger alone, unless its amounts are weighed
    if service.counts_tokens and used.weighed is not None:
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
        weighed=None if weighed == tokens else weighed,
        money=used.money - charged.money,
        raw_tokens=used.raw_tokens - charged.raw_tokens,
        requests=1 - charged.requests,
    )


# Refused calls, from what the workers tell to their rows and counts.
#
# A batch is deleted only after the commit that stored it, and counts once by its number: dying between the
# two, or sending it twice, changes nothing.

BATCHES_MAX = 16


class RefusedDrain:
    """Empties the stream into the journal. What nobody can read, or store, is dropped."""

    def __init__(
        self, stream: RefusedStream, journal: RefusedJournal, *, isolation: Isolation | None = None
    ) -> None:
        self._stream, self._journal, self._isolation = stream, journal, isolation or Isolation()

    async def drain(self) -> int:
        """Store the oldest batches; answers how many there were."""
        found = await self._stream.read(BATCHES_MAX)
        if found:
            batches = [batch for _, batch in found if batch is not None]
            await self._isolation.together("refused", batches, self._journal.store, name=_name)
            await self._stream.forget([entry_id for entry_id, _ in found])
        return len(found)

    def loop(self) -> Loop:
        """Return the loop that drains twice a second, and again at once where entries were found.

        A ledger that cannot store ends a pass, and that is told.
        """
        return Loop("refused", INTERVAL_S, (call(self.drain),), again=True, quiet=(CountersUnavailable,))

    async def finish(self) -> None:
        """Store all there is, before this keeper ends."""
        with suppress(CountersUnavailable, LedgerUnavailable):
            while await self.drain():
                pass


def _name(batch: RefusedBatch) -> str:
    return f"batch {batch.number} of worker {batch.worker}"


# Jobs of callers, from the counters to their rows.
#
# A settled job is on its list until its row is stored: dying in between stores it again, as it is.
JOBS_S = 1.0


class JobsDrain:
    """Stores jobs that are other than they were. One that no upstream has heard of yet is none."""

    def __init__(self, listed: ListedJobs, rows: JobRows, isolation: Isolation) -> None:
        self._listed, self._rows, self._isolation = listed, rows, isolation
        self._stored: dict[str, Job] = {}

    async def drain(self) -> int:
        """Store what changed; answers how many jobs that were."""
        found = await self._listed.read()
        news = [one for one in found if one.status != OPENING and self._stored.get(one.hold_id) != one]
        if news:
            await self._isolation.together("jobs", news, self._rows.store, name=lambda one: one.hold_id)
        settled = [one for one in found if one.settled_ms]
        if settled:
            await self._listed.forget(settled)
        self._stored = {one.hold_id: one for one in found if not one.settled_ms and one.status != OPENING}
        return len(news)

    def loop(self) -> Loop:
        """Drains once a second."""
        return Loop("jobs", JOBS_S, (call(self.drain),), quiet=(CountersUnavailable,))


# Notices a PostgreSQL that is older than it was: one restored from a backup while Redis went on.
#
# Each flush notes, in its own transaction, the newest entry it stored of each partition. An entry
# that was deleted from the outbox although PostgreSQL does not know of it was stored in rows that
# are gone. That is stored, and every account of that partition is compared: one whose movements
# are neither in the ledger nor in the outbox is quarantined, nothing of it is guessed, nothing
# dropped. The flusher has it look before it stores again, since the next flush notes a newer entry;
# what is stored outlives that, and the keeper that noticed.

OWNERS_A_BATCH = 500
# Behind a look at which nothing was removed here there is none for so long, and none before others write.
QUIET_LOOK_S = 5.0


class OlderDataCheck(Protocol):
    async def __call__(self, *, anew: bool) -> None:
        """Look whether the counters are older than they were."""


class Rollbacks:
    """Looks each second while entries are removed here, else each five where PostgreSQL was `written` to.

    `quarantined` is how many accounts are in quarantine, None before the first look.

    `first` is awaited before each look: counters that are older themselves say nothing of PostgreSQL.
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
        self._clock, self._looked = clock, (-1, -1, 0.0)
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
        """Look where entries were removed here since the last look, or others wrote and it is a while ago."""
        removals, written, now = self._outbox.removals, self._written(), self._clock()
        before, seen, at = self._looked
        if removals == before and (written == seen or now - at < QUIET_LOOK_S):
            return []
        stopped = await self.stop_accounts(anew=False)
        self._looked = (removals, written, now)
        return stopped

    async def stop_accounts(self, *, anew: bool = True) -> list[str]:
        """Compare the partitions PostgreSQL went back in; answers the accounts it stopped.

        Unless it looks `anew`, rows that other keepers stored in the last seconds may not be seen yet.
        """
        if self._first is not None:
            await self._first(anew=anew)
        deleted = await self._outbox.deleted(anew=anew)
        marks = await self._marks.marks()
        stopped: list[str] = []
        unknown: tuple[bytes, int, bool] = (b"", 0, False)
        stored = {p: stream_place(marks.get(p, unknown)[0]) for p in deleted}
        noticed = [p for p, newest in deleted.items() if stream_place(newest) > stored[p]]
        if noticed:
            await self._marks.fell_back(noticed)
        older = {p for p, (_, _, older) in marks.items() if older}.intersection(self._partitions())
        partitions = older.union(noticed)
        owners = await self._owners(partitions)
        for partition in sorted(partitions):
            mark, epoch, _ = marks.get(partition, unknown)
            if (found := await self._compare(partition, epoch, owners.get(partition, ()))) is not None:
                stopped += await self._marks.stop(found)
                await self._marks.catch_up(partition, deleted.get(partition, mark))
        if stopped:
            self._observe(stopped)
        self.quarantined = await self._marks.stopped()
        return stopped

    async def _owners(self, partitions: Collection[int]) -> Mapping[int, Sequence[Owner]]:
        """Return the owners of these partitions, by partition; all owners are read once, in batches."""
        found: dict[int, list[Owner]] = {}
        after = 0
        while partitions and (owners := await self._ledger.owners(after, self._owners_a_batch)):
            after = owners[-1].organization_id
            for one in owners:
                if (partition := self._partition_of(one.organization_id)) in partitions:
                    found.setdefault(partition, []).append(one)
        return found

    async def _compare(self, partition: int, epoch: int, owners: Sequence[Owner]) -> list[Rollback] | None:
        """Return the accounts of a partition whose movements are gone; None where that cannot be told yet.

        In this order: what was deleted before the outbox was looked at is stored when the ledger is.
        """
        if not owners:
            return []
        now_ms, account_heads = await self._counters.now_ms(), dict[str, AccountHead | None]()
        for some in batched(owners, self._owners_a_batch):
            account_heads |= await self._counters.account_heads(some)
        waiting = await self._outbox.waiting(partition)
        if waiting is None:
            return None
        found: list[Rollback] = []
        for some in batched(owners, self._owners_a_batch):
            owner_of = {name: one for one in some for name in one.accounts}
            heads = {name: head for name in owner_of if (head := account_heads.get(name)) is not None}
            seqs = {name: head.seq for name, head in heads.items()}
            for name, account in (await self._ledger.accounts(seqs, deep=False)).items():
                head = heads[name]
                stood = waiting.get(name) or AccountPosition(name, head.seq, head.balance, now_ms, epoch)
                if stood.seq > account.head.seq:
                    found.append(Rollback(stood, account.head.seq, partition, owner_of[name]))
        return found
