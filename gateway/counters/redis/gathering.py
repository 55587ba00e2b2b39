"""Which calls leave at once, and which are gathered: those that come while writes before them are unanswered.

Where Redis is busy, more come together that way, and each costs it less; where it is not, nothing waits. What
is gathered leaves with the next answer, or command of another kind, once it is as much as one command takes,
and after a short time in any case: a Redis that is far away or stands still delays a call by no more than
that. It knows nothing of connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from gateway.counters.redis.calls import ARGUMENT_BYTES_MAX, CALLS_MAX, Call

# While one write is answered, the next one lies before Redis already: it does not wait for this process.
FLIGHTS_MAX = 2
GATHER_S_MAX = 0.004


class Gathering:
    """The calls of one wire that have not left, and which of its writes are not answered.

    Commands are known by their number, of all that the wire ever asked. `leave` has the calls leave, of which
    none waits longer than `gather_s`.
    """

    __slots__ = (
        "_bytes", "_flights", "_gather_s", "_leave", "_looked_at", "_looking", "_loop", "_turn", "calls",
    )  # fmt: skip

    def __init__(
        self, loop: asyncio.AbstractEventLoop, leave: Callable[[], None], gather_s: float = GATHER_S_MAX
    ) -> None:
        self.calls: list[Call] = []
        self._loop, self._leave, self._gather_s = loop, leave, gather_s
        self._bytes = 0
        # Of each write that is not answered: its last command of calls.
        self._flights: deque[int] = deque()
        # How often calls were taken, also when somebody looked last whether they wait too long.
        self._turn = self._looked_at = 0
        self._looking: asyncio.TimerHandle | None = None

    def add(self, call: Call) -> None:
        """One call more."""
        self.calls.append(call)
        self._bytes += len(call[3])

    def is_due(self) -> bool:
        """Whether the calls leave now; if not, they will within `gather_s`."""
        if (
            len(self._flights) < FLIGHTS_MAX
            or len(self.calls) >= CALLS_MAX
            or self._bytes >= ARGUMENT_BYTES_MAX
        ):
            return True
        if self._looking is None:
            self._look_again()
        return False

    def take(self) -> list[Call]:
        """All that were gathered: they leave, or fail."""
        calls, self.calls = self.calls, []
        self._bytes = 0
        self._turn += 1
        return calls

    def left(self, last: int) -> None:
        """A write has left whose last command of calls is this one; 0 where it had none."""
        if last:
            self._flights.append(last)

    def answered(self, last: int) -> bool:
        """All commands up to this one are answered. Whether there are calls that leave now."""
        flights = self._flights
        while flights and flights[0] <= last:
            flights.popleft()
        return len(self.calls) > 0 and self.is_due()

    def close(self) -> None:
        """Look no more."""
        if self._looking is not None:
            self._looking.cancel()

    def _look_again(self) -> None:
        """Twice within the time that calls may wait: those that were there at one look leave at the next."""
        self._looked_at = self._turn
        self._looking = self._loop.call_later(self._gather_s / 2, self._look)

    def _look(self) -> None:
        self._looking = None
        if not self.calls:
            return
        if self._looked_at == self._turn:
            self._leave()
        else:
            self._look_again()
