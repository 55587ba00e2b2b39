"""An organization's terms, as they resolve services for its callers.

Subscription services are those its subscription includes. Of services with another meter it may use all, or,
where its terms say `listed`, those alone that it has a price for.

A service is resolved once a version of the catalogue and of the terms, and stays the same object
while neither changes: what is made for a service elsewhere is found again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from gateway.core.accounts.call_budgets import OrganizationBudgets
from gateway.core.accounts.definitions import Negotiated, OrganizationTerms
from gateway.core.calls.tariff import SUBSCRIPTION, as_negotiated, other_currency
from gateway.core.in_use import the_one
from gateway.core.model import Service
from gateway.counters.admission.changes import NEVER
from gateway.counters.admission.known import Heard
from gateway.counters.admission.stored import decode_terms
from gateway.errors import ServiceNotIncluded

# What is kept of an organization takes so many bytes, and so many more for each it was read from (measured).
TERMS_BYTES: Final = 1024
TERMS_COPIES: Final = 5
# How many ways to have a service organizations share that have negotiated nothing of it.
USUAL_MAX: Final = 4_096


class Terms(Heard):
    """One organization's terms; `budgets` are those of its calls, None where it has none."""

    def __init__(self, raw: bytes, organization_id: int = 0) -> None:
        self.raw, self.since, self.read_at = raw, NEVER, 0.0
        self.size = TERMS_BYTES + TERMS_COPIES * len(raw)
        self._terms = decode_terms(raw) if raw else OrganizationTerms()
        self._features = frozenset(self._terms.features)
        self._negotiated = {one.service_id: one for one in self._terms.negotiated}
        self.currency = self._terms.currency
        budgets = self._terms.budgets
        self.budgets = OrganizationBudgets(organization_id, budgets, self.currency) if budgets else None
        self._resolved: dict[str, _Resolved] = {}
        # The one that was asked for last: most organizations call one.
        self._last: _Resolved | None = None

    def resolve(self, service: Service, now_ms: float) -> Service:
        """The catalogue's service as this organization has it; ServiceNotIncluded where it may not use it."""
        known = self._last
        if known is None or known.base is not service:
            known = self._last = self._known_as(service)
        if known.since_ms <= now_ms < known.until_ms:
            return known.included
        if not known.given:
            raise ServiceNotIncluded(known.why, retry_helps=False)
        if known.service.meter != SUBSCRIPTION:
            return known.service
        terms = self._terms
        if terms.since_ms <= now_ms < terms.until_ms:
            raise ServiceNotIncluded(retry_helps=False)
        if terms.subscribed or 0 < terms.until_ms <= now_ms:
            raise ServiceNotIncluded("The organization's subscription is not in force.", retry_helps=False)
        return known.service

    def _known_as(self, service: Service) -> _Resolved:
        known = self._resolved.get(service.key)
        if known is None or known.base is not service:
            known = self._resolved[service.key] = self._resolve(service)
        return known

    def _resolve(self, service: Service) -> _Resolved:
        negotiated = self._negotiated.get(service.id)
        known = _Resolved(service, negotiated)
        if costs := other_currency(known.service, self.currency):
            known.given = False
            known.why = f"This service costs {costs}, and the organization pays in {self.currency}."
        elif self._terms.listed and negotiated is None and known.service.meter != SUBSCRIPTION:
            known.given = False
        if known.given and known.service.meter == SUBSCRIPTION and service.key in self._features:
            known.since_ms = float(self._terms.since_ms)
            known.until_ms = float(self._terms.until_ms)
        return known if negotiated is not None else _shared(known)


class _Resolved:
    """A service of the catalogue as one organization has it; `included` is the one its subscription pays.

    That is so from `since_ms` on and before `until_ms`. `given` says that it may use it, as far as that does
    not depend on a subscription.
    """

    __slots__ = ("base", "given", "included", "service", "since_ms", "until_ms", "why")

    def __init__(self, base: Service, negotiated: Negotiated | None) -> None:
        self.base = base
        self.given = True
        self.why = "This service was not given to the organization."
        self.since_ms = self.until_ms = 0.0
        self.service = as_negotiated(base, negotiated)
        self.included = replace(self.service, needs_plan=False)


def _shared(known: _Resolved) -> _Resolved:
    """The one of all organizations that have a service so: what all calls read stays near at hand."""
    name = id(known.base), known.why if not known.given else "", known.since_ms, known.until_ms
    return the_one(_usual, name, known, USUAL_MAX)  # what is kept has its base, so no other has that id


_usual: Final[dict[tuple[int, str, float, float], _Resolved]] = {}
