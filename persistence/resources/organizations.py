"""Organizations: who is billed."""

from __future__ import annotations

from sqlalchemy import select

from gateway.core.accounts.administration import Row
from persistence import crud
from persistence.subject import Change, Subject, equals, named
from persistence.tables.billing import invoice, organization_subscription
from persistence.tables.people import app_user, organization, tenant


def define(change: Change, row: Row) -> None:
    """Have the organization's limits, credit limit and cap loaded anew."""
    row_id = int(str(row["id"]))
    change.intend([f"organization:{row_id}"], "define", {}, organization_id=row_id)


SUBJECT: Subject = Subject(
    source=select(organization, organization.c.id.label("organization_id")).where(
        organization.c.deleted_at.is_(None)
    ),
    id=organization.c.id,
    time=organization.c.created_at,
    order=(("id", organization.c.id),),
    filters={"name": equals(organization.c.name), "search": named(organization)},
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
            "The organization's subscription is not over; cancel it first.": lambda row_id: select(
                organization_subscription.c.id
            ).where(
                organization_subscription.c.organization_id == row_id,
                organization_subscription.c.status != "over",
            ),
            "The organization has invoices that are not finalized.": lambda row_id: select(
                invoice.c.id
            ).where(invoice.c.organization_id == row_id, invoice.c.status == "draft"),
        },
        define=define,
        defining=frozenset({"limits", "credit_limit", "spend_cap"}),
    ),
    partitioned=True,
)
