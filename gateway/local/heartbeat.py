"""A worker's sign of life: a byte a second down a pipe, from inside its loop; and who listens for it.

It says on the same pipe when it is ready. A loop that does not turn sends none. Time in which the listener
itself stood still does not count: neither a machine that slept, nor one on which nobody came to run.
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

# Which descriptor the pipe is, for the process that beats.
HEARTBEAT_VARIABLE = "HEARTBEAT_DESCRIPTOR"
BEAT_S = 1.0
LOOK_S = 0.5
BEAT, READY = b".", b"!"
BEATS_READ_MAX = 4_096


async def keep_beating(beat_s: float = BEAT_S) -> None:
    """Beat until cancelled; nothing where nobody listens."""
    while os.environ.get(HEARTBEAT_VARIABLE, ""):
        _say(BEAT)
        await asyncio.sleep(beat_s)


def say_ready() -> None:
    """Report, once, that this process is ready."""
    if os.environ.get(HEARTBEAT_VARIABLE, ""):
        _say(READY)


def _say(sign: bytes) -> None:
    pipe = int(os.environ[HEARTBEAT_VARIABLE])
    os.set_blocking(pipe, False)
    with contextlib.suppress(OSError):  # nobody reads now, or ever again
        os.write(pipe, sign)


class Heartbeat:
    """The listening end. The other one, `theirs`, is for the process that is started with it."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)
        self._beaten = self._ready = False

    def started(self) -> None:
        os.close(self.theirs)

    async def lost(
        self,
        first_s_max: float,
        silent_s_max: float,
        *,
        look_s: float = LOOK_S,
        seconds: Callable[[], float] = time.monotonic,
    ) -> float:
        """Return the seconds of silence, once too long: before the first beat, or after the last."""
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

    def _hear(self) -> None:
        with contextlib.suppress(BlockingIOError):
            said = os.read(self._ours, BEATS_READ_MAX)
            self._beaten |= bool(said)
            self._ready |= READY in said


# How many files, which sockets are too, a process has open, and how many it may have.

OPEN_FILES_MAX = 1_000_000
OURS = Path("/proc/self/fd")


def open_files_limit() -> int:
    """Return how many a process that we start may have open, once it asks for all it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES_MAX)


def allow_many_files() -> None:
    """Raise our own limit as far as we may: every stream is two sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < open_files_limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (open_files_limit(), hard))


def count_open_files() -> int:
    """Return how many this process has open; 0 where the system does not say."""
    with suppress(OSError):
        return OURS.stat().st_size or len(os.listdir(OURS))  # its size is their number, since Linux 6.2
    return 0
