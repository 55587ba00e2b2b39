"""Requests of Anthropic's Messages API: what they ask for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from gateway.core.calls.call import Body, CallSpec, FieldNames, UsageBounds
from gateway.core.families.anthropic.fallbacks import FALLBACKS, FAST, read_fallbacks
from gateway.core.families.controlled import (
    OF_EVERY_FAMILY,
    ControlledNames,
    Document,
    ModelAttempt,
    PathParams,
    flag,
    inner,
    maximum,
    model_in_path,
    model_name,
    stated_user,
)
from gateway.core.families.family import (
    KEPT_ANSWERS,
    KEPT_LINKED,
    Exclusions,
    ObjectLists,
    ObjectRules,
    always,
    ids_of,
    object_in,
    objects_in,
    only_own_tools,
    only_text,
)
from gateway.core.families.references import id_fields, names

_MESSAGES = ControlledNames("model", "stream", "max_tokens", "metadata", *OF_EVERY_FAMILY)
_METADATA = ControlledNames("user_id")


def read_messages(body: Body, document: Document, params: PathParams, bounds: UsageBounds) -> CallSpec:
    """Read a call of the Messages API. The model is in the path if `params` has one, else in the body."""
    _MESSAGES.check(document)
    named = params.get("model")
    model = model_in_path(document, named) if named else model_name(document.get("model"))
    streamed = flag(document, "stream")
    output_max = maximum(document, "max_tokens", bounds.usage_tokens_max)
    metadata = inner(document, "metadata", _METADATA)
    user = "" if metadata is None else stated_user(metadata.get("user_id"))
    attempts: tuple[ModelAttempt, ...] = ()
    if document.get(FALLBACKS) is not None:
        attempts = read_fallbacks(document[FALLBACKS], FALLBACKS, bounds.usage_tokens_max)
    return CallSpec(model, streamed, output_max, user=user, attempts=attempts)


# Which of the higher prices do not apply to a call of Anthropic's messages.
#
# A call writes to a cache only with `cache_control` or `caching`. It makes no sound.

US: Final = "us"  # a region of inference with its own prices; its default comes from the workspace


def _no_media(document: Document, names: FieldNames) -> bool:
    return (
        only_own_tools(document)
        and "mcp_servers" not in document
        and "container" not in document
        and only_text(document.get("messages"))
        and only_text(document.get("system"))
    )


def _no_tier(document: Document, tier: str) -> bool:
    if tier == FAST:
        entries = document.get(FALLBACKS)
        asking = (document, *(entries if isinstance(entries, list) else ()))
        return all(body.get("speed") in (None, "standard") for body in asking if isinstance(body, dict))
    if tier == US:
        return document.get("inference_geo") == "global"
    return document.get("service_tier") == "standard_only"


EXCLUSIONS = Exclusions(
    cache=lambda document, names: not names.caches,
    media=_no_media,
    sound=always,
    tier=_no_tier,
    tier_fields=("service_tier", "speed", "inference_geo"),
)


# Objects that Anthropic's upstreams keep: files, containers, skills, batches of messages.

_CALLS = frozenset({"tool_use", "server_tool_use", "mcp_tool_use"})
_BUILT_IN_SKILLS = "anthropic"
_TELL = (b'"container"', b'"file_id"')  # most answers contain neither


def may_tell(data: bytes) -> bool:
    """Return whether the raw event `data` can contain ids of files or containers."""
    return any(mark in data for mark in _TELL)


def ids_in_event(event: Document) -> Iterator[str]:
    """Yield the ids of containers and files in one event of a stream."""
    for holder in (object_in(event, "message"), object_in(event, "delta")):
        yield from ids_of(object_in(holder, "container").get("id"))
    yield from _ids_in_block(object_in(event, "content_block"))


# Fields of a request by which a later message may refer to the id of this message.
_LINKS = ("diagnostics", "thread")


def keeps(document: Document) -> int:
    """Return the `KEPT_…` constant for how long ids of the answer stay valid, by the request body.

    `KEPT_LINKED` means that a later request may refer to the id of the answer itself.
    """
    linked = any(document.get(name) is not None for name in _LINKS)
    return KEPT_LINKED if linked else KEPT_ANSWERS


def _created_ids(document: Document) -> Iterator[str]:
    if document.get("type") != "message":
        yield from ids_of(document.get("id"))
    yield from ids_of(object_in(document, "container").get("id"))
    for block in objects_in(document, "content"):
        yield from _ids_in_block(block)


def _ids_in_block(block: Document) -> Iterator[str]:
    """Yield the ids of files that the provider's code execution tool wrote, from a content block."""
    kind = block.get("type")
    if isinstance(kind, str) and kind.endswith("code_execution_tool_result"):
        for output in objects_in(object_in(block, "content"), "content"):
            yield from ids_of(output.get("file_id"))


def _is_free(name: str, holder: Document) -> bool:
    """Return whether the field `name` of `holder` is the input of a tool call, free text of the model."""
    kind = holder.get("type")
    return name == "input" and isinstance(kind, str) and kind in _CALLS


FIELDS: Final = id_fields("anthropic", lambda holder, id_: holder.get("type") == _BUILT_IN_SKILLS)
# Fields that bodies of stored objects may have, by Anthropic's reference.
_AGENT: Final = (
    "description execution_identity mcp_servers metadata model multiagent name skills system tools"
)
_TAKES: Final = {
    path: names(fields)
    for path, fields in {
        "messages/batches": "requests",
        "skills": "display_name files",
        "agents": _AGENT,
        "agents/{}": f"{_AGENT} version",
        "environments": "config description metadata name scope",
        "environments/{}": "config description metadata name scope",
        "vaults": "display_name metadata",
        "vaults/{}": "display_name metadata",
        "vaults/{}/credentials": "auth display_name metadata",
        "vaults/{}/credentials/{}": "auth display_name metadata",
        "memory_stores": "description metadata name",
        "memory_stores/{}": "description metadata name",
        "memory_stores/{}/memories": "content path view",
        "memory_stores/{}/memories/{}": "content path precondition view",
    }.items()
}
OF_AGENTS: Final = ("environments", "vaults", "memory_stores")
OBJECTS = ObjectRules(
    collections=dict.fromkeys(("messages/batches", "files", "skills", "agents", *OF_AGENTS), ""),
    add=FIELDS.add,
    told=_created_ids,
    is_free=_is_free,
    tell=_TELL,
    linked=lambda document: iter(ids_of(document.get("id"))),
    lasting=("file_",),
    takes=_TAKES,
    lists=ObjectLists(
        (
            "/v1/messages/batches",
            *(f"/v1/{one}" for one in ("files", "skills", "agents", *OF_AGENTS)),
        ),
        "after_id",
        (
            ("anthropic-version", "2023-06-01"),
            ("anthropic-beta", "files-api-2025-04-14,skills-2025-10-02,managed-agents-2026-04-01"),
        ),
    ),
)
