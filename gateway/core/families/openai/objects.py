"""Objects that OpenAI's upstreams keep: responses, conversations, files, batches, stores, containers."""

from __future__ import annotations

from collections.abc import Iterator

from gateway.core.families.controlled import Document
from gateway.core.families.family import Objects, ids_of, object_in, objects_in
from gateway.core.families.ids import add_ids, may_name_ids


def _told(document: Document) -> Iterator[str]:
    """Ids at the places where the API itself puts what it makes.

    What a model or a tool wrote is no place, nor is a list, which may hold what a caller wrote. Nor is one of
    what was there before, such as a response's conversation.
    """
    for name in ("id", "output_file_id", "error_file_id"):
        yield from ids_of(document.get(name))
    for item in objects_in(document, "output"):
        yield from _told_by_item(item)
    for choice in objects_in(document, "choices"):
        yield from ids_of(object_in(object_in(choice, "message"), "audio").get("id"))


def _told_by_item(item: Document) -> Iterator[str]:
    yield from ids_of(item.get("id"))
    if item.get("type") == "code_interpreter_call":
        yield from ids_of(item.get("container_id"))
    for part in objects_in(item, "content"):
        for note in objects_in(part, "annotations"):
            if note.get("type") == "container_file_citation":  # others are of files that were there
                yield from ids_of(note.get("file_id"))
                yield from ids_of(note.get("container_id"))


def keeps_chat(chat: Document) -> bool:
    """Whether anything of a chat's answer may be asked for later: all of it where it says so, or its sound.

    An answer that is not stored has an id as well, of nothing.
    """
    return bool(chat.get("store")) or "audio" in chat or "modalities" in chat


OBJECTS = Objects(
    collections=(
        "chat/completions", "fine_tuning/jobs", "responses", "conversations", "files", "batches",
        "vector_stores", "containers", "uploads", "assistants", "threads", "videos", "evals", "skills",
    ),
    may_name=may_name_ids,
    add=add_ids,
    told=_told,
    results=frozenset({"batches"}),
    refers=lambda document: iter(ids_of(object_in(document, "conversation").get("id"))),
    actions=frozenset({"responses/compact", "responses/input_tokens", "threads/runs"}),
)  # fmt: skip
