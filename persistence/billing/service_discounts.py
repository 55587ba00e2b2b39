"""Discounts of organizations on services: their rates by month, and the charges that they still owe."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC
from decimal import Decimal

from sqlalchemy import Connection

from gateway.core.billing.charge_kinds import USES
from gateway.core.billing.charges import SupplyCharge
from gateway.core.billing.service_discounts import (
    ChargedDay,
    DayCharge,
    DayOfUse,
    DiscountFrom,
    left_by_notes,
    missing_discounts,
)
from persistence.billing.proration import NamedCharge
from persistence.queries import query

# By organization and service.
Rates = Mapping[int, Mapping[int, Sequence[DiscountFrom]]]

_READ = """
SELECT organization_id, service_id, month, rate FROM service_discount
 WHERE organization_id = ANY(cast(:organizations AS bigint[])) ORDER BY organization_id, service_id, month"""
_RATES = query("service_discounts.rates", "Select discounts on services", _READ)
_HELD_RATES = query("service_discounts.hold", "Lock discounts on services", f"{_READ} FOR UPDATE")
_SETTLED = query("service_discounts.settled", "Store that a discount on a service is charged", """
UPDATE service_discount AS d SET is_due = false
  FROM unnest(cast(:organizations AS bigint[]), cast(:services AS bigint[]), cast(:months AS date[]))
    AS n (organization_id, service_id, month)
 WHERE d.is_due AND (d.organization_id, d.service_id, d.month) = (n.organization_id, n.service_id, n.month)""")  # fmt: skip
# Days with use that no invoice has, those that the caller names, and all since a discount that is due.
_DAYS = query("service_discounts.days", "Add up the use of services by day, and its discount", """
WITH day AS (
    SELECT DISTINCT c.organization_id, c.tenant_id, c.service_id, c.period_start FROM charge AS c
     WHERE c.organization_id = ANY(cast(:organizations AS bigint[])) AND c.invoice_id IS NULL AND c.kind = 'usage'
       AND c.service_id = ANY(cast(:services AS bigint[]))
    UNION
    SELECT * FROM unnest(cast(:of AS bigint[]), cast(:tenants AS bigint[]), cast(:of_services AS bigint[]),
                         cast(:starts AS timestamptz[]))
    UNION
    SELECT c.organization_id, c.tenant_id, c.service_id, c.period_start FROM service_discount AS d
      JOIN charge AS c ON c.organization_id = d.organization_id AND c.service_id = d.service_id
       AND c.kind = 'usage' AND c.period_start >= cast(d.month AS timestamp) AT TIME ZONE 'UTC'
     WHERE d.organization_id = ANY(cast(:organizations AS bigint[])) AND d.is_due
)
SELECT d.organization_id, d.tenant_id, d.service_id, d.period_start,
       coalesce(sum(c.amount) FILTER (WHERE c.kind = 'usage' AND NOT c.is_note), 0) AS used,
       coalesce(sum(c.amount) FILTER (WHERE c.kind = 'discount' AND NOT c.is_note), 0) AS discounted,
       count(*) FILTER (WHERE c.kind = 'discount' AND NOT c.is_note) AS rows,
       CASE WHEN bool_or(c.is_note)
            THEN jsonb_agg(jsonb_build_array(c.kind = 'usage', c.is_note, c.amount::text) ORDER BY c.id) END AS charges
  FROM day AS d
  LEFT JOIN LATERAL (
    SELECT c.id, c.kind, c.reason = 'credited' AS is_note, c.amount + CASE c.reason WHEN 'credited' THEN coalesce((
               SELECT sum(v.amount) FROM charge AS v WHERE v.corrects_id = c.id AND v.reason = 'credit_void'), 0)
           ELSE 0 END AS amount
      FROM charge AS c
     WHERE c.organization_id = d.organization_id AND c.period_start = d.period_start
       AND c.service_id = d.service_id AND c.tenant_id = d.tenant_id
       AND c.kind IN ('usage', 'discount') AND c.reason <> 'credit_void') AS c ON true
 GROUP BY 1, 2, 3, 4""")  # fmt: skip
DUE = "SELECT organization_id FROM service_discount WHERE is_due"


def read_rates(connection: Connection, organization_ids: Sequence[int], *, held: bool = False) -> Rates:
    """Return the discounts on services; `held` locks them until the end of the transaction."""
    rates: dict[int, dict[int, list[DiscountFrom]]] = defaultdict(lambda: defaultdict(list))
    statement = _HELD_RATES if held else _RATES
    for row in connection.execute(statement, {"organizations": list(organization_ids)}):
        rates[row.organization_id][row.service_id].append(DiscountFrom(row.month, row.rate))
    return rates


def owed_discounts(
    connection: Connection, rates: Rates, more: Mapping[int, Iterable[SupplyCharge]]
) -> list[NamedCharge]:
    """Return the discounts that are not charged yet, of the organizations in `rates`.

    `more` are charges for use that are not stored yet, by organization.
    """
    if not rates:
        return []
    unstored = defaultdict[tuple[int, DayOfUse], Decimal](Decimal)
    for organization_id, services in rates.items():
        for charge in more.get(organization_id, ()):
            if charge.kind == USES.name and charge.service_id in services:
                day = DayOfUse(charge.tenant_id or 0, charge.service_id or 0, charge.start.astimezone(UTC))
                unstored[organization_id, day] += charge.amount
    rows = connection.execute(_DAYS, {
        "organizations": list(rates), "services": sorted(set[int]().union(*rates.values())),
        "of": [organization_id for organization_id, _ in unstored],
        "tenants": [day.tenant_id for _, day in unstored],
        "of_services": [day.service_id for _, day in unstored],
        "starts": [day.start for _, day in unstored],
    })  # fmt: skip
    days: dict[int, dict[DayOfUse, ChargedDay]] = defaultdict(dict)
    for row in rows:
        day = DayOfUse(row.tenant_id, row.service_id, row.period_start.astimezone(UTC))
        charged = ChargedDay(row.used, row.discounted, row.rows)
        if row.charges:
            charges = (DayCharge(is_use, is_note, Decimal(amount)) for is_use, is_note, amount in row.charges)
            charged = left_by_notes(charges, row.rows)
        unstored_use = unstored[row.organization_id, day]
        days[row.organization_id][day] = charged._replace(used=charged.used + unstored_use)
    return [
        NamedCharge(organization_id, _fact_of(organization_id, charge, number), charge)
        for organization_id in sorted(days)
        for charge, number in missing_discounts(rates[organization_id], days[organization_id])
    ]


def settle(connection: Connection, rates: Rates) -> None:
    """Store that these discounts, which are locked, are charged."""
    keys = [
        (organization_id, service_id, discount.month)
        for organization_id, services in rates.items()
        for service_id, discounts in services.items()
        for discount in discounts
    ]
    if keys:
        organizations, services_, months = (list(column) for column in zip(*keys, strict=True))
        connection.execute(
            _SETTLED, {"organizations": organizations, "services": services_, "months": months}
        )


def _fact_of(organization_id: int, charge: SupplyCharge, number: int) -> str:
    return f"service_discount:{organization_id}:{charge.tenant_id}:{charge.service_id}:{charge.day}:{number}"
