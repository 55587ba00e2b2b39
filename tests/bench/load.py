"""The bench's two clients: wrk for all it can take, and a paced one for latency at a low rate.

Both send the same bytes: one chat request of 1,200 bytes, answered by about 600.
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.machine import BenchError

REQUEST_BYTES = 1200
PATH = "/v1/chat/completions"
PACED_CONNECTIONS = 8
ANSWER_S_MAX = 10.0
ANSWER = json.dumps(
    {
        "id": "chatcmpl-bench0000000000000000000000",
        "object": "chat.completion",
        "created": 1760000000,
        "model": "gpt-4o-mini",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Tolls are paid at the gate, once. " * 6},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 240, "completion_tokens": 60, "total_tokens": 300},
    },
    separators=(",", ":"),
)

SCRIPT = """
local file = assert(io.open("@BODY@")); local body = file:read("*a"); file:close()
wrk.method, wrk.path, wrk.body = "POST", "@PATH@", body
@HEADERS@
function done(summary, latency)
  local e = summary.errors
  io.write(string.format('\\n{"requests":%d,"duration_us":%d,"p50":%d,"p99":%d,"errors":%d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.connect + e.read + e.write + e.timeout + e.status))
end
"""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What wrk saw: answers, seconds, errors of any kind (status 400 and up included), latency in µs."""

    requests: int
    seconds: float
    errors: int
    p50_us: float
    p99_us: float
    client_cpu_s: float


def fields(host: str, key: str, user: str = "") -> list[tuple[str, str]]:
    """Header fields of the request, without its length."""
    found = [("Host", host), ("Content-Type", "application/json"), ("Authorization", f"Bearer {key}")]
    return [*found, ("x-tollkeeper-user", user)] if user else found


def chat(host: str, key: str, user: str = "") -> tuple[bytes, bytes]:
    """Head and body of the one request; together `REQUEST_BYTES` long."""
    head = f"POST {PATH} HTTP/1.1\r\n" + "".join(f"{n}: {v}\r\n" for n, v in fields(host, key, user))
    room = REQUEST_BYTES - len(f"{head}Content-Length: 999\r\n\r\n")
    room -= room > 999
    shape = {"model": "gpt-4o-mini", "max_tokens": 64, "messages": [{"role": "user", "content": ""}]}
    empty = len(json.dumps(shape, separators=(",", ":")))
    text = ("What does the toll keeper count, and when? " * 40)[: room - empty]
    shape["messages"] = [{"role": "user", "content": text}]
    body = json.dumps(shape, separators=(",", ":")).encode()
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode(), body


def saturate(
    port: int, key: str, user: str, *, core: int, connections: int, seconds: float, folder: Path
) -> Loaded:
    """Drive one contender with wrk as fast as it answers."""
    host = f"127.0.0.1:{port}"
    body, script = folder / "body.json", folder / "chat.lua"
    body.write_bytes(chat(host, key, user)[1])
    headers = "\n".join(f'wrk.headers["{n}"] = "{v}"' for n, v in fields(host, key, user))
    text = SCRIPT.replace("@BODY@", str(body)).replace("@PATH@", PATH).replace("@HEADERS@", headers)
    script.write_text(text, encoding="utf-8")
    before = os.times()
    done = subprocess.run(
        ["taskset", "-c", str(core), "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s",
         "-s", str(script), f"http://{host}{PATH}"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = os.times()
    try:
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        raise BenchError(f"wrk failed: {(done.stderr or done.stdout).strip()[-300:]}") from None
    return Loaded(
        requests=found["requests"],
        seconds=found["duration_us"] / 1e6,
        errors=found["errors"],
        p50_us=found["p50"],
        p99_us=found["p99"],
        client_cpu_s=(after.children_user + after.children_system)
        - (before.children_user + before.children_system),
    )


def ask(port: int, key: str, user: str = "") -> tuple[int, bytes]:
    """Send the request once; status and body of the answer."""
    with socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) as connection:
        connection.sendall(b"".join(chat(f"127.0.0.1:{port}", key, user)))
        received = bytearray()
        while not (end := _complete(received)):
            piece = connection.recv(65536)
            if not piece:
                break
            received += piece
    if not end:
        raise BenchError("the answer was cut")
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def pace(port: int, key: str, user: str, rate: float, seconds: float) -> list[float]:
    """Latency of each call at a fixed rate, microseconds, whether or not earlier ones are answered.

    Calls go out on the beat over a few kept connections in turn; a late answer delays no call on
    another connection. `BenchError` on any status but 200.
    """
    message = b"".join(chat(f"127.0.0.1:{port}", key, user))
    poll = selectors.DefaultSelector()
    lines = [socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX) for _ in range(PACED_CONNECTIONS)]
    for line in lines:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        line.setblocking(False)
        poll.register(line, selectors.EVENT_READ)
    idle, sent_at, received = list(lines), {}, {line: bytearray() for line in lines}
    latencies: list[float] = []
    total, sent, starved = int(rate * seconds), 0, False
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
                line.send(message)
                sent += 1
                continue
            if now > start + seconds + ANSWER_S_MAX:
                raise BenchError(f"{total - len(latencies)} paced calls were never answered")
            starved = starved or (sent < total and not idle and now >= due)
            for key_, _ in poll.select(max(0.0, due - now) if sent < total and idle else ANSWER_S_MAX):
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
