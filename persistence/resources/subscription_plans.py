"""Subscription plans of the catalogue."""

from __future__ import annotations

from sqlalchemy import or_, select

from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable
from persistence.billing import subscriptions
from persistence.billing.plans import priced_in
from persistence.entity import THIS, Entity, EntityWrite, live
from persistence.tables import organization_subscription, service, subscription_plan, token_plan


# Negotiated terms of organizations, and subscription plans.
def check_features(change: EntityWrite) -> None:
    wanted = change.command.values.get("feature_access")
    if isinstance(wanted, list) and wanted:
        result = change.connection.execute(live(service, service.c.key).where(service.c.key.in_(wanted)))
        missing = sorted(set(wanted) - set(result.scalars()))
        if missing:
            raise Unprocessable(errors=(("feature_access", f"there is no service {missing[0]!r}"),))


def check_currency(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` if the price of the row's token plan is in another currency than the row.

    The row is a subscription plan.
    """
    costs = priced_in(change, row["token_plan_id"])
    if costs is not None and costs != row["currency"]:
        wrong = f"has a price in {costs}, and this plan is in {row['currency']}"
        raise Unprocessable(errors=(("token_plan_id", wrong),))


_here = organization_subscription.c

SUBSCRIPTION_PLANS = Entity(
    subscription_plan,
    source=subscriptions.PLAN_PRICE_SOURCE,
    verbs=subscriptions.PLAN_PRICE_VERBS,
    refers={"token_plan_id": token_plan},
    referenced={
        "Organizations still subscribe to this plan.": select(_here.id).where(
            _here.status != "over", or_(_here.plan_id == THIS, _here.next_plan_id == THIS)
        ),
    },
    check_values=check_features,
    check_row=check_currency,
    define=subscriptions.tell,
    defining=frozenset({"feature_access", "token_plan_id"}),
)
