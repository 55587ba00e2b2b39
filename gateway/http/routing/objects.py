"""Stored objects as one request meets them: what its path is about, and what its body names.

A list of all objects of a kind would show every organization's, so it is 404 for everybody. Bodies of
free routes are read as those of metered ones are, but for forms where files are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gateway.core.calls.call import Call
from gateway.core.calls.document import check_names, read_document, write_document
from gateway.core.calls.route import Route
from gateway.core.families.controlled import Document
from gateway.core.families.objects import chosen_name, named, places_of
from gateway.core.families.registry import SHAPES
from gateway.core.model import GENERIC
from gateway.core.names import names_in
from gateway.errors import InvalidRequest, ObjectNotFound
from gateway.http.protocol.request import RequestHead

# Collections whose API takes files as forms, in which it takes no ids.
_WITH_FORMS = frozenset({"files", "uploads", "skills"})
_WITH_BODY = frozenset({b"POST", b"PUT", b"PATCH"})


@dataclass(frozen=True, slots=True)
class Owned:
    """How a request meets objects: `ids` are its path's, one in each reading; `keeps` says of a body whether
    the answer may tell of some, None where none does; `reads` that its body is JSON of a free route, and read
    for what it names; `bare` that it may have none. With `makes` it makes an object, whose
    name is not its own to choose.
    """

    ids: tuple[str, ...]
    keeps: Callable[[Document], bool] | None
    reads: bool = False
    bare: bool = False
    makes: bool = False


def owned_by(head: RequestHead, route: Route) -> Owned | None:
    """How a request meets objects, None where they are not kept apart. Raises `Refusal`s."""
    if route.objects != "owned" or route.family == GENERIC:
        return None
    places = places_of(route.family, head.path.decode("ascii"))
    ids = tuple(dict.fromkeys(place.id for place in places if place.id))
    if route.meter != "none":
        shape = SHAPES.get(route.meter)
        return Owned(ids, None if shape is None else shape.keeps)
    has_body = head.method in _WITH_BODY
    is_list = not all(place.id for place in places)
    if is_list and not has_body:
        raise ObjectNotFound("A list would show the objects of every organization: ask for one by its id.")
    reads = has_body and _is_json(head, forms=all(place.collection in _WITH_FORMS for place in places))
    if head.method == b"POST":
        tells = bool(places) and all(place.makes for place in places)
    else:
        tells = head.method == b"GET" and bool(places) and all(place.results for place in places)
    return Owned(ids, _always if tells else None, reads, bare=not has_body, makes=is_list)


def _always(_: Document) -> bool:
    return True


def _is_json(head: RequestHead, *, forms: bool) -> bool:
    """Whether a body is JSON and not a form, where a form names no object; anything else is refused."""
    types = head.all(b"content-type")
    if not types:
        return True  # if there is a body at all
    media = types[0].partition(b";")[0].strip().lower() if len(types) == 1 else b""
    if media == b"application/json" or media.endswith(b"+json"):
        return True
    if not forms or media != b"multipart/form-data":
        allowed = "application/json or multipart/form-data" if forms else "application/json"
        raise InvalidRequest(f"The content-type must be {allowed}.", param="content-type")
    return False


def read_objects(owned: Owned, call: Call) -> None:
    """Note the ids of all objects a request names, and whether its answer may tell of some."""
    if owned.reads and call.body:
        call.document = read_document(call.body)
        written = write_document(call.document)
        check_names(call.body, written, 0)
        call.body, call.names = written, names_in(call.document)
        chosen = chosen_name(call.family, call.document) if owned.makes else None
        if chosen is not None:
            raise InvalidRequest(f"The upstream chooses {chosen}: leave it out.", param=chosen)
    document = call.document
    call.keeps = owned.keeps is not None and (document is None or owned.keeps(document))
    call.named = owned.ids
    if document is not None:
        ids, call.brought = named(call.family, call.body, call.names, document)
        call.named += ids
