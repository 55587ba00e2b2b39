"""The bindings of services to upstreams, as one worker has them."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.calls.ports import DirectoryPort
from gateway.core.calls import binding
from gateway.core.calls.binding import Binding
from gateway.core.calls.models import NO_MODELS, ConfiguredModels
from gateway.core.calls.routes import Route, ServiceRules, UpstreamTarget
from gateway.core.families.registry import SHAPES
from gateway.core.model import Service
from gateway.http.ports import Log

TOLD_MAX = 1000


class WorkerBindings:
    """The bindings of services to upstreams in one worker's configuration; faults are logged once.

    `upstreams` are the configured upstreams of services. `unread` are services that keys with a list of
    models may call though the model is not read. `models` are the configured models.
    """

    def __init__(  # noqa: PLR0917  # a configuration, and who tells of it
        self,
        routes: tuple[Route, ...],
        targets: Mapping[str, UpstreamTarget],
        rules: ServiceRules,
        directory: DirectoryPort,
        log: Log,
        models: ConfiguredModels = NO_MODELS,
    ) -> None:
        self._models = models
        self.upstreams, self.unread = dict(rules.upstreams), rules.unread
        self._configured = routes, targets, rules
        self._directory = directory
        self._log = log
        self._catalogue: Mapping[str, Service] | None = None
        self._bindings = binding.Bindings(*self._configured, {}, models.upstreams())
        self._known: dict[tuple[str, str], Binding | None] = {}
        self._logged: set[tuple[str, ...]] = set()
        self._services: dict[str, tuple[str, ...]] = {}
        self._reading = [route for route in routes if route.meter in SHAPES]
        for route in routes:
            goes = self.upstreams.get(route.service, route.upstream)
            known = self._services.get(goes, ())
            if route.service and route.service not in known:
                self._services[goes] = (*known, route.service)

    def binding_of(self, key: str, route: Route) -> Binding | None:
        """Return the upstream and paths that are configured for a service, or None for an unknown service.

        Raise `CountersUnavailable` while the catalogue of services is not loaded.
        """
        catalogue = self._directory.catalogue()
        if catalogue is not self._catalogue:
            self._catalogue, self._known = catalogue, {}
            self._bindings = binding.Bindings(*self._configured, catalogue, self._models.upstreams())
        upstream = "" if "{service_key}" in route.path else route.upstream
        known = self._known.get((key, upstream))
        if known is None and key in catalogue:
            known = self._known[key, upstream] = self._bindings.of(key, upstream)
            assert known is not None
            self._tell(known, catalogue)
        return known

    def leads_to_models(self, host: str) -> bool:
        """Return whether an upstream at this host answers for a configured model."""
        return self._bindings.leads_to_models(host)

    def read_by(self, key: str) -> Route | None:
        """Return the first route that meters the calls of a service, or None."""
        return next((route for route in self._reading if route.service == key), None)

    def services_at(self, upstream: str) -> tuple[str, ...]:
        """Return the keys of services that are configured to use an upstream by themselves."""
        return self._services.get(upstream, ())

    def _tell(self, bound: Binding, catalogue: Mapping[str, Service]) -> None:
        service = bound.service
        if not bound.upstream and service.upstream:
            self._tell_once("service_without_upstream", service.key, upstream=service.upstream)
        for key in bound.overlapping:
            if key in catalogue and not service.costs_as(catalogue[key]):
                self._tell_once("services_share_paths", service.key, shares_with=key)

    def _tell_once(self, event: str, service: str, **other: str) -> None:
        message = (event, service, *other.values())
        if len(self._logged) < TOLD_MAX and message not in self._logged:
            self._logged.add(message)
            self._log(event, service=service, level="error", **other)
