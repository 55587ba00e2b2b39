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


def _shows(call: CallRequest) -> bool:
    return call.media.count > 0 or call.body.names.files > 0


def _sounds(call: CallRequest) -> bool:
    return call.media.heard > 0


def _uses_tools(call: CallRequest) -> bool:
    return len(call.body.tools) > 0


# platform.claude.com/docs/en/build-with-claude: extended-thinking, adaptive-thinking and effort, "Supported models".
_UNTHINKING: Final = (
    "claude-2*",
    "claude-instant*",
    "claude-3-haiku*",
    "claude-3-opus*",
    "claude-3-sonnet*",
    "claude-3-5-*",
)
_UNADAPTIVE: Final = (
    *_UNTHINKING, "claude-3-7-*", "claude-haiku-4-5*", "claude-opus-4-0*", "claude-opus-4-1*", "claude-opus-4-2*",
    "claude-opus-4-5*", "claude-sonnet-4-0*", "claude-sonnet-4-2*", "claude-sonnet-4-5*",
)  # fmt: skip
_EFFORTLESS: Final = tuple([name for name in _UNADAPTIVE if name != "claude-opus-4-5*"])
# platform.openai.com/docs/guides/reasoning, "Limitations", and latest-model, "parameter compatibility".
_UNREASONING: Final = ("gpt-3.5*", "gpt-4*", "chatgpt-4o*", "davinci*", "babbage*")
_REASONING: Final = ("o1*", "o3*", "o4*", "gpt-5", "gpt-5-*")
# platform.openai.com/docs/models, "Modalities".
_BLIND: Final = ("gpt-3.5*", "o1-mini*", "o1-preview*", "o3-mini*", "gpt-4", "gpt-4-0*", "gpt-4-32k*")
# ai.google.dev/gemini-api/docs/thinking, "Thinking levels and budgets".
_LEVELLESS: Final = ("gemini-1*", "gemini-2*", "gemma*")
_THOUGHTLESS: Final = ("gemini-1*", "gemini-2.0*", "gemma*")

_ANTHROPIC: Final = (
    Difference("thinking", ("thinking", "type"), _UNTHINKING, frozenset({"enabled", "adaptive"})),
    Difference("adaptive thinking", ("thinking", "type"), _UNADAPTIVE, frozenset({"adaptive"})),
    Difference("output_config.effort", ("output_config", "effort"), _EFFORTLESS),
    Difference("speed", ("speed",), (*_UNADAPTIVE, "claude-sonnet*", "claude-haiku*"), frozenset({"fast"})),
    Difference("pictures", (), ("claude-2*", "claude-instant*"), carries=_shows),
    Difference("tools", (), ("claude-2*", "claude-instant*"), carries=_uses_tools),
)  # fmt: skip
_OPENAI: Final = (
    Difference("reasoning_effort", ("reasoning_effort",), _UNREASONING),
    Difference("reasoning", ("reasoning", "effort"), _UNREASONING),
    Difference("verbosity", ("verbosity",), (*_UNREASONING, "o1*", "o3*", "o4*")),
    Difference("text.verbosity", ("text", "verbosity"), (*_UNREASONING, "o1*", "o3*", "o4*")),
    Difference("max_tokens", ("max_tokens",), _REASONING),
    *[
        Difference(name, (name,), _REASONING)
        for name in ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logprobs", "logit_bias")
    ],
    Difference("pictures", (), _BLIND, carries=_shows),
    Difference("sound", (), (*_UNREASONING[:1], *_REASONING, "gpt-4.1*", "gpt-4o", "gpt-4o-mini", "gpt-4o-2*"), carries=_sounds),
    Difference("tools", (), ("o1-mini*", "o1-preview*"), carries=_uses_tools),
    Difference("dimensions", ("dimensions",), ("text-embedding-ada-002",)),
)  # fmt: skip
_GEMINI: Final = (
    Difference("thinkingConfig", ("generationConfig", "thinkingConfig"), _THOUGHTLESS),
    Difference("thinkingLevel", ("generationConfig", "thinkingConfig", "thinkingLevel"), _LEVELLESS),
    Difference("tools", (), ("gemma*",), carries=_uses_tools),
)  # fmt: skip
DIFFERENCES: Final[Mapping[str, tuple[Difference, ...]]] = {
    "anthropic": _ANTHROPIC, "openai": _OPENAI, "gemini": _GEMINI,
}  # fmt: skip


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


def refused_part(call: CallRequest, before: str, models: tuple[str, ...]) -> str:
    """Return what a call has that one of `models` refuses and the model `before` takes; empty if there is nothing."""
    for row in DIFFERENCES.get(call.family, ()):
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
