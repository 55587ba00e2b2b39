"""Objects an upstream keeps: the ids a request names, and the ids an answer tells of.

Whose an object is decides the counters' door. A request names an object where its API takes an id:
what callers write freely (metadata, arguments and schemas of functions) names nothing. Sources: the
references of OpenAI (responses, conversations, files, batches, vector stores, containers), Anthropic
(files, containers, message batches) and Gemini (cached contents, files, file search stores, batches).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import urlsplit

from gateway.core.model import Family
from gateway.errors import InvalidRequest

NAMED_MAX = 256  # ids a request may name
TOLD_MAX = 1_024  # ids kept of one answer
ID_CHARACTERS_MAX = 512

# Where ids are looked for only if a body holds one of these: most bodies name nothing.
_HINTS = {
    Family.OPENAI: (b'"id"', b'_id"', b'_ids"', b'"conversation"', b'"container"', b'"training_file"'),
    Family.ANTHROPIC: (b'_id"', b'"container"'),
    Family.GEMINI: (b"achedContent", b"ached_content", b"fileUri", b"file_uri", b"ileSearch", b"ile_search",
                    b"fileName", b"file_name"),
}  # fmt: skip
_NAMES = frozenset(
    {
        "previous_response_id", "response_id", "file_id", "input_file_id", "output_file_id", "error_file_id",
        "training_file", "validation_file", "image_file_id", "container_id", "conversation_id",
        "vector_store_id", "batch_id", "thread_id", "assistant_id", "run_id", "message_id", "skill_id",
        "upload_id", "cachedContent", "cached_content", "fileUri", "file_uri", "fileName", "file_name",
    }
)  # fmt: skip
_LISTS = frozenset(
    {"file_ids", "vector_store_ids", "part_ids", "fileSearchStoreNames", "file_search_store_names"}
)
# Named by a string, or by an object with an id.
_EITHER = frozenset({"conversation", "container", "prompt", "audio"})
# What callers write freely, whatever the API.
_FREE = frozenset(
    {
        "metadata", "parameters", "arguments", "args", "schema", "json_schema", "input_schema", "properties",
        "responseSchema", "response_schema", "responseJsonSchema", "parametersJsonSchema", "headers",
        "variables", "attributes", "customMetadata",
    }
)  # fmt: skip
# An input item that is no more than this is a reference, whether it says so or not.
_REFERENCE = frozenset({"id", "type"})
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
_ACTIONS = frozenset({"input_tokens", "compact"})  # stand where an id would
_RESOURCE = re.compile(rf"(?:^|/)((?:{'|'.join(COLLECTIONS[Family.GEMINI])})/[^/?#:]+)")
_GOOGLE = re.compile(r"(?:^|\.)googleapis\.com\Z", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Place:
    """What a path of a family's API is about: an object by its id, or all of a kind, `id` empty."""

    id: str = ""


def place_of(family: Family, path: str) -> Place | None:
    """The place of a path without its query, percent-decoded; None where no objects are."""
    pattern = _PATHS.get(family)
    found = pattern.search(path) if pattern is not None else None
    if found is None:
        return None
    name = (found[2] or "").partition(":")[0]
    if not name or name in _ACTIONS:
        return Place()
    return Place(f"{found[1]}/{name}" if family is Family.GEMINI else name)


def named(family: Family, body: bytes, document: object) -> tuple[str, ...]:
    """The ids that a body names; `body` is its document as it is sent. InvalidRequest for too many."""
    hints = _HINTS.get(family)
    if hints is None or not any(hint in body for hint in hints):
        return ()
    try:
        found = dict.fromkeys(_named(family, document))
    except RecursionError as error:
        raise InvalidRequest("The request is nested too deeply.") from error
    if len(found) > NAMED_MAX:
        raise InvalidRequest(f"The request names more than {NAMED_MAX} stored objects.")
    return tuple(found)


def told(family: Family, document: object) -> tuple[str, ...]:
    """The ids of objects that an answer tells of, its own first."""
    if not isinstance(document, dict):
        return ()
    found = dict.fromkeys(_told(family, document))
    return tuple(found)[:TOLD_MAX]


def _named(family: Family, value: object) -> Iterator[str]:
    if isinstance(value, list):
        for each in value:
            if isinstance(each, dict | list):
                yield from _named(family, each)
    elif isinstance(value, dict):
        kind = value.get("type")
        for name, inside in value.items():
            if name in _FREE or (name == "input" and kind in _CALLS):
                continue
            if name == "response" and family is Family.GEMINI:  # what a function of the caller's answered
                continue
            yield from _named_by(family, name, inside, kind)
            if isinstance(inside, dict | list):
                yield from _named(family, inside)
        bare = family is Family.OPENAI and kind is None and value.keys() <= _REFERENCE
        if bare or kind == "item_reference":
            yield from _ids(value.get("id"))


def _named_by(family: Family, name: str, inside: object, kind: object) -> Iterator[str]:
    if name in _NAMES:
        if not (name == "skill_id" and kind == _BUILT_IN_SKILLS):
            yield from _normal(family, inside)
    elif name in _LISTS and isinstance(inside, list):
        for each in inside:
            yield from _normal(family, each)
    elif name in _EITHER:
        if isinstance(inside, dict):
            yield from _ids(inside.get("id"))
        elif name != "prompt":  # a text, where it is no object
            yield from _ids(inside)


def _normal(family: Family, value: object) -> Iterator[str]:
    """The id as it is kept. A file of Gemini's may be named by its URL; other URLs name no object."""
    if family is not Family.GEMINI or not isinstance(value, str):
        yield from _ids(value)
        return
    found = _RESOURCE.search(value)
    if found is not None:
        yield found[1]
        return
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or _GOOGLE.search(parts.hostname or ""):
        yield from _ids(value)


def _ids(value: object) -> Iterator[str]:
    if isinstance(value, str) and value:
        yield value[: ID_CHARACTERS_MAX + 1]


def _told(family: Family, document: dict[str, object]) -> Iterator[str]:
    """Ids at the places where the API itself puts them: what a model or a tool wrote is no place."""
    if family is Family.GEMINI:
        for one in (document, _object(document, "file")):
            for name in ("name", "uri"):
                value = one.get(name)
                found = _RESOURCE.search(value) if isinstance(value, str) else None
                if found is not None:
                    yield found[1]
    elif family is Family.OPENAI:
        for name in ("id", "output_file_id", "error_file_id"):
            yield from _ids(document.get(name))
        yield from _ids(_object(document, "conversation").get("id"))
        for item in _objects(document, "output"):
            yield from _told_by_item(item)
        for choice in _objects(document, "choices"):
            yield from _ids(_object(_object(choice, "message"), "audio").get("id"))
    elif family is Family.ANTHROPIC:
        if document.get("type") != "message":
            yield from _ids(document.get("id"))
        yield from _ids(_object(document, "container").get("id"))
        for block in _objects(document, "content"):
            yield from _told_by_block(block)


def _told_by_item(item: dict[str, object]) -> Iterator[str]:
    yield from _ids(item.get("id"))
    if item.get("type") == "code_interpreter_call":
        yield from _ids(item.get("container_id"))
    for part in _objects(item, "content"):
        for note in _objects(part, "annotations"):
            yield from _ids(note.get("file_id"))
            yield from _ids(note.get("container_id"))


def told_by_event(event: dict[str, object]) -> Iterator[str]:
    """The ids that one event of Anthropic's streams tells of."""
    for holder in (_object(event, "message"), _object(event, "delta")):
        yield from _ids(_object(holder, "container").get("id"))
    yield from _told_by_block(_object(event, "content_block"))


def _told_by_block(block: dict[str, object]) -> Iterator[str]:
    """Files that code of Anthropic's own tools wrote."""
    kind = block.get("type")
    if isinstance(kind, str) and kind.endswith("code_execution_tool_result"):
        for output in _objects(_object(block, "content"), "content"):
            yield from _ids(output.get("file_id"))


def _object(value: dict[str, object], name: str) -> dict[str, object]:
    inside = value.get(name)
    return inside if isinstance(inside, dict) else {}


def _objects(value: dict[str, object], name: str) -> Iterator[dict[str, object]]:
    inside = value.get(name)
    if isinstance(inside, list):
        yield from (each for each in inside if isinstance(each, dict))
