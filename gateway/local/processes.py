"""One child process: started, watched, restarted when it dies or hangs, and stopped in order.

A child gets its settings as the first line of its standard input, and keeps that pipe open: when the parent
ends for any reason, the pipe closes and the child stops itself. The output of a child goes to standard error
or to its log, never to standard output.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway.errors import StartError
from gateway.local import heartbeat
from gateway.local.heartbeat import Heartbeat

RESTART_DELAY_MIN_S = 0.1
RESTART_DELAY_MAX_S = 5.0
SETTLED_AFTER_S = 30.0
POLL_S = 0.02
LOG_TAIL_BYTES = 16_384
# Time for a hanging process to log where it hangs, before it is killed.
LAST_WORDS_S = 1.0
DIED, HUNG = "died", "hung"


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """A program to run. `ready` checks whether it answers; `reason` finds the cause of a failure in its log.

    A program with `silent_s_max` sends heartbeats (`heartbeat.py`), and is killed after a silence of that
    length; without `ready` it reports itself when it is ready. It inherits the descriptors `given`.
    """

    name: str
    argv: tuple[str, ...]
    ready: Callable[[int], Awaitable[bool]] | None = None
    ready_max_s: float = 60.0
    stop_signal: signal.Signals = signal.SIGTERM
    stop_max_s: float = 40.0
    stdin: bytes | None = field(default=None, repr=False)
    log: Path | None = None
    cwd: Path | None = None
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    given: tuple[int, ...] = ()
    silent_s_max: float | None = None
    last_words_s: float = LAST_WORDS_S
    reason: Callable[[str], str | None] = lambda _: None


def command(*words: str) -> tuple[str, ...]:
    """Return the command line that runs this program with the arguments `words`."""
    return (sys.executable, "-P", "-m", "gateway", *words)


class Child:
    """A program that is kept running. `changed` is called when its process id changes.

    `restarts` counts restarts after a death and after a hang.
    """

    def __init__(self, program: ProcessSpec, say: Callable[[str], None], changed: Callable[[], None]) -> None:
        self.program = program
        self.pid: int | None = None
        self.restarts = {DIED: 0, HUNG: 0}
        self._heartbeat: Heartbeat | None = None
        self._say = say
        self._changed = changed
        self._process: Process | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._loading: Process | None = None

    @property
    def is_ready(self) -> bool:
        return self.pid is not None and self._heartbeat is not None and self._heartbeat.is_ready()

    def report(self) -> bytes:
        """Return the last report of the process (`heartbeat.py`); b"" if there is none, or it is too old."""
        return self._heartbeat.report() if self.pid is not None and self._heartbeat is not None else b""

    async def load(self) -> None:
        """Start the process early, to import its code; `start` sends its settings later."""
        program, self.program = self.program, replace(self.program, stdin=b"")
        self._loading = await self._spawn()
        self.program = program

    def fork(self) -> bool:
        """Start the program like `load`, but by forking this process.

        This process must have no event loop and no other thread. Return True in this process and False in the
        fork, which leads a new session, reads settings from standard input and sends heartbeats. Raise
        `OSError` if the system has no resources for the fork.
        """
        beats = self._listening()
        ours, theirs = socket.socketpair()
        gc.freeze()  # garbage collection would write to pages that both share (copy-on-write)
        pid = os.fork()
        if not pid:
            os.setsid()
            os.dup2(theirs.fileno(), sys.stdin.fileno())
            for one in (ours, theirs):
                one.close()
            self._close_heartbeat()
            os.environ |= self.program.environment | beats
            return False
        theirs.close()
        if self._heartbeat is not None:
            self._heartbeat.started()
        self._process = self._loading = ForkedProcess(pid, ours)
        self.pid = pid
        return True

    async def start(self) -> None:
        """Start the process and wait until it is ready; raise `StartError` with one line if it fails."""
        log = self.program.log
        log_from = log.stat().st_size if log is not None and log.exists() else 0
        process, self._loading = self._loading, None
        if process is None:
            process = await self._spawn()
        else:
            await self._say_settings(process)
        try:
            await self._until_ready(process, log_from)
        except BaseException:
            await asyncio.shield(self._end(process, 2.0))
            raise
        self._keeper = asyncio.create_task(self._keep(process))

    async def tell(self, line: bytes) -> None:
        """Send new settings to the process, which later restarts get as well."""
        self.program = replace(self.program, stdin=line)
        if self._process is not None and self._process.returncode is None:
            await self._say_settings(self._process)

    async def send(self, line: bytes) -> None:
        """Send a line to the current process only; restarts do not get it."""
        if self._process is not None and self._process.returncode is None:
            await _written(self._process, line)

    async def stop(self) -> None:
        """End the restarts, then the process: by its signal, or killed after its maximum time; close its heartbeat."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        if self._process is not None:
            await self._end(self._process, self.program.stop_max_s)
        self._close_heartbeat()

    async def _keep(self, process: Process) -> None:
        """Start the process again each time that it ends or hangs, with growing pauses."""
        loop = asyncio.get_running_loop()
        delay_s = RESTART_DELAY_MIN_S
        while True:
            began = loop.time()
            silent_s = await self._until_over(process)
            self._note_end()
            if loop.time() - began > SETTLED_AFTER_S:
                delay_s = RESTART_DELAY_MIN_S
            how = f"hung for {silent_s:.0f} s and was killed" if silent_s else _ended(process.returncode)
            over = f"{self.program.name} (process {process.pid}) {how}"
            self._say(f"{over}; starting it again in {delay_s:g} s")
            process, delay_s = await self._spawned_again(delay_s)
            self.restarts[HUNG if silent_s else DIED] += 1
            self._say(f"{self.program.name} started again (process {process.pid})")

    async def _spawned_again(self, delay_s: float) -> tuple[Process, float]:
        """Start a process in place of an ended one after `delay_s` seconds, with retries.

        Return the process, and the delay in seconds before the next restart.
        """
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(delay_s * 2, RESTART_DELAY_MAX_S)
            try:
                return await self._spawn(), delay_s
            except StartError as error:
                self._say(f"{error}; trying again in {delay_s:g} s")

    async def _until_over(self, process: Process) -> float:
        """Wait until a process ends, or kill it if it hangs.

        Return the seconds without a heartbeat before it was killed, or 0 if it ended by itself.
        """
        beats, program = self._heartbeat, self.program
        if beats is None or program.silent_s_max is None:
            await process.wait()
            return 0.0
        ending = asyncio.create_task(process.wait())
        silent = asyncio.create_task(beats.wait_until_lost(program.ready_max_s, program.silent_s_max))
        try:
            await asyncio.wait({ending, silent}, return_when=asyncio.FIRST_COMPLETED)
            if ending.done():
                return 0.0
            self._say(f"{program.name} (process {process.pid}) hangs: {silent.result():.0f} s without a beat")
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR2)
                await asyncio.wait({ending}, timeout=program.last_words_s)
                process.kill()
            await ending
            return silent.result()
        finally:
            ending.cancel()
            silent.cancel()

    async def _spawn(self) -> Process:
        """Start the program, and give it its standard input, log, sockets and heartbeat."""
        program = self.program
        beats = self._listening()
        try:
            said = _opened(program.log) if program.log else os.dup(sys.stderr.fileno())
        except OSError as error:
            raise StartError(f"{program.name} cannot be started: {error.strerror} ({program.log})") from error
        try:
            process = await asyncio.create_subprocess_exec(
                *program.argv,
                stdin=asyncio.subprocess.PIPE if program.stdin is not None else asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                cwd=program.cwd,
                env=os.environ | program.environment | beats,
                pass_fds=[*program.given, *map(int, beats.values())],
                start_new_session=True,  # we pass on Ctrl-C ourselves, in order
            )
        except OSError as error:
            raise StartError(
                f"{program.name} cannot be started: {error.strerror} ({program.argv[0]})"
            ) from error
        finally:
            os.close(said)
            if self._heartbeat is not None:
                self._heartbeat.started()
        self._process = process
        self.pid = process.pid
        self._changed()
        await self._say_settings(process)
        return process

    def _listening(self) -> dict[str, str]:
        """Create a pipe for the next process's heartbeats; return the environment variable that names it.

        Return {} if the program sends no heartbeats.
        """
        if self.program.silent_s_max is None:
            return {}
        self._close_heartbeat()
        self._heartbeat = Heartbeat()
        return {heartbeat.HEARTBEAT_VARIABLE: str(self._heartbeat.theirs)}

    def _close_heartbeat(self) -> None:
        beats, self._heartbeat = self._heartbeat, None
        if beats is not None:
            beats.close()

    async def _say_settings(self, process: Process) -> None:
        line = self.program.stdin  # the latest settings, which may change during the start
        if line:
            await _written(process, line)

    async def _until_ready(self, process: Process, log_from: int) -> None:
        """Wait until the process is ready; raise StartError with its log's reason if it ends or is late."""
        exited = asyncio.create_task(process.wait())
        try:
            async with asyncio.timeout(self.program.ready_max_s):
                while not exited.done():
                    ready = self.program.ready
                    if await ready(process.pid) if ready else self.is_ready:
                        return
                    await asyncio.wait({exited}, timeout=POLL_S)
        except TimeoutError:
            raise StartError(
                f"{self.program.name} did not answer within {self.program.ready_max_s:g} s{self._see_log()}"
            ) from None
        finally:
            exited.cancel()
        raise StartError(self._why(process.returncode, log_from))

    def _why(self, code: int | None, log_from: int) -> str:
        """Return one line with the reason why the program ended before it was ready."""
        log_since = self._log_since(log_from)
        if library := missing_library(log_since):
            return f"{self.program.name} cannot start: {library}"
        reason = self.program.reason(log_since)
        if reason is None:
            lines = [line for line in log_since.splitlines() if line.strip()]
            reason = lines[-1].strip() if lines else f"it {_ended(code)}"
        return f"{self.program.name} cannot start: {reason}{self._see_log()}"

    def _see_log(self) -> str:
        return f" (log: {self.program.log})" if self.program.log else ""

    def _log_since(self, offset: int) -> str:
        if self.program.log is None:
            return ""
        with self.program.log.open("rb") as file:
            file.seek(max(offset, self.program.log.stat().st_size - LOG_TAIL_BYTES))
            return file.read().decode(errors="replace")

    async def _end(self, process: Process, within_s: float) -> None:
        """Stop a process by its signal, and kill it if it does not end within `within_s`."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(self.program.stop_signal)
            try:
                async with asyncio.timeout(within_s):
                    await process.wait()
            except TimeoutError:
                self._say(f"{self.program.name} did not stop within {within_s:g} s and was killed")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        self._note_end()

    def _note_end(self) -> None:
        self.pid = None
        self._changed()


class ForkedProcess:
    """A fork of this process, with the methods of `asyncio.subprocess.Process` that `Child` uses.

    `line` is our end of its standard input. A pidfd signals its end (Linux).
    """

    def __init__(self, pid: int, line: socket.socket) -> None:
        self.pid, self._line = pid, line
        self.returncode: int | None = None
        self.stdin: asyncio.StreamWriter | None = None
        self._ending: asyncio.Task[None] | None = None

    async def open_stdin(self) -> None:
        """Open `stdin` in the running event loop, which did not exist at the time of the fork."""
        if self.stdin is None:
            _, self.stdin = await asyncio.open_connection(sock=self._line)

    async def wait(self) -> None:
        self._ending = self._ending or asyncio.create_task(self._until_over())
        await asyncio.shield(self._ending)

    def send_signal(self, number: int) -> None:
        if self.returncode is not None:
            raise ProcessLookupError
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    async def _until_over(self) -> None:
        """Wait until the process has ended, and note its exit status."""
        loop, over, pidfd = asyncio.get_running_loop(), asyncio.Event(), os.pidfd_open(self.pid)
        loop.add_reader(pidfd, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(pidfd)
            os.close(pidfd)
        _, status = os.waitpid(self.pid, 0)  # noqa: ASYNC222  # the process has ended
        self.returncode = os.waitstatus_to_exitcode(status)
        if self.stdin is not None:
            self.stdin.close()


Process = asyncio.subprocess.Process | ForkedProcess


async def _written(process: Process, line: bytes) -> None:
    if isinstance(process, ForkedProcess):
        await process.open_stdin()
    if process.stdin is not None:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(line + b"\n")
            await process.stdin.drain()


def missing_library(text: str) -> str:
    """Return a sentence on the missing shared library in a program's output, or an empty text."""
    match = re.search(r"(?:error while loading shared libraries|Library not loaded): ([^:\s]+)", text)
    return f"the shared library {match[1]} is missing on this machine" if match else ""


def _opened(log: Path) -> int:
    return os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def _ended(code: int | None) -> str:
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"exited with status {code}"


# The end of our own processes: after their work, or forced.

# Maximum time for threads to end after everything else.
THREADS_S_MAX = 10.0


def run_to_end(
    run: Callable[[Coroutine[Any, Any, None]], None], main: Coroutine[Any, Any, None],
    threads_s_max: float = THREADS_S_MAX,
) -> None:  # fmt: skip
    """Run the whole work of a process; then exit, even if a thread does not end, such as in a read.

    A forced exit logs an earlier failure of `main`, which would be lost otherwise.
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
