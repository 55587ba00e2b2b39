"""What accounts came to by the end of each month: added up once, so that comparing reads what is behind.

A checkpoint is of places in an account, from one seq to another, not of times: what is stored late has a
later seq. Only a movement that takes the place it left (`redrive`) is of one that is there, which is then
added up again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Connection, column, literal, select, table, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.integrity.reconciliation import DifferenceKind, Item

# So many movements are added up by one statement; a longer month has several checkpoints.
MOVEMENTS_MAX = 1_000_000
# Advisory lock class 7807: checkpoints, so that none is made while a movement takes an earlier place.
_LOCK = text("SELECT pg_advisory_xact_lock(7807, 1)")

# Movements of `k.id` behind `{since}` and up to `{until}`: how many, their sum, and the seq they are behind.
# Of tenants those behind the last that left them unlimited count, of spend those of the month.
_SUMS = {
    "tenant": """
SELECT s.movements, s.last_seq, s.since_seq, CASE WHEN s.since_seq IS NULL THEN s.amount ELSE (
       SELECT coalesce(sum(CASE direction WHEN 'IN' THEN amount ELSE -amount END), 0) FROM token_ledger
        WHERE tenant_id = k.id AND seq > s.since_seq AND seq <= {until}) END AS amount
  FROM (SELECT count(*) AS movements, max(seq) AS last_seq,
               max(seq) FILTER (WHERE total_remaining IS NULL) AS since_seq,
               coalesce(sum(CASE direction WHEN 'IN' THEN amount ELSE -amount END), 0) AS amount
          FROM token_ledger WHERE tenant_id = k.id AND seq > {since} AND seq <= {until}) AS s""",
    "credits": """
SELECT sum(s.movements)::bigint AS movements, max(s.last_seq) AS last_seq, NULL::bigint AS since_seq,
       sum(s.amount) AS amount
  FROM (SELECT count(*) AS movements, max(seq) AS last_seq, -coalesce(sum(credits_used), 0) AS amount
          FROM credit_transaction WHERE organization_id = k.id AND seq > {since} AND seq <= {until}
        UNION ALL
        SELECT count(*), max(seq), coalesce(sum(amount), 0)
          FROM credit_posting WHERE organization_id = k.id AND seq > {since} AND seq <= {until}) AS s""",
    "spend": """
SELECT count(*) AS movements, max(seq) AS last_seq, min(seq) FILTER (WHERE of_month) - 1 AS since_seq,
       coalesce(sum(spend) FILTER (WHERE of_month), 0) AS amount
  FROM (SELECT seq, spend, "timestamp" >= {month}::timestamp AT TIME ZONE 'UTC' AS of_month
          FROM feature_usage WHERE organization_id = k.id AND seq > {since} AND seq <= {until}) AS s""",
}
# What its checkpoints have of an account, all together; `{month}`: since when spend counts.
_CLOSED = """
SELECT coalesce(max(last_seq), 0) AS last_seq, coalesce(sum(movements), 0)::bigint AS movements,
       {since} AS since_seq, coalesce(sum(amount) FILTER (WHERE {counts}), 0) AS amount
  FROM (SELECT *, max(since_seq) OVER () AS unlimited_seq FROM checkpoint_in_force
         WHERE account = '{kind}:' || k.id) AS kept"""
_COUNTS = {
    "tenant": ("max(since_seq)", "last_seq >= coalesce(unlimited_seq, 0)"),
    "credits": ("NULL::bigint", "true"),
    "spend": ("min(since_seq) FILTER (WHERE month >= {month})", "month >= {month}"),
}
# Where an account stands, and its movements with their moments.
_HEADS = {
    "tenant": "tenant_quota AS h ON h.tenant_id = k.id AND h.last_seq",
    "credits": "organization AS h ON h.id = k.id AND h.credit_last_seq",
    "spend": "organization AS h ON h.id = k.id AND h.spend_last_seq",
}
_MOVEMENTS = {
    "tenant": "SELECT tenant_id AS id, seq, created_at AS at FROM token_ledger",
    "credits": """SELECT organization_id AS id, seq, "timestamp" AS at FROM credit_transaction
                   UNION ALL SELECT organization_id, seq, created_at FROM credit_posting""",
    "spend": 'SELECT organization_id AS id, seq, "timestamp" AS at FROM feature_usage',
}
_COLUMNS = "account, first_seq, last_seq, version, month, movements, amount, since_seq"
# Of each account the month that its first movement without a checkpoint is of, if it is over.
_CLOSE = """
INSERT INTO account_checkpoint ({columns})
SELECT '{kind}:' || k.id, c.last_seq, e.last_seq, 1, b.month, s.movements, s.amount, s.since_seq
  FROM unnest(cast(:ids AS bigint[])) AS k (id)
 CROSS JOIN LATERAL ({closed}) AS c
  JOIN {heads} > c.last_seq
 CROSS JOIN LATERAL (
     SELECT date_trunc('month', at AT TIME ZONE 'UTC')::date AS month FROM ({movements}) AS m
      WHERE id = k.id AND seq > c.last_seq ORDER BY seq LIMIT 1) AS b
 CROSS JOIN LATERAL (
     SELECT least(coalesce(min(seq) - 1, {head_seq}), c.last_seq + :movements) AS last_seq
       FROM ({movements}) AS m
      WHERE id = k.id AND seq > c.last_seq
        AND at >= (b.month + interval '1 month')::timestamp AT TIME ZONE 'UTC') AS e
 CROSS JOIN LATERAL ({sums}) AS s
 WHERE b.month < cast(:open_month AS date)
ON CONFLICT DO NOTHING"""
# The movements of a checkpoint one by one; those that are archived as the runs that stand for them.
_PLACES = {
    "tenant": """
SELECT seq, seq AS first_seq, CASE direction WHEN 'IN' THEN amount ELSE -amount END AS delta,
       total_remaining IS NULL AS is_unlimited, created_at AS at
  FROM token_ledger WHERE tenant_id = k.id AND seq > k.first_seq AND seq <= k.last_seq""",
    "credits": """
SELECT seq, seq AS first_seq, -credits_used AS delta, false AS is_unlimited, "timestamp" AS at
  FROM credit_transaction WHERE organization_id = k.id AND seq > k.first_seq AND seq <= k.last_seq
UNION ALL
SELECT seq, seq, amount, false, created_at
  FROM credit_posting WHERE organization_id = k.id AND seq > k.first_seq AND seq <= k.last_seq""",
    "spend": """
SELECT seq, seq AS first_seq, spend AS delta, false AS is_unlimited, "timestamp" AS at
  FROM feature_usage WHERE organization_id = k.id AND seq > k.first_seq AND seq <= k.last_seq""",
}
_COUNTED = {"tenant": "seq > coalesce(unlimited_seq, 0)", "credits": "true", "spend": "of_month"}
_SINCE = {
    "tenant": "max(unlimited_seq)", "credits": "NULL::bigint",
    "spend": "min(first_seq) FILTER (WHERE of_month) - 1",
}  # fmt: skip
# A checkpoint in force, and what its movements come to now.
_IN_FORCE = """
SELECT k.*, s.movements AS found, s.amount AS came_to, s.since_seq AS found_since
  FROM (SELECT *, cast(:id AS bigint) AS id FROM checkpoint_in_force
         WHERE account = :account AND first_seq < :seq AND last_seq >= :seq) AS k
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(seq - first_seq + 1), 0)::bigint AS movements, {since} AS since_seq,
              coalesce(sum(delta) FILTER (WHERE {counted}), 0) AS amount
         FROM (SELECT *, max(seq) FILTER (WHERE is_unlimited) OVER () AS unlimited_seq,
                      at >= k.month::timestamp AT TIME ZONE 'UTC' AS of_month
                 FROM ({places}
                       UNION ALL
                       SELECT last_seq, first_seq, amount, balance IS NULL, at FROM archived_run
                        WHERE account = k.account AND last_seq > k.first_seq AND last_seq <= k.last_seq
                      ) AS places) AS p) AS s"""
_AGAIN = """
INSERT INTO account_checkpoint ({columns})
SELECT account, first_seq, last_seq, version + 1, month, found, came_to, found_since
  FROM ({in_force}) AS again"""
_ORGANIZATIONS = text("SELECT id FROM organization WHERE id > :after ORDER BY id LIMIT :count")
_TENANTS = text(
    "SELECT id FROM tenant WHERE organization_id = ANY(cast(:organizations AS bigint[])) ORDER BY id"
)
_SOME = text("""
SELECT account, last_seq FROM account_checkpoint
 WHERE account = ANY(cast(:accounts AS text[])) ORDER BY random() LIMIT :count""")


def sums(kind: str, since: str, until: str, month: str) -> str:
    """Return the query for the sum of the account `k.id`'s movements between two seqs."""
    return _SUMS[kind].format(since=since, until=until, month=month)


def closed(kind: str, month: str) -> str:
    """Return the query for the sum of all checkpoints of the account `k.id`."""
    since, counts = (part.format(month=month) for part in _COUNTS[kind])
    return _CLOSED.format(kind=kind, since=since, counts=counts)


def _close(kind: str) -> str:
    # Where to go on is asked, never the amount: any month does.
    return _CLOSE.format(
        columns=_COLUMNS, kind=kind, closed=closed(kind, "date '-infinity'"), heads=_HEADS[kind],
        head_seq=_HEADS[kind].rpartition(" ")[2], movements=_MOVEMENTS[kind],
        sums=sums(kind, "c.last_seq", "e.last_seq", "b.month"),
    )  # fmt: skip


def _in_force(kind: str) -> str:
    return _IN_FORCE.format(since=_SINCE[kind], counted=_COUNTED[kind], places=_PLACES[kind])


_CLOSES = {kind: text(_close(kind)) for kind in _SUMS}
_PROOFS = {kind: text(_in_force(kind)) for kind in _SUMS}
_AGAINS = {kind: text(_AGAIN.format(columns=_COLUMNS, in_force=_in_force(kind))) for kind in _SUMS}


class Checkpoints:
    """Makes what accounts came to by the end of months that are over."""

    def __init__(self, engine: AsyncEngine, *, movements_max: int = MOVEMENTS_MAX) -> None:
        self._engine = engine
        self._movements_max = movements_max

    async def after(self, organization_id: int, count: int) -> Sequence[int]:
        async with self._engine.connect() as connection:
            here = {"after": organization_id, "count": count}
            return list((await connection.execute(_ORGANIZATIONS, here)).scalars())

    async def close_months(self, organizations: Sequence[int], open_month: date) -> int:
        """Add up all months before the open one that are not yet; answers how many checkpoints were made."""
        async with self._engine.connect() as connection:
            found = await connection.execute(_TENANTS, {"organizations": organizations})
            ids = {"tenant": list(found.scalars()), "credits": organizations, "spend": organizations}
        made = 0
        for kind, owners in ids.items():
            here = {"ids": owners, "open_month": open_month, "movements": self._movements_max}
            while more := await self._close(kind, here):
                made += more
        return made

    async def _close(self, kind: str, here: dict[str, Any]) -> int:
        """Return one month of each account, in a transaction of its own."""
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK)
            return (await connection.execute(_CLOSES[kind], here)).rowcount


def count_again(connection: Connection, places: Iterable[tuple[str, int]]) -> None:
    """Add up again what has movements that took the places, by account and seq, that they had left."""
    connection.execute(_LOCK)
    for account, seq in places:
        connection.execute(_AGAINS[account.partition(":")[0]], _here(account, seq))


async def disproved(connection: AsyncConnection, accounts: Sequence[str], count: int) -> list[Item]:
    """Add up some checkpoints of these accounts again, picked at random; answers those that differ."""
    items = []
    for one in (await connection.execute(_SOME, {"accounts": accounts, "count": count})).all():
        proof = _PROOFS[one.account.partition(":")[0]]
        found = (await connection.execute(proof, _here(one.account, one.last_seq))).one()
        if (found.movements, found.amount) != (found.found, found.came_to):
            detail = (
                f"movements {found.first_seq + 1} to {found.last_seq} are {found.found} and come to"
                f" {found.came_to}, their checkpoint says {found.movements} and {found.amount}"
            )
            difference = int(found.amount - found.came_to)
            items.append(Item(found.account, DifferenceKind.DRIFT, difference, found.last_seq, detail))
    return items


def _here(account: str, seq: int) -> dict[str, Any]:
    return {"account": account, "id": int(account.partition(":")[2]), "seq": seq}


# Proof that the rows agree with each other: views that must be empty. They read all rows that are there.

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


_VIEW_COLUMNS: list[ColumnElement[Any]] = [column("account"), column("seq"), column("detail")]
# All of the views as one statement.
ALL = union_all(
    *(
        select(literal(name).label("invariant"), *_VIEW_COLUMNS).select_from(table(f"invariant_{name}"))
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


MORE = Violation("more", "rows", None, f"than {VIOLATIONS_MAX} contradictions, these are the first")


async def violations(connection: AsyncConnection, *, most: int = VIOLATIONS_MAX) -> list[Violation]:
    """Return everything that contradicts itself; empty is right. Behind `most` it says that there is more."""
    rows = await connection.execute(ALL)
    found = [Violation(row.invariant, row.account, row.seq, row.detail) for row in rows]
    return [*found[:most], MORE] if len(found) > most else found
