"""Shares of an upstream's capacity: of an organization, or of one tenant (with its organization)."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from sqlalchemy import case, func, select

from gateway.core.accounts.administration import Row
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import Entity, EntityWrite, require
from persistence.resources.catalogue import define
from persistence.tables import organization, share, tenant

SHARES_MAX: Final = 2_000


def create_share(change: EntityWrite) -> Row:
    """Create a share of an upstream's capacity for an organization, or for one of its tenants."""
    values = dict(change.command.values)
    of_tenant = values.get("tenant_id")
    if (values.get("organization_id") is None) == (of_tenant is None):
        raise Unprocessable(errors=(("organization_id", "is required, unless there is a tenant_id instead"),))
    require(change)
    if of_tenant is not None:
        owner = select(tenant.c.organization_id).where(tenant.c.id == of_tenant)
        values["organization_id"] = change.connection.execute(owner).scalar_one()
    change.command = replace(change.command, values=values)
    count = select(func.count()).select_from(share)
    if change.count(share, lambda: change.connection.execute(count).scalar_one()) >= SHARES_MAX:
        raise Conflict(f"There are {SHARES_MAX} shares, which is the most.")
    return entity.create(change)


_shares_here = share.c
_of_organization = case((_shares_here.tenant_id.is_(None), _shares_here.organization_id))

SHARES = Entity(
    share,
    source=select(
        *(one for one in _shares_here if one.name != "organization_id"),
        _of_organization.label("organization_id"),
    ),
    conditions={"organization_id": lambda value: _of_organization == value},
    verbs={**entity.VERBS, "create": create_share},
    refers={"organization_id": organization, "tenant_id": tenant},
    define=define,
    defining=frozenset({"weight", "guaranteed", "priority"}),
)
