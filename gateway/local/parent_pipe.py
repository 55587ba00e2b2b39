"""The standard input of a process of ours: its supervisor tells it lines, and is gone when it closes.

This module imports little, so that a process that needs no more starts fast.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

# The longest a process may take to stop once its supervisor is gone.
LOST_MAX_S = 45.0
# Lines that came before anybody listened. They are kept in their order; of more, the last ones.
WAITING_LINES_MAX = 64


class ParentPipe:
    """Lines of the supervisor, read from a descriptor of our own."""

    def __init__(self, descriptor: int) -> None:
        # Not `sys.stdin` itself: a thread that still reads it would stop the interpreter's end.
        self._lines = os.fdopen(os.dup(descriptor), "rb")
        self._lock = threading.Lock()
        self._told: Callable[[bytes], object] | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LINES_MAX)

    def first(self) -> bytes:
        """Return the first line, its newline included; without one the supervisor went away before."""
        return self._lines.readline()

    def hold(self, grace_s: float) -> None:
        """Stop this process in order when the other end closes, from now on."""
        threading.Thread(target=self._watch, args=(grace_s,), name="parent pipe", daemon=True).start()

    def listen(self, told: Callable[[bytes], object]) -> None:
        """Call `told`, from another thread, with each later line; at once with those that came already."""
        with self._lock:
            self._told = told
            while self._waiting:
                told(self._waiting.popleft())

    def _watch(self, grace_s: float) -> None:
        while line := self._lines.readline():
            with self._lock:
                if self._told is not None:
                    self._told(line)
                else:
                    self._waiting.append(line)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(min(grace_s, LOST_MAX_S))
        os._exit(1)
