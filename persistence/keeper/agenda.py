"""Finds out in one statement which loops of a keeper have work, if anything was written since the last time.

Each loop's first query is repeated here as a check whether any row exists. Knows no loops.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from persistence.billing import subscriptions, top_ups
from persistence.billing.credit_balances import BEHIND, EXPIRED
from persistence.engine import looking
from persistence.keeper.definitions import PENDING
from persistence.keeper.news import DELIVERIES_DUE, LISTENING
from persistence.keeper.sweeps import RESETS_DUE
from persistence.queries import query

# Queries by the name of a loop: any row means that the loop has work.
QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "pusher": (PENDING,),
    "sweeper": (RESETS_DUE.text,),
    "expirer": (BEHIND.text, EXPIRED.text),
    "calendar": (subscriptions.PLAN_PRICES_DUE.text, subscriptions.DUE.text),
    "top-ups": (top_ups.ORDERS_WAIT, top_ups.ADDITIONS_DUE.text),
    "news": (LISTENING,),
    "webhooks": (DELIVERIES_DUE,),
}


# How far a check looks ahead; if it finds nothing, no work exists for that long, unless something is written.
AHEAD_S = 60.0


def _render_query(name: str, reads: tuple[str, ...]) -> str:
    return f"SELECT '{name}' WHERE {' OR '.join(f'EXISTS ({one})' for one in reads)}"


_ASK = query("agenda.ask", "Select the loops that have work",
    " UNION ALL ".join(_render_query(*question) for question in QUESTIONS.items()))  # fmt: skip
_LOOK = query("agenda.look", "Select the numbers of the last transactions", """
SELECT pg_snapshot_xmin(s)::text::bigint AS done, pg_snapshot_xmax(s)::text::bigint AS next,
       ARRAY(SELECT xmin::text::bigint FROM keeper) AS renewals
  FROM pg_current_snapshot() AS s""")  # fmt: skip
_XID_MASK = 0xFFFFFFFF  # a row stores the lower half of its transaction's number


class Writes(NamedTuple):
    """PostgreSQL's transaction numbers at one check: the `next` one, and all below `done` are over.

    `renewals` are the last transactions in which keepers renewed their presence, which do not count as news.
    """

    done: int
    next: int
    renewals: Sequence[int]

    def has_more(self, before: Writes) -> bool:
        """Return whether other transactions than keepers' renewals may have been committed since `before`."""
        if before.done != before.next or self.done != self.next:
            return True
        count = self.next - before.next
        known = frozenset(self.renewals)
        return not 0 <= count <= len(known) or any(
            one & _XID_MASK not in known for one in range(before.next, self.next)
        )


class LookAhead(NamedTuple):
    """A look at the work of the next `AHEAD_S`: when it was made, by both clocks, and whether it found some."""

    at: datetime
    seconds: float
    found: bool

    def is_valid(self, now: datetime, seconds: float) -> bool:
        """Return whether less than `AHEAD_S` have passed since, by both clocks."""
        return seconds - self.seconds < AHEAD_S and 0 <= (now - self.at).total_seconds() < AHEAD_S


class AgendaReader:
    """Reads which loops of a keeper have work. `resets_since` returns the time from which resets are due.

    Nothing is queried if nothing was written since the last time, and nothing has become due. This needs no
    session, as notifications would, so that a pooler may be used.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        resets_since: Callable[[bool], datetime],
        clock: Callable[[], datetime],
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._resets_since, self._clock, self._seconds = engine, resets_since, clock, seconds
        # The number of checks that found something written, or that looked ahead.
        self.written = 0
        self._last_writes: Writes | None = None
        self._ahead: LookAhead | None = None

    async def read(self) -> Collection[str]:
        """Return the names of the keeper's loops that have work to do."""
        async with looking(self._engine) as connection:
            seen = Writes(*(await connection.execute(_LOOK)).one())
            if self._last_writes is None or seen.has_more(self._last_writes):
                self._last_writes, self._ahead = None, None  # until the query has succeeded
                names = await self._ask(connection)
                self._last_writes, self.written = seen, self.written + 1
                return names
            self._last_writes = seen
            if self._ahead is None or not self._ahead.is_valid(self._clock(), self._seconds()):
                at, seconds = self._clock(), self._seconds()
                self._ahead = LookAhead(at, seconds, bool(await self._ask(connection, AHEAD_S)))
                self.written += 1
            return await self._ask(connection) if self._ahead.found else frozenset()

    async def _ask(self, connection: AsyncConnection, ahead_s: float = 0.0) -> frozenset[str]:
        """Return the names of the keeper's loops with work that is due within `ahead_s` seconds."""
        now = self._clock() + timedelta(seconds=ahead_s)
        given = {
            "now": now, "until": now, "today": now.date(), "since": self._resets_since(ahead_s > 0),
            "after": 0, "n": 1, "count": 1, "ahead_s": ahead_s,
        }  # fmt: skip
        return frozenset(await connection.scalars(_ASK, given))
