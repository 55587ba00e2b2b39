"""How a data plane ends: clients are told to leave, calls have their grace, what is left is broken off.

In order, and within a time that no client can stretch: whoever is not served any more and does not read is
left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gateway.core.http_limits import HttpLimits
from gateway.errors import Overloaded
from gateway.http.clock import Clock
from gateway.http.server.connection import ClientConnection
from gateway.http.server.exchange import ClientGone, Exchange

QUIET_TIMES_MAX = 5
STOPPING = "This gateway is stopping, and its time for calls in progress is over. Send the request again."


class Stopping:
    """The end of what a worker serves: `connections`, and `orphans`, calls whose clients are gone.

    Both are the data plane's, which calls `changed` when one of them is gone.
    """

    def __init__(
        self,
        connections: set[ClientConnection],
        orphans: set[Exchange],
        clock: Clock,
        seconds: Callable[[], float],
    ) -> None:
        self._connections, self._orphans = connections, orphans
        self._clock, self._seconds = clock, seconds
        self._empty = asyncio.Event()

    def changed(self) -> None:
        """One of them is gone."""
        if not self._connections and not self._orphans:
            self._empty.set()

    async def run(self, grace_s: float, limits: HttpLimits, shut: Callable[[], None]) -> bool:
        """Let calls end within the grace, break off what is left; whether all of it is settled.

        First every answer says that its connection ends with it, until whoever is left has been idle for
        a while: a request that is on its way to a connection that is being closed would be lost. `shut`
        is called then, to accept no more. It is over `counters_s` after the grace.
        """
        began = self._seconds()
        await self._quiet(grace_s, limits)
        shut()
        for connection in list(self._connections):
            connection.shut()
        if await self._emptied(grace_s - (self._seconds() - began)):
            return True
        return await self._broken_off(limits)

    async def _quiet(self, grace_s: float, limits: HttpLimits) -> None:
        seconds, quiet_s = self._seconds, limits.quiet_s
        end = seconds() + min(QUIET_TIMES_MAX * quiet_s, grace_s / 2)
        while seconds() < end:  # it is quiet when nothing happens, so nobody tells
            now = self._clock.now
            if not any(one.exchange is None and now - one.idle_since < quiet_s for one in self._connections):
                return
            await asyncio.sleep(limits.tick_s)

    async def _broken_off(self, limits: HttpLimits) -> bool:
        """End every call here and now: its client is told in the API's own shape, where it can be.

        Who has been told has `linger_s` to take it. A call that is being admitted or charged is not
        interrupted: what is left of it is, a tick later.
        """
        now = self._seconds()
        end, told = now + limits.counters_s, set[Exchange]()
        leaves = {one: now for one in self._connections if one.exchange is None}
        while True:
            for exchange in [*self._orphans, *(one.exchange for one in self._connections)]:
                if exchange is not None and exchange not in told and not exchange.shielded:
                    told.add(exchange)
                    exchange.interrupt(
                        ClientGone() if exchange.gone else Overloaded(STOPPING, retry_after_s=1)
                    )
            now = self._seconds()
            for connection in list(self._connections):
                if (
                    connection.exchange is None
                    and leaves.setdefault(connection, now + limits.linger_s) <= now
                ):
                    connection.transport.abort()
            if await self._emptied(min(limits.tick_s, end - now)):
                return True
            if self._seconds() >= end:
                break
        for connection in list(self._connections):
            connection.transport.abort()
        return False

    async def _emptied(self, within_s: float) -> bool:
        """Whether every connection and every call without a client is over in time."""
        if self._connections or self._orphans:
            self._empty.clear()
            try:
                await asyncio.wait_for(self._empty.wait(), max(0.0, within_s))
            except TimeoutError:
                return False
        return True
