"""Queues lookups of unknown credentials, so that guesses delay no known caller."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from gateway.core.wait import Wait
from gateway.errors import Overloaded


class LookupTicket:
    """One request to look up a credential: it waits for `wait`, and `granted` is set once it may run."""

    __slots__ = ("granted", "wait")

    def __init__(self) -> None:
        self.granted = False
        self.wait: Wait[None] = Wait()


class LookupQueue:
    """Bounds concurrent lookups of unknown credentials, so that guesses never delay known callers.

    `most` run at once, counted by `under_way`, and others wait in order. Overloaded if `waiting_max` wait
    already.
    """

    __slots__ = ("_most", "_waiting", "_waiting_max", "under_way")

    def __init__(self, most: int, waiting_max: int) -> None:
        self.under_way = 0
        self._most, self._waiting_max = most, waiting_max
        self._waiting: OrderedDict[LookupTicket, None] = OrderedDict()

    def take(self) -> LookupTicket:
        """Return a ticket whose `wait` ends when the lookup may run; it must be given back in any case."""
        turn = LookupTicket()
        if self.under_way < self._most:
            self.under_way += 1
            turn.granted = True
            turn.wait.set(None)
        elif len(self._waiting) >= self._waiting_max:
            raise Overloaded("Too many unknown credentials are being looked up. Try again in a moment.")
        else:
            self._waiting[turn] = None
        return turn

    def give_back(self, turn: LookupTicket) -> None:
        """End a ticket's lookup, or stop waiting for it. The next waiting ticket is granted."""
        if not turn.granted:
            del self._waiting[turn]
        elif self._waiting:
            following, _ = self._waiting.popitem(last=False)
            following.granted = True
            asyncio.get_running_loop().call_soon(following.wait.set, None)
        else:
            self.under_way -= 1
