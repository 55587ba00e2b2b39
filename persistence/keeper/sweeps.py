"""Small questions the keeper's clock asks: whose reset is due, what is charged; and what it gives back."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.holds import LETTER, Charged, LateSettlement, letter_of, refund_id
from gateway.core.accounts.losses import Movement
from gateway.core.billing.usage_feed import REFUNDED
from persistence.keeper import losses, request_rows
from persistence.keeper.request_rows import SINCE
from persistence.ledger import statements, usage_feed, usage_rollup, usage_spans

# Tenants that were deleted keep the reset that they had come to. So one look in this many goes through all of
# them; the others begin where the last found nobody but them.
LOOKS_A_ROUND = 60
_DUE = text("""
SELECT q.tenant_id, t.organization_id FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
 WHERE q.next_reset_at > cast(:since AS timestamptz) AND q.next_reset_at <= cast(:until AS timestamptz)
   AND t.deleted_at IS NULL ORDER BY q.next_reset_at LIMIT :n""")
_NOW, _FIRST = text("SELECT now()"), datetime.min.replace(tzinfo=UTC)
_CHARGED = text(f"""
SELECT request, sum(tokens)::bigint AS weighed, sum(credits)::bigint AS credits, sum(units)::bigint AS units,
       bool_or(reclaimed) AS reclaimed, sum(carried)::bigint AS over,
       (SELECT max(c.tokens) FROM call AS c WHERE c.request_id = cast(request AS uuid)
           AND c.created_at >= {SINCE}) AS tokens,
       (SELECT max(c.cost) FROM call AS c WHERE c.request_id = cast(request AS uuid)
           AND c.created_at >= {SINCE}) AS money
  FROM (
    SELECT request_id::text AS request, CASE direction WHEN 'OUT' THEN amount ELSE -amount END AS tokens,
           0 AS credits, 0 AS units, metadata->'reclaimed' IS NOT NULL AS reclaimed, 0 AS carried
      FROM token_ledger
     WHERE request_id = ANY(cast(:ids AS uuid[])) AND transaction_type IN ('consume', 'adjust')
       AND created_at >= {SINCE}
    UNION ALL
    SELECT request_id::text, 0, credits_used, 0, metadata->'reclaimed' IS NOT NULL, carried
      FROM credit_transaction
     WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}
    UNION ALL
    SELECT request_id::text, 0, 0, usage_amount, metadata->'reclaimed' IS NOT NULL, 0 FROM feature_usage
     WHERE request_id = ANY(cast(:ids AS uuid[])) AND "timestamp" >= {SINCE}
    UNION ALL
    SELECT k.request, 0, -a.credits_added, 0, NULL, 0
      FROM unnest(cast(:ids AS text[]), cast(:refunds AS uuid[])) AS k (request, refund)
      JOIN credit_addition AS a ON a.control_write_id = k.refund
    UNION ALL  -- what moved budgets alone, or nothing; one that was taken back for nothing is not charged
    SELECT request_id::text, 0, 0, 0, reason IS NOT DISTINCT FROM 'reclaimed', 0 FROM call
     WHERE request_id = ANY(cast(:ids AS uuid[])) AND NOT refused AND created_at >= {SINCE}
       AND (reason IS DISTINCT FROM 'reclaimed' OR tokens <> 0 OR cost > 0)
  ) AS rows GROUP BY request""")  # noqa: S608  # our own words
# The intent and the addition it belongs to, both once.
_REFUND = text("""
WITH intent AS (
    INSERT INTO control_write (id, partition, account, verb, payload)
    VALUES (:id, :partition, :account, 'credits', jsonb_build_object('amount', cast(:amount AS bigint)))
    ON CONFLICT (id) DO NOTHING RETURNING id)
INSERT INTO credit_addition (organization_id, credits_added, category, remark, control_write_id)
SELECT :organization, :amount, 'refund', :remark, intent.id FROM intent RETURNING id""")
# An entry of the late queue as a dead letter.
_SET_ASIDE = text("""
INSERT INTO dead_letter (partition, entry_id, raw, reason, organization_id, tenant_id)
VALUES (:partition, :entry, :raw, :reason, :organization, :tenant)
ON CONFLICT (partition, entry_id) DO NOTHING""")
_GONE = (
    "request {} settles late, and may be charged in a month that is archived:"
    " look there, then redrive or resolve it"
)


class Sweeps:
    """What the sweeper and the poster need of PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._looks, self._since = 0, _FIRST

    async def due(self, count: int) -> Sequence[tuple[int, int]]:
        """(tenant, organization) of tenants whose next reset has come, by the last flushed row.

        One that is stored late, as of a moment that was looked at, is found within `LOOKS_A_ROUND` looks.
        """
        since = self._since if self._looks % LOOKS_A_ROUND else _FIRST
        async with self._engine.connect() as connection:
            until = (await connection.execute(_NOW)).scalar_one()
            rows = await connection.execute(_DUE, {"n": count, "since": since, "until": until})
            found = [(row.tenant_id, row.organization_id) for row in rows]
        self._looks += 1
        self._since = since if found else until
        return found

    async def charged(self, late: Sequence[LateSettlement]) -> dict[str, Charged]:
        """What is charged for each of these request ids, corrections included; absent: nothing."""
        ids = list({one.settlement.request_id for one in late})
        found: dict[str, Charged] = {}
        async with self._engine.connect() as connection:
            for some, since in request_rows.by_month(await request_rows.places(connection, ids)):
                refunds = [refund_id(one) for one in some]
                rows = await connection.execute(_CHARGED, {"ids": some, "refunds": refunds, "since": since})
                found |= {row.request: _charged(row) for row in rows}
        return found

    async def maybe_gone(self, late: Sequence[LateSettlement]) -> set[str]:
        """The request ids of these that may have been charged in months that are not here any more."""
        ids = list({one.settlement.request_id for one in late})
        async with self._engine.connect() as connection:
            return set(await request_rows.maybe_gone(connection, await request_rows.places(connection, ids)))

    async def set_aside(self, late: Sequence[LateSettlement]) -> None:
        """Make dead letters of them, once by their entries: a person finds out whether they were charged."""
        async with self._engine.begin() as connection:
            await connection.execute(_SET_ASIDE, [_letter(one) for one in late])

    async def refund(self, late: LateSettlement, amount: int) -> None:
        """Give credits of a request back, once by its id: an addition, its intent, and the call's own row."""
        caller, request_id = late.settlement.caller, late.settlement.request_id
        organization_id = caller.organization_id
        values = {
            "id": refund_id(request_id),
            "partition": caller.partition,
            "account": f"organization:{organization_id}",
            "organization": organization_id,
            "amount": amount,
            "remark": f"request {request_id} used less than was charged",
        }
        async with self._engine.begin() as connection:
            if (await connection.execute(_REFUND, values)).first() is not None:
                await _told(connection, request_id, amount)

    async def remember(self, acknowledged: Sequence[Movement]) -> None:
        """Keep as evidence what the counters acknowledged and the ledger of that epoch has not."""
        async with self._engine.begin() as connection:
            await losses.remember(connection, acknowledged)


async def _told(connection: AsyncConnection, request_id: str, amount: int) -> None:
    """Take what is given back off the call's row, and off what calls add up to."""
    values = {"request_id": request_id, "amount": amount, **request_rows.times_of([request_id])}
    before = (await connection.exec_driver_sql(statements.CALL_SUMS, values)).fetchone()
    if before is None:
        return
    after = (await connection.exec_driver_sql(statements.REFUND_CALL, values)).fetchone()
    assert after is not None, "its row is held"
    columns = usage_rollup.moved_columns([(before, after)])
    await connection.exec_driver_sql(usage_spans.ROLL_UP_CALLS, columns)
    await connection.run_sync(usage_feed.tell_changes, REFUNDED, [(before, after)])


def _letter(late: LateSettlement) -> dict[str, object]:
    caller, request_id = late.settlement.caller, late.settlement.request_id
    return {
        "partition": caller.partition, "entry": (LETTER + late.entry_id).decode(), "raw": letter_of(late),
        "reason": _GONE.format(request_id), "organization": caller.organization_id,
        "tenant": caller.tenant_id or None,
    }  # fmt: skip


def _charged(row: Row[Any]) -> Charged:
    """What the ledgers say; how many tokens there were says the journal, where it has the call."""
    tokens = row.weighed if row.tokens is None else row.tokens
    weighed = None if tokens == row.weighed else row.weighed
    return Charged(
        tokens, row.credits, row.units, bool(row.reclaimed), row.over, weighed,
        money=row.money or 0, raw_tokens=tokens, requests=1,
    )  # fmt: skip
