"""Ask one call of a program or of a gateway, and read what its answer says: texts, reports, an error."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from tests.world.questions import PATHS, Question

ANSWER_S_MAX = 120.0
OK = range(200, 300)


@dataclass
class Reply:
    """What a client saw of one answer. `passed` counts the pieces of text of a stream."""

    status: int
    request_id: str
    body: bytes
    streamed: bool
    passed: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)
    places: list[str] = field(default_factory=list)
    choices: int = 0
    error: str = ""


def ask(
    url: str, key: str, model: str, question: Question, more: Mapping[str, str] = MappingProxyType({})
) -> Reply:
    """Send a call with `more` header fields, and leave its answer where the question says so."""
    host = url.removeprefix("http://")
    connection = http.client.HTTPConnection(host, timeout=ANSWER_S_MAX)
    body = json.dumps({"model": model} | question.body)
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}", "x-api-key": key, **more}
    try:
        connection.request("POST", PATHS[question.api], body, headers)
        answer = connection.getresponse()
        streamed = "event-stream" in answer.headers.get("content-type", "")
        read = b"".join(_lines(answer, question.leaves)) if streamed else answer.read()
        told = Reply(answer.status, answer.headers.get("x-request-id", ""), read, streamed)
    finally:
        connection.close()
    _read(told)
    return told


def _lines(answer: http.client.HTTPResponse, leaves: int | None) -> Iterator[bytes]:
    """The lines of a stream, up to so many events with a text."""
    left = leaves
    for line in answer:
        yield line
        if left is not None and line.startswith(b"data:"):
            left -= bool(_texts(_event(line)))
            if left <= 0:
                return


def _event(line: bytes) -> dict[str, Any]:
    said = line.removeprefix(b"data:").strip()
    return (json.loads(said) if said.startswith(b"{") else None) or {}


def _read(told: Reply) -> None:
    """Fill in what the answer says."""
    if told.streamed:
        lines = [line for line in told.body.splitlines() if line.startswith(b"data:")]
        events = [_event(line) for line in lines]
        indexes = {one.get("index", 0) for event in events for one in event.get("choices") or ()}
        told.choices = len(indexes)
    else:
        try:
            events = [json.loads(told.body)]
        except ValueError:
            events = [{}]
        told.choices = len(events[0].get("choices") or "1") if isinstance(events[0], dict) else 1
    for event in events:
        told.passed += len(_texts(event))
        for place, usage in _usages(event):
            told.reports.append(usage)
            told.places.append(place)
        error = event.get("error") if isinstance(event, dict) else None
        if isinstance(error, dict):
            told.error = str(error.get("type") or error.get("code") or error.get("message", ""))[:60]


def _texts(event: Any) -> list[str]:
    """Return the pieces of text of an event."""
    if not isinstance(event, dict):
        return []
    found: list[Any] = []
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        found += [choice.get("text"), delta.get("content"), delta.get("reasoning")]
    delta = event.get("delta")
    found += [delta] if isinstance(delta, str) and event.get("type") == "response.output_text.delta" else []
    found += [delta.get("text")] if isinstance(delta, dict) else []
    return [one for one in found if one]


def _usages(event: Any) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each report of use with the name of its place."""
    if not isinstance(event, dict):
        return
    kind = event.get("type", "")
    for holder in (event, event.get("message"), event.get("response")):
        usage = holder.get("usage") if isinstance(holder, dict) else None
        if isinstance(usage, dict):
            chunk = "a chunk of its own" if event.get("choices") == [] else "a chunk of text"
            ends = any(one.get("finish_reason") for one in event.get("choices") or ())
            yield (f"`{kind}`" if kind else "the last chunk" if ends else chunk), usage


def written(usage: dict[str, Any]) -> int:
    """Return the output that a report says."""
    return int(usage.get("completion_tokens", usage.get("output_tokens", 0)) or 0)


def read(usage: dict[str, Any]) -> int:
    """Return the input that a report of embeddings or rankings says."""
    return int(usage.get("prompt_tokens") or usage.get("total_tokens") or 0)


def cached(usage: dict[str, Any]) -> int:
    """Return how much of the prompt a report says was cached."""
    details = usage.get("prompt_tokens_details") or usage.get("input_tokens_details") or {}
    return int(usage.get("cache_read_input_tokens") or details.get("cached_tokens") or 0)
