"""Media that cost more than their bytes: no number of calls at once gets past a strict plan by them."""

from __future__ import annotations

import asyncio
import base64
from collections import Counter
from typing import Any

import pytest

from tests.core.calls.test_documents import of_pages, packed
from tests.core.calls.test_media_places import PNG, SILENCE
from tests.journey.apis import GEMINI, Api
from tests.journey.parallel import at_once
from tests.stage import Stage
from tests.waiting import wait_until

PLAN, CALLS = 100_000, 10
HELD, FULL = (429, "quota_held"), (429, "quota_exceeded")


def messages(kind: str, media_type: str, data: bytes, times: int = 1) -> Api:
    source = {"type": "base64", "media_type": media_type, "data": base64.b64encode(data).decode()}
    content = [{"type": kind, "source": source}] * times
    return Api(
        "messages", "/v1/messages", {"messages": [{"role": "user", "content": content}], "max_tokens": 10}
    )


def generate(mime_type: str, data: bytes, times: int = 1) -> Api:
    part = {"inlineData": {"mimeType": mime_type, "data": base64.b64encode(data).decode()}}
    body: dict[str, Any] = {
        "contents": [{"role": "user", "parts": [part] * times}],
        "generationConfig": {"maxOutputTokens": 10},
    }
    return Api("gemini", f"{GEMINI}:generateContent", body)


def chat(data: bytes, times: int) -> Api:
    part = {
        "type": "image_url",
        "image_url": {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"},
    }
    body = {"messages": [{"role": "user", "content": [part] * times}], "max_tokens": 10}
    return Api("chat", "/v1/chat/completions", body)


# What the provider takes for the media of one call, and how many such calls a plan of 100,000 has room for. Of
# an unknown model 20 pictures are 20 x 4,784 = 95,680 at Anthropic's API, 40 are 40 x 2,304 = 92,160 at Gemini's;
# ten pages are 10 x (4,784 + 3,000) = 77,840. 1,500 seconds of silence are 1,500 x 50 = 75,000.
@pytest.mark.parametrize(
    ("api", "tokens", "room"),
    [
        (chat(PNG, 25), 25 * 12_000, 0),
        (messages("image", "image/png", PNG, 20), 20 * 1_600, 1),
        (generate("image/png", PNG, 40), 40 * 1_032, 1),
        (messages("document", "application/pdf", packed(*of_pages(10))), 10 * 4_600, 1),
        (messages("document", "application/pdf", packed(*of_pages(100))), 100 * 1_500, 0),
        (generate("application/pdf", packed(*of_pages(1_000))), 1_000 * 258, 0),
        (generate("audio/flac", SILENCE), 1_500 * 32, 1),
        (generate("audio/flac", SILENCE, 2), 2 * 1_500 * 32, 0),
    ],
)  # fmt: skip
def test_ten_calls_at_once_stay_within_a_strict_plan(stage: Stage, api: Api, tokens: int, room: int) -> None:
    tenant, key = stage.tenant(PLAN, admission="strict")
    request = api.request(key, "demo-small", {"usage": f"{tokens},10", "delay_s": "2"})
    outcomes = asyncio.run(at_once(stage.gateway_url, request, CALLS))
    wait_until(lambda: stage.quota(tenant)["tokens_held"] == 0)
    assert Counter({status: many for (status, _), many in outcomes.items()})[200] == room
    assert stage.quota(tenant)["tokens_used"] == room * (tokens + 10) <= PLAN
