"""What organizations are taxed with, by the day of supply: rows that are only added to.

An organization without rows has the rate of its own column on all days. With its first row that rate becomes
one too, from the first day there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnClause, Connection, func, insert, literal_column, select, text

from gateway.core.accounts.administration import Row
from gateway.core.billing.charge import Charge
from gateway.core.billing.line import is_back
from gateway.core.billing.tax import Dated, Tax, misfits
from gateway.errors import Conflict, Unprocessable
from persistence import crud
from persistence.subject import Change, Subject, id_in, lock, require
from persistence.tables import organization, tax_rate

# Of one organization; a finalized invoice reads them all.
TAX_RATES_MAX = 1_000
FIRST_DAY = date(1970, 1, 1)

_HOLD = select(organization.c.tax_rate).with_for_update()
_COUNT = select(func.count()).select_from(tax_rate)
_today: ColumnClause[date] = literal_column("(now() AT TIME ZONE 'UTC')::date")
# With which tax lines billed what was supplied then, by what `Charge.supply` says.
_BILLED = text("""
SELECT DISTINCT ON (c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end)
       c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end,
       l.tax_rate, l.tax_category, l.tax_reason
  FROM charge AS c
  JOIN invoice AS i ON i.id = c.invoice_id AND i.status = 'finalized'
  JOIN invoice_line AS l ON l.invoice_id = i.id AND l.position = c.line AND l.tax_rate IS NOT NULL
 WHERE c.organization_id = :organization AND (c.amount > 0) <> (c.kind = 'discount')
   AND c.period_start >= :since
 ORDER BY c.kind, c.source, c.source_id, c.tenant_id, c.service_id, c.period_start, c.period_end,
       c.id DESC""")

# What is in force today, of organizations as they are read.
TODAY = func.coalesce(
    select(tax_rate.c.rate)
    .where(tax_rate.c.organization_id == organization.c.id, tax_rate.c.effective_from <= _today)
    .order_by(tax_rate.c.effective_from.desc(), tax_rate.c.id.desc())
    .limit(1)
    .correlate(organization)
    .scalar_subquery(),
    organization.c.tax_rate,
)


def create(change: Change) -> Row:
    """Add a rate from a day on."""
    values = change.command.values
    errors = misfits(Tax(values["rate"], values.get("category"), values.get("reason")))  # type: ignore[arg-type]  # as the resource reads them
    if errors:
        raise Unprocessable(errors=errors)
    require(change)
    _begin(change, id_in(change.command.values, "organization_id"))
    return crud.create(change)


def change_organization(change: Change) -> Row:
    """Change an organization; another rate of tax is a row from today on."""
    before = lock(change)
    rate = change.command.values.get("tax_rate")
    if rate is not None and rate != before["tax_rate"]:
        _begin(change, change.row_id)
        row = {"organization_id": change.row_id, "effective_from": change.today, "rate": rate}
        change.connection.execute(insert(tax_rate).values(row))
    changed = crud.change_row(change)
    change.before = before
    return changed


def read(connection: Connection, organization_ids: Sequence[int]) -> Mapping[int, Sequence[Dated]]:
    """The dated taxes of organizations that have some, in the order of their days."""
    here = tax_rate.c
    found = select(tax_rate).where(here.organization_id.in_(organization_ids))
    rows = connection.execute(found.order_by(here.effective_from, here.id))
    dated = defaultdict[int, list[Dated]](list)
    for row in rows:
        dated[row.organization_id].append(
            Dated(row.effective_from, tax_of(row.rate, row.category, row.reason))
        )
    return dated


def billed_with(
    connection: Connection, organization_id: int, charges: Iterable[Charge]
) -> Mapping[object, Tax]:
    """With which tax the supplies were billed that some of these charges give back."""
    since = min((charge.start for charge in charges if is_back(charge)), default=None)
    if since is None:
        return {}
    rows = connection.execute(_BILLED, {"organization": organization_id, "since": since})
    found: dict[object, Tax] = {}
    for row in rows:
        of = (row.kind, row.source, row.source_id, row.tenant_id, row.service_id)
        tax = tax_of(row.tax_rate, row.tax_category, row.tax_reason)
        found[*of, row.period_start, row.period_end] = tax
    return found


def tax_of(rate: Decimal, category: str | None, reason: str | None) -> Tax:
    """A tax as it was stored: rates that are equal are written alike."""
    return Tax(rate.normalize(), category, reason)


def _begin(change: Change, organization_id: int) -> None:
    """Make the rate it had until now the first row; refuse too many."""
    held: Any = change.connection.execute(_HOLD.where(organization.c.id == organization_id)).scalar_one()
    mine = _COUNT.where(tax_rate.c.organization_id == organization_id)
    count = change.connection.execute(mine).scalar_one()
    if count >= TAX_RATES_MAX:
        raise Conflict(f"It has {TAX_RATES_MAX} rates of tax: there cannot be more.")
    if not count:
        first = {"organization_id": organization_id, "effective_from": FIRST_DAY, "rate": held}
        change.connection.execute(insert(tax_rate).values(first))


SUBJECT = Subject(
    tax_rate, time="created_at", verbs={"create": create}, refers={"organization_id": organization}
)
