"""What may come with the body of a call to an API family: its content type, its query, its fields.

What an API's own infrastructure reads there can leave the use out of an answer, shape it so that
no meter reads it, or make another call of it. So what a query may have is on a list, and fields known to
do such things never pass.
"""

from __future__ import annotations

import re

from gateway.core.calls.binding import UNREAD_METERS
from gateway.core.calls.route import Route
from gateway.core.families.family import ApiFamily
from gateway.core.families.registry import ALL, FAMILIES, OF_METER
from gateway.core.model import GENERIC
from gateway.errors import InvalidRequest
from gateway.http.protocol.fields import OF_BODIES, OVERRIDES, WITHHELD, is_withheld
from gateway.http.protocol.request import RequestHead

JSON_TYPE = b"content-type: application/json"
_JSON = re.compile(
    rb"application/(?:json|[a-z0-9][a-z0-9!#$&^_.-]*\+json)"
    rb"[ \t]*(?:;[ \t]*charset=(?:utf-8|\"utf-8\")[ \t]*)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(rb"[A-Za-z0-9._~-]{0,64}")

# What the families' references have on routes that cost nothing: pages and filters of lists, parts of an
# object. Clients of several families ask for one path, so all of them are on all.
_OF_LISTS = frozenset(
    b"limit after before after_id before_id order pageSize pageToken page_size page_token page filter include"
    b" include[] include%5B%5D include%5b%5d purpose type starting_after include_obfuscation stream model"
    b" return_partial_success returnPartialSuccess updateMask scope_id include_archived created_after"
    b" created_before".split()
)
_EVERYWHERE = {name: values for one in ALL for name, values in one.queries.items()}
_LISTS = ("[]", "%5B%5D", "%5b%5d")
_NONE: frozenset[bytes] = frozenset()


def check_content_type(head: RequestHead) -> None:
    """A metered body is JSON in UTF-8: nothing else is read here as its upstream would read it."""
    types = head.all(b"content-type")
    if len(types) > 1 or (types and _JSON.fullmatch(types[0]) is None):
        raise InvalidRequest(
            "The content type must be application/json, or one that ends in +json, in UTF-8.",
            param="content-type",
        )
    if any(value.lower() != b"identity" for value in head.all(b"content-encoding")):
        raise InvalidRequest("A compressed body cannot be metered.", param="content-encoding")


def check_query(query: bytes, route: Route) -> None:
    """Refuse a parameter that its family does not document on such a route, nor the route names."""
    family = _family(route)
    if not query or family.name == GENERIC:
        return
    free = route.meter == "none"
    known, of_lists = (_EVERYWHERE, _OF_LISTS) if free else (family.queries, _NONE)
    seen: set[bytes] = set()
    for pair in query[1:].split(b"&"):
        name, _, value = pair.partition(b"=")
        text = name.decode("ascii")
        if b";" in pair or (name not in known and name not in of_lists and text not in route.queries):
            right = ", ".join([*(one.decode() for one in (*known, *sorted(of_lists))), *route.queries])
            raise InvalidRequest(
                f"The query parameter {text} is not accepted on this route: {right}.", param=text or None
            )
        if name in seen and not text.endswith(_LISTS):
            raise InvalidRequest(f"The query parameter {text} appears twice.", param=text)
        seen.add(name)
        values = known.get(name)
        if values is not None and value not in values:
            right = " or ".join(sorted(one.decode() for one in values))
            raise InvalidRequest(f"The query parameter {text} must be {right}.", param=text)
        if values is None and name in known and _PLAIN.fullmatch(value) is None:
            raise InvalidRequest(f"The query parameter {text} must be a plain word.", param=text)


def withheld(head: RequestHead, route: Route) -> frozenset[bytes]:
    """Names of this request's fields that do not pass on this route."""
    family = _family(route)
    if family.name == GENERIC:
        return _NONE
    names = OVERRIDES if route.meter == "none" else WITHHELD | family.withheld
    if not is_rewritten(route):
        names -= OF_BODIES
    return frozenset(kind.lower for kind, _ in head.fields if is_withheld(kind.plain, names))


def is_rewritten(route: Route) -> bool:
    """Whether a call's body is read and written again: then its type and digests are not its caller's."""
    return route.meter not in UNREAD_METERS


def _family(route: Route) -> ApiFamily:
    """Whose API a route is: what meters its answers says it, else the route itself."""
    return OF_METER.get(route.meter) or FAMILIES[route.family]
