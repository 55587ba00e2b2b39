"""A worker's slot: an id that outlives the worker, so that whoever starts next in its place has it again.

What a worker left in Redis under names made from its slot is found and corrected by its successor,
instead of staying until it times out.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from uuid import UUID, uuid4

SLOTS_MAX = 1024
SLOT_BYTES = 36


def take_worker_slot(directory: Path) -> UUID:
    """The first worker slot in the directory that nobody sits on, kept until this process ends.

    Where the directory cannot be written, or all are taken: a slot that nobody will find again.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        for number in range(SLOTS_MAX):
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
        return UUID(os.pread(descriptor, SLOT_BYTES, 0).decode())
    except ValueError:
        worker_slot = uuid4()
        os.pwrite(descriptor, str(worker_slot).encode(), 0)
        return worker_slot
