"""Commands that a server of a cluster did not take, on their way to the one that does, within their time.

None of them was executed, so each may be sent again. What was MOVED waits until its server has said what it
is now: only a primary gives slots away. A server that was replaced says MOVED too, and whoever replaced it
may lack what was acknowledged before. So nothing goes on to it that was meant for another, nor to anybody who
was not there before the slot moved.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

from gateway.core.wait import Wait
from gateway.counters.redis.calls import Each, Hop, Reply
from gateway.counters.redis.slots import Place, read_redirection
from gateway.counters.redis.wire import Asked, Wire
from gateway.errors import CountersUnavailable

# From one server to the next; TRYAGAIN, which time alone bounds, is none.
HOPS_MAX = 8
PAUSE_S = 0.02
# Commands on their way at once.
UNDER_WAY_MAX = 20_000


class Redirects:
    """Of one cluster. `place_of` says where a wire leads, `at` is the wire of a place. `gave_away` asks the
    server of a wire whether it is a primary still. A command has `call_s` seconds in all.
    """

    def __init__(
        self,
        call_s: float,
        *,
        place_of: Callable[[Wire], Place],
        at: Callable[[Place], Wire],
        gave_away: Callable[[Wire], Awaitable[bool]],
    ) -> None:
        self._call_s, self._place_of, self._at, self._gave_away = call_s, place_of, at, gave_away
        self._loop = asyncio.get_running_loop()
        self._under_way = 0
        # What was moved away from a wire's place, and who finds out what that means.
        self._moved: dict[Wire, list[Callable[[bool], None]]] = {}
        self._asking: dict[Wire, asyncio.Task[None]] = {}

    def take(self, source: Wire, asked: Asked, message: str) -> bool:
        """Have a command go on that was answered with an error; False where that is another error."""
        wait, command, calls, waited_s = asked
        to = read_redirection(message, self._place_of(source))
        if to is None or not command or self._under_way >= UNDER_WAY_MAX:
            return False
        hop = wait if isinstance(wait, Hop) else self._begin(wait, waited_s)
        if to.word == "TRYAGAIN":
            self._loop.call_later(PAUSE_S, self._send, source, hop, command, calls, False)
            return True
        hop.hops += 1
        if hop.hops > HOPS_MAX:
            hop.fail(CountersUnavailable("a key has no place: servers name one another"))
        elif to.word == "ASK":
            self._send(self._at(to.place), hop, command, calls, True)
        else:
            there = self._at(to.place)
            known = there if there.connected else None
            self._wait_for_word(source, partial(self._moved_on, known, hop, command, calls))
        return True

    def close(self) -> None:
        """Ask nobody any more."""
        for task in self._asking.values():
            task.cancel()

    def _begin(self, wait: Wait[Reply] | Each, waited_s: float) -> Hop:
        self._under_way += 1
        hop = Hop(wait, self._ended)
        hop.timer = self._loop.call_later(max(0.0, self._call_s - waited_s), hop.is_late)
        return hop

    def _ended(self) -> None:
        self._under_way -= 1

    def _wait_for_word(self, source: Wire, go_on: Callable[[bool], None]) -> None:
        self._moved.setdefault(source, []).append(go_on)
        if source not in self._asking:
            self._asking[source] = self._loop.create_task(self._find_out(source))

    async def _find_out(self, source: Wire) -> None:
        """Have everything go on that was moved until its server answers; what comes later asks again."""
        given = False
        try:
            with suppress(CountersUnavailable):
                given = await self._gave_away(source)
        finally:
            del self._asking[source]
            for go_on in self._moved.pop(source):
                go_on(given)

    def _send(self, wire: Wire, hop: Hop, command: bytes, calls: int, asking: bool) -> None:
        """Send it now, or as soon as there is a connection; nobody waits beyond its time."""
        if hop.done or wire.take_over(hop, command, calls, asking=asking):
            return
        self._loop.call_later(PAUSE_S, self._send, wire, hop, command, calls, asking)

    def _moved_on(self, to: Wire | None, hop: Hop, command: bytes, calls: int, given: bool) -> None:
        if given and to is not None:
            self._send(to, hop, command, calls, False)
        else:
            hop.fail(CountersUnavailable("a key moved to a server that has to be verified first"))
