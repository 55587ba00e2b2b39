"""Days of subscriptions as charges: those that are not charged yet, and those that a segment lost."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from gateway.core.billing.charge import FEE, ONE_DAY, Charge, charged_until, day_fees, fee_charge
from gateway.core.billing.subscription import Segment
from persistence.billing.segments import segment_of

_SEGMENTS = text("""
SELECT * FROM subscription_segment WHERE organization_id = ANY(cast(:organizations AS bigint[]))
 ORDER BY organization_id, start_date, id""")
# What the days of segments were charged from one on: net, and by facts alone.
_DAYS = text("""
SELECT c.source_id, c.kind, (c.period_start AT TIME ZONE 'UTC')::date AS day, count(*) AS rows,
       coalesce(sum(c.quantity) FILTER (WHERE c.reason NOT IN ('credited', 'credit_void')), 0) AS quantity,
       coalesce(sum(c.amount) FILTER (WHERE c.reason NOT IN ('credited', 'credit_void')), 0) AS amount
  FROM unnest(cast(:segments AS bigint[]), cast(:since AS date[])) AS s (id, since)
  JOIN charge AS c ON c.source = 'subscription_segment' AND c.source_id = s.id
   AND c.period_start >= cast(s.since AS timestamp) AT TIME ZONE 'UTC' GROUP BY 1, 2, 3""")
# Days that a segment lost, and are charged to somebody or given back too often.
_LOST = text("""
SELECT s.organization_id, c.source_id, c.kind, (c.period_start AT TIME ZONE 'UTC')::date AS day,
       count(*) AS rows, sum(c.quantity) AS quantity, sum(c.amount) AS amount
  FROM subscription_segment AS s
  JOIN charge AS c ON c.source = 'subscription_segment' AND c.source_id = s.id
   AND c.period_start >= cast(s.end_date AS timestamp) AT TIME ZONE 'UTC'
 WHERE s.organization_id = ANY(cast(:organizations AS bigint[]))
 GROUP BY 1, 2, 3, 4 HAVING sum(c.quantity) <> 0 OR sum(c.amount) <> 0 ORDER BY 1, 2, 3, 4""")
_MOVE = text("""
UPDATE subscription_segment AS s SET charged_until = n.until
  FROM unnest(cast(:segments AS bigint[]), cast(:until AS date[])) AS n (id, until) WHERE s.id = n.id""")
_ADD = text("""
INSERT INTO charge (organization_id, kind, period_start, period_end, quantity, unit_price, amount, currency,
                    source, source_id, reason, fact, tenant_id)
SELECT o.id, n.kind, n.start, n.upto, n.quantity, n.unit_price, n.amount, o.currency, n.source, n.source_id,
       :reason, n.fact, n.tenant_id
  FROM unnest(cast(:organizations AS bigint[]), cast(:kinds AS text[]), cast(:starts AS timestamptz[]),
              cast(:ends AS timestamptz[]), cast(:quantities AS numeric[]), cast(:unit_prices AS numeric[]),
              cast(:amounts AS numeric[]), cast(:sources AS text[]), cast(:source_ids AS bigint[]),
              cast(:facts AS text[]), cast(:tenants AS bigint[])) WITH ORDINALITY
    AS n (organization_id, kind, start, upto, quantity, unit_price, amount, source, source_id, fact,
          tenant_id, place)
  JOIN organization AS o ON o.id = n.organization_id ORDER BY n.place
ON CONFLICT (fact) DO NOTHING""")


class NamedCharge(NamedTuple):
    """A charge, whose it is, and what names its fact."""

    organization_id: int
    fact: str
    charge: Charge


class SegmentDue(NamedTuple):
    """A segment that has something to charge, and up to which day it is charged then."""

    segment_id: int
    upto: date


def rows_of(connection: Connection, organization_ids: Sequence[int]) -> Sequence[Any]:
    """All segments of organizations, each one's in the order of their days."""
    return connection.execute(_SEGMENTS, {"organizations": list(organization_ids)}).all()


def fees(
    connection: Connection, segments: Iterable[Any], until: date, *, today: date
) -> tuple[list[SegmentDue], list[NamedCharge]]:
    """Of each segment that has something: up to where it is charged then; and the days that are not yet.

    In advance, cycles that have begun today are charged, and what replaces days that were charged and lost.
    """
    rows, begun = list(segments), defaultdict[int, date](lambda: today + ONE_DAY)
    for row in rows:
        if row.charged_until is not None and row.charged_until > row.end_date:
            begun[row.organization_id] = max(begun[row.organization_id], row.charged_until)
    moved, open_ = [], []
    for row in rows:
        segment, at = segment_of(row), row.charged_until or row.start_date
        upto = max(min(at, segment.end), charged_until(segment, until, begun[row.organization_id]))
        if upto != row.charged_until and (upto > row.start_date or row.charged_until is not None):
            moved.append(SegmentDue(segment.id, upto))
            if upto > at:
                open_.append((row.organization_id, segment, at, upto))
    seen = _seen(connection, [(segment.id, at) for _, segment, at, _ in open_])
    found = []
    for organization_id, segment, at, upto in open_:
        for fee in day_fees(segment, at, upto):
            rest, number = _not_yet(fee, segment, seen)
            if rest is not None:
                found.append(NamedCharge(organization_id, fact_of(fee, number), rest))
    return moved, found


def _not_yet(
    fee: Charge, segment: Segment, seen: dict[tuple[int, str, date], Any]
) -> tuple[Charge | None, int]:
    """What of a day's fee is not charged, and how many rows there are of it."""
    known = seen.get((segment.id, fee.kind, fee.day))
    if known is None:
        return fee, 0
    if known.quantity == 1:
        return None, 0
    rest = fee_charge(fee.kind, segment.id, fee.day, 1 - known.quantity, fee.amount - known.amount)
    return rest, known.rows


def _seen(connection: Connection, since: Sequence[tuple[int, date]]) -> dict[tuple[int, str, date], Any]:
    if not since:
        return {}
    segments, days = (list(column) for column in zip(*since, strict=True))
    rows = connection.execute(_DAYS, {"segments": segments, "since": days})
    return {(row.source_id, row.kind, row.day): row for row in rows}


def lost(connection: Connection, organization_ids: Sequence[int]) -> list[NamedCharge]:
    """What brings days that segments lost to nothing."""
    found = []
    for row in connection.execute(_LOST, {"organizations": list(organization_ids)}):
        charge = fee_charge(row.kind, row.source_id, row.day, -row.quantity, -row.amount)
        found.append(NamedCharge(row.organization_id, fact_of(charge, row.rows), charge))
    return found


def move(connection: Connection, moved: Sequence[SegmentDue]) -> None:
    """Note up to where segments are charged."""
    if moved:
        segments, days = (list(column) for column in zip(*moved, strict=True))
        connection.execute(_MOVE, {"segments": segments, "until": days})


def add(connection: Connection, named: Sequence[NamedCharge], reason: str) -> None:
    """Write charges, each fact once."""
    if not named:
        return
    charges = [each.charge for each in named]
    connection.execute(_ADD, {
        "organizations": [each.organization_id for each in named], "facts": [each.fact for each in named],
        "kinds": [each.kind for each in charges], "starts": [each.start for each in charges],
        "ends": [each.end for each in charges], "quantities": [Decimal(each.quantity) for each in charges],
        "unit_prices": [each.unit_price for each in charges], "amounts": [each.amount for each in charges],
        "tenants": [each.tenant_id for each in charges], "sources": [each.source for each in charges],
        "source_ids": [each.source_id for each in charges], "reason": reason,
    })  # fmt: skip


def fact_of(fee: Charge, number: int) -> str:
    """What names a day of a segment."""
    what = "segment" if fee.kind == FEE else fee.kind
    return f"{what}:{fee.source_id}:{fee.day}:{number}"
