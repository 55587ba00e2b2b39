"""Gauges of waiting rows in PostgreSQL: letters, invoices, charges, losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.billing.invoice_schedule import LEFT_REASONS
from gateway.core.integrity.reconciliation import DifferenceKind
from persistence.engine import looking
from persistence.queries import query

_DEAD = query("gauges.dead", "Count open dead letters",
    "SELECT count(*) FROM dead_letter WHERE resolved_at IS NULL")  # fmt: skip
# Messages for a deleted or disabled webhook are not late: they are given up when they are due.
_WAITING = query("gauges.waiting", "Count messages of webhooks that wait", """
SELECT count(*) AS waiting,
       coalesce(extract(epoch FROM now() - min(d.created_at)
                                           FILTER (WHERE w.enabled AND w.deleted_at IS NULL)), 0) AS oldest
  FROM webhook_delivery AS d JOIN webhook AS w ON w.id = d.webhook_id WHERE d.state = 'pending'""")  # fmt: skip
_OVERDUE = query("gauges.overdue", "Count overdue invoices",
    "SELECT count(*) FROM invoice WHERE payment_status = 'overdue'")  # fmt: skip
_LEFT = query("gauges.left", "Count organizations that invoicing left out", """
SELECT invoicing_left_reason AS reason, count(*) AS count FROM organization
 WHERE invoicing_left IS NOT NULL AND deleted_at IS NULL GROUP BY 1""")  # fmt: skip
_CLOCK = query("gauges.clock", "Select the time of the server",
    "SELECT extract(epoch FROM clock_timestamp())")  # fmt: skip
_LOST = query("gauges.lost", "Select the time of the last loss of Redis",
    "SELECT extract(epoch FROM max(updated_at)) FROM redis_loss WHERE lost > 0")  # fmt: skip
# Movements without evidence before the last one with evidence, in losses that are not counted yet.
_PENDING = query("gauges.pending", "Count movements that may be lost", """
WITH open AS MATERIALIZED (
    SELECT account, epoch, stored_seq(account, epoch) AS stored
      FROM (SELECT DISTINCT account, epoch FROM recovered_event WHERE counted_at IS NULL) AS accounts
), gap AS (
    SELECT max(r.seq) - o.stored - count(*) AS missing
      FROM open AS o JOIN recovered_event AS r USING (account, epoch) WHERE r.seq > o.stored
     GROUP BY account, epoch, o.stored
)
SELECT coalesce(sum(missing), 0) FROM gap""")  # fmt: skip
# Differences in the last stored comparison; contradictions of rows from the last one that compared rows.
_DIFFERS = query("gauges.differs", "Count accounts that differ in the last comparison", """
WITH last AS (SELECT items FROM reconciliation ORDER BY id DESC LIMIT 1),
     asked AS (SELECT items FROM reconciliation WHERE NOT items @> '[{"kind": "unasked"}]'
                ORDER BY id DESC LIMIT 1)
SELECT item->>'kind' AS kind, count(*) AS n
  FROM (SELECT i.item FROM last CROSS JOIN LATERAL jsonb_array_elements(last.items) AS i (item)
         WHERE i.item->>'kind' <> 'contradiction'
        UNION ALL
        SELECT i.item FROM asked CROSS JOIN LATERAL jsonb_array_elements(asked.items) AS i (item)
         WHERE i.item->>'kind' = 'contradiction') AS found
 GROUP BY 1""")  # fmt: skip
_ENDS = query("gauges.ends", "Select when the next key, token or session expires", """
SELECT 'api_key', extract(epoch FROM min(expires_at)) FROM api_key
 WHERE revoked_at IS NULL AND expires_at > now()
UNION ALL
SELECT 'admin_token', extract(epoch FROM min(expires_at)) FROM admin_token
 WHERE revoked_at IS NULL AND expires_at > now()""")  # fmt: skip


async def watch_gauges(
    engine: AsyncEngine, schedule: str = "off", wall: Callable[[], float] = time.time
) -> dict[str, Any]:
    """Return the metrics that are counted in tables, by name.

    For each kind of credential this is the Unix time of the next expiry. Differences from the ledger are
    those of the last comparison, by kind; contradictions remain until rows are compared again. The lead of
    our clock over PostgreSQL's is in seconds, as far as measurable.
    """
    async with looking(engine) as connection:
        began = wall()
        theirs, now = float(await connection.scalar(_CLOCK) or 0), wall()
        left = (
            {row.reason: row.count for row in await connection.execute(_LEFT)} if schedule != "off" else None
        )
        differs = {row.kind: int(row.n) for row in await connection.execute(_DIFFERS)}
        messages = (await connection.execute(_WAITING)).one()
        ends = (await connection.execute(_ENDS)).all()
        return {
            "invoices_overdue": await connection.scalar(_OVERDUE),
            "invoices_left": [] if left is None else [(each, left.get(each, 0)) for each in LEFT_REASONS],
            "dead_letters": int(await connection.scalar(_DEAD) or 0),
            "reconciliation_items": [(kind.value, differs.get(kind.value, 0)) for kind in DifferenceKind],
            "webhook_messages_waiting": messages.waiting,
            "webhook_messages_oldest_seconds": float(messages.oldest),
            "credential_expiry_timestamp_seconds": [(kind, float(at)) for kind, at in ends if at is not None],
            "lost_events_pending": int(await connection.scalar(_PENDING) or 0),
            "last_timestamp_seconds": [("lost_events", float(await connection.scalar(_LOST) or 0))],
            "clock_offset_seconds": [
                ("postgresql", began - theirs if theirs < began else min(0.0, now - theirs))
            ],
        }
