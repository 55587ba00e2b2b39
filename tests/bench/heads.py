"""What reading a call's head takes of a gateway's CPU: `python -m tests.bench.heads`.

A head as OpenAI's library sends it, read as the data plane reads it, up to the head its upstream is sent: the
same one each time; with another trace each time; with one of many users and a count of retries beside that;
and one that repeats in nothing. Rounds of all are interleaved. With a compiled tree in front of PYTHONPATH
(`make compile`) it measures that one; it says which it was.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

from gateway.core.calls.routes import ServiceRules, UpstreamTarget
from gateway.core.http_limits import HttpLimits
from gateway.http.protocol.request import ClientSide
from gateway.http.routing import head as reading
from gateway.http.routing.head import HeadReader, HeadRouter
from gateway.http.routing.routes import WorkerBindings
from gateway.settings.config_file import DEFAULT_ROUTES
from tests.http.fakes import FakeDirectory

ROUNDS = 15
HEADS = 4_000
USERS = 2_000
RETRIES = 4
HEAD = (
    "POST /v1/chat/completions HTTP/1.1\r\nHost: gateway.example.com\r\nAccept: application/json\r\n"
    "Accept-Encoding: gzip, deflate\r\nConnection: keep-alive\r\nContent-Type: application/json\r\n"
    "User-Agent: OpenAI/Python 1.99.1\r\nX-Stainless-Lang: python\r\nX-Stainless-Package-Version: 1.99.1\r\n"
    "X-Stainless-OS: Linux\r\nX-Stainless-Arch: x64\r\nX-Stainless-Runtime: CPython\r\n"
    "X-Stainless-Runtime-Version: 3.11.7\r\nAuthorization: Bearer tk_0123456789abcdef0123456789abcdef\r\n"
    "X-Stainless-Async: async:asyncio\r\nx-stainless-read-timeout: 600\r\n{}Content-Length: 1024\r\n\r\n"
)
_draw = random.Random(1)


def main() -> None:
    """Measure and print."""
    read = reader()
    kinds = {
        "the same head each time": lambda n: "x-stainless-retry-count: 0\r\n",
        "another traceparent each time": lambda n: f"x-stainless-retry-count: 0\r\n{trace()}",
        f"the same, one of {USERS:,} users and a count of retries": lambda n: (
            f"x-stainless-retry-count: {n % RETRIES}\r\nx-tollkeeper-user: user-{n % USERS}\r\n{trace()}"
        ),
        "a line nobody knows, another each time": lambda n: f"x-made-up: {_draw.getrandbits(64):x}\r\n",
        "nothing that repeats": lambda n: f"x-goog-made-up: {_draw.getrandbits(64):x}\r\n{trace()}",
    }
    took = measure(read, kinds)
    kind = "interpreted" if str(reading.__file__).endswith(".py") else "compiled"
    print(f"{kind}, {ROUNDS} interleaved rounds of {HEADS:,} heads of 17 fields and more")
    least = min(took["the same head each time"])
    for what, each in took.items():
        print(f"{what}: {statistics.median(each):.2f} µs (best {min(each):.2f}, {min(each) - least:+.2f})")


def trace() -> str:
    """A line by which a client says which trace a call is part of."""
    return f"traceparent: 00-{_draw.getrandbits(128):032x}-{_draw.getrandbits(64):016x}-01\r\n"


def reader() -> Callable[[bytes], bytes]:
    """Reads one head as the data plane does, whose credential is good; the head its upstream is sent."""
    limits = HttpLimits()
    targets = {
        route.upstream: UpstreamTarget(
            route.upstream, "https://api.example.com", (("authorization", "Bearer x"),)
        )
        for route in DEFAULT_ROUTES
    }
    bindings = WorkerBindings(
        DEFAULT_ROUTES, targets, ServiceRules(), FakeDirectory(), lambda event, **facts: None
    )
    heads = HeadReader(HeadRouter(DEFAULT_ROUTES, targets, bindings, limits), b"p" * 32, limits)

    def read(data: bytes) -> bytes:
        side = ClientSide(limits)
        side.receive(data)
        cut = side.head()
        assert cut is not None
        call = heads.read_cut(cut)
        if call.news is not None:
            heads.remember(call)
        return b"".join((call.routed.opening, call.passed, call.routed.closing))

    return read


def measure(read: Callable[[bytes], bytes], kinds: dict[str, Callable[[int], str]]) -> dict[str, list[float]]:
    """Microseconds of CPU a head, kind by kind and round by round."""
    found: dict[str, list[float]] = {what: [] for what in kinds}
    for number in range(ROUNDS + 1):
        for what, varied in kinds.items():
            heads = [HEAD.format(varied(n)).encode() for n in range(HEADS)]
            began = time.process_time()
            for head in heads:
                read(head)
            if number:  # the first round fills what is remembered
                found[what].append((time.process_time() - began) * 1e6 / HEADS)
    return found


if __name__ == "__main__":
    main()
