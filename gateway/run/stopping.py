"""How processes stop: a signal sets an event, loops are kept going until then, tasks end together."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from gateway.core.retries import is_said
from gateway.errors import CountersUnavailable

RESTART_S = 1.0
# A loop that ran so long before it failed was well.
WELL_AGAIN_S = 60.0
# How long threads may take to end once all else has.
THREADS_S_MAX = 10.0


def stop_signal() -> asyncio.Event:
    """An event that SIGTERM or SIGINT sets."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def run_to_end(
    run: Callable[[Coroutine[Any, Any, None]], None], main: Coroutine[Any, Any, None],
    threads_s_max: float = THREADS_S_MAX,
) -> None:  # fmt: skip
    """Run all that a process does. A thread that does not end then, such as a read, ends with it.

    What failed before is told with that: nobody else hears of it.
    """
    status = 1
    failure: Exception | None = None

    def leave() -> None:
        why = "forced to exit: a thread does not end"
        logging.getLogger("tollkeeper").warning(why, exc_info=failure)
        os._exit(status)

    late = threading.Timer(threads_s_max, leave)
    late.daemon = True

    async def whole() -> None:
        nonlocal status, failure
        try:
            await main
            status = 0
        except Exception as error:
            failure = error
            raise
        finally:
            late.start()

    try:
        run(whole())
    finally:
        late.cancel()


@contextmanager
def left_by_signal() -> Iterator[None]:
    """Where SIGTERM or SIGHUP comes meanwhile, leave by `SystemExit`: what was begun is tidied up, once."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for one in before:
            signal.signal(one, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {one: signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGHUP)}
    before = {one: how for one, how in before.items() if how != signal.SIG_IGN}
    for one in before:
        signal.signal(one, leave)
    try:
        yield
    finally:
        for one, how in before.items():
            signal.signal(one, how)


async def until_stopped(start: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    """Start, then wait to be told to stop; a start that is under way by then is ended, and waited for."""
    starting = asyncio.create_task(start)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            await stopping
    finally:
        stopping.cancel()
        starting.cancel()
        await asyncio.wait({starting})


async def forever(
    name: str,
    run: Callable[[], Awaitable[None]],
    log: Callable[..., None],
    *,
    restart_s: float = RESTART_S,
    failed: Callable[[str], None] = lambda _: None,
) -> None:
    """Run a loop again after an error nobody foresaw, until cancelled.

    Each failure is counted (`failed`); some are said (`is_said`).
    """
    clock = asyncio.get_running_loop().time
    failures = 0
    while True:
        began = clock()
        try:
            await run()
        except Exception as error:  # noqa: BLE001  # one bad pass must not end a loop the product stands on
            failed(name)
            failures = 1 if clock() - began > WELL_AGAIN_S else failures + 1
            if is_said(failures):
                log("loop failed", loop=name, error=repr(error), failures=failures, level="error")
        await asyncio.sleep(restart_s)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until they are gone."""
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


async def all_within(
    seconds: float, works: Iterable[Coroutine[None, None, None]], log: Callable[..., None]
) -> None:
    """Do several last things at once, each in so many seconds or not at all; what fails is said."""
    tasks = [asyncio.create_task(work) for work in works]
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for error in filter(None, (task.exception() for task in done)):
        if not isinstance(error, CountersUnavailable):
            log("not done before the end", error=repr(error), level="error")
    await cancel(late)


async def ended(
    stop: Callable[[], Coroutine[None, None, None]], within_s: float, log: Callable[..., None]
) -> None:
    """Stop within a bound; past it the process ends here, and what is under way stays where it is.

    A query that waits for a server that is frozen can neither end nor be cancelled, and threads would
    be joined at the end.
    """
    stopping = asyncio.create_task(stop())
    done, _ = await asyncio.wait({stopping}, timeout=within_s)
    if not done:
        log("forced to exit after the grace", after_s=within_s, level="warning")
        os._exit(0)
    stopping.result()
