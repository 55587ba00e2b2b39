"""Beginning and end of the upstream's request head: its path, query, Host line, and the gateway's fields."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from urllib.parse import quote, urlsplit

from gateway.core.calls.routes import AWS_FIELDS, PARAMETER, Route, UpstreamTarget, own_path, own_query
from gateway.http.protocol.request import PASSES, field_kind
from gateway.http.routing.routes import JSON_TYPE, is_live, is_rewritten, without_pass

# Query parameters with the model of a WebSocket, or with its deployment at Azure.
MODEL_QUERIES = ("model", "deployment")
_AWS_FIELDS = (*(name.encode() for name in AWS_FIELDS), b"x-amz-content-sha256")


class UpstreamOpening:
    """The beginning and end of a request head for one upstream and model.

    `closings` has one end for each key of the upstream, `plain` the same for answers without compression.
    `dropped` are names of fields that are not forwarded.
    """

    __slots__ = ("closings", "dropped", "opening", "plain")

    def __init__(
        self, opening: bytes, closings: list[bytes], plain: list[bytes], dropped: frozenset[bytes]
    ) -> None:
        self.opening, self.closings, self.plain, self.dropped = opening, closings, plain, dropped


def opening_of(  # noqa: PLR0917  # a request, where it goes, and how its answer is taken
    route: Route, target: UpstreamTarget, method: bytes, path: str, query: str, model: str, *, is_read: bool,
    form: bool = False,
) -> UpstreamOpening:  # fmt: skip
    """Return the beginning and the end of a request's head for an upstream.

    If the gateway reads the answer (`is_read`), it asks for an uncompressed one. A `form` keeps its content
    type.
    """
    prefix, host = _place(target.base_url)
    query = own_query(target, _named_query(route, without_pass(query, route), model))
    if not (target.by_model and is_live(route)):  # such a template is for requests only
        path = own_path(target, route, path, model)
    written = (path + query).encode("ascii")
    begun = b"%b %b%b HTTP/1.1\r\n%b\r\n" % (method, prefix, written, host)
    names = {name.encode() for name, _ in target.told}
    closings: list[bytes] = []
    plain: list[bytes] = []
    for key in target.keys or ((),):
        ours = {name.lower().encode(): value.encode("latin-1") for name, value in (*target.headers, *key)}
        names.update(ours)
        if target.auth == "aws":  # the caller's fields would not match the signature
            names.update(_AWS_FIELDS)
        lines = [b"%b: %b" % field for field in ours.items()]  # last, so that none can override them
        if is_rewritten(route) and not form:
            lines.append(JSON_TYPE)
        plain.append(_set_coding(lines, b"identity"))
        closings.append(plain[-1] if is_read else _ended(lines))
    dropped = frozenset(name for name in names if field_kind(name).role & PASSES)
    return UpstreamOpening(begun, closings, plain, dropped)


def named_path(route: Route, params: Mapping[str, str], path: str, model: str) -> str:
    """Return the path of a call with the upstream's name of the model, if the path contains a model."""
    if not model or "model}" not in route.path or "…" in route.path:
        return path
    words = {**params, "model": model}
    return PARAMETER.sub(
        lambda found: quote(words[found[2]], safe="@/" if found[1] and found[2] != "model" else "@"),
        route.path,
    )


def _named_query(route: Route, query: str, model: str) -> str:
    """Return the query of a WebSocket with the upstream's name of the model."""
    if not model or not query or not is_live(route):
        return query
    pairs = [pair.partition("=") for pair in query[1:].split("&")]
    return "?" + "&".join(
        f"{name}={quote(model, safe='')}" if name in MODEL_QUERIES else f"{name}{mark}{value}"
        for name, mark, value in pairs
    )


def _set_coding(lines: list[bytes], coding: bytes) -> bytes:
    """Return these lines with `coding` as the only accepted content coding."""
    others = [line for line in lines if not line.lower().startswith(b"accept-encoding:")]
    return _ended([*others, b"accept-encoding: " + coding])


def _ended(lines: list[bytes]) -> bytes:
    """Return these lines as one text, each with CRLF."""
    return b"".join([line + b"\r\n" for line in lines])


@lru_cache(1_000)
def _place(base_url: str) -> tuple[bytes, bytes]:
    """Return the path prefix of a base URL, and its Host line."""
    parts = urlsplit(base_url)
    return parts.path.rstrip("/").encode(), b"host: " + parts.netloc.rpartition("@")[2].encode()
