"""Whether a client's socket is read, why not, and whether the client is still there meanwhile.

A client that is not read is asked after at its kernel's: a reset shows at once, an end once all that was
sent before it is in our buffers. What waits in the client's own buffers hides its end; how long, the
deadlines of whoever is waited for decide.
"""

from __future__ import annotations

import fcntl
import select
import socket
import struct
import termios
from typing import Any

SUCCESSOR, UNWANTED, SLOW_UPSTREAM, SLOW_CLIENT, TURN = 1, 2, 4, 8, 16
ANYTHING = SUCCESSOR | UNWANTED | SLOW_UPSTREAM | SLOW_CLIENT  # but a turn, which comes by itself
_ENDED = getattr(select, "POLLRDHUP", 0)  # Linux; elsewhere an end is seen by reading alone
_BROKEN = select.POLLERR | select.POLLHUP | select.POLLNVAL
_NUMBER = struct.Struct("i")
_RESET = struct.pack("ii", 1, 0)


class Reading:
    """Reasons not to read one socket; it is read while there is none. Nothing happens once it is closed."""

    __slots__ = ("_transport", "paused")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self.paused = 0

    def pause(self, reason: int) -> None:
        """Read no further until this reason is gone."""
        if not self.paused and self._transport is not None:
            self._transport.pause_reading()
        self.paused |= reason

    def resume(self, reasons: int) -> None:
        """Read on, if these were all reasons there are."""
        if self.paused:
            self.paused &= ~reasons
            if not self.paused and self._transport is not None:
                self._transport.resume_reading()

    def close(self) -> None:
        """The socket is closed."""
        self._transport = None

    def break_off(self) -> None:
        """Reset the connection, so that nobody takes what came on it for a complete answer."""
        self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._transport.abort()

    def is_left(self) -> bool:
        """Whether the client has broken the connection."""
        return bool(self._events() & _BROKEN)

    def is_ended(self) -> bool:
        """Whether the client sends nothing after what is here unread."""
        return bool(self._events() & _ENDED)

    def unread(self) -> int:
        """Bytes that are here and not read yet."""
        found = fcntl.ioctl(self._descriptor(), termios.FIONREAD, bytes(_NUMBER.size))
        return int(_NUMBER.unpack(found)[0])

    def _events(self) -> int:
        poll = select.poll()
        poll.register(self._descriptor(), _ENDED)
        return sum(events for _, events in poll.poll(0))

    def _descriptor(self) -> int:
        return int(self._transport.get_extra_info("socket").fileno())
