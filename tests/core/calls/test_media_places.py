"""Each place where an API takes a medium: the smallest file of its kind holds what its provider documents."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest

from deploy.costs import classes_of, leaves, members_of, type_names
from gateway.core.calls.call import MediaPart
from gateway.core.calls.estimate import Estimate, Estimator
from gateway.core.calls.parsing import measure_media, read_call
from gateway.core.calls.routes import Route
from gateway.core.families.costs import costs_of
from gateway.core.families.registry import OF_METER, SHAPES
from gateway.core.model import Family
from tests.core.calls.test_documents import of_pages, packed
from tests.core.calls.test_recordings import REAL, adts, flac, m4a, mp3
from tests.core.families.test_tools import ANTHROPIC, GEMINI, OPENAI, planted


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
OF_MISTRAL = ("mistral-medium-3", 4_160, 2_097_152)
OF_QWEN = ("Qwen/Qwen3-VL-8B", 16_384, 2_097_152)
# The picture below is 56 x 56 parts of 28 x 28 pixels.
DRAWN = {"claude-opus-4-7": 3_136, "Qwen/Qwen3-VL-8B": 3_136}
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
    measure_media(call)
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
    """A page is 3,000 tokens of text and an image, but at Gemini, where it is an image.

    A sound is 1,600 tokens at least. Nobody knows how long the video is.
    """
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
        pages, sound, video = (min(100 * page, context), 25_800), (1_600, 1_600), (context, 1_600)
        most, likely = {"application/pdf": pages, "audio": sound, "video": video}.get(
            kind, (DRAWN.get(model, image), 1_600)
        )
        assert most <= found.read < most + 8_000
        assert found.need >= likely
    for path in part.named or ([part.path] if takes_urls and kind != "image" else []):
        address = placed(path, "https://files.example/1", beside)
        most = image if kind == "image" else context
        assert most <= tried(meter, by, name, address).read < most + image + 8_000


SILENT = base64.b64encode(bytes(48)).decode()  # begins as no medium
FILE_URI = "https://generativelanguage.googleapis.com/v1beta/files/x"


@pytest.mark.parametrize(
    ("meter", "part", "least"),
    [
        ("gemini_interactions", {"type": "video", "uri": FILE_URI}, OF_GEMINI[2]),
        ("gemini_interactions", {"type": "audio", "uri": FILE_URI}, OF_GEMINI[2]),
        ("gemini_interactions", {"type": "document", "uri": FILE_URI}, OF_GEMINI[2]),
        ("gemini_interactions", {"type": "video", "data": SILENT}, OF_GEMINI[2]),
        ("gemini_interactions", {"type": "audio", "data": SILENT}, OF_GEMINI[2]),
        ("gemini_generate", {"fileData": {"mimeType": "image/png", "fileUri": FILE_URI}}, OF_GEMINI[2]),
        ("openai_chat", {"type": "audio_url", "audio_url": {"url": f"data:image/png;base64,{SILENT}"}},
         OF_OPENAI[2]),
    ],
)  # fmt: skip
def test_a_part_that_states_an_image_is_held_as_the_dearer_of_that_and_its_type(
    meter: str, part: dict[str, Any], least: int
) -> None:
    assert held(meter, {"mime_type": "image/png", **part}).read >= least


def test_a_picture_that_states_an_image_is_held_as_one() -> None:
    part = {"type": "image", "mime_type": "image/png", "uri": FILE_URI}
    assert held("gemini_interactions", part).read < OF_GEMINI[1] + 8_000


def test_a_packed_file_is_held_as_one_whatever_type_it_states() -> None:
    for packed_file in (b"PK\3\4\x14\0\6\0", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"):
        text = base64.b64encode(packed_file).decode()
        part = {"type": "input_file", "filename": "a.docx", "file_data": f"data:text/plain;base64,{text}"}
        assert held("openai_responses", part).read >= 1_050_000


def test_a_picture_of_a_phone_is_no_text() -> None:
    heic = struct.pack(">I", 24) + b"ftypheic\0\0\0\0mif1heic" + bytes(300_000)
    assert 2_240 <= held("gemini_generate", inline("image/heic", heic)).read < 2_240 + 800


def test_names_of_ollama_count_in_any_case_as_go_reads_them() -> None:
    text = base64.b64encode(PNG).decode()
    assert held("ollama_chat", {"Images": [text, text]}).read >= 3_200


def test_a_medium_under_an_escaped_name_is_held() -> None:
    text = base64.b64encode(PNG).decode()
    body = b'{"model":"claude-opus-4-7","max_tokens":1,"messages":[{"role":"user","content":[{"type":"image",'
    body += b'"source":{"type":"base64","media_type":"image/png","d\\u0061ta":"%b"}}]}]}' % text.encode()
    route = Route(("POST",), "/x", "u", "s", Family("anthropic"), "anthropic_messages")
    assert Estimator().hold(read_call(route, {}, body), 1, "s").read >= 3_136


ADDRESS = "https://files.example/1"
SHORT = base64.b64encode(PNG).decode()


# A picture is 1,600 tokens at this model, and 1,050,000 is all that it reads.
@pytest.mark.parametrize(
    ("part", "most"),
    [
        ({"type": "video", "video": [ADDRESS] * 8}, 1_050_000),
        ({"type": "input_video", "video_url": ADDRESS}, 1_050_000),
        ({"type": "audio", "audio": ADDRESS}, 1_050_000),
        ({"type": "hologram", "hologram": {"place": "s3://bucket/1"}}, 1_050_000),
        ({"type": "image", "image": ADDRESS}, 1_600),
        ({"type": "image", "image": SHORT}, 1_600),
        ({"type": "image", "image": [ADDRESS, {"url": ADDRESS}]}, 2 * 1_600),
        ({"type": "image_url", "image_url": [ADDRESS] * 3}, 3 * 1_600),
        ({"type": "image_url", "image_url": {"url": [ADDRESS] * 3}}, 3 * 1_600),
        ({"image": ADDRESS}, 1_600),
        ({"image_url": ADDRESS}, 1_600),
        ({"type": "hologram", "text": ADDRESS}, 0),
        ({"type": "text", "text": ADDRESS, "image": ADDRESS}, 0),
    ],
)
@pytest.mark.parametrize("meter", ["openai_chat", "openai_responses"])
def test_a_medium_at_a_place_that_its_api_does_not_document_holds_what_it_costs(
    meter: str, part: Any, most: int
) -> None:
    assert most <= held(meter, part).read < most + 400 + len(str(part))


# Of a model that nobody knows, a picture is 48,169 tokens as of gpt-4o-mini, and a document 2,097,152.
@pytest.mark.parametrize(("part", "most"), [({"image": ADDRESS}, 48_169), ({"pdf": ADDRESS}, 2_097_152)])
def test_a_medium_to_embed_holds_what_it_costs(part: Any, most: int) -> None:
    body = json.dumps({"model": "jina-embeddings-v4", "input": [part, {"text": "x"}]}).encode()
    call = read_call(Route(("POST",), "/x", "u", "s", Family("openai"), "openai_embeddings"), {}, body)
    assert most <= Estimator().hold(call, 1, "s").read < most + 200


# Types of requests and of parts in them, by meter, with the place of a part.
REQUESTS: dict[str, tuple[str, str, Wrap]] = {
    "openai_responses": (f"{OPENAI}responses.response_create_params", "ResponseCreateParamsBase", dict),
    "openai_chat": (f"{OPENAI}chat.completion_create_params", "CompletionCreateParamsBase", dict),
    "openai_moderations": (f"{OPENAI}moderation_create_params", "ModerationCreateParams", dict),
    "anthropic_messages": (f"{ANTHROPIC}beta.message_create_params", "MessageCreateParamsBase", dict),
    "gemini_interactions": (GEMINI, "CreateModelInteractionParam", dict),
    "gemini_generate": ("google.genai.types", "Content", lambda content: {"contents": [content]}),
}
URL, LARGE = "https://files.example/1", {"pages", "sound", "video"}


def reached(one: Any, found: dict[Any, None]) -> dict[Any, None]:
    if one not in found:
        found[one] = None
        for hint in members_of(one).values():
            for inner in classes_of(hint):
                reached(inner, found)
    return found


def media_of(api: str, one: Any) -> list[dict[str, Any]]:
    """Return objects of a type, each with one of its members that may be a medium, if its type is that of one."""
    kinds, members, costs = type_names(one), members_of(one), costs_of(f"{api} members")
    if kinds and costs_of(f"{api} parts").get(kinds[0]) not in {*LARGE, "picture", "source"}:
        return []
    said = {"type": kinds[0]} if kinds else {"format": "x/pdf", "mimeType": "x/pdf"}
    return [
        {**said, name: URL if name.lower().endswith(("url", "uri", "id")) else base64.b64encode(PDF).decode()}
        for name, hint in members.items()
        if (costs.get(name) == "medium" or name == "file_id") and not {str, bytes}.isdisjoint(leaves(hint))
    ]


def innermost(costs: dict[str, str], value: Any, media: set[int], cost: str = "") -> str:
    """Return the cost of the part around the one of these objects that is in a body; empty if there is none."""
    if id(value) in media:
        return cost or "picture"
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    of_type = costs.get(value.get("type", "")) if isinstance(value, dict) else None
    cost = of_type if of_type in {*LARGE, "picture"} else cost
    return next(filter(None, (innermost(costs, one, media, cost) for one in inner)), "")


@pytest.mark.parametrize("meter", REQUESTS)
def test_a_medium_is_read_at_each_place_that_a_type_of_an_sdk_has(meter: str) -> None:
    module, name, wrap = REQUESTS[meter]
    api, root = meter.partition("_")[0], getattr(import_module(module), name)
    types = [
        one
        for one in reached(root, {})
        if not one.__name__.endswith(("ResponseFormatParam", "MCPServerURLDefinitionParam"))
    ]
    plants = {one: media_of(api, one) for one in types}
    media, costs = {id(one) for each in plants.values() for one in each}, costs_of(f"{api} parts")
    assert media
    for value in planted(root, plants):
        body = ({} if meter == "gemini_generate" else {"model": "m", "max_tokens": 1}) | wrap(value)
        route = Route(("POST",), "/x", "u", "s", Family(api), meter)
        call = read_call(route, {"model": "m"}, json.dumps(body).encode())
        large = len(call.media.documents) + call.media.endless + call.media.heard
        is_large = innermost(costs, body, media) in LARGE
        assert large or (not is_large and call.media.count + call.body.names.files), body


def inline(kind: str, data: bytes, **beside: Any) -> dict[str, Any]:
    return {"inlineData": {"mimeType": kind, "data": base64.b64encode(data).decode()}, **beside}


def spoken(data: bytes) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": "mp3"}}


def addressed(kind: str, data: bytes) -> dict[str, Any]:
    name = f"{kind.partition('/')[0]}_url"
    return {"type": name, name: {"url": f"data:{kind};base64,{base64.b64encode(data).decode()}"}}


def step(kind: str, data: bytes, **beside: Any) -> dict[str, Any]:
    text = base64.b64encode(data).decode()
    return {"type": kind.partition("/")[0], "mime_type": kind, "data": text, **beside}


def block(kind: str, name: str, data: bytes) -> dict[str, Any]:
    return {kind: {"format": name, "source": {"bytes": base64.b64encode(data).decode()}}}


SILENCE = flac(183)  # 1,500 seconds in 2,238 bytes
FILM = m4a(1, stated=600, handlers=(b"vide",))  # ten minutes in some 500 bytes
PACE, SPAN = {"videoMetadata": {"fps": 24}}, {"videoMetadata": {"startOffset": "1s"}}
AGENTIC = {"processing": "agentic"}


# A second of sound is 10 tokens at OpenAI (its guide to costs of the Realtime API), 32 at Gemini (Google's page on
# tokens), and 50 at most in other models, as in Whisper's encoder. A second of video is one frame of 258 tokens at
# Gemini, 280 since Gemini 3, and its sound (Google's page on media resolution). All of 2026-11-30.
@pytest.mark.parametrize(
    ("meter", "part", "least", "most"),
    [
        ("openai_chat", spoken(mp3(10_000)), 3_600, 3_610),  # 360 s at 8 kbit/s
        ("openai_responses", spoken(mp3(10_000)), 3_600, 3_610),
        ("vllm_chats", addressed("audio/flac", SILENCE), 75_000, 75_050),
        ("mistral_conversations", addressed("audio/flac", SILENCE), 75_000, 75_050),
        ("bedrock_converse", block("audio", "flac", SILENCE), 75_000, 75_050),
        ("gemini_generate", inline("audio/flac", SILENCE), 48_000, 48_050),
        ("gemini_cache", inline("audio/flac", SILENCE), 48_000, 48_050),
        ("gemini_embed", inline("audio/flac", SILENCE), 48_000, 48_050),
        ("gemini_generate", inline("audio/aac", adts(10_000)), 40_960, 40_960),  # 1,280 s
        ("gemini_interactions", step("audio/aac", adts(10_000)), 40_960, 40_960),
        ("gemini_generate", inline("image/png", SILENCE), 48_000, 600_000),  # it says that it is a picture
        ("gemini_generate", inline("video/mp4", FILM), 600 * (280 + 32), 600 * 332),
        ("gemini_generate", inline("video/mp4", FILM, **SPAN), 600 * (280 + 32), 600 * 332),
        ("gemini_interactions", step("video/mp4", FILM), 600 * (280 + 32), 600 * 332),
        ("gemini_generate", inline("video/mp4", REAL["mp4"][1]), 1_600, 1_610),  # two seconds
        # Other frames than one a second, a model's own way through a video, and what nobody can read.
        ("gemini_generate", inline("video/mp4", FILM, **PACE), 1_048_576, 1_048_576),
        ("gemini_interactions", step("video/mp4", FILM, **AGENTIC), 1_048_576, 1_048_576),
        ("gemini_generate", inline("audio/amr", b"#!AMR\n" + bytes(99)), 1_048_576, 1_048_576),
        ("openai_chat", addressed("video/mp4", FILM), 1_050_000, 1_050_000),
        ("bedrock_converse", block("video", "mp4", FILM), 1_000_000, 1_000_000),
    ],
)
def test_a_recording_holds_the_seconds_that_it_has_not_its_bytes(
    meter: str, part: dict[str, Any], least: int, most: int
) -> None:
    """Of the rest of a call 400 tokens at most are read, its base64 included, where that may be text as well."""
    found = held(meter, part)
    assert least <= found.read <= most + 400 + len(json.dumps(part)) // 8


@pytest.mark.parametrize(
    ("meter", "quoted", "fetched"),
    [
        ("openai_responses", {"input": [{"type": "message", "role": "assistant", "content": [{
            "type": "output_text", "text": "x", "annotations": [{"type": "url_citation", "url": URL, "title": "t"}]}]}]},
         {"input": [{"type": "message", "role": "user", "content": [{"type": "input_image", "image_url": URL}]}]}),
        ("openai_chat", {"messages": [{"role": "assistant", "content": "x", "annotations": [
            {"type": "url_citation", "url_citation": {"url": URL}}]}]},
         {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": URL}}]}]}),
        ("openai_responses", {"input": "x", "tools": [{"type": "mcp", "server_label": "s", "server_url": URL}]},
         {"input": "x", "tools": [{"type": "new", "server_url": URL}]}),
        ("anthropic_messages", {"messages": [{"role": "assistant", "content": [{"type": "web_search_tool_result",
            "tool_use_id": "t", "content": [{"type": "web_search_result", "url": URL, "encrypted_content": "e"}]}]}]},
         {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": URL}}]}]}),
        ("anthropic_messages", {"messages": [], "mcp_servers": [{"type": "url", "url": URL, "name": "s"}]},
         {"messages": [], "servers": [{"type": "url", "url": URL, "name": "s"}]}),
    ],
)  # fmt: skip
def test_an_address_that_is_quoted_holds_no_picture(
    meter: str, quoted: dict[str, Any], fetched: dict[str, Any]
) -> None:
    """A picture of these models is 10,000 and 4,784 tokens; an unknown place may have one."""
    model, least = ("gpt-5.5", 10_000) if meter.startswith("openai") else ("claude-opus-4-7", 4_784)
    route = Route(("POST",), "/x", "u", "s", OF_METER[meter].name, meter)

    def read(body: dict[str, Any]) -> int:
        call = read_call(route, {}, json.dumps({"model": model, "max_tokens": 1, **body}).encode())
        return Estimator().hold(call, 1, "s").read

    assert read(quoted) < 300
    assert read(fetched) >= least
