"""How a process of ours loads its code in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_code() -> Iterator[None]:
    """While code is loaded no garbage is looked for: that would be a third of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()  # what is loaded stays
        gc.enable()
