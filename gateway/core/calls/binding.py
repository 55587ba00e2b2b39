"""The destination of a service's calls under `/services/`: its upstream, and the paths that it may reach.

Pure. The configuration and the catalogue both state these. What one of them leaves out the other states, and
a path must be allowed by both. Paths that API families meter by answers, and paths of stored objects, cannot
be called here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from urllib.parse import unquote

from gateway.core.calls.routes import (
    EVERY_PATH,
    PARAMETER,
    VERSION,
    Pattern,
    Plain,
    Route,
    ServiceRules,
    UpstreamTarget,
    of_template,
    place_of,
    plain,
    read_pattern,
    render_path,
    template_expression,
)
from gateway.core.families.registry import ALL
from gateway.core.model import GENERIC, Service

SERVICES_PREFIX = "/services/"
# Meters that charge by the request, without reading a model's usage.
UNREAD_METERS = frozenset({"none", "generic", "units"})


# The last segment of each path that a family meters, and of two others.
_PATHS = {route.path for family in ALL for route in family.routes if route.meter != "none"}
_WORDS = "|".join(
    sorted({path.rpartition("/")[2] for path in _PATHS if "{" not in path} | {"complete", "interactions"})
)
# Other paths at the root of model servers: vLLM, SGLang, TGI, llama.cpp, Ollama, SageMaker.
_OF_SERVERS = "completion|infill|embedding|generate|generate_stream|invocations|api/(?:chat|generate|embed.*)"
_BELOW = r"(?:\.[a-z0-9]*)?(?:/.*)?"  # another format, or a path below
_NAMES = "|".join(family.name for family in ALL)  # what some hosts put in front instead of a version
_COMES_BEFORE = rf"(?:{VERSION.pattern}|{_NAMES}|(?:deployments|engines)/[^/]+)"
# Metered paths of any family, behind any prefix. Hosts of one family may serve the paths of others too.
_METERED = re.compile(
    rf"(?:/.*)?(?:/chat/completions|/{_COMES_BEFORE}/(?:{_WORDS})){_BELOW}"
    r"|.*:[a-z]*(?:generate|embed|predict)[a-z]*(?:/.*)?",
    re.DOTALL,
)
# Paths that create a batch of model calls, behind any prefix.
_BATCHES = re.compile(
    rf"(?:/.*)?/{_COMES_BEFORE}/(?:messages/)?(?:batches|batch/jobs|batch|batchpredictionjobs)"
    r"|(?:/.*)?/chat/completions/batch|.*:(?:async)?batch(?:generate|embed)[a-z]*",
    re.DOTALL,
)
# Values of a template's parameter that are tried.
_MAY_BE = ("", "v1", "batches", "messages/batches", "batchGenerateContent")
_KINDS = "|".join(re.escape(name.casefold()) for family in ALL for name in family.objects.collections)
_KEPT = re.compile(rf"(?:/.*)?/(?:{VERSION.pattern}|{_NAMES})/(?:{_KINDS})(?:/.*)?", re.DOTALL)


@dataclass(frozen=True, slots=True)
class ServicePaths:
    """The paths at one upstream that calls of a service may reach: they match a pattern of each group."""

    service: str
    upstream: str
    host: str
    groups: tuple[tuple[Pattern, ...], ...]

    def meets(self, other: ServicePaths) -> bool:
        """Return whether calls of this service and of `other` could reach the same path of the same host."""
        return self.host == other.host and all(
            any(binding.meets(another) for binding in mine for another in theirs)
            for mine in self.groups
            for theirs in other.groups
        )

    def takes_all_below(self, prefix: Plain) -> bool:
        """Return whether each group allows all paths below `prefix`."""
        return all(
            any(pattern.rest and pattern.segments == prefix for pattern in group) for group in self.groups
        )


@dataclass(frozen=True, slots=True, eq=False)
class Binding:
    """The upstream and the paths to which calls of one service go.

    Without an `upstream`, `why` is the reason. `overlapping` are other services with some of the same paths:
    these must have the same prices.
    """

    service: Service
    upstream: str = ""
    why: str = ""
    overlapping: tuple[str, ...] = ()
    reach: ServicePaths | None = None
    base_path: str = ""
    served: tuple[re.Pattern[str], ...] = field(default=(), repr=False)

    def refusal_of(self, path: str) -> str:
        """Return the reason why the service does not serve a path, empty if it does."""
        if self.reach is None:
            return self.why
        plainly = plain(self.base_path + path)
        if plainly is None:
            return "The path is percent-encoded too many times."
        line = render_path(plainly)
        if any(template.fullmatch(line) for template in self.served):
            return "This path belongs to an API of its own and cannot be called as a service's."
        if all(any(reach.takes(path, plainly) for reach in group) for group in self.reach.groups):
            return ""
        return f"The service {self.service.key} does not include this path."


class Bindings:
    """The bindings of all services, by the configuration and one catalogue. Each is made on demand.

    `of_models` names the upstreams of configured models.
    """

    def __init__(
        self,
        routes: tuple[Route, ...],
        targets: Mapping[str, UpstreamTarget],
        rules: ServiceRules,
        catalogue: Mapping[str, Service],
        of_models: frozenset[str] = frozenset(),
    ) -> None:
        self._places_of_models = {
            place_of(targets[name].base_url)[0] for name in of_models if name in targets
        }
        self._targets = targets
        self._rules = rules
        self._catalogue = catalogue
        self._file = dict(rules.upstreams), dict(rules.paths)
        self._routes = routes
        self._reaches: tuple[ServicePaths, ...] | None = None

    def leads_to_models(self, host: str) -> bool:
        """Return whether a configured model is served at this host."""
        return host in self._places_of_models

    def of(self, key: str, route_upstream: str = "") -> Binding | None:
        """Return the binding of a service, or None if it is unknown.

        `route_upstream` is the upstream of the service's own route.
        """
        service = self._catalogue.get(key)
        if service is None:
            return None
        reach = self._reach(service, route_upstream)
        if reach is None:
            return Binding(service, why=f"The service {key} has no upstream of its own.")
        target = self._targets.get(reach.upstream)
        if target is None:
            return Binding(service, why=f"The upstream of the service {key} is not configured here.")
        if target.path:
            return Binding(service, why=f"The upstream of the service {key} has paths of its own alone.")
        path = target.base_url.partition("://")[2].partition("/")[2]
        base_path = f"/{path}" if path else ""
        prefix = place_of(target.base_url)[1]
        reserved = tuple(self._reserved_paths(reach.host, prefix if reach.takes_all_below(prefix) else None))
        overlapping = () if self._rules.shared else tuple(dict.fromkeys(self._overlapping(reach)))
        return Binding(service, reach.upstream, "", overlapping, reach, base_path, reserved)

    def conflicts(self) -> Iterator[tuple[str, str, str]]:
        """Yield pairs of services that reach the same paths at different prices, with the upstream's name."""
        reaches = () if self._rules.shared else self._all()
        for one, other in conflicting(reaches, self._catalogue, unknown=False):
            yield one.service, other.service, one.upstream

    def unplaced(self) -> Iterator[tuple[str, str]]:
        """Yield each service bound to an upstream that is not configured, with the upstream's name."""
        for one in self._catalogue.values():
            name = self._file[0].get(one.key, one.upstream)
            if name and name not in self._targets:
                yield one.key, name

    def _overlapping(self, mine: ServicePaths) -> Iterator[str]:
        for other in self._all():
            if other.service != mine.service and mine.meets(other):
                yield other.service

    def _all(self) -> tuple[ServicePaths, ...]:
        """Return the paths that each service reaches, through its configured upstream and its own routes."""
        if self._reaches is None:
            bound = (self._reach(service) for service in self._catalogue.values())
            bindings = [
                binding for binding in bound if binding is not None and binding.upstream in self._targets
            ]
            self._reaches = (*bindings, *self._paths_of_routes())
        return self._reaches

    def _paths_of_routes(self) -> Iterator[ServicePaths]:
        """Yield the paths that services reach by routes of their own."""
        for route in self._routes:
            if route.service and route.meter == "generic":
                name = self._file[0].get(route.service, route.upstream)
                if name in self._targets:
                    host, prefix = place_of(self._targets[name].base_url)
                    yield ServicePaths(route.service, name, host, ((of_template(route.path).below(prefix),),))

    def _reach(self, service: Service, route_upstream: str = "") -> ServicePaths | None:
        upstreams, paths = self._file
        name = upstreams.get(service.key) or route_upstream or service.upstream or self._rules.shared
        if not name:
            return None
        return reach_of(service.key, self._targets.get(name), name, paths.get(service.key, ()), service.paths)

    def _reserved_paths(self, host: str, root: Plain | None) -> Iterator[re.Pattern[str]]:
        """Yield patterns of the paths at a host that no service may serve: metered calls and stored objects.

        `root` is the base path of a service: below it the patterns match without an API version too.
        It is None if the service states its own paths.
        """
        routes = list(self._routes_at(host))
        metered = [(route, target) for route, target in routes if route.meter not in UNREAD_METERS]
        words: list[str] = []
        for route, target in metered:
            prefix = place_of(target.base_url)[1]
            yield template_expression(route.path, prefix)
            if target.path and "{" not in target.path:
                own_path = render_path(prefix + (plain(target.path) or ()))
                yield re.compile(re.escape(own_path) + ".*", re.DOTALL)
        if metered or host in self._places_of_models:
            yield _METERED
            words += [_WORDS, _OF_SERVERS]
        if host in self._places_of_models or any(route.objects != "shared" for route, _ in routes):
            yield _KEPT
            words.append(_KINDS)
        if root is not None and words:
            front = "".join(f"/{re.escape(segment)}" for segment in root)
            yield re.compile(rf"(?:{front})?/(?:{'|'.join(words)}){_BELOW}", re.DOTALL)

    def _routes_at(self, host: str) -> Iterator[tuple[Route, UpstreamTarget]]:
        """Yield the routes of API families that lead to a host, each with its upstream."""
        for route in self._routes:
            target = self._targets.get(self._file[0].get(route.service, route.upstream))
            if route.family != GENERIC and target is not None and place_of(target.base_url)[0] == host:
                yield route, target


def reach_of(key: str, target: UpstreamTarget | None, name: str, *groups: tuple[str, ...]) -> ServicePaths:
    """Return the paths that the calls of a service with the key `key` may reach at its upstream.

    `name` is the upstream's name, `target` its configuration. A path must match a pattern of each of the
    `groups`; an empty group allows all paths.
    """
    host, prefix = place_of(target.base_url) if target is not None else ("", ())
    read = tuple(tuple(_patterns(group, prefix)) for group in groups if group)
    return ServicePaths(key, name, host, read or ((EVERY_PATH.below(prefix),),))


def conflicting(
    reaches: Sequence[ServicePaths], catalogue: Mapping[str, Service], *, unknown: bool
) -> Iterator[tuple[ServicePaths, ServicePaths]]:
    """Yield pairs of `reaches` with paths in common, whose services have different prices in `catalogue`.

    A service that the catalogue lacks counts as different if `unknown` is true.
    """
    for reach, other in combinations(reaches, 2):
        mine, theirs = catalogue.get(reach.service), catalogue.get(other.service)
        differ = unknown if mine is None or theirs is None else not mine.costs_as(theirs)
        if differ and reach.meets(other):
            yield reach, other


def makes_batches(route: Route) -> bool:
    """Return whether a POST on a route may create a batch: some path that it matches is one for batches."""
    if not {"POST", "PUT", "ANY", "*"} & set(route.methods):
        return False
    may_be: tuple[str, ...] = ("x",)
    if route.family != GENERIC:
        may_be += _MAY_BE if VERSION.search(route.path) else (*_MAY_BE, "v1/batches", "v1/messages/batches")
    paths = (unquote(PARAMETER.sub(one, route.path)).lower().rstrip("/") for one in may_be)
    return any(_BATCHES.fullmatch(path) for path in paths)


def is_bound(route: Route) -> bool:
    """Return whether calls of a route go to the upstream that is configured for their service."""
    under = route.path.startswith(SERVICES_PREFIX) or "{service_key}" in route.path
    return under and route.meter in UNREAD_METERS


def _patterns(group: tuple[str, ...], prefix: Plain) -> Iterator[Pattern]:
    """Yield the patterns of `group`, each below `prefix`.

    One that only a newer version can read is skipped, and so matches nothing.
    """
    for text in group:
        with suppress(ValueError):
            yield read_pattern(text).below(prefix)
