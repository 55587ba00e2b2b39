"""An organization's terms, as they resolve services for its callers.

A service is resolved once a version of the catalogue and of the terms, and stays the same object
while neither changes: what is made for a service elsewhere is found again.
"""

from __future__ import annotations

from dataclasses import replace

from gateway.core.definitions import Negotiated, OrganizationTerms
from gateway.core.model import Service
from gateway.counters.stored import decode_terms
from gateway.errors import ServiceNotIncluded

SUBSCRIPTION = "subscription"


class Terms:
    """One organization's terms; `raw` is what they were read from, empty where nothing is written."""

    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self._terms = decode_terms(raw) if raw else OrganizationTerms()
        self._features = frozenset(self._terms.features)
        self._negotiated = {one.service_id: one for one in self._terms.negotiated}
        self._resolved: dict[str, _Resolved] = {}

    def resolve(self, service: Service, now_ms: float) -> Service:
        """The catalogue's service as this organization has it; ServiceNotIncluded where it may not use it."""
        known = self._resolved.get(service.key)
        if known is None or known.base is not service:
            known = self._resolved[service.key] = _Resolved(service, self._negotiated.get(service.id))
        if known.service.meter != SUBSCRIPTION:
            return known.service
        terms = self._terms
        if terms.since_ms <= now_ms < terms.until_ms:
            if service.key not in self._features:
                raise ServiceNotIncluded(retry_helps=False)
            return known.included
        if terms.subscribed or 0 < terms.until_ms <= now_ms:
            raise ServiceNotIncluded("The organization's subscription is not in force.", retry_helps=False)
        return known.service


class _Resolved:
    """A service of the catalogue as one organization has it; `included` is the one its subscription pays."""

    __slots__ = ("base", "included", "service")

    def __init__(self, base: Service, negotiated: Negotiated | None) -> None:
        meter = (negotiated and negotiated.meter) or base.meter
        self.base = base
        self.service = replace(base, meter=meter, counts_tokens=base.counts_tokens or meter == SUBSCRIPTION)
        if negotiated is not None:
            pricing = base.pricing if negotiated.pricing is None else negotiated.pricing
            self.service = replace(self.service, credits=negotiated.credits, pricing=pricing)
        self.included = replace(self.service, needs_plan=False)
