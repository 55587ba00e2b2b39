"""Stored objects as one request meets them: what its path is about, and what its body names.

A list of all objects of a kind would tell of every organization's, so it is found by nobody. A body
that makes an object is read, where it is JSON, as a metered one is.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import unquote

from gateway.core.call import Call
from gateway.core.document import check_names, read_document, write_document
from gateway.core.model import Family
from gateway.core.objects import named, place_of
from gateway.core.route import Route
from gateway.errors import InvalidRequest, ObjectNotFound
from gateway.http.request import RequestHead

_KEPT_BY_METERS = frozenset({"openai_chat", "openai_responses", "anthropic_messages"})
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


@dataclass(frozen=True, slots=True)
class Owned:
    """How a request meets objects: `id` is its path's, empty for none; `tells` says that its answer may
    tell of some; `reads` that its body is JSON of a free route, and read for what it names.
    """

    id: str = ""
    tells: bool = False
    reads: bool = False


def owned_by(head: RequestHead, route: Route) -> Owned | None:
    """How a request meets objects, None where they are not kept apart. Raises `Refusal`s."""
    if route.objects != "owned" or route.family is Family.GENERIC:
        return None
    place = place_of(route.family, unquote(head.path.decode("ascii")))
    if place is None or route.meter != "none":
        return Owned("" if place is None else place.id, route.meter in _KEPT_BY_METERS)
    has_body = head.method in _WITH_BODY
    if not place.id and not has_body:
        raise ObjectNotFound("A list would tell of every organization's objects: ask for one by its id.")
    return Owned(place.id, tells=True, reads=has_body and _is_json(head))


def _is_json(head: RequestHead) -> bool:
    """Whether a body is JSON and not a form with a file; anything else could name objects unread."""
    types = head.all(b"content-type")
    if not types:
        return True  # if there is a body at all
    media = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if media != b"application/json" and not media.endswith(b"+json") and media != b"multipart/form-data":
        raise InvalidRequest(
            "The content-type must be application/json or multipart/form-data.", param="content-type"
        )
    return media != b"multipart/form-data"


def named_by(owned: Owned, call: Call) -> tuple[str, ...]:
    """The ids of all objects a request names."""
    if owned.reads and call.body:
        call.document = read_document(call.body)
        written = write_document(call.document)
        check_names(call.body, written, 0)
        call.body = written
    call.keeps = owned.tells
    ids = named(call.family, call.body, call.document) if call.document is not None else ()
    return (owned.id, *ids) if owned.id else ids
