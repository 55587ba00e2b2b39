"""The table of questions: what each column of the page asks a program, and calls that are drawn.

A body has no model: a program's own name for it, or a caller's, is put in.
"""

from __future__ import annotations

import base64
import random
import struct
import zlib
from dataclasses import dataclass, field
from typing import Any

from tests.world.programs import CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RERANK, RESPONSES, SCORE

MAXIMUM = {
    CHAT: "max_tokens",
    COMPLETIONS: "max_tokens",
    MESSAGES: "max_tokens",
    RESPONSES: "max_output_tokens",
}
PATHS = {
    CHAT: "/v1/chat/completions",
    COMPLETIONS: "/v1/completions",
    MESSAGES: "/v1/messages",
    RESPONSES: "/v1/responses",
    EMBEDDINGS: "/v1/embeddings",
    RERANK: "/v1/rerank",
    SCORE: "/v1/score",
}
USE, CHOICES, STREAMS, CACHED = "Use reported", "Several choices", "Streams", "Cached"
ABORTED, ERRORS, MAXIMA = "Aborted", "Overload and errors", "Maxima"
COLUMNS = (USE, CHOICES, STREAMS, CACHED, ABORTED, ERRORS, MAXIMA)
SHORT, OTHER = "pay the toll at the gate", "the keeper and the bridge"
LONG = " ".join(["the road here and the bridge"] * 20)
BEYOND = " ".join(["the road here and the bridge"] * 500)
ASKED = {"stream": True, "stream_options": {"include_usage": True}}
DRAWN = 200
ADAPTER, TOOLS, IMAGES = "toll", "tools", "images"
SQUARE = "data:image/png;base64," + base64.b64encode(
    b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (
            (b"IHDR", struct.pack(">IIBBBBB", 64, 64, 8, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress((b"\0" + b"\x20\x40\x60" * 64) * 64)),
            (b"IEND", b""),
        )
    )
).decode()  # fmt: skip
_PLACE = {"type": "object", "properties": {"place": {"enum": ["gate", "bridge"]}}, "required": ["place"]}
CALLED = {
    "tools": [{"type": "function", "function": {"name": "look_up", "parameters": _PLACE}}],
    "tool_choice": {"type": "function", "function": {"name": "look_up"}},
}


@dataclass(frozen=True)
class Question:
    """One call. `leaves` after so many events; `times` at once; `plan` is the admission of its caller.

    Programs that can what it `needs` are asked it, by the name of another `model` where it has one.
    """

    column: str
    title: str
    api: str
    body: dict[str, Any] = field(default_factory=dict)
    leaves: int | None = None
    times: int = 1
    plan: str = "available"
    record: bool = False
    needs: str = ""
    model: str = ""


def _said(api: str, text: str = SHORT, maximum: int | None = 8, **more: Any) -> dict[str, Any]:
    """Return the body of a call of an API that says a text."""
    body: dict[str, Any] = {} if maximum is None else {MAXIMUM[api]: maximum}
    if api in {CHAT, MESSAGES}:
        body["messages"] = [{"role": "user", "content": text}]
    else:
        body["input" if api == RESPONSES else "prompt"] = text
    return body | more


def _image(number: int = 1, url: str = "", **more: Any) -> dict[str, Any]:
    """Return the body of a chat about so many images."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url or SQUARE}}] * number
    return _said(CHAT, **more) | {
        "messages": [{"role": "user", "content": [*parts, {"type": "text", "text": SHORT}]}]
    }


QUESTIONS = (
    *(Question(USE, api, api, _said(api), record=True) for api in MAXIMUM),
    Question(CHOICES, "chat, n 3", CHAT, _said(CHAT, n=3), record=True),
    Question(CHOICES, "chat, n 3, streamed", CHAT, _said(CHAT, n=3, **ASKED), record=True),
    Question(CHOICES, "completions, n 2", COMPLETIONS, _said(COMPLETIONS, n=2), record=True),
    Question(
        CHOICES, "3 prompts", COMPLETIONS, _said(COMPLETIONS, prompt=[SHORT, OTHER, "coin"]), record=True
    ),
    Question(
        CHOICES, "2 prompts, streamed", COMPLETIONS, _said(COMPLETIONS, prompt=[SHORT, OTHER], **ASKED),
        record=True,
    ),
    Question(STREAMS, "chat", CHAT, _said(CHAT, stream=True)),
    Question(STREAMS, "chat, asked", CHAT, _said(CHAT, **ASKED), record=True),
    Question(STREAMS, "completions", COMPLETIONS, _said(COMPLETIONS, stream=True)),
    Question(STREAMS, "messages", MESSAGES, _said(MESSAGES, stream=True), record=True),
    Question(STREAMS, "responses", RESPONSES, _said(RESPONSES, stream=True), record=True),
    *(Question(CACHED, f"{api}, again", api, _said(api, LONG), record=True) for api in MAXIMUM),
    Question(ABORTED, "chat", CHAT, _said(CHAT, maximum=400, stream=True), leaves=4),
    Question(
        ABORTED, "completions, `abort`", COMPLETIONS,
        _said(COMPLETIONS, maximum=1_500, stream=True), leaves=4,
    ),
    Question(ERRORS, "prompt beyond the context", CHAT, _said(CHAT, BEYOND)),
    Question(ERRORS, "no messages", CHAT, {"messages": [], "max_tokens": 4}),
    Question(ERRORS, "`n` of 0", CHAT, _said(CHAT, n=0)),
    Question(ERRORS, "16 calls at once", CHAT, _said(CHAT), times=16),
    Question(MAXIMA, "none stated, `strict`", CHAT, _said(CHAT, maximum=None), plan="strict"),
    Question(
        MAXIMA, "completions, none, `strict`", COMPLETIONS, _said(COMPLETIONS, maximum=None), plan="strict"
    ),
    Question(MAXIMA, "beyond the context", CHAT, _said(CHAT, maximum=9_000)),
    Question(MAXIMA, "messages of 4, `strict`", MESSAGES, _said(MESSAGES, maximum=4), plan="strict"),
    Question(MAXIMA, "responses of 4, `strict`", RESPONSES, _said(RESPONSES, maximum=4), plan="strict"),
    Question(USE, "embeddings", EMBEDDINGS, {"input": SHORT}),
    Question(USE, "rerank", RERANK, {"query": SHORT, "documents": [OTHER]}),
    Question(USE, "score", SCORE, {"text_1": SHORT, "text_2": OTHER}),
    Question(CHOICES, "3 texts", EMBEDDINGS, {"input": [SHORT, OTHER, "coin"]}),
    Question(CHOICES, "3 documents", RERANK, {"query": SHORT, "documents": [OTHER, "coin", LONG]}),
    Question(CHOICES, "1 text to 3", SCORE, {"text_1": SHORT, "text_2": [OTHER, "coin", LONG]}),
    Question(CHOICES, "2 lists of token ids", EMBEDDINGS, {"input": [[5, 6, 7], [8, 9]]}),
    Question(CACHED, "embeddings, again", EMBEDDINGS, {"input": LONG}),
    Question(ERRORS, "text beyond the context", EMBEDDINGS, {"input": BEYOND}),
    Question(ERRORS, "no texts", EMBEDDINGS, {"input": []}),
    Question(ERRORS, "16 calls at once", EMBEDDINGS, {"input": [SHORT, OTHER]}, times=16),
    Question(USE, "chat of the adapter", CHAT, _said(CHAT), plan=ADAPTER, needs=ADAPTER, model=ADAPTER),
    Question(STREAMS, "chat of the adapter", CHAT, _said(CHAT, **ASKED), needs=ADAPTER, model=ADAPTER),
    Question(ERRORS, "the model by a key for its adapter", CHAT, _said(CHAT), plan=ADAPTER, needs=ADAPTER),
    Question(USE, "chat, a tool", CHAT, _said(CHAT, maximum=60, **CALLED), record=True, needs=TOOLS),
    Question(
        STREAMS, "chat, a tool", CHAT, _said(CHAT, maximum=60, **CALLED, **ASKED), record=True, needs=TOOLS
    ),
    Question(USE, "chat, an image", CHAT, _image(), record=True, needs=IMAGES),
    Question(CHOICES, "chat, 2 images, n 2", CHAT, _image(2, n=2), record=True, needs=IMAGES),
    Question(STREAMS, "chat, an image", CHAT, _image(**ASKED), record=True, needs=IMAGES),
    Question(CACHED, "chat, an image, again", CHAT, _image(), needs=IMAGES),
    Question(ERRORS, "an image that is none", CHAT, _image(url="data:image/png;base64,AA=="), needs=IMAGES),
    Question(MAXIMA, "an image, `strict`", CHAT, _image(), plan="strict", needs=IMAGES),
    Question(
        MAXIMA, "base64, `strict`", EMBEDDINGS, {"input": SHORT, "encoding_format": "base64"}, plan="strict"
    ),
)  # fmt: skip


def drawn(seed: int, apis: tuple[str, ...], count: int = DRAWN) -> list[Question]:
    """Return so many calls of these APIs, of all shapes, the same for a seed."""
    chance = random.Random(seed)
    made: list[Question] = []
    for number in range(count):
        api = chance.choice(apis)
        text = chance.choice((SHORT, OTHER, LONG, f"coin {number} " + LONG))
        texts = [chance.choice((SHORT, OTHER, "coin", text)) for _ in range(chance.randint(1, 4))]
        if api not in MAXIMUM:
            bodies = {EMBEDDINGS: {"input": texts}, RERANK: {"query": text, "documents": texts}}
            made.append(
                Question("", f"call {number}", api, bodies.get(api, {"text_1": text, "text_2": texts}))
            )
            continue
        body = _said(api, text, maximum=chance.randint(1, 40))
        if api in {CHAT, COMPLETIONS}:
            body["n"] = chance.randint(1, 4)
        if api == COMPLETIONS and chance.random() < 0.5:
            body["prompt"] = [chance.choice((SHORT, OTHER, "coin")) for _ in range(chance.randint(1, 3))]
        leaves = None
        if chance.random() < 0.5:
            body |= {"stream": True} if api not in {CHAT, COMPLETIONS} or chance.random() < 0.5 else ASKED
            leaves = chance.randint(1, 20) if chance.random() < 0.4 else None
        made.append(Question("", f"call {number}", api, body, leaves))
    return made
