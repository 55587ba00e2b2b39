"""Units reported after their day of supply, and corrections: by days, in a roll-up.

They are charged by the day of their supply, so that they have its tax. This knows nothing of prices or taxes.
"""

from __future__ import annotations

from datetime import date

from gateway.core.accounts.outbox import EventKind, OutboxEntry
from gateway.core.times import DAY_MS
from persistence.ledger.rows import metadata_in
from persistence.ledger.statements import SUM_MAX, added

_CORRECTS = int(EventKind.ADJUST)
_FIRST_DAY = date(1970, 1, 1).toordinal()
# A correction belongs to the day of its charge; if no row has that day, to the day it was reported on.
ROLL_UP = f"""
INSERT INTO usage_told AS u (tenant_id, day, service_id, unit_price, supplied_on, told_on, is_back,
                            organization_id, quantity)
SELECT t, d, s, p, CASE WHEN b AND NOT EXISTS (
           SELECT FROM usage_told AS o WHERE o.tenant_id = t AND o.day = l AND o.service_id = s
              AND o.unit_price = p AND o.supplied_on = w AND NOT o.is_back) THEN l ELSE w END AS supplied_on,
       l, b, o, greatest(least(sum(q), {SUM_MAX}), -{SUM_MAX})::bigint
  FROM (SELECT t, date '1970-01-01' + d AS d, s, p, date '1970-01-01' + w AS w, date '1970-01-01' + l AS l,
               b, o, q
          FROM unnest(%s::bigint[], %s::integer[], %s::bigint[], %s::numeric[], %s::integer[],
                      %s::integer[], %s::boolean[], %s::bigint[], %s::bigint[])
            AS n (t, d, s, p, w, l, b, o, q)) AS n
 GROUP BY t, d, s, p, 5, l, b, o ORDER BY t, d, s, p, 5, l, b
ON CONFLICT (tenant_id, day, service_id, unit_price, supplied_on, told_on, is_back)
DO UPDATE SET quantity = {added("quantity")}"""


def supplied_day(event: OutboxEntry) -> int:
    """Return the UTC day of a use, in days since 1970; a late report counts on its own day, never ahead."""
    day = event.at_ms // DAY_MS
    if event.facts is not None:
        return min(day, event.facts.used_ms // DAY_MS) if event.facts.used_ms else day
    return _day_in(event, "supplied_on", day)


def report_day(event: OutboxEntry) -> int:
    """Return the UTC day, in days since 1970, on which a use, or the use that is refunded, was counted."""
    day = event.at_ms // DAY_MS
    return _day_in(event, "told_on", day) if event.units < 0 and event.facts is None else day


def _day_in(event: OutboxEntry, name: str, day: int) -> int:
    """Return the day that a correction's metadata has under `name`, at most `day`; without one, `day`."""
    if event.kind != _CORRECTS or f'"{name}"'.encode() not in event.metadata:
        return day
    try:
        said = date.fromisoformat(str(metadata_in(event.metadata).get(name)))
    except ValueError:  # nobody of ours wrote it
        return day
    return min(day, said.toordinal() - _FIRST_DAY)
