"""A worker's seat: an id that outlives the worker, so that whoever starts next in its place has it again.

What a worker left in Redis under names made from its seat is found and corrected by its successor,
instead of staying until it times out.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID, uuid4

SEATS_MAX = 1024
SEAT_BYTES = 36


def take_seat(directory: Path) -> UUID:
    """The first seat in the directory that nobody sits on, kept until this process ends.

    Where the directory cannot be written, or the seats are all taken, a seat nobody will find again.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(SEATS_MAX):
            descriptor = os.open(directory / f"{number}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                continue
            return _read_or_write(descriptor)  # left open: the lock ends with the process
    except OSError:
        pass
    return uuid4()


def _read_or_write(descriptor: int) -> UUID:
    try:
        return UUID(os.pread(descriptor, SEAT_BYTES, 0).decode())
    except ValueError:
        seat = uuid4()
        os.pwrite(descriptor, str(seat).encode(), 0)
        return seat
