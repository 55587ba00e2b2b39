"""A deployment with gateways and keepers in this process: a kill is between two awaits, and costs nothing.

All of them run in one loop. Whatever a program begins has its `Life` in its context: tasks, timers, and what
waits for sockets. A step is what a loop does between two awaits. A life that is dead steps no more, and no
code of it runs behind that, not even what cleans up: its descriptors end as a killed process' do. One that is
held goes on where it was. Redis and PostgreSQL are real processes, and time is the machine's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from functools import partial
from heapq import heappush
from pathlib import Path
from typing import Any, Final
from unittest import mock
from weakref import WeakSet

from gateway.app import serve_calls
from gateway.run import program_list
from gateway.settings.settings import Settings
from gateway.telemetry.logs import OURS, JsonLines
from tests.faults.clustered import ClusteredWorld
from tests.faults.servers import STOP_S_MAX, Program
from tests.faults.world import World
from tests.stage import keep

# All programs are of this process: no earlier one runs unseen, however short it is waited for.
SILENT_S_MAX: Final = 0.5
DESCRIPTORS: Final = Path("/proc/self/fd")
KILLED: Final = -signal.SIGKILL
# Whatever the dead had: were it collected, its `finally` would run.
_GRAVES: Final[list[object]] = []
_DEAD: Final[set[asyncio.Task[Any]]] = set()


class Life:
    """One start of a program. `dies_at` is the number of the step that it does not do any more."""

    def __init__(self, program: StagedProgram) -> None:
        self.program = program
        self.steps = self.dies_at = 0
        self.is_dead = self.is_held = False
        self.tasks: WeakSet[asyncio.Task[Any]] = WeakSet()
        # What would have run meanwhile, and the descriptors that were waited for.
        self.held: list[asyncio.Handle] = []
        self.waited: list[tuple[int, int, Any]] = []

    def goes_on(self) -> bool:
        """Whether it does its next step, which it may die of."""
        if self.is_dead or self.is_held:
            return False
        self.steps += 1
        if self.steps == self.dies_at:
            self.program.kill()
        return not self.is_dead


LIFE: Final[ContextVar[Life | None]] = ContextVar("LIFE", default=None)


class _Step(asyncio.Handle):
    """What a loop calls once: not for the dead, and later for who is held."""

    def _run(self) -> None:
        if _lives(self, self._context):
            super()._run()


class _Timer(asyncio.TimerHandle):
    def _run(self) -> None:
        if _lives(self, self._context):
            super()._run()


def _lives(handle: asyncio.Handle, context: Context) -> bool:
    life = context.get(LIFE)
    if life is None or life.goes_on():
        return True
    (life.held if life.is_held else _GRAVES).append(handle)
    return False


class StagedLoop(asyncio.SelectorEventLoop):
    """A loop that knows whose each step is."""

    def __init__(self) -> None:
        super().__init__()
        self.set_task_factory(_task)

    def _call_soon(self, callback: Any, args: Any, context: Context | None) -> asyncio.Handle:
        handle = _Step(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def _add_reader(self, fd: int, callback: Any, *args: Any) -> asyncio.Handle:
        return super()._add_reader(fd, *_stepped(callback, args))

    def _add_writer(self, fd: int, callback: Any, *args: Any) -> asyncio.Handle:
        return super()._add_writer(fd, *_stepped(callback, args))

    def leave(self, life: Life) -> None:
        """Wait no more for what a life waits for."""
        for key in list(self._selector.get_map().values()):
            handles = [one for one in key.data if one is not None]
            if any(one._context.get(LIFE) is life for one in handles):
                self._selector.unregister(key.fd)
                life.waited.append((key.fd, key.events, key.data))

    def go_on(self, life: Life) -> None:
        """Let a life that was held go on."""
        held, waited = life.held, life.waited
        life.held, life.waited, life.is_held = [], [], False
        self._ready.extend(held)
        for fd, events, data in waited:
            self._selector.register(fd, events, data)


def _task(
    loop: asyncio.AbstractEventLoop, coroutine: Any, *, context: Context | None = None
) -> asyncio.Task[Any]:
    task = asyncio.Task(coroutine, loop=loop, context=context)
    life = LIFE.get() if context is None else context.get(LIFE)
    if life is not None:
        life.tasks.add(task)
    return task


def _stepped(callback: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """A callback of a descriptor, which is called again and again while there is something to read."""
    life = LIFE.get()
    return (callback, *args) if life is None else (partial(_if_living, life, callback), *args)


def _if_living(life: Life, callback: Callable[..., object], *args: object) -> None:
    if life.goes_on():
        callback(*args)


class StagedProgram(Program):
    """A gateway worker or a keeper of this process, as `Program` has one of its own."""

    life: Life
    loop: StagedLoop

    def start(self) -> None:
        """Begin a life."""
        self.loop = asyncio.get_running_loop()  # type: ignore[assignment]  # this world's
        self.life, self._status, self._is_over = Life(self), None, threading.Event()
        self._stop = asyncio.Event()
        context = copy_context()
        context.run(LIFE.set, self.life)
        self._task = self.loop.create_task(self._serve(self.life), context=context)
        self.starts += 1

    async def _serve(self, life: Life) -> None:
        status, run = 1, keep if self.role == "keeper" else serve_calls
        try:
            await run(self.settings, self._stop)
            status = 0
        finally:
            if life is self.life and not life.is_dead:
                self._end(status)

    def _end(self, status: int) -> None:
        self._status = status
        self._is_over.set()

    @property
    def ended(self) -> int | None:
        """Its exit status once it has ended; below 0 the signal."""
        return self._status

    def send(self, number: signal.Signals) -> None:
        """Do what a process does at a signal, if it is there; in any thread."""
        does = {
            signal.SIGKILL: self.kill, signal.SIGTERM: self._stop.set,
            signal.SIGSTOP: self.hold, signal.SIGCONT: self.go_on,
        }[number]  # fmt: skip
        if self.ended is None:
            self.loop.call_soon_threadsafe(does)

    def kill(self) -> None:
        """Let it do nothing any more: what it had open ends, what it had begun stays begun."""
        life = self.life
        if not life.is_dead:
            life.is_dead, life.is_held = True, False
            self.loop.leave(life)
            _GRAVES.append(life)
            _DEAD.update(life.tasks)
            self._let_go()
            self._end(KILLED)

    def hold(self) -> None:
        """Let it do nothing until it goes on."""
        if not self.life.is_dead and not self.life.is_held:
            self.life.is_held = True
            self.loop.leave(self.life)

    def go_on(self) -> None:
        """Let it go on where it was held."""
        if self.life.is_held:
            self.loop.go_on(self.life)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Stop it and answer its exit status; not in the thread of the loop."""
        self.send(signal.SIGCONT)
        self.send(how)
        if not self._is_over.wait(STOP_S_MAX):
            self.send(signal.SIGKILL)
            self._is_over.wait()
        assert self._status is not None
        return self._status

    def rss_kib(self) -> int:
        """Nothing: it has no memory of its own."""
        return 0

    def _let_go(self) -> None:
        """Close what it had open. Each number stays taken, so that nothing of the dead meets another's."""
        nothing = os.open(os.devnull, os.O_RDWR)
        for fd in {fd for fd, _, _ in self.life.waited} | set(self._descriptors()):
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with suppress(OSError), socket.socket(fileno=os.dup(fd)) as one:
                    one.shutdown(socket.SHUT_RDWR)  # a thread that waits for it waits no more
            os.dup2(nothing, fd, inheritable=False)
        os.close(nothing)

    def _descriptors(self) -> Iterator[int]:
        """Files in its directory, sockets of its ports, and those to servers by proxies of its own."""
        ports = _ports_of(self.settings)
        for name in os.listdir(DESCRIPTORS):
            with suppress(OSError):
                place = os.readlink(DESCRIPTORS / name)
                if place.startswith(f"{self.settings.data_dir}/"):
                    yield int(name)
                elif place.startswith("socket:"):
                    with socket.socket(fileno=os.dup(int(name))) as one:
                        if one.family == socket.AF_INET and _is_of(one, ports):
                            yield int(name)


def _ports_of(settings: Settings) -> tuple[set[int], set[int]]:
    """The ports at which a program is found, and those at which it finds others."""
    urls = (settings.redis_url, settings.database_url)
    others = {int(url.rpartition(":")[2].partition("/")[0]) for url in urls if url}
    return ({settings.admin_port} if settings.database_url else {settings.gateway_port}), others


def _is_of(one: socket.socket, ports: tuple[set[int], set[int]]) -> bool:
    own, others = ports
    if one.getsockname()[1] in own:
        return True
    with suppress(OSError):
        return one.getpeername()[1] in others
    return False


class _Logs(logging.Handler):
    """What each program of a loop logs goes to a file of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._loop = loop

    def emit(self, record: logging.LogRecord) -> None:
        life = LIFE.get()
        if life is not None and life.program.loop is self._loop:
            with life.program.log.open("a") as log:
                log.write(self.format(record) + "\n")


class Staged(World):
    """Has the programs of a world in this process."""

    program_of = StagedProgram
    loop_of = StagedLoop

    def open(self) -> World:
        """Start everything and wait until it serves."""
        self._logs = _Logs(self.loop)
        self._logs.setFormatter(JsonLines())
        ours = logging.getLogger(OURS)
        self._level = ours.level
        ours.addHandler(self._logs)
        ours.setLevel(logging.INFO)
        self._sooner = mock.patch.object(program_list, "SILENT_S_MAX", SILENT_S_MAX)
        self._sooner.start()
        return super().open()

    def dead_tasks(self) -> set[asyncio.Task[Any]]:
        """Return tasks of programs that were killed."""
        return _DEAD

    def close(self) -> None:
        """Stop everything and remove what it left."""
        super().close()
        self._sooner.stop()
        ours = logging.getLogger(OURS)
        ours.removeHandler(self._logs)
        ours.setLevel(self._level)


class StagedWorld(Staged):
    """A world of programs in this process."""


class StagedClusteredWorld(Staged, ClusteredWorld):
    """The same with a cluster in place of the one Redis."""
