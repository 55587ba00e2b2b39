"""How the C library keeps memory that was given back: large blocks go back to the system at once.

By itself glibc raises its threshold to the largest block it has freed, and then keeps bodies and heads of
a burst in its heap, for ever where a small block came to lie above them.
"""

from __future__ import annotations

import ctypes

MAPPED_BYTES_MIN = 32 * 1024
_MMAP_THRESHOLD = -3  # as malloc.h numbers it


def give_back_large_blocks() -> bool:
    """Map blocks of this size on their own; False where the C library has no such setting."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, MAPPED_BYTES_MIN) == 1
