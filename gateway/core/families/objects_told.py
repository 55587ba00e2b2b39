"""Objects an upstream keeps: the ids an answer tells of, which are then its organization's.

Only places where the API itself puts an id count: what a model or a tool wrote is no place.
"""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.families.objects import RESOURCE, ids_of, object_in, objects_in
from gateway.core.model import Family

TOLD_MAX = 1_024  # ids kept of one answer
# Of Anthropic's answers, most of which tell of nothing.
_MARKS_OF_ANSWERS = (b'"container"', b'"file_id"')


def may_tell(family: Family, answer: bytes) -> bool:
    """Whether a metered answer, or a part of one, is worth looking through for ids."""
    return family is not Family.ANTHROPIC or any(mark in answer for mark in _MARKS_OF_ANSWERS)


def told(family: Family, document: object) -> tuple[str, ...]:
    """The ids of objects that an answer tells of, its own first."""
    if not isinstance(document, dict):
        return ()
    found = dict.fromkeys(_told(family, document))
    return tuple(found)[:TOLD_MAX]


def _told(family: Family, document: dict[str, object]) -> Iterator[str]:
    """Ids at the places where the API itself puts them: what a model or a tool wrote is no place."""
    if family is Family.GEMINI:
        for one in (document, object_in(document, "file")):
            for name in ("name", "uri"):
                value = one.get(name)
                found = RESOURCE.search(value) if isinstance(value, str) else None
                if found is not None:
                    yield found[1]
    elif family is Family.OPENAI:
        for name in ("id", "output_file_id", "error_file_id"):
            yield from ids_of(document.get(name))
        yield from ids_of(object_in(document, "conversation").get("id"))
        for item in (
            *objects_in(document, "output"),
            *objects_in(document, "data"),
        ):  # a list of one object's
            yield from _told_by_item(item)
        for choice in objects_in(document, "choices"):
            yield from ids_of(object_in(object_in(choice, "message"), "audio").get("id"))
    elif family is Family.ANTHROPIC:
        if document.get("type") != "message":
            yield from ids_of(document.get("id"))
        yield from ids_of(object_in(document, "container").get("id"))
        for block in objects_in(document, "content"):
            yield from _told_by_block(block)


def _told_by_item(item: dict[str, object]) -> Iterator[str]:
    yield from ids_of(item.get("id"))
    if item.get("type") == "code_interpreter_call":
        yield from ids_of(item.get("container_id"))
    for part in objects_in(item, "content"):
        for note in objects_in(part, "annotations"):
            yield from ids_of(note.get("file_id"))
            yield from ids_of(note.get("container_id"))


def told_by_event(event: dict[str, object]) -> Iterator[str]:
    """The ids that one event of Anthropic's streams tells of."""
    for holder in (object_in(event, "message"), object_in(event, "delta")):
        yield from ids_of(object_in(holder, "container").get("id"))
    yield from _told_by_block(object_in(event, "content_block"))


def _told_by_block(block: dict[str, object]) -> Iterator[str]:
    """Files that code of Anthropic's own tools wrote."""
    kind = block.get("type")
    if isinstance(kind, str) and kind.endswith("code_execution_tool_result"):
        for output in objects_in(object_in(block, "content"), "content"):
            yield from ids_of(output.get("file_id"))
