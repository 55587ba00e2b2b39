"""Notices a PostgreSQL that is older than it was: one restored from a backup while Redis went on.

Each flush notes, in its own transaction, the newest entry it stored of each partition. An entry
that was deleted from the outbox although PostgreSQL does not know of it was stored in rows that
are gone. That is stored, and every account of that partition is compared: one whose movements
are neither in the ledger nor in the outbox is quarantined, nothing of it is guessed, nothing
dropped. The flusher has it look before it stores again, since the next flush notes a newer entry;
what is stored outlives that, and the keeper that noticed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from gateway.core.accounts.ledger import Place
from gateway.core.accounts.outbox import stream_place
from gateway.core.batched import batched
from gateway.core.integrity.reconciliation import LedgerAccount, Owner, Rollback
from gateway.core.integrity.verified import AccountHead
from gateway.core.model import PARTITIONS

OWNERS_A_BATCH = 500


class Outbox(Protocol):
    """The streams, looked at."""

    async def deleted(self, *, anew: bool) -> Mapping[int, bytes]:
        """The newest entry that was ever deleted of each partition; `anew` also where others deleted it."""

    async def waiting(self, partition: int) -> Mapping[str, Place] | None:
        """Where accounts stood before their first waiting entry; None where too much waits."""


class Counters(Protocol):
    """Where accounts stand now."""

    async def account_heads(self, owners: Sequence[Owner]) -> Mapping[str, AccountHead | None]:
        """Where the accounts of these organizations and tenants stand, by name."""

    async def now_ms(self) -> int:
        """The counters' own clock."""


class Ledger(Protocol):
    """PostgreSQL, as accounts."""

    async def owners(self, after: int, count: int) -> Sequence[Owner]:
        """Organizations by id, with their tenants."""

    async def accounts(self, seqs: Mapping[str, int], *, deep: bool) -> Mapping[str, LedgerAccount]:
        """The accounts named."""


class Marks(Protocol):
    """What flushes noted, and what is stopped."""

    async def marks(self) -> Mapping[int, tuple[bytes, int, bool]]:
        """Of each partition the newest entry stored, the epoch, whether rows of it are known to be gone."""

    async def fell_back(self, partitions: Sequence[int]) -> None:
        """Store that PostgreSQL is older than it was in these partitions."""

    async def catch_up(self, partition: int, entry_id: bytes) -> None:
        """Note that a partition was compared up to an entry, and is older no more."""

    async def stop(self, rollbacks: Sequence[Rollback]) -> list[str]:
        """Quarantine accounts; answers those that were not stopped before."""

    async def stopped(self) -> int:
        """How many accounts are quarantined."""


class First(Protocol):
    """What comes before a look."""

    async def __call__(self, *, anew: bool) -> None:
        """Look whether the counters are older than they were."""


class Rollbacks:
    """Looks every second. `quarantined` is how many accounts are in quarantine, None before the first look.

    `first` is awaited before each look: counters that are older themselves say nothing of PostgreSQL.
    """

    def __init__(
        self,
        outbox: Outbox,
        counters: Counters,
        ledger: Ledger,
        marks: Marks,
        *,
        partition_of: Callable[[int], int],
        observe: Callable[[list[str]], None] = lambda _: None,
        first: First | None = None,
        partitions: Callable[[], Sequence[int]] = lambda: range(PARTITIONS),
        owners_a_batch: int = OWNERS_A_BATCH,
    ) -> None:
        self._first, self._partitions = first, partitions
        self._owners_a_batch = owners_a_batch
        self._outbox = outbox
        self._counters = counters
        self._ledger = ledger
        self._marks = marks
        self._partition_of = partition_of
        self._observe = observe
        self.quarantined: int | None = None

    async def stop_accounts(self, *, anew: bool = True) -> list[str]:
        """Compare the partitions PostgreSQL went back in; answers the accounts it stopped.

        Unless it looks `anew`, what other keepers stored in the last seconds may not be seen yet.
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
        """Everybody there is in these partitions, by partition; all are read once, however many those are."""
        found: dict[int, list[Owner]] = {}
        after = 0
        while partitions and (owners := await self._ledger.owners(after, self._owners_a_batch)):
            after = owners[-1].organization_id
            for one in owners:
                if (partition := self._partition_of(one.organization_id)) in partitions:
                    found.setdefault(partition, []).append(one)
        return found

    async def _compare(self, partition: int, epoch: int, owners: Sequence[Owner]) -> list[Rollback] | None:
        """The accounts of a partition whose movements are gone; None where that cannot be told yet.

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
                stood = waiting.get(name) or Place(name, head.seq, head.balance, now_ms, epoch)
                if stood.seq > account.head.seq:
                    found.append(Rollback(stood, account.head.seq, partition, owner_of[name]))
        return found
