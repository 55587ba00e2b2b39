"""What a request took is given back when it ends: nothing of it waits for the garbage collector.

The collector comes after tens of thousands of objects; what waits for it are whole bodies and heads.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Iterator
from types import FrameType
from typing import Any

import pytest

from gateway.http.routing.head import CallHead, ParsedHead, RoutedHead
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import Exchange
from gateway.http.upstream.pool import Link
from tests.http.fakes import (
    AUTH,
    CHAT,
    CHAT_STREAM,
    DONE_EVENT,
    EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    chunks,
    get,
    post,
)  # fmt: skip
from tests.http.stage import Close, Stage, Step, staged
from tests.waiting import eventually

OURS = (ClientConnection, Exchange, Link, CallHead, ParsedHead, RoutedHead)
STREAM = STREAM_HEAD + chunks(EVENT, end=False)
REST = chunks(EVENT, USAGE_EVENT, DONE_EVENT)

ENDS: dict[str, tuple[bytes, list[Step]]] = {
    "an answer": (post(CHAT), []),
    "a stream": (post(CHAT_STREAM), [STREAM, 0.01, REST]),
    "no such route": (get(b"/nope"), []),
    "no key": (post(CHAT).replace(AUTH, b""), []),
    "no JSON": (post(b"{" + b" " * 1000), []),
    "too large": (post(b"x" * 70_000), []),
    "no HTTP": (b"GET / HTTP/1.1\r\nhost\r\n\r\n", []),
    "no answer": (post(CHAT), [Close()]),
    "an answer that breaks off": (post(CHAT_STREAM), [STREAM, 0.01, Close()]),
}


@pytest.mark.parametrize("end", ENDS)
async def test_nothing_of_a_request_waits_for_the_collector(end: str) -> None:
    request, script = ENDS[end]
    async with staged(body_bytes_max=65_536) as stage:
        with uncollected() as garbage:
            if script:
                stage.upstream.scripts.append(script)
            client = await stage.client()
            await client.ask(request)
            client.close()
            await over(stage)
        assert not garbage


@pytest.mark.parametrize("sent", [post(CHAT), post(CHAT)[:-1], post(CHAT)[:20]])
async def test_nothing_of_a_client_that_left_waits_for_the_collector(sent: bytes) -> None:
    async with staged() as stage:
        gate = asyncio.Event()
        stage.upstream.scripts.append([gate, Close()])
        with uncollected() as garbage:
            client = await stage.client()
            await client.send(sent)
            await eventually(lambda: stage.upstream.received or sent != post(CHAT))
            client.reset()
            gate.set()
            await over(stage)
        assert not garbage


async def over(stage: Stage) -> None:
    """Wait until the worker has neither clients nor calls."""
    await eventually(lambda: not stage.connections and not stage.plane.calls)
    await asyncio.sleep(0)


def is_ours(one: object) -> bool:
    return isinstance(one, OURS) or (isinstance(one, FrameType) and "gateway" in one.f_code.co_filename)


@contextlib.contextmanager
def uncollected() -> Iterator[list[Any]]:
    """What of ours only the collector could free of all that happens here."""
    found: list[Any] = []
    gc.collect()
    gc.disable()
    try:
        yield found
        gc.set_debug(gc.DEBUG_SAVEALL)
        gc.collect()
        found += [type(one).__name__ for one in gc.garbage if is_ours(one)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
