"""One connection to the first of several addresses that answers: happy eyeballs (RFC 8305, 5).

A next address is tried as soon as one fails, or when it has not answered after a while; whichever is there
first is taken, and the others are dropped.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence

from gateway.http.upstream.names import place_of


async def dial(addresses: Sequence[str], port: int, delay_s: float) -> tuple[socket.socket, str]:
    """A connected socket and its address; the last attempt's OSError where none can be reached."""
    waiting = list(addresses)
    running: dict[asyncio.Task[socket.socket], str] = {}
    last = OSError("it has no address")
    try:
        while waiting or running:
            if waiting:
                address = waiting.pop(0)
                running[asyncio.create_task(_connected(address, port))] = address
            done, _ = await asyncio.wait(
                running, timeout=delay_s if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception()
                if error is None:
                    return task.result(), running.pop(task)
                del running[task]
                last = error if isinstance(error, OSError) else last
        raise last
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_drop)


async def _connected(address: str, port: int) -> socket.socket:
    family, place = place_of(address, port)
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        made.setblocking(False)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(made, place)
    except BaseException:
        made.close()
        raise
    return made


def _drop(task: asyncio.Task[socket.socket]) -> None:
    """Close what was connected too late."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
