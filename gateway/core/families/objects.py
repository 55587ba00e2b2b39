"""Stored objects of an upstream: the ids that a request names, in its path and in its body.

The counters store which organization owns an object. A request names an object wherever it has an id, unless
that is known to refer to nothing: ids of objects in the request itself, of function calls, of users. Fields
that callers write freely (metadata, arguments and schemas of functions) are not searched. Each family's own
files list the id fields of its API.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from functools import cache
from urllib.parse import unquote

from gateway.core.calls.call import CallRequest, StoredObjects
from gateway.core.calls.routes import decoded_segments
from gateway.core.families.controlled import FREE, Document, elements
from gateway.core.families.family import (
    KEPT_LINKED,
    KEPT_NOTHING,
    KEPT_OBJECTS,
    BodyIds,
    ObjectRules,
    ids_of,
    only_own_tools,
    told_of,
)
from gateway.core.families.references import PLACES, add_known
from gateway.core.families.registry import FAMILIES
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from gateway.errors import InvalidRequest

NAMED_MAX = 10_000  # ids a request may name
PLACES_MAX = 10_000  # members that are searched for the place of one

# Names at the top of a body, and of a tool, that name no object and hold none.
_PLAIN = frozenset(
    {
        "model", "stream", "stream_options", "max_tokens", "max_completion_tokens", "max_output_tokens",
        "temperature", "top_p", "top_k", "n", "seed", "stop", "stop_sequences", "user", "metadata", "store",
        "reasoning", "reasoning_effort", "parallel_tool_calls", "include", "safetySettings",
    }
)  # fmt: skip
_PLAIN_OF_TOOL = frozenset(
    {
        "type", "name", "description", "parameters", "input_schema", "strict", "function", "cache_control",
        "functionDeclarations", "function_declarations", "input_examples",
    }
)  # fmt: skip
# Names of the prompt at the top of a body, searched only if a name in the body may be that of an id.
_SAID = frozenset(
    {"messages", "input", "contents", "instructions", "system", "systemInstruction", "system_instruction"}
)
_PLAIN_OR_SAID = _PLAIN | _SAID
# Names of most texts, passed over at once.
_TEXTS = frozenset({"type", "role", "content", "text", "name", "arguments", "description"})
_PATHS = {name: family.objects.path for name, family in FAMILIES.items()}
_NOTHING: tuple[tuple[str, ...], frozenset[str]] = (), frozenset()
# Each collection as its family writes it.
_COLLECTIONS = {
    collection.casefold(): collection
    for family in FAMILIES.values()
    for collection in family.objects.collections
}


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """The stored object that a path names by its id. With an empty `id` the path is about a collection.

    `makes`: a POST to the path makes an object. `results`: a GET returns ids of objects made from this one.
    """

    id: str = ""
    collection: str = field(default="", compare=False)
    makes: bool = field(default=False, compare=False)
    results: bool = field(default=False, compare=False)


def session_of(upstream: str, session: bytes) -> str:
    """Return the key of an upstream's session in the store that knows the owners of objects."""
    return f"session {upstream} {session.decode('latin-1')}"


def continuation_of(token: str) -> str:
    """Return the key of an answer that may be continued by a token, in the store that knows the owners of objects."""
    return f"continuation {token}"


def places_of(family: Family, path: str) -> tuple[ObjectPath, ...]:
    """Return the stored objects that a path without query names: one for each way to decode the path.

    An upstream may decode a path once or repeatedly, and may ignore case outside ids. Raise
    `InvalidRequest` if the path is encoded too many times.
    """
    objects = FAMILIES[family].objects
    if not objects.collections:
        return ()
    segments = decoded_segments(path)
    if segments is None:
        raise InvalidRequest("The path is encoded over and over.")
    plainly = "".join([f"/{segment}" for segment in segments])
    matches = [_PATHS[family].search(spelling) for spelling in dict.fromkeys((unquote(path), plainly))]
    return tuple([_place(objects, match) for match in matches if match is not None])


@cache
def unit_later(family: Family, path: str) -> str:
    """Return the unit that an upstream bills after a call of a route with this `path`; "" if there is none."""
    objects = FAMILIES[family].objects
    match = objects.path.search(path) if objects.collections else None
    if match is None:
        return ""
    collection = _COLLECTIONS[match[1].casefold()]
    below = f"{collection}/{(match[3] or '').strip('/')}"
    return objects.uses.get(below, objects.collections[collection])


def _place(objects: ObjectRules, match: re.Match[str]) -> ObjectPath:
    """Return which stored object, collection or results the matched path of a request means."""
    collection = _COLLECTIONS[match[1].casefold()]
    rest = (match[3] or "").strip("/")
    name, colon, _ = (match[2] or "").partition(":")
    if not rest and f"{collection}/{name}".casefold() in objects.actions:
        return ObjectPath("", collection)
    if not name:
        return ObjectPath("", collection, makes=not (rest or colon))
    below = f"{collection}/{rest}".casefold()
    results = (below if rest else collection) in objects.results and not colon
    makes = below in objects.within
    id_ = f"{collection}/{name}" if objects.by_path else name
    return ObjectPath(id_, collection, makes=makes, results=results)


@dataclass(frozen=True, slots=True)
class ObjectAccess:
    """The stored objects that a request may name, make or list."""

    ids: tuple[str, ...]  # in its path, one for each reading
    keeps: Callable[[Document], int] | None  # how long the ids in its answer are stored; None if it has none
    reads: bool = False  # the JSON body of a free route is searched for ids
    bare: bool = False  # the body may be empty
    makes: bool = False  # it makes an object, whose name the upstream chooses
    lists: bool = False  # the answer is a list, cut to objects of the organization
    closed: bool = False  # the body has known id fields only
    counts: bool = False  # a free call about a model
    apart: bool = True  # objects belong to organizations
    takes: frozenset[str] | None = None  # the only fields that the body may have


def read_objects(owned: ObjectAccess, call: CallRequest) -> None:
    """Set in `call` the ids of all stored objects that it names, and how long ids in its answer are valid.

    Raise `InvalidRequest` for too many ids, and for a name that the upstream must choose. A field that
    ends like an id counts unless a table excludes it.
    """
    document, objects = call.body.document, FAMILIES[call.family].objects
    if not owned.apart:
        return
    keeps = KEPT_NOTHING
    if owned.keeps is not None:
        keeps = KEPT_OBJECTS if document is None else int(owned.keeps(document))
    if keeps or owned.ids:
        call.objects = StoredObjects(owned.ids, keeps=keeps)
    if document is None:
        return
    if owned.takes is not None:
        _close("", document, owned.takes)
    if (
        owned.closed
        and call.body.names.tools
        and not only_own_tools({"tools": tools_of({"items": document.get("items")})})
    ):
        raise InvalidRequest(
            "items: tools that the provider runs are not stored, send them with each call.", param="items"
        )
    chosen = objects.chosen(document) if owned.reads and owned.makes else None
    if chosen is not None:
        raise InvalidRequest(f"The upstream chooses {chosen}: leave it out.", param=chosen)
    marks = objects.marks
    looks = call.body.names.ids or (marks is not None and marks.search(call.body.content) is not None)
    passed = _PLAIN if looks else _PLAIN_OR_SAID
    asked = {name: value for name, value in document.items() if name not in passed}
    if "tools" in asked:
        tools = (
            elements(document, "tools") if call.body.names.tools else call.body.tools
        )  # groups name objects too
        asked["tools"] = [tool for tool in tools if not tool.keys() <= _PLAIN_OF_TOOL]
    if "plugins" in asked:  # OpenRouter's: the id of one is its name
        asked["plugins"] = [
            {name: value for name, value in one.items() if name != "id"} for one in call.body.plugins
        ]
    if not asked:
        return
    body_ids = BodyIds()
    _find_ids(objects, asked, owned.closed, body_ids)
    if looks and call.body.cut is not None:
        body_ids.brought += call.body.cut.ids
    call.objects = _objects_of(call, owned.ids, body_ids, keeps)


def field_of(call: CallRequest, id_: str) -> str:
    """Return where the body of a call names a stored object or a model, such as `trace.parent_span_id`.

    Empty if it is not in the first members of the body.
    """
    objects, left = FAMILIES[call.family].objects, PLACES_MAX
    waiting: list[tuple[str, object]] = [("", call.body.document)]
    while waiting and left:
        left -= 1
        place, value = waiting.pop()
        if isinstance(value, str) and (
            objects.key(call.spec.mcp.server, value) == id_
            or value == id_
            or id_ in objects.readings(value.strip())
        ):
            return place
        if isinstance(value, list):
            waiting += [(f"{place}.{number}", item) for number, item in enumerate(value)][::-1]
        elif isinstance(value, dict):
            waiting += [
                (f"{place}.{name}".lstrip("."), inside)
                for name, inside in reversed(value.items())
                if name not in FREE and (name not in _TEXTS or not isinstance(inside, str))
            ]
    return ""


def _find_ids(objects: ObjectRules, asked: Document, closed: bool, ids: BodyIds) -> None:
    """Add the ids of stored objects in the body `asked` to `ids`.

    Raise `InvalidRequest` in the body of a stored object (`closed`) for what selects objects otherwise.
    """
    for name, inside in asked.items():
        ids.known = closed or name.lower() in PLACES
        _look_at(objects, name, inside, asked, "", ids)
    ids.known = True
    if closed and objects.kinds:
        _check_kinds(objects, asked)


def _objects_of(call: CallRequest, ids: tuple[str, ...], body_ids: BodyIds, keeps: int) -> StoredObjects:
    """Return the objects of a call, by the `ids` in its path and those in its body; too many are refused."""
    key, server = FAMILIES[call.family].objects.key, call.spec.mcp.server
    named = dict.fromkeys([key(server, id_) for value in body_ids.named for id_ in ids_of(value)])
    unsure = dict.fromkeys([id_ for value in body_ids.unknown for id_ in ids_of(value) if id_ not in named])
    if len(named) + len(unsure) > NAMED_MAX:
        raise InvalidRequest(f"The request names more than {NAMED_MAX} stored objects.")
    values = body_ids.brought if keeps else ()  # else its answer tells of none
    brought = frozenset([id_ for value in values for id_ in ids_of(value)])
    return StoredObjects((*ids, *named), tuple(unsure), brought, keeps)


def _close(path: str, holder: Document, takes: Collection[str]) -> None:
    """Raise `InvalidRequest` if the object `holder`, at `path` in the body, has a field not in `takes`."""
    for name in holder:
        if name not in takes:
            right = ", ".join(sorted(takes))
            raise InvalidRequest(
                f"The field {path}{name} is not accepted on this route: {right}.", param=path + name
            )


def _check_kinds(objects: ObjectRules, value: object) -> None:
    """Raise `InvalidRequest` for an object that may select stored objects by something else than an id.

    `objects.kinds` lists the types, and the fields of each, that are allowed.
    """
    if isinstance(value, list):
        for item in value:
            _check_kinds(objects, item)
    elif isinstance(value, dict):
        for name, inside in value.items():
            kinds = objects.kinds.get(name.lower())
            if kinds is not None and isinstance(inside, list | dict):
                kind = inside.get("type") if isinstance(inside, dict) else None
                if not isinstance(inside, dict) or not isinstance(kind, str) or kind not in kinds:
                    right = ", ".join(sorted(kinds))
                    raise InvalidRequest(
                        f"{name}.type must be {right}: others read what all organizations keep.", param=name
                    )
                _close(f"{name}.", inside, kinds[kind])
            if name not in FREE and not objects.is_free(name, value):
                _check_kinds(objects, inside)


def _look(objects: ObjectRules, value: list[object] | Document, place: str, ids: BodyIds) -> None:
    """Add every id in a value of the body to `ids`. `place` is the field around it, with a point if that is no list."""
    if isinstance(value, list):
        for item in value:
            if isinstance(item, dict):
                _look(objects, item, place, ids)
            elif isinstance(item, list):
                _look(objects, item, "", ids)
        return
    for name, inside in value.items():
        if name not in _TEXTS or type(inside) is not str:
            _look_at(objects, name, inside, value, place, ids)


def _look_at(  # noqa: PLR0917  # a member, and where it stands
    objects: ObjectRules, name: str, inside: object, holder: Document, place: str, ids: BodyIds
) -> None:
    """Add every id in the member `name` of the object `holder`, with the value `inside`, to `ids`."""
    if name in FREE or objects.is_free(name, holder):
        return
    add_known(objects, name, inside, holder, place, ids)
    if name == "variables" and isinstance(inside, dict):  # names and texts are the caller's own
        _look(objects, list(inside.values()), "", ids)
    elif isinstance(inside, dict):
        _look(objects, inside, f"{name}.", ids)
    elif isinstance(inside, list):
        _look(objects, inside, name, ids)


# The ids of stored objects in an answer: its organization owns them from then on.
#
# Only fields in which the API itself puts an id count, and no text of a model or a tool.
def may_tell(family: Family, answer: bytes, keeps: int = KEPT_OBJECTS) -> bool:
    """Return whether an answer to a call, or a part of one, can contain ids of stored objects.

    `keeps` is the `KEPT_…` constant for how long ids of the answer stay valid.
    """
    objects = FAMILIES[family].objects
    return keeps == KEPT_LINKED or not objects.tell or any(mark in answer for mark in objects.tell)


def read_created_ids(
    family: Family, document: object, named: Collection[str] = (), keeps: int = KEPT_OBJECTS
) -> tuple[str, ...]:
    """Return the ids of stored objects in an answer (`document`), the answer's own id first.

    `named` are the ids in its request. `keeps` is the `KEPT_…` constant for how long ids stay valid.
    """
    return told_of(FAMILIES[family].objects, document, named, keeps)


def kept_apart(call: CallRequest, ids: list[str]) -> list[tuple[int, list[str]]]:
    """Return the ids of an answer in groups, each with the `KEPT_…` constant for how long they are valid.

    Ids of some kinds stay valid longer than that of the answer itself.
    """
    objects = FAMILIES[call.family].objects
    keeps = call.objects.keeps
    if keeps == KEPT_OBJECTS:
        return [(KEPT_OBJECTS, ids)]
    lasting = [id_ for id_ in ids if id_.startswith(objects.lasting)]
    others = [id_ for id_ in ids if not id_.startswith(objects.lasting)]
    return [(how, some) for how, some in ((keeps, others), (KEPT_OBJECTS, lasting)) if some]
