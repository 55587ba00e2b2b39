"""Due hand-overs to Stripe: one after the other for each invoice.

An attempt is counted before it is made. The sender has a lease that is longer than any attempt.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncEngine

from gateway.core.accounts.administration import KEEPER, Command
from gateway.errors import Conflict
from gateway.features.stripe.handover import (
    FAILED,
    LEASE_S,
    RETRIES,
    WAITING,
    FinalDocument,
    HandoverOutcome,
    HandoverStep,
    PayableLine,
)
from persistence.keeper.forgetting import delete
from persistence.keeper.retention import DELETED_ROWS_AT_ONCE
from persistence.queries import query
from persistence.store import Store

_CLAIM = query("stripe.claim", "Claim due hand-overs to Stripe", """
WITH due AS MATERIALIZED (
    SELECT h.id FROM handover AS h
     WHERE h.state = 'waiting' AND h.next_attempt_at <= now()
       AND NOT EXISTS (SELECT FROM handover AS e WHERE e.about_id = h.about_id AND e.id < h.id
                          AND e.state IN ('waiting', 'failed'))
     ORDER BY h.next_attempt_at, h.id LIMIT :n FOR UPDATE SKIP LOCKED)
UPDATE handover AS h
   SET attempts = h.attempts + 1, next_attempt_at = now() + make_interval(secs => :lease)
  FROM due, invoice AS i
 WHERE h.id = due.id AND i.id = h.invoice_id
RETURNING h.*, i.number, i.kind AS paper, i.status, i.currency, i.total_amount, i.finalized_at,
          i.period_start, i.period_end, i.due_date,
          (SELECT t.remote FROM handover AS t
            WHERE t.invoice_id = CASE h.kind WHEN 'credit_note' THEN h.about_id ELSE h.invoice_id END
              AND t.kind IN ('invoice', 'credit_note') AND t.id <> h.id AND t.state = 'done') AS about""")  # fmt: skip
_LINES = query("stripe.lines", "Select the lines of an invoice for Stripe", """
SELECT position, kind, description, amount, period_start, period_end FROM invoice_line
 WHERE invoice_id = :id ORDER BY position""")  # fmt: skip
_NOTE = query("stripe.note", "Store what Stripe calls an invoice", """
UPDATE handover SET remote = :remote
 WHERE id = :id AND state = 'waiting' AND attempts = :attempt AND remote IS DISTINCT FROM :remote""")  # fmt: skip
_LATER = query("stripe.later", "Store when a hand-over to Stripe is tried again", """
UPDATE handover
   SET error = :error, version = version + :anew, next_attempt_at = now() + make_interval(secs => :retry)
 WHERE id = :id AND state = 'waiting' AND attempts = :attempt""")  # fmt: skip

_FORGET = query("stripe.forget", "Delete old events of Stripe", """
DELETE FROM handover_event WHERE id = ANY(ARRAY(
       SELECT id FROM handover_event WHERE created_at < now() - make_interval(days => :days) LIMIT :n))""")  # fmt: skip
_HANDOVERS = query("stripe.handovers", "Count hand-overs to Stripe that wait or failed", """
SELECT count(*) FILTER (WHERE state = 'waiting') AS waiting,
       count(*) FILTER (WHERE state = 'failed') AS failed,
       coalesce(extract(epoch FROM now() - min(created_at) FILTER (WHERE state = 'waiting')), 0) AS oldest,
       (SELECT count(*) FROM handover_event
         WHERE remains IS NOT NULL AND created_at > now() - interval '1 day') AS remaining
  FROM handover WHERE state IN ('waiting', 'failed')""")  # fmt: skip


class HandoverQueue:
    """The queue of hand-overs in PostgreSQL."""

    def __init__(self, engine: AsyncEngine, store: Store) -> None:
        self._engine = engine
        self._store = store

    async def claim(self, count: int) -> Sequence[HandoverStep]:
        """Claim due hand-overs for this sender, and count an attempt of each."""
        async with self._engine.begin() as connection:
            rows = (await connection.execute(_CLAIM, {"n": count, "lease": LEASE_S})).all()
            lines = {
                row.id: (await connection.execute(_LINES, {"id": row.invoice_id})).all()
                for row in rows
                if row.kind == "invoice"
            }
        return [_handover(row, lines.get(row.id, ())) for row in rows]

    async def note(self, handover: HandoverStep, remote_id: str) -> None:
        """Store the id that Stripe gave in this attempt, before the next step is sent."""
        here = {"id": handover.id, "attempt": handover.attempt, "remote": remote_id}
        async with self._engine.begin() as connection:
            await connection.execute(_NOTE, here)

    async def ended(self, handover: HandoverStep, outcome: HandoverOutcome) -> None:
        """Store the outcome of an attempt, unless another attempt has begun since."""
        retry_s = RETRIES.after_s(handover.attempt) if outcome.state == WAITING else None
        if retry_s is not None:
            here = {"id": handover.id, "attempt": handover.attempt, "error": outcome.error}
            async with self._engine.begin() as connection:
                await connection.execute(_LATER, here | {"anew": int(outcome.anew), "retry": retry_s})
            return
        values: dict[str, object] = {
            "attempt": handover.attempt, "credited": outcome.credited, "error": outcome.error,
            "state": FAILED if outcome.state == WAITING else outcome.state,
            "url": outcome.url,
        }  # fmt: skip
        if outcome.remote_id is not None:  # else what was noted stays
            values["remote"] = outcome.remote_id
        with suppress(Conflict):
            await self._store.write(
                Command(
                    "handovers", "ended", KEEPER, str(uuid4()), lambda row: {}, handover.id, values
                )  # the result is not used
            )


async def forget(engine: AsyncEngine, days: int, at_once: int = DELETED_ROWS_AT_ONCE) -> int:
    """Delete Stripe's messages that are `days` days old; return the number."""
    return await delete(engine, _FORGET, {"days": days}, at_once)


async def handed_over(engine: AsyncEngine) -> dict[str, object]:
    """Return metrics of hand-overs to Stripe: waiting, failed, age of the oldest, messages for a person."""
    async with engine.connect() as connection:
        row = (await connection.execute(_HANDOVERS)).one()
    return {
        "handovers": [("waiting", row.waiting), ("failed", row.failed)],
        "handovers_oldest_seconds": float(row.oldest),
        "handover_events_remaining": row.remaining,
    }


def _handover(row: Any, lines: Sequence[Any]) -> HandoverStep:
    paper = FinalDocument(
        row.number, row.paper, row.status, row.currency, row.total_amount, row.finalized_at,
        row.period_start, row.period_end, row.due_date, tuple(_line(line) for line in lines),
    )  # fmt: skip
    return HandoverStep(
        row.id, str(row.key), row.version, row.attempts, row.kind, row.customer, row.created_at, paper,
        row.remote, row.about,
    )  # fmt: skip


def _line(row: Any) -> PayableLine:
    return PayableLine(row.position, row.description, row.amount, row.kind, row.period_start, row.period_end)
