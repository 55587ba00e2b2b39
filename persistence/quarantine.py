"""Accounts whose events contradict what is stored: how a person lets them go on.

Releasing alone has the same entries judged again. A gap nobody can fill is accepted by
listing the missing movements as lost, counted exactly; nothing else ever skips one.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence.tables import lost_event, organization, quarantine, tenant_quota

_OPEN = quarantine.c.released_at.is_(None)
# The flusher's lock of a partition: while it is held here, no flush is under way there.
_LOCK = text("SELECT pg_advisory_xact_lock(7800, :partition)")


async def release(engine: AsyncEngine, account: str, *, by: str, accept_gap: bool = False) -> list[str]:
    """Let an account and those that wait for it go on; answers their names, empty if none was stopped."""
    async with engine.begin() as connection:
        return await connection.run_sync(_release, account, by, accept_gap)


def _release(connection: Connection, account: str, by: str, accept_gap: bool) -> list[str]:
    whose = and_(_OPEN, or_(quarantine.c.account == account, quarantine.c.behind == account))
    partitions = connection.execute(select(quarantine.c.partition).where(whose).distinct()).scalars().all()
    for partition in sorted(partitions):
        connection.execute(_LOCK, {"partition": partition})
    rows = connection.execute(select(quarantine).where(whose).with_for_update()).mappings().all()
    for row in rows:
        if accept_gap and row["account"] == account and row["kind"] == "gap":
            _accept(connection, dict(row))
    connection.execute(update(quarantine).where(whose).values(released_at=func.now(), released_by=by))
    return sorted(str(row["account"]) for row in rows)


def _accept(connection: Connection, row: dict[str, Any]) -> None:
    """List the missing movements as lost and let the account stand behind them."""
    last = row["found_seq"] - 1
    connection.execute(
        insert(lost_event).values(
            account=row["account"], partition=row["partition"], epoch=row["epoch"],
            first_seq=row["stored_seq"] + 1, last_seq=last, detail={"entry_id": row["entry_id"]},
        )
    )  # fmt: skip
    kind, _, number = str(row["account"]).partition(":")
    if kind == "tenant":
        moved = update(tenant_quota).where(tenant_quota.c.tenant_id == int(number)).values(last_seq=last)
    elif kind == "credits":
        moved = update(organization).where(organization.c.id == int(number)).values(credit_last_seq=last)
    else:
        moved = update(organization).where(organization.c.id == int(number)).values(spend_last_seq=last)
    connection.execute(moved)
