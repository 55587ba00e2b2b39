"""One call to the demo upstream as every API needs it: what is answered and what it cost. Pure.

Token counts are deterministic: words and punctuation marks of what is sent and answered, unless
the request dictates them. What each API writes of it stands in `demo_openai.py`,
`demo_anthropic.py` and `demo_gemini.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WORD = re.compile(r"\w+|[^\w\s]")
OUTPUT_TOKENS_MAX = 16
WORDS_MAX = 100_000
CREATED = 1_700_000_000
MODELS = ("demo-small", "demo-large")
THOUGHT = "The user said something."
UNREPORTED = "none"


@dataclass(slots=True)
class Turn:
    """One call and its answer.

    `spoken` counts the output tokens sent so far, `announced` those reported before any was sent.

    `end` is empty for a good end, else `incomplete`, `failed` or `error`. `reports` is False
    where the answer says nothing of its use.
    """

    id: str
    model: str
    pieces: tuple[str, ...]
    stopped_by_length: bool
    input: int
    output: int
    cached: int = 0
    reasoning: int = 0
    created: int = 0
    choices: int = 1
    end: str = ""
    thinks: bool = False
    calls_tool: bool = False
    reports: bool = True
    spoken: int = 0
    announced: int = 0

    @property
    def text(self) -> str:
        """The whole answer."""
        return "".join(self.pieces)

    def say(self, piece: str) -> str:
        """Count a piece as it is sent."""
        self.spoken += 1
        return piece

    def finish(self) -> None:
        """Everything was produced, sent or not."""
        self.spoken = self.output


def tokens_in(value: Any) -> int:
    """Words and punctuation marks of every text inside a JSON value; a number is a token of its own."""
    if isinstance(value, str):
        return len(WORD.findall(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return 1
    if isinstance(value, list):
        return sum(map(tokens_in, value))
    if isinstance(value, dict):
        return sum(tokens_in(item) for name, item in value.items() if name not in {"role", "type"})
    return 0


def turn(body: dict[str, Any], model: str, headers: Mapping[str, str]) -> Turn:
    """Read a call of any API; `headers` are those of the request, `x-demo-*` among them."""
    prompt = next(
        (body[name] for name in ("messages", "input", "prompt", "contents", "requests") if name in body), ""
    )
    said = ["You", " said", ":", *re.findall(r"\s*\S+", " " + (_last_text(prompt) or "nothing"))]
    words = int(headers.get("x-demo-words", "0") or 0)
    if words > 0:
        said = [" and"] * min(words, WORDS_MAX)
    ceiling = len(said) if words else min(_output_max(body) or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)
    pieces = tuple(said[:ceiling])
    choices = int(body.get("n") or 1)
    dictated = headers.get("x-demo-usage", "")
    counts = [tokens_in(prompt), len(pieces) * choices]
    if dictated and dictated != UNREPORTED:
        counts = [int(each) for each in dictated.split(",")]
    counts += [0] * (5 - len(counts))
    return Turn(
        hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24],
        model,
        pieces,
        len(said) > ceiling,
        counts[0],
        counts[1],
        cached=counts[2],
        reasoning=counts[3],
        created=counts[4],
        choices=choices,
        end=headers.get("x-demo-end", ""),
        thinks="x-demo-thinking" in headers,
        calls_tool="x-demo-tool" in headers,
        reports=dictated != UNREPORTED,
    )


def _output_max(body: dict[str, Any]) -> int | None:
    generation = body.get("generationConfig") or {}
    for source, name in (
        (body, "max_completion_tokens"),
        (body, "max_output_tokens"),
        (body, "max_tokens"),
        (generation, "maxOutputTokens"),
    ):
        if isinstance(source, dict) and isinstance(source.get(name), int) and source[name] > 0:
            return int(source[name])
    return None


def _last_text(value: Any) -> str:
    """The last text said, however it is wrapped."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return _last_text(value[-1])
    if isinstance(value, dict):
        return _last_text(next((value[name] for name in ("content", "text", "parts") if name in value), ""))
    return ""


def sse(data: Any, event: str = "") -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, separators=(",", ":"))
    return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()
