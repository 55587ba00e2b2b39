"""An upstream to try the gateway with: the shapes of three providers, and an echo for any other API.

A small HTTP/1.1 server of its own on asyncio streams, for demonstrations and tests only. A
request may dictate what happens, in header fields:

    x-demo-usage       input,output[,cached[,reasoning[,cache creation]]] tokens, or `none`: report no use
    x-demo-words       this many pieces of output
    x-demo-thinking    think first       x-demo-tool    call a tool
    x-demo-end         `incomplete`, `failed` or `error`: how a stream ends
    x-demo-status      answer with this status
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
from collections.abc import Iterable
from typing import Any

from gateway.errors import StartError
from gateway.local.demo import anthropic as demo_anthropic
from gateway.local.demo import gemini as demo_gemini
from gateway.local.demo import openai as demo_openai
from gateway.local.demo import responses as demo_responses
from gateway.local.demo import shapes
from gateway.local.demo.calls import Calls
from gateway.local.demo.reply import Reply, send, zipped
from gateway.local.demo.request import Asked, read

HEAD_BYTES_MAX = 65_536
KEEP_ALIVE_S = 75.0
ECHOED_BYTES_MAX = 65_536
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}
MODEL_CALL = re.compile(r"^/v1(?:beta)?/models/([^/:]+):(\w+)$")
MODEL = re.compile(r"^/v1(beta)?/models(?:/([^/:]+))?$")


async def serve(host: str, port: int) -> asyncio.Server:
    """Listen and answer; port 0 is any free one, the server knows which."""
    calls = Calls()

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


async def _connection(calls: Calls, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        while True:
            async with asyncio.timeout(KEEP_ALIVE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            asked = await read(head, reader, writer)
            if asked is None or not await _answer(calls, asked, writer):
                break
    writer.close()


async def _answer(calls: Calls, asked: Asked, writer: asyncio.StreamWriter) -> bool:
    """Write the answer; whether the connection may carry another."""
    await asyncio.sleep(asked.seconds("x-demo-delay-s"))
    if asked.method == "GET" and asked.path == "/demo/calls":
        reply = _json({"calls": calls.told(asked.query.get("model", [""])[0])})
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
    noted = calls.note(asked, reply.turn) if reply.turn is not None else None
    complete = False
    try:
        complete = await send(asked, body, writer)
    finally:
        if noted is not None:
            noted.over, noted.complete = True, complete
    return complete and keep


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
        return _models(asked, gemini=bool(listed[1]) or "x-goog-api-client" in asked.headers, name=listed[2])
    shape = POSTS.get(asked.path) if asked.method == "POST" else None
    return shape(asked, asked.json()) if shape else _echo(asked)


def _turn(asked: Asked, body: dict[str, Any], model: str = "") -> shapes.Turn:
    return shapes.turn(body, model or str(body.get("model", "demo-small")), asked.headers)


def _wants_usage(body: dict[str, Any]) -> bool:
    return bool((body.get("stream_options") or {}).get("include_usage"))


def _chat(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(demo_openai.chat_stream(turn, with_usage=_wants_usage(body)), turn)
    return _json(demo_openai.chat(turn), turn=turn)


def _completions(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(demo_openai.completion_stream(turn, with_usage=_wants_usage(body)), turn)
    return _json(demo_openai.completion(turn), turn=turn)


def _responses(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(demo_responses.response_stream(turn), turn)
    return _json(demo_responses.response(turn), turn=turn)


def _embeddings(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    encoding = str(body.get("encoding_format", ""))
    return _json(demo_openai.embeddings(turn, body.get("input", ""), encoding), turn=turn)


def _messages(asked: Asked, body: dict[str, Any]) -> Reply:
    turn = _turn(asked, body)
    if body.get("stream"):
        return _events(demo_anthropic.message_stream(turn), turn)
    return _json(demo_anthropic.message(turn), turn=turn)


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
    if action == "countTokens":
        return _json({"totalTokens": shapes.tokens_in(body.get("contents", []))})
    turn = _turn(asked, body, model)
    if action == "embedContent":
        turn.input = turn.input or shapes.tokens_in(body.get("content", ""))
        return _json(demo_gemini.embedded(turn, None), turn=turn)
    if action == "batchEmbedContents":
        return _json(demo_gemini.embedded(turn, len(body.get("requests", []))), turn=turn)
    if action == "generateContent":
        return _json(demo_gemini.generated(turn), turn=turn)
    if action != "streamGenerateContent":
        return _json({"error": {"code": 404, "message": "no such method", "status": "NOT_FOUND"}}, 404)
    pieces = demo_gemini.generated_pieces(turn)
    if asked.query.get("alt") == ["sse"]:
        return _events((shapes.sse(piece).replace(b"\n", b"\r\n") for piece in pieces), turn)
    return Reply(200, "application/json", _array(pieces), turn=turn)


def _array(pieces: Iterable[dict[str, Any]]) -> Iterable[bytes]:
    """A JSON array written one element at a time, as Gemini streams without `alt=sse`."""
    opening = b"["
    for piece in pieces:
        yield opening + json.dumps(piece).encode()
        opening = b",\r\n"
    yield b"]"


def _models(asked: Asked, *, gemini: bool, name: str | None) -> Reply:
    if gemini:
        shape, key = demo_gemini.model, "models"
    elif "anthropic-version" in asked.headers:
        shape, key = demo_anthropic.model, "data"
    else:
        shape, key = demo_openai.model, "data"
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
        "body": asked.content[:ECHOED_BYTES_MAX].decode(errors="replace"),
        "bytes": len(asked.content),
        "sha256": hashlib.sha256(asked.content).hexdigest(),
        "units": units,
    }
    return Reply(
        200, "application/json", json.dumps(content).encode(), (("x-usage-amount", units),) if units else ()
    )


def _json(content: Any, status: int = 200, turn: shapes.Turn | None = None) -> Reply:
    body = json.dumps(content, separators=(",", ":")).encode()
    return Reply(status, "application/json", body, turn=turn)


def _events(pieces: Iterable[bytes], turn: shapes.Turn) -> Reply:
    return Reply(200, "text/event-stream", pieces, turn=turn)
