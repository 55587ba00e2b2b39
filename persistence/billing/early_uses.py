"""Plans that ended, and what is owed for tokens that their days did not pay for.

Noted with the change that ends a plan, and charged once the tenant's ledger says what was used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from itertools import groupby
from typing import Any, NamedTuple
from uuid import UUID, uuid4

from sqlalchemy import Connection, insert, text

from gateway.core.billing.charge import EARLY_USE, ONE_DAY, SUBSCRIPTION, Charge
from gateway.core.billing.early_use import (
    ALL,
    BILL,
    Ahead,
    Ended,
    Used,
    ahead,
    days_of,
    debt_end,
    fees_of,
    plan_end,
    token_cycle,
)
from gateway.core.billing.subscription import Segment, midnight
from persistence.billing import fee_charges, plan_turns
from persistence.billing.segments import segment_of
from persistence.billing.sold import TokenPlan, terms_of
from persistence.tables import plan_end as table

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
SELECT e.id, e.paid_from, e.cycle_ends_at FROM plan_end AS e
 WHERE e.organization_id = :organization AND e.quantity IS NULL AND {KNOWN}
 ORDER BY e.id LIMIT :count""")  # noqa: S608  # our own words
# Those that have come to something before, and may to another sum by what was told since a moment.
_TOLD = text("""
SELECT e.id, e.paid_from, e.cycle_ends_at
  FROM unnest(cast(:tenants AS bigint[]), cast(:since AS timestamptz[])) AS n (tenant_id, since)
  JOIN plan_end AS e ON e.tenant_id = n.tenant_id AND coalesce(e.cycle_ends_at, 'infinity') > n.since
 WHERE e.organization_id = :organization AND e.used IS NOT NULL ORDER BY e.id""")
# Cycles of which days or plans are others from a day on.
_MOVED = text("""
SELECT DISTINCT paid_from, cycle_ends_at FROM plan_end
 WHERE organization_id = :organization AND coalesce(cycle_ends_at, 'infinity') > :since AND used IS NOT NULL
 ORDER BY 1, 2""")
# All ends in cycles: each of their tokens is owed once.
_CYCLES = text("""
SELECT e.* FROM plan_end AS e
  JOIN (SELECT DISTINCT * FROM unnest(cast(:days AS date[]), cast(:ends AS timestamptz[])) AS n (day, ends))
    AS n
    ON n.day = e.paid_from AND n.ends IS NOT DISTINCT FROM e.cycle_ends_at
 WHERE e.organization_id = :organization ORDER BY e.paid_from, e.cycle_ends_at, e.id""")
_WAITING = text("""
SELECT DISTINCT organization_id FROM plan_end
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) AND quantity IS NULL ORDER BY 1""")
_END_DEBT = text("""
UPDATE plan_end SET debt_write_id = cast(:write AS uuid), debt_ends_at = cast(:ends AS timestamptz),
       debt_counted = :counted
 WHERE tenant_id = :tenant AND carries AND debt_counted IS NULL""")
_REGAIN = text("""
UPDATE plan_end SET regained = greatest(coalesce(regained, 0), :tokens)
 WHERE tenant_id = :tenant AND paid_from = :day
   AND cycle_ends_at IS NOT DISTINCT FROM cast(:ends AS timestamptz)
   AND counted < :tokens AND coalesce(regained, 0) < :tokens""")
_SETTLE = text("""
UPDATE plan_end SET used = :used, began = :began, debt = cast(:debt AS bigint), quantity = :quantity,
       amount = :amount, charges = charges + :charges WHERE id = :id""")

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
    """What the end of a plan came to: what its ledger says, tokens ahead, money; and a charge of the rest."""

    end_id: int
    read: plan_turns.Read
    ahead: Ahead
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
            counted=found.counted, worth=found.worth, paid=found.paid, paid_until=found.until,
            carries=found.carries, supplied_from=found.begins, supplied_until=ended.last_day + ONE_DAY,
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


def regain(connection: Connection, taken: Taken, then: TokenPlan, anchor: date, at: datetime) -> None:
    """Note with plans that ended in the cycle that a tenant has their tokens again, or more of them.

    `anchor` is the first day of its subscription.
    """
    terms = terms_of(then, taken.anchor)
    day, ends = token_cycle(terms, anchor, at)
    # Of a plan that bills what is beyond it is owed there.
    tokens = ALL if terms.policy == BILL else ALL - 1 if terms.total is None else terms.total
    connection.execute(_REGAIN, {"tenant": taken.tenant_id, "day": day, "ends": ends, "tokens": tokens})


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
    return _owed(connection, organization_id, looked, {row.id for row in looked})


def moved(connection: Connection, organization_id: int, since: date) -> list[Settled]:
    """The same, where what was used is known, and days or plans since a day are others than they were."""
    here = {"organization": organization_id, "since": midnight(since)}
    return _owed(connection, organization_id, connection.execute(_MOVED, here).all(), set())


def settle(connection: Connection, ends: Sequence[Settled]) -> None:
    """Note what ends of plans came to."""
    for each in ends:
        values = {
            "id": each.end_id, "used": each.read.used, "began": each.read.began, "debt": each.read.debt,
            "quantity": each.ahead.tokens, "amount": each.ahead.amount,
            "charges": int(each.named is not None),
        }  # fmt: skip
        connection.execute(_SETTLE, values)


def _owed(
    connection: Connection, organization_id: int, cycles: Sequence[Any], unread: set[int]
) -> list[Settled]:
    """What all ends of cycles come to; the ledger is asked about those that are unread."""
    if not cycles:
        return []
    wanted = {"days": [row.paid_from for row in cycles], "ends": [row.cycle_ends_at for row in cycles]}
    rows = connection.execute(_CYCLES, {"organization": organization_id, **wanted}).all()
    segments = [segment_of(row) for row in fee_charges.rows_of(connection, [organization_id])]
    carried, found = plan_turns.Lots(connection), list[Settled]()
    for _, cycle in groupby(rows, key=lambda row: (row.paid_from, row.cycle_ends_at)):
        ends, before = list[tuple[Any, plan_turns.Read]](), Decimal(0)
        for row in cycle:
            if row.id in unread:
                ends.append((row, plan_turns.read(connection, row, carried)))
            elif row.used is not None:
                ends.append((row, plan_turns.Read(row.used, row.began, row.debt)))
            else:  # not known yet, or settled before this was kept
                before += row.amount or 0
        found += _settled(ends, segments, before)
    return found


def _settled(
    ends: Sequence[tuple[Any, plan_turns.Read]], segments: Sequence[Segment], before: Decimal
) -> Iterator[Settled]:
    """What the ends of a cycle come to that is not noted of them."""
    if not ends:
        return
    (row, _), used = ends[-1], [_used(*each, segments) for each in ends]
    # The plan that runs on, or the last one that did.
    runs, whole = segments[0], (row.paid_from, row.paid_from)
    for each in segments:
        days = days_of(each, row.paid_from, row.cycle_ends_at, used[-1].until)
        if each.start < days[1]:
            runs, whole = each, days

    def fees(until: date | None) -> Decimal:
        return fees_of(segments, row.paid_from, whole[1] if until is None else until) + before

    # By the cycles of before: the same fee is worth the same.
    as_before = replace(runs, anchor=row.anchor_date, start=whole[0], end=whole[1])
    owed = ahead(used, fees, fees_of([as_before], *whole))
    for (end, read), due in zip(ends, owed, strict=True):
        noted = (end.used, end.began, end.debt, end.quantity, end.amount)
        if (*read, due.tokens, due.amount) != noted:
            tokens, amount = due.tokens - (end.quantity or 0), due.amount - (end.amount or 0)
            named = (_fact(end), _charge(end, Ahead(tokens, amount, due.unit_price))) if amount else None
            yield Settled(end.id, read, due, named)


def _used(row: Any, read: plan_turns.Read, segments: Sequence[Segment]) -> Used:
    # Where nobody carried it on, its cycle was over before the plan went.
    counted = row.counted if read.debt is not None or not row.carries else 0
    # A keeper of before did not note it.
    ended = (each.end for each in segments if each.anchor == row.anchor_date)
    until = row.paid_until or max((day for day in ended if day <= row.supplied_until), default=row.paid_from)
    return Used(
        row.tenant_id, read.began, until, row.total_amount, row.worth, read.used, counted, row.regained,
        read.debt,
    )  # fmt: skip


def _fact(row: Any) -> str:
    """What names a difference of the end of a plan: the first one is the end's own."""
    return f"early:{row.control_write_id}" + (f":{row.charges}" if row.charges else "")


def _charge(row: Any, rest: Ahead) -> Charge:
    span = (midnight(row.supplied_from), midnight(row.supplied_until))
    return Charge(
        EARLY_USE, *span, Decimal(rest.tokens), rest.unit_price, rest.amount, SUBSCRIPTION,
        row.subscription_id, tenant_id=row.tenant_id,
    )  # fmt: skip
