"""Pass requests on to another address, note each of them, and fail as a vendor does where that is wanted.

One stands between a client and Tollkeeper and notes; one between Tollkeeper and the demo upstream and fails.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession, ClientTimeout, web

CHAT, RESPONSES, MESSAGES, GEMINI = "chat", "responses", "messages", "gemini"
CUT, POLITE, EVENT = "cut", "polite", "event"
BODY_BYTES_MAX = 64 * 1024 * 1024
START_S_MAX = 30.0
# Fields of one connection, which no relay hands on.
_OWN = frozenset({"connection", "transfer-encoding", "content-length", "host", "keep-alive", "upgrade"})
_TEXT = re.compile(rb'"content": ?"[^"]|text_delta|output_text\.delta|"text": ?"[^"]')
_READ = re.compile(rb'"(?:prompt_tokens|input_tokens|promptTokenCount)": ?(\d+)')
_WRITTEN = re.compile(rb'"(?:completion_tokens|output_tokens|candidatesTokenCount)": ?(\d+)')
_SCHEMAS = ("parameters", "input_schema", "parametersJsonSchema", "parameters_json_schema")
# Tools that read, the likeliest first.
_READERS = [
    re.compile(name, re.IGNORECASE)
    for name in ("look_up|.*-look_up", "read|read_?files?|view", "exec_command|shell|bash|run_.*|execute_.*")
]
# What a seal of the relay says before the name of its model, in base64.
_SEAL = "a seal that the relay wrote for "
_SEALED = re.compile(base64.b64encode(_SEAL.encode())[:40] + rb"[A-Za-z0-9+/]*={0,2}")
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
    bytes: int = 0
    tool: str = ""
    status: int = 0
    sentence: str = ""
    input: int = 0
    output: int = 0


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
        self.usage = ""  # the tokens that the demo upstream reports, as its `x-demo-usage`
        self.seals = False  # models think, seal their thoughts, and refuse those of another model
        self.file: Path | None = None  # the demo upstream asks once for a tool that reads it
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
            time.monotonic(),
            asked.method,
            asked.path,
            headers,
            body if isinstance(body, dict) else {},
            len(raw),
        )
        self.requests.append(noted)
        api, fault = api_of(asked.path), self.fault
        if fault is not None and fault.status:
            status, said = failure(api, fault)
            noted.status = status
            after = {} if fault.retry_after_s is None else {"retry-after": str(fault.retry_after_s)}
            return web.json_response(said, status=status, headers=after)
        sent = {name: value for name, value in headers.items() if name not in _OWN}
        if self.usage:
            sent["x-demo-usage"] = self.usage
        if self.seals:
            if foreign := foreign_seal(raw, model_of(noted)):
                noted.status, noted.sentence = 400, foreign
                return web.json_response(refusal_of_seal(api, foreign), status=400)
            sent["x-demo-thinking"] = "1"
        if self.file is not None and (call := tool_call(noted.body, str(self.file))):
            noted.tool, sent["x-demo-tool"] = call.partition(" ")[0], call
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
            if self.seals:
                whole = sealed(whole, model_of(noted))
            noted.sentence = sentence_of(whole)
            _note_use(noted, whole)
            return web.Response(status=answer.status, body=whole, headers=dict(fields))
        passed = web.StreamResponse(status=answer.status, headers=dict(fields))
        await passed.prepare(asked)
        cut = False
        try:
            async for event in _events(answer.content):
                piece = sealed(event, model_of(noted)) if self.seals else event
                await passed.write(piece)
                _note_use(noted, piece)
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


def _note_use(noted: Request, piece: bytes) -> None:
    """Note the tokens that an answer, or an event of one, reports: its last report has them all."""
    for name, numbers in (("input", _READ), ("output", _WRITTEN)):
        setattr(noted, name, max(getattr(noted, name), 0, *map(int, numbers.findall(piece))))


def tool_call(body: dict[str, Any], file: str) -> str:
    """Return a call of a tool that a request offers and that reads a file, as the demo upstream takes one."""
    offered = list(_tools(body))
    found = [(name, schema) for kind in _READERS for name, schema in offered if kind.fullmatch(name)]
    return f"{found[0][0]} {json.dumps(_argument('', found[0][1], file))}" if found else ""


def _tools(body: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield names and schemas of the tools that a request of any API offers."""
    for tool in body.get("tools") or ():
        for one in tool.get("functionDeclarations") or [tool.get("function") or tool]:
            yield one.get("name", ""), next((one[name] for name in _SCHEMAS if one.get(name)), {})


def _argument(name: str, schema: dict[str, Any], file: str) -> Any:
    """Return an argument by its name and schema: with all that is required, and the file where one is."""
    kind = str(schema.get("type", "string")).lower()
    if schema.get("enum"):
        return schema["enum"][0]
    if kind == "object":
        parts, wanted = schema.get("properties") or {}, schema.get("required") or ()
        return {part: _argument(part, parts[part], file) for part in wanted if part in parts}
    if kind == "array":
        return [_argument(name, schema.get("items") or {}, file)]
    if kind in {"integer", "number", "boolean"}:
        return {"integer": 1, "number": 1, "boolean": False}[kind]
    return (
        f"cat {file}" if re.search("command|cmd", name) else file if re.search("path|file", name) else "here"
    )


def model_of(request: Request) -> str:
    """Return the model that a request names in its body or its path."""
    in_path = re.search(r"/models/([^:/]+)", request.path)
    return in_path[1] if in_path else str(request.body.get("model", ""))


def sealed(piece: bytes, model: str) -> bytes:
    """Return an answer, or an event of one, whose thoughts this model has sealed as its vendor does.

    Anthropic signs a block of thinking, OpenAI encrypts a reasoning item, Gemini signs a part.
    """
    seal = base64.b64encode(f"{_SEAL}{model}".encode())
    piece = piece.replace(b"c2lnbmVk", seal)
    piece = re.sub(rb'("type": ?"reasoning", ?)', rb'\1"encrypted_content":"' + seal + b'",', piece)
    return re.sub(rb'("parts": ?\[\{)', rb'\1"thoughtSignature":"' + seal + b'",', piece)


def foreign_seal(body: bytes, model: str) -> str:
    """Return the sentence by which a vendor refuses a body with a seal of another model; empty if it has none."""
    seals = {base64.b64decode(found).decode() for found in _SEALED.findall(body)}
    return "" if seals <= {f"{_SEAL}{model}"} else "Invalid signature in thinking block"


def refusal_of_seal(api: str, sentence: str) -> dict[str, Any]:
    """Return the body of a 400 for a seal of another model, in the form of its vendor's errors."""
    if api == MESSAGES:
        return {"type": "error", "error": {"type": "invalid_request_error", "message": sentence}}
    if api == GEMINI:
        return {"error": {"code": 400, "message": sentence, "status": "INVALID_ARGUMENT"}}
    return {"error": {"message": sentence, "type": "invalid_request_error", "param": None, "code": None}}


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
