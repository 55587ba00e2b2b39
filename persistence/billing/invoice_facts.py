"""What invoices say besides their charges: what they are called, what earlier ones billed of the same.

Charges are gathered, never computed again from what they are for. Each statement reads of many organizations.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any, NamedTuple

from sqlalchemy import Connection, text

from gateway.core.billing.charge import ADDITION, SEGMENT, USAGE, Charge
from gateway.core.billing.invoice import Facts, Fee
from persistence.billing import tax_rates
from persistence.billing.segments import segment_of

_WANTED = """unnest(cast(:organizations AS bigint[]), cast(:starts AS date[]), cast(:ends AS date[]))
    AS w (organization_id, start, until)"""
# Uses since then stand behind the next invoice, unless one covers them already.
_ORGANIZATIONS = text(f"""
SELECT o.id, o.name, o.currency, o.tax_rate, o.address, o.country, o.tax_number, o.due_days,
       (SELECT coalesce(sum(u.credits - u.billed_credits), 0)::bigint FROM usage_daily AS u
         WHERE u.organization_id = o.id AND u.day < w.until AND u.credits <> u.billed_credits) AS consumed,
       least(w.start, (SELECT min(u.day) FROM usage_daily AS u WHERE u.organization_id = o.id),
             (SELECT min(u.supplied_on) FROM usage_told AS u WHERE u.organization_id = o.id)) AS since
  FROM {_WANTED} JOIN organization AS o ON o.id = w.organization_id""")  # noqa: S608  # our own words
_FEES = text("""
SELECT s.*, p.name FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
 WHERE s.id = ANY(cast(:ids AS bigint[]))""")
_NAMES = {
    "tenant": text("SELECT id, name FROM tenant WHERE id = ANY(cast(:ids AS bigint[]))"),
    "service": text("SELECT id, name FROM service WHERE id = ANY(cast(:ids AS bigint[]))"),
    "addition": text("SELECT id, remark AS name FROM credit_addition WHERE id = ANY(cast(:ids AS bigint[]))"),
}
_CARRIED = text("""
SELECT i.organization_id, l.basis, sum(l.exact - l.amount) AS rest
  FROM invoice AS i JOIN invoice_line AS l ON l.invoice_id = i.id AND l.exact IS NOT NULL
 WHERE i.organization_id = ANY(cast(:organizations AS bigint[])) AND i.status = 'finalized'
 GROUP BY 1, 2 HAVING sum(l.exact - l.amount) <> 0""")
# How many units of each month were billed: all of it counts for their place in it. What is billed is asked of
# the organization's own charges: by an index of invoices, those of everybody were read while few were billed.
_UNITS_BEFORE = text("""
SELECT c.organization_id, c.service_id, date_trunc('month', c.period_start, 'UTC')::date AS month,
       sum(c.quantity)::bigint AS units
  FROM unnest(cast(:organizations AS bigint[]), cast(:since AS date[])) AS w (organization_id, since)
  JOIN charge AS c ON c.organization_id = w.organization_id AND c.kind = 'usage'
   AND num_nulls(c.invoice_id) = 0 AND c.unit_price <> 0.000000001
   AND c.reason NOT IN ('credited', 'credit_void')
   AND c.period_start >= cast(w.since AS timestamp) AT TIME ZONE 'UTC'
 GROUP BY 1, 2, 3""")


class Gathered(NamedTuple):
    """The charges that an organization's invoice takes, and the days it is of (the last not included)."""

    organization_id: int
    start: date
    until: date
    charges: Sequence[Charge]


class Known(NamedTuple):
    """What an invoice is made of, its organization's row, and the first day of the uses behind it."""

    facts: Facts
    organization: Any
    since: date


def read_facts(connection: Connection, wanted: Sequence[Gathered]) -> dict[int, Known]:
    """All that is said of charges, by organization; each has one invoice."""
    every = [charge for each in wanted for charge in each.charges]
    ids = [each.organization_id for each in wanted]
    dated = tax_rates.read(connection, ids)
    fees, names = _fees(connection, every), _all_names(connection, every)
    rest, before = _carried(connection, ids), _units_before(connection, wanted)
    rows = {row.id: row for row in connection.execute(_ORGANIZATIONS, _spans(wanted))}
    found = {}
    for of, start, until, charges in wanted:
        row, taxes = rows[of], dated.get(of, ())
        facts = Facts(
            currency=row.currency,
            tax_rate=row.tax_rate.normalize(),
            taxes=taxes,
            taxed_before=tax_rates.billed_with(connection, of, charges) if taxes else {},
            until=until,
            charges=charges,
            credits_consumed=row.consumed,
            fees=fees,
            tenants=names["tenant"],
            services=names["service"],
            remarks=names["addition"],
            carried=rest.get(of, {}),
            units_before=before.get(of, {}),
            since=start,
        )
        found[of] = Known(facts, row, row.since)
    return found


def _spans(wanted: Iterable[Gathered]) -> dict[str, Any]:
    ids, starts, ends, _ = (list(column) for column in zip(*wanted, strict=True))
    return {"organizations": ids, "starts": starts, "ends": ends}


def _carried(connection: Connection, organization_ids: Sequence[int]) -> Mapping[int, Mapping[str, Decimal]]:
    """What each basis was billed exactly, less what its lines came to."""
    found = defaultdict[int, dict[str, Decimal]](dict)
    for row in connection.execute(_CARRIED, {"organizations": organization_ids}):
        found[row.organization_id][row.basis] = row.rest
    return found


def _fees(connection: Connection, charges: Iterable[Charge]) -> dict[int, Fee]:
    ids = sorted({charge.source_id for charge in charges if charge.source == SEGMENT and charge.source_id})
    found = connection.execute(_FEES, {"ids": ids}) if ids else ()
    return {row.id: Fee(segment_of(row), row.name) for row in found}


def _all_names(connection: Connection, charges: Sequence[Charge]) -> dict[str, dict[int, str]]:
    of = {
        "tenant": {charge.tenant_id for charge in charges},
        "service": {charge.service_id for charge in charges},
        "addition": {charge.source_id for charge in charges if charge.source == ADDITION},
    }
    return {what: _names(connection, what, ids) for what, ids in of.items()}


def _names(connection: Connection, what: str, ids: set[int | None]) -> dict[int, str]:
    wanted = sorted(id_ for id_ in ids if id_)
    found = connection.execute(_NAMES[what], {"ids": wanted}) if wanted else ()
    return {row.id: row.name for row in found if row.name}


def _units_before(
    connection: Connection, wanted: Iterable[Gathered]
) -> Mapping[int, Mapping[tuple[int | None, date], int]]:
    first = {
        each.organization_id: min(charge.day for charge in each.charges if charge.kind == USAGE)
        for each in wanted
        if _has_units(each)
    }
    found = defaultdict[int, dict[tuple[int | None, date], int]](dict)
    if first:
        since = [day.replace(day=1) for day in first.values()]
        for row in connection.execute(_UNITS_BEFORE, {"organizations": list(first), "since": since}):
            found[row.organization_id][row.service_id, row.month] = row.units
    return found


def _has_units(gathered: Gathered) -> bool:
    return any(charge.kind == USAGE for charge in gathered.charges)
