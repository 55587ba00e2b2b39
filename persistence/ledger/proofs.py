"""Up to where the rows of each account were proven: what is checked afterwards begins behind that.

An account has one proof, at the end of its checkpoints, written where nothing is wrong behind the one before.
What contradicts itself leaves it where it is: so that is found again each time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.ledger.invariants import OF_ACCOUNTS

# Rows of the account `b`, with what they used of its cycle and carried; archived ones as their runs.
_ROWS = {
    "tenant": """
SELECT seq, epoch, created_at AS at, total_remaining AS balance, cycle,
       CASE transaction_type WHEN 'consume' THEN amount ELSE 0 END AS used, 0 AS carried
  FROM token_ledger WHERE tenant_id = b.owner""",
    "credits": """
SELECT seq, epoch, "timestamp" AS at, balance_after AS balance, NULL::bigint AS cycle, 0 AS used, carried
  FROM credit_transaction WHERE organization_id = b.owner
UNION ALL
SELECT seq, epoch, created_at, balance_after, NULL, 0, 0
  FROM credit_posting WHERE organization_id = b.owner""",
    "spend": """
SELECT seq, epoch, "timestamp" AS at, spent_after AS balance, NULL::bigint AS cycle, 0 AS used, 0 AS carried
  FROM feature_usage WHERE organization_id = b.owner""",
}
_ARCHIVED = """
UNION ALL
SELECT last_seq, epoch, at, balance, cycle, CASE WHEN b.kind = 'tenant' THEN -amount ELSE 0 END, carried
  FROM archived_run WHERE account = b.account"""
# Uses before the end that no purchase is known for yet. What they take is proven with them, a month later.
_UNALLOCATED = """
AND NOT EXISTS (SELECT FROM credit_transaction AS m JOIN organization AS o ON o.id = m.organization_id
                 WHERE o.id = b.owner AND m.seq > greatest(b.last_seq, o.allocated_seq)
                   AND m.seq <= l.last_seq AND m."timestamp" >= b.since AND m.credits_used > 0)
AND NOT EXISTS (SELECT FROM credit_posting AS m JOIN organization AS o ON o.id = m.organization_id
                 WHERE o.id = b.owner AND m.seq > greatest(b.last_seq, o.allocated_seq)
                   AND m.seq <= l.last_seq AND m.created_at >= b.since AND m.amount < 0
                   AND m.kind <> 'correction')"""
# From the last proof (`b`) to the last row that a checkpoint has (`l`), and what was first behind that.
_END = """
SELECT b.account, b.organization_id, l.last_seq, l.epoch, l.at, l.balance, l.cycle,
       CASE WHEN b.cycle = l.cycle THEN b.used ELSE 0 END + s.used, b.carried + s.carried,
       (SELECT count(*) FROM account_checkpoint WHERE account = b.account AND first_seq < l.last_seq),
       least(cast(:open_month AS date)::timestamp AT TIME ZONE 'UTC', n.at)
  FROM account_behind AS b
 CROSS JOIN LATERAL (
       SELECT coalesce(max(last_seq), 0) AS last_seq FROM account_checkpoint WHERE account = b.account) AS c
 CROSS JOIN LATERAL (
       SELECT * FROM (
              (SELECT seq AS last_seq, epoch, at, balance, cycle FROM ({rows}) AS m
                WHERE seq > b.last_seq AND seq <= c.last_seq AND at >= b.since ORDER BY seq DESC LIMIT 1)
              UNION ALL SELECT b.last_seq, b.epoch, b.at, b.balance, b.cycle) AS ends
        ORDER BY last_seq DESC LIMIT 1) AS l
 CROSS JOIN LATERAL (
       SELECT coalesce(sum(used) FILTER (WHERE cycle = l.cycle), 0) AS used,
              coalesce(sum(carried), 0) AS carried
         FROM ({rows}) AS m WHERE seq > b.last_seq AND seq <= l.last_seq AND at >= b.since) AS s
 CROSS JOIN LATERAL (
       SELECT min(at) AS at FROM ({rows}) AS m WHERE seq > l.last_seq AND at >= b.since) AS n
 WHERE b.kind = '{kind}' AND b.organization_id = ANY(cast(:organizations AS bigint[]))
   AND b.account NOT IN (SELECT account FROM wrong) {unless}"""
_WRONG = " UNION ".join(
    f"SELECT account, '{name}' AS invariant FROM behind_{name}"  # noqa: S608  # our own words
    " WHERE organization_id = ANY(cast(:organizations AS bigint[]))"
    for name in OF_ACCOUNTS
)
_ENDS = " UNION ALL ".join(
    _END.format(kind=kind, rows=rows + _ARCHIVED, unless=_UNALLOCATED if kind == "credits" else "")
    for kind, rows in _ROWS.items()
)
_COLUMNS = "last_seq, epoch, at, balance, cycle, used, carried, checkpoints, since"
# Who was proven since the month is open is not read again, however often a keeper starts.
_DUE = text("""
SELECT DISTINCT organization_id FROM account_proved
 WHERE organization_id = ANY(cast(:organizations AS bigint[]))
   AND since < cast(:open_month AS date)::timestamp AT TIME ZONE 'UTC' ORDER BY 1""")
# What is checked and what is written is of one snapshot, since it is one statement.
_PROVE = text(f"""
WITH wrong AS MATERIALIZED ({_WRONG}), proved AS (
    INSERT INTO account_proof (account, organization_id, {_COLUMNS})
    {_ENDS}
    ON CONFLICT (account) DO UPDATE SET proved_at = now(),
       ({_COLUMNS}) = (SELECT {", ".join(f"excluded.{name}" for name in _COLUMNS.split(", "))})
)
SELECT account, invariant FROM wrong ORDER BY 1, 2""")  # noqa: S608  # our own words


async def prove(engine: AsyncEngine, organizations: Sequence[int], open_month: date) -> list[tuple[str, str]]:
    """Prove what is behind the proofs of these organizations' accounts, up to their last checkpoints.

    Answers accounts that contradict themselves, each with the invariant: these keep the proof they have.
    """
    async with engine.begin() as connection:
        asked = {"organizations": organizations, "open_month": open_month}
        due = list(await connection.scalars(_DUE, asked))
        if not due:
            return []
        wrong = await connection.execute(_PROVE, asked | {"organizations": due})
        return [(row.account, row.invariant) for row in wrong]
