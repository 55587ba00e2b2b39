"""What is missing to the minimum that a cycle of a subscription comes to, once the cycle is over.

What is told late counts where it was supplied: then some of what was charged is given back, by a row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from decimal import Decimal

from sqlalchemy import Connection, text

from gateway.core.billing.charge import COMMITMENT, COMMITTED, SUBSCRIPTION, Charge, part_of
from gateway.core.billing.subscription import Segment, cycle_of, midnight
from persistence.billing.segments import segment_of

_SEGMENTS = text("""
SELECT * FROM subscription_segment
 WHERE organization_id = :organization AND minimum_commitment IS NOT NULL AND end_date > start_date
 ORDER BY start_date, id""")
_SUBSCRIPTION = text("SELECT id FROM organization_subscription WHERE organization_id = :organization")
# By day of supply; credit notes stand aside.
_CHARGED = text("""
SELECT (period_start AT TIME ZONE 'UTC')::date AS day, kind, sum(amount) AS amount, count(*) AS rows
  FROM charge
 WHERE organization_id = :organization AND kind = ANY(cast(:kinds AS text[]))
   AND reason NOT IN ('credited', 'credit_void')
   AND period_start >= cast(cast(:since AS date) AS timestamp) AT TIME ZONE 'UTC'
 GROUP BY 1, 2""")


def missing(
    connection: Connection, organization_id: int, until: date, more: Iterable[Charge]
) -> list[tuple[str, Charge]]:
    """Charges for the cycles that ended up to a day, or rather what theirs come to less what they have.

    `more` are charges that are not written yet. Each comes with the name of its fact.
    """
    here = {"organization": organization_id}
    segments = [segment_of(row) for row in connection.execute(_SEGMENTS, here)]
    if not segments:
        return []
    subscription_id = connection.execute(_SUBSCRIPTION, here).scalar_one()
    wanted = {"kinds": [*COMMITTED, COMMITMENT], "since": segments[0].start}
    sums: dict[tuple[bool, date], Decimal] = {}
    rows: dict[date, int] = {}
    for row in connection.execute(_CHARGED, here | wanted):
        place = (row.kind == COMMITMENT, row.day)
        sums[place] = sums.get(place, Decimal(0)) + row.amount
        if row.kind == COMMITMENT:
            rows[row.day] = row.rows
    for each in more:
        if each.kind in COMMITTED:
            sums[False, each.day] = sums.get((False, each.day), Decimal(0)) + each.amount
    found = []
    for first, end, least in _cycles(segments, until):
        came_to = sum(
            (amount for (own, day), amount in sums.items() if not own and first <= day < end), Decimal(0)
        )
        rest = max(least - came_to, Decimal(0)) - sums.get((True, first), Decimal(0))
        if rest:
            charge = Charge(
                COMMITMENT, midnight(first), midnight(end), Decimal(1 if rest > 0 else -1), abs(rest), rest,
                SUBSCRIPTION, subscription_id,
            )  # fmt: skip
            found.append((f"commitment:{subscription_id}:{first}:{rows.get(first, 0)}", charge))
    return found


def _cycles(segments: Sequence[Segment], until: date) -> list[tuple[date, date, Decimal]]:
    """Cycles that are over, as far as they were in force, and what each comes to at least."""
    found = []
    for anchor in sorted({segment.anchor for segment in segments}):
        term = [segment for segment in segments if segment.anchor == anchor]
        least, end = term[-1].terms.minimum_commitment, max(segment.end for segment in term)
        day = anchor
        while least is not None and day < min(end, until):
            first, following = cycle_of(anchor, term[-1].interval, day)
            over = min(following, end)
            if over <= until:
                # A trial owes nothing, and what it has of a cycle none of its minimum.
                begins = max(first, min(term[-1].terms.trial_end or first, over))
                whole, before = (following - first).days, (begins - first).days
                found.append((first, over, part_of(least, before, (over - begins).days, whole)))
            day = following
    return [(first, over, part) for first, over, part in found if over - first >= timedelta(days=1)]
