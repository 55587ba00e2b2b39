"""Work on PostgreSQL that is never waited for longer than PostgreSQL answers.

A server that is frozen, or a network that swallows, answers nothing and refuses nothing; even a
cancelled query waits for its word. So whoever asks stops waiting and the work is left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from gateway.errors import StoreUnavailable

T = TypeVar("T")

# How long work may be silent before PostgreSQL is asked whether it is there, and how long that may take:
# together the longest wait on one that is not.
SILENT_S_MAX = 4.0
PROBE_S_MAX = 3.0


async def answered(
    work: Coroutine[Any, Any, T],
    alive: Callable[[], Awaitable[bool]],
    *,
    silent_s_max: float = SILENT_S_MAX,
    probe_s_max: float = PROBE_S_MAX,
) -> T:
    """What the work answers, however long it takes, as long as PostgreSQL answers others meanwhile.

    `StoreUnavailable` where it does not; a write may have been done all the same.
    """
    task = asyncio.create_task(work)
    try:
        while not (await asyncio.wait({task}, timeout=silent_s_max))[0]:
            if not await _answers(alive, probe_s_max):
                break
    finally:
        if not task.done():
            _leave(task)
    if not task.done():
        raise StoreUnavailable("PostgreSQL does not answer; a write may have been done.")
    return task.result()


async def within(work: Coroutine[Any, Any, T], seconds: float) -> T:
    """What the work answers so soon; `TimeoutError` where it does not, and is left behind."""
    task = asyncio.create_task(work)
    try:
        await asyncio.wait({task}, timeout=seconds)
    finally:
        if not task.done():
            _leave(task)
    if not task.done():
        raise TimeoutError
    return task.result()


async def _answers(alive: Callable[[], Awaitable[bool]], probe_s_max: float) -> bool:
    asking = asyncio.ensure_future(alive())
    done, _ = await asyncio.wait({asking}, timeout=probe_s_max)
    if not done:
        _leave(asking)
        return False
    return asking.exception() is None and asking.result()


def _leave(task: asyncio.Future[Any]) -> None:
    """Cancel, wait for nothing, and let whatever comes of it be nobody's."""
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    task.cancel()
