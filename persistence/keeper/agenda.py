"""Which loops of a keeper would find something to do, asked in one statement.

What a loop reads first is asked of it here: whether there is any such row. It knows no loop.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

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


def _asked(name: str, reads: tuple[str, ...]) -> str:
    return f"SELECT '{name}' WHERE {' OR '.join(f'EXISTS ({one})' for one in reads)}"


_ASK = text(" UNION ALL ".join(_asked(*one) for one in QUESTIONS.items()))


class AgendaReader:
    """`resets_since` says from when on a reset is asked for."""

    def __init__(
        self, engine: AsyncEngine, resets_since: Callable[[], datetime], clock: Callable[[], datetime]
    ) -> None:
        self._engine, self._resets_since, self._clock = engine, resets_since, clock

    async def read(self) -> Collection[str]:
        """The names of the loops that have something to do."""
        now = self._clock()
        given = {
            "now": now, "until": now, "today": now.date(), "since": self._resets_since(), "after": 0, "n": 1,
            "count": 1,
        }  # fmt: skip
        async with looking(self._engine) as connection:
            return frozenset(await connection.scalars(_ASK, given))
