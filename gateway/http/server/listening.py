"""Where a worker accepts clients: at its own sockets, and at those of workers that let clients wait.

A worker that is dead, hangs or is busy accepts nobody. The supervisor holds its socket, so clients wait
there; the other workers take them after a moment.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

BACKLOG = 4_096
# A client that its own worker has not accepted by then is another's.
WAITS_S_MAX = 0.05
# So many are taken at once, then the loop turns.
TAKEN_MAX = 64

Made = Callable[[], Any]


class Listening:
    """The sockets of a worker, until it closes them."""

    def __init__(self, servers: Sequence[asyncio.Server], others: Sequence[Waiting]) -> None:
        self._servers, self._others = servers, others

    @property
    def sockets(self) -> list[socket.socket]:
        """Those of its own."""
        return [one for server in self._servers for one in server.sockets]

    def close(self) -> None:
        """Accept no more."""
        for server in self._servers:
            server.close()
        for other in self._others:
            other.close()


async def listen(made: Made, own: Sequence[socket.socket], others: Sequence[socket.socket] = ()) -> Listening:
    """Accept clients by `made`: at its `own` sockets alone, at `others` where their worker does not."""
    loop = asyncio.get_running_loop()
    servers = [await loop.create_server(made, sock=one, backlog=BACKLOG) for one in own]
    return Listening(servers, [Waiting(one, made, loop) for one in others])


class Waiting:
    """Takes clients who wait at the socket of another worker. Their own one is faster where it is well."""

    def __init__(
        self, there: socket.socket, made: Made, loop: asyncio.AbstractEventLoop,
        waits_s_max: float = WAITS_S_MAX,
    ) -> None:  # fmt: skip
        self._there, self._made, self._loop, self._waits_s_max = there, made, loop, waits_s_max
        self._later: asyncio.TimerHandle | None = None
        self._taken: set[asyncio.Task[Any]] = set()
        loop.add_reader(there, self._wait)

    def close(self) -> None:
        """Take no more."""
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._there)
        self._there.close()

    def _wait(self) -> None:
        self._loop.remove_reader(self._there)
        self._later = self._loop.call_later(self._waits_s_max, self._take)

    def _take(self) -> None:
        self._later = None
        with suppress(OSError):  # nobody waits any more, or no file can be opened
            for _ in range(TAKEN_MAX):
                client, _ = self._there.accept()
                client.setblocking(False)
                task = self._loop.create_task(self._begin(client))
                self._taken.add(task)
                task.add_done_callback(self._taken.discard)
        self._loop.add_reader(self._there, self._wait)

    async def _begin(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._made, client)
        except OSError:  # gone meanwhile
            client.close()
