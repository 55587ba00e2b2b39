"""The driver of one request's coroutine: it resumes it when what it waits for arrives.

One that ends by an error is followed by another, told of that error: nothing is awaited while an
error is on its way, which compiled coroutines cannot do.

There is no task and no event loop involved in a step: whoever sets a `Wait` runs the handler on,
up to its next `Wait`. A rare path may await an asyncio future too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from gateway.core.wait import OVER, Wait, Waiter

_E = TypeVar("_E", bound=BaseException)
_Handling = Coroutine[Any, None, None]


def bare(error: _E) -> _E:
    """The error without the frames it came through, and those it came from without theirs.

    A frame that keeps its error is kept by it, with all that was read, until the collector comes.
    """
    each: BaseException | None = error
    while each is not None:
        each.__traceback__ = None
        each = each.__cause__ or each.__context__
    return error


class RequestDriver(Waiter):
    """Run a coroutine that awaits `Wait`s; `ended` is called once, with the last error or None.

    `interrupt` throws into the coroutine where it waits, unless it is `shielded`: what is
    being charged is never interrupted, it only waits for a bounded time (`expire_wait`).
    """

    __slots__ = ("_coroutine", "_future", "_given_up", "_pending", "_running", "_wait", "over", "shielded")

    _coroutine: _Handling | None
    _given_up: Callable[[Any, BaseException], _Handling] | None

    def __init__(self) -> None:
        self.shielded = self.over = self._running = False
        self._wait: Wait[Any] | None = None
        self._future: asyncio.Future[Any] | None = None
        self._pending: BaseException | None = None

    def tell(
        self, coroutine: _Handling, given_up: Callable[[Any, BaseException], _Handling] | None = None
    ) -> None:
        """Begin, and run up to the first wait; `given_up` handles what an error of the first one leaves."""
        self._coroutine, self._given_up = coroutine, given_up
        self._step(None)

    def interrupt(self, error: BaseException) -> None:
        """End the present wait with an error; remembered until there is one, lost when shielded."""
        if self.over or self.shielded:
            return
        if self._running:
            self._pending = error
        else:
            self._step(error)

    def expire_wait(self, error: BaseException) -> None:
        """End the present wait, shielded or not: its own bound has passed."""
        if not self.over and not self._running:
            self._step(error)

    def ended(self, error: BaseException | None) -> None:
        """Take over once the handler is over."""
        raise NotImplementedError

    def resume(self, wait: Wait[Any]) -> None:
        """What was waited for is there; nothing where that is an earlier wait, which was given up."""
        if self._wait is wait:
            self._step(None)

    def _resume_after(self, future: asyncio.Future[Any]) -> None:
        if self._future is future:
            self._step(None)

    def _step(self, error: BaseException | None) -> None:
        coroutine = self._coroutine
        assert coroutine is not None
        self._wait = self._future = None
        self._running = True
        try:
            awaited = coroutine.send(None) if error is None else coroutine.throw(error)
        except StopIteration:
            self._end(None)
        except (Exception, asyncio.CancelledError) as failure:  # noqa: BLE001  # its client is told of any
            self._end(failure)
        else:
            self._wait_for(awaited)

    def _wait_for(self, awaited: Any) -> None:
        """Be resumed by what the coroutine waits for, unless it was interrupted while it ran."""
        if awaited is OVER:
            self._end(None)
            return
        self._running = False
        pending, self._pending = self._pending, None
        if pending is not None and not self.shielded:
            self._step(pending)
            return
        if type(awaited) is Wait:
            self._wait = awaited
            awaited.resumes(self)
        else:
            self._future = awaited
            awaited.add_done_callback(self._resume_after)

    def _end(self, error: BaseException | None) -> None:
        given_up = self._given_up
        if error is not None and given_up is not None:
            self._coroutine, self._given_up = given_up(self, error), None
            self._step(None)
            return
        self._running = False
        self.over = True
        self._coroutine = None  # which knows this driver, where it still awaits that it is over
        self.ended(error)
