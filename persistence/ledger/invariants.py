"""Proof that the rows agree with each other: views that must be empty. They read all rows that are there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, column, literal, select, table, union_all
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
VIOLATIONS_MAX = 1_000


_COLUMNS: list[ColumnElement[Any]] = [column("account"), column("seq"), column("detail")]
# All of the views as one statement.
ALL = union_all(
    *(
        select(literal(name).label("invariant"), *_COLUMNS).select_from(table(f"invariant_{name}"))
        for name in INVARIANTS
    )
).limit(VIOLATIONS_MAX + 1)


@dataclass(frozen=True, slots=True)
class Violation:
    """One row of an invariant view; `seq` is None where the invariant is not about one movement."""

    invariant: str
    account: str
    seq: int | None
    detail: str


MORE = Violation("more", "rows", None, f"than {VIOLATIONS_MAX} contradictions, of which these are the first")


async def violations(connection: AsyncConnection, *, most: int = VIOLATIONS_MAX) -> list[Violation]:
    """Everything that contradicts itself; empty is right. Behind `most` it says that there is more."""
    rows = await connection.execute(ALL)
    found = [Violation(row.invariant, row.account, row.seq, row.detail) for row in rows]
    return [*found[:most], MORE] if len(found) > most else found
