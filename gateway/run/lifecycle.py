"""How processes stop: a signal sets an event, loops are restarted until then, and tasks end together.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal
from uuid import uuid4

from gateway import extras
from gateway.background.loops import Isolation
from gateway.core.capabilities import CAPABILITIES
from gateway.core.layout import FORMS, LAYOUT
from gateway.core.processes import Program
from gateway.core.times import zones_edition
from gateway.counters.keeper.status import HOST_CHARS_MAX
from gateway.errors import CountersUnavailable

RESTART_S = 1.0


def stop_signal() -> asyncio.Event:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


@contextmanager
def exit_on_signal() -> Iterator[None]:
    """Raise `SystemExit`, once, on SIGTERM or SIGHUP inside the block, so that its cleanup runs."""

    def leave(number: int, _frame: FrameType | None) -> None:
        for caught in before:
            signal.signal(caught, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {caught: signal.getsignal(caught) for caught in (signal.SIGTERM, signal.SIGHUP)}
    before = {caught: how for caught, how in before.items() if how != signal.SIG_IGN}
    for caught in before:
        signal.signal(caught, leave)
    try:
        yield
    finally:
        for caught, how in before.items():
            signal.signal(caught, how)


async def until_stopped(start: Coroutine[None, None, None], stop: asyncio.Event) -> None:
    """Run `start`, then wait for `stop`; a start that is still running then is cancelled and awaited."""
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
    failed: Callable[[str, Exception], None] | None = None,
) -> None:
    """Run a loop, and run it again after any unexpected error, until cancelled.

    `failed` is called with each error; by default errors are logged with `name`, at most once a minute.
    """
    failed = failed or Isolation(log).pass_failed
    while True:
        try:
            await run()
        except Exception as error:  # noqa: BLE001  # one failed pass must not end a loop that the product needs
            failed(name, error)
        await asyncio.sleep(restart_s)


async def cancel(tasks: Iterable[asyncio.Task[None]]) -> None:
    tasks = list(tasks)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with suppress(asyncio.CancelledError, Exception):
            await task


async def all_within(
    seconds: float, works: Iterable[Coroutine[None, None, None]], log: Callable[..., None]
) -> None:
    """Run all coroutines concurrently before the process ends, for up to `seconds`; log those that fail."""
    tasks = [asyncio.create_task(work) for work in works]
    done, late = await asyncio.wait(tasks, timeout=seconds)
    for error in filter(None, (task.exception() for task in done)):
        if not isinstance(error, CountersUnavailable):
            log("not done before the end", error=repr(error), level="error")
    await cancel(late)


async def ended(
    stop: Callable[[], Coroutine[None, None, None]], within_s: float, log: Callable[..., None]
) -> None:
    """Await `stop()` for up to `within_s` seconds; after that, exit the process at once.

    A query to a frozen server can neither end nor be cancelled, and a normal exit would wait for its thread.
    """
    stopping = asyncio.create_task(stop())
    done, _ = await asyncio.wait({stopping}, timeout=within_s)
    if not done:
        log("forced to exit after the grace", after_s=within_s, level="warning")
        os._exit(0)
    stopping.result()


# This process as an entry in the list of programs.
def this_program(role: Literal["gateway", "keeper"], schema: str = "") -> Program:
    host = socket.gethostname()[:HOST_CHARS_MAX]
    began = round(time.time(), 3)
    knows, zones = tuple(CAPABILITIES), zones_edition()
    return Program(str(uuid4()), role, extras.version(), LAYOUT, host, began, schema, knows, zones, FORMS)
