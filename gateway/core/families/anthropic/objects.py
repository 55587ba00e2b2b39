"""Objects that Anthropic's upstreams keep: files, containers, skills, batches of messages."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.families.controlled import Document
from gateway.core.families.family import Found, Objects, ids_of, object_in, objects_in
from gateway.core.families.ids import add_ids, may_name_ids

_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_BUILT_IN_SKILLS = "anthropic"
_TELL = (b'"container"', b'"file_id"')  # most answers tell of nothing


def may_tell(data: bytes) -> bool:
    """Whether an event is worth looking through for ids."""
    return any(mark in data for mark in _TELL)


def told_by_event(event: Document) -> Iterator[str]:
    """The ids that one event of a stream tells of."""
    for holder in (object_in(event, "message"), object_in(event, "delta")):
        yield from ids_of(object_in(holder, "container").get("id"))
    yield from _told_by_block(object_in(event, "content_block"))


def _told(document: Document) -> Iterator[str]:
    if document.get("type") != "message":
        yield from ids_of(document.get("id"))
    yield from ids_of(object_in(document, "container").get("id"))
    for block in objects_in(document, "content"):
        yield from _told_by_block(block)


def _told_by_block(block: Document) -> Iterator[str]:
    """Files that code of the API's own tools wrote."""
    kind = block.get("type")
    if isinstance(kind, str) and kind.endswith("code_execution_tool_result"):
        for output in objects_in(object_in(block, "content"), "content"):
            yield from ids_of(output.get("file_id"))


def _add(name: str, inside: object, holder: Document, place: str, found: Found) -> None:
    if name.lower() != "skill_id" or holder.get("type") != _BUILT_IN_SKILLS:
        add_ids(name, inside, holder, place, found)


def _is_free(name: str, holder: Document) -> bool:
    """Whether a caller's model wrote it for a function of the caller's."""
    kind = holder.get("type")
    return name == "input" and isinstance(kind, str) and kind in _CALLS


OBJECTS = Objects(
    collections=("messages/batches", "files", "skills"),
    may_name=may_name_ids,
    add=_add,
    told=_told,
    is_free=_is_free,
    tell=_TELL,
)
