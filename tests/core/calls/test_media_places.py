"""Each place where an API takes a medium: the smallest file of its kind holds what its provider documents."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gateway.core.calls.call import MediaPart
from gateway.core.calls.claims import count_pages, read_call
from gateway.core.calls.estimate import Estimate, Estimator
from gateway.core.calls.routes import Route
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.model import Family
from tests.core.calls.test_documents import of_pages, packed


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


# Black, 1,568 by 1,568, of one bit each.
HEADER = chunk(b"IHDR", struct.pack(">IIBBBBB", 1_568, 1_568, 1, 0, 0, 0, 0))
PNG = (
    b"\x89PNG\r\n\x1a\n" + HEADER + chunk(b"IDAT", zlib.compress(bytes(197) * 1_568, 9)) + chunk(b"IEND", b"")
)
WAV = b"RIFF\x26\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x80\x3e\0\0\2\0\x10\0data\2\0\0\0\0\0"
WEBM = b"\x1a\x45\xdf\xa3\x80"
PDF = packed(*of_pages(100))
FILES = {"image": PNG, "audio": WAV, "video": WEBM, "application/pdf": PDF}
TYPES = {"image": "image/png", "audio": "audio/wav", "video": "video/webm"}

Wrap = Callable[[Any], dict[str, Any]]


def said(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


def invoked(part: Any) -> dict[str, Any]:
    return {"anthropic_version": "bedrock-2023-05-31", **said(part)}


def contents(part: Any) -> dict[str, Any]:
    return {"contents": [{"parts": [part]}]}


# Where parts of a call stand, and models with the most tokens of one image and those that they read.
OF_OPENAI = ("gpt-5.1", 1_600, 1_050_000)
OF_CLAUDE = ("claude-opus-4-7", 4_784, 1_000_000)
OF_GEMINI = ("gemini-3.5-flash", 2_240, 1_048_576)
OF_MISTRAL = ("mistral-medium-3", 1_600, 2_097_152)
OF_QWEN = ("Qwen/Qwen3-VL-8B", 1_600, 2_097_152)
UNKNOWN = ("some-model", 1_600, 2_097_152)
CALLS: dict[str, tuple[Wrap, tuple[str, int, int]]] = {
    "openai_chat": (said, OF_OPENAI),
    "mistral_agents": (lambda part: {"agent_id": "ag_1", **said(part)}, OF_MISTRAL),
    "mistral_conversations": (lambda part: {"inputs": said(part)["messages"]}, OF_MISTRAL),
    "vllm_chats": (lambda part: {"messages": [said(part)["messages"]]}, OF_QWEN),
    "openai_responses": (lambda part: {"input": said(part)["messages"]}, OF_OPENAI),
    "openai_decisions": (lambda part: {"input": said(part)["messages"], "questions": []}, OF_OPENAI),
    "openai_moderations": (lambda part: {"input": [part]}, ("omni-moderation-latest", 1_600, 2_097_152)),
    "openai_image_edits": (lambda part: {"prompt": "x", "images": [part]}, ("gpt-image-2", 6_800, 2_097_152)),
    "anthropic_messages": (said, OF_CLAUDE),
    "bedrock_invoke": (invoked, OF_CLAUDE),
    "bedrock_invoke_stream": (invoked, OF_CLAUDE),
    "bedrock_converse": (said, OF_CLAUDE),
    "bedrock_converse_stream": (said, OF_CLAUDE),
    "gemini_generate": (contents, OF_GEMINI),
    "gemini_stream": (contents, OF_GEMINI),
    "gemini_embed": (lambda part: {"requests": [{"content": {"parts": [part]}}]}, OF_GEMINI),
    "gemini_cache": (contents, OF_GEMINI),
    "gemini_interactions": (lambda part: {"input": [part]}, OF_GEMINI),
    "cohere_chat": (said, UNKNOWN),
    "cohere_embed": (lambda part: part if "images" in part else {"inputs": [{"content": [part]}]}, UNKNOWN),
    "ollama_chat": (lambda part: {"messages": [{"role": "user", "content": "x", **part}]}, UNKNOWN),
    "ollama_generate": (lambda part: {"prompt": "x", **part}, UNKNOWN),
}  # fmt: skip


def placed(path: tuple[str, ...], value: object, beside: dict[str, str]) -> Any:
    """An object with a value at a path, and other members beside it."""
    for at, name in enumerate(reversed(path)):
        value = {**(beside if at == 0 else {}), name: value}
    return value


def parts_of(meter: str) -> Iterator[tuple[str, str, MediaPart]]:
    places = SHAPES[meter].media
    yield from (("type", name, part) for name, part in places.by_type.items())
    yield from (("name", name, part) for name, part in places.by_name.items())
    if places.untyped is not None:
        yield "", "", places.untyped


def held(meter: str, part: object) -> Estimate:
    wrap, (model, *_) = CALLS[meter]
    of_model = "models/" if meter == "gemini_cache" else ""
    body = {"model": of_model + model, "stream": False, **wrap(part)}
    if meter.startswith(("gemini_", "bedrock_")) and meter not in {"gemini_cache", "gemini_interactions"}:
        del body["model"], body["stream"]
    if "agent_id" in body:
        del body["model"]
    route = Route(("POST",), "/x", "u", "s", OF_METER[meter].name, meter)
    call = read_call(route, {"model": model, "now": "1796000000"}, json.dumps(body).encode())
    count_pages(call)
    return Estimator().hold(call, 1, "s")


def test_each_api_that_takes_media_is_tried() -> None:
    assert CALLS.keys() == {meter for meter in SHAPES if any(parts_of(meter))}


PLACES = [(meter, *each) for meter in CALLS for each in parts_of(meter)]


def tried(meter: str, by: str, name: str, value: Any) -> Estimate:
    named: dict[str, dict[str, Any]] = {"type": {"type": name}, "name": {name: value}, "": {}}
    return held(meter, {**named[by], **({} if by == "name" else value)})


@pytest.mark.parametrize(("meter", "by", "name", "part"), PLACES, ids=lambda one: str(one)[:24])
def test_the_smallest_file_at_a_place_holds_what_its_kind_costs(
    meter: str, by: str, name: str, part: MediaPart
) -> None:
    """A page is 3,000 tokens of text and an image, but at Gemini, where it is an image."""
    _, (model, image, context) = CALLS[meter]
    kind = part.kind or "image"
    stated = TYPES.get(kind, kind)
    beside = dict.fromkeys(part.states[:1], stated) | ({"type": part.only} if part.only else {})
    text = base64.b64encode(FILES[kind]).decode()
    assert len(text) < 2_048, "it is short"
    takes_urls = part.path[-1:] != () and part.path[-1].endswith("url")
    if part.path != ("",):
        value = f"data:{stated};base64,{text}" if takes_urls else text
        found = tried(meter, by, name, placed(part.path, value, beside) if part.path else [value])
        page = image if model.startswith("gemini") else image + 3_000
        most, likely = (min(100 * page, context), 25_800) if kind == "application/pdf" else (image, 1_600)
        assert most <= found.read < most + 8_000
        assert found.need >= likely
    for path in part.named or ([part.path] if takes_urls and kind != "image" else []):
        address = placed(path, "https://files.example/1", beside)
        most = image if kind == "image" else context
        assert most <= tried(meter, by, name, address).read < most + 8_000


def test_names_of_ollama_count_in_any_case_as_go_reads_them() -> None:
    text = base64.b64encode(PNG).decode()
    assert held("ollama_chat", {"Images": [text, text]}).read >= 3_200


def test_a_medium_under_an_escaped_name_is_held() -> None:
    text = base64.b64encode(PNG).decode()
    body = b'{"model":"claude-opus-4-7","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image",'
    body += b'"source":{"type":"base64","media_type":"image/png","d\\u0061ta":"%b"}}]}]}' % text.encode()
    route = Route(("POST",), "/x", "u", "s", Family("anthropic"), "anthropic_messages")
    assert Estimator().hold(read_call(route, {}, body), 1, "s").read >= 4_784
