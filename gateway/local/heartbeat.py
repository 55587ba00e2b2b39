"""The heartbeat of a worker: a byte a second through a pipe, sent by its event loop; and its listener.

The same pipe carries when the worker is ready, and each second a report of its state: no disk is between the
two, because a full disk must hide nothing. A blocked event loop sends nothing. Time in which the listener
itself was suspended does not count, such as sleep of the machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from gateway.core.wait import Awake

# The environment variable with the pipe's descriptor, for the sending process.
HEARTBEAT_VARIABLE = "HEARTBEAT_DESCRIPTOR"
BEAT_S = 1.0
LOOK_S = 0.5
BEAT, READY = b".", b"!"
# What a pipe holds at most.
BEATS_READ_MAX = 65_536
# A report is a line of JSON. After this time without one, nothing is known of its sender.
REPORT_S = 1.0
REPORT_BYTES_MAX = 32_768
SILENT_S_MAX = 10.0


async def keep_beating(beat_s: float = BEAT_S) -> None:
    """Send a heartbeat every `beat_s` seconds until cancelled; return at once if no process listens."""
    while os.environ.get(HEARTBEAT_VARIABLE, ""):
        _say(BEAT)
        await asyncio.sleep(beat_s)


async def keep_reporting(report: Callable[[], bytes], report_s: float = REPORT_S) -> None:
    """Send a `report`, a JSON object without line breaks, at intervals; return at once if no process listens."""
    while os.environ.get(HEARTBEAT_VARIABLE, ""):
        if len(line := report()) <= REPORT_BYTES_MAX:
            _say(b"\n%b\n" % line)
        await asyncio.sleep(report_s)


def say_ready() -> None:
    """Report to the process that started this one that this process is ready."""
    if os.environ.get(HEARTBEAT_VARIABLE, ""):
        _say(b"\n" + READY)


def _say(sign: bytes) -> None:
    pipe = int(os.environ[HEARTBEAT_VARIABLE])
    os.set_blocking(pipe, False)
    with contextlib.suppress(OSError):  # the listener is slow or gone
        os.write(pipe, sign)


class Heartbeat:
    """A pipe for the heartbeats of a child process: this is the reading end, `theirs` the sending end."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._beaten = self._ready = False
        self._clock = clock
        # The beginning of a report; the last whole one, and when it came.
        self._line_start = self._report = b""
        self._reported_at = clock()

    def started(self) -> None:
        os.close(self.theirs)

    async def wait_until_lost(
        self,
        first_s_max: float,
        silent_s_max: float,
        *,
        look_s: float = LOOK_S,
        seconds: Callable[[], float] = time.monotonic,
    ) -> float:
        """Wait until no heartbeat has come for too long; return the seconds of silence.

        Too long is `first_s_max` before the first heartbeat, and `silent_s_max` after it.
        """
        heard = seconds()
        awake, bound = Awake(heard, 2 * look_s), first_s_max
        while True:
            await asyncio.sleep(look_s)
            now = awake.advance(seconds())
            self._hear()
            if self._beaten:
                self._beaten, heard, bound = False, now, silent_s_max
            elif now - heard > bound:
                return now - heard

    def close(self) -> None:
        os.close(self._ours)

    def is_ready(self) -> bool:
        self._hear()
        return self._ready

    def report(self) -> bytes:
        """Return the newest report, if it came within `SILENT_S_MAX` seconds, else b""."""
        self._hear()
        return self._report if self._clock() - self._reported_at <= SILENT_S_MAX else b""

    def _hear(self) -> None:
        """Read the child's beats: that it is ready, and its reports."""
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._ours, BEATS_READ_MAX)
            self._beaten |= bool(said)
            *lines, last = (self._line_start + said).split(b"\n")
            self._line_start = last if last.startswith(b"{") else b""
            for line in (*lines, last):
                if not line.startswith(b"{"):
                    self._ready |= READY in line
                elif line is not last:
                    self._report, self._reported_at = line, self._clock()


# The number of open files (and sockets) of a process, and its maximum.

OPEN_FILES_MAX = 1_000_000
OURS = Path("/proc/self/fd")


def open_files_limit() -> int:
    """Return the maximum of open files that a started process can get."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)


def allow_many_files() -> None:
    """Raise this process's limit of open files to the maximum, as every stream needs two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < open_files_limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files_limit(), hard))


def count_open_files() -> int:
    """Return the number of open files of this process; 0 if the system does not report it."""
    with suppress(OSError):
        return OURS.stat().st_size or len(os.listdir(OURS))  # the size is the number since Linux 6.2
    return 0
