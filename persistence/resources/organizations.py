"""Organizations: who is billed."""

from __future__ import annotations

from sqlalchemy import Numeric, cast, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.pricing import NANO
from persistence import crud
from persistence.subject import THIS, Change, Subject, live, named
from persistence.tables.billing import invoice, organization_subscription
from persistence.tables.people import app_user, organization, tenant


def define(change: Change, row: Row) -> None:
    """Have the organization of a row loaded again: its limits, credit limit, cap and prices."""
    change.define(f"organization:{row['organization_id']}", row["organization_id"])


SUBJECT = Subject(
    organization,
    source=live(
        organization,
        *(column for column in organization.c if column.name != "credit_ahead"),
        (cast(organization.c.credit_ahead, Numeric) / NANO).label("credit_ahead"),
        organization.c.id.label("organization_id"),
    ),
    conditions={"search": named(organization)},
    verbs=crud.VERBS,
    partitioned=True,
    referenced={
        "The organization still has tenants; delete them first.": live(tenant).where(
            tenant.c.organization_id == THIS
        ),
        "The organization still has users; delete them first.": live(app_user).where(
            app_user.c.organization_id == THIS
        ),
        "The organization's subscription is not over; cancel it first.": select(
            organization_subscription.c.id
        ).where(
            organization_subscription.c.organization_id == THIS, organization_subscription.c.status != "over"
        ),
        "The organization has invoices that are not finalized.": select(invoice.c.id).where(
            invoice.c.organization_id == THIS, invoice.c.status == "draft"
        ),
    },
    define=define,
    defining=frozenset({"limits", "currency", "credit_limit", "spend_cap"}),
)
