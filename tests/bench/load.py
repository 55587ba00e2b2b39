"""The bench's two clients: wrk, and a paced one for latency at a low rate.

Both send the same chat requests, answered by 600 bytes or by a stream. A `Traffic` says who calls, and what.
"""

from __future__ import annotations

import json
import secrets
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from tests.bench.machine import BenchError

PATH = "/v1/chat/completions"
PACED_CONNECTIONS = 8
ANSWER_S_MAX = 10.0
USAGE = {"prompt_tokens": 240, "completion_tokens": 60, "total_tokens": 300}


def _said(kind: str, choices: list[dict[str, Any]], **more: object) -> str:
    whole = {"id": "chatcmpl-bench0000000000000000000000", "object": kind, "created": 1760000000,
             "model": "gpt-4o-mini", "choices": choices, **more}  # fmt: skip
    return json.dumps(whole, separators=(",", ":"))


def _event(choices: list[dict[str, Any]], **more: object) -> str:
    return f"data: {_said('chat.completion.chunk', choices, **more)}\n\n"


TEXT = {"role": "assistant", "content": "Tolls are paid at the gate, once. " * 6}
ANSWER = _said("chat.completion", [{"index": 0, "message": TEXT, "finish_reason": "stop"}], usage=USAGE)
EVENT = _event([{"index": 0, "delta": {"content": " word"}, "finish_reason": None}])
LAST_EVENTS = (
    _event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
    + _event([], usage=USAGE)
    + "data: [DONE]\n\n"
)
CODE = 'def toll(gate):\n    """Take what is owed at the gate."""\n    return gate.count("coins") * 2\n\n'
AGENTS_FROM = 2_000  # bytes: longer bodies have tools and turns, as those of agents have

SCRIPT = """
local function read(name)
  local file = assert(io.open(name)); local text = file:read("*a"); file:close(); return text
end
local opening, ending, keys = read("@FOLDER@/opening"), read("@FOLDER@/ending"), {}
for key in read("@FOLDER@/keys"):gmatch("%S+") do keys[#keys + 1] = key end
local users, traced, sent = @USERS@, @TRACED@, 0
math.randomseed(os.time())
function request()
  local caller = users > 0 and sent % users or sent
  local head = opening .. keys[caller % #keys + 1]
  if users > 0 then head = head .. string.format("\\r\\nx-tollkeeper-user: user-%05d", caller) end
  if traced then
    local some, more, last = math.random(1, 4294967295), math.random(0, 4294967295), math.random(1, 65535)
    head = head .. string.format("\\r\\ntraceparent: 00-%08x%08x%08x%08x-%08x%08x-01", some, more, last, sent,
      last, sent)
  end
  sent = sent + 1
  return head .. ending
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%d,"duration_us":%d,"p99":%d,"errors":%d}\\n',
    summary.requests, summary.duration, latency:percentile(99),
    e.connect + e.read + e.write + e.timeout + e.status))
end
"""


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who calls: the `keys` in turn, each call for the next of so many `users` (0: for none) with their key.

    Of `traced` calls each has a `traceparent` of its own. With `events` the answer is a stream.
    """

    keys: tuple[str, ...]
    users: int = 0
    traced: bool = True
    body_bytes: int = 1_000
    events: int = 0


@dataclass(frozen=True, slots=True)
class Loaded:
    """What wrk saw: answers, seconds, errors of any kind (status 400 and up included), p99 in µs."""

    requests: int
    seconds: float
    errors: int
    p99_us: float


def chat(host: str, traffic: Traffic, number: int = 0) -> tuple[bytes, bytes]:
    """Head and body of a request, the `number`th one."""
    caller = number % traffic.users if traffic.users else number
    lines = [("Host", host), ("Content-Type", "application/json")]
    if traffic.events:
        lines.append(("x-events", f"{traffic.events}"))
    lines.append(("Authorization", f"Bearer {traffic.keys[caller % len(traffic.keys)]}"))
    if traffic.users:
        lines.append(("x-tollkeeper-user", f"user-{caller:05}"))
    if traffic.traced:
        lines.append(("traceparent", f"00-{secrets.token_hex(16)}-{secrets.token_hex(8)}-01"))
    body = body_of(traffic.body_bytes, bool(traffic.events))
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines)
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


@cache
def body_of(size: int, streamed: bool = False) -> bytes:
    """A body of so many bytes: a question, or where it is large the turns of an agent with ten tools."""
    shape: dict[str, Any] = {"model": "gpt-4o-mini", "max_tokens": 64}
    if streamed:
        shape |= {"stream": True, "stream_options": {"include_usage": True}}
    turns: list[dict[str, Any]] = [{"role": "user", "content": "What does the toll keeper count, and when? "}]
    if size > AGENTS_FROM:
        path = {"type": "string", "description": "Where it is, from the root of the repository."}
        parameters = {"type": "object", "properties": {"path": path, "line": {"type": "integer"}}}
        shape["tools"] = [
            {"type": "function", "function": {"name": f"tool_{one}", "description": "Reads a part of a file.",
                                              "parameters": {**parameters, "required": ["path"]}}}
            for one in range(10)
        ]  # fmt: skip
        for turn in range(size // 4_000):
            asked = {"name": "tool_1", "arguments": json.dumps({"path": f"src/gate_{turn}.py", "line": turn})}
            call = {"id": f"call_{turn:024}", "type": "function", "function": asked}
            turns += [{"role": "assistant", "content": None, "tool_calls": [call]},
                      {"role": "tool", "tool_call_id": call["id"], "content": CODE * 30}]  # fmt: skip
    shape["messages"] = [*turns, {"role": "user", "content": ""}]
    room = size - len(json.dumps(shape, separators=(",", ":")))
    text = "What is owed at the gate? " * (room // 26 + 1)
    shape["messages"][-1]["content"] = text[:room]
    return json.dumps(shape, separators=(",", ":")).encode()


def saturate(
    port: int,
    traffic: Traffic,
    *,
    core: int,
    connections: int,
    seconds: float,
    folder: Path,
    least: int = 1,
) -> Loaded:
    """Drive one contender with wrk as fast as it answers; `BenchError` where fewer than the `least` come."""
    host, script = f"127.0.0.1:{port}", folder / "chat.lua"
    head, body = chat(host, traffic)
    opening = head[: head.index(traffic.keys[0].encode())]
    ending = f"\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    for name, content in (
        ("opening", opening),
        ("ending", ending),
        ("keys", "\n".join(traffic.keys).encode()),
    ):
        (folder / name).write_bytes(content)
    given = {
        "FOLDER": folder,
        "USERS": traffic.users,
        "TRACED": str(traffic.traced).lower(),
    }
    text = SCRIPT
    for word, value in given.items():
        text = text.replace(f"@{word}@", str(value))
    script.write_text(text, encoding="utf-8")
    done = subprocess.run(
        ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s",
         "-s", str(script), f"http://{host}{PATH}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise BenchError(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}") from None
    if found["requests"] < least:
        raise BenchError(f"nothing was answered in a window of {seconds:g} s; {found['errors']} errors")
    return Loaded(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        errors=found["errors"],
        p99_us=found["p99"],
    )


def ask(port: int, traffic: Traffic, number: int = 0) -> tuple[int, bytes]:
    """Send one request; status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as connection:
        return ask_on(connection, traffic, number)


def ask_on(connection: socket.socket, traffic: Traffic, number: int = 0) -> tuple[int, bytes]:
    """Send one request on a connection that stays; status and body of the answer."""
    port = connection.getpeername()[1]
    connection.sendall(b"".join(chat(f"127.0.0.1:{port}", traffic, number)))
    answer = HTTPResponse(connection, method="POST")
    try:
        answer.begin()
        return answer.status, answer.read()
    except HTTPException as error:
        raise BenchError(f"the answer was cut: {error!r}") from error


def pace(
    port: int, traffic: Traffic, rate: float, seconds: float, answer_s_max: float = ANSWER_S_MAX
) -> list[float]:
    """Latency of each call at a fixed rate, microseconds, whether or not earlier ones are answered.

    Calls go out on the beat over a few kept connections in turn; a late answer delays no call on
    another connection. `BenchError` on any status but 200.
    """
    total = max(1, int(rate * seconds))
    messages = [b"".join(chat(f"127.0.0.1:{port}", traffic, number)) for number in range(total)]
    poll = selectors.DefaultSelector()
    lines = [socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) for _ in range(PACED_CONNECTIONS)]
    for line in lines:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setblocking(False)
        poll.register(line, selectors.EVENT_READ)
    idle, sent_at, received = list(lines), {}, {line: bytearray() for line in lines}
    latencies: list[float] = []
    sent, starved = 0, False
    start = time.perf_counter()
    try:
        while len(latencies) < total:
            now = time.perf_counter()
            due = start + sent / rate
            if sent < total and now >= due and idle:
                line = idle.pop(0)
                # A beat missed because every connection waits counts from the beat, else from here:
                # the client's own late waking is not the contender's.
                sent_at[line], starved = (due if starved else now), False
                line.send(messages[sent])
                sent += 1
                continue
            if now > start + seconds + answer_s_max:
                raise BenchError(f"{total - len(latencies)} paced calls were never answered")
            starved = starved or (sent < total and not idle and now >= due)
            for key_, _ in poll.select(max(0.0, due - now) if sent < total and idle else answer_s_max):
                line = next(one for one in lines if one is key_.fileobj)
                received[line] += line.recv(65536)
                if _complete(received[line]):
                    latencies.append(1e6 * (time.perf_counter() - sent_at[line]))
                    if not received[line].startswith(b"HTTP/1.1 200"):
                        raise BenchError(f"a paced call got {bytes(received[line][:60])!r}")
                    received[line].clear()
                    idle.append(line)
    finally:
        poll.close()
        for line in lines:
            line.close()
    return latencies


def _complete(received: bytearray) -> bool:
    """Whether one whole answer has arrived, framed by length or by chunks."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = bytes(received[:end]).lower()
    at = head.find(b"\r\ncontent-length:")
    if at < 0:
        return received.endswith(b"0\r\n\r\n") and len(received) > end + 4
    length = int(head[at + 17 :].split(b"\r\n", 1)[0])
    return len(received) >= end + 4 + length
