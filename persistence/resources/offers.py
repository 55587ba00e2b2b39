"""What organizations negotiated, and the subscriptions on offer."""

from __future__ import annotations

from sqlalchemy import or_, select

from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable
from persistence import crud
from persistence.billing import plan_prices, subscriptions
from persistence.billing.plans import priced_in
from persistence.resources import organizations, priced
from persistence.subject import THIS, Change, Subject, live
from persistence.tables import (
    business_model,
    organization,
    organization_service,
    organization_subscription,
    service,
    subscription_plan,
    token_plan,
)


def check_features(change: Change) -> None:
    """`Unprocessable` where `feature_access` names a service that is not there."""
    wanted = change.command.values.get("feature_access")
    if isinstance(wanted, list) and wanted:
        found = change.connection.execute(live(service, service.c.key).where(service.c.key.in_(wanted)))
        missing = sorted(set(wanted) - set(found.scalars()))
        if missing:
            raise Unprocessable(errors=(("feature_access", f"there is no service {missing[0]!r}"),))


def check_currency(change: Change, row: Row) -> None:
    """`Unprocessable` where tokens beyond the token plan would cost another currency than the plan does."""
    costs = priced_in(change, row["token_plan_id"])
    if costs is not None and costs != row["currency"]:
        wrong = f"has a price in {costs}, and this plan is in {row['currency']}"
        raise Unprocessable(errors=(("token_plan_id", wrong),))


_here = organization_subscription.c

ORGANIZATION_SERVICES = Subject(
    organization_service,
    verbs=crud.VERBS,
    refers={
        "organization_id": organization,
        "service_id": service,
        "business_model_id": business_model,
    },
    check_row=priced.check_negotiated,
    define=organizations.define,
    defining=frozenset({"negotiated_credits", "business_model_id", "counts_tokens", "pricing"}),
)

SUBSCRIPTION_PLANS = Subject(
    subscription_plan,
    source=plan_prices.SOURCE,
    verbs=plan_prices.VERBS,
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
