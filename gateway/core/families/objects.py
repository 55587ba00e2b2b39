"""Objects an upstream keeps: the ids a request names, in its path and in its body.

Whose an object is decides the counters' door. A request names an object wherever an id stands, unless
it is known to name nothing: ids of objects in the request itself, of calls of functions, of users.
What callers write freely (metadata, arguments and schemas of functions) is not looked at. Where ids
stand in each API is in its family's own file.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from urllib.parse import unquote

from gateway.core.calls.call import CallRequest
from gateway.core.calls.routes import decoded_segments
from gateway.core.families.controlled import Document
from gateway.core.families.family import (
    KEPT_LINKED,
    KEPT_NOTHING,
    KEPT_OBJECTS,
    BodyIds,
    ObjectRules,
    ids_of,
    told_of,
)
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.errors import InvalidRequest

NAMED_MAX = 10_000  # ids a request may name

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
# Names at the top that hold what was said: looked through only if a body `may_name` something.
_SAID = frozenset(
    {"messages", "input", "contents", "instructions", "system", "systemInstruction", "system_instruction"}
)
_PLAIN_OR_SAID = _PLAIN | _SAID
# Names of most texts, passed over at once.
_TEXTS = frozenset({"type", "role", "content", "text", "name", "arguments", "description"})
# What callers write freely, whatever the API.
_FREE = frozenset(
    {
        "metadata", "parameters", "arguments", "args", "schema", "json_schema", "input_schema", "properties",
        "responseSchema", "response_schema", "responseJsonSchema", "parametersJsonSchema", "headers",
        "attributes", "customMetadata", "client_metadata", "input_examples",
    }
)  # fmt: skip
# In the place of each object that was cut from a body with an id of its own.
_WHOLE: Document = {"type": "tool_use", "input": ""}
_PATHS = {name: family.objects.path for name, family in FAMILIES.items() if family.objects is not None}
_NOTHING: tuple[tuple[str, ...], frozenset[str]] = (), frozenset()
# Each collection as its family writes it.
_COLLECTIONS = {
    one.casefold(): one
    for family in FAMILIES.values()
    if family.objects
    for one in family.objects.collections
}


@dataclass(frozen=True, slots=True)
class ObjectPath:
    """What a path of a family's API is about: an object by its id, or all of a kind, `id` empty.

    A POST there `makes` an object, where it does; a GET `results` in ids of objects made of one.
    """

    id: str = ""
    collection: str = field(default="", compare=False)
    makes: bool = field(default=False, compare=False)
    results: bool = field(default=False, compare=False)


def session_of(upstream: str, session: bytes) -> str:
    """Return the name of a session that an upstream opened, among the objects that upstreams keep."""
    return f"session {upstream} {session.decode('latin-1')}"


def places_of(family: Family, path: str) -> tuple[ObjectPath, ...]:
    """Return the places of a path as it is sent, without its query: one in each reading in which objects are
    there.

    An upstream may decode it once or to the end, and may ignore the case of all but ids. InvalidRequest where
    it is encoded over and over.
    """
    objects = FAMILIES[family].objects
    if objects is None:
        return ()
    segments = decoded_segments(path)
    if segments is None:
        raise InvalidRequest("The path is encoded over and over.")
    plainly = "".join([f"/{segment}" for segment in segments])
    found = [_PATHS[family].search(one) for one in dict.fromkeys((unquote(path), plainly))]
    return tuple([_place(objects, one) for one in found if one is not None])


def _place(objects: ObjectRules, found: re.Match[str]) -> ObjectPath:
    collection = _COLLECTIONS[found[1].casefold()]
    rest = (found[3] or "").strip("/")
    name, colon, _ = (found[2] or "").partition(":")
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
    """How a request meets objects: `ids` are its path's, one in each reading; `keeps` says of a body how
    long the answer's are kept, None where it tells of none; `reads` that its body is JSON of a free route,
    and read for what it names; `bare` that it may have none. With `makes` it makes an object, whose
    name is not its own to choose. One that `lists` is shown its organization's objects. The body of a stored
    object is `closed`: it has no unknown field that ends like an id, and of the fields `takes` alone. A free
    call `counts` that is about a model and no object; objects are not kept `apart` where they are shared.
    """

    ids: tuple[str, ...]
    keeps: Callable[[Document], int] | None
    reads: bool = False
    bare: bool = False
    makes: bool = False
    lists: bool = False
    closed: bool = False
    counts: bool = False
    apart: bool = True
    takes: frozenset[str] | None = None


def read_objects(owned: ObjectAccess, call: CallRequest) -> None:
    """Note the ids of all objects a call names, and whether its answer may tell of some.

    `InvalidRequest` for too many, and for a name of its own where its upstream chooses it. An id counts
    unless it is known to name nothing: what an API takes tomorrow is refused, not passed.
    """
    document, objects = call.document, FAMILIES[call.family].objects
    if not owned.apart:
        return
    call.keeps = KEPT_NOTHING
    if owned.keeps is not None:
        call.keeps = KEPT_OBJECTS if document is None else int(owned.keeps(document))
    call.named = owned.ids
    if document is None or objects is None:
        return
    if owned.takes is not None:
        _close("", document, owned.takes)
    chosen = objects.chosen(document) if owned.reads and owned.makes else None
    if chosen is not None:
        raise InvalidRequest(f"The upstream chooses {chosen}: leave it out.", param=chosen)
    looks = objects.may_name(call.body, call.names)
    passed = _PLAIN if looks else _PLAIN_OR_SAID
    asked = {name: value for name, value in document.items() if name not in passed}
    if "tools" in asked:
        asked["tools"] = [one for one in call.tools if not one.keys() <= _PLAIN_OF_TOOL]
    if "plugins" in asked:  # OpenRouter's: the id of one is its name
        asked["plugins"] = [
            {name: value for name, value in one.items() if name != "id"} for one in call.plugins
        ]
    if not asked:
        return
    found = BodyIds()
    call.named += _ids_in(objects, asked, owned.closed, found)
    if call.keeps:  # else its answer tells of none
        for one in call.cut.ids if looks and call.cut is not None else ():
            objects.add("id", one, _WHOLE, "content", found)
        call.brought = frozenset([one for value in found.brought for one in ids_of(value)])


def _ids_in(objects: ObjectRules, asked: Document, closed: bool, found: BodyIds) -> tuple[str, ...]:
    """Return the ids that a body names, and collect in `found`; the body of a stored object is `closed`."""
    try:
        _look(objects, asked, "", found)
        if closed and objects.kinds:
            _check_kinds(objects, asked)
    except RecursionError as error:
        raise InvalidRequest("The request is nested too deeply.") from error
    if closed and found.unknown:
        name = found.unknown[0]
        raise InvalidRequest(f"The field {name} is not known to name nothing: leave it out.", param=name)
    ids = dict.fromkeys([one for value in found.named for one in ids_of(value)])
    if len(ids) > NAMED_MAX:
        raise InvalidRequest(f"The request names more than {NAMED_MAX} stored objects.")
    return tuple(ids)


def _close(path: str, holder: Document, takes: Collection[str]) -> None:
    """Refuse a field that is not one of these."""
    for name in holder:
        if name not in takes:
            right = ", ".join(sorted(takes))
            raise InvalidRequest(
                f"The field {path}{name} is not accepted on this route: {right}.", param=path + name
            )


def _check_kinds(objects: ObjectRules, value: object) -> None:
    """Refuse what selects by anything but an id: an object of a kind, or with a field, that is on no list."""
    if isinstance(value, list):
        for each in value:
            _check_kinds(objects, each)
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
            if name not in _FREE and not objects.is_free(name, value):
                _check_kinds(objects, inside)


def _look(objects: ObjectRules, value: list[object] | Document, place: str, found: BodyIds) -> None:
    """Add every id in something of a body; `place` is the name of a list, or of an element of one."""
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict):
                _look(objects, each, place, found)
            elif isinstance(each, list):
                _look(objects, each, "", found)
        return
    for name, inside in value.items():
        if name in _TEXTS and type(inside) is str:
            continue
        if name in _FREE or objects.is_free(name, value):
            continue
        objects.add(name, inside, value, place, found)
        if name == "variables" and isinstance(inside, dict):  # names and texts are the caller's own
            _look(objects, list(inside.values()), "", found)
        elif isinstance(inside, dict):
            _look(objects, inside, "", found)
        elif isinstance(inside, list):
            _look(objects, inside, name, found)


# Objects an upstream keeps: the ids an answer tells of, which are then its organization's.
#
# Only places where the API itself puts an id count: what a model or a tool wrote is no place.
def may_tell(family: Family, answer: bytes, keeps: int = KEPT_OBJECTS) -> bool:
    """Return whether a metered answer, or a part of one, is worth looking through for ids."""
    objects = FAMILIES[family].objects
    if objects is None:
        return False
    return keeps == KEPT_LINKED or not objects.tell or any(mark in answer for mark in objects.tell)


def told(
    family: Family, document: object, named: Collection[str] = (), keeps: int = KEPT_OBJECTS
) -> tuple[str, ...]:
    """Return the ids of objects that an answer tells of, its own first; its request `named` these."""
    objects = FAMILIES[family].objects
    return () if objects is None else told_of(objects, document, named, keeps)


def kept_apart(call: CallRequest, ids: list[str]) -> list[tuple[int, list[str]]]:
    """Return the ids that an answer told of, by how long each is kept: some outlive the answer itself."""
    objects = FAMILIES[call.family].objects
    if objects is None or call.keeps == KEPT_OBJECTS:
        return [(KEPT_OBJECTS, ids)]
    lasting = [one for one in ids if one.startswith(objects.lasting)]
    others = [one for one in ids if not one.startswith(objects.lasting)]
    return [(how, some) for how, some in ((call.keeps, others), (KEPT_OBJECTS, lasting)) if some]
