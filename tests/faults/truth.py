"""The upstream that knows the truth: it decides what each call uses, and remembers it by request id.

It speaks just enough HTTP/1.1 for the gateway's upstream client. Chat calls are answered in the
OpenAI shape, as JSON or as a stream; everything else is a service that says its units. A request
dictates by `x-fault-…` fields: `pieces`, `pause-s` between them, `delay-s` before the head, `cut`
(reset after so many pieces), `units`.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
from contextlib import suppress
from dataclasses import dataclass

from tests.faults.proxy import LINGER_RESET

HEAD_BYTES_MAX = 65_536
PROMPT_TOKENS = 1
PIECES = 4


@dataclass(slots=True)
class ServedCall:
    """One call by the upstream's own count. `complete`: its whole answer was handed to the network."""

    request_id: str
    kind: str
    tokens: int
    units: int
    over: bool = False
    complete: bool = False
    cut: bool = False


class Upstream:
    """Listens on loopback. `told` is what each request id used, `repeated` what was asked for twice."""

    def __init__(self, seed: int) -> None:
        self.port = 0
        self.told: dict[str, ServedCall] = {}
        self.repeated: list[str] = []
        self.closes_idle = False
        self._draw = random.Random(seed)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen on any free port."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", 0, limit=HEAD_BYTES_MAX, backlog=4096
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._server is not None:
            self._server.close()
        self.drop()
        await asyncio.sleep(0)

    def drop(self) -> None:
        """Reset every open connection, idle or not."""
        for writer in list(self._writers):
            _reset(writer)

    def forget(self) -> None:
        """Begin a new record."""
        self.told, self.repeated = {}, []

    @property
    def busy(self) -> int:
        """Calls not answered to their end yet."""
        return sum(not one.over for one in self.told.values())

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        with suppress(OSError, asyncio.IncompleteReadError, RuntimeError):  # uvloop's word for closed
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in head[1:] if line)
                body = await reader.readexactly(int(fields.get("content-length", "0")))
                if not await self._answer(head[0].split()[1], fields, body, writer) or self.closes_idle:
                    break
        self._writers.discard(writer)
        writer.close()

    async def _answer(
        self, path: str, fields: dict[str, str], body: bytes, writer: asyncio.StreamWriter
    ) -> bool:
        """Answer one call; whether the connection may carry another."""
        asked = json.loads(body) if body else {}
        chat = path.startswith("/v1/")
        output = self._draw.randint(1, int(asked.get("max_tokens", 16))) if chat else 0
        units = 0 if chat else int(fields.get("x-fault-units", "1"))
        kind = "tokens" if chat else "units" if "x-fault-units" in fields else "credits"
        told = ServedCall(fields["x-request-id"], kind, PROMPT_TOKENS + output if chat else 0, units)
        if told.request_id in self.told:
            self.repeated.append(told.request_id)
        self.told[told.request_id] = told
        try:
            await asyncio.sleep(float(fields.get("x-fault-delay-s", "0")))
            if asked.get("stream"):
                told.cut = not await _stream(told, fields, asked, writer)
            elif "x-fault-cut" in fields:
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
                )
                await writer.drain()
                told.cut = True
            else:
                writer.write(_document(told, chat=chat))
                await writer.drain()
            told.complete = not told.cut
            if told.cut:
                _reset(writer)
        finally:
            told.over = True
        return not told.cut


def _usage(told: ServedCall) -> dict[str, int]:
    output = told.tokens - PROMPT_TOKENS
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": output, "total_tokens": told.tokens}


def _document(told: ServedCall, *, chat: bool) -> bytes:
    said: dict[str, object] = {"id": told.request_id}
    units = f"x-usage-amount: {told.units}\r\n"
    if chat:
        units = ""
        message = {"role": "assistant", "content": "so it is"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        said |= {"object": "chat.completion", "model": "truth", "choices": [choice], "usage": _usage(told)}
    body = json.dumps(said).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n{units}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _stream(
    told: ServedCall, fields: dict[str, str], asked: dict[str, object], writer: asyncio.StreamWriter
) -> bool:
    """Write a stream; False where it was to be cut."""
    cut = int(fields.get("x-fault-cut", "-1"))
    pause_s = float(fields.get("x-fault-pause-s", "0"))
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    for number in range(int(fields.get("x-fault-pieces", PIECES))):
        if number == cut:
            await writer.drain()
            return False
        choice = {"index": 0, "delta": {"content": f"piece {number} "}, "finish_reason": None}
        writer.write(_event({"id": told.request_id, "object": "chat.completion.chunk", "choices": [choice]}))
        await writer.drain()
        await asyncio.sleep(pause_s)
    finish = {"index": 0, "delta": {}, "finish_reason": "stop"}
    writer.write(_event({"id": told.request_id, "object": "chat.completion.chunk", "choices": [finish]}))
    if isinstance(options := asked.get("stream_options"), dict) and options.get("include_usage"):
        usage = _usage(told)
        writer.write(
            _event({"id": told.request_id, "object": "chat.completion.chunk", "choices": [], "usage": usage})
        )
    writer.write(_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
    await writer.drain()
    return True


def _event(said: dict[str, object]) -> bytes:
    return _chunk(b"data: " + json.dumps(said, separators=(",", ":")).encode() + b"\n\n")


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _reset(writer: asyncio.StreamWriter) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and not writer.transport.is_closing():
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
    writer.transport.abort()
