"""Whose a row is: the way from each table to the organization that owns it.

A caller of one organization sees and changes its own rows, reads what is everybody's, and finds nothing else:
another's row is not there, whether it is asked for by its id, named in a body or in a filter.
"""

from __future__ import annotations

from sqlalchemy import ColumnElement, Select, Table, false, select, true

from gateway.core.accounts.administration import OWNER
from persistence.tables import (
    budget,
    business_model,
    invoice,
    organization,
    price,
    service,
    subscription_plan,
    tenant,
    token_plan,
    webhook,
)

# Where a row names no organization itself: what names one that does.
THROUGH = {"tenant_id": tenant, "webhook_id": webhook, "budget_id": budget, "invoice_id": invoice}
# What everybody uses.
EVERYBODYS = frozenset({token_plan, subscription_plan, service, business_model, price})


def owned(table: Table, organization_id: int) -> ColumnElement[bool]:
    """What a row must be for a caller of an organization; of a table that leads to none no row is."""
    if table is organization:
        return organization.c.id == organization_id
    if OWNER in table.c:
        return table.c[OWNER] == organization_id
    for name, owner in THROUGH.items():
        if name in table.c:
            return table.c[name].in_(select(owner.c.id).where(owned(owner, organization_id)))
    return true() if table in EVERYBODYS else false()


def owners(table: Table, which: ColumnElement[bool]) -> Select[tuple[int | None]] | None:
    """Whose these rows of a table are; None of a table that leads to no organization."""
    if table is organization or OWNER in table.c:
        return select(organization.c.id if table is organization else table.c[OWNER]).where(which)
    for name, owner in THROUGH.items():
        if name in table.c:
            return owners(owner, owner.c.id.in_(select(table.c[name]).where(which)))
    return None
