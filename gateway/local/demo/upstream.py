"""An upstream to try the gateway with: the shapes of three providers, and an echo for any other API.

A small HTTP/1.1 server of its own on asyncio streams, for demonstrations and tests only. A
request may dictate what happens, in header fields:

    x-demo-usage       input,output[,cached[,reasoning[,cache creation]]] tokens, or `none`: report no use
    x-demo-words       this many pieces of output
    x-demo-thinking    think first
    x-demo-tool        call a tool: `NAME {"its": "arguments"}`, or `1`; after its result, answer
    x-demo-end         `incomplete`, `failed` or `error`: how a stream ends
    x-demo-status      answer with this status; refuse by a limit with `429`
    x-demo-fields      fields of that answer, as a JSON object: `{"retry-after": "20"}`
    x-demo-delay-s     before the head   x-demo-pause-s between the pieces of a stream
    x-demo-cut         close after this many pieces (0: after the head)
    x-demo-cut-bytes   close after this many bytes of the body
    x-demo-encoding    `gzip`            x-demo-units   sent back as `x-usage-amount`

`GET /demo/calls[?model=…]` tells what each of the last calls cost by this upstream's own count.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import signal
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from gateway.errors import StartError
from gateway.local.demo import answers
from gateway.local.demo.reply import Reply, send, zipped
from gateway.local.demo.request import Asked, read
from gateway.local.demo.turn import Turn, prompt_of, read_turn, tokens_in

HEAD_BYTES_MAX = 65_536
KEEP_ALIVE_S = 75.0
ECHOED_BYTES_MAX = 65_536
CALLS_MAX = 20_000
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}
MODELS = ("demo-small", "demo-large")
MODEL = re.compile(r"^/v1(beta)?/models(?:/([^/:]+))?(:\w+)?$")
# The recorded answer of each path, or of what is done with a model.
ANSWERS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completion",
    "/v1/responses": "response",
    "/v1/embeddings": "embeddings",
    "/v1/messages": "message",
    ":generateContent": "content",
    ":streamGenerateContent": "content",
    ":embedContent": "embedding",
    ":batchEmbedContents": "embedding_batch",
}
COUNTED = {"/v1/messages/count_tokens": "input_tokens", ":countTokens": "totalTokens"}


async def serve(host: str, port: int) -> asyncio.Server:
    """Listen and answer; port 0 is any free one, the server knows which."""
    calls: deque[Turn] = deque(maxlen=CALLS_MAX)

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _connection(calls, reader, writer)

    return await asyncio.start_server(connection, host, port, limit=HEAD_BYTES_MAX, backlog=4096)


async def serve_until_stopped(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM; `StartError` if the port is taken."""
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        server = await serve(host, port)
    except OSError as error:
        raise StartError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    await stop.wait()
    server.close()


async def _connection(calls: deque[Turn], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        while True:
            async with asyncio.timeout(KEEP_ALIVE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            asked = await read(head, reader, writer)
            if asked is None or not await _answer(calls, asked, writer):
                break
    writer.close()


async def _answer(calls: deque[Turn], asked: Asked, writer: asyncio.StreamWriter) -> bool:
    """Write the answer; whether the connection may carry another."""
    await asyncio.sleep(asked.seconds("x-demo-delay-s"))
    if asked.method == "GET" and asked.path == "/demo/calls":
        model = asked.query.get("model", [""])[0]
        reply = _json({"calls": [turn.told() for turn in calls if model in ("", turn.values["model"])]})
    else:
        reply = _reply(asked)
    keep = asked.headers.get("connection", "").lower() != "close"
    gzip = asked.headers.get("x-demo-encoding") == "gzip"
    body = zipped(reply.body) if gzip else reply.body
    lines = [
        f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}",
        f"Content-Type: {reply.content_type}",
        "Server: tollkeeper-demo-upstream",
        *(f"{name}: {value}" for name, value in reply.headers),
        *(["Content-Encoding: gzip"] if gzip else []),
        *([] if keep else ["Connection: close"]),
        f"Content-Length: {len(body)}" if isinstance(body, bytes) else "Transfer-Encoding: chunked",
    ]
    writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
    if reply.turn is not None:
        calls.append(reply.turn)
    complete = False
    try:
        complete = await send(asked, body, writer)
    finally:
        if reply.turn is not None:
            reply.turn.over, reply.turn.complete = True, complete
    return complete and keep


def _reply(asked: Asked) -> Reply:
    status = asked.headers.get("x-demo-status", "")
    if status:
        error = {"message": "as you asked", "type": "demo_error", "code": None}
        return replace(_json({"error": error}, int(status)), headers=_fields(asked))
    try:
        return _routed(asked)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _json({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)


def _fields(asked: Asked) -> tuple[tuple[str, str], ...]:
    """The fields a request dictates, those that are plain text on one line."""
    try:
        found = json.loads(asked.headers.get("x-demo-fields", "{}"))
    except ValueError:
        return ()
    dictated = found.items() if isinstance(found, dict) else ()
    return tuple((name, str(value)) for name, value in dictated if f"{name}{value}".isprintable())


def _routed(asked: Asked) -> Reply:
    route, model, place = asked.path, "", MODEL.match(asked.path)
    if place and asked.method == "GET" and not place[3]:
        return _models(asked, gemini=bool(place[1]) or "x-goog-api-client" in asked.headers, name=place[2])
    if place and place[2] and place[3]:
        model, route = place[2], place[3]
    if asked.method == "POST" and route in ANSWERS:
        return _answered(asked, route, model)
    if asked.method == "POST" and route in COUNTED:
        return _json({COUNTED[route]: tokens_in(prompt_of(asked.json()))})
    if asked.method == "POST" and model:
        return _json({"error": {"code": 404, "message": "no such method", "status": "NOT_FOUND"}}, 404)
    return _echo(asked)


def _answered(asked: Asked, route: str, model: str) -> Reply:
    name = ANSWERS[route]
    turn = read_turn(asked, model, speaks=not name.startswith("embedding"))
    if name not in answers.STREAMS or not (asked.json().get("stream") or route == ":streamGenerateContent"):
        return Reply(answers.whole(name, turn), turn=turn)
    events = answers.stream(name, turn)
    if name != "content":
        return Reply(_events(events, b"\n"), content_type="text/event-stream", turn=turn)
    if asked.query.get("alt") == ["sse"]:
        return Reply(_events(events, b"\r\n"), content_type="text/event-stream", turn=turn)
    return Reply(_array(events), turn=turn)


def _events(events: Iterable[tuple[str, str]], end: bytes) -> Iterator[bytes]:
    for name, data in events:
        lines = ([b"event: " + name.encode()] if name else []) + [b"data: " + data.encode(), b"", b""]
        yield end.join(lines)


def _array(events: Iterable[tuple[str, str]]) -> Iterator[bytes]:
    """A JSON array written one element at a time, as Gemini streams without `alt=sse`."""
    opening = b"["
    for _, data in events:
        yield opening + data.encode()
        opening = b",\r\n"
    yield b"]"


def _models(asked: Asked, *, gemini: bool, name: str | None) -> Reply:
    maker = "gemini" if gemini else "anthropic" if "anthropic-version" in asked.headers else "openai"
    models = {"model": MODELS if name is None else (name,)}
    listed = answers.fill(answers.WHOLE[f"models_{maker}"], {}, models)
    return _json(listed if name is None else listed["models" if gemini else "data"][0])


def _echo(asked: Asked) -> Reply:
    """Any other path: what arrived, so that a caller can see what the gateway forwards."""
    units = asked.headers.get("x-demo-units", "")
    content = {
        "method": asked.method,
        "target": asked.target,
        "headers": asked.raw_headers,
        "body": asked.content[:ECHOED_BYTES_MAX].decode(errors="replace"),
        "bytes": len(asked.content),
        "sha256": hashlib.sha256(asked.content).hexdigest(),
        "units": units,
    }
    return Reply(json.dumps(content).encode(), headers=(("x-usage-amount", units),) if units else ())


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(answers.written(content).encode(), status)
