"""Loading code without garbage collection."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_code() -> Iterator[None]:
    """Switch the garbage collector off meanwhile: it would take a third of the time.

    The loaded objects are frozen then: no later collection walks through them, until `give_back_memory` of
    `lifecycle.py` unfreezes them.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
