"""What comes to the admin port and is no HTTP: counted, and told of seldom, without a byte of it.

aiohttp tells of each such head, with what it says, at the length its sender chose.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from aiohttp.http_exceptions import HttpProcessingError

TOLD_EACH_S = 60.0


def port_logger(clock: Callable[[], float]) -> logging.Logger:
    """The logger of one port."""
    # Not by name: each port has its own, and what it passes goes to the handlers of all.
    made = logging.Logger("tollkeeper.admin.http")  # noqa: LOG001  # one of a name would be all ports' at once
    made.parent = logging.getLogger()
    made.addFilter(Unreadable(clock))
    return made


class Unreadable(logging.Filter):
    """Lets one line pass in a while that says how many there were; what else is told passes as it is."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__()
        self._clock = clock
        self._count, self._next = 0, 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record passes, without what was sent."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, HttpProcessingError):
            return True
        self._count += 1
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + TOLD_EACH_S
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.msg, record.args, record.exc_info = "what came to the admin port is no HTTP", (), None
        record.facts = {"requests": self._count, "why": type(error).__name__}
        self._count = 0
        return True
