"""How processes start and stop: bounded waits for what they need, and an orderly end.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Literal
from uuid import uuid4

from gateway import extras
from gateway.background.loops import Isolation
from gateway.core.capabilities import CAPABILITIES
from gateway.core.layout import LAYOUT
from gateway.core.model import Service
from gateway.core.processes import Program
from gateway.core.wait import in_task
from gateway.counters.admission.stored import services_of
from gateway.counters.keeper.status import HOST_CHARS_MAX
from gateway.counters.redis import keys
from gateway.counters.redis.address import parse_url
from gateway.counters.redis.cluster import RedisConnections, wires_to
from gateway.counters.redis.connection import RedisConnection, encode
from gateway.errors import CountersUnavailable, StartError, TollkeeperError
from gateway.ops import hints
from gateway.settings.settings import Settings

ASK_INTERVAL_S = 0.25
# The first interval; each is twice the one before. A server that starts with us is available soon.
ASK_INTERVAL_MIN_S = 0.02
# The last attempt gets at least this time, so that its error says more than "no time".
ASK_S_MIN = 1.0
ASK_S_MAX = 10.0
SAY_INTERVAL_S = 5.0


def give_back_memory() -> None:
    """Release memory that is no longer needed after the start to the system: 2 MiB of a gateway."""
    gc.unfreeze()  # objects frozen by `loading_code` include garbage
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


async def reached(
    name: str,
    trouble: Callable[[], Awaitable[str]],
    *,
    wait_s: float,
    stop: asyncio.Event,
    log: Callable[..., None],
    hint: Callable[[str], str] = lambda _: "tollkeeper doctor says what to do",
) -> bool:
    """Wait until the server `name` answers; return False if `stop` is set meanwhile.

    `trouble` returns why it does not answer, or "". After `wait_s` seconds raise StartError, with the advice
    that `hint` returns for that reason.
    """
    clock, interval_s = asyncio.get_running_loop().time, ASK_INTERVAL_MIN_S
    began = said = clock()
    while True:
        why = await _asked(trouble, min(ASK_S_MAX, max(wait_s - (clock() - began), ASK_S_MIN)))
        if not why:
            return True
        waited = clock() - began
        if stop.is_set():
            return False
        if waited >= wait_s:
            raise StartError(f"{name} cannot be reached, after {wait_s:g} s: {why}; {hint(why)}")
        if clock() - said >= SAY_INTERVAL_S or said == began:
            said = clock()
            log(f"waiting for {name}", waited_s=round(waited, 1), at_most_s=wait_s, why=why, level="warning")
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), interval_s)
        interval_s = min(2 * interval_s, ASK_INTERVAL_S)


async def redis_reached(
    wires: RedisConnections, wait_s: float, stop: asyncio.Event, log: Callable[..., None]
) -> bool:
    """Wait for a connection to Redis; return False if `stop` is set meanwhile.

    One primary of a cluster is enough. StartError after `wait_s` seconds, or at once if the server may delete
    counters.
    """

    async def trouble() -> str:
        there = await wires.connected_within(ASK_INTERVAL_S) or any(one.connected for one in wires.wires)
        wires.refuse_eviction()
        return "" if there else wires.trouble or "no connection"

    return await reached("Redis", trouble, wait_s=wait_s, stop=stop, log=log, hint=hints.redis_hint)


async def catalogue_of(settings: Settings) -> Mapping[str, Service]:
    """Return the services of the catalogue in Redis by key; {} if it cannot be read."""
    address, name = parse_url(settings.url_file("redis_url"), settings.redis_files), keys.CATALOGUE.encode()
    wires = wires_to(address, lambda where: RedisConnection(where, time.monotonic, call_s=ASK_S_MAX))
    try:
        async with asyncio.timeout(ASK_S_MAX):
            await wires.open()
            await wires.connected_within(ASK_S_MIN)
            raw = await in_task(wires.of_key(name).send(encode(b"GET", name)))
    except (TollkeeperError, OSError, TimeoutError):
        return {}
    finally:
        await wires.close()
    return services_of(raw)


async def _asked(trouble: Callable[[], Awaitable[str]], within_s: float) -> str:
    try:
        async with asyncio.timeout(within_s):
            return await trouble()
    except TimeoutError:
        return f"no answer within {within_s:g} s"


# Stopping: a signal sets an event, loops are restarted until then, tasks end together.

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


# Makes the C library return large freed blocks to the system at once.
#
# By default glibc raises its threshold to the largest block that was freed. Then it keeps the memory of a
# burst's bodies and heads in its heap, for ever if a small block lies above.

MAPPED_BYTES_MIN = 32 * 1024
_MMAP_THRESHOLD = -3  # the number in malloc.h


def give_back_large_blocks() -> bool:
    """Make the C library return freed large blocks to the system at once; return False if it cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, MAPPED_BYTES_MIN) == 1


# This process as an entry in the list of programs.
def this_program(role: Literal["gateway", "keeper"], schema: str = "") -> Program:
    host = socket.gethostname()[:HOST_CHARS_MAX]
    began = round(time.time(), 3)
    return Program(str(uuid4()), role, extras.version(), LAYOUT, host, began, schema, tuple(CAPABILITIES))
