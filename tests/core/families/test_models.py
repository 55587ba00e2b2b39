"""Each member of the SDKs' request types that names a model is read as one, wherever it stands."""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import typing_extensions

from gateway.core.families.controlled import models_beside, models_of, models_stored
from gateway.core.families.openai.realtime import RealtimeSession
from gateway.core.families.registry import FAMILIES
from gateway.core.families.tools import tools_of
from gateway.core.model import Family
from gateway.errors import InvalidRequest
from tests.core.families.test_tools import members_of

TRAINED = "ft:gpt-4o-mini:bravo:plan:abc"
OPENAI, ANTHROPIC = "openai.types.", "anthropic.types."
# Request types by module, with the family, and how many places of a model they have at least.
TYPES = {
    "evals": ("openai", f"{OPENAI}eval_create_params", "EvalCreateParams", 2),
    "runs": ("openai", f"{OPENAI}evals.run_create_params", "RunCreateParams", 2),
    "training": ("openai", f"{OPENAI}fine_tuning.job_create_params", "JobCreateParams", 4),
    "responses": ("openai", f"{OPENAI}responses.response_create_params", "ResponseCreateParamsBase", 2),
    "chat": ("openai", f"{OPENAI}chat.completion_create_params", "CompletionCreateParamsBase", 1),
    "speech": ("openai", f"{OPENAI}audio.speech_create_params", "SpeechCreateParams", 1),
    "videos": ("openai", f"{OPENAI}video_create_params", "VideoCreateParams", 1),
    "decisions": ("openai", f"{OPENAI}decision_create_params", "DecisionCreateParams", 1),
    "messages": ("anthropic", f"{ANTHROPIC}beta.message_create_params", "MessageCreateParamsBase", 3),
    "agents": ("anthropic", f"{ANTHROPIC}beta.agent_create_params", "AgentCreateParams", 2),
}
# Members whose name says model and that choose none: what an answer or a caller says of one.
NONE = frozenset({"moderation.model", "from.model", "to.model", "svg_usage.model"})


def planted(hint: Any, place: str = "", outside: tuple[Any, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield values of a type with a model at each member of that name, and the end of its place."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is dict or hint in outside:
        return
    if origin in {list, tuple} or getattr(origin, "__name__", "") in {"Iterable", "Sequence"}:
        yield from ((at, [value]) for at, value in planted(inner[0], place, outside))
    elif origin not in {typing.Literal, typing_extensions.Literal}:
        for each in inner:
            yield from planted(each, place, outside)
    members = members_of(hint)
    kind = [one for one in typing.get_args(members.get("type")) if isinstance(one, str)]
    kind = kind or [one for each in typing.get_args(members.get("type")) for one in typing.get_args(each)]
    for name, of in members.items():
        if name in {"model", "model_id", "embedding_model"}:
            found: Any = [(f"{place}.{name}".lstrip("."), TRAINED)] if has_text(of) else []
            found += [(f"{place}.{name}.id", {"id": TRAINED})] if "id" in members_within(of) else []
        else:
            found = planted(of, name, (*outside, hint))
        for at, value in found:
            yield at, {**({"type": kind[0]} if kind else {}), name: value}


def has_text(hint: Any) -> bool:
    return hint is str or any(has_text(one) for one in typing.get_args(hint) if not isinstance(one, str))


def members_within(hint: Any) -> set[str]:
    found = set(members_of(hint))
    return found.union(*[members_within(one) for one in typing.get_args(hint) if not isinstance(one, str)])


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_is_read_at_each_place_that_a_type_of_an_sdk_has(kind: str) -> None:
    name, module, cls, least = TYPES[kind]
    family = FAMILIES[Family(name)]
    bodies = list(planted(getattr(import_module(module), cls)))
    unread = []
    for place, body in bodies:
        found = models_stored(body, family.model_lists, "")
        found += tuple([model for tool in tools_of(body) for model in models_of(tool, "tools")])
        if TRAINED not in found and place not in NONE:
            unread.append(place)
    assert len(bodies) >= least
    assert unread == []


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"model": TRAINED}},
        {"data_source": {"source": {"content": [{"item": {"model": "Model S"}, "sample": {"model": "x"}}]}}},
        {"data_source_config": {"item_schema": {"properties": {"model": {"type": "string"}}}}},
        {"attributes": {"model": "x"}},
    ],
)
def test_data_of_a_caller_names_no_model(body: dict[str, Any]) -> None:
    assert models_stored(body, {}, "") == ()


@pytest.mark.parametrize("shape", [lambda value: {"x": value}, lambda value: [value]])
def test_a_model_is_read_sixteen_deep_and_what_is_nested_deeper_is_refused(
    shape: Callable[[Any], Any],
) -> None:
    value: Any = {"model": TRAINED}
    for _ in range(15):
        value = shape(value)
    assert models_beside({"extra": value}) == (TRAINED,)
    with pytest.raises(InvalidRequest, match=r"^extra\S* is nested more than 16 deep\.$") as refused:
        models_beside({"extra": shape(value)})
    assert (refused.value.param or "").startswith("extra")


def test_a_model_of_a_stored_body_has_no_prefix_of_its_api() -> None:
    assert models_stored({"embedding_model": "models/gemini-embedding-001"}, {}, "models/") == (
        "gemini-embedding-001",
    )


def test_a_live_session_asks_for_no_model_but_its_own_and_a_transcriber() -> None:
    session = RealtimeSession({"model": "m"})
    for place in ("tracing", "custom", "truncation"):
        with pytest.raises(InvalidRequest, match=TRAINED):
            session.ask({"type": "session.update", "session": {place: {"model": TRAINED}}}, 90)
