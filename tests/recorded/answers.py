"""The recorded answers, as their files have them, and the table of what is expected of each.

A file is one family's. An answer begins with a line `@@ name | api | model asked for`; what follows is its
body, in the shape the provider documents, with texts and identifiers of our own.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from gateway.core.calls.call import Body, CallRequest, CallSpec
from gateway.core.model import Family
from tests.recorded.prices import KINDS

FOLDER = Path(__file__).parent
JSON, EVENTS = b"application/json", b"text/event-stream; charset=utf-8"
# How a call of each API is metered, its path, and what of a body it needs.
METERS = {
    "chat": "openai_chat", "completions": "openai_completions", "embeddings": "openai_embeddings",
    "responses": "openai_responses", "messages": "anthropic_messages", "gemini": "gemini_generate",
    "gemini-embed": "gemini_embed",
}  # fmt: skip
_HEAD = re.compile(r"^@@ (?P<name>.+) \| (?P<api>.+) \| (?P<asked>.+)\n", re.MULTILINE)


@dataclass(frozen=True)
class Answer:
    """One recorded answer. `mode` is json, sse or array (Gemini's stream without events)."""

    name: str
    api: str
    asked: str
    body: bytes

    @property
    def family(self) -> str:
        return self.name.partition("/")[0]

    @property
    def mode(self) -> str:
        return self.name.rpartition(" ")[2]

    @property
    def content_type(self) -> bytes:
        return EVENTS if self.mode == "sse" else JSON

    @property
    def call(self) -> CallRequest:
        """The call it answers, as a route would have read it."""
        streamed = self.mode != "json"
        meter = "gemini_stream" if streamed and self.api == "gemini" else METERS[self.api]
        family = Family(meter.partition("_")[0])
        reports = meter in {"anthropic_messages", "gemini_generate", "gemini_stream"}
        return CallRequest(
            meter, family, Body(b"{}"), CallSpec(self.asked, streamed), None, 300, reports=reports
        )


@dataclass(frozen=True)
class Expected:
    """What the hand table says of an answer: `nano` is its cost in nano-dollars."""

    counts: dict[str, int]
    tools: dict[str, int]
    tier: str
    model: str
    nano: int


@cache
def answers() -> tuple[Answer, ...]:
    """All of them, in the order of their files."""
    found: list[Answer] = []
    with_a_table = {FOLDER / name for name in ("made.txt", "engines.txt", "world.txt")}  # of their own
    for file in sorted(set(FOLDER.glob("*.txt")) - with_a_table):
        parts = _HEAD.split(file.read_text())[1:]
        for name, api, asked, body in zip(*(iter(parts),) * 4, strict=True):
            text = body.replace("\n", "\r\n") if api == "gemini" and name.endswith("sse") else body
            found.append(Answer(name, api, asked, text.encode()))
    return tuple(found)


@cache
def table() -> dict[str, Expected]:
    """The hand table, by the answers' names."""
    with (FOLDER / "expected.csv").open(newline="") as file:
        return {row["name"]: _expected(row) for row in csv.DictReader(file)}


def _expected(row: dict[str, str]) -> Expected:
    tools = dict(use.split("=") for use in row["tools"].split())
    return Expected(
        {kind: int(row[kind]) for kind in KINDS},
        {name: int(uses) for name, uses in tools.items()},
        row["tier"],
        row["model"],
        int(row["nano"]),
    )
