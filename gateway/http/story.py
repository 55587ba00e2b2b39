"""The driver of one request's coroutine: it resumes it when what it waits for arrives.

There is no task and no event loop involved in a step: whoever sets a `Wait` runs the story on,
up to its next `Wait`. A rare path may await an asyncio future too.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

from gateway.core.wait import Wait

T = TypeVar("T")


class Story(Generic[T]):
    """Run a coroutine that awaits `Wait`s. `on_end` is called once, with `subject` and the error or None.

    `interrupt` throws into the coroutine where it waits, unless `shielded` is set: what is
    being charged is never interrupted, it only waits for a bounded time.
    """

    __slots__ = ("_awaited", "_coroutine", "_on_end", "_pending", "_running", "_subject", "ended", "shielded")

    def __init__(
        self,
        coroutine: Coroutine[Any, None, None],
        subject: T,
        on_end: Callable[[T, BaseException | None], None],
    ) -> None:
        self._coroutine = coroutine
        self._subject = subject
        self._on_end = on_end
        self._awaited: Any = None
        self._pending: BaseException | None = None
        self._running = False
        self.ended = False
        self.shielded = False

    def start(self) -> None:
        """Run up to the first wait."""
        self._step(None)

    def interrupt(self, error: BaseException) -> None:
        """End the present wait with an error; remembered until there is one, lost when shielded."""
        if self.ended or self.shielded:
            return
        if self._running:
            self._pending = error
        else:
            self._step(error)

    def expire(self, error: BaseException) -> None:
        """End the present wait, shielded or not: its own bound has passed."""
        if not self.ended and not self._running:
            self._step(error)

    def _resume(self, _: object = None) -> None:
        awaited = self._awaited
        if awaited is None or self._running or not _is_done(awaited):
            return  # an earlier wait that was given up
        self._step(None)

    def _step(self, error: BaseException | None) -> None:
        self._running = True
        self._awaited = None
        try:
            while True:
                awaited = self._coroutine.send(None) if error is None else self._coroutine.throw(error)
                error, self._pending = self._pending, None
                if error is None or self.shielded:
                    break
        except StopIteration:
            self._end(None)
            return
        except BaseException as failure:
            self._end(failure)
            if not isinstance(failure, Exception):
                raise
            return
        self._running = False
        self._awaited = awaited
        if type(awaited) is Wait:
            awaited.then(self._resume)
        else:
            awaited.add_done_callback(self._resume)

    def _end(self, error: BaseException | None) -> None:
        self._running = False
        self.ended = True
        self._on_end(self._subject, error)


def _is_done(awaited: Any) -> bool:
    return bool(awaited.done() if isinstance(awaited, asyncio.Future) else awaited.done)
