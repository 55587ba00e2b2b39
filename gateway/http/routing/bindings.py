"""Where calls under `/services/` go now: the configuration's word over the catalogue as it is.

A binding stays the same object while the catalogue does, so a plan made under it need not be made again.
"""

from __future__ import annotations

from collections.abc import Mapping

from gateway.core.calls import binding
from gateway.core.calls.binding import Binding
from gateway.core.calls.route import Route, ServiceRules, UpstreamTarget
from gateway.core.model import Caller, Service
from gateway.errors import ServiceNotIncluded, UnknownRoute
from gateway.http.ports import Directory, Log

TOLD_MAX = 1000


class Bindings:
    """The bindings of one worker's configuration. What is wrong with them is logged once.

    `upstreams` are the names that the configuration binds services to, `unread` those of services that keys
    with a list of models may call.
    """

    def __init__(
        self,
        routes: tuple[Route, ...],
        targets: Mapping[str, UpstreamTarget],
        rules: ServiceRules,
        directory: Directory,
        log: Log,
    ) -> None:
        self.upstreams, self.unread = dict(rules.upstreams), rules.unread
        self._configured = routes, targets, rules
        self._directory = directory
        self._log = log
        self._catalogue: Mapping[str, Service] | None = None
        self._bindings = binding.Bindings(*self._configured, {})
        self._known: dict[tuple[str, str], Binding | None] = {}
        self._told: set[tuple[str, ...]] = set()
        self._services: dict[str, tuple[str, ...]] = {}
        for route in routes:
            goes = self.upstreams.get(route.service, route.upstream)
            known = self._services.get(goes, ())
            if route.service and route.service not in known:
                self._services[goes] = (*known, route.service)

    def binding_of(self, key: str, route: Route) -> Binding | None:
        """The binding of a service on a route, None for none; CountersUnavailable before a catalogue."""
        catalogue = self._directory.catalogue()
        if catalogue is not self._catalogue:
            self._catalogue, self._known = catalogue, {}
            self._bindings = binding.Bindings(*self._configured, catalogue)
        upstream = "" if "{service_key}" in route.path else route.upstream
        found = self._known.get((key, upstream))
        if found is None and key in catalogue:
            found = self._known[key, upstream] = self._bindings.of(key, upstream)
            assert found is not None
            self._tell(found, catalogue)
        return found

    def services_at(self, upstream: str) -> tuple[str, ...]:
        """The services whose own routes go to an upstream."""
        return self._services.get(upstream, ())

    def check_price(self, bound: Binding, service: Service, caller: Caller) -> None:
        """UnknownRoute where the caller could have the same paths at another price."""
        for key in bound.overlapping:
            try:
                other = self._directory.resolve(caller, key)
            except ServiceNotIncluded:
                continue
            if other is not None and not service.costs_as(other):
                raise UnknownRoute(
                    f"The services {service.key} and {key} share paths of an upstream at different prices: "
                    "both are refused until each has paths of its own."
                )

    def _tell(self, bound: Binding, catalogue: Mapping[str, Service]) -> None:
        service = bound.service
        if not bound.upstream and service.upstream:
            self._tell_once("service_without_upstream", service.key, upstream=service.upstream)
        for key in bound.overlapping:
            if key in catalogue and not service.costs_as(catalogue[key]):
                self._tell_once("services_share_paths", service.key, shares_with=key)

    def _tell_once(self, event: str, service: str, **other: str) -> None:
        told = (event, service, *other.values())
        if len(self._told) < TOLD_MAX and told not in self._told:
            self._told.add(told)
            self._log(event, service=service, level="error", **other)
