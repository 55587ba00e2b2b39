"""Members of a body that a provider sealed for itself, by who opens them besides the account that made them. Pure.

Each family lists its own in its record, with a source where another account may open them. Objects that a provider
keeps may belong to the model that made them; those of the prefixes in `PLAIN_OBJECTS` do not.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final

import msgspec

from gateway.core.calls.call import CallRequest

# Who opens a sealed member besides its account.
NOBODY, CLAUDE = "nobody", "claude"
# Members of all APIs whose objects are a caller's or a tool's own: arguments, results, schemas, labels. By the types
# of the vendors' SDKs, 2026-11-30.
_OWN: Final = frozenset({
    "args", "arguments", "input", "input_schema", "inputSchema", "json", "labels", "metadata", "parameters",
    "parametersJsonSchema", "parameters_json_schema", "requestMetadata", "response", "responseJsonSchema",
    "responseSchema", "schema",
})  # fmt: skip
# Members of a body, each by its path, that name what one model made or keeps: a response, a conversation, a cache.
# By the types of openai 2.9, google-genai 1.52, and ai.google.dev/gemini-api/docs/openai, 2026-11-30.
_BOUND: Final = tuple([tuple(path.split(".")) for path in (
    "previous_response_id",
    "conversation",
    "cachedContent",
    "cached_content",
    "previous_interaction_id",
    "google.cached_content",
    "google.cachedContent",
    "extra_body.google.cached_content",
    "extra_body.google.cachedContent",
)])  # fmt: skip
_BEGINNINGS: Final = frozenset(path[0] for path in _BOUND)
# Ids of objects that belong to no model: files, vector stores, containers, skills.
PLAIN_OBJECTS: Final = ("file-", "file_", "files/", "vs_", "cntr_", "container_", "skill_")
# Families whose sealed members are remembered as a pattern.
PATTERNS_MAX: Final = 32
_decode = msgspec.json.Decoder().decode


def can_open(seals: Mapping[str, str], body: bytes, models: tuple[str, str]) -> bool:
    """Return whether another account can take a body that its first account may have sealed parts of.

    `seals` are those of its family. `models` are the names of the model at the first account, and at the other.
    """
    if not any(name.encode() in body for name in seals):
        return True
    try:
        openers = {seals[name] for name in _sealed_names(_decode(body), seals)}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return False
    return not openers or (openers == {CLAUDE} and all(CLAUDE in model.lower() for model in models))


def bound_by(call: CallRequest, seals: Mapping[str, str]) -> str:
    """Return what binds a call to the model that its caller named, in words; empty if nothing does.

    `seals` are the sealed members of its family.
    """
    document = call.body.document
    may_bind = document is not None and not _BEGINNINGS.isdisjoint(document)
    paths = _BOUND if may_bind else ()
    for path in paths:
        value: object = document
        for name in path:
            value = value.get(name) if isinstance(value, dict) else None
        if value:
            return f"it names what another model keeps ({'.'.join(path)})"
    kept = next((id_ for id_ in call.objects.named if not id_.startswith(PLAIN_OBJECTS)), "")
    if kept:
        return f"it names what another model made ({kept[:64]})"
    member = sealed_member(seals, call.body.content)
    return f"it carries what another model sealed ({member})" if member else ""


def sealed_member(seals: Mapping[str, str], body: bytes) -> str:
    """Return the name of a sealed member in a body, which binds it to the model that sealed it; empty if it has none.

    No page of a provider says that another of its models opens what one sealed: they answer 400 (public threads
    vybestack/llxprt-code 2335, openai/codex 17541). A body that cannot be read counts as sealed.
    """
    named = _compile_pattern(tuple(seals)).search(body) if seals else None
    if named is None:
        return ""
    try:
        return next(_sealed_names(_decode(body), seals), "")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return named[1].decode()


@lru_cache(PATTERNS_MAX)
def _compile_pattern(names: tuple[str, ...]) -> re.Pattern[bytes]:
    """Return a pattern that finds these members as JSON and forms write them, which looks only where a quote stands."""
    return re.compile(rb'"(%b)"' % b"|".join([re.escape(name.encode()) for name in names]))


def _sealed_names(document: object, names: Mapping[str, str]) -> Iterator[str]:
    """Yield those of `names` that a document has as a member with a text, or as a `type`."""
    waiting = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(inner, str):
                    if (word := inner if name == "type" else name) in names and inner:
                        yield word
                elif name not in _OWN or not isinstance(inner, dict):
                    waiting.append(inner)
