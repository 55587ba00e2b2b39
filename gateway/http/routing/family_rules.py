"""What may stand beside the body of a call to an API family: its content type, its query, its fields.

What an API's own infrastructure reads there can leave the use out of an answer, shape it so that
no meter reads it, or make another call of it. So the query of a metered call is an allow-list,
and fields known to do such things never pass.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from gateway.core.calls.route import Route
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from gateway.http.protocol.fields import FieldKind
from gateway.http.protocol.request import RequestHead

JSON_TYPE = b"content-type: application/json"
_JSON = re.compile(
    rb"application/(?:json|[a-z0-9][a-z0-9!#$&^_.-]*\+json)"
    rb"[ \t]*(?:;[ \t]*charset=(?:utf-8|\"utf-8\")[ \t]*)?",
    re.IGNORECASE,
)
_PLAIN = re.compile(rb"[A-Za-z0-9._~-]{0,64}")

# The parameters of a metered call, with the values they may have; None is any plain one.
_QUERIES: Mapping[Family, Mapping[bytes, frozenset[bytes] | None]] = {
    Family.OPENAI: {b"api-version": None},
    Family.ANTHROPIC: {b"api-version": None, b"beta": None},
    Family.GEMINI: {b"api-version": None, b"alt": frozenset({b"json", b"sse"})},
}
# On routes that cost nothing a query passes, but for what would make another call of it.
_NEVER = frozenset(
    b"fields fieldmask callback httpmethod method xhttpmethodoverride uploadtype uploadprotocol".split()
)
# Google's system parameters are fields as well; what a library says of itself is none of them.
_WITHHELD_PREFIXES = (
    b"x-goog-", b"x-google-",
    # By which gateways in front of a provider choose another model, cache or credential.
    b"x-litellm-", b"x-portkey-", b"cf-aig-", b"helicone-", b"ocp-apim-",
)  # fmt: skip
_PASSED = frozenset({b"x-goog-api-client"})
_OVERRIDES = frozenset(
    {b"x-http-method", b"x-http-method-override", b"x-method-override", b"http-method-override"}
)
# Parts of an answer instead of it, another form of it, or the digest of a body that is written anew.
_WITHHELD = _OVERRIDES | frozenset(
    b"range if-range if-match if-none-match if-modified-since if-unmodified-since prefer a-im content-type "
    b"content-encoding content-md5 digest content-digest repr-digest want-digest want-content-digest".split()
)
_WITHHELD_OF: Mapping[Family, frozenset[bytes]] = {Family.GEMINI: frozenset({b"accept"})}
_FAMILIES = {family.value: family for family in _QUERIES}
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
    """Refuse a parameter that is not on the list of a metered call, or never welcome on a free one."""
    family = _family(route)
    if not query or family is Family.GENERIC:
        return
    if route.meter == "none":
        _check_free(query)
        return
    known = _QUERIES[family]
    seen: set[bytes] = set()
    for pair in query[1:].split(b"&"):
        name, _, value = pair.partition(b"=")
        text = name.decode("ascii")
        if b";" in pair or (name not in known and text not in route.queries):
            right = ", ".join([*(one.decode() for one in known), *route.queries])
            raise InvalidRequest(
                f"The query parameter {text} is not accepted on this route: {right}.", param=text or None
            )
        if name in seen:
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
    if family is Family.GENERIC:
        return _NONE
    names = _OVERRIDES if route.meter == "none" else _WITHHELD | _WITHHELD_OF.get(family, _NONE)
    return frozenset(kind.lower for kind, _ in head.fields if _is_withheld(kind, names))


def _family(route: Route) -> Family:
    """Whose API a route is: what meters its answers says it, else the route itself."""
    return _FAMILIES.get(route.meter.partition("_")[0], route.family)


def _is_withheld(kind: FieldKind, names: frozenset[bytes]) -> bool:
    plain = kind.lower.replace(b"_", b"-")
    return plain in names or (plain.startswith(_WITHHELD_PREFIXES) and plain not in _PASSED)


def _check_free(query: bytes) -> None:
    for pair in re.split(rb"[&;]", query[1:]):
        name, _, value = pair.partition(b"=")
        plain = unquote_to_bytes(name.replace(b"+", b" ")).strip().lower()
        bare = plain.replace(b"-", b"").replace(b"_", b"")
        odd = bare == b"alt" and value not in _QUERIES[Family.GEMINI][b"alt"]  # type: ignore[operator]  # it has values
        if plain.startswith(b"$") or bare in _NEVER or odd:
            text = name.decode("ascii")
            raise InvalidRequest(f"The query parameter {text} is not accepted on this route.", param=text)
