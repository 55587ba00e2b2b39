"""Media in messages of live sessions are held as in the bodies of calls: sound by its duration."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gateway.core.families.gemini.live import GeminiLiveSession
from gateway.core.families.openai.realtime import RealtimeSession
from gateway.errors import InvalidRequest
from tests.features.websockets.live_upstream import LiveUpstream
from tests.features.websockets.test_live import GEMINI_ROUTES, LIVE, SETUP, connected, live, received, until
from tests.features.websockets.test_live_debts import Strict, played
from tests.waiting import eventually

PICTURE = 1_600  # tokens of one at most, at every provider
TINY = "data:image/png;base64,iVBORw0KGgo="
FRAME = "A" * 331
CREATE = {"type": "response.create", "response": {}}


def item(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"type": "conversation.item.create", "item": {"type": "message", "content": list(parts)}}


def needs(session: Any, *messages: dict[str, Any]) -> int:
    """The tokens that a session needs for these messages."""
    for message in messages:
        session.ask(message, len(json.dumps(message)))
    return int(session.needs)


@pytest.mark.parametrize("url", [TINY, "https://example.com/a.png"])
def test_realtime_image_counts_a_fixed_number_of_tokens_whatever_the_size_in_bytes(url: str) -> None:
    parts = [{"type": "input_image", "image_url": url}] * 25
    aside = {"type": "response.create", "response": {"conversation": "none", "input": [item(*parts)["item"]]}}
    for message in (item(*parts), aside):
        assert 25 * PICTURE < needs(RealtimeSession({"model": "m"}), message) < 25 * (PICTURE + 40)


def test_audio_in_the_input_of_a_realtime_response_request_counts_by_duration() -> None:
    # Ten seconds at 24 kHz, of 10 tokens each, by 64,000 characters a second.
    spoken = item({"type": "input_audio", "audio": "A" * 640_000})["item"]
    aside = {"type": "response.create", "response": {"conversation": "none", "input": [spoken]}}
    assert 100 <= needs(RealtimeSession({"model": "m"}), aside) < 150


@pytest.mark.parametrize(
    ("stated", "tokens"),
    [
        ({"type": "audio/pcm", "rate": 24_000}, 100),
        ({"type": "audio/pcm"}, 100),
        ({"type": "audio/pcm", "rate": 500}, 4_812),  # 6,400 x 500 / 24,000 = 133 characters a token
        ({"type": "audio/pcm", "rate": 0}, 600),  # 8 kHz of 8 bits: 1,066 characters
        ({"type": "audio/pcm", "rate": "x"}, 600),
        ({"type": "audio/pcmu"}, 600),
    ],
)
def test_realtime_audio_tokens_are_counted_by_the_stated_sample_rate(
    stated: dict[str, Any], tokens: int
) -> None:
    session = RealtimeSession({"model": "m"})
    before = needs(session, {"type": "session.update", "session": {"audio": {"input": {"format": stated}}}})
    after = needs(session, {"type": "input_audio_buffer.append", "audio": "A" * 640_000})
    assert tokens - 5 <= after - before <= tokens + 5


SOUND = "A" * 1_280_000


@pytest.mark.parametrize(
    ("said", "tokens"),
    [
        ({"video": {"data": FRAME, "mimeType": "image/jpeg"}}, PICTURE),
        ({"video": {"data": FRAME}}, PICTURE),
        ({"mediaChunks": [{"data": FRAME, "mime_type": "image/jpeg"}] * 10}, 10 * PICTURE),
        ({"media_chunks": [{"data": FRAME}]}, PICTURE),
        (
            {"mediaChunks": [{"data": FRAME, "mimeType": "audio/pcm;rate=16000", "mime_type": "image/png"}]},
            PICTURE,
        ),
        # 1,280,000 characters are 960,000 bytes: 30 s at 16 kHz, 32 tokens each.
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=16000"}}, 960),
        ({"mediaChunks": [{"data": SOUND, "mimeType": "audio/pcm; rate=16000"}]}, 960),
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=48000"}}, 320),
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=500"}}, 30_720),  # 960 s
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=48000;rate=500"}}, 30_720),
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm"}}, 1_920),  # 60 s at 8 kHz
        ({"audio": {"data": SOUND}}, 1_920),
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=999999999"}}, 1_920),
        ({"audio": {"data": SOUND, "mimeType": "audio/pcm;rate=-1"}}, 1_920),
    ],
)
def test_gemini_live_media_tokens_are_counted_by_media_type_and_sample_rate(
    said: dict[str, Any], tokens: int
) -> None:
    session = GeminiLiveSession({})
    before = needs(session, {"setup": {"model": "models/m"}})
    assert tokens <= needs(session, {"realtimeInput": said}) - before <= tokens + 1


def spoken_content(kind: str) -> dict[str, Any]:
    part = {"inlineData": {"data": SOUND, "mimeType": kind}}
    return {"clientContent": {"turns": [{"parts": [part]}], "turnComplete": True}}


def test_gemini_live_audio_inside_content_is_counted_by_the_sample_rate() -> None:
    session = GeminiLiveSession({})
    before = needs(session, {"setup": {"model": "models/m"}})
    assert needs(session, spoken_content("audio/pcm;rate=16000")) - before >= 960


@pytest.mark.parametrize(
    "said",
    [
        {"realtimeInput": {"audio": {"data": SOUND, "mimeType": "audio/ogg"}}},
        {"realtimeInput": {"video": {"data": FRAME, "mimeType": "video/mp4"}}},
        {"realtimeInput": {"video": {"data": "ZkxhQwAA" + FRAME, "mimeType": "image/jpeg"}}},
        spoken_content("audio/flac"),
    ],
)
def test_gemini_live_audio_of_unknown_length_is_refused(said: dict[str, Any]) -> None:
    session = GeminiLiveSession({})
    needs(session, {"setup": {"model": "models/m"}})
    with pytest.raises(InvalidRequest, match="audio/pcm"):
        needs(session, said)


def test_gemini_live_text_sent_beside_an_image_is_counted_too() -> None:
    session = GeminiLiveSession({})
    before = needs(session, {"setup": {"model": "models/m"}})
    said = {"realtimeInput": {"text": "word " * 600, "video": {"data": FRAME}}}
    assert PICTURE + 1_000 <= needs(session, said) - before < PICTURE + 1_050


async def test_images_of_many_concurrent_realtime_sessions_stay_within_a_strict_plan() -> None:
    """The upstream reads each of a hundred pictures as 1,105 tokens."""
    async with played(1) as (stage, _):
        strict = Strict(stage, 100_000)

        async def talk() -> None:
            async with connected(stage) as socket:
                await until(socket, "session.created")
                await socket.send_json(item(*[{"type": "input_image", "image_url": TINY}] * 25))
                await socket.send_json(CREATE)
                while (await received(socket))["type"] not in {"response.done", "error"}:
                    pass

        await asyncio.gather(*(talk() for _ in range(4)))
        assert 0 < strict.used <= strict.quota


async def test_gemini_live_video_frames_of_a_session_stay_within_a_strict_plan() -> None:
    async def script(socket: LiveUpstream) -> None:
        read = 0
        await socket.receive()
        await socket.send({"setupComplete": {}})
        while True:
            message = await socket.receive()
            read += 258 * ("video" in message.get("realtimeInput", {}))
            if "clientContent" in message:
                usage = {"promptTokenCount": read, "responseTokenCount": 1, "totalTokenCount": read + 1}
                await socket.send(
                    {"serverContent": {"modelTurn": {}, "turnComplete": True}, "usageMetadata": usage}
                )

    frame = {"realtimeInput": {"video": {"data": FRAME, "mimeType": "image/jpeg"}}}
    content = {"clientContent": {"turns": [{"parts": [{"text": "hi"}]}], "turnComplete": True}}
    async with live(script, GEMINI_ROUTES) as (stage, sockets):
        strict = Strict(stage, 10_000)
        async with connected(stage, LIVE) as socket:
            await socket.send_json(SETUP)
            await received(socket)
            for _ in range(100):
                await socket.send_json(frame)
            await socket.send_json(content)
            assert (await socket.receive()).data == 1008  # too little is left
        await eventually(lambda: not stage.connections)
        assert len(sockets[0].heard) < 8  # 10,000 / 1,600 frames, and the setup
        assert strict.used <= strict.quota
