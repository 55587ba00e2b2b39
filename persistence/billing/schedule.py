"""Which invoices are due: months that are over where the customer is, fees in advance on their day."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.due import Left

# A month is over when it is in UTC, whose days invoices have, and where the customer is. It is drafted then,
# and final when the grace is over as well. One that gives back more than it bills is a credit note, and the
# month's all the same. A fee in advance waits for nothing: nothing of it settles late.
_DUE = """
WITH month AS (
    SELECT o.id, least(date_trunc('month', cast(:now AS timestamptz) AT TIME ZONE o.time_zone),
                       date_trunc('month', cast(:now AS timestamptz) AT TIME ZONE 'UTC'))::date AS until,
           o.time_zone
      FROM organization AS o WHERE o.deleted_at IS NULL AND {which}
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
    SELECT m.id, d.id AS draft_id, d.period_start, d.period_end, 'subscription_segment' AS source,
           true AS ripe
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
 ORDER BY id, source NULLS LAST LIMIT :count"""
_NEXT = text(_DUE.format(which="o.id > :after"))
_THESE = text(_DUE.format(which="o.id = ANY(cast(:organizations AS bigint[]))"))
# Advisory lock class 7808: invoices on schedule of one partition's organizations.
_CLAIM = text("SELECT pg_try_advisory_xact_lock(7808, :partition)")
# Those of which it is another than before, held in their order: flushes change organizations too.
_LEAVE = text("""
WITH other AS (
    SELECT o.id, n.reason, n.why
      FROM unnest(cast(:organizations AS bigint[]), cast(:reasons AS text[]), cast(:whys AS text[]))
        AS n (id, reason, why) JOIN organization AS o ON o.id = n.id
     WHERE (o.invoicing_left, o.invoicing_left_reason) IS DISTINCT FROM (n.why, n.reason)
     ORDER BY o.id FOR NO KEY UPDATE OF o
)
UPDATE organization AS o SET invoicing_left = n.why, invoicing_left_reason = n.reason
  FROM other AS n WHERE o.id = n.id""")
_LEFT = text("SELECT id FROM organization WHERE invoicing_left IS NOT NULL ORDER BY id LIMIT :count")
WHY_CHARACTERS_MAX = 500
# An organization has its month and a fee in advance due, not more.
DUE_OF_ONE_MAX = 2


def due(
    connection: Connection, now: datetime, after: int, count: int, grace_hours: int, *, finalize: bool
) -> Sequence[Any]:
    """Invoices that are to be drafted, and drafts whose grace is over, by organization."""
    here = {"after": after, "count": count, "finalize": finalize}
    rows = connection.execute(_NEXT, _at(now, grace_hours) | here).all()
    # All of an organization in one page.
    last = rows[-1].organization_id if len(rows) == count else None
    whole = [row for row in rows if row.organization_id != last]
    return whole or rows


def due_of(
    connection: Connection,
    now: datetime,
    organization_ids: Sequence[int],
    grace_hours: int,
    *,
    finalize: bool,
) -> Sequence[Any]:
    """The same of these organizations."""
    ids = list(organization_ids)
    here = {"organizations": ids, "count": DUE_OF_ONE_MAX * len(ids), "finalize": finalize}
    return connection.execute(_THESE, _at(now, grace_hours) | here).all()


def claim(connection: Connection, partition: int) -> bool:
    """Whether nobody else makes invoices of a partition until the end of the transaction."""
    return bool(connection.execute(_CLAIM, {"partition": partition}).scalar_one())


def leave(connection: Connection, left: Mapping[int, Left | None]) -> None:
    """Keep why organizations' invoices were left."""
    ids = sorted(left)
    said = [(None, None) if (why := left[each]) is None else (why.reason, why.why) for each in ids]
    reasons = [reason for reason, _ in said]
    whys = [None if why is None else why[:WHY_CHARACTERS_MAX] for _, why in said]
    connection.execute(_LEAVE, {"organizations": ids, "reasons": reasons, "whys": whys})


def still_left(connection: Connection, count: int) -> list[int]:
    """Organizations whose invoice was left, so many at most."""
    return list(connection.execute(_LEFT, {"count": count}).scalars())


def _at(now: datetime, grace_hours: int) -> dict[str, Any]:
    return {"now": now, "today": now.astimezone(UTC).date(), "grace": grace_hours}
