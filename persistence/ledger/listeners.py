"""Features that must know of calls in the transaction that stores or changes them.

The core names no listener: each feature hands over its own. Rows of calls are as `statements.CALL_SUMS` has
them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, Literal, Protocol

import psycopg
from sqlalchemy import Connection

from gateway.core.accounts.outbox import OutboxEntry
from gateway.core.accounts.usage import DIMENSIONS, SUMS
from gateway.feature import features

# Why a call's row changed: it became known late, a person, a late settlement, a price.
Reason = Literal["late", "amended", "refunded", "rerated"]
# A row as it was, and as it is.
Change = tuple[Sequence[Any], Sequence[Any]]

# Where a row of `statements.CALL_SUMS` says its request, and then its time.
_REQUEST = len(DIMENSIONS) + len(SUMS)


class LedgerListener(Protocol):
    """A feature's side of it."""

    def stored(
        self,
        connection: psycopg.Connection[Any],
        calls: Sequence[OutboxEntry],
        user: Callable[[OutboxEntry], int | None],
        changes: Sequence[Change],
    ) -> None:
        """Handle calls stored by a flush, and stored calls corrected by the flush."""

    def changed(self, connection: Connection, reason: Reason, changes: Iterable[Change]) -> None:
        """Handle changed rows of calls."""


@cache
def listeners() -> tuple[LedgerListener, ...]:
    return tuple(listener for feature in features() for listener in feature.listeners())


def tell_changes(connection: Connection, reason: Reason, changes: Iterable[Change]) -> None:
    moved = list(changes)
    for listener in listeners() if moved else ():
        listener.changed(connection, reason, moved)


def request_in(row: Sequence[Any]) -> str:
    return str(row[_REQUEST])


def used_in(row: Sequence[Any]) -> int:
    """Return when its call was used, in ms."""
    return int(row[_REQUEST + 1])
