"""Turns of a plan in PostgreSQL: what was used in each, left over, carried and owed."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Connection, text

from gateway.core.billing.proration import (
    ALL,
    CARRY,
    PlanStart,
    begin_of,
    stop_of,
    tokens_used,
)
from gateway.core.billing.subscription import midnight
from persistence.queries import query

# Maximum of resets and plan changes that are read before a change; a cycle has few.
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
_TURNS = query("plans.turns", "Add up the use of an ended plan", _SELECT.format(upto=_UPTO))  # fmt: skip
# For a deleted tenant: the rest of its last cycle.
_GONE_TURNS = query("plans.gone_turns", "Add up the use of a deleted tenant",
    _SELECT.format(upto=""))  # fmt: skip
_LAST = query("plans.last", "Select the last movement of a tenant", """
SELECT seq, created_at, total_remaining FROM token_ledger WHERE tenant_id = :tenant
 ORDER BY seq DESC LIMIT 1""")  # fmt: skip
# Calls of a period that were counted after a sequence number, or that moved no quota.
_BEHIND = query("plans.behind", "Add up late tokens of a period", """
SELECT coalesce(sum((CASE WHEN u.is_more THEN 1 ELSE -1 END) * (u.late_tokens + CASE
           WHEN u.quota_tokens = 0 OR EXISTS (
                SELECT FROM token_ledger AS b
                 WHERE b.request_id = u.request_id AND b.tenant_id = u.tenant_id AND b.seq < :seq
                   AND b.transaction_type = u.as_type
                   AND (u.reason IS NULL OR b.metadata->>'reason' = u.reason))
           THEN 0 ELSE u.quota_tokens END)), 0)::bigint
  FROM told_use AS u
 WHERE u.tenant_id = :tenant AND (u.used_at >= :since AND u.used_at < :until
                                  OR u.counted_at >= :since AND u.counted_at < :until)""")  # fmt: skip

# A tenant's ended plans whose debt was carried until the same plan ended, in order.
_LOTS = query("plans.lots", "Select ended plans with carried debt", """
SELECT * FROM plan_end WHERE tenant_id = :tenant AND carries
   AND debt_write_id IS NOT DISTINCT FROM cast(:write AS uuid) ORDER BY id""")  # fmt: skip
_FORGIVEN = query("plans.forgiven", "Select when debt was forgiven", """
SELECT min(seq) FROM token_ledger
 WHERE tenant_id = :tenant AND transaction_type = 'reset' AND metadata->'forgiven' IS NOT NULL
   AND seq > :first AND seq <= coalesce(cast(:end AS bigint), 9223372036854775807)""")  # fmt: skip
# Only tokens that are given reduce a tenant's excess over its plan. So the rest of a debt is the minimum
# after any of them, plus late reports of its period. A reset that comes with another plan gave nothing.
_DEBT = query("plans.debt", "Select the least debt since a movement", """
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
  FROM given AS g""")  # fmt: skip


class _Lot(NamedTuple):
    """The debt of an ended plan, carried from the seq `first` to `end`; `last` closes the carrying plan.

    Its tokens were used from `since` to `until`. `is_had`: the next plan includes all of this debt.
    """

    id: int
    first: int
    end: int
    last: int | None
    is_had: bool
    since: datetime
    until: datetime


class PlanTurns(NamedTuple):
    """The use of an ended plan, the ledger row that gave its tokens, and the remaining debt.

    `debt` is None if no later plan carried it on: its cycle was over before the plan ended.
    """

    used: int
    began: int | None
    debt: int | None


class Lots:
    """A cache of the debt of ended plans ("lots"), by tenant and by the end of the carrying plan.

    It is valid while nothing is written.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._known: dict[tuple[int, UUID | None], list[_Lot]] = {}

    def upto(self, row: Any) -> list[_Lot]:
        """Return the debts that ended together with the one of `row`, in order, up to the one of `row`.

        `row` is the end of a plan.
        """
        key = (row.tenant_id, row.debt_write_id)
        if key not in self._known:
            result = self._connection.execute(_LOTS, dict(zip(("tenant", "write"), key, strict=True))).all()
            self._known[key] = [lot for one in result if (lot := _lot(self._connection, one))]
        return [lot for lot in self._known[key] if lot.id <= row.id]


def read_plan_turns(connection: Connection, row: Any, carried: Lots) -> PlanTurns:
    turns, seqs = _turns(connection, row, None if row.is_gone else row.control_write_id)
    stop, window = stop_of(turns, row.cycle_ends_at), _window(turns, row)
    late_tokens = _late_tokens(connection, row, window, seqs[stop]) if window else 0
    used, begin = tokens_used(turns, row.total_amount, row.cycle_ends_at, late_tokens), begin_of(turns, stop)
    is_carried = row.carries and stop >= len(turns) - 1
    debt = _debt_of(connection, row, carried.upto(row)) if is_carried else None
    return PlanTurns(used, None if begin is None else seqs[begin], debt)


def _debt_of(connection: Connection, row: Any, lots: Sequence[_Lot]) -> int:
    """Return the part of the debt still unpaid that the ended plan `row` caused.

    The latest use is repaid first. `lots` are the debts carried together, the plan's own last.
    """
    if not lots or lots[-1].id != row.id:
        return 0
    together = [lot for lot in lots if lot.end == lots[-1].end]
    since = min(lot.since for lot in together)
    *_, before, left = [0, *(_left_of(connection, row.tenant_id, lot, since) for lot in together[-2:])]
    return max(0, left - before)


def _lot(connection: Connection, row: Any) -> _Lot | None:
    """Return the debt that the ended plan `row` passed on to later plans; None if none carried it."""
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
    """Return the seq at which the plan that carried a debt ended, and the seq of the row that closed it.

    The third value says whether the next plan includes all of the debt.
    """
    if row.debt_counted is None:
        return None, None, False
    turns, seqs = _turns(connection, row, row.debt_write_id)
    if not turns:
        return None, None, False
    last = None if row.debt_write_id is None else seqs[-1]
    return seqs[stop_of(turns, row.debt_ends_at)], last, row.debt_counted == ALL


def _left_of(connection: Connection, tenant_id: int, lot: _Lot, since: datetime) -> int:
    """Return the unpaid tokens of a debt `lot` and of uses since a time; 0 if the next plan includes them."""
    here = {"tenant": tenant_id, "first": lot.first, "end": lot.end, "last": lot.last, "since": since}
    left = connection.execute(_DEBT, {**here, "until": lot.until}).scalar()
    return 0 if lot.is_had else max(0, int(left or 0))


def _window(turns: Sequence[PlanStart], row: Any) -> tuple[datetime, datetime] | None:
    """Return the times between which an ended plan's tokens were used; None if its cycle had not begun."""
    stop = stop_of(turns, row.cycle_ends_at)
    begin = begin_of(turns, stop)
    if begin is None:
        return None
    return turns[begin].at, _ENDLESS if row.is_gone else turns[stop].at


def _late_tokens(connection: Connection, row: Any, window: tuple[datetime, datetime], seq: int) -> int:
    """Return the tokens used in `window` but counted after the sequence number `seq`, without refunds."""
    here = {"tenant": row.tenant_id, "since": window[0], "until": window[1], "seq": seq}
    return int(connection.execute(_BEHIND, here).scalar_one())


def _turns(connection: Connection, row: Any, write_id: UUID | None) -> tuple[list[PlanStart], list[int]]:
    """Read a tenant's resets and plan changes with their seqs, up to a control write (None: up to now)."""
    wanted = {"tenant": row.tenant_id, "write": write_id, "count": TURNS_MAX}
    last = None
    if write_id is None:
        last = connection.execute(_LAST, {"tenant": row.tenant_id}).first()
        if last is None or (row.cycle_ends_at is not None and last.created_at < midnight(row.paid_from)):
            return [], []
    result = connection.execute(_TURNS if last is None else _GONE_TURNS, wanted).all()[::-1]
    turns = [PlanStart(each.created_at, each.is_reset, each.total_remaining, each.moved) for each in result]
    seqs = [each.seq for each in result]
    if last is not None:
        moved = -(last.total_remaining or 0)
        turns.append(PlanStart(last.created_at, is_reset=False, remaining=None, moved=moved))
        seqs.append(last.seq + 1)
    return turns, seqs


# A tenant's id, and a moment at which the tenant used tokens.
Use = tuple[int, datetime]
_USES = """unnest(cast(:tenants AS bigint[]), cast(:times AS timestamptz[])) WITH ORDINALITY
       AS u (tenant_id, at, place)"""
# The running cycle, and the cycle of a moment, as far as they are stored; none before the first one. A flush
# writes both at once, so one statement reads them. A reset that is due will be stored soon.
_IN_CYCLE = """
SELECT q.tenant_id IS NULL
       OR NOT coalesce(u.at < q.next_reset_at AND q.next_reset_at <= :now, false)
          AND coalesce((SELECT r.cycle FROM token_ledger AS r
                         WHERE r.tenant_id = u.tenant_id AND r.transaction_type = 'reset'
                           AND r.created_at <= u.at ORDER BY r.seq DESC LIMIT 1) = q.cycle, true)
  FROM {uses} LEFT JOIN tenant_quota AS q ON q.tenant_id = u.tenant_id ORDER BY u.place"""
# The stored plans since a moment, the one in force then included: whether all carry debt on, and no reset has
# forgiven it since.
_CARRIED = """
SELECT found.carried FROM {uses} CROSS JOIN LATERAL (
WITH plans AS (
    SELECT l.seq, l.created_at, (w.payload->>'plan_id')::bigint AS plan_id
      FROM token_ledger AS l JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
     WHERE l.tenant_id = u.tenant_id AND l.transaction_type <> 'consume'
), policies AS (
    SELECT (SELECT v.overage_policy FROM token_plan_price AS v WHERE v.plan_id = p.plan_id
             ORDER BY v.since <= n.at DESC, CASE WHEN v.since <= n.at THEN v.since END DESC, v.since LIMIT 1)
           AS policy
      FROM plans AS p CROSS JOIN LATERAL (SELECT greatest(p.created_at, u.at) AS at) AS n
     WHERE p.seq >= coalesce((SELECT max(seq) FROM plans WHERE created_at <= u.at), 0)
)
SELECT coalesce(bool_and(policy IS NOT DISTINCT FROM :carry), true)
       AND NOT EXISTS (SELECT FROM token_ledger WHERE tenant_id = u.tenant_id AND transaction_type = 'reset'
                          AND created_at > u.at AND metadata->'forgiven' IS NOT NULL) AS carried
  FROM policies) AS found ORDER BY u.place"""
# Whether a plan was in force at a moment: by the ledger, or by a subscription that counts tokens without a
# limit. Without any plan, use costs nothing. If the rows are archived, a plan is assumed.
_BORNE = """
SELECT coalesce((SELECT w.payload->>'plan_id' IS NOT NULL FROM token_ledger AS l
                   JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
                  WHERE l.tenant_id = t.id AND l.transaction_type <> 'consume' AND l.created_at <= u.at
                  ORDER BY l.seq DESC LIMIT 1),
                (SELECT l.seq > 1 FROM token_ledger AS l WHERE l.tenant_id = t.id
                  ORDER BY l.seq LIMIT 1), false)
    OR EXISTS (SELECT FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
                WHERE s.organization_id = t.organization_id AND p.token_plan_id IS NULL
                  AND s.start_date <= (u.at AT TIME ZONE 'UTC')::date
                  AND (s.end_date IS NULL OR s.end_date > (u.at AT TIME ZONE 'UTC')::date))
    OR NOT EXISTS (SELECT FROM token_ledger AS l
                     JOIN control_write AS w ON w.id = l.control_write_id AND w.verb = 'plan'
                    WHERE l.tenant_id = t.id AND l.transaction_type <> 'consume')
       AND (coalesce(t.plan_id, t.inherited_plan_id) IS NOT NULL
            OR NOT EXISTS (SELECT FROM subscription_segment AS s WHERE s.organization_id = t.organization_id))
  FROM {uses} JOIN tenant AS t ON t.id = u.tenant_id ORDER BY u.place"""


def in_cycle(connection: Connection, now: datetime, uses: Collection[Use]) -> set[Use]:
    """Return the uses that lie in the running cycle of their tenant's quota."""
    return _select_uses(connection, _IN_CYCLE, uses, now=now)


def carried(connection: Connection, uses: Collection[Use]) -> set[Use]:
    """Return those uses whose debt has been carried from plan to plan until now.

    The debt of the others belongs to the plan in force at their time.
    """
    return _select_uses(connection, _CARRIED, uses, carry=CARRY)


def is_borne(connection: Connection, uses: Collection[Use]) -> set[Use]:
    """Return the uses at whose time a plan was in force; they do not count against today's quota."""
    return _select_uses(connection, _BORNE, uses)


def _select_uses(connection: Connection, statement: str, uses: Collection[Use], **more: object) -> set[Use]:
    """Return the uses for which the SQL statement returns true; its rows have the order of `uses`."""
    if not uses:
        return set()
    tenants, times = map(list, zip(*uses, strict=True))
    asked = text(statement.format(uses=_USES))
    result = connection.scalars(asked, {"tenants": tenants, "times": times, **more})
    return {use for use, fits in zip(uses, result, strict=True) if fits}
