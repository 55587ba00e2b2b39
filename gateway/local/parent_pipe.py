"""The standard input of a child process: lines from its supervisor; it closes when the supervisor ends.

This module imports little, so that small processes start fast.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

# Maximum time that a process takes to stop after its supervisor ended.
LOST_MAX_S = 45.0
# Maximum of stored lines that arrived before `listen`; the oldest are dropped.
WAITING_LINES_MAX = 64


class ParentPipe:
    """Lines from the supervisor, read from a duplicate of the descriptor."""

    def __init__(self, descriptor: int) -> None:
        # Not `sys.stdin`: a thread that still reads it would block the interpreter's exit.
        self._lines = os.fdopen(os.dup(descriptor), "rb")
        self._lock = threading.Lock()
        self._on_line: Callable[[bytes], object] | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING_LINES_MAX)

    def first(self) -> bytes:
        """Return the first line with its newline; b"" if the supervisor ended without sending one."""
        return self._lines.readline()

    def hold(self, grace_s: float) -> None:
        """Stop this process in order once the supervisor has ended; kill it after `grace_s` seconds."""
        threading.Thread(target=self._watch, args=(grace_s,), name="parent pipe", daemon=True).start()

    def listen(self, told: Callable[[bytes], object]) -> None:
        """Call `told` from another thread with each line that the supervisor sends, stored lines first."""
        with self._lock:
            self._on_line = told
            while self._waiting:
                told(self._waiting.popleft())

    def _watch(self, grace_s: float) -> None:
        """Pass the parent's lines on; when the parent ends, stop this process within `grace_s`."""
        while line := self._lines.readline():
            with self._lock:
                if self._on_line is not None:
                    self._on_line(line)
                else:
                    self._waiting.append(line)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(min(grace_s, LOST_MAX_S))
        os._exit(1)
