"""Memory that a process gives back to its machine."""

from __future__ import annotations

import ctypes
import gc
from contextlib import suppress


def give_back_memory() -> None:
    """Release memory that is no longer needed after the start to the system: 2 MiB of a gateway."""
    gc.unfreeze()  # objects frozen by `loading_code` include garbage
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


MAPPED_BYTES_MIN = 32 * 1024
_MMAP_THRESHOLD = -3  # the number in malloc.h


def give_back_large_blocks() -> bool:
    """Make the C library return freed large blocks to the system at once; return False if it cannot."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, MAPPED_BYTES_MIN) == 1
