"""Organizations: who is billed."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import Numeric, cast, func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import MONEY
from gateway.core.billing.bounds import INVOICE_MAX, too_dear, too_many
from gateway.core.billing.pricing import NANO, rounded, times
from gateway.errors import Conflict, Unprocessable
from persistence import crud
from persistence.billing import allocations, debts, tax_rates, top_up_orders, unbilled
from persistence.names import named
from persistence.subject import THIS, Change, Subject, id_in, live, lock, refuse_while_referenced
from persistence.tables import (
    admin_token,
    app_user,
    budget,
    charge,
    credit_addition,
    credit_debt,
    invoice,
    organization,
    organization_service,
    organization_subscription,
    subscription_segment,
    tenant,
    tenant_quota,
    token_plan_price,
)

# What has amounts of money in it that name no currency of their own, by what an organization has of it.
IN_ITS_CURRENCY = {
    "Pay-Per-Use": select(organization.c.id).where(
        organization.c.id == THIS, organization.c.spend_last_seq > 0
    ),
    "credits that were sold": select(credit_addition.c.id).where(
        credit_addition.c.organization_id == THIS, credit_addition.c.unit_cost.is_not(None)
    ),
    "credits that were used beyond its balance": select(credit_debt.c.organization_id).where(
        credit_debt.c.organization_id == THIS
    ),
    "a subscription": select(subscription_segment.c.id).where(subscription_segment.c.organization_id == THIS),
    "tokens of a plan that bills what is used beyond it": select(tenant.c.id)
    .join(tenant_quota, tenant_quota.c.tenant_id == tenant.c.id)
    .join(
        token_plan_price,
        token_plan_price.c.plan_id == func.coalesce(tenant.c.plan_id, tenant.c.inherited_plan_id),
    )
    .where(
        tenant.c.organization_id == THIS,
        tenant_quota.c.last_seq > 0,
        token_plan_price.c.unit_price.is_not(None),
    ),
    "prices that it negotiated": select(organization_service.c.id).where(
        organization_service.c.organization_id == THIS,
        organization_service.c.pricing["currency"].astext.is_not(None),
    ),
    "charges": select(charge.c.id).where(charge.c.organization_id == THIS),
    "budgets in money": live(budget).where(budget.c.organization_id == THIS, budget.c.unit == MONEY),
    "invoices": select(invoice.c.id).where(invoice.c.organization_id == THIS, invoice.c.status != "void"),
}


# What else it has amounts in.
PRICES = {
    "credit_unit_cost": "a price for credits beyond its balance",
    "auto_top_up": "a price for credits that are bought by themselves",
}


def define(change: Change, row: Row) -> None:
    """Have the organization of a row loaded again: its limits, credit limit, cap and prices."""
    change.define(f"organization:{row['organization_id']}", row["organization_id"])


def delete(change: Change) -> Row:
    """Take an organization out; `Conflict` says what of it no invoice has."""
    lock(change)
    refuse_while_referenced(change)
    allocations.catch_up(change.connection, [change.row_id])
    if owed := unbilled.said(unbilled.read(change.connection, change.row_id, change.today)):
        raise Conflict(f"Not all that it owes is billed: {owed}. Invoice it first.")
    return crud.delete(change)


def keep_currency(change: Change, row: Row) -> None:
    """Raise `Conflict` where amounts that were in one currency would be in another."""
    before = change.before
    if before is None or before["currency"] == row["currency"]:
        return
    allocations.catch_up(change.connection, [change.row_id])
    here = {THIS.key: change.row_id}
    has = [
        said for name, said in PRICES.items() if before[name] is not None and before[name] == row[name]
    ] + [
        name
        for name, found in IN_ITS_CURRENCY.items()
        if change.connection.execute(found.limit(1), here).first() is not None
    ]
    if has:
        raise Conflict(
            f"Its currency stays {before['currency']}: it has {', '.join(has)}, and amounts are never"
            f" converted. Make another organization in {row['currency']}."
        )


def check_row(change: Change, row: Row) -> None:
    """Keep its currency, and what credits beyond its balance cost since when."""
    keep_currency(change, row)
    _check_debt(change, row)
    debts.keep_price(change, row)
    _top_up(change, row)


def _check_debt(change: Change, row: Row) -> None:
    """All credits that may be used beyond the balance can be billed at once."""
    if not {"credit_limit", "credit_unit_cost"} & change.command.values.keys():
        return
    limit, cost = int(str(row["credit_limit"])), row["credit_unit_cost"]
    price = None if cost is None else Decimal(str(cost))
    if change.command.values.get("credit_unit_cost") is not None:
        name, why = "credit_unit_cost", too_dear(price, limit, INVOICE_MAX)
    else:
        name, why = "credit_limit", too_many(limit, price, INVOICE_MAX)
    if why is not None:
        raise Unprocessable(errors=((name, why),))


def _top_up(change: Change, row: Row) -> None:
    """Check what credits bought by themselves come to; new terms order some where the balance is low now."""
    terms = row["auto_top_up"]
    if not isinstance(terms, dict):
        return
    currency, unit_cost = str(row["currency"]), Decimal(terms["unit_cost"])
    if (too_much := too_many(terms["credits"], unit_cost)) is not None:
        raise Unprocessable(errors=(("auto_top_up.credits", too_much),))
    if not rounded(times(terms["credits"], unit_cost), currency):
        why = f"comes to no {currency} that can be paid"
        raise Unprocessable(errors=(("auto_top_up.unit_cost", why),))
    if change.before is None or change.before["auto_top_up"] != terms:
        top_up_orders.order(change.connection, id_in(row, "id"))


SUBJECT = Subject(
    organization,
    source=live(
        organization,
        *(column for column in organization.c if column.name not in {"credit_ahead", "tax_rate"}),
        tax_rates.TODAY.label("tax_rate"),
        (cast(organization.c.credit_ahead, Numeric) / NANO).label("credit_ahead"),
        organization.c.id.label("organization_id"),
    ),
    conditions={"search": named(organization)},
    verbs={**crud.VERBS, "change": tax_rates.change_organization, "delete": delete},
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
        "Admin tokens are still of this organization; revoke them first.": select(admin_token.c.id).where(
            admin_token.c.organization_id == THIS, admin_token.c.revoked_at.is_(None)
        ),
        "The organization has invoices that are not finalized.": select(invoice.c.id).where(
            invoice.c.organization_id == THIS, invoice.c.status == "draft"
        ),
    },
    check_row=check_row,
    define=define,
    defining=frozenset({"limits", "currency", "credit_limit", "spend_cap", "services"}),
)
