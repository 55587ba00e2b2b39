"""How tests wait: for what should happen, never for a fixed while. Nothing else here sleeps to look again."""

from __future__ import annotations

import asyncio
import inspect
import select
import time
from collections.abc import Callable
from typing import IO, Any, Final

WITHIN_S = 60.0
# A program or a thread that has not started, answered or ended by then hangs: no machine is that slow.
HUNG_S: Final = 900.0
LOOK_S_MIN, LOOK_S_MAX = 0.01, 0.1


async def eventually(look: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """What `look` answers, or awaits, once that is true; an AssertionError where it is not in time."""
    begun = time.monotonic()
    while True:
        found = look()
        if inspect.isawaitable(found):
            found = await found
        if found:
            return found
        waited = time.monotonic() - begun
        assert waited < within_s, f"not within {within_s} s; last answer: {found!r}"
        await asyncio.sleep(_pause_s(waited))


def wait_until(look: Callable[[], Any], within_s: float = WITHIN_S, apart_s: float = LOOK_S_MIN) -> Any:
    """The same where no loop runs: what `look` answers once that is true; looks are `apart_s` at least."""
    begun = time.monotonic()
    while not (found := look()):
        waited = time.monotonic() - begun
        assert waited < within_s, f"not within {within_s} s; last answer: {found!r}"
        time.sleep(max(apart_s, _pause_s(waited)))
    return found


def _pause_s(waited_s: float) -> float:
    """An eighth of the wait so far: a look costs the time of those it waits for."""
    return min(max(LOOK_S_MIN, waited_s / 8), LOOK_S_MAX)


def readable(stream: IO[Any], within_s: float) -> bool:
    """Return whether a pipe has something to read, or has ended, in time. Its number may be above 1,023."""
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(within_s * 1_000))
