"""What one request head asks for, derived from its bytes alone and remembered by them.

A client sends the same head again and again, apart from the length of the body: its route,
the digest of its credential and the head its upstream will get are worked out once. A plan is
remembered when its credential was found good, never one that refuses, so that no flood of heads
without a key displaces anything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gateway.core.calls.binding import UNREAD_METERS, Binding, is_bound
from gateway.core.calls.route import Route, UpstreamTarget
from gateway.core.calls.trace import FIELD, STATE_FIELD, Parent, read_parent
from gateway.core.families.registry import ALL, FAMILIES
from gateway.core.http_limits import HttpLimits
from gateway.core.model import GENERIC, Attribution, Family
from gateway.errors import CountersUnavailable, MethodNotAllowed, Refusal, UnknownRoute
from gateway.http.protocol.remembered import Remembered
from gateway.http.protocol.request import RequestHead, read_request_head
from gateway.http.routing.attribution import read_attribution, read_units
from gateway.http.routing.bindings import Bindings
from gateway.http.routing.family_rules import JSON_TYPE, check_content_type, check_query, withheld
from gateway.http.routing.identity import credential_digest
from gateway.http.routing.objects import Owned, owned_by
from gateway.http.routing.routes import MODELS, Match, RouteTable, family_of
from gateway.http.server.request_driver import bare

ROUTED_HEADS_BYTES_MAX = 8 * 1024 * 1024
ROUTED_HEAD_BYTES_MAX = 4096
_GZIP = frozenset({b"gzip", b"x-gzip", b"*"})
_REFUSED = re.compile(rb";q=0(?:\.0*)?$")
_SPOKEN = tuple(sorted((one for one in ALL if one.spoken_by), key=lambda one: one.spoken_by))


@dataclass(slots=True)
class RoutedHead:
    """One head, understood.

    `refusal` is what this head earns at once (404, 405, or bytes that are not HTTP, and then
    `fatal`); `identity_refusal` waits for its turn and `field_refusal` for the one after it.
    `opening` is the upstream request's head without the fields of one request. A `metered`
    route charges something, and a `buffered` one reads its body before anything is decided.
    `parent` is the caller's span where requests are traced; `opening` then has none. `head` are the
    bytes it is remembered by, empty once it is, and where it is not to be. A `bound` plan goes where
    its service is bound: made from the head `source` under `binding`, which may be another one by now.
    """

    family: Family
    label: str = "unknown"
    refusal: Refusal | None = None
    fatal: bool = False
    allow: tuple[str, ...] = ()
    route: Route | None = None
    params: dict[str, str] = field(default_factory=dict)
    service_key: str = ""
    digest: str = ""
    identity_refusal: Refusal | None = None
    field_refusal: Refusal | None = None
    attribution: Attribution = field(default_factory=Attribution)
    attribution_text: str = ""
    units: int = 1
    method: bytes = b""
    minor: int = 1
    length: int | None = None
    chunked: bool = False
    keep_alive: bool = False
    expects: bool = False
    upstream: str = ""
    opening: bytes = b""
    metered: bool = False
    buffered: bool = False
    parent: Parent | None = None
    owned: Owned | None = None
    head: bytes = b""
    bound: bool = False
    binding: Binding | None = None
    source: bytes = b""


class HeadRouter:
    """Make plans and remember them. `known` are those remembered, by their heads."""

    def __init__(
        self,
        routes: tuple[Route, ...],
        targets: Mapping[str, UpstreamTarget],
        bindings: Bindings,
        pepper: bytes,
        limits: HttpLimits,
        *,
        traced: bool = False,
    ) -> None:
        self._traced = traced
        self._table = RouteTable(routes)
        self._targets = targets
        self._places = {target.name: _place(target.base_url) for target in targets.values()}
        self.bindings = bindings
        self._pepper = pepper
        self._limits = limits
        # The head is in its plan again, taken apart and as the upstream gets it.
        self._routed_heads: Remembered[bytes, RoutedHead] = Remembered(
            ROUTED_HEADS_BYTES_MAX, ROUTED_HEAD_BYTES_MAX, 3, 2048
        )
        self.known = self._routed_heads.known

    def route(self, head: bytes) -> RoutedHead:
        """Understand a head that ends in its blank line; never raises a `Refusal`, it holds them."""
        try:
            read = read_request_head(head, self._limits)
        except Refusal as refusal:
            return RoutedHead(family_of_head(head), refusal=bare(refusal), fatal=True)
        routed = self._routed(read)
        routed.source = head if routed.bound else b""
        if (
            len(head) <= ROUTED_HEAD_BYTES_MAX
            and routed.refusal is None
            and routed.identity_refusal is None
            and routed.field_refusal is None
        ):
            routed.head = head
        return routed

    def remember(self, routed: RoutedHead) -> None:
        """The credential of this plan is good: the next head of these bytes is understood already."""
        head, routed.head = routed.head, b""
        self._routed_heads.keep(head, routed)

    def _routed(self, head: RequestHead) -> RoutedHead:
        path = head.path.decode("ascii")
        spoken = _spoken(head) if path == MODELS or path.startswith(f"{MODELS}/") else None
        routed = RoutedHead(
            family_of(path, spoken),
            method=head.method,
            minor=head.minor,
            length=head.length,
            chunked=head.chunked,
            keep_alive=head.keep_alive,
            expects=head.expects,
        )
        if self._traced:
            _take_parent(routed, head)
        match = self._table.match(head.method.decode("ascii"), path)
        if match is None:
            routed.refusal = UnknownRoute()
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
        try:
            routed.digest = credential_digest(head, self._pepper)
        except Refusal as refusal:
            routed.identity_refusal = bare(refusal)
        try:
            routed.owned = owned_by(head, route)
            routed.buffered = routed.buffered or (routed.owned is not None and routed.owned.reads)
            routed.attribution, routed.attribution_text = read_attribution(head)
            routed.units = read_units(head, route)
            check_query(head.query, route)
            if routed.buffered:
                check_content_type(head)
        except Refusal as refusal:
            routed.field_refusal = bare(refusal)
        if upstream in self._targets:
            routed.opening = self._opening(head, self._targets[upstream], path, route)
            if routed.buffered and head.all(b"accept-encoding"):
                routed.opening = with_coding(routed.opening, _readable_coding(head))

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

    def _opening(self, head: RequestHead, target: UpstreamTarget, path: bytes, route: Route) -> bytes:
        """The head of the upstream's request, but for what differs from one request to the next."""
        prefix, host = self._places[target.name]
        request_line = b"%b %b%b%b HTTP/1.1" % (head.method, prefix, path, head.query)
        ours = {name.lower().encode(): value.encode("latin-1") for name, value in target.headers}
        dropped = head.nominated.union(ours, withheld(head, route))
        lines = [line for kind, line in head.fields if kind.passes and kind.lower not in dropped]
        lines += [b"%b: %b" % field for field in ours.items()]  # last, so that nothing can shadow them
        if route.meter not in UNREAD_METERS:
            lines.append(JSON_TYPE)
        return b"\r\n".join([request_line, host, *lines, b""])


def _spoken(head: RequestHead) -> Family | None:
    """The family whose official clients send such fields, where a path is several families' at once."""
    return next((family.name for family in _SPOKEN if family.spoken_by in head.read), None)


def _take_parent(routed: RoutedHead, head: RequestHead) -> None:
    """Move the caller's span from the head to the plan; without a valid one its state means nothing."""
    routed.parent = read_parent(
        [line.partition(b":")[2] for kind, line in head.fields if kind.lower == FIELD]
    )
    taken = (FIELD,) if routed.parent is not None else (FIELD, STATE_FIELD)
    head.fields = [each for each in head.fields if each[0].lower not in taken]


def with_coding(opening: bytes, coding: bytes) -> bytes:
    """The same opening, asking for an answer in this content coding alone."""
    lines = [line for line in opening.split(b"\r\n") if not line[:16].lower().startswith(b"accept-encoding:")]
    return b"\r\n".join([*lines[:-1], b"accept-encoding: " + coding, b""])


def _readable_coding(head: RequestHead) -> bytes:
    """A coding that the client takes and a meter can read; an answer in another could only be estimated."""
    offered = b",".join(head.all(b"accept-encoding")).lower().replace(b" ", b"").split(b",")
    accepted = {offer.partition(b";")[0] for offer in offered if not _REFUSED.search(offer)}
    return b"gzip" if _GZIP & accepted else b"identity"


def _place(base_url: str) -> tuple[bytes, bytes]:
    """The path in front of every path at this base URL, and its Host line."""
    parts = urlsplit(base_url)
    return parts.path.rstrip("/").encode(), b"host: " + parts.netloc.rpartition("@")[2].encode()


def family_of_head(head: bytes) -> Family:
    """The family of a head that could not be read, as far as its request line tells."""
    parts = head.split(b"\r\n", 1)[0].split(b" ")
    return family_of(parts[1].decode("latin-1"), None) if len(parts) > 1 else GENERIC
