"""What callers that mean harm take of one worker: `python -m tests.bench.hostile`.

Starts `tollkeeper up` with one worker for each attack, measures a well-behaved caller of another
organization while it is quiet and then again under the attack: latency, and the worker's memory. With
`--in-order` one worker bears all attacks, one after the other, and keeps what each leaves. With `--tree`
the gateway of another checkout is attacked, so that two can be compared. Who attacks and who means well
have upstreams of their own, so that what is measured is the gateway.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.bench.figures import percentile
from tests.bench.machine import BenchError, free_port, rss_mib, stop

MIB = 1 << 20
CHAT = b'{"model":"m","max_tokens":4,"messages":[{"role":"user","content":"hi"}]}'
STREAM = CHAT[:-1] + b',"stream":true}'
EVENT = b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * 4000)
ANSWER = (
    b'{"id":"c","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"hi"}}],'
    b'"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}'
)
ENDLESS = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
WHOLE = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b"
OPENED_AT_ONCE = 200
SETTLE_S = 2.0

Socket = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class Place:
    """Where the gateway is, and the keys of who attacks it."""

    port: int
    key: str
    blocked_key: str

    async def connect(self) -> Socket:
        """One more connection; its reader takes next to nothing."""
        return await asyncio.open_connection("127.0.0.1", self.port, limit=1024)

    def head(
        self, path: str = "/v1/chat/completions", *, length: int, key: str = "", fields: str = ""
    ) -> bytes:
        """A request's head."""
        return (
            f"POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key or self.key}\r\n"
            f"content-type: application/json\r\n{fields}content-length: {length}\r\n\r\n"
        ).encode()


Attack = Callable[[Place, int], Awaitable[Socket]]


async def slow_head(place: Place, number: int) -> Socket:
    """A head of 60 kB that never ends."""
    one = await place.connect()
    one[1].write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-%d: %b" % (number, b"x" * 60_000))
    return one


async def slow_body(place: Place, number: int) -> Socket:
    """A body of which a byte came."""
    one = await place.connect()
    one[1].write(place.head(length=1_000_000) + b"{")
    return one


async def half_body(place: Place, number: int, key: str = "") -> Socket:
    """A body of 32 MiB that lacks its last byte."""
    reader, writer = await place.connect()
    writer.write(place.head(length=32 * MIB, key=key))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            for _ in range(31):
                writer.write(b" " * MIB)
                await writer.drain()
    return reader, writer


async def blocked_body(place: Place, number: int) -> Socket:
    """The same, of a tenant that is blocked."""
    return await half_body(place, number, place.blocked_key)


async def free_upload(place: Place, number: int) -> Socket:
    """A body on a free route, of which a byte came, of a tenant that is blocked."""
    one = await place.connect()
    one[1].write(place.head("/v1/messages/count_tokens", length=1_000_000, key=place.blocked_key) + b"{")
    return one


async def non_reader(place: Place, number: int) -> Socket:
    """A stream without end that nobody reads."""
    one = await place.connect()
    one[1].transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
    one[1].write(place.head(length=len(STREAM), fields="x-endless: 1\r\n") + STREAM)
    return one


async def field_names(place: Place, number: int) -> Socket:
    """A name of a field as long as may be, with a wrong key."""
    reader, writer = await place.connect()
    name = f"x-{number}-".ljust(60_000, "x")
    writer.write(place.head(length=0, key="tk_wrong", fields=f"{name}: 1\r\n"))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await reader.read(1)
    return reader, writer


async def left_behind(place: Place, number: int) -> Socket:
    """An answer without end of a route that charges units, whose client leaves."""
    reader, writer = await place.connect()
    writer.write(place.head("/services/echo/x", length=0, fields="x-endless: 1\r\n"))
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(SETTLE_S):
            await reader.read(1)
    writer.transport.abort()
    return reader, writer


async def pipelined(place: Place, number: int) -> Socket:
    """Requests without end for what is not there, of which no answer is read."""
    one = await place.connect()
    one[1].transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
    one[1].write(b"GET /nope HTTP/1.1\r\nhost: x\r\n\r\n" * 20_000)
    return one


async def unread_document(place: Place, number: int) -> Socket:
    """A whole answer of a mebibyte that nobody reads."""
    one = await place.connect()
    one[1].transport.pause_reading()  # type: ignore[attr-defined] # a socket's transport can
    one[1].write(place.head(length=len(CHAT), fields="x-large: 1\r\n") + CHAT)
    return one


async def large_bodies(place: Place, number: int) -> Socket:
    """Bodies of 30 MiB that are JSON, one after the other."""
    return await _again(place, CHAT.replace(b'"hi"', b'"%b"' % (b"hi, " * (30 * MIB // 4))))


async def escapes(place: Place, number: int) -> Socket:
    """Bodies of 4 MB full of escapes, one after the other."""
    return await _again(place, CHAT.replace(b'"hi"', b'"%b"' % (b"\\n" * 2_000_000)))


async def lists(place: Place, number: int) -> Socket:
    """Bodies of 700 kB with a list in every three bytes, refused by a field in front, one after the other."""
    return await _again(place, CHAT[:-1] + b',"n":0,"x":[' + b"[]," * 240_000 + b"[]]}")


async def halves_again(place: Place, number: int) -> Socket:
    """Halves of bodies of 2 MB, one after the other, of a tenant that is blocked."""
    return await _again(place, b" " * MIB, place.blocked_key, 2 * MIB)


async def _again(place: Place, body: bytes, key: str = "", length: int = 0) -> Socket:
    """Send a body again and again, each on a connection of its own."""
    reader, writer = await place.connect()

    async def again() -> None:
        while not writer.is_closing():
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                answers, bodies = await place.connect()
                bodies.write(place.head(length=length or len(body), key=key) + body)
                await answers.readuntil(b"\r\n\r\n")
                bodies.transport.abort()

    _sending.add(task := asyncio.create_task(again()))
    task.add_done_callback(_sending.discard)
    return reader, writer


_sending: set[asyncio.Task[None]] = set()


async def any_of(place: Place, number: int) -> Socket:
    """A quarter of each."""
    return await (slow_head, slow_body, half_body, non_reader)[number % 4](place, number)


ATTACKS: dict[str, tuple[int, Attack]] = {
    "field names of 60 kB, a wrong key": (1024, field_names),
    "slow heads of 60 kB": (2000, slow_head),
    "slow bodies": (2000, slow_body),
    "half bodies of 32 MiB": (20, half_body),
    "the same, tenant blocked": (14, blocked_body),
    "uploads on a free route, tenant blocked": (2010, free_upload),
    "non-readers of endless streams": (500, non_reader),
    "endless answers left behind": (5, left_behind),
    "requests in a row, no answer read": (500, pipelined),
    "answers of 1 MiB that nobody reads": (500, unread_document),
    "bodies of 30 MiB at the same time": (16, large_bodies),
    "bodies of 4 MB of escapes": (4, escapes),
    "bodies of 700 kB of lists": (4, lists),
    "half bodies again and again, tenant blocked": (8, halves_again),
    "heads, bodies, half bodies, non-readers": (2000, any_of),
}


def main() -> int:
    """Attack, and print what it took."""
    parser = argparse.ArgumentParser(prog="hostile", description=__doc__)
    parser.add_argument(
        "--tree", type=Path, default=Path.cwd(), help="the checkout whose gateway is attacked"
    )
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--only", default="", help="attacks whose name has this in it")
    parser.add_argument("--in-order", action="store_true", help="one worker bears all attacks")
    options = parser.parse_args()
    names = [name for name in ATTACKS if options.only in name]
    print(HEADER)
    for some in [names] if options.in_order else [[name] for name in names]:
        try:
            _measure(options, some)
        except BenchError as error:
            print(f"hostile: {error}", file=sys.stderr)
            return 1
    return 0


def _measure(options: argparse.Namespace, names: list[str]) -> None:
    """Let one worker bear these attacks."""
    with tempfile.TemporaryDirectory(prefix="tollkeeper-hostile-") as folder:
        programs: list[subprocess.Popen[bytes]] = []
        try:
            facts = _start(options, Path(folder), programs)
            asyncio.run(_run(options, names, facts))
        finally:
            for program in reversed(programs):
                stop(program)


def _start(
    options: argparse.Namespace, folder: Path, programs: list[subprocess.Popen[bytes]]
) -> dict[str, Any]:
    """Start two upstreams and what is attacked; what that says of itself."""
    ports = {"openai": free_port(), "anthropic": free_port()}
    programs += [subprocess.Popen([sys.executable, "-c", UPSTREAM, str(port)]) for port in ports.values()]
    config = {
        "upstreams": {name: {"base_url": f"http://127.0.0.1:{port}"} for name, port in ports.items()},
        "services": {"echo": {"upstream": "openai"}},
    }
    (folder / "bench.yaml").write_text(json.dumps(config))
    up = subprocess.Popen(
        [options.python, "-P", "-m", "gateway", "up", "--json", "--gateway-port", "0",
         "--admin-port", "0", "--workers", "1", "--config", str(folder / "bench.yaml"),
         "--data-dir", str(folder / "data")],
        cwd=options.tree, env={**os.environ, "PYTHONPATH": str(options.tree)}, stdout=subprocess.PIPE,
        stderr=(folder / "up.err").open("wb"), start_new_session=True,
    )  # fmt: skip
    programs.append(up)
    assert up.stdout is not None
    line = up.stdout.readline()
    if not line:
        raise BenchError((folder / "up.err").read_text(errors="replace")[-500:])
    facts: dict[str, Any] = json.loads(line)
    return facts


async def _run(options: argparse.Namespace, names: list[str], facts: dict[str, Any]) -> None:
    (_, good), (_, bad), (blocked, blocked_key) = (_key(facts, name) for name in ("good", "bad", "blocked"))
    _admin(facts, "PATCH", f"/tenants/{blocked}", {"limits": {"concurrency": 1, "requests_per_minute": 1}})
    _admin(facts, "POST", f"/tenants/{blocked}/block", {})
    port = urlsplit(facts["gateway_url"]).port or 80
    scene = Scene(Place(port, bad, blocked_key), facts["pids"]["gateway"][-1], good, options.seconds)
    await asyncio.sleep(SETTLE_S)
    scene.quiet = await _good_caller(scene)
    print(_row(scene, "quiet", 0, scene.quiet, (rss_mib(scene.worker),) * 3), flush=True)
    for name in names:
        print(await _attack(scene, name), flush=True)


@dataclass(slots=True)
class Scene:
    """Who is attacked, and who calls meanwhile; `quiet` is how long its calls take else, in seconds."""

    place: Place
    worker: int
    key: str
    seconds: float
    quiet: list[float] = field(default_factory=list)


async def _attack(scene: Scene, name: str) -> str:
    count, attack = ATTACKS[name]
    before, peak, over = rss_mib(scene.worker), 0.0, False

    async def watch() -> None:
        nonlocal peak
        while not over:
            peak = max(peak, rss_mib(scene.worker))
            await asyncio.sleep(0.1)

    watching = asyncio.create_task(watch())
    opened: list[Socket] = []
    for start in range(0, count, OPENED_AT_ONCE):
        numbers = range(start, min(count, start + OPENED_AT_ONCE))
        found = await asyncio.gather(*(attack(scene.place, one) for one in numbers), return_exceptions=True)
        opened += [one for one in found if not isinstance(one, BaseException)]
    await asyncio.sleep(SETTLE_S)
    times = await _good_caller(scene)
    over = True
    await watching
    for _, writer in opened:
        writer.transport.abort()
    await asyncio.sleep(SETTLE_S)
    return _row(scene, name, count, times, (before, peak, rss_mib(scene.worker)))


HEADER = (
    "| Attack | Sockets | Memory before, MiB | at its peak | left | KiB a socket | p50, ms | p99, ms "
    "| to quiet | not served |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def _row(scene: Scene, name: str, count: int, times: list[float], memory: tuple[float, float, float]) -> str:
    good = sorted(one for one in times if one >= 0)
    missed = f"{len(times) - len(good)} of {len(times)}"
    before, peak, left = memory
    each = f"{1024 * (peak - before) / count:.1f}" if count else ""
    start = f"| {name} | {count} | {before:.0f} | {peak:.0f} | {left:.0f} | {each} |"
    if not good:
        return f"{start} | | | {missed} |"
    p50, p99 = percentile(good, 0.5), percentile(good, 0.99)
    ratio = p99 / percentile(sorted(one for one in scene.quiet if one >= 0), 0.99)
    return f"{start} {1000 * p50:.1f} | {1000 * p99:.1f} | {ratio:.1f} × | {missed} |"


async def _good_caller(scene: Scene) -> list[float]:
    """Seconds of each call of a caller that means well, -1 for one that failed."""
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        CALLER,
        str(scene.place.port),
        scene.key,
        str(scene.seconds),
        stdout=subprocess.PIPE,
    )
    out, _ = await program.communicate()
    found: list[float] = json.loads(out)
    return found


def _key(facts: dict[str, Any], name: str) -> tuple[str, str]:
    """A tenant of an organization of its own, and its key."""
    plan = _admin(
        facts, "POST", "/token-plans", {"name": name, "total_amount": 10**12, "reset_interval": "none"}
    )
    tenant = _admin(facts, "POST", "/tenants", {"name": name, "plan_id": plan["id"]})
    return tenant["id"], _admin(facts, "POST", "/api-keys", {"tenant_id": tenant["id"]})["key"]


def _admin(facts: dict[str, Any], method: str, path: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(
        f"{facts['admin_url']}/admin/v1{path}", data=json.dumps(body).encode(), method=method,
        headers={"Authorization": f"Bearer {facts['admin_token']}", "Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=20) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


UPSTREAM = f"""
import asyncio, sys
answer = {ANSWER!r}
large = answer.replace(b'"hi"', b'"%b"' % (b"x" * {MIB}))
async def serve(reader, writer):
    try:
        while True:
            head = await reader.readuntil(b"\\r\\n\\r\\n")
            for line in head.lower().split(b"\\r\\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line[15:]))
            if b"x-large" in head.lower():
                writer.write({WHOLE!r} % (len(large), large))
                continue
            if b"x-endless" in head.lower():
                writer.write({ENDLESS!r})
                event = {EVENT!r}
                while True:
                    writer.write((b"%x\\r\\n" % len(event) + event + b"\\r\\n") * 16)
                    await writer.drain()
                    await asyncio.sleep(0.01)
            writer.write({WHOLE!r} % (len(answer), answer))
    except (OSError, asyncio.IncompleteReadError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]), backlog=4096)
    await server.serve_forever()
asyncio.run(main())
"""

CALLER = f"""
import http.client, json, sys, time
port, key, until = int(sys.argv[1]), sys.argv[2], time.monotonic() + float(sys.argv[3])
times, connection = [], None
fields = {{"authorization": "Bearer " + key, "content-type": "application/json"}}
while time.monotonic() < until:
    began = time.perf_counter()
    try:
        connection = connection or http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("POST", "/v1/messages", {CHAT!r}, fields)
        answer = connection.getresponse()
        answer.read()
        times.append(time.perf_counter() - began if answer.status == 200 else -1)
    except (OSError, http.client.HTTPException):
        times.append(-1)
        connection = None
    time.sleep(0.002)
print(json.dumps(times))
"""

if __name__ == "__main__":
    sys.exit(main())
