"""Objects an upstream keeps: the ids a request names, in its path and in its body.

Whose an object is decides the counters' door. A request names an object wherever an id stands, unless
it is known to name nothing: ids of what the request holds whole, of calls of functions, of users. What
callers write freely (metadata, arguments and schemas of functions) is not looked at. Sources: the
references of OpenAI (responses, conversations, files, batches, vector stores, containers), Anthropic
(files, containers, message batches) and Gemini (cached contents, files, file search stores, batches).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from unicodedata import normalize
from urllib.parse import unquote

from gateway.core.model import Family
from gateway.errors import InvalidRequest

NAMED_MAX = 256  # ids a request may name
ID_CHARACTERS_MAX = 512

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
# Names at the top that hold what was said: looked through only if a body holds one of the marks below.
_SAID = frozenset(
    {"messages", "input", "contents", "instructions", "system", "systemInstruction", "system_instruction"}
)
_PLAIN_OR_SAID = _PLAIN | _SAID
_ID_MARKS = (re.compile(rb'_[iI][dD][sS]?":'), re.compile(rb'"[iI][dD]":'))  # found by their first byte
_MARKS = {
    Family.OPENAI: _ID_MARKS,
    Family.ANTHROPIC: _ID_MARKS,
    Family.GEMINI: (re.compile(rb'"(?i:file_?uri|file_?name|cached_?content)":'),),
}
# Names are compared without case and, of Gemini's, without underscores, as the most lenient reader would.
# These name an object where a text stands; an object with an id names it as any id does.
_NAMES = frozenset({"conversation", "container", "training_file", "validation_file"})
_NAMES_OF_GEMINI = frozenset({"cachedcontent", "fileuri", "filename"})
_LIST_OF_GEMINI = "filesearchstorenames"
# Names of most texts, passed over at once.
_TEXTS = frozenset({"type", "role", "content", "text", "name", "arguments", "description"})
# What ends like the name of an object and is none: what callers number themselves, and what is public.
_OTHER_IDS = frozenset(
    {"call_id", "tool_call_id", "tool_use_id", "user_id", "request_id", "trace_id", "connector_id"}
)
# What callers write freely, whatever the API.
_FREE = frozenset(
    {
        "metadata", "parameters", "arguments", "args", "schema", "json_schema", "input_schema", "properties",
        "responseSchema", "response_schema", "responseJsonSchema", "parametersJsonSchema", "headers",
        "attributes", "customMetadata",
    }
)  # fmt: skip
# What stands whole in a request has an id of its own that names nothing: by its type, the member without
# which it is only a reference to what the upstream keeps.
_WHOLE = {
    "message": "content", "function": "function", "custom": "custom",
    "function_call": "arguments", "function_call_output": "output",
    "custom_tool_call": "input", "custom_tool_call_output": "output",
    "computer_call": "action", "computer_call_output": "output",
    "local_shell_call": "action", "local_shell_call_output": "output",
    "shell_call": "action", "shell_call_output": "output",
    "apply_patch_call": "operation", "apply_patch_call_output": "output",
    "reasoning": "encrypted_content", "compaction": "encrypted_content",
    "tool_use": "input", "server_tool_use": "input", "mcp_tool_use": "input",
}  # fmt: skip
_UNTYPED = ("content", "function")  # a message, or a call of a function, that does not say its type
_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_BUILT_IN_SKILLS = "anthropic"

# The paths behind a version under which each family's upstreams keep objects.
COLLECTIONS = {
    Family.OPENAI: (
        "chat/completions", "fine_tuning/jobs", "responses", "conversations", "files", "batches",
        "vector_stores", "containers", "uploads", "assistants", "threads", "videos", "evals", "skills",
    ),
    Family.ANTHROPIC: ("messages/batches", "files", "skills"),
    Family.GEMINI: (
        "cachedContents", "files", "batches", "fileSearchStores", "tunedModels", "corpora", "operations",
    ),
}  # fmt: skip
_PATHS = {
    family: re.compile(rf"/({'|'.join(names)})(?:/([^/]+))?(?:/|\Z)") for family, names in COLLECTIONS.items()
}
_ACTIONS = frozenset({"input_tokens", "compact", "runs"})  # stand where an id would
RESOURCE = re.compile(rf"(?:^|/)((?:{'|'.join(COLLECTIONS[Family.GEMINI])})/[^/?#:]+)")
_WEB = re.compile(r"https?://[^\\]*\Z")
_GOOGLE = re.compile(r"googleapis", re.IGNORECASE)  # wherever it stands in a URL, escaped or not


@dataclass(frozen=True, slots=True)
class Place:
    """What a path of a family's API is about: an object by its id, or all of a kind, `id` empty."""

    id: str = ""
    collection: str = field(default="", compare=False)


def place_of(family: Family, path: str) -> Place | None:
    """The place of a path without its query, percent-decoded; None where no objects are."""
    pattern = _PATHS.get(family)
    found = pattern.search(path) if pattern is not None else None
    if found is None:
        return None
    name = (found[2] or "").partition(":")[0]
    if not name or name in _ACTIONS:
        return Place("", found[1])
    return Place(f"{found[1]}/{name}" if family is Family.GEMINI else name, found[1])


def named(family: Family, body: bytes, document: dict[str, object]) -> tuple[str, ...]:
    """The ids that a body names; `body` is its document as it is sent. InvalidRequest for too many.

    An id counts unless it is known to name nothing: what an API takes tomorrow is refused, not passed.
    """
    marks = _MARKS.get(family)
    if marks is None:
        return ()
    passed = _PLAIN if any(mark.search(body) for mark in marks) else _PLAIN_OR_SAID
    asked = {name: value for name, value in document.items() if name not in passed}
    tools = asked.get("tools")
    if isinstance(tools, list):
        asked["tools"] = [one for one in tools if not isinstance(one, dict) or one.keys() - _PLAIN_OF_TOOL]
    if not asked:
        return ()
    all_found: list[object] = []
    try:
        _look(family, asked, all_found)
    except RecursionError as error:
        raise InvalidRequest("The request is nested too deeply.") from error
    found = dict.fromkeys(one for value in all_found for one in ids_of(value))
    if len(found) > NAMED_MAX:
        raise InvalidRequest(f"The request names more than {NAMED_MAX} stored objects.")
    return tuple(found)


def chosen_name(family: Family, document: dict[str, object]) -> str | None:
    """The field by which a body chooses the name of what it makes: it could be another's, once and again."""
    if family is Family.GEMINI:
        for path, one in (("", document), ("file.", object_in(document, "file"))):
            if one.get("name"):
                return f"{path}name"
    return None


def _look(family: Family, value: list[object] | dict[str, object], found: list[object]) -> None:
    """Add every id that something in a body names."""
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict | list):
                _look(family, each, found)
        return
    for name, inside in value.items():
        if name in _TEXTS and type(inside) is str:
            continue
        if name in _FREE or _is_free(family, name, value):
            continue
        _add(family, name, inside, value, found)
        if name == "variables" and isinstance(inside, dict):  # names and texts are the caller's own
            inside = list(inside.values())  # noqa: PLW2901  # the same, without its names
        if isinstance(inside, dict | list):
            _look(family, inside, found)


def _is_free(family: Family, name: str, holder: dict[str, object]) -> bool:
    """Whether a caller's model wrote it for a function of the caller's, or that function answered it."""
    if family is Family.ANTHROPIC:
        return name == "input" and _is_one_of(holder.get("type"), _CALLS)
    return family is Family.GEMINI and name == "response"


def _add(family: Family, name: str, inside: object, holder: dict[str, object], found: list[object]) -> None:
    folded = name.lower()
    if family is Family.GEMINI:  # whose ids number calls of functions; objects have names
        folded = folded.replace("_", "")
        if folded in _NAMES_OF_GEMINI:
            found.append(_normal(inside))
        elif folded == _LIST_OF_GEMINI:
            found += map(_normal, inside if isinstance(inside, list) else (inside,))
    elif folded == "id":
        if not _is_whole(holder):
            found.append(inside)
    elif folded.endswith("_id"):
        built_in = family is Family.ANTHROPIC and holder.get("type") == _BUILT_IN_SKILLS
        if folded not in _OTHER_IDS and not (built_in and folded == "skill_id"):
            found.append(inside)
    elif folded.endswith("_ids"):
        found += inside if isinstance(inside, list) else (inside,)
    elif folded in _NAMES:
        found.append(inside)


def _is_whole(holder: dict[str, object]) -> bool:
    """Whether something with an id is all there, and not a reference to what an upstream keeps."""
    kind = holder.get("type")
    if kind is None:
        return any(holder.get(name) is not None for name in _UNTYPED)
    return isinstance(kind, str) and holder.get(_WHOLE.get(kind, "")) is not None


def _is_one_of(kind: object, kinds: frozenset[str]) -> bool:
    return isinstance(kind, str) and kind in kinds


def _normal(value: object) -> object:
    """An object's name as it is kept. A file of Gemini's may be named by its URL; other URLs name none."""
    if not isinstance(value, str):
        return value
    found = RESOURCE.search(value)
    if found is not None:
        return found[1]
    if _WEB.match(value) and not _GOOGLE.search(normalize("NFKC", unquote(value))):
        return None
    return value


def ids_of(value: object) -> tuple[str, ...]:
    """The id that a value is, cut where it is longer than any that is kept."""
    return (value[: ID_CHARACTERS_MAX + 1],) if isinstance(value, str) and value else ()


def object_in(value: dict[str, object], name: str) -> dict[str, object]:
    """The object under a name; empty where none is."""
    inside = value.get(name)
    return inside if isinstance(inside, dict) else {}


def objects_in(value: dict[str, object], name: str) -> list[dict[str, object]]:
    """The objects of a list under a name."""
    inside = value.get(name)
    return [each for each in inside if isinstance(each, dict)] if isinstance(inside, list) else []
