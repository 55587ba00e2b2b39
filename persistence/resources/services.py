"""Services and business models: a change of either is a new catalogue for every gateway."""

from __future__ import annotations

from sqlalchemy import delete as delete_from
from sqlalchemy import func, select

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT
from gateway.errors import Conflict
from persistence import crud
from persistence.resources import priced
from persistence.subject import Change, Subject, alter, equals, lock, refuse_while
from persistence.tables.billing import business_model, organization_service, service, subscription_plan

ALWAYS_THERE = frozenset({"Consumption", "Subscription", "Pay-Per-Use"})


def define(change: Change, _: Row) -> None:
    """Have the catalogue loaded anew."""
    change.intend([CATALOGUE_ACCOUNT], "define", {}, organization_id=None)


def define_model(change: Change, row: Row) -> None:
    """Have the catalogue loaded anew, and whoever negotiated this business model for a service."""
    define(change, row)
    here = organization_service.c
    told = select(here.organization_id).where(here.business_model_id == row["id"]).distinct()
    for organization_id in change.connection.execute(told.order_by(here.organization_id)).scalars().all():
        change.intend([f"organization:{organization_id}"], "define", {}, organization_id=organization_id)


def delete_service(change: Change) -> Row:
    """Take a service out of the catalogue; its key becomes free, its rows stay."""
    row = lock(change, SERVICES, service)
    refuse_while(
        change,
        select(organization_service.c.id).where(organization_service.c.service_id == change.row_id),
        "Organizations still have a price for this service.",
    )
    refuse_while(
        change,
        select(subscription_plan.c.id).where(
            subscription_plan.c.feature_access.contains([row["key"]]),
            subscription_plan.c.deleted_at.is_(None),
        ),
        "Subscription plans still include this service.",
    )
    # No key a caller can choose holds a tilde.
    alter(change, service, {"key": f"{row['key']}~{row['id']}", "deleted_at": func.now()})
    define(change, row)
    return row


def change_model(change: Change) -> Row:
    """Change a business model; those that are always there keep their name and meter."""
    row = lock(change, BUSINESS_MODELS, business_model)
    if row["name"] in ALWAYS_THERE and {"name", "meter"} & change.command.values.keys():
        raise Conflict(f"{row['name']} is always there: its name and meter cannot change.")
    return _model_verbs["change"](change)


def delete_model(change: Change) -> Row:
    """Delete a business model that nothing uses."""
    row = lock(change, BUSINESS_MODELS, business_model)
    if row["name"] in ALWAYS_THERE:
        raise Conflict(f"{row['name']} is always there.")
    refuse_while(
        change,
        select(service.c.id).where(
            service.c.business_model_id == change.row_id, service.c.deleted_at.is_(None)
        ),
        "Services still follow this business model.",
    )
    change.connection.execute(delete_from(business_model).where(business_model.c.id == change.row_id))
    return row


_model_verbs = crud.verbs(
    lambda: BUSINESS_MODELS, business_model, define=define_model, defining=frozenset({"meter"})
)

BUSINESS_MODELS: Subject = Subject(
    source=select(business_model),
    id=business_model.c.id,
    time=business_model.c.created_at,
    order=(("id", business_model.c.id),),
    filters={"name": equals(business_model.c.name), "meter": equals(business_model.c.meter)},
    verbs={"create": _model_verbs["create"], "change": priced.of_model(change_model), "delete": delete_model},
)

_service_verbs = crud.verbs(
    lambda: SERVICES,
    service,
    refers={"business_model_id": business_model},
    define=define,
    defining=frozenset(
        {"credits", "service_type", "business_model_id", "counts_tokens", "pricing", "upstream", "paths"}
    ),
)

SERVICES: Subject = Subject(
    source=select(service).where(service.c.deleted_at.is_(None)),
    id=service.c.id,
    time=service.c.created_at,
    order=(("id", service.c.id),),
    filters={
        "business_model_id": equals(service.c.business_model_id),
        "key": equals(service.c.key),
        "name": equals(service.c.name),
    },
    verbs={
        "create": priced.of_service(_service_verbs["create"]),
        "change": priced.of_service(_service_verbs["change"]),
        "delete": delete_service,
    },
)
