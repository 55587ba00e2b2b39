"""Features that react to calls in the transaction that stores or changes them.

The core names no feature: each supplies its own listener. Rows of calls have the columns of
`statements.CALL_SUMS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import psycopg
from sqlalchemy import Connection

from gateway.core.accounts.outbox import OutboxEntry
from gateway.core.accounts.usage import DIMENSIONS
from gateway.core.accounts.usage_sums import SUMS
from gateway.feature import features

# Why a call's row changed: a late report, an amendment by a person, a late settlement, or a price.
Reason = Literal["late", "amended", "refunded", "rerated"]
# A row before and after the change.
Change = tuple[Sequence[Any], Sequence[Any]]

# The column of `statements.CALL_SUMS` with the request id; the next one has the time.
_REQUEST = len(DIMENSIONS) + len(SUMS)


class LedgerListener(Protocol):
    """A feature's reactions to stored and changed calls."""

    def stored(
        self,
        connection: psycopg.Connection[Any],
        calls: Sequence[OutboxEntry],
        user: Callable[[OutboxEntry], int | None],
        changes: Sequence[Change],
    ) -> None:
        """Handle calls stored by a flush, and stored calls corrected by the flush."""

    def changed(self, connection: Connection, reason: Reason, changes: Iterable[Change]) -> None:
        """Handle changes of stored calls, given as rows before and after; `reason` says what changed them."""


@cache
def listeners() -> tuple[LedgerListener, ...]:
    return tuple(listener for feature in features() for listener in feature.listeners())


def tell_changes(connection: Connection, reason: Reason, changes: Iterable[Change]) -> None:
    moved = list(changes)
    if not moved:
        return
    for listener in listeners():
        listener.changed(connection, reason, moved)


def request_in(row: Sequence[Any]) -> str:
    return str(row[_REQUEST])


def used_in(row: Sequence[Any]) -> int:
    """Return the time of use of a call's row, in Unix milliseconds."""
    return int(row[_REQUEST + 1])
