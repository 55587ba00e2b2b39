"""Proof that the rows agree with each other: views that must be empty.

They read whole ledgers: for tests, audits and reconciliation, not for the hot path.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Executable, column, literal, select, table, union_all
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
    "invoice",
    "payments",
    "owed",
    "days",
    "usage_adds_up",
    "budgets",
)
VIOLATIONS_MAX = 1_000

ALL: Executable = union_all(
    *(
        select(
            literal(name).label("invariant"), column("account"), column("seq"), column("detail")
        ).select_from(table(f"invariant_{name}"))
        for name in INVARIANTS
    )
).limit(VIOLATIONS_MAX)


@dataclass(frozen=True, slots=True)
class Violation:
    """One row of an invariant view; `seq` is None where the invariant is not about one movement."""

    invariant: str
    account: str
    seq: int | None
    detail: str


async def violations(connection: AsyncConnection) -> list[Violation]:
    """Everything that contradicts itself, at most `VIOLATIONS_MAX` of it; empty is right."""
    rows = await connection.execute(ALL)
    return [Violation(row.invariant, row.account, row.seq, row.detail) for row in rows]
