"""The allow-list of routes: finds the route of a method and path, and the API family of an unknown path."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from itertools import takewhile
from urllib.parse import parse_qsl, unquote, unquote_to_bytes

from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.forms import boundary_of
from gateway.core.calls.routes import REST, Route, expression_of
from gateway.core.families.controlled import Document
from gateway.core.families.family import ApiFamily, ObjectRules, UploadRules, is_list, one_of
from gateway.core.families.header_fields import (
    CREDENTIAL_FIELDS,
    OF_BODIES,
    OVERRIDES,
    WITHHELD,
    is_refused,
    is_withheld,
)
from gateway.core.families.objects import ObjectAccess, places_of, session_of
from gateway.core.families.registry import ALL, FAMILIES, OF_METER, SHAPES, SPEAKERS
from gateway.core.model import GENERIC, Family
from gateway.errors import InvalidRequest, ObjectNotFound, Refusal, UnknownRoute, UpgradeRefused
from gateway.extras import is_installed
from gateway.http.protocol.request import RequestHead

OWN_PREFIX = "/.tollkeeper/"
USAGE_PATH = OWN_PREFIX + "usage"
# A run of the caller's tenant; its id may have any visible characters.
RUN_PATH = "/.tollkeeper/runs/{+id}"
# Holds that callers create and settle through the API.
HOLDS_PATH = "/.tollkeeper/holds"
HOLD_PATH = HOLDS_PATH + "/{id}"
HOLD_EXTEND_PATH, HOLD_SETTLE_PATH = HOLD_PATH + "/extend", HOLD_PATH + "/settle"
HOLD_ANSWER_PATH = HOLD_PATH + "/answers/{status}"
# Another gateway asks whether a call with this path is allowed.
AUTHORIZE_PATH = "/.tollkeeper/authorize/{ttl_s}/{+path}"
# Metadata of token issuers (RFC 9728): for the whole gateway, and for one resource.
METADATA_PATH = "/.well-known/oauth-protected-resource"
RESOURCE_PATH = METADATA_PATH + "/{+resource}"
# Routes that the gateway answers itself; some with a body.
READ_ROUTES = tuple(
    Route(("POST",), path, "") for path in (HOLDS_PATH, HOLD_EXTEND_PATH, HOLD_SETTLE_PATH, HOLD_ANSWER_PATH)
)
OWN_ROUTES = (
    Route(("GET",), USAGE_PATH, ""), Route(("GET", "DELETE"), RUN_PATH, ""), *READ_ROUTES,
    Route(("DELETE",), HOLD_PATH, ""), Route(("ANY",), AUTHORIZE_PATH, ""),
    Route(("GET",), METADATA_PATH, ""), Route(("GET",), RESOURCE_PATH, ""),
)  # fmt: skip
# Calls of these paths are not in the journal, except refused holds.
OWN_PATHS = frozenset({one.path for one in OWN_ROUTES}) - {HOLDS_PATH, AUTHORIZE_PATH}
# Paths of several families: the fields of a request show which family it is for.
_SHARED = tuple({path for family in ALL for path in family.also})
_ANY = frozenset({"ANY", "*"})
_ENCODED_SLASH = re.compile("%2[fF]")
_SLASHES = re.compile("/{2,}")
# Longer than the common prefix of one family's paths.
ALIKE_CHARS_MIN = len("/v1beta/")
# Paths that let a client talk to the provider directly: by WebRTC, SIP, or from a browser.
_PAST = re.compile(r"/realtime/(?:client_secrets|calls|sessions|transcription_sessions)\b|/auth_?[tT]okens\b")
# Paths of vendors that are not served: those of the account itself, and those whose answers report no use.
_OF_OPERATOR = re.compile(
    r"/(?:organizations?|projects|safety|webhook_endpoints|webhooks|user_profiles|tunnels|credentials)(?:[/:]|\Z)"
)
_UNTOLD = re.compile(
    r"/(?:sessions|automations|assistants|threads|chatkit|dreams|deployments|deployment_runs|triggers|voices"
    r"|voice_consents|content_provenance_checks)(?:[/:]|\Z)"
)
_UNSERVED = (
    (_OF_OPERATOR, "it administers the account of the upstream, which is its operator's to do"),
    (_UNTOLD, "no answer tells what it uses, so nothing could be charged for it"),
)
# Maximum of an unknown path in its error message.
PATH_CHARS_SHOWN = 200


@dataclass(frozen=True, slots=True)
class Match:
    """A path's entry in the allow-list. `route` is None if the path is known, but not with this method.

    `template` is the path in the allow-list; `asked` is the match of the call that another gateway asks
    about.
    """

    route: Route | None
    params: dict[str, str] = field(default_factory=dict)
    rest: bytes | None = None
    allow: tuple[str, ...] = ()
    template: str = ""
    asked: Match | None = None


class RouteTable:
    """All routes by path. A path without parameters has priority; the others keep the configured order."""

    def __init__(self, routes: tuple[Route, ...]) -> None:
        self._entries: list[tuple[re.Pattern[str], list[Route]]] = []
        self._exact: dict[str, list[Route]] = {}
        by_pattern: dict[str, list[Route]] = {}
        for route in (*OWN_ROUTES, *routes):
            pattern = expression_of(route.path, FAMILIES[route.family].segment)
            if pattern not in by_pattern:
                by_pattern[pattern] = []
                if "{" in route.path:
                    self._entries.append((re.compile(pattern), by_pattern[pattern]))
                else:
                    self._exact[route.path] = by_pattern[pattern]
            by_pattern[pattern].append(route)
        # Each path of the list in lower case, to find a similar path.
        self._lower = {
            path.lower(): path
            for path in (*self._exact, *(one[0].path for _, one in self._entries))
            if path != AUTHORIZE_PATH
        }
        # The upstream of each family: that of its first route.
        self.upstreams = {route.family: route.upstream for route in reversed(routes)}
        # A service metered by its answers on another route must not be called with a charge by the request.
        self._reserved = frozenset(
            route.service for route in routes if route.service and route.meter not in UNREAD_METERS
        )

    def nearest(self, path: str) -> str:
        """Return the template that an unknown path was probably meant to be, or an empty text.

        A missing or doubled prefix is the usual mistake.
        """
        asked = _SLASHES.sub("/", path).rstrip("/").lower()
        for lower, template in self._lower.items():
            if len(asked) > 1 and (lower.endswith(asked) or asked.endswith(lower)):
                return template
        alike = max(self._lower, key=lambda lower: _alike(lower, asked))
        return self._lower[alike] if _alike(alike, asked) > ALIKE_CHARS_MIN else ""

    def match_of(self, head: RequestHead) -> Match | None:
        """Find the route of a head. A WebSocket has the route of the calls in its messages."""
        path = head.path.decode("ascii")
        if not head.upgrades:
            return self.match(head.method.decode("ascii"), path)
        found = self.match("POST", path)
        return self.match("GET", path) if found is None or found.route is None else found

    def match_as_spoken(self, head: RequestHead) -> tuple[RequestHead, Match | None]:
        """Find the route of a head whose path may have another version than the API of its header fields.

        Return the head with the path as routed, and the match. Paths of model lists are never replaced: the
        header fields select their upstream.
        """
        match = self.match_of(head)
        route = None if match is None else match.route
        spoken, path = spoken_in(head, by_key=route is None), head.path.decode("ascii")
        if spoken is None or (route is not None and route.family == spoken):
            return head, match
        for begins, other in FAMILIES[spoken].versions:
            if path.startswith(begins):
                read = _at(head, other + path.removeprefix(begins))
                found = self.match_of(read)
                there = None if found is None else found.route
                if found is not None and there is not None and there.family == spoken:
                    lists = route is not None and (is_list(there) or one_of(there, found.params))
                    return (head, match) if lists else (read, found)
        return head, match

    def match(self, method: str, path: str) -> Match | None:
        """Find the route of a request; return None for a path that is not on the list.

        A path with an encoded slash matches only if its decoded form is the same call.
        """
        exact = self._exact.get(path)
        if exact is not None:
            return _match(exact, method, {}, None)
        plain = slashes_decoded(path) if "%" in path else path
        if plain != path:
            return _same(self._with_parameters(method, path), self.match(method, plain))
        return self._with_parameters(method, path)

    def _with_parameters(self, method: str, path: str) -> Match | None:
        """Return the match of a path with a route that has parameters, or None."""
        own = _owner(path) if ":" in path else None
        for pattern, routes in self._entries:
            found = pattern.fullmatch(path)
            if found is None:
                continue
            if own is not None and routes[0].family != own:
                continue  # the path `models/{+id}` of another family
            groups = found.groupdict()
            rest = groups.pop(REST, None)
            params = {name: unquote(value) for name, value in groups.items()}
            match = _match(routes, method, params, rest)
            if routes[0].path == AUTHORIZE_PATH:
                # With the call that another gateway asks for; None where none may pass that is not seen
                # here. That is a path of our own, and one of stored objects: whose they are is known by
                # their answers
                path = asked_path(path)
                asked = None if path.startswith(OWN_PREFIX) else self.match(method, path)
                if asked is None or asked.route is None:
                    return None
                route = asked.route
                shows_models = is_list(route) or one_of(route, asked.params)
                passes = route.meter != "none" or route.family == GENERIC or shows_models
                return replace(match, asked=asked) if passes else None
            return None if match.params.get("service_key") in self._reserved else match
        return None


def asked_path(path: str) -> str:
    """Return the path of the call to authorize, from the `path` at which another proxy asks about it."""
    return "/" + path.split("/", 4)[4]


def asking(head: RequestHead) -> RequestHead:
    """Return the head of the call to authorize, from the `head` with which another proxy asks about it."""
    return _at(head, asked_path(head.path.decode("ascii")))


def _at(head: RequestHead, path: str) -> RequestHead:
    """Return a copy of the head with another path, which opens no WebSocket."""
    return replace(head, path=path.encode(), upgrades=False)


def slashes_decoded(path: str) -> str:
    """Return a path with encoded slashes decoded."""
    return _ENCODED_SLASH.sub("/", path)


def _same(written: Match | None, decoded: Match | None) -> Match | None:
    """Return the match `decoded` if it is the same call, with the same parameters, as `written`; else None.

    They are the matches of one path, with its slashes decoded and as the client wrote it.
    """
    if written is None or decoded is None or decoded.rest is not None or written.params != decoded.params:
        return None
    if written.route is None or decoded.route is None:
        return decoded if written.route is decoded.route else None
    return decoded if replace(written.route, path=decoded.route.path) == decoded.route else None


def unknown_path(path: str, nearest: str) -> Refusal:
    """Return the refusal of a path that no route has; it suggests the path `nearest`, if there is one.

    If the path has an encoded slash, the refusal says that this is ambiguous.
    """
    if slashes_decoded(path) != path:
        return InvalidRequest("The path holds an encoded slash that could be read in two ways.")
    shown = path if len(path) <= PATH_CHARS_SHOWN else f"{path[:PATH_CHARS_SHOWN]}…"
    if _PAST.search(path):
        return UnknownRoute(
            f"{shown} is not served: who has its answer talks to the provider past this gateway, unmetered."
            " Open a WebSocket here instead."
        )
    for paths, why in _UNSERVED:
        if paths.search(path):
            return UnknownRoute(f"{shown} is not served: {why}.")
    meant = f" Did you mean {nearest}?" if nearest else ""
    return UnknownRoute(f"No route is configured for {shown}.{meant}")


def _alike(one: str, other: str) -> int:
    """Return the length of the common prefix of two texts."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def spoken_in(head: RequestHead, *, by_key: bool) -> Family | None:
    """Return the API family whose clients send header fields of this head, or None.

    With `by_key`, the fields of API keys count, too.
    """
    sent = head.read.keys() if by_key else head.read.keys() - CREDENTIAL_FIELDS
    return next((family for name, family in SPEAKERS.items() if name in sent), None)


def meant_for(head: RequestHead, route: Route) -> Family | None:
    """Return another API family than the route's, whose clients send the header fields of this free call.

    Return None if the fields fit the route's family, or decide nothing.
    """
    if route.meter != "none" or not FAMILIES[route.family].shares_paths:
        return None
    spoken = spoken_in(head, by_key=False)
    return None if spoken == route.family else spoken


def is_shared(path: str, among: tuple[str, ...] = _SHARED) -> bool:
    """Return whether a path equals or is below one of the paths `among`, which end in a slash."""
    return f"{path}/".startswith(among)


def misplaced(route: Route, meant: Family) -> Refusal:
    """Return the refusal of a call to a route of one API family that was meant for the family `meant`."""
    return UnknownRoute(f"Only the API of {route.family} is served at {route.path}, and this is {meant}'s.")


def family_of(path: str, spoken: Family | None) -> Family:
    """Return the API family in whose error format an unknown path is refused.

    `spoken` is the family to which the request's header fields belong, if any.
    """
    own = spoken or _owner(path)
    if own is not None:
        return own
    return next((family.name for family in ALL if path.startswith(family.prefixes)), GENERIC)


def family_of_head(head: bytes) -> Family:
    """Return the API family of an unreadable head by its request line, or the generic family."""
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    return family_of(parts[1].decode("latin-1"), None) if len(parts) > 1 else GENERIC


def _owner(path: str) -> Family | None:
    """Return the API family that alone has this path; None if no or several families have it."""
    return next(
        (family.name for family in ALL if family.own_paths is not None and family.own_paths.match(path)), None
    )


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


# Parts of a call besides its body: the content type, the query, the fields.
#
# An API may read parts there that omit the usage from an answer, change its format so that no meter reads it,
# or select another call. So query parameters are on an allow-list, and fields known for this are not
# forwarded.

JSON_TYPE = b"content-type: application/json"
_JSON = re.compile(
    rb"application/(?:json|[a-z0-9][a-z0-9!#$&^_.-]*\+json)"
    rb"[ \t]*(?:;[ \t]*charset=(?:utf-8|\"utf-8\")[ \t]*)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(rb"[A-Za-z0-9._~-]{0,64}")

# Parameters of free routes in the families' references: pages and filters of lists, parts of an object.
# Several families share a path, so all parameters are allowed on all of these routes.
_OF_LISTS = frozenset(
    b"limit after before after_id before_id order pageSize pageToken page_size page_token page filter include"
    b" include[] include%5B%5D include%5b%5d purpose type starting_after include_obfuscation stream model"
    b" return_partial_success returnPartialSuccess updateMask scope_id include_archived created_after"
    b" created_before order_by status source force ids name version view depth path_prefix"
    b" expected_content_sha256 created_at[gte] created_at[lte] created_at%5Bgte%5D created_at%5Blte%5D"
    b" created_at%5bgte%5d created_at%5blte%5d".split()
)
_EVERYWHERE = {name: values for family in ALL for name, values in family.queries.items()}
_LISTING = frozenset({*_EVERYWHERE, *_OF_LISTS})
_LISTS = ("[]", "%5B%5D", "%5b%5d")
_NONE: frozenset[bytes] = frozenset()


def check_content_type(head: RequestHead) -> None:
    """Raise `InvalidRequest` unless a metered body is uncompressed JSON in UTF-8."""
    types = head.all(b"content-type")
    if len(types) > 1 or (types and _JSON.fullmatch(types[0]) is None):
        raise InvalidRequest(
            "The content type must be application/json, or one that ends in +json, in UTF-8.",
            param="content-type",
        )
    if any(value.lower() != b"identity" for value in head.all(b"content-encoding")):
        raise InvalidRequest("A compressed body cannot be metered.", param="content-encoding")


def take_type(params: dict[str, str], head: RequestHead, route: Route, *, reads: bool) -> bytes:
    """Check the content type of a body that is read; return it for a form, else empty bytes.

    A route that receives a provider's answer for a hold accepts any type, and stores it in `params` instead.
    """
    if route.path == HOLD_ANSWER_PATH:
        for name in ("content-type", "content-encoding"):
            params[name] = b", ".join(head.all(name.encode())).decode("latin-1")
    elif reads:
        form, types = SHAPES[route.meter].form if route.meter in SHAPES else None, head.all(b"content-type")
        if form is not None and (form.alone or (types[:1] and types[0][:9].lower() == b"multipart")):
            boundary_of(b", ".join(types))
            if head.all(b"content-encoding"):
                raise InvalidRequest("A compressed body cannot be metered.", param="content-encoding")
            return types[0]
        check_content_type(head)
    return b""


def listing_query(query: bytes, route: Route) -> bytes:
    """Return the query to forward. Parameters that the API does not define are removed from lists of models.

    Some clients add parameters about themselves, such as Codex its version.
    """
    if not query or route.meter != "none" or route.family == GENERIC or not is_list(route):
        return query
    pairs = [pair for pair in query[1:].split(b"&") if pair.partition(b"=")[0] in _LISTING]
    return b"?" + b"&".join(pairs) if pairs else b""


def check_query(query: bytes, route: Route) -> None:
    """Raise `InvalidRequest` for a query parameter that neither the API's documents nor the route allow."""
    family = api_of(route)
    if family.name == GENERIC:
        return
    free, query = route.meter == "none", listing_query(query, route)
    known, of_lists = (_EVERYWHERE, _OF_LISTS) if free else (family.queries, _NONE)
    seen: set[bytes] = set()
    if query in {b"", b"?"}:
        return
    for pair in query[1:].split(b"&"):
        name, _, value = pair.partition(b"=")
        text = name.decode("ascii")
        if b";" in pair or (name not in known and name not in of_lists and text not in route.queries):
            right = ", ".join([*(key.decode() for key in (*known, *sorted(of_lists))), *route.queries])
            raise InvalidRequest(
                f"The query parameter {text} is not accepted on this route: {right}.", param=text or None
            )
        if name in seen and not text.endswith(_LISTS):
            raise InvalidRequest(f"The query parameter {text} appears twice.", param=text)
        seen.add(name)
        values = known.get(name)
        if values is not None and value not in values and text not in route.queries:
            right = " or ".join(sorted(value.decode() for value in values))
            raise InvalidRequest(f"The query parameter {text} must be {right}.", param=text)
        if values is None and name in known and _PLAIN.fullmatch(value) is None:
            raise InvalidRequest(f"The query parameter {text} must be a plain word.", param=text)


def check_fields(head: RequestHead, route: Route) -> None:
    """Raise `InvalidRequest` for a header field that guards a call or chooses, and that nobody meters."""
    if api_of(route).name == GENERIC:
        return
    for kind, _ in head.fields:
        if is_refused(kind.plain):
            name = kind.lower.decode()
            raise InvalidRequest(
                f"The header field {name} is not accepted, as its cost cannot be metered: leave it out.",
                param=name,
            )


def is_long_form(route: Route | None, form: bytes) -> bool:
    """Return whether a body is a form with a file, forwarded as it arrives, so it may exceed all buffers.

    `form` is the form's content type, empty for other bodies.
    """
    shape = SHAPES.get(route.meter) if route is not None and form else None
    return shape is not None and shape.form is not None and shape.form.alone


def withheld(head: RequestHead, route: Route, *, form: bool = False) -> frozenset[bytes]:
    """Return the names of a request's header fields that this route does not forward.

    A `form` keeps its content-type field.
    """
    family = api_of(route)
    if family.name == GENERIC:
        return _NONE
    names = OVERRIDES if route.meter == "none" else WITHHELD | family.withheld
    if not is_rewritten(route):
        names -= OF_BODIES
    elif form:
        names -= {b"content-type"}
    found = [kind.lower for kind, _ in head.fields if is_withheld(kind.plain, names)]
    uploads = uploads_of(route)
    return frozenset(one for one in found if uploads is None or not one.startswith(uploads.fields))


# The query parameter of an upload URL that replaces the key: clients send files there without a key.
UPLOAD_PASS = "upload_pass"  # noqa: S105  # a name


def uploads_of(route: Route) -> UploadRules | None:
    """Return the upload rules of a route; None if its API gives out no upload URLs."""
    uploads = FAMILIES[route.family].uploads
    return uploads if uploads is not None and route.path.startswith(uploads.path) else None


def upload_named(query: str, route: Route) -> tuple[str, str]:
    """Return the upload's id and the token in the query of an upload URL; "" for each that is missing."""
    uploads = uploads_of(route)
    if uploads is None:
        return "", ""
    asked = dict(parse_qsl(query[1:]))
    return asked.get(uploads.id, ""), asked.get(UPLOAD_PASS, "")


def without_pass(query: str, route: Route) -> str:
    """Return a query for the upstream: without the gateway's token in an upload URL."""
    if uploads_of(route) is None:
        return query
    kept = [pair for pair in query[1:].split("&") if not pair.startswith(f"{UPLOAD_PASS}=")]
    return "?" + "&".join(kept) if any(kept) else ""


def said_twice(head: RequestHead, route: Route) -> dict[str, str]:
    """Return the header fields whose values the body must have, too; repeated ones are joined by a comma."""
    names = FAMILIES[route.family].said_twice
    return {
        name.decode(): b", ".join(values).decode("latin-1") for name in names if (values := head.all(name))
    }


# Envoy's timeout for its authorization request, which is not a field of its client.
_OF_QUESTIONS = frozenset({b"x-envoy-expected-rq-timeout-ms"})


def take_key(head: RequestHead, route: Route) -> bytes:
    """Remove the key from a WebSocket's query, where browsers send it, and return it as a header field."""
    family = FAMILIES[route.family]
    name, kept = family.key_query + b"=", list[bytes]()
    if not head.query or not head.upgrades or not family.key_query or not is_live(route):
        return b""
    found = b""
    for pair in head.query[1:].split(b"&"):
        if pair.startswith(name) and not found:
            found = b"%b: %b" % (family.credentials[0], unquote_to_bytes(pair[len(name) :]))
        else:
            kept.append(pair)
    head.query = b"?" + b"&".join(kept) if kept else b""
    return found if found.isascii() and b"\r" not in found and b"\n" not in found else b""


def refusal_of_forwarded(head: RequestHead, route: Route) -> Refusal | None:
    """Return the refusal of a call that another proxy forwards, if its authorization alone is not enough.

    Return None if it is. For such a call the gateway can neither remove a field nor read the answer.
    """
    if FAMILIES[route.family].session_field:
        return UnknownRoute(
            "Calls of tools are not authorized, as nobody here sees whose their sessions are: send them here."
        )
    if is_lasting(route):
        return UnknownRoute(
            "Contents that an upstream bills by the hour are not authorized, as nobody here sees their size:"
            " send them here."
        )
    if is_live(route):
        return UnknownRoute("A WebSocket is not authorized, as nobody here sees what passes: open it here.")
    asks = withheld(head, route) - OF_BODIES - _OF_QUESTIONS
    if api_of(route).name != GENERIC:
        asks |= {kind.lower for kind, _ in head.fields if kind.chooses}
    said = sorted(name.decode("latin-1") for name in asks)
    if said:
        return InvalidRequest(f"The field {said[0]} may not reach the upstream: leave it out.", param=said[0])
    return None


def check_upgrade(route: Route | None) -> None:
    """Raise `UpgradeRefused` if the route does not accept calls by WebSocket."""
    shape = SHAPES.get(route.meter) if route else None
    if shape is None or not (shape.messages or shape.live) or not is_installed("websockets"):
        raise UpgradeRefused


def is_lasting(route: Route | None) -> bool:
    """Return whether the upstream of a route bills the time for which it stores what a call makes."""
    return route is not None and route.meter in SHAPES and SHAPES[route.meter].lasts


def is_live(route: Route | None) -> bool:
    """Return whether a route only serves WebSockets that are relayed to its upstream."""
    return route is not None and route.meter in SHAPES and SHAPES[route.meter].live is not None


def is_rewritten(route: Route) -> bool:
    """Return whether the gateway rewrites a call's body, so that the client's digests of it become wrong."""
    return route.meter not in UNREAD_METERS


def api_of(route: Route) -> ApiFamily:
    """Return the API family whose meter the route has; without one, the route's own family."""
    return OF_METER.get(route.meter) or FAMILIES[route.family]


# Stored objects that a request accesses by its path.
#
# A list of all objects would show those of every organization, so it is 404, except lists that `lists.py`
# filters. Bodies of free routes are read like those of metered ones, except forms with files.

# Collections whose API accepts files as forms; these contain no ids.
_WITH_FORMS = frozenset({"files", "uploads", "skills"})
_PARAMETER = re.compile(r"\{[^}]*\}")
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


def owned_by(head: RequestHead, route: Route) -> ObjectAccess | None:
    """Return how a request accesses stored objects, with their ids; None if the objects have no owners.

    Raise a `Refusal` if the request names its objects wrongly.
    """
    if route.family == GENERIC:
        return None
    if route.objects == "shared":
        counts = head.method == b"POST" and _counts(route) and _is_json(head, forms=True)
        return ObjectAccess((), None, reads=True, counts=True, apart=False) if counts else None
    places = places_of(route.family, head.path.decode("ascii"))
    ids = tuple(dict.fromkeys(place.id for place in places if place.id))
    ids += tuple(session_of(route.upstream, row) for row in head.all(FAMILIES[route.family].session_field))
    rules = FAMILIES[route.family].objects
    at = _kept_at(rules, route.path)
    if at.endswith("/{}") and not any(place.id for place in places):
        raise ObjectNotFound("This path is that of one stored object: put its id there.")
    takes = rules.takes.get(at)
    if route.meter != "none":
        shape = SHAPES.get(route.meter)
        keeps, stores = (None, False) if shape is None else (shape.keeps, shape.stores)
        return ObjectAccess(ids, keeps, closed=stores, takes=takes if stores else None)
    upload, _ = upload_named(head.query.decode("ascii"), route)
    if upload:  # the request sends a file, and the answer to its last part names the file
        return ObjectAccess((session_of(route.upstream, upload.encode()),), _always)
    has_body = head.method in _WITH_BODY
    is_list = not all(place.id for place in places)
    lists = rules.lists
    if is_list and lists is not None and head.method == b"GET" and route.path in lists.paths:
        return ObjectAccess((), None, bare=True, lists=True)
    if is_list and not has_body:
        raise ObjectNotFound("Organizations share this account, so nothing is listed: get one by its id.")
    reads = has_body and _is_json(head, forms=all(place.collection in _WITH_FORMS for place in places))
    if head.method == b"POST":
        tells = bool(places) and all(place.makes for place in places)
        tells = tells or route.path in rules.makers
    else:
        tells = head.method == b"GET" and bool(places) and all(place.results for place in places)
    return ObjectAccess(
        ids, _always if tells else None, reads, bare=not has_body, makes=is_list, closed=bool(places),
        takes=takes if has_body else None, counts=reads and _counts(route),
    )  # fmt: skip


def _counts(route: Route) -> bool:
    """Return whether a free route, such as counting tokens, names a model and concerns no stored object."""
    rules = FAMILIES[route.family].objects
    if route.meter != "none" or uploads_of(route) is not None:
        return False
    at = _kept_at(rules, route.path)
    return route.path not in rules.makers and (not at or at in rules.actions)


def _kept_at(rules: ObjectRules, path: str) -> str:
    """Return the template of a path without the API's version, with `{}` for each parameter.

    Return "" if the path is not one of stored objects.
    """
    found = rules.path.search(path) if rules.collections else None
    return "" if found is None else _PARAMETER.sub("{}", found[0][1:])


def _always(_: Document) -> bool:
    return True


def _is_json(head: RequestHead, *, forms: bool) -> bool:
    """Return whether a body's content type is JSON.

    Return False for a form if `forms` are allowed; raise `InvalidRequest` for any other type.
    """
    types = head.all(b"content-type")
    if not types:
        return True  # or there is no body
    media = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if media == b"application/json" or media.endswith(b"+json"):
        return True
    if not forms or media != b"multipart/form-data":
        allowed = "application/json or multipart/form-data" if forms else "application/json"
        raise InvalidRequest(f"The content-type must be {allowed}.", param="content-type")
    return False
