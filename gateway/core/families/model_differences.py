"""The differences of models of one API, for calls that are sent as another model than their caller named. Pure.

A row is what some models of an API refuse, with its source. What no row names is taken by all of them, so that a
step of a budget decides for models that nobody here knows. Objects of a provider may belong to the model that made
them; those of the prefixes in `PLAIN_OBJECTS` do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from gateway.core.accounts.budgets import is_of
from gateway.core.calls.call import CallRequest
from gateway.core.families.seals import sealed_member

# Members at the top of a body that name what one model made or keeps: a response, a conversation, a cache.
# By the types of openai 2.9, google-genai 1.52, 2026-11-30.
_BOUND: Final = (
    "previous_response_id",
    "conversation",
    "cachedContent",
    "cached_content",
    "previous_interaction_id",
)
# Ids of objects that belong to no model: files, vector stores, containers, skills.
PLAIN_OBJECTS: Final = ("file-", "file_", "files/", "vs_", "cntr_", "container_", "skill_")


class Difference(NamedTuple):
    """What models by these patterns refuse: a member of the body by its path, with one of `values` if there are any.

    Or `carries` says of a call whether it has it. `what` names it for people.
    """

    what: str
    path: tuple[str, ...]
    models: tuple[str, ...]
    values: frozenset[object] = frozenset()
    carries: Callable[[CallRequest], bool] | None = None


_RENAMED: Final = ("max_tokens",)  # unless its upstreams have their own name for it, by which it is sent


def has_pictures(call: CallRequest) -> bool:
    return call.media.count > 0 or call.body.names.files > 0


def has_sound(call: CallRequest) -> bool:
    return call.media.heard > 0


def has_tools(call: CallRequest) -> bool:
    return len(call.body.tools) > 0


def bound_by(call: CallRequest, seals: Mapping[str, str]) -> str:
    """Return what binds a call to the model that its caller named, in words; empty if nothing does.

    `seals` are the sealed members of its family.
    """
    document = call.body.document or {}
    for name in _BOUND:
        if document.get(name):
            return f"it names what another model keeps ({name})"
    kept = next((id_ for id_ in call.objects.named if not id_.startswith(PLAIN_OBJECTS)), "")
    if kept:
        return f"it names what another model made ({kept[:64]})"
    member = sealed_member(seals, call.body.content)
    return f"it carries what another model sealed ({member})" if member else ""


def refused_part(
    differences: tuple[Difference, ...], call: CallRequest, before: str, models: tuple[str, ...]
) -> str:
    """Return what a call has that one of `models` refuses and the model `before` takes; empty if there is nothing.

    `differences` are those of its family.
    """
    for row in differences:
        if (
            any(is_of(model, pattern) for model in models for pattern in row.models)
            and not any(is_of(before, pattern) for pattern in row.models)
            and _carries(row, call)
        ):
            return row.what
    return ""


def _carries(row: Difference, call: CallRequest) -> bool:
    if row.carries is not None:
        return row.carries(call)
    if row.path == _RENAMED and call.aim.facts and all(facts.maximum for facts in call.aim.facts):
        return False
    value: object = call.body.document
    for name in row.path:
        value = value.get(name) if isinstance(value, dict) else None
    return value is not None and (not row.values or (isinstance(value, str) and value in row.values))
