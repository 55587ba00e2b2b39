"""Clients that leave in the middle of what they send, and what an upstream got of it, as h11 reads it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable

import h11

from tests.http.stage import Stage
from tests.waiting import eventually

SENT = b"0123456789"
CHUNKED = b"transfer-encoding: chunked\r\n\r\n"
BODIES = {
    "length": (b"content-length: 10\r\n\r\n", SENT),
    "large": (b"content-length: 300000\r\n\r\n", SENT),
    "chunks": (CHUNKED, b"4\r\n0123\r\n6\r\n456789\r\n0\r\n\r\n"),
    "trailers": (CHUNKED, b"a;e=1\r\n0123456789\r\n0\r\ntrailer: x\r\n\r\n"),
    "continue": (b"expect: 100-continue\r\ncontent-length: 10\r\n\r\n", SENT),
}
NEVER_RELEASED = 60.0


def is_told(kind: str, part: bytes) -> bool:
    """Whether an upstream hears of a body of which this part came, where none is collected.

    A chunked body of nothing is not over the bound of nothing.
    """
    return kind not in ("chunks", "trailers") or b"\n0" in part


async def leave(
    stage: Stage,
    sent: bytes,
    heads: Callable[[], int],
    gone: Callable[[], Awaitable[None]],
    *,
    told: bool,
    abrupt: bool,
) -> None:
    """Send the beginning of a request and go; `told` where an upstream hears of it, as `heads` counts.

    `gone` lets upstreams answer that wait for the client to be gone.
    """
    before, connections = heads(), stage.connections
    client = await stage.client()
    await client.send(sent)
    await eventually(lambda: heads() > before if told else stage.plane.calls)
    client.reset() if abrupt else client.close()
    await eventually(lambda: stage.connections == connections)
    await gone()
    await eventually(lambda: stage.plane.calls == 0)


def requests_of(wires: Iterable[bytes | bytearray]) -> list[tuple[bytes, bytes, bool]]:
    """Target and body of each request on these connections, and whether it is whole."""
    return [request for wire in wires for request in _requests(bytes(wire))]


def _requests(wire: bytes) -> list[tuple[bytes, bytes, bool]]:
    found: list[tuple[bytes, bytes, bool]] = []
    while wire:
        oracle = h11.Connection(h11.SERVER)
        oracle.receive_data(wire)
        target, body, whole = b"", b"", False
        while not whole and (event := oracle.next_event()) is not h11.NEED_DATA:
            if isinstance(event, h11.Request):
                target = event.target
            elif isinstance(event, h11.Data):
                body += event.data
            else:
                whole = True
        found.append((target, body, whole))
        wire = oracle.trailing_data[0] if whole else b""
    return found
