"""Proof that the rows agree with each other: views that must be empty.

`invariant_…` reads all rows that are there. What reads rows of calls is there a second time as `behind_…`:
of what is behind the proofs of accounts (`proofs.py`), so its cost follows what is new and not the years.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Executable, column, literal, select, table, union_all
from sqlalchemy.ext.asyncio import AsyncConnection

INVARIANTS = (
    "chain",
    "gapless",
    "checkpoints",
    "quota",
    "blocked",
    "credits",
    "carried",
    "request_once",
    "rollup",
    "allocations",
    "drawn",
    "invoice",
    "payments",
    "owed",
    "days",
    "usage_adds_up",
    "budgets",
)
# Of these there is a view of what is behind proofs, and those of accounts are what a proof says. Budgets are
# asked with the whole alone: a correction moves the window that runs then, and the row of a call of another.
OF_ACCOUNTS = (
    "chain", "gapless", "checkpoints", "quota", "credits", "carried", "request_once", "rollup", "allocations",
)  # fmt: skip
BEHIND = (*OF_ACCOUNTS, "usage_adds_up")
VIOLATIONS_MAX = 1_000


def _asked(views: Mapping[str, str]) -> Executable:
    """All of these views by the names of their invariants, as one statement."""
    columns: list[ColumnElement[Any]] = [column("account"), column("seq"), column("detail")]
    return union_all(
        *(
            select(literal(name).label("invariant"), *columns).select_from(table(view))
            for name, view in views.items()
        )
    ).limit(VIOLATIONS_MAX + 1)


ALL = _asked({name: f"invariant_{name}" for name in INVARIANTS})
NEW = _asked(
    {
        name: f"{'behind' if name in BEHIND else 'invariant'}_{name}"
        for name in INVARIANTS
        if name != "budgets"
    }
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One row of an invariant view; `seq` is None where the invariant is not about one movement."""

    invariant: str
    account: str
    seq: int | None
    detail: str


MORE = Violation("more", "rows", None, f"than {VIOLATIONS_MAX} contradictions, of which these are the first")


async def violations(
    connection: AsyncConnection, *, whole: bool = True, most: int = VIOLATIONS_MAX
) -> list[Violation]:
    """Everything that contradicts itself; empty is right. Behind as many as are told it says there is more.

    Unless `whole`, rows that were proven are taken at the word of their proof.
    """
    rows = await connection.execute(ALL if whole else NEW)
    found = [Violation(row.invariant, row.account, row.seq, row.detail) for row in rows]
    return [*found[:most], MORE] if len(found) > most else found
