"""What is missing to the minimum that a cycle of a subscription comes to, once the cycle is over.

What is told late counts where it was supplied: then some of what was charged is given back, by a row.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal
from itertools import accumulate

from sqlalchemy import Connection, text

from gateway.core.billing.charge import COMMITMENT, COMMITTED, SUBSCRIPTION, Charge, part_of
from gateway.core.billing.subscription import Segment, cycle_of, midnight
from persistence.billing.segments import segment_of

_SEGMENTS = text("""
SELECT * FROM subscription_segment AS s
 WHERE organization_id = :organization AND end_date > start_date
   AND EXISTS (SELECT FROM subscription_segment AS m
                WHERE m.organization_id = s.organization_id AND m.anchor_date = s.anchor_date
                  AND m.minimum_commitment IS NOT NULL)
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
    charged = connection.execute(_CHARGED, here | wanted).all()
    had = {row.day: row for row in charged if row.kind == COMMITMENT}
    of_days = [(row.day, row.amount) for row in charged if row.kind != COMMITMENT]
    of_days += [(each.day, each.amount) for each in more if each.kind in COMMITTED]
    of_days.sort()
    days, sums = [day for day, _ in of_days], [*accumulate((sum_ for _, sum_ in of_days), initial=Decimal(0))]
    found = []
    for first, end, least in _cycles(segments, until):
        came_to = sums[bisect_left(days, end)] - sums[bisect_left(days, first)]
        rest = max(least - came_to, Decimal(0)) if least else least
        rows = 0
        if first in had:
            rest, rows = rest - had[first].amount, had[first].rows
        if rest:
            charge = Charge(
                COMMITMENT, midnight(first), midnight(end), Decimal(1 if rest > 0 else -1), abs(rest), rest,
                SUBSCRIPTION, subscription_id,
            )  # fmt: skip
            found.append((f"commitment:{subscription_id}:{first}:{rows}", charge))
    return found


def _cycles(segments: Sequence[Segment], until: date) -> list[tuple[date, date, Decimal]]:
    """Cycles that are over, as far as they were in force, and what each comes to at least."""
    found = []
    for anchor in sorted({segment.anchor for segment in segments}):
        term = [segment for segment in segments if segment.anchor == anchor]
        end, day = max(segment.end for segment in term), anchor
        while day < min(end, until):
            first, following = cycle_of(anchor, term[-1].interval, day)
            over, whole = min(following, end), (following - first).days
            if over <= until:
                least = sum((_least(each, first, over, whole) for each in term), Decimal(0))
                found.append((first, over, least))
            day = following
    return found


def _least(segment: Segment, first: date, over: date, whole: int) -> Decimal:
    """What the days that a segment has of a cycle come to at least: a trial owes nothing."""
    begins = max(first, segment.start, min(segment.terms.trial_end or first, over))
    days = (min(over, segment.end) - begins).days
    least = segment.terms.minimum_commitment
    return Decimal(0) if least is None or days <= 0 else part_of(least, (begins - first).days, days, whole)
