"""Whether a month is closed: nothing of it is still to be stored, billed or explained. Says what is."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta

from persistence.archive.months import GRACE_DAYS, LEDGERS, Connection, Ledger, end_of, is_there

# So many of each kind are named; the rest is counted.
NAMED_MAX = 5

# Each answers whose it is and what it is, of a month that ends at {end}. What began later cannot be of it.
_REASONS = {
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
    "has days of a subscription that are not charged": """
SELECT 'organization ' || organization_id, 'from ' || coalesce(charged_until, start_date)
  FROM subscription_segment
 WHERE start_date < least(end_date, %(end)s)
   AND (charged_until IS NULL OR charged_until < least(end_date, %(end)s))""",
    "is a draft of an invoice": """
SELECT 'invoice ' || id, 'from ' || period_start::text FROM invoice
 WHERE status = 'draft' AND period_start < %(end)s""",
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


def why_open(connection: Connection, month: date) -> list[str]:
    """Why a month is not closed, in words; empty where it is."""
    said = what_waits(connection, month)
    for ledger in LEDGERS:
        if ledger.kind and is_there(connection, ledger, month):
            said += _of_ledger(connection, ledger, ledger.partition(month))
    return said


def what_waits(connection: Connection, month: date) -> list[str]:
    """The same of what is beside its rows."""
    values = {"end": end_of(month), "late": end_of(month) + timedelta(days=GRACE_DAYS)}
    said = []
    for what, statement in _REASONS.items():
        said += _said(connection, what, statement, values)
    return said


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
    found = connection.execute(statement.encode(), values).fetchall()
    rest = len(found) - NAMED_MAX
    said = [f"{whose} {what}: {why}" for whose, why in sorted(found)[:NAMED_MAX]]
    return [*said, f"and {rest} more like it"] if rest > 0 else said
