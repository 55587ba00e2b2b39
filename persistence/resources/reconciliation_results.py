"""What comparing found, kept; and repairs: a drift that is stored and an intent that makes it good."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import insert, select, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gateway.core.accounts.administration import Row
from gateway.core.integrity.reconciliation import Item, Kind, Reconciled
from persistence.engine import apart
from persistence.refusals import translated, translating
from persistence.subject import Change, Subject
from persistence.tables import control_write, reconciliation, tenant

ITEMS_KEPT_MAX = 1_000
# Advisory lock class 7813: who compares everybody, whichever keeper it is.
_TURN = text("SELECT pg_try_advisory_xact_lock(7813, 1)")
# A bound of the server's on idle or long transactions would end the turn before its run.
_UNBOUND = text("""
SELECT set_config('idle_in_transaction_session_timeout', '0', true),
       CASE WHEN current_setting('server_version_num')::integer >= 170000
            THEN set_config('transaction_timeout', '0', true) END""")

# Rows whose balance is not what the row before and their own amount make, but for stored drifts.
_BREAKS = text("""
SELECT first_seq - 1 AS seq, balance - before - delta - filed AS difference FROM (
    SELECT m.seq, m.first_seq, m.delta, coalesce(m.balance, 0) AS balance, coalesce(d.difference, 0) AS filed,
           m.balance IS NULL AND lag(m.balance) OVER w IS NULL AS unlimited,
           CASE WHEN m.begins THEN 0 ELSE coalesce(lag(m.balance) OVER w, 0) END AS before
      -- spend starts again from zero each month
      FROM (SELECT *, account LIKE 'spend:%'
                   AND lag(date_trunc('month', at AT TIME ZONE 'UTC')) OVER (ORDER BY seq)
                     < date_trunc('month', at AT TIME ZONE 'UTC') AS begins
              FROM account_movement WHERE account = :account) AS m CROSS JOIN LATERAL (
           SELECT sum(difference) AS difference FROM known_drift
            WHERE account = m.account AND seq < m.seq
              AND seq >= CASE WHEN m.begins THEN m.first_seq ELSE m.first_seq - 1 END) AS d
    WINDOW w AS (ORDER BY m.seq)) AS movement
 WHERE NOT unlimited AND balance - before - delta - filed <> 0 ORDER BY seq""")
_FILE = text("""
INSERT INTO known_drift (account, seq, difference, control_write_id)
VALUES (:account, :seq, :difference, :write)
ON CONFLICT (account, seq) DO UPDATE SET difference = known_drift.difference + excluded.difference""")


class Results:
    """Reconciliations, the last one first."""

    def __init__(self, engine: AsyncEngine, partition_of: Callable[[int], int]) -> None:
        self._engine = engine
        self._partition_of = partition_of

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[bool]:
        """Have the only run of all keepers while this lasts; False where another one has it.

        Runs take minutes, so it has a connection of its own.
        """
        done = False
        try:
            async with apart(self._engine) as connection:
                await connection.execute(_UNBOUND)
                yield bool(await connection.scalar(_TURN))
                done = True
        except (SQLAlchemyError, OSError) as error:
            if not done:  # else there is nothing left to keep from others
                raise translated(error) from error

    async def keep(self, started: datetime, finished: datetime, found: Reconciled) -> Row:
        """Store one result; answers it as it is shown."""
        values: dict[str, Any] = {
            "started_at": started,
            "finished_at": finished,
            "checked": found.checked,
            "drift_tokens": found.drift_tokens,
            "drift_credits": found.drift_credits,
            "pending": found.pending,
            "items": [_shown(item) for item in (*found.items[:ITEMS_KEPT_MAX], *_more(found))],
        }
        async with translating(self._engine.begin()) as connection:
            made = insert(reconciliation).values(values).returning(reconciliation)
            return dict((await connection.execute(made)).mappings().one())

    async def last(self) -> Row | None:
        """The last result; None where there is none yet."""
        newest = select(reconciliation).order_by(reconciliation.c.id.desc()).limit(1)
        async with translating(self._engine.connect()) as connection:
            row = (await connection.execute(newest)).mappings().first()
        return dict(row) if row is not None else None

    async def asked(self) -> datetime | None:
        """When the last run began that asked all rows; None where there is none yet."""
        all_asked = ~reconciliation.c["items"].contains([{"kind": Kind.UNASKED.value}])
        newest = (
            select(reconciliation.c.started_at).where(all_asked).order_by(reconciliation.c.id.desc()).limit(1)
        )
        async with translating(self._engine.connect()) as connection:
            return await connection.scalar(newest)

    async def repair(self, item: Item) -> None:
        """Store a drift and write the intent that undoes it.

        The ledger is right: the counters move to what its movements come to, by an `adjust` (tokens)
        or a correction (credits), a row like any other. Where only PostgreSQL's own note of the
        account is wrong, the row is of 0 and brings the note with it. A month's spend is a measure,
        billed by nobody: its drift is stored and stays.
        """
        kind, _, number = item.account.partition(":")
        async with translating(self._engine.begin()) as connection:
            if kind == "spend":
                await _file(connection, item, None)
                return
            write_id, owner = uuid4(), int(number)
            account, verb = f"organization:{owner}", "credits"
            payload: dict[str, object] = {"amount": item.correction}
            if kind == "tenant":
                found = await connection.execute(select(tenant.c.organization_id).where(tenant.c.id == owner))
                owner, account, verb = int(found.scalar_one()), item.account, "adjust"
                direction = "IN" if item.correction >= 0 else "OUT"
                payload = {
                    "amount": abs(item.correction), "direction": direction, "reason": "reconciliation"
                }  # fmt: skip
            await _file(connection, item, write_id)
            await connection.execute(
                insert(control_write).values(
                    id=write_id, partition=self._partition_of(owner), account=account, verb=verb,
                    payload=payload,
                )
            )  # fmt: skip


async def _file(connection: AsyncConnection, item: Item, write_id: UUID | None) -> None:
    """Note where the balance changed without a movement: where the rows show it, else after the last."""
    breaks = [
        (row.seq, row.difference) for row in await connection.execute(_BREAKS, {"account": item.account})
    ]
    rest = -item.correction - sum(difference for _, difference in breaks)
    if rest:
        breaks.append((item.seq, rest))
    for seq, difference in breaks:
        values = {"account": item.account, "seq": seq, "difference": difference, "write": write_id}
        await connection.execute(_FILE, values)


def _more(found: Reconciled) -> Sequence[Item]:
    """That not all is kept, where it is not."""
    left = len(found.items) - ITEMS_KEPT_MAX
    detail = f"{left} more are not kept: put these right, and compare again"
    return [Item("rows", Kind.MORE, 0, 0, detail)] if left > 0 else []


def _shown(item: Item) -> dict[str, object]:
    return {name: value for name, value in asdict(item).items() if name != "correction"}


def _asked(_: Change) -> Row:
    """Somebody asked for a run: what it finds is kept when it ends, that it was asked is audited now."""
    return {"id": "now"}


SUBJECT = Subject(reconciliation, time="started_at", verbs={"run": _asked})
