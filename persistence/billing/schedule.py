"""Which invoices are due: months that are over where the customer is, fees in advance on their day."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, text

# A month is over when it is in UTC, whose days invoices have, and where the customer is. It is drafted then,
# and final when the grace is over as well. One that gives back more than it bills is a credit note, and the
# month's all the same. A fee in advance waits for nothing: nothing of it settles late.
_DUE = text("""
WITH month AS (
    SELECT o.id, least(date_trunc('month', cast(:now AS timestamptz) AT TIME ZONE o.time_zone),
                       date_trunc('month', cast(:now AS timestamptz) AT TIME ZONE 'UTC'))::date AS until,
           o.time_zone
      FROM organization AS o WHERE o.deleted_at IS NULL AND o.id > :after
), monthly AS (
    SELECT m.id, d.id AS draft_id, (m.until - interval '1 month')::date AS period_start,
           m.until AS period_end, NULL::text AS source,
           cast(:now AS timestamptz) >= greatest(cast(m.until AS timestamp) AT TIME ZONE m.time_zone,
               cast(m.until AS timestamp) AT TIME ZONE 'UTC') + make_interval(hours => :grace) AS ripe
      FROM month AS m
      LEFT JOIN invoice AS d ON d.organization_id = m.id AND d.corrects_id IS NULL AND d.status = 'draft'
           AND d.source IS NULL AND d.period_end = m.until
           AND d.period_start = (m.until - interval '1 month')::date
     WHERE NOT EXISTS (SELECT FROM invoice AS i WHERE i.organization_id = m.id AND i.corrects_id IS NULL
              AND i.source IS NULL AND i.status = 'finalized' AND i.period_end = m.until
              AND i.period_start = (m.until - interval '1 month')::date)
       AND EXISTS (SELECT FROM charge AS c WHERE c.organization_id = m.id AND c.invoice_id IS NULL
              AND c.period_start < cast(m.until AS timestamp) AT TIME ZONE 'UTC')
), ahead AS (
    SELECT m.id, d.id AS draft_id, NULL::date AS period_start, NULL::date AS period_end,
           'subscription_segment' AS source, true AS ripe
      FROM month AS m
      LEFT JOIN invoice AS d ON d.organization_id = m.id AND d.corrects_id IS NULL AND d.status = 'draft'
           AND d.source = 'subscription_segment'
     WHERE EXISTS (
           SELECT FROM subscription_segment AS s
            WHERE s.organization_id = m.id AND s.billing = 'advance' AND s.start_date <= :today
              AND s.end_date > :today AND s.cost > 0 AND coalesce(s.trial_end, :today) <= :today
              AND (coalesce(s.charged_until, s.start_date) <= :today OR EXISTS (
                  SELECT FROM charge AS c WHERE c.organization_id = m.id AND c.invoice_id IS NULL
                     AND c.source = 'subscription_segment' AND c.source_id = s.id
                     AND c.period_end > cast(cast(:today AS date) AS timestamp) AT TIME ZONE 'UTC')))
)
SELECT id AS organization_id, draft_id, period_start, period_end, source, ripe
  FROM (SELECT * FROM ahead UNION ALL SELECT * FROM monthly) AS due
 WHERE draft_id IS NULL OR (ripe AND :finalize)
 ORDER BY id, source NULLS LAST LIMIT :count""")
_LEAVE = text(
    "UPDATE organization SET invoicing_left = :why"
    " WHERE id = :organization AND invoicing_left IS DISTINCT FROM :why"
)
WHY_CHARACTERS_MAX = 500


def due(
    connection: Connection, now: datetime, after: int, count: int, grace_hours: int, *, finalize: bool
) -> Sequence[Any]:
    """Invoices that are to be drafted, and drafts whose grace is over, by organization."""
    here = {"now": now, "today": now.date(), "after": after, "count": count, "grace": grace_hours}
    rows = connection.execute(_DUE, here | {"finalize": finalize}).all()
    # All of an organization in one page.
    last = rows[-1].organization_id if len(rows) == count else None
    whole = [row for row in rows if row.organization_id != last]
    return whole or rows


def leave(connection: Connection, organization_id: int, why: str | None) -> None:
    """Keep why an organization's invoice was left."""
    said = None if why is None else why[:WHY_CHARACTERS_MAX]
    connection.execute(_LEAVE, {"organization": organization_id, "why": said})
