"""Organizations: who is billed."""

from __future__ import annotations

from sqlalchemy import select

from gateway.core.administration import Row
from persistence import crud
from persistence.subject import Change, Subject, equals
from persistence.tables import app_user, organization, tenant


def define(change: Change, row: Row) -> None:
    """Have the organization's limits, credit limit and cap loaded anew."""
    row_id = int(str(row["id"]))
    change.intend([f"organization:{row_id}"], "define", {}, organization_id=row_id)


SUBJECT: Subject = Subject(
    source=select(organization).where(organization.c.deleted_at.is_(None)),
    id=organization.c.id,
    time=organization.c.created_at,
    order=(("id", organization.c.id),),
    filters={"name": equals(organization.c.name)},
    verbs=crud.verbs(
        lambda: SUBJECT,
        organization,
        referenced={
            "The organization still has tenants; delete them first.": lambda row_id: select(
                tenant.c.id
            ).where(tenant.c.organization_id == row_id, tenant.c.deleted_at.is_(None)),
            "The organization still has users; delete them first.": lambda row_id: select(
                app_user.c.id
            ).where(app_user.c.organization_id == row_id, app_user.c.deleted_at.is_(None)),
        },
        define=define,
        defining=frozenset({"limits", "credit_limit", "spend_cap"}),
    ),
)
