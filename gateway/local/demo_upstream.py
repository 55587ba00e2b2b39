"""An upstream to try the gateway with: the shapes of three APIs, and an echo for any other.

A small HTTP/1.1 server of its own on asyncio streams, for demonstrations and tests only. A
request may dictate what happens: `x-demo-usage` (token counts), `x-demo-status` (answer with
this status), `x-demo-delay-s` (before the head), `x-demo-pause-s` (between stream pieces),
`x-demo-cut` (close after this many pieces), `x-demo-units` (sent back as `x-usage-amount`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from gateway.errors import StartError
from gateway.local import demo_shapes as shapes
from gateway.local.demo_request import Asked, read

HEAD_BYTES_MAX = 65_536
KEEP_ALIVE_S = 75.0
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}
MODEL_CALL = re.compile(r"^/v1(?:beta)?/models/([^/:]+):(\w+)$")
MODEL = re.compile(r"^/v1(beta)?/models(?:/([^/:]+))?$")


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: a whole body, or pieces of a stream."""

    status: int
    content_type: str
    body: bytes | Iterable[bytes]
    headers: tuple[tuple[str, str], ...] = ()


async def serve(host: str, port: int) -> asyncio.Server:
    """Listen and answer; port 0 is any free one, the server knows which."""
    return await asyncio.start_server(_connection, host, port, limit=HEAD_BYTES_MAX, backlog=1024)


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


async def _connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        while True:
            async with asyncio.timeout(KEEP_ALIVE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            asked = await read(head, reader, writer)
            if asked is None or not await _answer(asked, writer):
                break
    writer.close()


async def _answer(asked: Asked, writer: asyncio.StreamWriter) -> bool:
    """Write the answer; whether the connection may carry another."""
    await asyncio.sleep(asked.seconds("x-demo-delay-s"))
    reply = _reply(asked)
    keep = asked.headers.get("connection", "").lower() != "close"
    lines = [
        f"HTTP/1.1 {reply.status} {REASONS.get(reply.status, 'Status')}",
        f"Content-Type: {reply.content_type}",
        "Server: tollkeeper-demo-upstream",
        *(f"{name}: {value}" for name, value in reply.headers),
        *([] if keep else ["Connection: close"]),
    ]
    if isinstance(reply.body, bytes):
        lines.append(f"Content-Length: {len(reply.body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if asked.method != "HEAD":
            writer.write(reply.body)
        await writer.drain()
        return keep
    writer.write("\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode("latin-1"))
    return await _stream(asked, reply.body, writer) and keep


async def _stream(asked: Asked, pieces: Iterable[bytes], writer: asyncio.StreamWriter) -> bool:
    cut = int(asked.headers.get("x-demo-cut", "0") or 0)
    pause_s = asked.seconds("x-demo-pause-s")
    for number, piece in enumerate(pieces, 1):
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        if number == cut:
            return False
        if pause_s:
            await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def _reply(asked: Asked) -> Reply:
    status = asked.headers.get("x-demo-status", "")
    if status:
        error = {"error": {"message": "as you asked", "type": "demo_error", "code": None}}
        return _json(error, int(status))
    try:
        return _routed(asked)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _json({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)


def _routed(asked: Asked) -> Reply:
    call = MODEL_CALL.match(asked.path)
    if asked.method == "POST" and call:
        return _gemini(asked, call[1], call[2])
    if asked.method == "GET" and (listed := MODEL.match(asked.path)):
        return _models(asked, gemini=bool(listed[1]), name=listed[2])
    shape = POSTS.get(asked.path) if asked.method == "POST" else None
    return shape(asked, asked.json()) if shape else _echo(asked)


def _turn(asked: Asked, body: dict[str, Any], model: str = "") -> shapes.Turn:
    return shapes.turn(
        body, model or str(body.get("model", "demo-small")), asked.headers.get("x-demo-usage", "")
    )


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _chat(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(shapes.chat_stream(turn, usage=_wants_usage(body)))
    return _json(shapes.chat(turn, int(body.get("n") or 1)))


def _completions(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(shapes.completion_stream(turn, usage=_wants_usage(body)))
    return _json(shapes.completion(turn))


def _responses(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    return _events(shapes.response_stream(turn)) if body.get("stream") else _json(shapes.response(turn))


def _embeddings(asked: Asked, body: dict[str, Any]) -> Reply:
    given = body.get("input", "")
    return _json(
        shapes.embeddings(_turn(asked, body), len(given) if isinstance(given, list) and given else 1)
    )


def _messages(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    return _events(shapes.message_stream(turn)) if body.get("stream") else _json(shapes.message(turn))


def _count_tokens(_: Asked, body: dict[str, Any]) -> Reply:
    return _json({"input_tokens": shapes.tokens_in(body.get("messages", []))})


POSTS = {
    "/v1/chat/completions": _chat,
    "/v1/completions": _completions,
    "/v1/responses": _responses,
    "/v1/embeddings": _embeddings,
    "/v1/messages": _messages,
    "/v1/messages/count_tokens": _count_tokens,
}


def _gemini(asked: Asked, model: str, action: str) -> Reply:
    body = asked.json()
    turn = _turn(asked, body, model)
    if action == "countTokens":
        return _json({"totalTokens": shapes.tokens_in(body.get("contents", []))})
    if action == "embedContent":
        return _json({"embedding": {"values": [0.125, -0.5, 0.25]}})
    if action == "generateContent":
        return _json(shapes.generated(turn, turn.text, last=True))
    if action != "streamGenerateContent":
        return _json({"error": {"code": 404, "message": "no such method", "status": "NOT_FOUND"}}, 404)
    pieces = shapes.generated_pieces(turn)
    if asked.query.get("alt") == ["sse"]:
        return _events(shapes.sse(piece) for piece in pieces)
    return Reply(200, "application/json", _array(pieces))


def _array(pieces: Iterable[dict[str, Any]]) -> Iterable[bytes]:
    """A JSON array written one element at a time, as Gemini streams without `alt=sse`."""
    opening = b"["
    for piece in pieces:
        yield opening + json.dumps(piece).encode()
        opening = b",\r\n"
    yield b"]"


def _models(asked: Asked, *, gemini: bool, name: str | None) -> Reply:
    if gemini:
        shape, key = shapes.gemini_model, "models"
    elif "anthropic-version" in asked.headers:
        shape, key = shapes.anthropic_model, "data"
    else:
        shape, key = shapes.openai_model, "data"
    if name is not None:
        return _json(shape(name))
    return _json({"object": "list", key: [shape(each) for each in shapes.MODELS]})


def _echo(asked: Asked) -> Reply:
    """Any other path: what arrived, so that a caller can see what the gateway forwards."""
    units = asked.headers.get("x-demo-units", "")
    content = {
        "method": asked.method,
        "target": asked.target,
        "headers": asked.raw_headers,
        "body": asked.content.decode(errors="replace"),
    }
    return Reply(
        200, "application/json", json.dumps(content).encode(), (("x-usage-amount", units),) if units else ()
    )


def _json(content: Any, status: int = 200) -> Reply:
    return Reply(status, "application/json", json.dumps(content, separators=(",", ":")).encode())


def _events(pieces: Iterable[bytes]) -> Reply:
    return Reply(200, "text/event-stream", pieces)
