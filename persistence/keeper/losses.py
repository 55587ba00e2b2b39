"""What Redis forgot and nobody brought back: counted from what was acknowledged, seq by seq.

An epoch's movements that are in the ledger end at its highest stored seq. Whoever acknowledged
something beyond that brings it as evidence, once it was sent again. What lies between the ledger's
end and the last movement anybody knows of, and has no evidence, is lost. It is not counted while somebody may
bring more.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.losses import Loss, Movement

# How long evidence has to be quiet before a loss is counted: each keeper counts every 15 s, and has brought
# what it did itself.
QUIET_S = 20
# So long it is waited for who may bring more: a queue that is stuck, a disk that is gone.
AWAITED_S_MAX = 600
KEPT_DAYS = 7
MOVEMENTS_MAX = 5_000

_REMEMBER = text("""
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
ON CONFLICT DO NOTHING""")

_OPEN = text("""
SELECT DISTINCT account, epoch FROM recovered_event WHERE counted_at IS NULL""")

_COUNT = text("""
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
SELECT f.*, f.lost - coalesce(b.lost, 0) FROM found AS f LEFT JOIN redis_loss AS b USING (account, epoch)""")

_FORGET = text("""
DELETE FROM recovered_event WHERE counted_at < now() - make_interval(days => :days)""")
# Of several keepers one counts at a time: each loss is said, and added up, by the one that found it.
_TURN = text("SELECT pg_advisory_xact_lock(7804, 1)")


async def remember(connection: AsyncConnection, movements: Sequence[Movement]) -> None:
    """Keep as evidence which of these acknowledged movements their epoch's ledger has not.

    Everything their organizations had in the outbox of that epoch must be stored by now.
    """
    seqs = [(one, seq) for one in movements for seq in range(one.first_seq, one.last_seq + 1)]
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
    """Where losses are counted."""

    def __init__(self, engine: AsyncEngine, *, quiet_s: float = QUIET_S) -> None:
        self._engine = engine
        self._quiet_s = quiet_s

    async def any_open(self) -> bool:
        """Whether there is evidence of a loss that is not counted."""
        async with self._engine.connect() as connection:
            return (await connection.execute(_OPEN)).first() is not None

    async def count(self, known: Sequence[Movement], at_rest: Collection[int]) -> list[Loss]:
        """Count what came to rest, in partitions of which nobody brings anything more; `known` is what this
        keeper did itself, evidence too where it is asked.
        """
        async with self._engine.begin() as connection:
            open_ = {(row.account, row.epoch) for row in await connection.execute(_OPEN)}
            if not open_:
                return []
            await connection.execute(_TURN)
            await remember(connection, [one for one in known if (one.account, one.epoch) in open_])
            values = {"quiet_s": self._quiet_s, "awaited_s": AWAITED_S_MAX, "at_rest": sorted(at_rest)}
            rows = await connection.execute(_COUNT, values)
            losses = [Loss(*row) for row in rows]
            await connection.execute(_FORGET, {"days": KEPT_DAYS})
            return losses
