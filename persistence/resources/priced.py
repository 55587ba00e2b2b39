"""No price is stored that the business model of its service cannot use: a call could not be charged by it.

What holds after a change is checked, in its own transaction: the service's price, and the prices of
organizations that follow the service or go another way.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import ColumnElement, select

from gateway.core.accounts.administration import Row
from gateway.core.billing.pricing import read_pricing
from gateway.core.calls.tariff import CONSUMPTION, PAY_PER_USE, misfit
from gateway.errors import Conflict, Unprocessable
from persistence.subject import Change
from persistence.tables import business_model, organization, organization_service, service

# A change of others does not decide what a call costs.
_DECIDING = frozenset({"pricing", "business_model_id", "service_type", "meter", "service_id"})
_own = business_model.alias("own")
_chosen = business_model.alias("chosen")


def check_service(change: Change, row: Row) -> None:
    """A service, and what organizations negotiated for it."""
    for found in _services(change, service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))
    _refuse_negotiated(change, organization_service.c.service_id == row["id"])


def check_negotiated(change: Change, row: Row) -> None:
    """What an organization negotiated."""
    for _, found in _negotiated(change, organization_service.c.id == row["id"]):
        raise Unprocessable(errors=(found,))


def check_model(change: Change, row: Row) -> None:
    """Every service that follows a business model."""
    for _, why in _services(change, service.c.business_model_id == row["id"]):
        raise Conflict(f"A service of this business model could not use its pricing: {why}.")
    follows = service.c.business_model_id == row["id"]
    _refuse_negotiated(change, (organization_service.c.business_model_id == row["id"]) | follows)


def _refuse_negotiated(change: Change, which: ColumnElement[bool]) -> None:
    for row_id, (_, why) in _negotiated(change, which):
        raise Conflict(
            f"Change organization-services {row_id} first, which could not use its pricing: {why}."
        )


def _services(change: Change, which: ColumnElement[bool]) -> Iterator[tuple[str, str]]:
    """The field and what is right in its place, of each service that cannot use its price."""
    if not _DECIDING & change.command.values.keys():
        return
    query = (
        select(service.c.service_type, service.c.pricing, _own.c.meter)
        .join(_own, _own.c.id == service.c.business_model_id)
        .where(which, service.c.deleted_at.is_(None), service.c.pricing.is_not(None))
    )
    for kind, pricing, meter in change.connection.execute(query):
        found = misfit(meter, kind == "One-Time", read_pricing(pricing))
        if found is not None:
            yield found


def _negotiated(change: Change, which: ColumnElement[bool]) -> Iterator[tuple[int, tuple[str, str]]]:
    """The same of what organizations negotiated, each with its id."""
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
        .where(which)
    )
    for row_id, kind, pricing, inherited, own, chosen, pays in change.connection.execute(query):
        meter = chosen or own
        found = _misfit_of(meter, kind, pricing, inherited) or _misspent(meter, pricing, inherited, pays)
        if found is not None:
            yield row_id, found


def _misspent(meter: str, pricing: Any, inherited: Any, pays: str) -> tuple[str, str] | None:
    """Units that cost what the organization does not pay in: nothing is converted."""
    costs = read_pricing(pricing or inherited).currency
    if meter != PAY_PER_USE or costs in {"", pays}:
        return None
    field = "service_id" if pricing is None else "pricing.currency"
    return field, f"costs {costs}, and the organization pays in {pays}"


def _misfit_of(meter: str, kind: str, pricing: Any, inherited: Any) -> tuple[str, str] | None:
    if pricing is not None:
        return misfit(meter, kind == "One-Time", read_pricing(pricing))
    own = read_pricing(inherited)
    if meter not in {CONSUMPTION, PAY_PER_USE} or (meter == CONSUMPTION and own.tiers):
        return None  # the service's own is not used then
    found = misfit(meter, kind == "One-Time", own)
    return None if found is None else ("pricing", f"must be stated: the service's own {found[0]} {found[1]}")
