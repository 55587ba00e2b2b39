"""What is here of the body of the request in progress, and who waits for more of it.

Bytes that are waited for count in their caller's share, from the first wait until `let_go`. What is
never waited for is bounded by one read: the socket is not read on then, which is its owner's affair.
"""

from __future__ import annotations

import asyncio

from gateway.core.http_limits import HttpLimits
from gateway.core.model import Caller
from gateway.core.wait import Wait
from gateway.http.server.buffers import Buffers


class RequestBody:
    """The body of one request at a time. `size` is what came of it, `kept` what counts in a share."""

    __slots__ = ("_buffers", "_caller", "_enough", "_grace", "_parts", "_wait", "kept", "size")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._caller: Caller | None = None
        self._parts: list[bytes] = []
        self.size = self._enough = self.kept = 0
        self._wait: Wait[None] | None = None
        self._grace: asyncio.TimerHandle | None = None

    @property
    def awaited(self) -> bool:
        """Whether somebody waits for more."""
        return self._wait is not None

    @property
    def enough(self) -> bool:
        """Whether there is more than was asked for."""
        return self.size > self._enough

    def add(self, part: bytes) -> None:
        """Keep a part."""
        self._parts.append(part)

    def take_parts(self) -> bytes:
        """The bytes that have arrived; they are given away."""
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def arrival(self, caller: Caller | None, enough: int) -> Wait[None]:
        """Wait for the end, or for more than so many bytes, which a caller's share has."""
        self._caller, self._enough = caller, enough
        wait: Wait[None] = Wait()
        self._wait = wait
        return wait

    def soon(self, caller: Caller, length: int, limits: HttpLimits) -> Wait[None] | None:
        """Wait for the end of a small body, but a moment only.

        None where it is not small, and while much is kept: nobody is refused for bytes nobody admitted.
        """
        if length > limits.collected_bytes_max or self._buffers.pressed:
            return None
        wait = self.arrival(caller, length)
        self.count(caller, length)
        self._grace = asyncio.get_running_loop().call_later(limits.body_grace_s, self.wake)
        return wait

    def count(self, caller: Caller, more: int) -> None:
        """So many bytes more are kept for a caller whose share has room."""
        self._caller = caller
        self._buffers.add(caller, more)
        self.kept += more

    def afford(self) -> bool:
        """Whether all that is here may be kept; a caller that is not known yet has no share."""
        more, caller = self.size - self.kept, self._caller
        if more > 0:
            if caller is None or not self._buffers.acquire(caller, more):
                return False
            self.kept += more
        return True

    def claim(self, caller: Caller, size: int) -> bool:
        """Whether so many bytes that were given away may be kept on for a caller."""
        self._caller, self.size = caller, max(size, self.kept)
        return self.afford()

    def wake(self) -> None:
        """Let whoever waits go on."""
        wait = self._ended()
        if wait is not None:
            wait.set(None)

    def fail(self, error: BaseException) -> bool:
        """Tell whoever waits that it is in vain; False where nobody does."""
        wait = self._ended()
        if wait is not None:
            wait.fail(error)
        return wait is not None

    def let_go(self) -> None:
        """What was kept is kept no longer."""
        kept, self.kept = self.kept, 0
        if kept and self._caller is not None:
            self._buffers.release(self._caller, kept)

    def forget(self) -> None:
        """The request is over: nobody waits for what is left of it, nor keeps it."""
        self.let_go()
        self._ended()
        self._parts = []

    def _ended(self) -> Wait[None] | None:
        wait, self._wait = self._wait, None
        grace = self._grace
        if grace is not None:
            self._grace = None
            grace.cancel()
        return wait
