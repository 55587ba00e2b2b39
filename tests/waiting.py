"""How tests wait: for what should happen, never for a fixed while. Nothing else here sleeps to look again."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any

WITHIN_S = 60.0
LOOK_S = 0.01


async def eventually(look: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `look` answers, or awaits, once that is true; an AssertionError where it is not in time."""
    end = time.monotonic() + within_s
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < end, f"not within {within_s} s; last answer: {found!r}"
        await asyncio.sleep(LOOK_S)


def wait_until(look: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """The same where no loop runs: what `look` answers once that is true."""
    end = time.monotonic() + within_s
    while not (found := look()):
        assert time.monotonic() < end, f"not within {within_s} s; last answer: {found!r}"
        time.sleep(LOOK_S)
    return found
