"""Texts of live sessions have two numbers: the likely tokens, three bytes each, and the most they can have."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.core.calls.estimate import Estimator
from gateway.core.families.family import LiveSession
from gateway.core.families.gemini.live import GeminiLiveSession
from gateway.core.families.openai.realtime import RealtimeSession
from tests.features.websockets.test_live import GEMINI_ROUTES, LIVE, connected, live, received, speaking
from tests.features.websockets.test_live_debts import RUN, said

TURN = {"clientContent": {"turnComplete": True, "turns": [{"parts": [{"text": "hi"}]}]}}
USAGE = {"promptTokenCount": 50, "responseTokenCount": 10}


def asked(session: LiveSession, message: dict[str, Any], size: int, most: int) -> None:
    """Ask with a message of `size` bytes, whose text has `most` tokens at most."""
    session.ask(message, size)
    session.texts.add(most)


def heard(session: LiveSession, **event: object) -> None:
    session.hear(json.dumps(event).encode())


def opened() -> RealtimeSession:
    session = RealtimeSession({"model": "m"})
    asked(session, said("x"), 300, 250)  # likely 100
    return session


def test_text_taken_back_from_a_live_session_no_longer_counts_beyond_its_likely_tokens() -> None:
    session = opened()
    assert (session.needs, session.beyond) == (100, 150)
    asked(session, said("x"), 30, 5)  # likely 10: the most is not more
    assert (session.needs, session.beyond) == (110, 150)
    asked(session, {"type": "session.update", "session": {"instructions": "x"}}, 60, 60)
    assert (session.needs, session.beyond) == (130, 190)
    session.take_back()
    assert (session.needs, session.beyond) == (110, 150)
    session.take_back()
    assert session.beyond == 150


def test_sound_of_the_realtime_api_has_no_tokens_of_text() -> None:
    session = opened()
    session.ask({"type": "input_audio_buffer.append", "audio": "A" * 12_800}, 12_850)
    assert session.texts.size == 0
    session.take_back()
    assert session.beyond == 150


def test_live_response_corrects_the_tokens_of_texts_sent_before_and_not_of_later_texts() -> None:
    session = opened()
    asked(session, {"type": "response.create", "response": {}}, 30, 30)  # likely 10
    asked(session, said("x"), 60, 40)  # likely 20, while the response is under way
    assert (session.needs, session.beyond) == (130, 150 + 20 + 20)
    heard(session, type="response.created", response={"id": "r"})
    usage = {"total_tokens": 500}
    heard(session, type="response.done", response={"id": "r", "status": "completed", "usage": usage})
    # The message that asked, and the later one, may not be in the 500.
    assert (session.needs, session.beyond) == (500 + 10 + 20, 20 + 20)


def test_live_response_that_read_some_texts_does_not_correct_the_unread_texts() -> None:
    session = opened()
    asked(session, {"type": "response.create", "response": {"conversation": "none"}}, 30, 30)
    heard(session, type="response.created", response={"id": "r"})
    usage = {"total_tokens": 500}
    heard(session, type="response.done", response={"id": "r", "status": "completed", "usage": usage})
    assert (session.needs, session.beyond) == (500, 150 + 20)


def test_each_open_gemini_live_answer_may_read_texts_at_their_most_tokens() -> None:
    session = GeminiLiveSession({})
    asked(session, {"setup": {"model": "models/m", "systemInstruction": {}}}, 60, 50)  # likely 20
    asked(session, TURN, 90, 70)  # likely 30
    assert (session.needs, session.beyond) == (50, 30 + 40)
    asked(session, TURN, 90, 70)
    assert (session.needs, session.beyond) == (2 * 80, 2 * (30 + 40 + 40))
    heard(session, serverContent={"modelTurn": {}}, usageMetadata=USAGE)
    assert (session.needs, session.beyond) == (2 * 60, 0)
    asked(session, {"realtimeInput": {"text": "x"}}, 90, 70)
    assert session.beyond == 3 * 40
    session.take_back()
    session.ask({"realtimeInput": {"audio": {"data": "A" * 640}}}, 700)
    assert (session.texts.size, session.beyond) == (0, 0)


@pytest.mark.parametrize("escaped", [False, True])
async def test_gemini_live_turn_holds_its_texts_at_their_most_tokens(escaped: bool) -> None:
    """A letter of Linear B has four bytes, and no tokenizer has fewer than three tokens for it."""
    text = "\U00010000" * 2_000 if escaped else RUN
    setup = {"setup": {"model": "models/m", "systemInstruction": {"parts": [{"text": text}]}}}
    message = json.dumps(setup)
    async with live(speaking, GEMINI_ROUTES) as (stage, _), connected(stage, LIVE) as socket:
        await socket.send_str(message)
        await received(socket)
        [hold] = stage.counters.holds
        # 250 bytes are names around the text, and the body of the turn itself.
        least, most = (2_000 * 3, 2_000 * 4 + 250) if escaped else (4_100, 4_100 + 250)
        assert least <= hold.read <= most
        assert len(message) // 3 <= hold.read_likely < len(message) // 3 + 100


def test_a_text_beside_a_medium_has_a_token_for_two_bytes() -> None:
    body = json.dumps({"realtimeInput": {"text": "word " * 600, "video": {"data": "A" * 10_000}}}).encode()
    size = len(body) - 10_000
    # 10,000 capitals stand beside the text: 5 / 4 more for each byte of it but an eighth.
    assert size // 2 <= Estimator().most_of_message(body, size, None) <= size
    assert Estimator().most_of_message(b'{"a":"' + b"q" * 5_000 + b'"}', 5_008, None) == 5_008
