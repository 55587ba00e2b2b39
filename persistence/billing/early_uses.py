"""Plans that ended, and what is owed for tokens that their days did not pay for.

Noted with the change that ends a plan, and charged once the tenant's ledger says what was used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, insert, text

from gateway.core.billing.charge import EARLY_USE, ONE_DAY, SUBSCRIPTION, Charge
from gateway.core.billing.early_use import (
    Ended,
    PlanEnd,
    TokenTerms,
    Turn,
    amount_of,
    plan_end,
    tokens_ahead,
    tokens_used,
    unit_price,
)
from gateway.core.billing.subscription import midnight
from persistence.tables.billing import plan_end as table

# Ends of plans of one organization that are looked at together.
ENDS_MAX = 1_000
# Resets and plans of a tenant that are read back from one: a cycle has few.
TURNS_MAX = 400
MONTHLY = "monthly"

_OPEN = text("""
SELECT e.*, w.seq FROM plan_end AS e
  LEFT JOIN token_ledger AS w ON w.tenant_id = e.tenant_id AND w.transaction_type <> 'consume'
   AND w.control_write_id = e.control_write_id
 WHERE e.organization_id = :organization AND e.quantity IS NULL AND (w.seq IS NOT NULL OR e.is_gone)
 ORDER BY e.id LIMIT :count""")
_TURNS = text("""
SELECT r.created_at, r.transaction_type = 'reset' AS is_reset, r.total_remaining,
       CASE r.direction WHEN 'IN' THEN r.amount ELSE -r.amount END AS moved
  FROM token_ledger AS r LEFT JOIN control_write AS c ON c.id = r.control_write_id AND c.verb = 'plan'
 WHERE r.tenant_id = :tenant AND r.seq <= :seq AND r.transaction_type <> 'consume'
   AND (r.transaction_type = 'reset' OR c.id IS NOT NULL)
 ORDER BY r.seq DESC LIMIT :count""")
# Of a tenant that was deleted: what was left of its last cycle.
_LAST = text("""
SELECT seq, created_at, total_remaining FROM token_ledger WHERE tenant_id = :tenant
 ORDER BY seq DESC LIMIT 1""")
_WAITING = text("""
SELECT DISTINCT organization_id FROM plan_end
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity IS NULL ORDER BY 1""")
_CHARGED = text("""
SELECT anchor_date, paid_from, sum(amount) AS amount FROM plan_end
 WHERE organization_id = :organization AND amount > 0 GROUP BY 1, 2""")
_SETTLE = text("UPDATE plan_end SET quantity = :quantity, amount = :amount WHERE id = :id")

# What names a fact, and its charge.
EarlyCharge = tuple[str, Charge]
# A row of token plans.
TokenPlan = Mapping[str, Any]


class Taken(NamedTuple):
    """Whose plan was taken by which control write; None of a tenant that was deleted.

    `anchor` is the day on which the tenant's months begin.
    """

    tenant_id: int
    organization_id: int
    write_id: UUID | None
    anchor: int


def note(connection: Connection, taken: Taken, ended: Ended, had: TokenPlan, then: TokenPlan | None) -> None:
    """Keep that a tenant's token plan was taken, where something can be owed for it."""
    found = plan_end(ended, _terms(had, taken.anchor), None if then is None else _terms(then, taken.anchor))
    if found is None:
        return
    connection.execute(
        insert(table).values(
            organization_id=taken.organization_id, tenant_id=taken.tenant_id,
            control_write_id=taken.write_id or uuid4(), is_gone=taken.write_id is None,
            subscription_id=ended.subscription_id, anchor_date=ended.segment.anchor,
            paid_from=found.paid_from, cycle_ends_at=found.ends, total_amount=found.total,
            counted=found.counted, worth=found.worth, paid=found.paid,
            supplied_from=found.begins, supplied_until=ended.last_day + ONE_DAY,
        )
    )  # fmt: skip


def waiting(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Organizations with ends of plans that are not looked at yet, in the order of their ids."""
    return list(connection.execute(_WAITING, {"organizations": list(organization_ids)}).scalars())


def owed(connection: Connection, organization_id: int) -> list[tuple[int, int, EarlyCharge | None]]:
    """Of each end of a plan whose use is known: its id, tokens ahead, and the charge where it owes one."""
    here: dict[str, Any] = {"organization": organization_id, "count": ENDS_MAX}
    rows = connection.execute(_OPEN, here).all()
    if not rows:
        return []
    charged = {(each.anchor_date, each.paid_from): each.amount for each in connection.execute(_CHARGED, here)}
    found: list[tuple[int, int, EarlyCharge | None]] = []
    for row in rows:
        end = _end(row)
        used = tokens_used(_turns(connection, row), end.total, end.ends)
        cycle = (row.anchor_date, row.paid_from)
        ahead = tokens_ahead(end, used, charged.get(cycle, Decimal(0)))
        amount = amount_of(end, ahead)
        if not amount:
            found.append((row.id, 0, None))
            continue
        charged[cycle] = charged.get(cycle, Decimal(0)) + amount
        found.append((row.id, ahead, (f"early:{row.control_write_id}", _charge(row, end, ahead, amount))))
    return found


def settle(connection: Connection, end_id: int, quantity: int, charge: Charge | None) -> None:
    """Note what the end of a plan came to: it is not looked at again."""
    amount = Decimal(0) if charge is None else charge.amount
    connection.execute(_SETTLE, {"id": end_id, "quantity": quantity, "amount": amount})


def _charge(row: Any, end: PlanEnd, ahead: int, amount: Decimal) -> Charge:
    span = (midnight(row.supplied_from), midnight(row.supplied_until))
    return Charge(
        EARLY_USE, *span, Decimal(ahead), unit_price(end), amount, SUBSCRIPTION, row.subscription_id,
        tenant_id=row.tenant_id,
    )  # fmt: skip


def _turns(connection: Connection, row: Any) -> list[Turn]:
    """Resets and plans of a tenant up to the one that took its plan, or to its last movement."""
    last = connection.execute(_LAST, {"tenant": row.tenant_id}).first() if row.is_gone else None
    if row.is_gone and (last is None or _is_before(last.created_at, row)):
        return []
    wanted = {"tenant": row.tenant_id, "seq": row.seq if last is None else last.seq, "count": TURNS_MAX}
    found = connection.execute(_TURNS, wanted).all()
    turns = [Turn(each.created_at, each.is_reset, each.total_remaining, each.moved) for each in found[::-1]]
    if last is not None:
        turns.append(
            Turn(last.created_at, is_reset=False, remaining=None, moved=-(last.total_remaining or 0))
        )
    return turns


def _is_before(at: datetime, row: Any) -> bool:
    """Whether a moment is of an earlier cycle of tokens than the one that ended."""
    return row.cycle_ends_at is not None and at < midnight(row.paid_from)


def _end(row: Any) -> PlanEnd:
    return PlanEnd(
        row.total_amount, row.counted, row.worth, row.paid, row.paid_from, row.cycle_ends_at,
        row.supplied_from,
    )  # fmt: skip


def _terms(plan: TokenPlan, anchor: int) -> TokenTerms:
    day = plan["anchor_day"] or (anchor if plan["reset_interval"] == MONTHLY else 1)
    return TokenTerms(
        plan["total_amount"], plan["overage_policy"], plan["reset_interval"], plan["time_zone"], int(day)
    )
