"""Services and business models: a change of either is a new catalogue for every gateway."""

from __future__ import annotations

from sqlalchemy import case, false, func, select, true

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT
from gateway.errors import Conflict
from persistence import crud
from persistence.resources import priced
from persistence.subject import THIS, Change, Subject, alter, live, lock, refuse_while_referenced
from persistence.tables import budget, business_model, organization_service, service, subscription_plan

ALWAYS_THERE = frozenset({"Consumption", "Subscription", "Pay-Per-Use"})


def define(change: Change, _: Row) -> None:
    """Have the catalogue loaded again."""
    change.intend([CATALOGUE_ACCOUNT], "define", {}, organization_id=None)


def define_model(change: Change, row: Row) -> None:
    """Have the catalogue loaded again, and whoever negotiated this business model for a service."""
    define(change, row)
    here = organization_service.c
    told = select(here.organization_id).where(here.business_model_id == row["id"]).distinct()
    for organization_id in change.connection.execute(told.order_by(here.organization_id)).scalars().all():
        change.define(f"organization:{organization_id}", organization_id)


def delete_service(change: Change) -> Row:
    """Take a service out of the catalogue; its key becomes free, its rows stay."""
    row = lock(change)
    refuse_while_referenced(change)
    # No key a caller can choose holds a tilde.
    alter(change, {"key": f"{row['key']}~{row['id']}", "deleted_at": func.now()})
    define(change, row)
    return row


def check_model(change: Change) -> None:
    """`Conflict` where one that is always there would get another name or meter."""
    if change.command.id is not None and {"name", "meter"} & change.command.values.keys():
        name = lock(change)["name"]
        if name in ALWAYS_THERE:
            raise Conflict(f"{name} is always there: its name and meter cannot change.")


def delete_model(change: Change) -> Row:
    """Delete a business model that nothing uses."""
    name = lock(change)["name"]
    if name in ALWAYS_THERE:
        raise Conflict(f"{name} is always there.")
    return crud.forget(change)


BUSINESS_MODELS = Subject(
    business_model,
    verbs={**crud.VERBS, "delete": delete_model},
    referenced={
        "Services still follow this business model.": live(service).where(
            service.c.business_model_id == THIS
        ),
    },
    check_values=check_model,
    check_row=priced.check_model,
    define=define_model,
    defining=frozenset({"meter"}),
)

_key = select(service.c.key).where(service.c.id == THIS).scalar_subquery()

_counts = case((service.c.counts_tokens, true()), (service.c.counts_none, false()))
_columns = [one for one in service.c if one.name not in {"counts_tokens", "counts_none"}]

SERVICES = Subject(
    service,
    source=live(service, *_columns, _counts.label("counts_tokens")),
    verbs={**crud.VERBS, "delete": delete_service},
    refers={"business_model_id": business_model},
    referenced={
        "Organizations still have a price for this service.": select(organization_service.c.id).where(
            organization_service.c.service_id == THIS
        ),
        "Subscription plans still include this service.": live(subscription_plan).where(
            subscription_plan.c.feature_access.has_key(_key)
        ),
        "A budget is of this service; delete it first.": live(budget).where(budget.c.service_id == THIS),
    },
    check_row=priced.check_service,
    define=define,
    defining=frozenset(
        {"credits", "service_type", "business_model_id", "counts_tokens", "pricing", "upstream", "paths"}
    ),
)
