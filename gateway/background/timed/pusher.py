"""Brings control writes into the counters, some accounts at a time, those of each first come first.

An intent is committed before anything is tried. A write is `applied` once the counters have it,
and `done` only by its row in the ledger: an acknowledged write can still vanish with the last
second of Redis, and then it is pushed again. Accounts of one organization have their turns in order, an
organization before its keys; others go on beside them, and no account waits for one that fails.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

from gateway.background.loops import Isolation
from gateway.core.accounts.definitions import ControlWrite
from gateway.core.accounts.holds import ReclaimPolicy
from gateway.errors import CountersUnavailable, OutOfRange

if TYPE_CHECKING:
    from gateway.counters.keeper.verification import KeeperCounters
    from gateway.counters.late import ReclaimClient
    from persistence.keeper.definitions import Pushes

ACCOUNTS_MAX = 1_000
# So many are taken and noted together.
ACCOUNTS_AT_ONCE_MAX = 100
LOOP = "pusher"


class Pusher:
    """The clock's side of the Admin API, for accounts of some partitions, or of all."""

    def __init__(
        self,
        source: Pushes,
        target: KeeperCounters,
        partitions: Callable[[], Sequence[int]] | None = None,
        *,
        isolation: Isolation | None = None,
    ) -> None:
        self._isolation = isolation or Isolation()
        self._source, self._partitions = source, partitions
        self._target = target

    async def push(self, accounts: Sequence[str]) -> Sequence[str]:
        """Apply what waits for accounts, each one's in order; answers with those that are left."""
        left: list[str] = []
        queue = list(dict.fromkeys(accounts))
        while queue:
            some = queue[:ACCOUNTS_AT_ONCE_MAX]
            try:
                over, stuck = await self._push_some(some)
            except Exception as error:  # something of one of them cannot be read, or noted
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
        """Return those of these accounts whose turn is over, and of them those that are left with writes."""
        async with self._source.waiting(accounts) as waiting:
            turn = _PushResults(waiting.by_account)
            pushes = (self._push_each(turn, some) for some in turn.by_owner.values())
            for fault in await asyncio.gather(*pushes, return_exceptions=True):
                if fault is not None:
                    raise fault
            await waiting.note(turn.applied, turn.refused)
            again = {*waiting.cut}.difference(turn.left)  # there is more of them
            return waiting.by_account.keys() - again, turn.left

    async def _push_each(self, turn: _PushResults, accounts: Sequence[str]) -> None:
        async def push(account: str) -> None:
            await self._push_one(turn, account)

        for account in accounts:
            try:
                if not await self._isolation.tried(LOOP, account, push, name=_name):
                    turn.left.append(account)
            except CountersUnavailable:  # or a newer version looks after it
                turn.left.append(account)

    async def _push_one(self, turn: _PushResults, account: str) -> None:
        for write in turn.by_account[account]:
            try:
                if not await self._target.apply(write):
                    turn.left.append(account)
                    return
            except OutOfRange as refusal:
                turn.refused.append((write, refusal.message))
            else:
                turn.applied.append(write)

    async def push_more(self) -> bool:
        """Push what the Admin API could not; whether there may be more that can be pushed at once."""
        partitions = self._partitions() if self._partitions is not None else None
        accounts = await self._source.accounts(ACCOUNTS_MAX, partitions)
        left = await self.push(accounts)
        return len(accounts) == ACCOUNTS_MAX and not left


class _PushResults:
    """What became of writes that are pushed together."""

    def __init__(self, by_account: Mapping[str, Sequence[ControlWrite]]) -> None:
        self.by_account = by_account
        self.applied: list[ControlWrite] = []
        self.refused: list[tuple[ControlWrite, str]] = []
        self.left: list[str] = []
        # Accounts of one organization follow each other as their first writes did.
        self.by_owner: dict[int, list[str]] = defaultdict(list)
        waiting = [(writes[0], account) for account, writes in by_account.items() if writes]
        for first, account in sorted(waiting, key=lambda one: one[0].position):
            self.by_owner[first.organization_id].append(account)


def _name(account: str) -> str:
    """Return the account's kind and number, without the name that callers gave."""
    return ":".join(account.split(":")[:2])


# Gives back what dead calls hold: a hold nobody renewed ends under the stated policy.
#
# `charge_observed`: what was seen of the call is charged, a call nothing was seen of costs nothing;
# `release`: it costs nothing; `charge_hold`: it costs what it held. A hold is taken back only when
# two sweeps in a row found it past its deadline, and leaves a tombstone, so that a settlement which
# comes after all becomes a correction.

HOLDS_MAX = 1_000
RECLAIMED_OF = ("call", "hold")


class Reclaimer:
    """Sweeps deadlines. `reclaimed` counts holds taken back since the start, by whose they were.

    A `call` is one whose gateway died; a `hold` is one of the API that its caller left to its deadline.
    """

    def __init__(self, holds: ReclaimClient, policy: ReclaimPolicy = ReclaimPolicy.CHARGE_OBSERVED) -> None:
        self._holds = holds
        self._policy = policy
        self._seen: frozenset[str] = frozenset()
        self.reclaimed = Counter[str](dict.fromkeys(RECLAIMED_OF, 0))

    async def sweep(self) -> int:
        """Reclaim holds that were past their deadline in the last sweep too; return how many.

        A hold that the counters refuse does not stop the others.
        """
        seen, self._seen = self._seen, frozenset()  # a sweep that fails sees none
        expired = await self._holds.expired(HOLDS_MAX)
        again = [hold for hold in expired if hold.release.request_id in seen]
        self._seen = frozenset(hold.release.request_id for hold in expired)
        done, refused = 0, None
        for hold in again:
            try:
                if await self._holds.reclaim(hold, hold.charge(self._policy)):
                    self.reclaimed["hold" if hold.unsettled else "call"] += 1
                    done += 1
            except CountersUnavailable as error:
                refused = error
        if refused is not None:
            self._seen = frozenset()
            raise refused
        return done
