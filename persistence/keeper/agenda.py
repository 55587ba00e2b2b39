"""Which loops of a keeper would find something to do, asked in one statement, where there may be news.

What a loop reads first is asked of it here: whether there is any such row. It knows no loop.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence.billing import subscriptions, top_ups
from persistence.billing.credit_balances import BEHIND, EXPIRED
from persistence.engine import looking
from persistence.keeper.definitions import PENDING
from persistence.keeper.news import DELIVERIES_DUE, LISTENING
from persistence.keeper.sweeps import RESETS_DUE

# By the name of a loop, what it would read: any row means that it has something to do.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "pusher": (PENDING,),
    "sweeper": (RESETS_DUE.text,),
    "expirer": (BEHIND.text, EXPIRED.text),
    "calendar": (subscriptions.PLAN_PRICES_DUE.text, subscriptions.DUE.text),
    "top-ups": (top_ups.ORDERS_WAIT, top_ups.ADDITIONS_DUE.text),
    "news": (LISTENING,),
    "webhooks": (DELIVERIES_DUE,),
}


# A look ahead that finds nothing is good for so long, while nothing is written.
AHEAD_S = 60.0


def _asked(name: str, reads: tuple[str, ...]) -> str:
    return f"SELECT '{name}' WHERE {' OR '.join(f'EXISTS ({one})' for one in reads)}"


_ASK = text(" UNION ALL ".join(_asked(*one) for one in QUESTIONS.items()))
_LOOK = text("""
SELECT pg_snapshot_xmin(s)::text::bigint AS done, pg_snapshot_xmax(s)::text::bigint AS next,
       ARRAY(SELECT xmin::text::bigint FROM keeper) AS renewals
  FROM pg_current_snapshot() AS s""")
_XID_MASK = 0xFFFFFFFF  # a row knows the lower half of its transaction's number


class Writes(NamedTuple):
    """What a look saw: every transaction that writes has the next number, and those before `done` are over.

    `renewals` are the last ones in which keepers said that they are there, which concerns nobody else.
    """

    done: int
    next: int
    renewals: Sequence[int]

    def has_more(self, before: Writes) -> bool:
        """Return whether anything may be seen now that was not seen before, but that keepers are there."""
        if before.done != before.next or self.done != self.next:
            return True
        count = self.next - before.next
        known = frozenset(self.renewals)
        return not 0 <= count <= len(known) or any(
            one & _XID_MASK not in known for one in range(before.next, self.next)
        )


class AgendaReader:
    """`resets_since` says from when on a reset is asked for, if not from the first on.

    Nothing is asked where nothing was written since, and nothing was due by then. That needs no session, as
    notifications do: a pooler may stand between.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        resets_since: Callable[[bool], datetime],
        clock: Callable[[], datetime],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._resets_since, self._clock, self._seconds = engine, resets_since, clock, seconds
        # How often there was anything new, and each `AHEAD_S` there may be.
        self.written = 0
        self._seen: Writes | None = None
        # When it was looked ahead, by both clocks, and whether that found nothing.
        self._ahead: tuple[datetime, float, bool] | None = None

    async def read(self) -> Collection[str]:
        """Return the names of the loops that have something to do."""
        async with looking(self._engine) as connection:
            seen = Writes(*(await connection.execute(_LOOK)).one())
            if self._seen is None or seen.has_more(self._seen):
                self._seen, self._ahead = None, None  # until that is asked
                found = await self._ask(connection)
                self._seen, self.written = seen, self.written + 1
                return found
            self._seen = seen
            if self._ahead is None or not self._is_good(*self._ahead):
                began = self._clock(), self._seconds()
                self._ahead = *began, not await self._ask(connection, AHEAD_S)
                self.written += 1
            return frozenset() if self._ahead[2] else await self._ask(connection)

    def _is_good(self, at: datetime, seconds: float, _: bool) -> bool:
        """Return whether a look ahead still says what is so now, by whichever clock."""
        return self._seconds() - seconds < AHEAD_S and 0 <= (self._clock() - at).total_seconds() < AHEAD_S

    async def _ask(self, connection: AsyncConnection, ahead_s: float = 0.0) -> frozenset[str]:
        """Return the names of loops with anything due, or due within so long."""
        now = self._clock() + timedelta(seconds=ahead_s)
        given = {
            "now": now, "until": now, "today": now.date(), "since": self._resets_since(ahead_s > 0),
            "after": 0, "n": 1, "count": 1, "ahead_s": ahead_s,
        }  # fmt: skip
        return frozenset(await connection.scalars(_ASK, given))
