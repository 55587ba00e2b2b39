"""Checkpoints: the sums of accounts' movements up to the end of a month, so that comparisons read less.

A checkpoint covers a range of sequence numbers (seqs), not of times: a movement stored late has a later seq.
Only a redriven movement takes an earlier seq; its checkpoint is then computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from sqlalchemy import ColumnElement, Connection, column, literal, select, table, text, union_all
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.integrity.reconciliation import DifferenceKind, Item
from persistence.queries import query

# The maximum of movements of one checkpoint; a longer month has several.
MOVEMENTS_MAX = 1_000_000
# Advisory lock class 7807: checkpoints, so that none is made while a movement takes an earlier seq.
_LOCK = query("checkpoints.lock", "Wait for another checkpoint",
    "SELECT pg_advisory_xact_lock(7807, 1)")  # fmt: skip

# Movements of `k.id` after the seq `{since}` up to `{until}`: number, sum, and the seq before them. For
# tenants only those after the last unlimited balance count, for spend those of the month.
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
# The sum of all checkpoints of an account; `{month}`: the month whose spend counts.
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
# The last seq of an account, and its movements with their times.
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
# For each account the month of its first movement without a checkpoint, if that month is over.
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
# The movements of a checkpoint one by one; archived ones as the summary rows that replace them.
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
# A stored checkpoint, and the current sum of its movements.
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
_ORGANIZATIONS = query("checkpoints.organizations", "Select the next organizations",
    "SELECT id FROM organization WHERE id > :after ORDER BY id LIMIT :count")  # fmt: skip
_TENANTS = query("checkpoints.tenants", "Select the tenants of organizations",
    "SELECT id FROM tenant WHERE organization_id = ANY(cast(:organizations AS bigint[])) ORDER BY id"
)  # fmt: skip
_SOME = query("checkpoints.some", "Select random checkpoints", """
SELECT account, last_seq FROM account_checkpoint
 WHERE account = ANY(cast(:accounts AS text[])) ORDER BY random() LIMIT :count""")  # fmt: skip


def sums(kind: str, since: str, until: str, month: str) -> str:
    """Return SQL for the sum of an account's movements after the sequence number `since` and up to `until`.

    The SQL refers to the account as `k.id`. `month` is SQL for the month whose spend is summed.
    """
    return _SUMS[kind].format(since=since, until=until, month=month)


def closed(kind: str, month: str) -> str:
    """Return SQL for the sum of all checkpoints (stored sums) of the account `k.id`.

    `month` is SQL for the month whose spend is summed.
    """
    since, counts = (part.format(month=month) for part in _COUNTS[kind])
    return _CLOSED.format(kind=kind, since=since, counts=counts)


def _close(kind: str) -> str:
    # Only the last seq is read, not the amount, so any month will do.
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
    """Stores the checkpoints of months that are over."""

    def __init__(self, engine: AsyncEngine, *, movements_max: int = MOVEMENTS_MAX) -> None:
        self._engine = engine
        self._movements_max = movements_max

    async def after(self, organization_id: int, count: int) -> Sequence[int]:
        async with self._engine.connect() as connection:
            here = {"after": organization_id, "count": count}
            return list((await connection.execute(_ORGANIZATIONS, here)).scalars())

    async def close_months(self, organizations: Sequence[int], open_month: date) -> int:
        """Store all missing checkpoints of the months before `open_month`; return their number."""
        async with self._engine.connect() as connection:
            result = await connection.execute(_TENANTS, {"organizations": organizations})
            ids = {"tenant": list(result.scalars()), "credits": organizations, "spend": organizations}
        made = 0
        for kind, owners in ids.items():
            here = {"ids": owners, "open_month": open_month, "movements": self._movements_max}
            while more := await self._close(kind, here):
                made += more
        return made

    async def _close(self, kind: str, here: dict[str, Any]) -> int:
        """Store the next checkpoint (monthly sum) of each account of this kind; return their number."""
        async with self._engine.begin() as connection:
            await connection.execute(_LOCK)
            return (await connection.execute(_CLOSES[kind], here)).rowcount


def count_again(connection: Connection, places: Iterable[tuple[str, int]]) -> None:
    """Compute the checkpoints (monthly sums) again that contain these movements, which were stored late.

    `places` are their accounts and sequence numbers.
    """
    connection.execute(_LOCK)
    for account, seq in places:
        connection.execute(_AGAINS[account.partition(":")[0]], _account_parameters(account, seq))


async def disproved(connection: AsyncConnection, accounts: Sequence[str], count: int) -> list[Item]:
    """Compute up to `count` random checkpoints of these accounts again; return those that differ."""
    items = []
    for row in (await connection.execute(_SOME, {"accounts": accounts, "count": count})).all():
        proof = _PROOFS[row.account.partition(":")[0]]
        result = (await connection.execute(proof, _account_parameters(row.account, row.last_seq))).one()
        if (result.movements, result.amount) != (result.found, result.came_to):
            detail = (
                f"movements {result.first_seq + 1} to {result.last_seq} are {result.found} and come to"
                f" {result.came_to}, their checkpoint says {result.movements} and {result.amount}"
            )
            difference = int(result.amount - result.came_to)
            items.append(Item(result.account, DifferenceKind.DRIFT, difference, result.last_seq, detail))
    return items


def _account_parameters(account: str, seq: int) -> dict[str, Any]:
    return {"account": account, "id": int(account.partition(":")[2]), "seq": seq}


# Invariants between rows: views that must be empty. They read all stored rows.

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
    "service_discounts",
    "days",
    "usage_adds_up",
    "budgets",
)
VIOLATIONS_MAX = 1_000


_VIEW_COLUMNS: list[ColumnElement[Any]] = [column("account"), column("seq"), column("detail")]
# All invariant views as one statement.
ALL = union_all(
    *(
        select(literal(name).label("invariant"), *_VIEW_COLUMNS).select_from(table(f"invariant_{name}"))
        for name in INVARIANTS
    )
).limit(VIOLATIONS_MAX + 1)


@dataclass(frozen=True, slots=True)
class Violation:
    """A row of an invariant view; `seq` is None if the invariant is not about a single movement."""

    invariant: str
    account: str
    seq: int | None
    detail: str


MORE = Violation("more", "rows", None, f"than {VIOLATIONS_MAX} contradictions, these are the first")


async def violations(connection: AsyncConnection, *, most: int = VIOLATIONS_MAX) -> list[Violation]:
    """Return the violated invariants, at most `most`; a final row states that there are more."""
    rows = await connection.execute(ALL)
    found = [Violation(row.invariant, row.account, row.seq, row.detail) for row in rows]
    return [*found[:most], MORE] if len(found) > most else found
