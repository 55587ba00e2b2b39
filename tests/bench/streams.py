"""Streams: what the gateway adds to each event at 200 of them, and what one costs in memory at 10,000.

`python -m tests.bench.streams`. An upstream of our own stamps every event with the time it was
written; the client compares. Both modes are measured in one run, directly and through one worker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import uvloop

from tests.bench.figures import percentile
from tests.bench.machine import Placement, family, pin, prefer, rss_mib
from tests.bench.page import PAGE, publish
from tests.journey.stack import Stack

FILES_MAX = 65_536
FILES_RESERVED = 500
OPENING_S_MAX = 120.0
OPENING_AT_ONCE = 250
SETTLE_S = 2.0
STAMP = re.compile(rb'"t":(\d+)')
EVENT = (
    'data: {"id":"c","object":"chat.completion.chunk",'
    '"choices":[{"index":0,"delta":{"content":" word"}}],"t":%d}\n\n'
)
MESSAGES = [{"role": "user", "content": "Count. " * 100}]
BODY = json.dumps({"model": "gpt-4o-mini", "stream": True, "messages": MESSAGES})
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True)
class Delays:
    """Milliseconds from an event's writing to its reading."""

    p50: float
    p99: float
    events: int

    @classmethod
    def of(cls, found: list[int]) -> Delays:
        """From nanoseconds."""
        values = [each / 1e6 for each in found]
        return cls(percentile(values, 0.5), percentile(values, 0.99), len(values))


class Upstream(asyncio.Protocol):
    """Answer any request with a stream of stamped events, one every `interval_s`, without end."""

    interval_s = 0.05

    def __init__(self) -> None:
        self.transport: Any = None
        self.timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        found = re.search(rb"x-interval-ms: (\d+)", data)
        if found:
            self.interval_s = int(found[1]) / 1000
        if self.timer is None:
            self.transport.write(HEAD)
            self.say()

    def say(self) -> None:
        event = (EVENT % time.perf_counter_ns()).encode()
        self.transport.write(b"%x\r\n%b\r\n" % (len(event), event))
        self.timer = asyncio.get_running_loop().call_later(self.interval_s, self.say)

    def connection_lost(self, error: Exception | None) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Reader(asyncio.Protocol):
    """One stream's client: counts events, and keeps their delays while `crowd.measuring`."""

    def __init__(self, crowd: Crowd) -> None:
        self.crowd = crowd
        self.transport: Any = None
        self.answered = False
        self.events = 0

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(self.crowd.request)

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter_ns()
        if not self.answered and not data.startswith(b"HTTP/1.1 200"):
            sys.exit(f"a stream was answered {data[:200]!r}")
        self.answered = True
        for stamp in STAMP.findall(data):
            self.events += 1
            if self.crowd.measuring:
                self.crowd.delays.append(now - int(stamp))


class Crowd:
    """Many streams at once, all to one port."""

    def __init__(self, port: int, key: str, interval_s: float) -> None:
        self.port = port
        self.request = (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nauthorization: Bearer {key}\r\n"
            f"content-type: application/json\r\nx-interval-ms: {interval_s * 1000:.0f}\r\n"
            f"content-length: {len(BODY)}\r\n\r\n{BODY}"
        ).encode()
        self.readers: list[Reader] = []
        self.delays: list[int] = []
        self.measuring = False

    async def open(self, count: int, over_s: float) -> None:
        """Open streams spread over time, so that their events are spread as well."""
        loop = asyncio.get_running_loop()
        for start in range(0, count, OPENING_AT_ONCE):
            size = min(OPENING_AT_ONCE, count - start)
            made = [loop.create_connection(lambda: Reader(self), "127.0.0.1", self.port) for _ in range(size)]
            for opening in made:
                self.readers.append((await opening)[1])
                await asyncio.sleep(over_s / count)
        deadline = time.monotonic() + OPENING_S_MAX
        while silent := sum(reader.events < 2 for reader in self.readers):
            if time.monotonic() > deadline:
                sys.exit(f"{silent} of {count} streams stay silent")
            await asyncio.sleep(0.1)

    async def measure(self, seconds: float) -> Delays:
        """Read for a while and keep every delay."""
        await asyncio.sleep(SETTLE_S)
        self.measuring = True
        await asyncio.sleep(seconds)
        self.measuring = False
        return Delays.of(self.delays)

    async def close(self) -> None:
        """Hang up."""
        for reader in self.readers:
            reader.transport.abort()
        await asyncio.sleep(SETTLE_S)


async def latency(port: int, key: str, options: argparse.Namespace) -> Delays:
    """Delays of events of `streams` streams."""
    crowd = Crowd(port, key, options.interval_ms / 1000)
    await crowd.open(options.streams, options.interval_ms / 1000 * 4)
    found = await crowd.measure(options.seconds)
    await crowd.close()
    return found


async def memory(port: int, key: str, pids: list[int], count: int) -> tuple[float, float]:
    """Resident MiB of the worker before and with `count` open streams, each of which has had events."""
    before = sum(map(rss_mib, pids))
    crowd = Crowd(port, key, 20.0)
    crowd.request = crowd.request.replace(b"x-interval-ms: 20000", b"x-interval-ms: 8000")
    await crowd.open(count, count / 1500)
    after = sum(map(rss_mib, pids))
    await crowd.close()
    return before, after


def report(rounds: list[tuple[Delays, Delays]], before: float, after: float, count: int) -> str:
    """The figures as Markdown: medians over the rounds, of differences and ratios within a round."""

    def middle(of: Callable[[Delays, Delays], float]) -> str:
        return f"{median(of(direct, through) for direct, through in rounds):.2f}"

    events = sum(through.events for _, through in rounds)
    return "\n".join(
        (
            f"| {events} events, {len(rounds)} rounds | p50 | p99 |",
            "|---|---:|---:|",
            f"| direct | {middle(lambda d, _: d.p50)} ms | {middle(lambda d, _: d.p99)} ms |",
            f"| through one worker | {middle(lambda _, t: t.p50)} ms | {middle(lambda _, t: t.p99)} ms |",
            f"| added | {middle(lambda d, t: t.p50 - d.p50)} ms | {middle(lambda d, t: t.p99 - d.p99)} ms |",
            f"| ratio | {middle(lambda d, t: t.p50 / d.p50)} × | {middle(lambda d, t: t.p99 / d.p99)} × |",
            "",
            f"Worker: {before:.1f} MiB before, {after:.1f} MiB with {count} open streams:",
            f"{(after - before) * 1024 / count:.1f} KiB each.",
        )
    )


async def serve(port_file: Path) -> None:
    """Be the upstream until killed."""
    server = await asyncio.get_running_loop().create_server(Upstream, "127.0.0.1", 0, backlog=4096)
    port_file.write_text(str(server.sockets[0].getsockname()[1]))
    await server.serve_forever()


def main() -> None:
    """Measure and print."""
    options = _options()
    _raise_files()
    if options.serve:
        uvloop.run(serve(Path(options.serve)))
        return
    placement = Placement.of_this_machine()
    with tempfile.TemporaryDirectory(prefix="tollkeeper-streams-") as folder:
        port_file = Path(folder) / "port"
        upstream = subprocess.Popen([sys.executable, "-m", "tests.bench.streams", "--serve", str(port_file)])
        stack = None
        try:
            while not port_file.exists() or not port_file.read_text():
                time.sleep(0.05)
            port = int(port_file.read_text())
            stack = Stack(
                Path(folder) / "data", "--upstream", f"http://127.0.0.1:{port}",
                TOLLKEEPER_UPSTREAM_CONNECTIONS_MAX="20000",
                TOLLKEEPER_DRAIN_S="0.5",  # the streams never end by themselves
            )  # fmt: skip
            pids = [one for pid in stack.pids["gateway"] for one in family(pid)]
            pin(pids, placement.gateway)
            os.sched_setaffinity(0, {placement.client})
            pin([upstream.pid], placement.upstream)
            scheduled = _favour([os.getpid(), upstream.pid, *pids, stack.pids["redis"]])
            options.open = min(options.open, (_files() - FILES_RESERVED) // 2)
            _, key = stack.tenant(None)
            gateway = urlsplit(stack.gateway_url).port or 80
            rounds = [
                (uvloop.run(latency(port, key, options)), uvloop.run(latency(gateway, key, options)))
                for _ in range(options.rounds)
            ]
            before, after = uvloop.run(memory(gateway, key, pids, options.open))
            found = f"{report(rounds, before, after, options.open)}\n\n{scheduled}; {placement}."
            print(found)
            if options.page:
                publish(options.page, "streams", found)
        finally:
            if stack is not None:
                stack.stop()
            upstream.kill()
            upstream.wait()


def _raise_files() -> None:
    """Allow two sockets a stream; only root may go past the hard limit."""
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    except (ValueError, OSError):
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES_MAX, hard), hard))


def _favour(pids: list[int]) -> str:
    """Put what is measured before everything else of this machine, as far as we may; say how."""
    try:
        for pid in pids:
            os.sched_setscheduler(pid, os.SCHED_FIFO, os.sched_param(10))
    except OSError:
        prefer(pids, -10)
        return "Measured among everything else this machine does"
    return "Measured programs are scheduled before everything else of this machine"


def _files() -> int:
    """Files a process may open: two for each stream in the gateway."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=200, help="streams whose events are timed")
    parser.add_argument("--interval-ms", type=float, default=50.0, help="between two events of a stream")
    parser.add_argument("--rounds", type=int, default=3, help="direct and through the gateway in turn")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--open", type=int, default=10_000, help="streams open while memory is read")
    parser.add_argument("--page", type=Path, help=f"page to publish on: {PAGE}")
    parser.add_argument("--serve", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
