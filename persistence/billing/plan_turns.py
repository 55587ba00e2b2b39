"""What a tenant's ledger says of a plan that ended: resets and plans, and what was told of it behind them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, text

from gateway.core.billing.early_use import Turn, begin_of, debt_left, stop_of, tokens_used
from gateway.core.billing.subscription import midnight

# Resets and plans of a tenant that are read back from one: a cycle has few.
TURNS_MAX = 400
_ENDLESS = datetime(9999, 12, 30, tzinfo=UTC)

_SELECT = """
SELECT r.created_at, r.seq, r.transaction_type = 'reset' AS is_reset, r.total_remaining,
       CASE r.direction WHEN 'IN' THEN r.amount ELSE -r.amount END AS moved
  FROM token_ledger AS r LEFT JOIN control_write AS c ON c.id = r.control_write_id AND c.verb = 'plan'
 WHERE r.tenant_id = :tenant AND r.transaction_type <> 'consume'
   AND (r.transaction_type = 'reset' OR c.id IS NOT NULL){upto}
 ORDER BY r.seq DESC LIMIT :count"""
_UPTO = """
   AND r.seq <= (SELECT w.seq FROM token_ledger AS w WHERE w.tenant_id = :tenant
                    AND w.transaction_type <> 'consume' AND w.control_write_id = :write)"""
_TURNS = text(_SELECT.format(upto=_UPTO))
# Of a tenant that was deleted: what was left of its last cycle.
_GONE_TURNS = text(_SELECT.format(upto=""))
_LAST = text("""
SELECT seq, created_at, total_remaining FROM token_ledger WHERE tenant_id = :tenant
 ORDER BY seq DESC LIMIT 1""")
# What was told of calls within a time that came into the ledger behind a seq, or moved no quota at all.
_BEHIND = text("""
SELECT coalesce(sum((CASE WHEN u.is_more THEN 1 ELSE -1 END) * (u.late_tokens + CASE
           WHEN u.quota_tokens = 0 OR EXISTS (
                SELECT FROM token_ledger AS b
                 WHERE b.request_id = u.request_id AND b.tenant_id = u.tenant_id AND b.seq < :seq
                   AND b.transaction_type = u.as_type
                   AND (u.reason IS NULL OR b.metadata->>'reason' = u.reason))
           THEN 0 ELSE u.quota_tokens END)), 0)::bigint
  FROM told_use AS u WHERE u.tenant_id = :tenant AND u.used_at >= :since AND u.used_at < :until""")


def read(connection: Connection, row: Any) -> tuple[int, int | None]:
    """How many tokens of a plan were used, and what was left of them once nobody carried them on."""
    write = None if row.is_gone else row.control_write_id
    turns, seqs = _turns(connection, row, write)
    window = _window(turns, row)
    told = _told(connection, row, window, seqs[stop_of(turns, row.cycle_ends_at)]) if window else 0
    used = tokens_used(turns, row.total_amount, row.cycle_ends_at, told)
    if not row.carries:
        return used, None
    turns, seqs = _turns(connection, row, row.debt_write_id)
    if not turns:
        return used, 0
    told = _told(connection, row, window, seqs[stop_of(turns, row.debt_ends_at)]) if window else 0
    return used, debt_left(turns, row.debt_ends_at, row.debt_counted, told)


def _window(turns: Sequence[Turn], row: Any) -> tuple[datetime, datetime] | None:
    """When tokens of a plan were used."""
    stop = stop_of(turns, row.cycle_ends_at)
    begin = begin_of(turns, stop)
    if begin is None:
        return None
    return turns[begin].at, _ENDLESS if row.is_gone else turns[stop].at


def _told(connection: Connection, row: Any, window: tuple[datetime, datetime], seq: int) -> int:
    """Tokens of a time that were told behind a seq, less those that were taken back."""
    here = {"tenant": row.tenant_id, "since": window[0], "until": window[1], "seq": seq}
    return int(connection.execute(_BEHIND, here).scalar_one())


def _turns(connection: Connection, row: Any, write_id: UUID | None) -> tuple[list[Turn], list[int]]:
    """Resets and plans of a tenant up to a write, or to its last movement (None); and their seqs."""
    wanted = {"tenant": row.tenant_id, "write": write_id, "count": TURNS_MAX}
    last = None
    if write_id is None:
        last = connection.execute(_LAST, {"tenant": row.tenant_id}).first()
        if last is None or _is_before(last.created_at, row):
            return [], []
    found = connection.execute(_TURNS if last is None else _GONE_TURNS, wanted).all()[::-1]
    turns = [Turn(each.created_at, each.is_reset, each.total_remaining, each.moved) for each in found]
    seqs = [each.seq for each in found]
    if last is not None:
        moved = -(last.total_remaining or 0)
        turns.append(Turn(last.created_at, is_reset=False, remaining=None, moved=moved))
        seqs.append(last.seq + 1)
    return turns, seqs


def _is_before(at: datetime, row: Any) -> bool:
    """Whether a moment is of an earlier cycle of tokens than the one that ended."""
    return row.cycle_ends_at is not None and at < midnight(row.paid_from)
