"""A worker's sign of life: a byte a second down a pipe, from inside its loop; and who listens for it.

A loop that does not turn sends none. Time in which the listener itself stood still does not count: neither
a machine that slept, nor one on which nobody came to run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable

from gateway.core.wait import Awake

# Which descriptor the pipe is, for the process that beats.
VARIABLE = "HEARTBEAT_DESCRIPTOR"
BEAT_S = 1.0
LOOK_S = 0.5
BEATS_READ_MAX = 4_096


async def keep_beating(beat_s: float = BEAT_S) -> None:
    """Beat until cancelled; nothing where nobody listens."""
    descriptor = os.environ.get(VARIABLE, "")
    if not descriptor:
        return
    pipe = int(descriptor)
    os.set_blocking(pipe, False)
    while True:
        with contextlib.suppress(OSError):  # nobody reads now, or ever again
            os.write(pipe, b".")
        await asyncio.sleep(beat_s)


class Heartbeat:
    """The listening end. The other one, `theirs`, is for the process that is started with it."""

    def __init__(self) -> None:
        self._ours, self.theirs = os.pipe()
        os.set_blocking(self._ours, False)

    def started(self) -> None:
        """The process has its end now."""
        os.close(self.theirs)

    async def lost(
        self,
        first_s_max: float,
        silent_s_max: float,
        *,
        look_s: float = LOOK_S,
        seconds: Callable[[], float] = time.monotonic,
    ) -> float:
        """Seconds of silence, once that is more than may be: before the first beat, or behind the last."""
        heard = seconds()
        awake, bound = Awake(heard, 2 * look_s), first_s_max
        while True:
            await asyncio.sleep(look_s)
            now = awake.advance(seconds())
            if self._beaten():
                heard, bound = now, silent_s_max
            elif now - heard > bound:
                return now - heard

    def close(self) -> None:
        """Listen no more."""
        os.close(self._ours)

    def _beaten(self) -> bool:
        try:
            return bool(os.read(self._ours, BEATS_READ_MAX))
        except BlockingIOError:
            return False
