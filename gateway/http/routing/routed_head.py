"""What one request head asks for, by the lines of it that decide something.

Its route, the rules of that route, and where it goes are worked out here; who sends it and which lines only
pass is another's affair (`call_head.py`). A head of the deciding lines alone says all of this: clients
of one kind have it in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway.core.calls.binding import UNREAD_METERS, Binding, is_bound
from gateway.core.calls.paths import place_of
from gateway.core.calls.route import Route, UpstreamTarget
from gateway.core.families.registry import ALL, FAMILIES
from gateway.core.http_limits import HttpLimits
from gateway.core.in_use import Kept
from gateway.core.model import GENERIC, Family
from gateway.errors import CountersUnavailable, InvalidRequest, MethodNotAllowed, Refusal, UnknownRoute
from gateway.http.protocol.fields import PASSES, field_kind
from gateway.http.protocol.request import RequestHead, read_request_head
from gateway.http.routing.attribution import read_units
from gateway.http.routing.bindings import Bindings
from gateway.http.routing.family_rules import (
    JSON_TYPE,
    check_content_type,
    check_query,
    is_rewritten,
    withheld,
)
from gateway.http.routing.identity import check_query_names
from gateway.http.routing.objects import Owned, owned_by
from gateway.http.routing.routes import MODELS, Match, RouteTable, family_of, slashes_decoded
from gateway.http.server.request_driver import bare

# Of a path nobody serves, in what is said of it.
PATH_CHARS_SHOWN = 200
_SPOKEN = tuple(sorted((one for one in ALL if one.spoken_by), key=lambda one: one.spoken_by))


@dataclass(slots=True)
class RoutedHead(Kept):
    """The deciding lines of a head, understood.

    `refusal` is what they earn at once (404, 405, or bytes that are not HTTP, and then `fatal`).
    `query_refusal` waits for its turn, `object_refusal` for the one after it, and `field_refusal` for that
    of what the request says of itself. `opening` begins the head of the upstream's request, before the lines
    that pass: `withdrawn` are those deciding ones that do not, `dropped` names of any. `closing` ends it,
    but for what differs from one request to the next; `closing_plain` where no coding of the answer can
    be had. A `metered` route charges something, and a `buffered` one reads its body before anything
    is decided. One of `any_model` leads to where models are, and does not read which one is asked. A `bound`
    head goes where its service is bound: it was read under `binding`, which may be another one by now.
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
    metered: bool = False
    buffered: bool = False
    any_model: bool = False
    owned: Owned | None = None
    bound: bool = False
    binding: Binding | None = None


class HeadRouter:
    """Understand deciding lines, by one configuration."""

    def __init__(
        self,
        routes: tuple[Route, ...],
        targets: Mapping[str, UpstreamTarget],
        bindings: Bindings,
        limits: HttpLimits,
    ) -> None:
        self._table = RouteTable(routes)
        self._targets = targets
        self._places = {target.name: _place(target.base_url) for target in targets.values()}
        self.bindings = bindings
        self._limits = limits
        self._of_models = {
            place_of(targets[one.upstream].base_url)[0]
            for one in routes
            if one.family != GENERIC and one.upstream in targets
        }

    def route(self, head: bytes) -> RoutedHead:
        """Understand a head that ends in its blank line; never raises a `Refusal`, it holds them."""
        try:
            read = read_request_head(head, self._limits)
        except Refusal as refusal:
            return RoutedHead(family_of_head(head), refusal=bare(refusal), fatal=True)
        return self._routed(read)

    def is_current(self, routed: RoutedHead) -> bool:
        """Whether it would be understood the same now; where nobody knows, its own call is told so."""
        if not routed.bound or routed.route is None:
            return True
        try:
            return self.bindings.binding_of(routed.service_key, routed.route) is routed.binding
        except CountersUnavailable:
            return True

    def _routed(self, head: RequestHead) -> RoutedHead:
        path = head.path.decode("ascii")
        shares = path == MODELS or path.startswith(f"{MODELS}/")
        match = self._table.match(head.method.decode("ascii"), path)
        unknown = match is None or match.route is None
        spoken = _spoken(head) if shares or unknown else None
        routed = RoutedHead(
            family_of(path, spoken),
            method=head.method,
            minor=head.minor,
            length=head.length,
            chunked=head.chunked,
            keep_alive=head.keep_alive,
            expects=head.expects,
        )
        if match is None:
            routed.refusal = _unknown(path, self._table.nearest(path))
        elif match.route is None:
            routed.refusal, routed.allow, routed.label = MethodNotAllowed(), match.allow, match.template
        else:
            self._accept(routed, head, match, match.route, spoken)
        return routed

    def _accept(
        self, routed: RoutedHead, head: RequestHead, match: Match, route: Route, spoken: Family | None
    ) -> None:
        routed.route, routed.params, routed.label = route, match.params, route.path
        routed.service_key = match.params.get("service_key") or route.service
        routed.metered = route.meter != "none"
        routed.buffered = route.meter not in UNREAD_METERS
        path = head.path if match.rest is None else b"/" + match.rest
        if is_bound(route):
            upstream = self._bind(routed, route, path)
        else:
            upstream = self.bindings.upstreams.get(routed.service_key, route.upstream)
        if spoken is None or not FAMILIES[route.family].shares_paths or route.meter != "none":
            routed.family = route.family
        else:
            upstream = self._table.upstreams.get(spoken, upstream)
        routed.upstream = upstream
        routed.any_model = self._is_of_any_model(routed, route)
        try:
            check_query_names(head.query)
        except Refusal as refusal:
            routed.query_refusal = bare(refusal)
        try:
            routed.owned = owned_by(head, route)
            routed.buffered = routed.buffered or (routed.owned is not None and routed.owned.reads)
        except Refusal as refusal:
            routed.object_refusal = bare(refusal)
        try:
            routed.units = read_units(head.read, route)
            check_query(head.query, route)
            if routed.buffered:
                check_content_type(head)
        except Refusal as refusal:
            routed.field_refusal = bare(refusal)
        if upstream in self._targets:
            self._prepare(routed, head, self._targets[upstream], path, route)

    def _is_of_any_model(self, routed: RoutedHead, route: Route) -> bool:
        """Whether a route charges for calls where models are, and does not read which one is asked for."""
        if not routed.metered or route.meter not in UNREAD_METERS or route.models:
            return False
        if routed.service_key in self.bindings.unread or routed.upstream not in self._targets:
            return False
        place, _ = place_of(self._targets[routed.upstream].base_url)
        return route.family != GENERIC or place in self._of_models

    def _bind(self, routed: RoutedHead, route: Route, path: bytes) -> str:
        """The upstream that the service of a bound route goes to; empty where this path does not."""
        routed.bound = True
        try:
            routed.binding = binding = self.bindings.binding_of(routed.service_key, route)
        except CountersUnavailable:
            return ""  # nobody knows the services yet, and whoever asks for this one says so
        why = binding.refusal_of(path.decode("ascii")) if binding is not None else "There is no such service."
        if why:
            routed.refusal = UnknownRoute(why)
        return "" if binding is None else binding.upstream

    def _prepare(
        self, routed: RoutedHead, head: RequestHead, target: UpstreamTarget, path: bytes, route: Route
    ) -> None:
        """Work out what of a head goes on to the upstream, and in which words it begins and ends."""
        prefix, host = self._places[target.name]
        routed.opening = b"%b %b%b%b HTTP/1.1\r\n%b\r\n" % (head.method, prefix, path, head.query, host)
        ours = {name.lower().encode(): value.encode("latin-1") for name, value in target.headers}
        routed.dropped = frozenset(
            name for name in head.nominated.union(ours) if field_kind(name).role & PASSES
        )
        lines = [b"%b: %b" % field for field in ours.items()]  # last, so that nothing can shadow them
        if is_rewritten(route):
            lines.append(JSON_TYPE)
        taken = withheld(head, route)
        # An answer that must be read comes as it is: what a caller makes of its coding changes no charge.
        is_read = routed.buffered or bool(route.units_pointer)
        if is_read:
            taken |= {b"accept-encoding"}
        routed.withdrawn = tuple(line for kind, line in head.fields if kind.passes and kind.lower in taken)
        routed.closing_plain = _with_coding(lines, b"identity")
        routed.closing = routed.closing_plain if is_read else _ended(lines)


def _spoken(head: RequestHead) -> Family | None:
    """The family whose official clients send such fields, where a path is several families' at once."""
    return next((family.name for family in _SPOKEN if family.spoken_by in head.read), None)


def _with_coding(lines: list[bytes], coding: bytes) -> bytes:
    """These lines, asking for an answer in this content coding alone."""
    others = [line for line in lines if not line.lower().startswith(b"accept-encoding:")]
    return _ended([*others, b"accept-encoding: " + coding])


def _ended(lines: list[bytes]) -> bytes:
    """These lines, each with its end."""
    return b"".join([line + b"\r\n" for line in lines])


def _place(base_url: str) -> tuple[bytes, bytes]:
    """The path in front of every path at this base URL, and its Host line."""
    parts = urlsplit(base_url)
    return parts.path.rstrip("/").encode(), b"host: " + parts.netloc.rpartition("@")[2].encode()


def family_of_head(head: bytes) -> Family:
    """The family of a head that could not be read, as far as its request line tells."""
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    return family_of(parts[1].decode("latin-1"), None) if len(parts) > 1 else GENERIC


def _unknown(path: str, nearest: str) -> Refusal:
    """Say which path is unknown, and which one was probably meant; or that it leads to two."""
    if slashes_decoded(path) != path:
        return InvalidRequest("The path holds an encoded slash that could be read in two ways.")
    shown = path if len(path) <= PATH_CHARS_SHOWN else f"{path[:PATH_CHARS_SHOWN]}…"
    meant = f" Did you mean {nearest}?" if nearest else ""
    return UnknownRoute(f"No route is configured for {shown}.{meant}")
