"""Dated tax rates of an organization: their rows and bounds."""

from __future__ import annotations

from datetime import date
from typing import Any

from sqlalchemy import func, insert, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.document import Tax, misfits
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, id_in, lock, require
from persistence.tables import organization, tax_rate

# Maximum for one organization, as a finalized invoice reads them all.
TAX_RATES_MAX = 1_000
FIRST_DAY = date(1970, 1, 1)

_HOLD = select(organization.c.tax_rate).with_for_update()
_COUNT = select(func.count()).select_from(tax_rate)


def create(change: EntityWrite) -> Row:
    """Store a tax rate of an organization from a day on."""
    values = change.command.values
    errors = misfits(Tax(values["rate"], values.get("category"), values.get("reason")))  # type: ignore[arg-type]  # as the resource reads them
    if errors:
        raise Unprocessable(errors=errors)
    require(change)
    _begin(change, id_in(change.command.values, "organization_id"))
    return entity.create(change)


def change_tax_of_organization(change: EntityWrite) -> Row:
    """Change an organization; a different tax rate becomes a dated row from today on."""
    before = lock(change)
    rate = change.command.values.get("tax_rate")
    if rate is not None and rate != before["tax_rate"]:
        _begin(change, change.row_id)
        row = {"organization_id": change.row_id, "effective_from": change.today, "rate": rate}
        change.connection.execute(insert(tax_rate).values(row))
    changed = entity.change_row(change)
    change.before = before
    return changed


def _begin(change: EntityWrite, organization_id: int) -> None:
    """Store the organization's current tax rate as its first row; raise `Conflict` if there are too many."""
    held: Any = change.connection.execute(_HOLD.where(organization.c.id == organization_id)).scalar_one()
    mine = _COUNT.where(tax_rate.c.organization_id == organization_id)
    count = change.connection.execute(mine).scalar_one()
    if count >= TAX_RATES_MAX:
        raise Conflict(f"It has {TAX_RATES_MAX} rates of tax: there cannot be more.")
    if not count:
        first = {"organization_id": organization_id, "effective_from": FIRST_DAY, "rate": held}
        change.connection.execute(insert(tax_rate).values(first))


TAX_RATE_SUBJECT = Entity(
    tax_rate, time="created_at", verbs={"create": create}, refers={"organization_id": organization}
)
