"""Organizations, which are billed, and their tenants."""

from __future__ import annotations

from decimal import Decimal

from sqlalchemy import Numeric, cast, func, insert, select, text

from gateway.core.accounts.administration import Row
from gateway.core.accounts.budgets import MONEY
from gateway.core.billing.charges import INVOICE_MAX, too_dear, too_many
from gateway.core.billing.money import NANO, rounded, times
from gateway.errors import Conflict, Forbidden, Unprocessable
from persistence import entity
from persistence.billing import charges, credit_balances, invoice_lines, quotas, tax_rates, top_ups
from persistence.billing.overage_prices import prices_of
from persistence.entity import (
    THIS,
    Entity,
    EntityWrite,
    Verb,
    add,
    alter,
    fetch,
    id_in,
    live,
    lock,
    named,
    refuse_while_referenced,
    require,
)
from persistence.resources.app_users import define_lists
from persistence.resources.tags import declares_tags
from persistence.tables import (
    admin_token,
    api_key,
    app_user,
    budget,
    charge,
    credit_addition,
    credit_debt,
    invoice,
    organization,
    organization_service,
    organization_subscription,
    share,
    subscription_segment,
    tenant,
    tenant_quota,
    token_plan,
    token_plan_price,
)

# Rows with amounts in the organization's currency, by kind.
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


# Its own columns with amounts.
PRICES = {
    "credit_unit_cost": "a price for credits beyond its balance",
    "auto_top_up": "a price for credits that are bought automatically",
}


def define_organization(change: EntityWrite, row: Row) -> None:
    """Reload the organization of a row: its limits, credit limit, cap and prices."""
    change.define(f"organization:{row['organization_id']}", row["organization_id"])


def delete(change: EntityWrite) -> Row:
    """Delete an organization; raise `Conflict` if it has unbilled charges."""
    lock(change)
    refuse_while_referenced(change)
    change.require_closed(change.row_id)
    credit_balances.catch_up_allocations(change.connection, [change.row_id])
    if owed := charges.unbilled_in_words(
        charges.read_unbilled(change.connection, change.row_id, change.today)
    ):
        raise Conflict(f"Not all that it owes is billed: {owed}. Invoice it first.")
    return entity.delete(change)


def keep_currency(change: EntityWrite, row: Row) -> None:
    """Raise `Conflict` if a change of currency would reinterpret stored amounts."""
    before = change.before
    if before is None or before["currency"] == row["currency"]:
        return
    change.require_closed(change.row_id)
    credit_balances.catch_up_allocations(change.connection, [change.row_id])
    here = {THIS.key: change.row_id}
    has = [
        price for name, price in PRICES.items() if before[name] is not None and before[name] == row[name]
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


def check_row(change: EntityWrite, row: Row) -> None:
    """Check the organization's currency, debt and top-ups, and store a new price of its debt."""
    keep_currency(change, row)
    _check_debt(change, row)
    credit_balances.keep_debt_price(change, row)
    _top_up(change, row)


def _check_debt(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` for a credit limit whose whole debt costs more than one invoice may.

    The field that the command changes, limit or price, is named.
    """
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


def _top_up(change: EntityWrite, row: Row) -> None:
    """Check the price of automatic top-ups; new terms order credits at once if the balance is low."""
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
        top_ups.order_top_up(change.connection, id_in(row, "id"))


ORGANIZATION_SUBJECT = Entity(
    organization,
    source=live(
        organization,
        *(column for column in organization.c if column.name not in {"credit_ahead", "tax_rate"}),
        invoice_lines.TODAY.label("tax_rate"),
        (cast(organization.c.credit_ahead, Numeric) / NANO).label("credit_ahead"),
        organization.c.id.label("organization_id"),
    ),
    conditions={"search": named(organization)},
    verbs={
        **entity.VERBS,
        "create": declares_tags(entity.create),
        "change": declares_tags(tax_rates.change_tax_of_organization),
        "delete": delete,
    },
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
    define=define_organization,
    defining=frozenset(
        {
            "limits",
            "currency",
            "credit_limit",
            "spend_cap",
            "services",
            "models",
            "runs",
            "spent_status",
            "retry_after_max_s",
            "tags",
        }
    ),
)


# Tenants, and the actions that move their quota.
#
# Blocked people cannot evade a block: only staff delete a tenant that staff have blocked, and if all tenants
# of an organization are blocked, its own people create none.

# A block or unblock counts once it is stored, even before the counters apply it.
_IS_BLOCKED = """coalesce((
    SELECT w.verb = 'block' FROM control_write AS w
     WHERE w.account = 'tenant:' || t.id AND w.verb IN ('block', 'unblock') AND w.state <> 'refused'
     ORDER BY w.position DESC LIMIT 1), q.manual_block, false)"""
_BLOCKED = text(f"""
SELECT t.id FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
 WHERE t.id = :id AND {_IS_BLOCKED}""")
_SHUT_OUT = text(f"""
SELECT t.organization_id FROM tenant AS t LEFT JOIN tenant_quota AS q ON q.tenant_id = t.id
 WHERE t.organization_id = :id AND t.deleted_at IS NULL
 GROUP BY t.organization_id HAVING bool_and({_IS_BLOCKED})""")


def create(change: EntityWrite) -> Row:
    """Create a tenant with its account and plan, and its organization if none is named."""
    require(change)
    values = change.command.values
    organization_id = _organization_of(change)
    if not change.by_staff and change.connection.scalar(_SHUT_OUT, {"id": organization_id}) is not None:
        raise Forbidden("Staff have blocked all tenants of this organization: they make another one.")
    tenant_id = add(change, organization_id=organization_id, plan_id=None)
    quotas.open_account(change, tenant_id)
    change.define(f"tenant:{tenant_id}", organization_id)
    define_lists(change, organization_id)
    if values.get("plan_id") is not None:
        quotas.set_plan(change, tenant_id, organization_id, values["plan_id"])
    quotas.give_plan(change, organization_id, tenant_id)
    return change.fetch(tenant_id)


def change_tenant(change: EntityWrite) -> Row:
    """Change a tenant's row, with its limits, model lists and token plan."""
    before = lock(change)
    require(change)
    values = dict(change.command.values)
    organization_id = id_in(before, "organization_id")
    plan_id = values.pop("plan_id", before["plan_id"])
    alter(change, values)
    if values.keys() & {"limits", "user_limits"}:
        define_tenant(change, before)
    define_lists(change, organization_id)
    if plan_id != before["plan_id"]:
        quotas.set_plan(change, change.row_id, organization_id, plan_id)
    return change.fetch()


def delete_tenant(change: EntityWrite) -> Row:
    """Delete a tenant once all its use is stored, since its organization owes for that."""
    if not change.by_staff and change.connection.scalar(_BLOCKED, {"id": change.row_id}) is not None:
        raise Forbidden("Staff have blocked this tenant: they decide what becomes of it.")
    row = entity.delete(change)
    # Last: a refusal that needs no wait comes first.
    change.require_closed(id_in(row, "organization_id"), change.row_id)
    return row


def define_tenant(change: EntityWrite, row: Row) -> None:
    change.define(f"tenant:{row['id']}", row["organization_id"])


def action(verb: str) -> Verb:
    """Return a verb of the API that changes a tenant's quota by a control write with the command's values."""

    def act(change: EntityWrite) -> Row:
        organization_id = id_in(lock(change), "organization_id")
        change.before = None
        values = change.command.values
        if values.get("direction") == "OUT":
            beyond = prices_of(change.connection, change.row_id)
            if errors := beyond.too_much(int(str(values["amount"])), 0):
                raise Unprocessable(errors=(("amount", errors[0][1]),))
        change.intend([f"tenant:{change.row_id}"], verb, values, organization_id=organization_id)
        return fetch(change.connection, quotas.SUBJECT, change.row_id)

    return act


def _organization_of(change: EntityWrite) -> int:
    values = change.command.values
    if values.get("organization_id") is not None:
        return id_in(values, "organization_id")
    made = change.connection.execute(
        insert(organization).values(name=values["name"]).returning(organization.c.id)
    )
    organization_id = int(made.scalar_one())
    define_organization(change, {"organization_id": organization_id})
    return organization_id


TENANT_SUBJECT = Entity(
    tenant,
    conditions={"search": named(tenant)},
    verbs={
        "create": create,
        "change": change_tenant,
        "delete": delete_tenant,
        **{verb: action(verb) for verb in ("recharge", "reset", "adjust", "block", "unblock")},
    },
    refers={"organization_id": organization, "plan_id": token_plan},
    # Its ledger stays.
    referenced={
        "The tenant still has API keys that are not revoked.": select(api_key.c.id).where(
            api_key.c.tenant_id == THIS, api_key.c.revoked_at.is_(None)
        ),
        "A budget is of this tenant; delete it first.": live(budget).where(budget.c.tenant_id == THIS),
        "A share is of this tenant; delete it first.": live(share).where(share.c.tenant_id == THIS),
        "Admin tokens are of this tenant alone; revoke them first.": select(admin_token.c.id).where(
            admin_token.c.tenant_id == THIS, admin_token.c.revoked_at.is_(None)
        ),
    },
    define=define_tenant,
)
