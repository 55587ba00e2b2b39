"""The deciding lines of a request head: they select the route, its rules and the upstream.

They are the same for clients of one kind. Credentials and forwarded lines are handled in `head.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from gateway.core.calls.binding import UNREAD_METERS, Binding, is_bound
from gateway.core.calls.routes import Route, UpstreamTarget, place_of
from gateway.core.families.family import Listing, is_list, one_of
from gateway.core.families.header_fields import OF_BODIES
from gateway.core.families.objects import ObjectAccess
from gateway.core.families.registry import BATCH_AT, FAMILIES, SHAPES
from gateway.core.http_limits import HttpLimits
from gateway.core.lru import LruEntry
from gateway.core.model import GENERIC, Family
from gateway.errors import CountersUnavailable, MethodNotAllowed, Refusal, UnknownRoute
from gateway.http.attribution import read_units
from gateway.http.identity import check_query_names
from gateway.http.protocol.request import PASSES, RequestHead, accept_of, field_kind, read_request_head
from gateway.http.routing.openings import UpstreamOpening, named_path, opening_of
from gateway.http.routing.routes import (
    READ_ROUTES,
    Match,
    RouteTable,
    api_of,
    asking,
    check_fields,
    check_query,
    check_upgrade,
    family_of,
    family_of_head,
    is_live,
    is_shared,
    listing_query,
    meant_for,
    misplaced,
    owned_by,
    refusal_of_forwarded,
    said_twice,
    spoken_in,
    take_key,
    take_type,
    unknown_path,
    withheld,
)
from gateway.http.routing.worker_bindings import WorkerBindings
from gateway.http.server.buffers import bare

# Maximum of cached openings of a worker, and the bytes of a key; others are computed each time.
OPENINGS_MAX = 1_000
OPENING_BYTES_MAX = 2_048


@dataclass(slots=True)
class RoutedHead(LruEntry):
    """The meaning of the deciding lines of a head.

    `refusal` applies at once (404, 405, or an invalid head, which is `fatal`), then `query_refusal`,
    `object_refusal`, and `field_refusal` with the refusals of the request's fields. `opening` begins the
    upstream's request, before the forwarded lines: these are without the deciding lines `withdrawn`, and
    without names in `dropped`. `closing` ends the head; `closing_plain` does so if the answer must not be
    compressed. A `metered` route charges; a `buffered` one reads the body first. `any_model`: the route leads
    to models, but does not read which one is named. `bound`: the service selects the upstream; `binding` was
    the current one at reading. `listing` shows models: only `listed`, or all if that is empty. `sent` and
    `query` are the upstream's path and query. `varies`: the upstream's address or key depends on the call.
    `headers` are names of fields that its API's clients send, None where all are passed as they came.
    `unpassed` are the names of fields that are withdrawn for what they ask.
    `form` is the content type of a form that is read. `asked` is the head of the call that another gateway
    asks about. `host` is the client's name for this gateway. `opens` is the request, if it asks for a
    WebSocket. `key` is a field with the key from the address.
    """

    family: Family
    label: str = "unknown"
    refusal: Refusal | None = None
    fatal: bool = False
    allow: tuple[str, ...] = ()
    route: Route | None = None
    params: dict[str, str] = field(default_factory=dict)
    service_key: str = ""
    query_refusal: Refusal | None = None
    object_refusal: Refusal | None = None
    field_refusal: Refusal | None = None
    units: int = 1
    method: bytes = b""
    minor: int = 1
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = False
    expects: bool = False
    upstream: str = ""
    opening: bytes = b""
    closing: bytes = b""
    closing_plain: bytes = b""
    withdrawn: tuple[bytes, ...] = ()
    dropped: frozenset[bytes] = frozenset()
    headers: frozenset[bytes] | None = None
    unpassed: bytes = b""
    metered: bool = False
    buffered: bool = False
    any_model: bool = False
    owned: ObjectAccess | None = None
    bound: bool = False
    binding: Binding | None = None
    listing: Listing | None = None
    listed: str = ""
    sent: str = ""
    query: str = ""
    varies: bool = False
    form: bytes = b""
    asked: RoutedHead | None = None
    host: bytes = b""
    opens: RequestHead | None = None
    key: bytes = b""


class HeadRouter:
    """Reads the deciding lines of heads under one configuration."""

    def __init__(
        self, routes: tuple[Route, ...], targets: Mapping[str, UpstreamTarget], bindings: WorkerBindings,
        limits: HttpLimits,
    ) -> None:  # fmt: skip
        self._table = RouteTable(routes)
        self._targets = targets
        self.bindings = bindings
        self._limits = limits
        self._openings: dict[tuple[object, ...], UpstreamOpening] = {}
        self._of_models = {
            place_of(targets[route.upstream].base_url)[0]
            for route in routes
            if route.family != GENERIC and route.upstream in targets
        }

    def route_of(self, method: str, path: str) -> Route | None:
        """Return the route of a path, or None."""
        match = self._table.match(method, path)
        return None if match is None else match.route

    def route(self, head: bytes) -> RoutedHead:
        """Read a head up to its blank line, and find its route; store a `Refusal` in the result."""
        try:
            read = read_request_head(head, self._limits)
        except Refusal as refusal:
            return RoutedHead(family_of_head(head), refusal=bare(refusal), fatal=True)
        return self.route_read(read)

    def is_current(self, routed: RoutedHead) -> bool:
        """Return whether the present configuration of services would still route this head the same way."""
        if routed.asked is not None:
            return self.is_current(routed.asked)
        if not routed.bound or routed.route is None:
            return True
        try:
            return self.bindings.binding_of(routed.service_key, routed.route) is routed.binding
        except CountersUnavailable:
            return False

    def route_read(self, request: RequestHead) -> RoutedHead:
        """Find the route of a request whose head was read."""
        # A copy, as the key in the query of a WebSocket is removed from it.
        head, match = self._table.match_as_spoken(replace(request) if request.upgrades else request)
        routed = self._route_match(head, match)
        if head.upgrades or is_live(routed.route):
            try:
                check_upgrade(None if routed.asked else routed.route)
                accept_of(head)
                routed.opens = request
            except Refusal as refusal:
                routed.refusal, routed.fatal = bare(refusal), True
        return routed

    def _route_match(self, head: RequestHead, match: Match | None) -> RoutedHead:
        """Return the routed head for a matching route, or with the refusal if no route matches."""
        path = head.path.decode("ascii")
        shares = is_shared(path)
        unknown = match is None or match.route is None
        spoken = spoken_in(head, by_key=unknown) if shares or unknown else None
        if spoken is not None and not unknown and not path.startswith("/v1/models"):
            shares = spoken in self._table.upstreams and is_shared(path, FAMILIES[spoken].also)
            spoken = spoken if shares else None
        routed = RoutedHead(
            family_of(path, spoken),
            method=head.method,
            minor=head.minor,
            length=head.length,
            chunked=head.chunked,
            keep_alive=head.keep_alive,
            expects=head.expects,
            host=b"".join(head.all(b"host")),
        )
        if match is None:
            routed.refusal = unknown_path(path, self._table.nearest(path))
        elif match.route is None:
            routed.refusal, routed.allow, routed.label = MethodNotAllowed(), match.allow, match.template
        else:
            self._accept(routed, head, match, match.route, spoken)
            meant = None if shares else meant_for(head, match.route)
            if meant is not None:
                routed.family, routed.refusal = meant, bare(misplaced(match.route, meant))
        return routed

    def _accept(
        self, routed: RoutedHead, head: RequestHead, match: Match, route: Route, spoken: Family | None
    ) -> None:
        """Set what follows from the route: family, upstream, body, objects; note refusals for later."""
        routed.route, routed.label, routed.key = route, route.path, take_key(head, route)
        routed.params = match.params | said_twice(head, route)
        routed.service_key = match.params.get("service_key") or route.service
        routed.metered = route.meter != "none"
        charges = route
        if match.asked is not None and match.asked.route is not None:
            charges, asked_head = match.asked.route, asking(head)
            routed.asked = self._route_match(asked_head, match.asked)
            routed.asked.label = route.path
            refusal = refusal_of_forwarded(asked_head, charges)
            if refusal is not None:
                routed.asked.refusal = routed.asked.refusal or bare(refusal)
        routed.buffered = charges.meter not in UNREAD_METERS or route in READ_ROUTES
        path = head.path if match.rest is None else b"/" + match.rest
        if is_bound(route):
            upstream = self._bind(routed, route, path)
        else:
            upstream = self.bindings.upstreams.get(routed.service_key, route.upstream)
        if spoken is None or not FAMILIES[route.family].shares_paths or route.meter != "none":
            routed.family = charges.family
        else:
            upstream = self._table.upstreams.get(spoken, upstream)
        routed.upstream = upstream
        routed.any_model = self._is_of_any_model(routed, route)
        lists = FAMILIES[routed.family].lists
        if lists is not None and not routed.metered and head.method == b"GET":
            model = "" if is_list(route) else one_of(route, match.params).removeprefix(lists.prefix)
            if model or is_list(route):
                routed.listing, routed.listed = lists, model
        try:
            check_query_names(head.query)
        except Refusal as refusal:
            routed.query_refusal = bare(refusal)
        try:
            routed.owned = owned_by(head, route)
            routed.buffered = routed.buffered or (routed.owned is not None and routed.owned.reads)
            paths = BATCH_AT.get(route.path)
            uploads = paths is not None and route.path == paths.files and head.method == b"POST"
            if uploads and not routed.buffered:
                routed.form, routed.buffered = b"".join(head.all(b"content-type")), True
        except Refusal as refusal:
            routed.object_refusal = bare(refusal)
        try:
            routed.units = read_units(head.read, charges)
            check_query(head.query, route)
            check_fields(head, route)
            reads = routed.buffered and not routed.form
            routed.form = take_type(routed.params, head, charges, reads=reads) or routed.form
        except Refusal as refusal:
            routed.field_refusal = bare(refusal)
        if upstream in self._targets:
            self._prepare(routed, head, self._targets[upstream], path, route)

    def _is_of_any_model(self, routed: RoutedHead, route: Route) -> bool:
        """Return whether a metered route charges calls to models without reading the model's name."""
        if not routed.metered or route.meter not in UNREAD_METERS or route.models:
            return route.meter in SHAPES and SHAPES[route.meter].any_model
        if routed.service_key in self.bindings.unread or routed.upstream not in self._targets:
            return False
        place, _ = place_of(self._targets[routed.upstream].base_url)
        if route.family != GENERIC or place in self._of_models:
            return True
        return self.bindings.leads_to_models(place)

    def _bind(self, routed: RoutedHead, route: Route, path: bytes) -> str:
        """Find the service that is bound to a route; return its upstream, or "" if this path has none.

        The reason is then stored in `routed` as a refusal.
        """
        routed.bound = True
        try:
            routed.binding = binding = self.bindings.binding_of(routed.service_key, route)
        except CountersUnavailable as unknown:  # the services are not loaded yet
            routed.refusal = bare(unknown)
            return ""
        why = binding.refusal_of(path.decode("ascii")) if binding is not None else "There is no such service."
        if why:
            routed.refusal = UnknownRoute(why)
        return "" if binding is None else binding.upstream

    def _prepare(
        self, routed: RoutedHead, head: RequestHead, target: UpstreamTarget, path: bytes, route: Route
    ) -> None:
        """Compute which lines of a head are forwarded, and how the upstream's head begins and ends."""
        routed.sent = path.decode("ascii")
        routed.query = listing_query(head.query, route).decode("ascii")
        routed.varies = target.by_model or len(target.keys) > 1
        is_read = routed.buffered or bool(route.units_pointer)
        form = bool(routed.form)
        first = opening_of(
            route, target, routed.method, routed.sent, routed.query, "", is_read=is_read, form=form
        )
        routed.opening, routed.closing = first.opening, first.closings[0]
        routed.closing_plain = first.plain[0]
        routed.dropped = frozenset(
            name for name in head.nominated.union(first.dropped) if field_kind(name).role & PASSES
        )
        taken = withheld(head, route, form=form)
        # An answer that is metered must not be compressed: the caller's accepted coding must not change the
        # charge.
        if is_read:
            taken |= {b"accept-encoding"}
        routed.withdrawn = tuple(line for kind, line in head.fields if kind.passes and kind.lower in taken)
        family = api_of(route)
        if family.name != GENERIC:
            routed.headers = family.headers
            replaced = OF_BODIES | family.withheld | {b"accept-encoding"}
            gone = [kind.lower for kind, _ in head.fields if kind.passes and kind.lower in taken - replaced]
            routed.unpassed = b" ".join(gone)

    def opening(self, routed: RoutedHead, target: UpstreamTarget, model: str) -> UpstreamOpening:
        """Return the beginning and end of the upstream's request for a model, from a cache if possible."""
        route, sent = routed.route, routed.sent
        assert route is not None
        form = bool(routed.form)
        key = target.name, model, route.path, routed.method, sent, routed.query, routed.dropped, form
        known = self._openings.get(key)
        if known is None:
            path = named_path(route, routed.params, sent, model)
            is_read = routed.buffered or bool(route.units_pointer)
            known = opening_of(
                route, target, routed.method, path, routed.query, model, is_read=is_read, form=form
            )
            known.dropped = known.dropped.difference(routed.dropped)
            if len(model) + len(sent) + len(routed.query) + len(known.opening) <= OPENING_BYTES_MAX:
                if len(self._openings) >= OPENINGS_MAX:
                    self._openings.clear()
                self._openings[key] = known
        return known
