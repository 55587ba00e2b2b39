"""The allow-list: which route a method and a path are, and whose errors an unknown path gets."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import takewhile
from urllib.parse import unquote

from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.route import Route
from gateway.core.calls.templates import REST, expression_of
from gateway.core.families.registry import ALL, FAMILIES
from gateway.core.model import GENERIC, Family

USAGE_PATH = "/.tollkeeper/usage"
_USAGE_ROUTE = Route(("GET",), USAGE_PATH, "")
# Several families have this path and those below it: the fields of a request tell whose it is.
MODELS = "/v1/models"
_ANY = frozenset({"ANY", "*"})
_ENCODED_SLASH = re.compile("%2[fF]")
_SLASHES = re.compile("/{2,}")
# More than what all paths of one family begin with.
ALIKE_CHARS_MIN = len("/v1beta/")


@dataclass(frozen=True, slots=True)
class Match:
    """A path on the allow-list. `route` is None where the path is known and the method is not.

    `template` is the path as the allow-list has it.
    """

    route: Route | None
    params: dict[str, str] = field(default_factory=dict)
    rest: bytes | None = None
    allow: tuple[str, ...] = ()
    template: str = ""


class RouteTable:
    """A path without parameters decides first, then the others in the order of the configuration."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._entries: list[tuple[re.Pattern[str], list[Route]]] = []
        self._exact: dict[str, list[Route]] = {}
        by_pattern: dict[str, list[Route]] = {}
        for route in routes:
            pattern = expression_of(route.path, FAMILIES[route.family].segment)
            if pattern not in by_pattern:
                by_pattern[pattern] = []
                if "{" in route.path:
                    self._entries.append((re.compile(pattern), by_pattern[pattern]))
                else:
                    self._exact[route.path] = by_pattern[pattern]
            by_pattern[pattern].append(route)
        self._exact[USAGE_PATH] = [_USAGE_ROUTE]
        # Each path of the list in small letters, by which one that is near is found.
        self._lower = {
            path.lower(): path for path in (*self._exact, *(one[0].path for _, one in self._entries))
        }
        # Where each family's calls go: the first of its routes says.
        self.upstreams = {route.family: route.upstream for route in reversed(routes)}
        # A service another route meters by its answers must not be had by the request instead.
        self._reserved = frozenset(
            route.service for route in routes if route.service and route.meter not in UNREAD_METERS
        )

    def nearest(self, path: str) -> str:
        """The template that a path was probably meant to be; empty where none is near.

        A beginning that is missing, or is there twice, is the usual mistake.
        """
        asked = _SLASHES.sub("/", path).rstrip("/").lower()
        for lower, template in self._lower.items():
            if len(asked) > 1 and (lower.endswith(asked) or asked.endswith(lower)):
                return template
        alike = max(self._lower, key=lambda lower: _alike(lower, asked))
        return self._lower[alike] if _alike(alike, asked) > ALIKE_CHARS_MIN else ""

    def match(self, method: str, path: str) -> Match | None:
        """Find the route of a request; None for a path that is not on the list.

        With an encoded slash it is on the list where whoever decodes it finds the same call.
        """
        exact = self._exact.get(path)
        if exact is not None:
            return _match(exact, method, {}, None)
        plain = slashes_decoded(path) if "%" in path else path
        if plain != path:
            return _same(self._with_parameters(method, path), self.match(method, plain))
        return self._with_parameters(method, path)

    def _with_parameters(self, method: str, path: str) -> Match | None:
        own = _owner(path) if ":" in path else None
        for pattern, routes in self._entries:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if own is not None and routes[0].family != own:
                continue  # `models/{+id}` of another family
            groups = found.groupdict()
            rest = groups.pop(REST, None)
            params = {name: unquote(value) for name, value in groups.items()}
            match = _match(routes, method, params, rest)
            return None if match.params.get("service_key") in self._reserved else match
        return None


def slashes_decoded(path: str) -> str:
    """A path as one reads it for whom an encoded slash is a slash."""
    return _ENCODED_SLASH.sub("/", path)


def _same(written: Match | None, decoded: Match | None) -> Match | None:
    """What both readings of a path are: one call with the same names in it, or nothing that is served."""
    if written is None or decoded is None or decoded.rest is not None or written.params != decoded.params:
        return None
    if written.route is None or decoded.route is None:
        return decoded if written.route is decoded.route else None
    return decoded if replace(written.route, path=decoded.route.path) == decoded.route else None


def _alike(one: str, other: str) -> int:
    """How many characters two texts begin alike with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def family_of(path: str, spoken: Family | None) -> Family:
    """Whose shape an answer to an unknown path takes; `spoken` is the family whose fields came with it."""
    own = _owner(path)
    if own is not None or spoken is not None:
        return own or spoken or GENERIC
    return next((family.name for family in ALL if path.startswith(family.prefixes)), GENERIC)


def _owner(path: str) -> Family | None:
    """The family that alone has such a path."""
    return next((one.name for one in ALL if one.own_paths is not None and one.own_paths.match(path)), None)


def _match(routes: list[Route], method: str, params: dict[str, str], rest: str | None) -> Match:
    for route in routes:
        if _takes(route, method):
            return Match(route, params, rest.encode() if rest is not None else None)
    return Match(None, allow=_allow(routes), template=routes[0].path)


def _takes(route: Route, method: str) -> bool:
    if method in route.methods or not _ANY.isdisjoint(route.methods):
        return True
    return method == "HEAD" and "GET" in route.methods


def _allow(routes: list[Route]) -> tuple[str, ...]:
    methods = dict.fromkeys(method for route in routes for method in route.methods)
    if "GET" in methods:
        methods.setdefault("HEAD")
    return tuple(methods)
