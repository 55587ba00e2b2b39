"""The order of a list: as its rows came, either way round, or a bounded number of them by another column."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from gateway.admin.console.cells import MONEY, Names
from gateway.admin.console.screens import Screen
from gateway.core.accounts.administration import Row

# Rows that are put in another order than theirs: they are read for it, whichever page is shown.
SORTED_MAX = 1_000
# The columns of time, by the name that a list shows. Lists are in that order, but for those by account.
IN_ORDER = ("created_at", "timestamp", "id")
BY_ACCOUNT = frozenset({"token-ledger", "credit-transactions", "feature-usage"})
# Columns whose values stand in no order.
UNSORTED = frozenset(
    {
        "quota",
        "use",
        "of",
        "amount",
        "state",
        "change",
        "after",
        "limits",
        "last_delivery",
        "events",
        "feature_access",
    }
)


@dataclass(frozen=True, slots=True)
class Order:
    """A list's order: by a column, `descending` or not; by none as the list usually is."""

    column: str
    descending: bool
    is_own: bool

    @property
    def said(self) -> str:
        """As an address says it."""
        return f"-{self.column}" if self.descending else self.column


def order_of(screen: Screen, said: str) -> Order:
    """The order that an address asks for; the usual one for what is no column of the list."""
    by_time = screen.resource.name not in BY_ACCOUNT
    own = next((name for name in IN_ORDER if name in screen.columns), "") if by_time else ""
    column, descending = said.removeprefix("-"), said.startswith("-")
    if not _is_sortable(screen, column):
        return Order(own, screen.newest_first, is_own=True)
    return Order(column, descending, is_own=column == own)


def headings(screen: Screen, order: Order) -> list[tuple[str, str]]:
    """For each column what its heading asks for, empty where it cannot be sorted by, and how it is sorted."""
    found = []
    for column in screen.columns:
        is_here = column == order.column
        now = ("descending" if order.descending else "ascending") if is_here else ""
        asks = (
            ""
            if not _is_sortable(screen, column)
            else f"-{column}"
            if is_here and not order.descending
            else column
        )
        found.append((asks, now))
    return found


def in_order(rows: Sequence[Row], screen: Screen, order: Order, names: Names) -> list[Row]:
    """Rows by a column: what refers to something by its name, what is empty last."""
    target = screen.resource.target(order.column)

    def value(row: Row) -> Any:
        found = row.get(order.column)
        if target and isinstance(found, int):
            return names.get((target, found), str(found)).casefold()
        if isinstance(found, str):
            return Decimal(found) if order.column in MONEY else found.casefold()
        return found if isinstance(found, (int, float)) else str(found)

    there = [row for row in rows if row.get(order.column) is not None]
    return [
        *sorted(there, key=value, reverse=order.descending),
        *(row for row in rows if row.get(order.column) is None),
    ]


def referred(rows: Sequence[Row], screen: Screen, order: Order) -> Mapping[str, set[int]]:
    """What a column's values refer to."""
    target = screen.resource.target(order.column)
    ids = {row[order.column] for row in rows if target and isinstance(row.get(order.column), int)}
    return {target: ids} if ids else {}  # type: ignore[dict-item]  # integers


def _is_sortable(screen: Screen, column: str) -> bool:
    is_field = column in screen.columns and column in screen.resource.out.model_fields
    return is_field and column not in UNSORTED
