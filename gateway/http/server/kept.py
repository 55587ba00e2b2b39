"""What is kept for one connection in addition to the body in progress, counted in its worker's budgets.

Requests that wait unread are nobody's yet and count as heads. Answers that their client does not
take count for whoever asked: they are there already, so they are never refused, only counted.
"""

from __future__ import annotations

from gateway.core.model import Caller
from gateway.errors import Overloaded, Refusal
from gateway.http.server.buffers import Buffers


class Kept:
    """`unread` bytes of requests, as far as they count, and `untaken` bytes of answers."""

    __slots__ = ("_buffers", "_caller", "unread", "untaken")

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers
        self._caller: Caller | None = None
        self.unread = self.untaken = 0

    def keep_unread(self, size: int) -> bool:
        """Whether so many bytes of requests may wait, in place of those before."""
        counted = self._buffers.keep_head(size, self.unread)
        self.unread = counted or 0
        return counted is not None

    def keep_untaken(self, caller: Caller | None, size: int) -> bool:
        """So many bytes of answers wait, in place of those before; whether their caller's budget has room."""
        buffers, before = self._buffers, self.untaken
        if before and self._caller is not None:
            buffers.release(self._caller, before)
        self._caller, self.untaken = caller, size if caller is not None else 0
        if caller is None or not size:
            return True
        buffers.add(caller, size)
        return buffers.has_room(caller)


def full() -> Refusal:
    """What whoever sends more is told."""
    return Overloaded("The gateway keeps as much of unfinished requests as it may.", retry_after_s=1)
