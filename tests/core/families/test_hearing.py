"""Which parts may be sound: all that the SDKs have types for is what its type says, and all else may be."""

import typing
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from typing import Any

import pytest
import typing_extensions

from deploy.costs import members_of
from gateway.core.families.hearing import may_hear

URL, BASE64 = "https://files.example/a.mp3", "SUQzBAAAAAAAI1RTU0UAAAAPAAADTGF2ZjYwLjE2LjEwMA"
# Parts of types that no API documents: what they hold, under whichever name, may be sound.
UNKNOWN: list[dict[str, Any]] = [
    {"type": "thing", "thing": URL},
    *({"type": name, name: URL} for name in ("sound", "voice", "speech", "clip", "x-audio")),
    *({"type": "thing", name: URL} for name in ("source", "src", "href", "id", "content", "parts", "name")),
    {"type": "thing", "thing": "data:audio/mp3;base64," + BASE64}, {"type": "thing", "thing": BASE64},
    {"type": "thing", "things": [URL]}, {"type": "thing", "thing": {"a": {"b": BASE64}}},
    {"type": "thing", "text": {"source": URL}}, {"type": "thing", "text": "hi", "thing": [[BASE64]]},
    {"type": "thing", "content": [{"type": "other", "other": URL}]}, {"type": "Audio", "Audio": BASE64},
    {"type": "", "thing": URL}, {"sound": URL}, {"thing": {"url": URL}}, {"things": [BASE64]},
    {"audio_url": URL}, {"role": "user", "thing": URL}, {"type": None, "thing": URL}, {"audio": "audio_1"},
    {"type": "document", "source": {"type": "base64", "media_type": "audio/mp3", "data": BASE64}},
    {"type": "document", "source": {"type": "base64", "media_type": "application/octet-stream", "data": "A"}},
    {"type": "document", "source": {"type": "content", "content": [{"type": "video", "source": {}}]}},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "video", "source": {"url": URL}}]},
    {"type": "tool_result", "tool_use_id": "t", "content": [{"type": "thing", "thing": URL}]},
    {"type": "function_call_output", "call_id": "c", "output": [{"type": "thing", "thing": URL}]},
    {"type": "function_result", "result": [{"type": "audio", "data": BASE64}]},
    {"toolResult": {"toolUseId": "t", "type": "text", "content": [{"audio": {"source": {}}}]}},
]  # fmt: skip
# Members by which a server may go whatever a type says.
BESIDE: list[dict[str, Any]] = [
    {"type": "text", "text": "hi", "audio": {"source": {}}},
    {"type": "image", "inlineData": {"mimeType": "audio/wav"}},
    {"type": "text", "role": "user", "content": [{"type": "input_audio", "input_audio": {}}]},
    {"type": "image", "role": "user", "parts": [{"fileData": {"fileUri": URL}}]},
    {"type": "text", "toolResult": {"content": [{"video": {"format": "mp4"}}]}},
]  # fmt: skip
# Those that hold a text, settings, or parts that are text.
TEXTUAL: list[dict[str, Any]] = [
    {"type": "thing"}, {"type": "thing", "text": URL}, {"type": "thing", "n": 5, "on": True, "of": None},
    {"type": "thing", "l": []}, {"type": "thing", "content": [{"type": "text", "text": "hi"}]}, {"text": URL},
    {"text": "hi", "thought": True},
    {"type": "text", "text": "hi", "extra": {"url": URL}}, {"type": "tool_use", "input": {"audio": URL}},
    {"type": "document", "title": "data: a", "source": {"type": "text", "media_type": "text/plain",
                                                        "data": "data:audio/mp3;base64,AAAA"}},
    {"type": "function_result", "name": "f", "call_id": "c", "result": {"audio": URL}},
    # items of Codex 0.171.0
    {"type": "context_compaction", "encrypted_content": BASE64},
    {"type": "agent_message", "author": "a", "recipient": "b",
     "content": [{"type": "text", "text": "hi"}, {"type": "encrypted_content", "encrypted_content": "A"}]},
    {"toolResult": {"toolUseId": "t", "type": "text", "status": "error", "content": [{"json": {"a": URL}}]}},
]  # fmt: skip


def said(part: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield calls of each API that say a part, at each of its places."""
    content, plain = [{"type": "text", "text": "hi"}, part], {"role": "user", "content": "hi"}
    yield {"messages": [plain, {"role": "user", "content": content}]}
    yield {"messages": [{"role": "tool", "content": [{"type": "tool_result", "content": content}]}]}
    yield {"messages": [plain], "system": content}
    yield {"input": [{"role": "user", "content": content}]}
    yield {"input": [{"type": "message", "role": "user", "content": content}]}
    yield {"input": [{"type": "custom_tool_call_output", "output": content}]}
    yield {"contents": [{"role": "user", "parts": content}]}
    yield {"systemInstruction": {"parts": content}}
    yield {"requests": [{"model": "models/m", "taskType": "t", "content": {"parts": content}}]}
    yield {"prompt": {"id": "pmpt_1", "version": "1", "variables": {"a": "text", "b": part}}}
    if "role" not in part:
        yield {"input": content}


@pytest.mark.parametrize(
    ("part", "is_heard"), [*((one, True) for one in UNKNOWN + BESIDE), *((one, False) for one in TEXTUAL)]
)
def test_a_part_that_nobody_documents_may_be_sound_unless_it_is_text(
    part: dict[str, Any], *, is_heard: bool
) -> None:
    assert [may_hear(call) for call in said(part)] == [is_heard] * len([*said(part)])


# Values of the types that an SDK has for what is said: each variant of each part once. Parts stand in these.
HOLDERS = {"content", "output", "result", "source", "summary", "toolResult", "audio", "mime_type"}


@cache
def values(hint: Any) -> tuple[Any, ...]:
    """Return a value of each kind that a type may be."""
    if hasattr(hint, "__value__"):
        return values(hint.__value__)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in {typing.Literal, typing_extensions.Literal}:
        return inner
    if origin in {list, tuple} or getattr(origin, "__name__", "") in {"Iterable", "Sequence"}:
        return tuple([one] for one in values(inner[0]))
    if origin is dict or hint in {dict, object, Any}:
        return ({"key": "text"},)
    if origin in {typing.Annotated, typing_extensions.Required, typing_extensions.NotRequired}:
        return values(inner[0])
    if origin is not None:
        return tuple(one for each in inner for one in values(each))
    if members := members_of(hint):
        return tuple(filled({name: values(of) for name, of in members.items()}))
    return {int: (1,), float: (0.5,), bool: (True,), type(None): ()}.get(hint, ("text",))


def filled(members: dict[str, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    """Yield objects that have all members, so many that each value of each member stands in one."""
    usual = {name: of[0] for name, of in members.items() if of}
    usual |= {
        name: "image/png" for name in ("mimeType", "mime_type", "media_type") if usual.get(name) == "text"
    }
    yield usual
    for name, of in members.items():
        yield from ({**usual, name: one} for one in of[1:] if name in HOLDERS)


def sounds(value: Any) -> bool:
    """Return whether an object of the APIs' own types is sound, or has some in it."""
    if isinstance(value, list):
        return any(map(sounds, value))
    if not isinstance(value, dict):
        return False
    if value.get("type") in ("audio", "video", "input_audio"):
        return True
    return any(name in {"audio", "video"} or sounds(one) for name, one in value.items())


def typed(module: str, name: str, *members: str) -> Iterator[dict[str, Any]]:
    """Yield calls that say each value of the types of an SDK's `members`."""
    hints = members_of(getattr(import_module(module), name))
    for member in members:
        for value in values(hints[member]):
            yield {member: value}


def gemini() -> Iterator[dict[str, Any]]:
    """Yield calls with each member that a part of Gemini's may have, as both of its spellings have it."""
    for field in import_module("google.genai.types").Part.model_fields.items():
        for value in values(field[1].annotation):
            for name in (field[0], field[1].alias):
                yield {"contents": [{"role": "user", "parts": [{name: value}]}]}


def bedrock() -> Iterator[dict[str, Any]]:
    """Yield calls of Converse with each content that Amazon's description of it has."""
    service = import_module("botocore.session").get_session().get_service_model("bedrock-runtime")
    yield from ({"messages": one} for one in shaped(service.shape_for("Messages")))
    yield from ({"system": one} for one in shaped(service.shape_for("SystemContentBlocks")))


def shaped(shape: Any) -> list[Any]:
    if shape.type_name == "list":
        return [[one] for one in shaped(shape.member)]
    if shape.type_name != "structure":
        return [{"key": "text"}] if shape.type_name == "map" else list(getattr(shape, "enum", ())) or ["text"]
    if getattr(shape, "is_tagged_union", False):
        return [{name: one} for name, of in shape.members.items() for one in shaped(of)]
    return list(filled({name: tuple(shaped(of)) for name, of in shape.members.items()}))


OPENAI, ANTHROPIC = "openai.types.{}_create_params", "anthropic.types.{}message_create_params"
SDKS: dict[str, tuple[Iterator[dict[str, Any]], int]] = {
    "chat": (typed(OPENAI.format("chat.completion"), "CompletionCreateParamsBase", "messages"), 15),
    "responses": (typed(OPENAI.format("responses.response"), "ResponseCreateParamsBase", "input"), 40),
    "messages": (typed(ANTHROPIC.format(""), "MessageCreateParamsBase", "messages", "system"), 100),
    "beta": (typed(ANTHROPIC.format("beta."), "MessageCreateParamsBase", "messages", "system"), 150),
    "gemini": (gemini(), 30),
    "interactions": (
        typed("google.genai._gaos.types.interactions", "CreateModelInteractionParam", "input"),
        300,
    ),
    "converse": (bedrock(), 30),
}


@pytest.mark.parametrize("sdk", SDKS)
def test_each_part_that_an_sdk_has_a_type_for_is_sound_by_that_type_alone(sdk: str) -> None:
    calls, least = SDKS[sdk]
    found = list(calls)
    assert len(found) >= least
    assert [one for one in found if may_hear(one) is not sounds(one)] == []
