"""The catalogue: services, business models, negotiated prices and models; a change reloads gateways."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, case, false, func, select, true

from gateway.core.accounts.administration import Row
from gateway.core.accounts.definitions import CATALOGUE_ACCOUNT
from gateway.core.billing.money import read_pricing
from gateway.core.calls.routes import MODELS_MAX
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, misfit
from gateway.errors import Conflict, Unprocessable
from persistence import entity
from persistence.entity import THIS, Entity, EntityWrite, alter, live, lock, refuse_while_referenced
from persistence.resources import negotiated_prices, people
from persistence.tables import (
    budget,
    business_model,
    model,
    organization,
    organization_service,
    service,
    subscription_plan,
)

# A price must fit the business model of its service: otherwise a call could not be charged.
#
# The state after a change is checked, in the same transaction: the service's price, and the prices of
# organizations with and without a business model of their own.

# Changes of other fields do not affect the cost of calls.
_DECIDING = frozenset({"pricing", "business_model_id", "service_type", "meter", "service_id"})
_own = business_model.alias("own")
_chosen = business_model.alias("chosen")


def check_service(change: EntityWrite, row: Row) -> None:
    for found in _services(change, service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))
    _refuse_negotiated(change, organization_service.c.service_id == row["id"])


def check_negotiated(change: EntityWrite, row: Row) -> None:
    for _, found in _unusable_prices(change, organization_service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))


def check_model_prices(change: EntityWrite, row: Row) -> None:
    for _, why in _services(change, service.c.business_model_id == row["id"]):
        raise Conflict(f"A service of this business model could not use its pricing: {why}.")
    follows = service.c.business_model_id == row["id"]
    _refuse_negotiated(change, (organization_service.c.business_model_id == row["id"]) | follows)


def _refuse_negotiated(change: EntityWrite, condition: ColumnElement[bool]) -> None:
    for row_id, (_, why) in _unusable_prices(change, condition):
        raise Conflict(
            f"Change organization-services {row_id} first, which could not use its pricing: {why}."
        )


def _services(change: EntityWrite, condition: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """Yield the (field, message) of the error for each service in `condition` whose price does not fit."""
    if not _DECIDING & change.command.values.keys():
        return
    query = (
        select(service.c.service_type, service.c.pricing, _own.c.meter)
        .join(_own, _own.c.id == service.c.business_model_id)
        .where(condition, service.c.deleted_at.is_(None), service.c.pricing.is_not(None))
    )
    for kind, pricing, meter in change.connection.execute(query):
        found = misfit(meter, kind == "One-Time", read_pricing(pricing))
        if found is not None:
            yield found


def _unusable_prices(
    change: EntityWrite, condition: ColumnElement[bool]
) -> Iterator[tuple[int, tuple[str, str]]]:
    """Yield, for each unusable negotiated price in `condition`, its id and the (field, message) of the error."""
    if not _DECIDING & change.command.values.keys():
        return
    query = (
        select(
            organization_service.c.id,
            service.c.service_type,
            organization_service.c.pricing,
            service.c.pricing,
            _own.c.meter,
            _chosen.c.meter,
            organization.c.currency,
        )
        .join(organization, organization.c.id == organization_service.c.organization_id)
        .join(service, service.c.id == organization_service.c.service_id)
        .join(_own, _own.c.id == service.c.business_model_id)
        .outerjoin(_chosen, _chosen.c.id == organization_service.c.business_model_id)
        .where(condition)
    )
    for row_id, kind, pricing, inherited, own, chosen, pays in change.connection.execute(query):
        meter = chosen or own
        found = _misfit_of(meter, kind, pricing, inherited) or _misspent(meter, pricing, inherited, pays)
        if found is not None:
            yield row_id, found


def _misspent(meter: str, pricing: Any, inherited: Any, pays: str) -> tuple[str, str] | None:
    """Return the (field, message) of the error if a unit price has another currency than `pays`, else None.

    `pays` is the currency of the organization.
    """
    costs = read_pricing(pricing or inherited).currency
    if meter != PAY_PER_USE or costs in {"", pays}:
        return None
    field = "service_id" if pricing is None else "pricing.currency"
    return field, f"costs {costs}, and the organization pays in {pays}"


def _misfit_of(meter: str, kind: str, pricing: Any, inherited: Any) -> tuple[str, str] | None:
    """Return the (field, message) of the error if a business model cannot use a negotiated price, else None.

    If the price is not stated (`pricing` is None), the service's own is checked, where it is used.
    """
    is_one_time = kind == "One-Time"
    if pricing is not None:
        return misfit(meter, is_one_time, read_pricing(pricing))
    own = read_pricing(inherited)
    uses_own = meter == PAY_PER_USE or (meter == CONSUMPTION and not own.tiers)
    error = misfit(meter, is_one_time, own) if uses_own else None
    if error is None:
        return None
    field, message = error
    return "pricing", f"must be stated: the service's own {field} {message}"


ALWAYS_THERE = frozenset({"Consumption", "Subscription", "Pay-Per-Use"})


def define(change: EntityWrite, _: Row) -> None:
    change.intend([CATALOGUE_ACCOUNT], "define", {}, organization_id=None)


def define_model(change: EntityWrite, row: Row) -> None:
    """Push the catalogue to the gateways, and the organizations that negotiated this business model."""
    define(change, row)
    here = organization_service.c
    told = select(here.organization_id).where(here.business_model_id == row["id"]).distinct()
    for organization_id in change.connection.execute(told.order_by(here.organization_id)).scalars().all():
        change.define(f"organization:{organization_id}", organization_id)


def delete_service(change: EntityWrite) -> Row:
    """Mark a service as deleted and rename its key, so that another one may have it."""
    row = lock(change)
    refuse_while_referenced(change)
    # No key a caller can choose holds a tilde.
    alter(change, {"key": f"{row['key']}~{row['id']}", "deleted_at": func.now()})
    define(change, row)
    return row


def check_model(change: EntityWrite) -> None:
    if change.command.id is not None and {"name", "meter"} & change.command.values.keys():
        name = lock(change)["name"]
        if name in ALWAYS_THERE:
            raise Conflict(f"{name} is always there: its name and meter cannot change.")


def delete_model(change: EntityWrite) -> Row:
    name = lock(change)["name"]
    if name in ALWAYS_THERE:
        raise Conflict(f"{name} is always there.")
    return entity.forget(change)


BUSINESS_MODELS = Entity(
    business_model,
    verbs={**entity.VERBS, "delete": delete_model},
    referenced={
        "Services still follow this business model.": live(service).where(
            service.c.business_model_id == THIS
        ),
    },
    check_values=check_model,
    check_row=check_model_prices,
    define=define_model,
    defining=frozenset({"meter"}),
)

_key = select(service.c.key).where(service.c.id == THIS).scalar_subquery()

_counts = case((service.c.counts_tokens, true()), (service.c.counts_none, false()))
_columns = [one for one in service.c if one.name not in {"counts_tokens", "counts_none"}]

SERVICES = Entity(
    service,
    source=live(service, *_columns, _counts.label("counts_tokens")),
    verbs={**entity.VERBS, "delete": delete_service},
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
    check_row=check_service,
    define=define,
    defining=frozenset(
        {"credits", "service_type", "business_model_id", "counts_tokens", "pricing", "upstream", "paths"}
    ),
)


# Models: a name, or a prefix and a *, with the upstreams that serve them.
def create_model(change: EntityWrite) -> Row:
    """Store a model; a `prefix` becomes a name that ends with *."""
    values = dict(change.command.values)
    prefix, name = values.pop("prefix", None), values.get("name")
    whole = None if prefix is None else f"{str(prefix).removesuffix('*')}*"
    if name is None and whole is None:
        raise Unprocessable(errors=(("name", "is required, unless there is a prefix"),))
    if name is not None and whole is not None and name != whole:
        raise Unprocessable(errors=(("prefix", "must belong together with the name, which is it and a *"),))
    values["name"] = name or whole
    change.command = replace(change.command, values=values)
    refuse_many(change.count(model, lambda: change.connection.execute(_models_there).scalar_one()))
    return entity.create(change)


def refuse_many(count: int) -> None:
    if count >= MODELS_MAX:
        raise Conflict(f"There are {MODELS_MAX} models, which is the most.")


def check_targets(change: EntityWrite, row: Row) -> None:
    """Raise `Unprocessable` for a repeated target of a model, or one with a * if the model has no prefix."""
    targets = row["targets"]
    assert isinstance(targets, list)
    said = [(target["upstream"], target.get("model")) for target in targets]
    if len(set(said)) < len(said):
        raise Unprocessable(errors=(("targets", "must name each target once"),))
    if row["prefix"] is None and any("*" in (name or "") for _, name in said):
        raise Unprocessable(errors=(("targets", "must be without * in a model, unless there is a prefix"),))


_models_there = select(func.count()).select_from(model)
_prefix = case((model.c.name.endswith("*", autoescape=True), func.left(model.c.name, -1)))

MODELS = Entity(
    model,
    source=select(*model.c, _prefix.label("prefix")),
    verbs={**entity.VERBS, "create": create_model},
    refers={"organization_id": organization},
    check_row=check_targets,
    define=define,
    defining=frozenset({"targets", "fallback", "output_max", "context"}),
)

ORGANIZATION_SERVICES = Entity(
    organization_service,
    verbs={
        "create": negotiated_prices.create,
        "change": negotiated_prices.change_row,
        "delete": negotiated_prices.delete,
    },
    refers={
        "organization_id": organization,
        "service_id": service,
        "business_model_id": business_model,
    },
    check_row=check_negotiated,
    define=people.define_organization,
    defining=frozenset({"negotiated_credits", "business_model_id", "counts_tokens", "pricing"}),
)
