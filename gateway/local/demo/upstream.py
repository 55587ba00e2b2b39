"""A demo upstream: answers in the formats of three providers, and an echo for any other path.

A small HTTP/1.1 server on asyncio streams, for demonstrations and tests only. Header fields of a
request may set the answer:

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

`GET /demo/calls[?model=…]` returns the usage of each of the last calls by this upstream's own count.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
import signal
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import product
from typing import Any
from urllib.parse import parse_qs, unquote

from gateway.errors import StartError
from gateway.local.demo.batches import Batches

# Reads one request to the demo upstream from a socket: enough HTTP/1.1 for a demonstration.

BODY_BYTES_MAX = 64 * 1024 * 1024
DELAY_MAX_S = 300.0


@dataclass(frozen=True, slots=True)
class DemoRequest:
    method: str
    target: str
    headers: dict[str, str]
    raw_headers: list[tuple[str, str]]
    content: bytes

    @property
    def path(self) -> str:
        return unquote(self.target.partition("?")[0])

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(self.target.partition("?")[2])

    def json(self) -> dict[str, Any]:
        """Return the body as a JSON object; empty for any other body."""
        try:
            document = json.loads(self.content)
        except ValueError:
            return {}
        return document if isinstance(document, dict) else {}

    def number(self, name: str) -> int | None:
        """Return the whole number in a header field, or None if it has none."""
        value = self.headers.get(name, "")
        return int(value) if value.isdecimal() else None

    def seconds(self, name: str) -> float:
        try:
            return min(max(float(self.headers.get(name, "0")), 0.0), DELAY_MAX_S)
        except ValueError:
            return 0.0


async def read(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> DemoRequest | None:
    """Return the request that begins with this head, or None if it is invalid."""
    first, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
    words = first.split(" ")
    if len(words) != 3:
        return None
    raw = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    headers = {name.lower(): value for name, value in raw}
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if headers.get("transfer-encoding", "").lower() == "chunked":
        content = await _read_chunked(reader)
    else:
        length = int(headers.get("content-length", "0"))
        if length > BODY_BYTES_MAX:
            return None
        content = await reader.readexactly(length)
    return DemoRequest(words[0], words[1], headers, raw, content)


async def _read_chunked(reader: asyncio.StreamReader) -> bytes:
    parts: list[bytes] = []
    total = 0
    while size := int((await reader.readline()).split(b";")[0], 16):
        total += size
        if total > BODY_BYTES_MAX:
            raise OSError("body too large")
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while (await reader.readline()).strip():
        pass
    return b"".join(parts)


# One call to the demo upstream, for every API: the answer and its usage. Pure.
#
# Token counts are deterministic: words and punctuation marks of request and answer, unless the request sets
# them.

WORD = re.compile(r"\w+|[^\w\s]")
OUTPUT_TOKENS_MAX = 16
OPENING_PIECES = 2  # sent before the first keep-alive event of a stream
WORDS_MAX = 100_000
THOUGHT = "The user said something."
UNREPORTED = "none"
PROMPTS = ("messages", "input", "prompt", "contents", "requests", "content")
# Marks of a tool's result: a type in most APIs, a role in chats, a name in Gemini's.
RESULTS = frozenset({"tool_result", "function_call_output", "custom_tool_call_output", "tool"})
UNHEARD = frozenset({"system", "developer"})  # roles that instruct the model
SAYING = ("content", "text", "parts", "output")
ARGUMENTS_FIRST = 9  # characters of a tool's arguments in the first piece of them
COUNTS = ("input", "output", "cached", "reasoning", "created")
STATUSES = {"incomplete": "incomplete", "failed": "failed"}


@dataclass(slots=True)
class DemoExchange:
    """One call and its answer: `values` and `lists` fill the holes of a recorded answer.

    `spoken` counts the output tokens sent so far, `announced` those reported before any was sent. `over`:
    nothing more is sent; `complete`: everything was sent.
    """

    asked: DemoRequest
    values: dict[str, Any]
    lists: dict[str, Sequence[Any]]
    spoken: int = 0
    announced: int = 0
    over: bool = False
    complete: bool = False

    def finish(self) -> None:
        self.spoken = self.values["output"]
        self.values["status"] = STATUSES.get(self.values["end"], "completed")

    def render(self) -> dict[str, Any]:
        """Return the call as JSON, with the tokens that the demo upstream counts for it.

        A call whose answer was cut used its whole input and the sent part of its output.
        """
        values = self.values
        cached = values["cached"] + values["created"] if self.asked.path == "/v1/messages" else 0
        sent = max(self.spoken, self.announced)
        output = values["output"] if self.complete and not values["end"] else sent
        return {
            "request_id": self.asked.headers.get("x-request-id", ""),
            "path": self.asked.path,
            "model": values["model"],
            "body_sha256": hashlib.sha256(self.asked.content).hexdigest(),
            "body_bytes": len(self.asked.content),
            "input": values["input"] + cached,
            "output": output,
            "total": values["input"] + cached + output,
            "sent": sent,
            "reported": values["reports"],
            "over": self.over,
            "complete": self.complete,
        }


def tokens_in(value: Any) -> int:
    """Return the number of words and punctuation marks in a JSON value's texts; a number counts as one."""
    if isinstance(value, str):
        return len(WORD.findall(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return 1
    if isinstance(value, list):
        return sum(map(tokens_in, value))
    if isinstance(value, dict):
        return sum(tokens_in(item) for name, item in value.items() if name not in {"role", "type"})
    return 0


def prompt_of(body: dict[str, Any]) -> Any:
    return next((body[name] for name in PROMPTS if name in body), "")


def read_turn(asked: DemoRequest, model: str, *, speaks: bool) -> DemoExchange:
    """Read a call of any API, and the `x-demo-` header fields that determine its answer.

    If the model does not speak (`speaks` is False), such as for embeddings, the answer has no output.
    """
    body, prompt, dictates = asked.json(), prompt_of(asked.json()), asked.headers.get
    said = [
        "You",
        " said",
        ":",
        *re.findall(r"\s*\S+", " " + (_last_text(_messages_of_people(prompt)) or "nothing")),
    ]
    words = min(asked.number("x-demo-words") or 0, WORDS_MAX)
    said = [" and"] * words or said
    stated = _output_max(body)
    pieces = said[: words or min(stated or OUTPUT_TOKENS_MAX, OUTPUT_TOKENS_MAX)]
    choices = range(int(body.get("n") or 1))
    usage, end = dictates("x-demo-usage", ""), dictates("x-demo-end", "")
    thinks = "x-demo-thinking" in asked.headers
    tool = "x-demo-tool" in asked.headers and not _has_result(prompt)
    called, arguments = _called(dictates("x-demo-tool", ""))
    counts = [tokens_in(prompt), len(pieces) * len(choices)]
    if usage not in {"", UNREPORTED}:
        counts = [int(each) for each in usage.split(",")]
    used = dict(zip(COUNTS, counts + [0] * (5 - len(counts)), strict=True))
    used["output"] *= speaks
    text_stop = "length" if len(said) > len(pieces) == stated else "end"
    values = used | {
        "id": hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24],
        "model": model or str(body.get("model", "demo-small")),
        "text": "".join(pieces),
        "final": pieces[-1],
        "longer": len(pieces) > OPENING_PIECES,
        "thought": THOUGHT,
        "thinks": thinks,
        "tool": tool,
        "called": called,
        "given": json.loads(arguments),
        "arguments": arguments,
        "arguments_begun": arguments[:ARGUMENTS_FIRST],
        "arguments_rest": arguments[ARGUMENTS_FIRST:],
        "at": int(thinks),  # index of the answer after the thoughts, and of the part after it
        "after": int(thinks) + 1,
        "end": end,
        "broken": bool(end),
        "failing": end == "error",
        "stop": "tool" if tool else text_stop,
        "status": "in_progress",
        "reports": usage != UNREPORTED,
        "asked": bool((body.get("stream_options") or {}).get("include_usage")),
        "encoding": str(body.get("encoding_format", "")),
        "total": used["input"] + used["output"],
        "visible": used["output"] - used["reasoning"],
        "caches": used["cached"] > 0,
        "reasons": used["reasoning"] > 0,
    }
    many = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
    lists: dict[str, Sequence[Any]] = {
        "choice": choices,
        "piece": pieces,
        "early": pieces if end else pieces[:-1],
        "opening": pieces[:OPENING_PIECES],
        "rest": pieces[OPENING_PIECES:],
        "text_at": range(len(prompt) if many else 1),
    }
    return DemoExchange(asked, values, lists)


def _called(asked: str) -> tuple[str, str]:
    """Return the name and JSON arguments of a tool call from the text `NAME {…}`; default `look_up`."""
    if asked in {"", "1"}:
        return "look_up", '{"place":"here"}'
    name, _, arguments = asked.partition(" ")
    return name, json.dumps(json.loads(arguments or "{}"), separators=(",", ":"))


def _has_result(value: Any) -> bool:
    """Return whether a request contains a tool's result; then the model calls no further tool."""
    if isinstance(value, list):
        return any(map(_has_result, value))
    if not isinstance(value, dict):
        return False
    if value.get("type") in RESULTS or value.get("role") in RESULTS or "functionResponse" in value:
        return True
    return any(_has_result(value.get(name)) for name in ("content", "parts"))


def _output_max(body: dict[str, Any]) -> int | None:
    generation = body.get("generationConfig")
    stated = [body.get(name) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    stated += [generation.get("maxOutputTokens")] if isinstance(generation, dict) else []
    return next((int(each) for each in stated if isinstance(each, int) and each > 0), None)


def _messages_of_people(prompt: Any) -> Any:
    """Return the messages except those of the roles system and developer; all if no other is left."""
    if not isinstance(prompt, list):
        return prompt
    return [one for one in prompt if not isinstance(one, dict) or one.get("role") not in UNHEARD] or prompt


def _last_text(value: Any) -> str:
    """Return the last text within a value of a request; empty without one."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value:
        return _last_text(value[-1])
    if isinstance(value, dict):
        return _last_text(next((value[name] for name in SAYING if name in value), ""))
    return ""


# The recorded answers in `answers/`, and how they are filled for one call. Pure.
#
# A file is an answer of a provider, with holes:
#
#     "$name"                     the value of that name; as text inside other text
#     {"$name": {"case": …}}      the case of its value, or of `*`; left out without a case
#     {"$each": "name", …}        in a list: one for each element of the list `name`
#     "$whole"                    in a stream: the answer of the same name without a stream
#
# In a stream, a comment before an event says when it is sent: `each piece`, `if tool`, `unless tool`;
# `counted` if it is output, `announced` if it reports a token before any is sent, `last` if nothing follows.

HOLE = re.compile(r"\$(\w+)")
GONE = object()


@dataclass(frozen=True, slots=True)
class DemoEvent:
    name: str
    data: Any
    rules: tuple[tuple[str, str], ...]

    def named(self, rule: str) -> list[str]:
        return [name for word, name in self.rules if word == rule]

    def marked(self, mark: str) -> bool:
        return (mark, "") in self.rules


def _event(block: str) -> DemoEvent:
    fields = {name: value for name, _, value in (line.partition(": ") for line in block.splitlines())}
    rules = tuple(rule.partition(" ")[::2] for rule in fields.get("", "").split(", "))
    data = fields["data"]
    return DemoEvent(fields.get("event", ""), json.loads(data) if data.startswith("{") else data, rules)


_texts = {path.name: path.read_text("utf-8") for path in files(__package__).joinpath("answers").iterdir()}
WHOLE = {name[:-5]: json.loads(text) for name, text in _texts.items() if name.endswith(".json")}
STREAMS = {
    name[:-4]: [
        _event(block.replace('"$whole"', json.dumps(WHOLE.get(name[:-4])))) for block in text.split("\n\n")
    ]
    for name, text in _texts.items()
    if name.endswith(".sse")
}


def whole_answer(name: str, turn: DemoExchange) -> bytes:
    turn.finish()
    return written_answer(fill_answer(WHOLE[name], turn.values, turn.lists)).encode()


def stream_answer(name: str, turn: DemoExchange) -> Iterator[tuple[str, str]]:
    """Yield the name and data of each event of the stream format `name`; `turn` counts the output so far."""
    values, number = turn.values, 0
    for event in STREAMS[name]:
        wanted = all(values[name] for name in event.named("if"))
        if wanted and not any(values[name] for name in event.named("unless")):
            loops = event.named("each")
            for found in product(*(turn.lists[name] for name in loops)):
                values |= zip(loops, found, strict=True)
                values["number"], number = number, number + 1
                turn.spoken += event.marked("counted")
                turn.announced += event.marked("announced") and turn.values["reports"]
                yield (
                    fill_answer(event.name, values, {}),
                    written_answer(fill_answer(event.data, values, turn.lists)),
                )
            if event.marked("last"):
                return
        elif event.marked("last"):
            turn.finish()


def written_answer(content: Any) -> str:
    """Return a text unchanged, and other content as compact JSON."""
    return content if isinstance(content, str) else json.dumps(content, separators=(",", ":"))


def fill_answer(template: Any, values: dict[str, Any], lists: dict[str, Any]) -> Any:
    """Return the template with `values` in place of the names in braces, and items repeated by `lists`.

    Return `GONE` for a choice between cases if no case matches.
    """
    if isinstance(template, str):
        hole = HOLE.fullmatch(template)
        return values[hole[1]] if hole else HOLE.sub(lambda found: str(values[found[1]]), template)
    if isinstance(template, list):
        made = (fill_answer(*each, lists) for item in template for each in _expand_item(item, values, lists))
        return [item for item in made if item is not GONE]
    if not isinstance(template, dict):
        return template
    name, cases = next(iter(template.items()), ("", None))
    if name.startswith("$") and isinstance(cases, dict):
        return fill_answer(cases.get(str(values[name[1:]]).lower(), cases.get("*", GONE)), values, lists)
    filled = {name: fill_answer(item, values, lists) for name, item in template.items() if name != "$each"}
    return {name: item for name, item in filled.items() if item is not GONE}


def _expand_item(
    item: Any, values: dict[str, Any], lists: dict[str, Any]
) -> list[tuple[Any, dict[str, Any]]]:
    if not isinstance(item, dict) or "$each" not in item:
        return [(item, values)]
    return [(item, {**values, item["$each"]: one}) for one in lists[item["$each"]]]


# Sending an answer: whole, in pieces, compressed, or broken off, as the request says.
@dataclass(frozen=True, slots=True)
class Reply:
    """One answer: a whole body, or the pieces of a stream. `turn` is the answered call, or None."""

    body: bytes | Iterable[bytes]
    status: int = 200
    content_type: str = "application/json"
    headers: tuple[tuple[str, str], ...] = ()
    turn: DemoExchange | None = None


async def send(asked: DemoRequest, body: bytes | Iterable[bytes], writer: asyncio.StreamWriter) -> bool:
    """Send the body, or the part that the request's header fields ask for; return whether all was sent."""
    cut_at = asked.number("x-demo-cut")
    bytes_left = asked.number("x-demo-cut-bytes")
    pause_s = asked.seconds("x-demo-pause-s")
    if isinstance(body, bytes):
        if asked.method != "HEAD":
            writer.write(body if bytes_left is None else body[:bytes_left])
        await writer.drain()
        return cut_at is None and (bytes_left is None or bytes_left >= len(body))
    if cut_at == 0:
        await writer.drain()
        return False
    for number, piece in enumerate(body, 1):
        if bytes_left is not None and bytes_left < len(piece):
            writer.write(b"%x\r\n%b" % (len(piece), piece[:bytes_left]))
            await writer.drain()
            return False
        bytes_left = None if bytes_left is None else bytes_left - len(piece)
        writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
        await writer.drain()
        if number == cut_at:
            return False
        if pause_s:
            await asyncio.sleep(pause_s)
    writer.write(b"0\r\n\r\n")
    await writer.drain()
    return True


def zipped(body: bytes | Iterable[bytes]) -> bytes | Iterator[bytes]:
    """Return the body compressed with gzip; each piece of a stream is compressed by itself."""
    packer = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    if isinstance(body, bytes):
        return packer.compress(body) + packer.flush()

    def pieces() -> Iterator[bytes]:
        for piece in body:
            yield packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)
        yield packer.flush()

    return pieces()


HEAD_BYTES_MAX = 65_536
KEEP_ALIVE_S = 75.0
ECHOED_BYTES_MAX = 65_536
CALLS_MAX = 20_000
REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 429: "Too Many Requests", 500: "Server Error"}
MODELS = ("demo-small", "demo-large")
MODEL = re.compile(r"^/v1(beta)?/models(?:/([^/:]+))?(:\w+)?$")
# The recorded answer of each path, or of each action on a model.
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
    """Listen and answer requests; return the server, which knows its port if `port` is 0."""
    calls: deque[DemoExchange] = deque(maxlen=CALLS_MAX)
    batches = Batches()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _connection(calls, batches, reader, writer)

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


async def _connection(
    calls: deque[DemoExchange], batches: Batches, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError):
        while True:
            async with asyncio.timeout(KEEP_ALIVE_S):
                head = await reader.readuntil(b"\r\n\r\n")
            asked = await read(head, reader, writer)
            if asked is None or not await _answer(calls, batches, asked, writer):
                break
    writer.close()


async def _answer(
    calls: deque[DemoExchange], batches: Batches, asked: DemoRequest, writer: asyncio.StreamWriter
) -> bool:
    """Send the answer to a request; return whether the connection can be used again."""
    await asyncio.sleep(asked.seconds("x-demo-delay-s"))
    if asked.method == "GET" and asked.path == "/demo/calls":
        model = asked.query.get("model", [""])[0]
        reply = _json({"calls": [turn.render() for turn in calls if model in ("", turn.values["model"])]})
    else:
        reply = _answer_batches(calls, batches, asked) or _reply(asked)
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


def _answer_batches(calls: deque[DemoExchange], batches: Batches, asked: DemoRequest) -> Reply | None:
    """Return the answer to a request about files, batches or videos, or None for another request.

    The calls of a batch are added to `calls`.
    """

    def work(path: str, body: bytes) -> tuple[int, Any]:
        reply = _reply(replace(asked, method="POST", target=path, headers={}, content=body))
        if reply.turn is not None:
            reply.turn.over = reply.turn.complete = True
            calls.append(reply.turn)
        assert isinstance(reply.body, bytes)
        return reply.status, json.loads(reply.body)

    if "x-demo-status" in asked.headers:
        return None
    answer = batches.answer(asked.method, asked.path, asked.query, asked.content, work)
    if answer is None:
        return None
    status, said = answer
    return Reply(said, status, "application/octet-stream") if isinstance(said, bytes) else _json(said, status)


def _reply(asked: DemoRequest) -> Reply:
    status = asked.headers.get("x-demo-status", "")
    if status:
        error = {"message": "as you asked", "type": "demo_error", "code": None}
        return replace(_json({"error": error}, int(status)), headers=_fields(asked))
    try:
        return _route_request(asked)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return _json({"error": {"message": str(error), "type": "invalid_request_error"}}, 400)


def _fields(asked: DemoRequest) -> tuple[tuple[str, str], ...]:
    """Return the header fields that a request asks the demo to answer with, except unprintable ones."""
    try:
        document = json.loads(asked.headers.get("x-demo-fields", "{}"))
    except ValueError:
        return ()
    dictated = document.items() if isinstance(document, dict) else ()
    return tuple((name, str(value)) for name, value in dictated if f"{name}{value}".isprintable())


def _route_request(asked: DemoRequest) -> Reply:
    """Return the demo upstream's answer to a request, by its path."""
    route, model, place = asked.path, "", MODEL.match(asked.path)
    if place and asked.method == "GET" and not place[3]:
        return _models(asked, gemini=bool(place[1]) or "x-goog-api-client" in asked.headers, name=place[2])
    if place and place[2] and place[3]:
        model, route = place[2], place[3]
    if asked.method == "POST" and route in ANSWERS:
        return _answer_call(asked, route, model)
    if asked.method == "POST" and route in COUNTED:
        return _json({COUNTED[route]: tokens_in(prompt_of(asked.json()))})
    if asked.method == "POST" and model:
        return _json({"error": {"code": 404, "message": "no such method", "status": "NOT_FOUND"}}, 404)
    return _echo(asked)


def _answer_call(asked: DemoRequest, route: str, model: str) -> Reply:
    name = ANSWERS[route]
    turn = read_turn(asked, model, speaks=not name.startswith("embedding"))
    if name not in STREAMS or not (asked.json().get("stream") or route == ":streamGenerateContent"):
        return Reply(whole_answer(name, turn), turn=turn)
    events = stream_answer(name, turn)
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
    """Yield a JSON array one element at a time, as Gemini streams without `alt=sse`."""
    opening = b"["
    for _, data in events:
        yield opening + data.encode()
        opening = b",\r\n"
    yield b"]"


def _models(asked: DemoRequest, *, gemini: bool, name: str | None) -> Reply:
    maker = "anthropic" if "anthropic-version" in asked.headers else "openai"
    if gemini:
        maker = "gemini"
    models = {"model": MODELS if name is None else (name,)}
    listed = fill_answer(WHOLE[f"models_{maker}"], {}, models)
    if name is None:
        return _json(listed)
    return _json(listed["models" if gemini else "data"][0])


def _echo(asked: DemoRequest) -> Reply:
    """Return the received request as JSON, to show what the gateway forwards."""
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
    return Reply(written_answer(content).encode(), status)
