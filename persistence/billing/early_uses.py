"""Plans that ended, and what is owed for tokens that their days did not pay for.

Noted with the change that ends a plan, and charged once the tenant's ledger says what was used.
"""

from __future__ import annotations

from collections import defaultdict
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
    amount_ahead,
    debt_end,
    plan_end,
    tokens_ahead,
    unit_price,
)
from gateway.core.billing.subscription import midnight
from persistence.billing import plan_turns
from persistence.billing.sold import TokenPlan, terms_of
from persistence.tables.billing import plan_end as table

# Ends of plans of one organization that become known together.
ENDS_MAX = 1_000

# Of `plan_end AS e` known are those whose writes are in the ledger: of debt that was carried on, the one that
# ended that, or a reset that forgave it. Nobody carries what is of a cycle that was over before.
KNOWN = """(e.is_gone OR EXISTS (SELECT FROM token_ledger AS w WHERE w.tenant_id = e.tenant_id
        AND w.transaction_type <> 'consume' AND w.control_write_id = e.control_write_id))
   AND (NOT e.carries
        OR e.debt_counted IS NOT NULL AND (e.debt_write_id IS NULL OR EXISTS (SELECT FROM token_ledger AS w
              WHERE w.tenant_id = e.tenant_id AND w.transaction_type <> 'consume'
                AND w.control_write_id = e.debt_write_id))
        OR EXISTS (SELECT FROM token_ledger AS w JOIN token_ledger AS r ON r.tenant_id = w.tenant_id
                    AND r.transaction_type = 'reset' AND CASE WHEN r.seq < w.seq
                        THEN r.created_at >= e.cycle_ends_at ELSE r.metadata->'forgiven' IS NOT NULL END
              WHERE w.tenant_id = e.tenant_id AND w.transaction_type <> 'consume'
                AND w.control_write_id = e.control_write_id))"""
_OPEN = text(f"""
SELECT e.id, e.anchor_date, e.paid_from FROM plan_end AS e
 WHERE e.organization_id = :organization AND e.quantity IS NULL AND {KNOWN}
 ORDER BY e.id LIMIT :count""")  # noqa: S608  # our own words
# Those that have come to something before, and may to another sum by what was told since a moment.
_TOLD = text("""
SELECT e.id, e.anchor_date, e.paid_from
  FROM unnest(cast(:tenants AS bigint[]), cast(:since AS timestamptz[])) AS n (tenant_id, since)
  JOIN plan_end AS e ON e.tenant_id = n.tenant_id AND coalesce(e.cycle_ends_at, 'infinity') > n.since
 WHERE e.organization_id = :organization AND e.used IS NOT NULL ORDER BY e.id""")
# All ends in cycles of a subscription: together they come to its fee at most.
_CYCLES = text("""
SELECT e.* FROM plan_end AS e
  JOIN (SELECT DISTINCT * FROM unnest(cast(:anchors AS date[]), cast(:cycles AS date[]))
          AS n (anchor_date, paid_from)) AS n USING (anchor_date, paid_from)
 WHERE e.organization_id = :organization ORDER BY e.id""")
_WAITING = text("""
SELECT DISTINCT organization_id FROM plan_end
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity IS NULL ORDER BY 1""")
_END_DEBT = text("""
UPDATE plan_end SET debt_write_id = cast(:write AS uuid), debt_ends_at = cast(:ends AS timestamptz),
       debt_counted = :counted
 WHERE tenant_id = :tenant AND carries AND debt_counted IS NULL""")
_SETTLE = text("""
UPDATE plan_end SET used = :used, debt = cast(:debt AS bigint), quantity = :quantity, amount = :amount,
       charges = charges + :charges WHERE id = :id""")

# What names a fact, and its charge.
EarlyCharge = tuple[str, Charge]
# Tenants of which something was told, and since when that was used.
Told = Mapping[int, datetime]


class Taken(NamedTuple):
    """Whose plan was taken by which control write; None of a tenant that was deleted.

    `anchor` is the day on which the tenant's months begin.
    """

    tenant_id: int
    organization_id: int
    write_id: UUID | None
    anchor: int


class Settled(NamedTuple):
    """What the end of a plan came to: tokens used, debt left, tokens ahead, money; a charge of the rest."""

    end_id: int
    used: int
    debt: int | None
    quantity: int
    amount: Decimal
    named: EarlyCharge | None


def note(connection: Connection, taken: Taken, ended: Ended, had: TokenPlan, then: TokenPlan | None) -> None:
    """Keep that a tenant's token plan was taken, where something can be owed for it."""
    found = plan_end(
        ended, terms_of(had, taken.anchor), None if then is None else terms_of(then, taken.anchor)
    )
    if found is None:
        return
    connection.execute(
        insert(table).values(
            organization_id=taken.organization_id, tenant_id=taken.tenant_id,
            control_write_id=taken.write_id or uuid4(), is_gone=taken.write_id is None,
            subscription_id=ended.subscription_id, anchor_date=ended.segment.anchor,
            paid_from=found.paid_from, cycle_ends_at=found.ends, total_amount=found.total,
            counted=found.counted, worth=found.worth, paid=found.paid, carries=found.carries,
            supplied_from=found.begins, supplied_until=ended.last_day + ONE_DAY,
        )
    )  # fmt: skip


def end_debt(
    connection: Connection, taken: Taken, ended: Ended | None, had: TokenPlan, then: TokenPlan | None
) -> None:
    """Have debt of earlier plans end with the one that carried it, where the next does not carry it on."""
    found = debt_end(
        ended, terms_of(had, taken.anchor), None if then is None else terms_of(then, taken.anchor)
    )
    if found is not None:
        here = {"tenant": taken.tenant_id, "write": taken.write_id, "ends": found.ends}
        connection.execute(_END_DEBT, {**here, "counted": found.counted})


def waiting(connection: Connection, organization_ids: Sequence[int]) -> list[int]:
    """Organizations with ends of plans that are not looked at yet, in the order of their ids."""
    return list(connection.execute(_WAITING, {"organizations": list(organization_ids)}).scalars())


def owed(connection: Connection, organization_id: int, told: Told | None = None) -> list[Settled]:
    """What ends of plans come to that is not noted of them; `told`: those of which was told."""
    here: dict[str, Any] = {"organization": organization_id}
    if told is None:
        looked = connection.execute(_OPEN, {**here, "count": ENDS_MAX}).all()
    else:
        those = {"tenants": list(told), "since": list(told.values())}
        looked = connection.execute(_TOLD, {**here, **those}).all()
    if not looked:
        return []
    wanted = {row.id for row in looked}
    cycles = {"anchors": [row.anchor_date for row in looked], "cycles": [row.paid_from for row in looked]}
    charged, carried = defaultdict[object, Decimal](Decimal), plan_turns.Lots(connection)
    found: list[Settled] = []
    for row in connection.execute(_CYCLES, {**here, **cycles}).all():
        cycle = (row.anchor_date, row.paid_from)
        if row.id in wanted:
            used, debt = plan_turns.read(connection, row, carried)
        elif row.used is not None:
            used, debt = row.used, row.debt
        else:  # not known yet, or settled before this was kept
            charged[cycle] += row.amount or 0
            continue
        end = _end(row, is_carried=debt is not None)
        ahead = tokens_ahead(end, used, charged[cycle])
        ahead = ahead if debt is None else min(ahead, debt)
        amount = amount_ahead(end, used, charged[cycle], debt)
        ahead = max(1, ahead) if amount else 0
        charged[cycle] += amount
        if (used, debt, ahead, amount) != (row.used, row.debt, row.quantity, row.amount):
            rest = (ahead - (row.quantity or 0), amount - (row.amount or 0))
            named = (_fact(row), _charge(row, end, *rest)) if rest[1] else None
            found.append(Settled(row.id, used, debt, ahead, amount, named))
    return found


def settle(connection: Connection, ends: Sequence[Settled]) -> None:
    """Note what ends of plans came to."""
    for each in ends:
        values = {
            "id": each.end_id, "used": each.used, "debt": each.debt, "quantity": each.quantity,
            "amount": each.amount, "charges": int(each.named is not None),
        }  # fmt: skip
        connection.execute(_SETTLE, values)


def _fact(row: Any) -> str:
    """What names a difference of the end of a plan: the first one is the end's own."""
    return f"early:{row.control_write_id}" + (f":{row.charges}" if row.charges else "")


def _charge(row: Any, end: PlanEnd, ahead: int, amount: Decimal) -> Charge:
    span = (midnight(row.supplied_from), midnight(row.supplied_until))
    return Charge(
        EARLY_USE, *span, Decimal(ahead), unit_price(end), amount, SUBSCRIPTION, row.subscription_id,
        tenant_id=row.tenant_id,
    )  # fmt: skip


def _end(row: Any, *, is_carried: bool) -> PlanEnd:
    counted = row.counted if is_carried or not row.carries else 0
    return PlanEnd(
        row.total_amount, counted, row.worth, row.paid, row.paid_from, row.cycle_ends_at, row.supplied_from,
        row.carries,
    )  # fmt: skip
