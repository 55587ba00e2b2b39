"""Pass requests on to another address, note each of them, and fail as a vendor does where that is wanted.

One stands between a client and Tollkeeper and notes; one between Tollkeeper and the demo upstream and fails.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession, ClientTimeout, web

CHAT, RESPONSES, MESSAGES, GEMINI = "chat", "responses", "messages", "gemini"
CUT, POLITE, EVENT = "cut", "polite", "event"
BODY_BYTES_MAX = 64 * 1024 * 1024
START_S_MAX = 30.0
# Fields of one connection, which no relay hands on.
_OWN = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive", "upgrade"})
_TEXT = re.compile(rb'"content": ?"[^"]|text_delta|output_text\.delta|"text": ?"[^"]')
_GOOGLE = {429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE"}
_ANTHROPIC = {429: "rate_limit_error", 500: "api_error", 529: "overloaded_error"}
_SENTENCES = {
    429: "Rate limit reached for requests. Please slow down.",
    500: "The server had an error while processing your request.",
    503: "The model is overloaded. Please try again later.",
    529: "Overloaded",
}


@dataclass(frozen=True)
class Fault:
    """One way to fail: a status at once, or the end of a stream behind its first piece of text."""

    status: int = 0
    retry_after_s: int | None = None
    end: str = ""


@dataclass
class Request:
    """One request as it passed, and how it was answered."""

    at_s: float
    method: str
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    status: int = 0
    sentence: str = ""


def api_of(path: str) -> str:
    """Return the API that a path is of."""
    if "/models/" in path:
        return GEMINI
    return next((api for api in (CHAT, RESPONSES, MESSAGES) if f"/{api}" in path), CHAT)


def failure(api: str, fault: Fault) -> tuple[int, dict[str, Any]]:
    """Return the status and the body of a failure, as the vendor of this API writes it."""
    status = fault.status
    if status == 529 and api != MESSAGES:
        status = 503
    sentence = _SENTENCES[status]
    if api == MESSAGES:
        error: dict[str, Any] = {"type": _ANTHROPIC[status], "message": sentence}
        return status, {"type": "error", "error": error, "request_id": "req_1"}
    if api == GEMINI:
        return status, {"error": {"code": status, "message": sentence, "status": _GOOGLE[status]}}
    kind, code = ("requests", "rate_limit_exceeded") if status == 429 else ("server_error", None)
    return status, {"error": {"message": sentence, "type": kind, "param": None, "code": code}}


def error_event(api: str) -> bytes:
    """Return the event by which a stream of this API says that it failed."""
    _, body = failure(api, Fault(529))
    if api == RESPONSES:
        body = {"type": "error", "code": "server_error", "message": _SENTENCES[503], "param": None}
        body["sequence_number"] = 9
    name = b"event: error\n" if api in {MESSAGES, RESPONSES} else b""
    return name + b"data: " + json.dumps(body).encode() + b"\n\n"


def event_sentence(api: str) -> str:
    """Return what such an event says."""
    return _SENTENCES[529 if api == MESSAGES else 503]


class Relay:
    """A server of its own thread. `requests` are those since it was cleared."""

    def __init__(self, target: str) -> None:
        self.requests: list[Request] = []
        self.fault: Fault | None = None
        self.url = ""
        self._target = target
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(START_S_MAX)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S_MAX)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._start())
        self._loop.run_forever()
        self._loop.run_until_complete(self._close())

    async def _start(self) -> None:
        no_limit = ClientTimeout(total=None)
        self._session = ClientSession(timeout=no_limit, auto_decompress=False, raise_for_status=False)
        app = web.Application(client_max_size=BODY_BYTES_MAX)
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app, auto_decompress=False, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, shutdown_timeout=0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        self._ready.set()

    async def _close(self) -> None:
        await self._session.close()
        await self._runner.cleanup()

    async def _pass(self, asked: web.Request) -> web.StreamResponse:
        raw = await asked.read()
        body: Any = {}
        with suppress(ValueError):
            body = json.loads(raw)
        headers = {name.lower(): value for name, value in asked.headers.items()}
        noted = Request(
            time.monotonic(), asked.method, asked.path, headers, body if isinstance(body, dict) else {}
        )
        self.requests.append(noted)
        api, fault = api_of(asked.path), self.fault
        if fault is not None and fault.status:
            status, said = failure(api, fault)
            noted.status = status
            after = {} if fault.retry_after_s is None else {"retry-after": str(fault.retry_after_s)}
            return web.json_response(said, status=status, headers=after)
        sent = {name: value for name, value in headers.items() if name not in _OWN}
        async with self._session.request(
            asked.method, self._target + asked.raw_path, data=raw or None, headers=sent, allow_redirects=False
        ) as answer:
            return await self._answer(asked, answer, noted, fault.end if fault else "")

    async def _answer(self, asked: web.Request, answer: Any, noted: Request, end: str) -> web.StreamResponse:
        noted.status = answer.status
        fields = [(name, value) for name, value in answer.headers.items() if name.lower() not in _OWN]
        streamed = "event-stream" in answer.headers.get("content-type", "")
        if not streamed:
            whole = await answer.read()
            noted.sentence = sentence_of(whole)
            return web.Response(status=answer.status, body=whole, headers=dict(fields))
        passed = web.StreamResponse(status=answer.status, headers=dict(fields))
        await passed.prepare(asked)
        cut = False
        try:
            async for piece in _events(answer.content):
                await passed.write(piece)
                if end and _TEXT.search(piece):
                    cut = end == CUT
                    if end == EVENT:
                        await passed.write(error_event(api_of(asked.path)))
                    break
        except (ClientPayloadError, ClientConnectionError):
            cut = True
        if cut and asked.transport is not None:
            asked.transport.close()
        return passed


async def _events(content: Any) -> Any:
    """Yield the events of a stream, each whole."""
    piece = b""
    async for line in content:
        piece += line
        if not line.strip():
            yield piece
            piece = b""
    if piece:
        yield piece


def sentence_of(body: bytes) -> str:
    """Return the sentence of an error; empty where there is none."""
    with suppress(ValueError, AttributeError, TypeError):
        said = json.loads(body)
        error = said.get("error") or {}
        return str(error.get("message", "")) if isinstance(error, dict) else str(error)
    return ""


@contextmanager
def relaying(target: str) -> Iterator[Relay]:
    """Run a relay before an address."""
    relay = Relay(target)
    try:
        yield relay
    finally:
        relay.stop()
