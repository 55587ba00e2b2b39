"""Small queries of the keeper's loops: due resets, charges of late settlements, losses, refunds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.holds import (
    LETTER,
    ChargedAmounts,
    LateSettlement,
    Loss,
    MovementRange,
    letter_of,
    refund_id,
)
from persistence.keeper import retention
from persistence.keeper.retention import SINCE
from persistence.ledger import listeners, statements, usage_rollup
from persistence.queries import insert_rows, naming, query
from persistence.tables import dead_letter

# Movements that Redis lost and nothing restored, counted from the acknowledged seqs.
#
# An epoch's stored movements end at its highest stored seq. Later acknowledged movements are stored as
# evidence, once they were sent again. Movements between the stored end and the last known one, without
# evidence, are lost. They are not counted while more evidence may come.

# How long no new evidence may have come before a loss is counted: each keeper counts every 15 s, and adds its
# own evidence then.
QUIET_S = 20
# Maximum wait for more evidence, such as from a stuck queue or a lost disk.
AWAITED_S_MAX = 600
KEPT_DAYS = 7
MOVEMENTS_MAX = 5_000

_REMEMBER = query("sweeps.remember", "Store the movements that Redis has brought", """
WITH brought AS MATERIALIZED (
    SELECT DISTINCT * FROM unnest(
        cast(:accounts AS text[]), cast(:partitions AS smallint[]), cast(:epochs AS bigint[]),
        cast(:seqs AS bigint[])) AS n (account, partition, epoch, seq)
), stored AS MATERIALIZED (
    SELECT account, epoch, stored_seq(account, epoch) AS upto
      FROM (SELECT DISTINCT account, epoch FROM brought) AS accounts
)
INSERT INTO recovered_event (account, partition, epoch, seq)
SELECT account, partition, epoch, seq FROM brought JOIN stored USING (account, epoch) WHERE seq > upto
ON CONFLICT DO NOTHING""")  # fmt: skip

_OPEN = query("sweeps.open", "Select accounts whose losses are not counted", """
SELECT DISTINCT account, epoch FROM recovered_event WHERE counted_at IS NULL""")  # fmt: skip

_COUNT = query("sweeps.count", "Count the losses of accounts", """
WITH quiet AS (
    SELECT account, epoch, min(partition) AS partition, max(seq) AS last_seq,
           stored_seq(account, epoch) AS stored
      FROM recovered_event GROUP BY account, epoch
    HAVING bool_or(counted_at IS NULL) AND max(created_at) <= now() - make_interval(secs =>
           CASE WHEN min(partition) = ANY(cast(:at_rest AS smallint[])) THEN :quiet_s ELSE :awaited_s END)
), counted AS (
    UPDATE recovered_event AS r SET counted_at = now() FROM quiet AS q
     WHERE r.account = q.account AND r.epoch = q.epoch AND r.counted_at IS NULL
)
, found AS (
INSERT INTO redis_loss (account, partition, epoch, first_seq, last_seq, recovered, lost)
SELECT q.account, q.partition, q.epoch, q.stored + 1, q.last_seq, k.recovered,
       q.last_seq - q.stored - k.recovered
  FROM quiet AS q CROSS JOIN LATERAL (
       SELECT count(*) AS recovered FROM recovered_event AS r
        WHERE r.account = q.account AND r.epoch = q.epoch AND r.seq > q.stored) AS k
 WHERE q.last_seq > q.stored
ON CONFLICT (account, epoch) DO UPDATE SET first_seq = excluded.first_seq, last_seq = excluded.last_seq,
       recovered = excluded.recovered, lost = excluded.lost, updated_at = now()
RETURNING account, epoch, first_seq, last_seq, recovered, lost
)
SELECT f.*, f.lost - coalesce(b.lost, 0) FROM found AS f LEFT JOIN redis_loss AS b USING (account, epoch)""")  # fmt: skip

_FORGET = query("sweeps.forget", "Delete old movements of counted losses", """
DELETE FROM recovered_event WHERE counted_at < now() - make_interval(days => :days)""")  # fmt: skip
# One keeper counts at a time, so that each loss is reported and added by the keeper that found it.
_TURN = query("sweeps.turn", "Wait for another keeper, which counts losses",
    "SELECT pg_advisory_xact_lock(7804, 1)", usual_s=30.0)  # fmt: skip


async def remember_losses(connection: AsyncConnection, movements: Sequence[MovementRange]) -> None:
    """Store, as evidence of a loss, those movements that Redis acknowledged and the ledger does not have.

    All entries that the organizations have in the outbox of that epoch must have been stored before.
    """
    seqs = [
        (movement, seq) for movement in movements for seq in range(movement.first_seq, movement.last_seq + 1)
    ]
    for start in range(0, len(seqs), MOVEMENTS_MAX):
        batch = seqs[start : start + MOVEMENTS_MAX]
        values = {
            "accounts": [one.account for one, _ in batch],
            "partitions": [one.partition for one, _ in batch],
            "epochs": [one.epoch for one, _ in batch],
            "seqs": [seq for _, seq in batch],
        }
        await connection.execute(_REMEMBER, values)


class Losses:
    def __init__(self, engine: AsyncEngine, *, quiet_s: float = QUIET_S) -> None:
        self._engine = engine
        self._quiet_s = quiet_s

    async def any_open(self) -> bool:
        """Return whether evidence of lost movements exists that is not counted yet."""
        async with self._engine.connect() as connection:
            return (await connection.execute(_OPEN)).first() is not None

    async def count(self, known: Sequence[MovementRange], at_rest: Collection[int]) -> list[Loss]:
        """Count the lost movements in partitions `at_rest`, for which no more evidence comes.

        Return the losses. The movements in `known` are this keeper's own, stored as evidence if their account
        has a loss.
        """
        async with self._engine.begin() as connection:
            open_ = {(row.account, row.epoch) for row in await connection.execute(_OPEN)}
            if not open_:
                return []
            await connection.execute(_TURN)
            await remember_losses(connection, [one for one in known if (one.account, one.epoch) in open_])
            values = {"quiet_s": self._quiet_s, "awaited_s": AWAITED_S_MAX, "at_rest": sorted(at_rest)}
            rows = await connection.execute(_COUNT, values)
            losses = [Loss(*row) for row in rows]
            await connection.execute(_FORGET, {"days": KEPT_DAYS})
            return losses


# Deleted tenants keep their due reset. So only one check in this many reads from the beginning; the others
# start after the time at which the last check found only deleted tenants.
LOOKS_A_ROUND = 60
RESETS_DUE = query("sweeps.resets_due", "Select tenants whose tokens are due to be reset", """
SELECT q.tenant_id, t.organization_id FROM tenant_quota AS q JOIN tenant AS t ON t.id = q.tenant_id
 WHERE q.next_reset_at > cast(:since AS timestamptz) AND q.next_reset_at <= cast(:until AS timestamptz)
   AND t.deleted_at IS NULL ORDER BY q.next_reset_at LIMIT :n""")  # fmt: skip
_NOW = query("sweeps.now", "Select the time of the transaction", "SELECT now()")
_FIRST = datetime.min.replace(tzinfo=UTC)
_CHARGED = query("sweeps.charged", "Select the charges of requests that settle late", f"""
SELECT request, sum(tokens)::bigint AS quota_tokens, sum(credits)::bigint AS credits, sum(units)::bigint AS units,
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
  ) AS rows GROUP BY request""")  # fmt: skip
# The control write and its credit addition, both once.
_REFUND = query("sweeps.refund", "Add a refund of credits", """
WITH intent AS (
    INSERT INTO control_write (id, partition, account, verb, payload)
    VALUES (:id, :partition, :account, 'credits', jsonb_build_object('amount', cast(:amount AS bigint)))
    ON CONFLICT (id) DO NOTHING RETURNING id)
INSERT INTO credit_addition (organization_id, credits_added, category, remark, control_write_id)
SELECT :organization, :amount, 'refund', :remark, intent.id FROM intent RETURNING id""")  # fmt: skip
# Stores an entry of the late queue as a dead letter.
_GONE = (
    "request {} settles late, and may be charged in a month that is archived:"
    " look there, then redrive or resolve it"
)


class Sweeps:
    """The sweeper's and the poster's access to PostgreSQL."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._looks, self._since, self._asks = 0, _FIRST, 0

    def since(self, whole: bool = False) -> datetime:
        """Return the time from which the next query looks for due resets of quotas.

        It is the earliest time if `whole` is set, and at every `LOOKS_A_ROUND`th call, so that late rows are
        found.
        """
        self._asks += 1
        if self._asks % LOOKS_A_ROUND and not whole:
            return self._since
        self._looks = 0
        return _FIRST

    async def due(self, count: int) -> Sequence[tuple[int, int]]:
        """Return (tenant id, organization id) of tenants whose quota must be reset now.

        A reset that was stored late, for a time already searched, is found within `LOOKS_A_ROUND` calls.
        """
        since = self._since if self._looks % LOOKS_A_ROUND else _FIRST
        async with self._engine.connect() as connection:
            until = (await connection.execute(_NOW)).scalar_one()
            rows = await connection.execute(RESETS_DUE, {"n": count, "since": since, "until": until})
            found = [(row.tenant_id, row.organization_id) for row in rows]
        self._looks += 1
        self._since = since if found else until
        return found

    async def charged(self, late: Sequence[LateSettlement]) -> dict[str, ChargedAmounts]:
        """Return the amounts charged for requests that were settled late, by request id, refunds included.

        Requests without a charge are left out.
        """
        ids = list({one.settlement.request_id for one in late})
        charged_amounts: dict[str, ChargedAmounts] = {}
        async with self._engine.connect() as connection:
            for some, since in retention.by_month(await retention.places(connection, ids)):
                refunds = [refund_id(one) for one in some]
                rows = await connection.execute(_CHARGED, {"ids": some, "refunds": refunds, "since": since})
                charged_amounts |= {row.request: _charged(row) for row in rows}
        return charged_amounts

    async def maybe_gone(self, late: Sequence[LateSettlement]) -> set[str]:
        """Return the request ids whose charge may be in months that are no longer in PostgreSQL."""
        ids = list({one.settlement.request_id for one in late})
        async with self._engine.connect() as connection:
            return set(await retention.maybe_gone(connection, await retention.places(connection, ids)))

    async def set_aside(self, late: Sequence[LateSettlement]) -> None:
        """Store late settlements as dead letters, once each, for a person to check their charge."""
        async with self._engine.begin() as connection:
            letters = insert_rows(dead_letter, [_letter(one) for one in late])
            named = naming("sweeps.set_aside", "Store entries of the late queue as dead letters")
            await connection.execute(letters.on_conflict_do_nothing().execution_options(**named))

    async def refund(self, late: LateSettlement, amount: int) -> None:
        """Refund credits of a request, once by its id: write the addition, and correct the call's row."""
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
                await _subtract_refund(connection, request_id, amount)

    async def remember(self, acknowledged: Sequence[MovementRange]) -> None:
        """Store, as evidence of a loss, movements that Redis acknowledged and the ledger does not have."""
        async with self._engine.begin() as connection:
            await remember_losses(connection, acknowledged)


async def _subtract_refund(connection: AsyncConnection, request_id: str, amount: int) -> None:
    """Subtract a refund from the row of its call, and from the roll-ups with that call."""
    values = {"request_id": request_id, "amount": amount, **retention.times_of([request_id])}
    before = (await connection.exec_driver_sql(statements.CALL_SUMS, values)).fetchone()
    if before is None:
        return
    after = (await connection.exec_driver_sql(statements.REFUND_CALL, values)).fetchone()
    assert after is not None, "its row is held"
    columns = usage_rollup.moved_columns([(before, after)])
    await connection.exec_driver_sql(usage_rollup.ROLL_UP_CALLS, columns)
    await connection.run_sync(listeners.tell_changes, "refunded", [(before, after)])


def _letter(late: LateSettlement) -> dict[str, object]:
    caller, request_id = late.settlement.caller, late.settlement.request_id
    return {
        "partition": caller.partition, "entry_id": (LETTER + late.entry_id).decode(), "raw": letter_of(late),
        "reason": _GONE.format(request_id), "organization_id": caller.organization_id,
        "tenant_id": caller.tenant_id or None,
    }  # fmt: skip


def _charged(row: Row[Any]) -> ChargedAmounts:
    """Return the amounts that the ledgers charged for a call; tokens are the journal's, if it has them."""
    tokens = row.quota_tokens if row.tokens is None else row.tokens
    quota_tokens = None if tokens == row.quota_tokens else row.quota_tokens
    return ChargedAmounts(
        tokens, row.credits, row.units, bool(row.reclaimed), row.over, quota_tokens,
        money=row.money or 0, budget_tokens=tokens, requests=1,
    )  # fmt: skip
