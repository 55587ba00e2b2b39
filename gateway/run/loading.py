"""Loading code without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_code() -> Iterator[None]:
    """Switch garbage collection off while code is loaded, because it would take a third of the time.

    The loaded objects are frozen afterwards, so that no later collection visits them until `give_back_memory`
    of `memory.py` unfreezes them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
