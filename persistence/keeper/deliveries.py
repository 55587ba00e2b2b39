"""Messages to webhooks that wait: handed to whoever delivers, and what came of it.

An attempt is counted before it is made: a sender that dies meanwhile is as good as no answer.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.alerts.webhook import RETRIES, Delivery, Outcome

LEASE_S = 60

# Of each webhook some, and of webhooks any: none that is slow, or has much to hear, is always first.
# Materialized: else PostgreSQL may look for what is due anew for each row it joins, and find more each time.
_TAKE = text("""
WITH due AS MATERIALIZED (
    SELECT due.id
      FROM (SELECT id FROM webhook WHERE id <> ALL(cast(:busy AS bigint[])) ORDER BY random()) AS w
     CROSS JOIN LATERAL (SELECT id FROM webhook_delivery
            WHERE webhook_id = w.id AND state = 'pending' AND next_attempt_at <= now()
            ORDER BY next_attempt_at LIMIT :each FOR UPDATE SKIP LOCKED) AS due
     LIMIT :n)
UPDATE webhook_delivery AS d
   SET attempts = d.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
  FROM due, webhook AS w
 WHERE d.id = due.id AND w.id = d.webhook_id
RETURNING d.id, d.event, d.payload, d.created_at, d.attempts, d.webhook_id, w.url, w.secret,
          w.enabled AND w.deleted_at IS NULL AS wanted""")
_DONE = text("""
UPDATE webhook_delivery
   SET state = :state, response_status = :status, error = :error,
       delivered_at = CASE WHEN :state = 'delivered' THEN now() END,
       next_attempt_at = now() + make_interval(secs => :retry)
 WHERE id = :id""")


class Deliveries:
    """What waits in PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine

    async def claim_due(self, count: int, each: int, busy: Collection[int] = ()) -> Sequence[Delivery]:
        """Deliveries that are due, each for one sender; an attempt of each is counted.

        Those of `busy` webhooks are left where they are, of others there are at most `each`.
        """
        sought = {"n": count, "each": each, "busy": list(busy), "lease": LEASE_S}
        async with self._engine.begin() as connection:
            rows = (await connection.execute(_TAKE, sought)).all()
            for row in rows:
                if not row.wanted:
                    await connection.execute(
                        _DONE, _result(row.id, Outcome(None, "the webhook is gone"), None)
                    )
        return [
            Delivery(
                row.id, row.url, row.secret, row.event, row.payload, row.created_at, row.attempts,
                row.webhook_id,
            )
            for row in rows
            if row.wanted
        ]  # fmt: skip

    async def done(self, delivery: Delivery, outcome: Outcome) -> None:
        """Keep what came of an attempt."""
        retry_s = None if outcome.delivered else RETRIES.after_s(delivery.attempts)
        async with self._engine.begin() as connection:
            await connection.execute(_DONE, _result(delivery.id, outcome, retry_s))


def _result(delivery_id: int, outcome: Outcome, retry_s: float | None) -> dict[str, Any]:
    undelivered = "failed" if retry_s is None else "pending"
    return {
        "id": delivery_id,
        "state": "delivered" if outcome.delivered else undelivered,
        "status": outcome.status,
        "error": outcome.error,
        "retry": retry_s or 0.0,
    }
