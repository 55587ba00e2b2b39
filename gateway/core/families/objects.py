"""Objects an upstream keeps: the ids a request names, in its path and in its body.

Whose an object is decides the counters' door. A request names an object wherever an id stands, unless
it is known to name nothing: ids of what the request holds whole, of calls of functions, of users. What
callers write freely (metadata, arguments and schemas of functions) is not looked at.
Where ids stand in each API is in its family's own file.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.core.families.controlled import Document
from gateway.core.families.family import Objects, ids_of
from gateway.core.families.registry import FAMILIES
from gateway.core.model import Family
from gateway.core.names import Names
from gateway.errors import InvalidRequest

NAMED_MAX = 256  # ids a request may name

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
        "functionDeclarations", "function_declarations",
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
        "attributes", "customMetadata", "client_metadata",
    }
)  # fmt: skip
_PATHS = {name: family.objects.path for name, family in FAMILIES.items() if family.objects is not None}
_ACTIONS = frozenset({"input_tokens", "compact", "runs"})  # stand where an id would


@dataclass(frozen=True, slots=True)
class Place:
    """What a path of a family's API is about: an object by its id, or all of a kind, `id` empty."""

    id: str = ""
    collection: str = field(default="", compare=False)


def place_of(family: Family, path: str) -> Place | None:
    """The place of a path without its query, percent-decoded; None where no objects are."""
    objects = FAMILIES[family].objects
    found = _PATHS[family].search(path) if objects is not None else None
    if objects is None or found is None:
        return None
    name = (found[2] or "").partition(":")[0]
    if not name or name in _ACTIONS:
        return Place("", found[1])
    return Place(f"{found[1]}/{name}" if objects.by_path else name, found[1])


def named(family: Family, body: bytes, names: Names, document: Document) -> tuple[str, ...]:
    """The ids that a body names, InvalidRequest for too many.

    `body` is its document as it is sent, `names` what the names in it end like. An id counts unless
    it is known to name nothing: what an API takes tomorrow is refused, not passed.
    """
    objects = FAMILIES[family].objects
    if objects is None:
        return ()
    passed = _PLAIN if objects.may_name(body, names) else _PLAIN_OR_SAID
    asked = {name: value for name, value in document.items() if name not in passed}
    tools = asked.get("tools")
    if isinstance(tools, list):
        asked["tools"] = [one for one in tools if not isinstance(one, dict) or one.keys() - _PLAIN_OF_TOOL]
    plugins = asked.get("plugins")
    if isinstance(plugins, list):  # OpenRouter's: the id of one is its name
        asked["plugins"] = [_without_id(one) if isinstance(one, dict) else one for one in plugins]
    if not asked:
        return ()
    all_found: list[object] = []
    try:
        _look(objects, asked, all_found)
    except RecursionError as error:
        raise InvalidRequest("The request is nested too deeply.") from error
    found = dict.fromkeys(one for value in all_found for one in ids_of(value))
    if len(found) > NAMED_MAX:
        raise InvalidRequest(f"The request names more than {NAMED_MAX} stored objects.")
    return tuple(found)


def _without_id(plugin: Document) -> Document:
    return {name: value for name, value in plugin.items() if name != "id"}


def chosen_name(family: Family, document: Document) -> str | None:
    """The field by which a body chooses the name of what it makes: it could be another's, once and again."""
    objects = FAMILIES[family].objects
    return None if objects is None else objects.chosen(document)


def _look(objects: Objects, value: list[object] | Document, found: list[object]) -> None:
    """Add every id that something in a body names."""
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict | list):
                _look(objects, each, found)
        return
    for name, inside in value.items():
        if name in _TEXTS and type(inside) is str:
            continue
        if name in _FREE or objects.is_free(name, value):
            continue
        objects.add(name, inside, value, found)
        if name == "variables" and isinstance(inside, dict):  # names and texts are the caller's own
            inside = list(inside.values())  # noqa: PLW2901  # the same, without its names
        if isinstance(inside, dict | list):
            _look(objects, inside, found)
