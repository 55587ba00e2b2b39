"""Applies control writes (changes by administrators) to the counters in Redis, some accounts at a time.

The intent is committed in PostgreSQL before it is tried. A write is `applied` once Redis has it, and `done`
only when its row is in the ledger: Redis may lose an acknowledged write of its last second, and then it is
pushed again. Accounts of one organization are processed in order, the organization before its keys.
Organizations run concurrently, and an account that fails delays no other.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from gateway.background.loops import Isolation
from gateway.core.accounts.definitions import CREDENTIALS_ACCOUNT, ControlWrite
from gateway.core.accounts.holds import ReclaimPolicy
from gateway.errors import CountersRefused, CountersUnavailable, OutOfRange

if TYPE_CHECKING:
    from gateway.background.verifying.verifier import RestoredRows
    from gateway.counters.keeper.verification import KeeperCounters
    from gateway.counters.late import ReclaimClient
    from persistence.keeper.definitions import Pushes

ACCOUNTS_MAX = 1_000
# Accounts whose writes are read and noted in one transaction.
ACCOUNTS_AT_ONCE_MAX = 100
LOOP = "pusher"


class Pusher:
    """Pushes control writes of accounts in some partitions, or in all.

    Without `restored` it leaves to others to compare the rows of a PostgreSQL that was set back.
    """

    def __init__(
        self,
        source: Pushes,
        target: KeeperCounters,
        partitions: Callable[[], Sequence[int]] | None = None,
        *,
        isolation: Isolation | None = None,
        restored: RestoredRows | None = None,
    ) -> None:
        self._isolation = isolation or Isolation()
        self._source, self._partitions = source, partitions
        self._target, self._restored = target, restored

    async def push(self, accounts: Sequence[str]) -> Sequence[str]:
        """Push the pending control writes (changes of limits and terms) of accounts to Redis, each in order.

        Return the accounts that still have pending writes.
        """
        left: list[str] = []
        queue = sorted(dict.fromkeys(accounts), key=lambda account: account != CREDENTIALS_ACCOUNT)
        while queue:  # what is compared first may change the definitions of others
            some = queue[: 1 if queue[0] == CREDENTIALS_ACCOUNT else ACCOUNTS_AT_ONCE_MAX]
            try:
                over, stuck = await self._push_some(some)
            except Exception as error:  # a write of one of the accounts cannot be read, or noted
                if self._isolation.is_everybodys(error):
                    raise
                if len(some) > 1:
                    half = len(some) // 2
                    stuck = [*await self.push(some[:half]), *await self.push(some[half:])]
                else:
                    self._isolation.item_failed(LOOP, _name(some[0]), error)
                    stuck = some
                over = some
            left += stuck
            gone = {*over}
            queue = [account for account in queue if account not in gone]
        return left

    async def _push_some(self, accounts: Sequence[str]) -> tuple[Collection[str], Sequence[str]]:
        """Push pending control writes of these accounts.

        Return the accounts that are finished for now, and the accounts whose writes could not all be pushed.
        """
        known = None
        with suppress(CountersUnavailable):
            known = await self._target.newest_write()
        async with self._source.waiting(accounts, known) as waiting:
            if waiting.newest is not None:
                await self._target.note_newest(waiting.newest)
            if waiting.is_comparing:
                return accounts, accounts
            turn = _PushResults(waiting.by_account)
            pushes = (self._push_each(turn, some) for some in turn.by_owner.values())
            for fault in await asyncio.gather(*pushes, return_exceptions=True):
                if fault is not None:
                    raise fault
            await waiting.note(turn.applied, turn.refused)
            again = {*waiting.cut}.difference(turn.left)  # accounts with more writes than were read
            return waiting.by_account.keys() - again, turn.left

    async def _push_each(self, turn: _PushResults, accounts: Sequence[str]) -> None:
        """Push the writes of each account; note accounts that could not be pushed."""

        async def push(account: str) -> None:
            await self._push_one(turn, account)

        for account in accounts:
            try:
                if not await self._isolation.tried(LOOP, account, push, name=_name):
                    turn.left.append(account)
            except CountersUnavailable:  # or only a newer version may write this account
                turn.left.append(account)

    async def _push_one(self, turn: _PushResults, account: str) -> None:
        """Push the writes of one account in order; note applied and refused ones in `turn`."""
        for write in turn.by_account[account]:
            try:
                if write.account == CREDENTIALS_ACCOUNT:
                    assert self._restored is not None, "the pusher of a keeper's loops has it"
                    await self._forget_unknown()
                    await self._restored.compare()
                if not await self._target.apply(write):
                    turn.left.append(account)
                    return
            except OutOfRange as refusal:
                turn.refused.append((write, refusal.message))
            else:
                turn.applied.append(write)

    async def keep_ids(self) -> bool:
        """Move ids ahead if PostgreSQL lacks the newest write in Redis; return whether they were moved.

        The newest control write is stored in Redis, so that Redis has one before anything is pushed.
        """
        newest, moved = await self._source.newest(await self._target.newest_write())
        if newest is not None:
            await self._target.note_newest(newest)
        return moved

    async def hold_back(self) -> None:
        """Hold what Redis knows otherwise, if PostgreSQL was set back and its rows are not yet compared."""
        with suppress(CountersUnavailable):
            await self.keep_ids()
        if self._restored is not None and await self._source.is_comparing():
            await self._restored.hold()

    async def _forget_unknown(self) -> None:
        """Delete the credentials in Redis that PostgreSQL does not know.

        Redis is read first, since it has no credential before PostgreSQL has it.
        """
        async for digests in self._target.credentials():
            await self._target.forget_credentials(await self._source.unknown_credentials(digests))

    async def push_more(self) -> bool:
        """Push control writes that the Admin API could not push; return whether more may be left."""
        partitions = self._partitions() if self._partitions is not None else None
        accounts = await self._source.accounts(ACCOUNTS_MAX, partitions)
        left = await self.push(accounts)
        return len(accounts) == ACCOUNTS_MAX and not left


class _PushResults:
    """The results of writes that are pushed together."""

    def __init__(self, by_account: Mapping[str, Sequence[ControlWrite]]) -> None:
        self.by_account = by_account
        self.applied: list[ControlWrite] = []
        self.refused: list[tuple[ControlWrite, str]] = []
        self.left: list[str] = []
        # Accounts by organization, in the order of their first writes.
        self.by_owner: dict[int, list[str]] = defaultdict(list)
        waiting = [(writes[0], account) for account, writes in by_account.items() if writes]
        for first, account in sorted(waiting, key=lambda entry: entry[0].position):
            self.by_owner[first.organization_id].append(account)


def _name(account: str) -> str:
    """Return the kind and number in an account's name, without a part that callers chose."""
    return ":".join(account.split(":")[:2])


# Reclaims the holds of dead calls: a hold that was not renewed ends under the configured policy.
#
# `charge_observed` charges the use seen so far, and nothing if none was seen; `release` charges nothing;
# `charge_hold` charges the held amounts. A hold is reclaimed only if two sweeps in a row found it past its
# deadline. It leaves a tombstone, so that a later settlement becomes a correction.

HOLDS_MAX = 1_000
RECLAIMED_OF = ("call", "hold")


class Reclaimer:
    """Reclaims holds past their deadline. `reclaimed` counts them since the start, by kind.

    A `call` is a hold whose gateway died; a `hold` is one of the API that its caller did not end in time.
    """

    def __init__(self, holds: ReclaimClient, policy: ReclaimPolicy = ReclaimPolicy.CHARGE_OBSERVED) -> None:
        self._holds = holds
        self._policy = policy
        self._seen: frozenset[str] = frozenset()
        self.reclaimed = Counter[str](dict.fromkeys(RECLAIMED_OF, 0))

    async def sweep(self) -> int:
        """Reclaim holds that the last sweep also found past their deadline; return how many.

        If the counters refuse one hold, the others are still tried, and then the error is raised. A partition
        that does not answer, as while its slot is moved, is left until the next sweep.
        """
        seen, self._seen = self._seen, frozenset()  # after a failed sweep none counts as seen
        expired = await self._holds.expired(HOLDS_MAX)
        again = [hold for hold in expired if hold.release.request_id in seen]
        self._seen = frozenset(hold.release.request_id for hold in expired)
        done, refused, silent = 0, None, set[int]()
        for hold in again:
            if (partition := hold.release.caller.partition) in silent:
                continue
            try:
                if await self._holds.reclaim(hold, hold.charge(self._policy)):
                    self.reclaimed["hold" if hold.unsettled else "call"] += 1
                    done += 1
            except CountersUnavailable as error:
                refused = error
                if not isinstance(error, CountersRefused):
                    silent.add(partition)
        if refused is not None:
            self._seen = frozenset()
            raise refused
        return done
