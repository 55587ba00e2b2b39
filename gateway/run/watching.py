"""Files that are read again when they change, while a process runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.settings.secret_files import Watched

# How often files are looked at.
LOOK_S = 5.0


async def watch(
    paths: Callable[[], Iterable[str]],
    read: Callable[[], Awaitable[str]],
    warn: Callable[[str], None],
    *,
    look_s: float = LOOK_S,
) -> None:
    """Have `read` take files over once they change, until cancelled; it answers why not, or nothing.

    What could not be read is tried again with each look, since rights may change where a file does not. Why
    is told once.
    """
    watched, warned = Watched(), ""
    while True:
        if await asyncio.to_thread(watched.changed, [*paths()]):
            why = await read()
            if why:
                watched.forget()
                if why != warned:
                    warn(why)
            warned = why
        await asyncio.sleep(look_s)
