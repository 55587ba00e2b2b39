"""What a tenant's ledger says of a plan that ended: resets and plans, and what was told of it behind them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from gateway.core.billing.early_use import ALL, Turn, begin_of, stop_of, tokens_used
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
  FROM told_use AS u
 WHERE u.tenant_id = :tenant AND (u.used_at >= :since AND u.used_at < :until
                                  OR u.counted_at >= :since AND u.counted_at < :until)""")


# What carried debt of one tenant until the same plan ended, in their order.
_LOTS = text("""
SELECT * FROM plan_end WHERE tenant_id = :tenant AND carries
   AND debt_write_id IS NOT DISTINCT FROM cast(:write AS uuid) ORDER BY id""")
_FORGIVEN = text("""
SELECT min(seq) FROM token_ledger
 WHERE tenant_id = :tenant AND transaction_type = 'reset' AND metadata->'forgiven' IS NOT NULL
   AND seq > :first AND seq <= coalesce(cast(:end AS bigint), 9223372036854775807)""")
# What a tenant is beyond its plan falls by what it is given alone. So the least there was behind any of that
# is left of a debt, with what was told of its time since. A reset that comes with another plan gave nothing.
_DEBT = text("""
WITH given AS (
    SELECT r.seq, -r.total_remaining AS debt FROM token_ledger AS r
     WHERE r.tenant_id = :tenant AND r.transaction_type <> 'consume' AND r.total_remaining IS NOT NULL
       AND (r.seq >= :first AND r.seq < :end OR r.seq = :last)
       AND NOT (r.transaction_type = 'reset' AND EXISTS (
            SELECT FROM token_ledger AS n
              JOIN control_write AS c ON c.id = n.control_write_id AND c.verb = 'plan'
             WHERE n.tenant_id = r.tenant_id AND n.transaction_type <> 'consume' AND n.seq = r.seq + 1
               AND n.created_at = r.created_at))
), told AS (
    SELECT b.seq, CASE WHEN u.is_more THEN 1 ELSE -1 END AS sign, u.late_tokens, u.quota_tokens
      FROM told_use AS u LEFT JOIN token_ledger AS b ON b.request_id = u.request_id
       AND b.tenant_id = u.tenant_id AND b.transaction_type = u.as_type
       AND (u.reason IS NULL OR b.metadata->>'reason' = u.reason)
     WHERE u.tenant_id = :tenant AND (u.used_at >= :since AND u.used_at < :until
                                      OR u.counted_at >= :since AND u.counted_at < :until)
)
SELECT min(g.debt + (SELECT coalesce(sum(t.sign * (t.late_tokens + CASE
                            WHEN t.seq IS NULL OR t.seq > g.seq THEN t.quota_tokens ELSE 0 END)), 0)
                       FROM told AS t))::bigint
  FROM given AS g""")


class _Lot(NamedTuple):
    """Debt of a plan that ended: from a seq on up to another one, and the row that took the plan carrying it.

    Its tokens were used since a time, up to another one. `is_had`: the plan behind has it whole.
    """

    id: int
    first: int
    end: int
    last: int | None
    is_had: bool
    since: datetime
    until: datetime


class Read(NamedTuple):
    """What was used of a plan, the row that gave its tokens, and what was left once nobody carried them on.

    No debt is known where nobody did: its cycle was over before the plan went.
    """

    used: int
    began: int | None
    debt: int | None


class Lots:
    """Debt of plans that ended: read once of each tenant and of who carried it, while nothing is written."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[int, UUID | None], list[_Lot]] = {}

    def upto(self, row: Any) -> list[_Lot]:
        """Those that were carried until the same plan ended as one of them, up to that, in their order."""
        key = (row.tenant_id, row.debt_write_id)
        if key not in self._known:
            found = self._connection.execute(_LOTS, dict(zip(("tenant", "write"), key, strict=True))).all()
            self._known[key] = [lot for one in found if (lot := _lot(self._connection, one))]
        return [lot for lot in self._known[key] if lot.id <= row.id]


def read(connection: Connection, row: Any, carried: Lots) -> Read:
    """What the ledger says of a plan that ended."""
    turns, seqs = _turns(connection, row, None if row.is_gone else row.control_write_id)
    stop, window = stop_of(turns, row.cycle_ends_at), _window(turns, row)
    told = _told(connection, row, window, seqs[stop]) if window else 0
    used, begin = tokens_used(turns, row.total_amount, row.cycle_ends_at, told), begin_of(turns, stop)
    is_carried = row.carries and stop >= len(turns) - 1
    debt = _debt_of(connection, row, carried.upto(row)) if is_carried else None
    return Read(used, None if begin is None else seqs[begin], debt)


def _debt_of(connection: Connection, row: Any, lots: Sequence[_Lot]) -> int:
    """What is its own of the debt that was left: what came last is paid back first."""
    if not lots or lots[-1].id != row.id:
        return 0
    together = [lot for lot in lots if lot.end == lots[-1].end]
    since = min(lot.since for lot in together)
    *_, before, left = [0, *(_left_of(connection, row.tenant_id, lot, since) for lot in together[-2:])]
    return max(0, left - before)


def _lot(connection: Connection, row: Any) -> _Lot | None:
    """From where to where debt of a plan that ended was carried on; None where it was not."""
    turns, seqs = _turns(connection, row, row.control_write_id)
    window = _window(turns, row)
    if window is None or stop_of(turns, row.cycle_ends_at) < len(turns) - 1:
        return None
    end, last, is_had = _end_of(connection, row)
    here = {"tenant": row.tenant_id, "first": seqs[-1], "end": end}
    forgiven = connection.execute(_FORGIVEN, here).scalar()
    if forgiven is not None:
        end, last, is_had = forgiven, None, False
    return None if end is None else _Lot(row.id, seqs[-1], end, last, is_had, *window)


def _end_of(connection: Connection, row: Any) -> tuple[int | None, int | None, bool]:
    """Before which seq the plan that carried it was over, which row took it, and whether the next has all."""
    if row.debt_counted is None:
        return None, None, False
    turns, seqs = _turns(connection, row, row.debt_write_id)
    if not turns:
        return None, None, False
    last = None if row.debt_write_id is None else seqs[-1]
    return seqs[stop_of(turns, row.debt_ends_at)], last, row.debt_counted == ALL


def _left_of(connection: Connection, tenant_id: int, lot: _Lot, since: datetime) -> int:
    """Debt of a time, and since, that nothing has paid back; nor has the plan behind it more by as much."""
    here = {"tenant": tenant_id, "first": lot.first, "end": lot.end, "last": lot.last, "since": since}
    left = connection.execute(_DEBT, {**here, "until": lot.until}).scalar()
    return 0 if lot.is_had else max(0, int(left or 0))


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
