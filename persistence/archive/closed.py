"""Whether a month of a ledger is closed: nothing of it is still to be stored, billed or explained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date, timedelta
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection

from persistence.archive.months import AUDIT, GRACE_DAYS, Connection, Ledger, end_of

# So many of each kind are named; the rest is counted.
NAMED_MAX = 5
# What a statement answers: the first of it, and how much there is.
_FIRST = """
SELECT whose, why, count(*) OVER () FROM ({statement}) AS found (whose, why)
 ORDER BY whose COLLATE "C", why COLLATE "C" LIMIT {most}"""
# Each answers whose it is and what it is, of a month that ends at {end}. What began later cannot be of it.
_UNSETTLED = {
    "is in quarantine": """
SELECT account, reason FROM quarantine WHERE released_at IS NULL AND created_at < %(late)s""",
    "is a dead letter that nobody resolved": """
SELECT 'letter ' || id, reason FROM dead_letter WHERE resolved_at IS NULL AND created_at < %(late)s""",
    "is a change that is not applied": """
SELECT account, verb FROM control_write WHERE state IN ('pending', 'applied') AND created_at < %(end)s""",
    "does not agree, by the last reconciliation": """
SELECT i->>'account', i->>'kind' FROM (SELECT items FROM reconciliation WHERE finished_at IS NOT NULL
                                        ORDER BY id DESC LIMIT 1) AS r, jsonb_array_elements(r.items) AS i
 WHERE i->>'kind' <> 'lag'""",
}
# The same of what calls are looked at for: until then they may be rated again, or amended.
_UNBILLED = {
    "has use that no invoice has": """
SELECT 'organization ' || organization_id, currency || ' ' || trim_scale(sum(amount)) FROM charge
 WHERE invoice_id IS NULL AND period_start < %(end)s
 GROUP BY organization_id, currency HAVING sum(amount) <> 0""",
    "has use that is not charged": """
SELECT 'organization ' || organization_id, 'units of ' || min(day) FROM usage_tier
 WHERE quantity <> charged_quantity AND day < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'units told late of ' || min(supplied_on) FROM usage_told
 WHERE quantity <> charged_quantity AND supplied_on < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'credits of ' || min(day) FROM credit_debt
 WHERE quantity <> charged_quantity AND day < %(end)s GROUP BY organization_id
UNION ALL
SELECT 'organization ' || organization_id, 'the end of a plan' FROM plan_end
 WHERE quantity IS NULL AND supplied_from < %(end)s""",
    "is a draft of an invoice": """
SELECT 'invoice ' || id, 'from ' || period_start::text FROM invoice
 WHERE status = 'draft' AND period_start < %(end)s""",
}
_REASONS = {
    **_UNSETTLED,
    **_UNBILLED,
    "has days of a subscription that are not charged": """
SELECT 'organization ' || organization_id, 'from ' || coalesce(charged_until, start_date)
  FROM subscription_segment
 WHERE start_date < least(end_date, %(end)s)
   AND (charged_until IS NULL OR charged_until < least(end_date, %(end)s))""",
}
_UNALLOCATED = """
SELECT 'organization ' || o.id, 'credits up to movement ' || m.seq FROM organization AS o
  JOIN (SELECT organization_id AS id, max(seq) AS seq FROM {partition} WHERE credits_used > 0 GROUP BY 1) AS m
 USING (id) WHERE o.allocated_seq < m.seq"""
_NOT_ADDED_UP = """
SELECT m.account, 'movement ' || m.seq
  FROM (SELECT '{kind}:' || {owner} AS account, max(seq) AS seq FROM {partition} GROUP BY {owner}) AS m
 WHERE NOT EXISTS (SELECT FROM account_checkpoint AS c WHERE c.account = m.account AND c.last_seq >= m.seq)"""
_BROKEN = """
SELECT '{kind}:' || id, 'movement ' || seq
  FROM (SELECT {owner} AS id, seq, {delta} AS delta, {balance} AS balance, lag({balance}) OVER w AS before,
               lag(seq) OVER w AS previous
          FROM {partition} WINDOW w AS (PARTITION BY {owner} ORDER BY seq)) AS m
 WHERE previous = seq - 1 AND NOT (before IS NULL AND balance IS NULL)
   AND coalesce(balance, 0) <> coalesce(before, 0) + delta + coalesce(
       (SELECT difference FROM known_drift AS d WHERE d.account = '{kind}:' || id AND d.seq = previous), 0)"""
# What a movement moves its account by, and where the account stands after it.
MOVES = {
    "tenant": ("CASE direction WHEN 'IN' THEN amount ELSE -amount END", "total_remaining"),
    "credits": ("-credits_used", "balance_after"),
    "spend": ("spend", "spent_after"),
}


def why_open(connection: Connection, ledger: Ledger, month: date) -> list[str]:
    """Why a month of a ledger is not closed, in words; empty where it is, whatever other ledgers lack."""
    said = what_waits(connection, ledger, month)
    return said + _of_ledger(connection, ledger, ledger.partition(month)) if ledger.kind else said


def what_waits(connection: Connection, ledger: Ledger, month: date) -> list[str]:
    """The same of what is beside its rows. Nothing is owed by the audit log: what is over is closed."""
    if ledger is AUDIT:
        return []
    values = {"end": end_of(month), "late": end_of(month) + timedelta(days=GRACE_DAYS)}
    said = []
    for what, statement in _REASONS.items():
        said += _said(connection, what, statement, values)
    return said


async def why_unbilled(connection: AsyncConnection, end: date) -> str:
    """What was used before a day and is in no invoice yet, the first in words; empty where nothing is."""
    for what, statement in _UNBILLED.items():
        found = await connection.exec_driver_sql(_first(statement), {"end": end})
        if said := _named(what, [tuple(row) for row in found]):
            return said[0]
    return ""


def _of_ledger(connection: Connection, ledger: Ledger, partition: str) -> list[str]:
    delta, balance = MOVES[ledger.kind]
    names = {"kind": ledger.kind, "owner": ledger.owner, "partition": partition, "delta": delta}
    said = _said(
        connection,
        "has no checkpoint of it: a keeper makes them after a month's end",
        _NOT_ADDED_UP.format(**names),
    )
    said += _said(connection, "does not chain", _BROKEN.format(balance=balance, **names))
    if ledger.kind == "credits":
        said += _said(connection, "has credits that are not allocated", _UNALLOCATED.format(**names))
    return said


def _said(
    connection: Connection, what: str, statement: str, values: Mapping[str, date] | None = None
) -> list[str]:
    return _named(what, connection.execute(_first(statement).encode(), values).fetchall())


def _first(statement: str) -> str:
    return _FIRST.format(statement=statement, most=NAMED_MAX)


def _named(what: str, found: Sequence[tuple[Any, ...]]) -> list[str]:
    rest = found[0][2] - NAMED_MAX if found else 0
    said = [f"{whose} {what}: {why}" for whose, why, _ in found]
    return [*said, f"and {rest} more like it"] if rest > 0 else said
