"""Control writes as the Admin API looks back on them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from sqlalchemy import Connection, select

from persistence.tables.operations import control_write


def refusal(connection: Connection, ids: Sequence[str]) -> str | None:
    """Say why the counters refused one of these control writes; None if they did not."""
    row = connection.execute(
        select(control_write.c.verb, control_write.c.result)
        .where(control_write.c.id.in_([UUID(text) for text in ids]), control_write.c.state == "refused")
        .order_by(control_write.c.position)
        .limit(1)
    ).first()
    if row is None:
        return None
    reason = str(row.result.get("reason") or "") if isinstance(row.result, dict) else ""
    return f"The counters refused {row.verb}: {reason.rstrip('.') or 'no reason was given'}."
