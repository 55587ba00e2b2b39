"""What organizations negotiated, and the subscriptions on offer."""

from __future__ import annotations

from sqlalchemy import or_, select

from gateway.core.accounts.administration import Row
from gateway.errors import Unprocessable
from persistence import crud
from persistence.billing import subscriptions
from persistence.resources import priced
from persistence.subject import Change, Subject, Verb, equals
from persistence.tables.billing import (
    business_model,
    organization_service,
    organization_subscription,
    service,
    subscription_plan,
)
from persistence.tables.people import organization, token_plan


def define(change: Change, row: Row) -> None:
    """Have the organization's prices loaded anew."""
    organization_id = int(str(row["organization_id"]))
    change.intend([f"organization:{organization_id}"], "define", {}, organization_id=organization_id)


def with_known_features(verb: Verb) -> Verb:
    """Check that `feature_access` names services that are there before the verb runs."""

    def checked(change: Change) -> Row:
        wanted = change.command.values.get("feature_access")
        if isinstance(wanted, list) and wanted:
            found = change.connection.execute(
                select(service.c.key).where(service.c.key.in_(wanted), service.c.deleted_at.is_(None))
            )
            missing = sorted(set(wanted) - set(found.scalars()))
            if missing:
                raise Unprocessable(errors=(("feature_access", f"there is no service {missing[0]!r}"),))
        return verb(change)

    return checked


def tell_subscribers(change: Change, row: Row) -> None:
    """Have whoever is on the plan follow what it is now."""
    subscriptions.tell(change, int(str(row["id"])))


_plan_verbs = crud.verbs(
    lambda: SUBSCRIPTION_PLANS,
    subscription_plan,
    refers={"token_plan_id": token_plan},
    referenced={
        "Organizations still subscribe to this plan.": lambda row_id: select(
            organization_subscription.c.id
        ).where(
            organization_subscription.c.status != "over",
            or_(
                organization_subscription.c.plan_id == row_id,
                organization_subscription.c.next_plan_id == row_id,
            ),
        ),
    },
    define=tell_subscribers,
    defining=frozenset({"feature_access", "token_plan_id"}),
)

_negotiated_verbs = crud.verbs(
    lambda: ORGANIZATION_SERVICES,
    organization_service,
    refers={
        "organization_id": organization,
        "service_id": service,
        "business_model_id": business_model,
    },
    define=define,
    defining=frozenset({"negotiated_credits", "business_model_id", "pricing"}),
)

ORGANIZATION_SERVICES: Subject = Subject(
    source=select(organization_service),
    id=organization_service.c.id,
    time=organization_service.c.created_at,
    order=(("id", organization_service.c.id),),
    filters={
        "organization_id": equals(organization_service.c.organization_id),
        "service_id": equals(organization_service.c.service_id),
        "business_model_id": equals(organization_service.c.business_model_id),
    },
    verbs={
        "create": priced.of_negotiated(_negotiated_verbs["create"]),
        "change": priced.of_negotiated(_negotiated_verbs["change"]),
        "delete": _negotiated_verbs["delete"],
    },
)

SUBSCRIPTION_PLANS: Subject = Subject(
    source=select(subscription_plan).where(subscription_plan.c.deleted_at.is_(None)),
    id=subscription_plan.c.id,
    time=subscription_plan.c.created_at,
    order=(("id", subscription_plan.c.id),),
    filters={
        "token_plan_id": equals(subscription_plan.c.token_plan_id),
        "name": equals(subscription_plan.c.name),
    },
    verbs={
        "create": with_known_features(_plan_verbs["create"]),
        "change": with_known_features(_plan_verbs["change"]),
        "delete": _plan_verbs["delete"],
    },
)
