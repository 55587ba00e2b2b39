"""Counts the CPU that is spent for a request, wherever that is: in its own steps, in tasks, and in threads.

A step of a coroutine is timed by the clock of its thread, so nobody is charged what others did meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context
from functools import partial
from typing import Any, ParamSpec, TypeVar

from gateway.core.accounts.hours import METER, Meter

P = ParamSpec("P")
T = TypeVar("T")


class Metered(Coroutine[Any, Any, T]):
    """A coroutine each step of which is counted."""

    __slots__ = ("_inner", "_meter")

    def __init__(self, inner: Coroutine[Any, Any, T], meter: Meter) -> None:
        self._inner, self._meter = inner, meter

    def send(self, value: Any) -> Any:
        """Go on."""
        began = time.thread_time()
        try:
            return self._inner.send(value)
        finally:
            _count(self._meter, began)

    def throw(self, *error: Any) -> Any:
        """Go on with an error."""
        began = time.thread_time()
        try:
            return self._inner.throw(*error)
        finally:
            _count(self._meter, began)

    def close(self) -> None:
        """End it."""
        self._inner.close()

    def __await__(self) -> Generator[Any, Any, T]:
        return self

    def __iter__(self) -> Generator[Any, Any, T]:
        return self

    def __next__(self) -> Any:
        return self.send(None)


def count_tasks(loop: asyncio.AbstractEventLoop) -> None:
    """Have each task that is begun for a request counted for it."""
    loop.set_task_factory(_task)


def _task(
    loop: asyncio.AbstractEventLoop, work: Any, context: Context | None = None, **named: Any
) -> asyncio.Future[Any]:
    meter = METER.get() if context is None else context.get(METER)
    counted = work if meter is None else Metered(work, meter)
    return asyncio.Task(counted, loop=loop, context=context, **named)


async def in_thread(work: Callable[P, T], *given: P.args, **named: P.kwargs) -> T:
    """Do a step of work in a thread, and count that; who is cancelled waits for its end.

    What it holds is counted until then. A step is bounded: nothing ends a thread before it is through.
    """
    running = asyncio.ensure_future(asyncio.to_thread(_counted, METER.get(), partial(work, *given, **named)))
    try:
        return await asyncio.shield(running)
    finally:
        if not running.done():
            await asyncio.wait({running})
            if not running.cancelled():
                running.exception()


def _counted(meter: Meter | None, work: Callable[[], T]) -> T:
    began = time.thread_time()
    try:
        return work()
    finally:
        if meter is not None:
            _count(meter, began)


def _count(meter: Meter, began: float) -> None:
    if meter.hour is not None:
        meter.hour.cpu_s += time.thread_time() - began
