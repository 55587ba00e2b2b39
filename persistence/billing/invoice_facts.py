"""What an invoice says besides its charges: what they are called, what earlier ones billed of the same.

Charges are gathered, never computed again from what they are for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import Connection, text

from gateway.core.billing.charge import ADDITION, SEGMENT, UNITS, Charge
from gateway.core.billing.invoice import Facts, Fee
from gateway.core.billing.subscription import midnight
from persistence.billing import tax_rates
from persistence.billing.segments import segment_of

_ORGANIZATION = text("SELECT currency, tax_rate FROM organization WHERE id = :organization")
# Uses since then stand behind the next invoice, unless one covers them already.
SINCE = """
SELECT least(cast(:start AS date), min(day)) FROM usage_daily WHERE organization_id = :organization"""
_SINCE = text(SINCE)
_FEES = text("""
SELECT s.*, p.name FROM subscription_segment AS s JOIN subscription_plan AS p ON p.id = s.plan_id
 WHERE s.id = ANY(cast(:ids AS bigint[]))""")
_NAMES = {
    "tenant": text("SELECT id, name FROM tenant WHERE id = ANY(cast(:ids AS bigint[]))"),
    "service": text("SELECT id, name FROM service WHERE id = ANY(cast(:ids AS bigint[]))"),
    "addition": text("SELECT id, remark AS name FROM credit_addition WHERE id = ANY(cast(:ids AS bigint[]))"),
}
_CARRIED = text("""
SELECT l.basis, sum(l.exact - l.amount) AS rest
  FROM invoice AS i JOIN invoice_line AS l ON l.invoice_id = i.id AND l.exact IS NOT NULL
 WHERE i.organization_id = :organization AND i.status = 'finalized'
 GROUP BY 1 HAVING sum(l.exact - l.amount) <> 0""")
_CONSUMED = text("""
SELECT coalesce(sum(credits - billed_credits), 0)::bigint FROM usage_daily
 WHERE organization_id = :organization AND day < :until_day AND credits <> billed_credits""")
# How many units of each month were billed: all of it counts for their place in it.
_UNITS_BEFORE = text("""
SELECT service_id, date_trunc('month', period_start, 'UTC')::date AS month, sum(quantity)::bigint AS units
  FROM charge
 WHERE organization_id = :organization AND kind = 'usage' AND invoice_id IS NOT NULL
   AND unit_price <> 0.000000001 AND reason NOT IN ('credited', 'credit_void')
   AND period_start >= cast(cast(:since AS date) AS timestamp) AT TIME ZONE 'UTC'
 GROUP BY 1, 2""")

# Units of events that were told within a period, and used before it.
_USED_BEFORE = text("""
SELECT e.service_id, sum(f.usage_amount)::bigint AS units
  FROM use_event AS e JOIN feature_usage AS f ON f.request_id = e.request_id
   AND f.organization_id = e.organization_id
 WHERE e.organization_id = :organization AND f."timestamp" < :until_day
   AND f."timestamp" >= :start AND e.used_at < :start
 GROUP BY 1 HAVING sum(f.usage_amount) > 0""")


def read_facts(
    connection: Connection, organization_id: int, start: date, end: date, charges: Sequence[Charge]
) -> tuple[Facts, date]:
    """Charges up to `end` (not included) with all that is said of them, and the first day of the uses
    behind them.
    """
    here: dict[str, Any] = {"organization": organization_id, "start": start, "until_day": end}
    organization = connection.execute(_ORGANIZATION, here).one()
    dated = tax_rates.read(connection, organization_id)
    facts = Facts(
        currency=organization.currency,
        tax_rate=organization.tax_rate.normalize(),
        taxes=dated,
        taxed_before=tax_rates.billed_with(connection, organization_id, charges) if dated else {},
        until=end,
        charges=charges,
        credits_consumed=connection.execute(_CONSUMED, here).scalar_one(),
        fees=_fees(connection, charges),
        tenants=_names(connection, "tenant", {charge.tenant_id for charge in charges}),
        services=_names(connection, "service", {charge.service_id for charge in charges}),
        remarks=_names(
            connection, "addition", {charge.source_id for charge in charges if charge.source == ADDITION}
        ),
        carried=carried(connection, organization_id),
        units_before=_units_before(connection, here, charges),
        since=start,
        used_before=_used_before(connection, organization_id, start, end, charges),
    )  # fmt: skip
    return facts, connection.execute(_SINCE, here).scalar_one()


def carried(connection: Connection, organization_id: int) -> Mapping[str, Decimal]:
    """What each basis was billed exactly, less what its lines came to."""
    return {row.basis: row.rest for row in connection.execute(_CARRIED, {"organization": organization_id})}


def _fees(connection: Connection, charges: Sequence[Charge]) -> dict[int, Fee]:
    ids = sorted({charge.source_id for charge in charges if charge.source == SEGMENT and charge.source_id})
    found = connection.execute(_FEES, {"ids": ids}) if ids else ()
    return {row.id: Fee(segment_of(row), row.name) for row in found}


def _names(connection: Connection, what: str, ids: set[int | None]) -> dict[int, str]:
    wanted = sorted(id_ for id_ in ids if id_)
    found = connection.execute(_NAMES[what], {"ids": wanted}) if wanted else ()
    return {row.id: row.name for row in found if row.name}


def _units_before(
    connection: Connection, here: Mapping[str, Any], charges: Sequence[Charge]
) -> dict[tuple[int | None, date], int]:
    days = [charge.day for charge in charges if charge.source == UNITS]
    if not days:
        return {}
    rows = connection.execute(_UNITS_BEFORE, {**here, "since": min(days).replace(day=1)})
    return {(row.service_id, row.month): row.units for row in rows}


def _used_before(
    connection: Connection, organization_id: int, start: date, end: date, charges: Sequence[Charge]
) -> dict[int | None, int]:
    if not any(charge.source == UNITS for charge in charges):
        return {}
    here = {"organization": organization_id, "start": midnight(start), "until_day": midnight(end)}
    return {row.service_id: row.units for row in connection.execute(_USED_BEFORE, here)}
