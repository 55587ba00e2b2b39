"""Settings that the process above sends while this one runs: taken over, or told as ones that cannot be.

Gateway workers and keepers have the same guard. Who takes them changes nothing where it raises.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from gateway.settings.settings import Settings, WatchedFiles, from_json


class SettingsUpdates:
    """A receiver of settings; `is_stale` while the last ones are not in force."""

    def __init__(self, take: Callable[[Settings], None], log: Callable[..., None]) -> None:
        self.is_stale = False
        self._take, self._log = take, log

    def hear(self, line: bytes) -> None:
        """Go by the settings of a line; the process that sent them has checked them."""
        self._guarded(lambda: self._take(from_json(line)))

    def take(self, settings: Settings) -> None:
        """Go by these settings."""
        self._guarded(lambda: self._take(settings))

    def _guarded(self, take: Callable[[], None]) -> None:
        self.is_stale = True
        try:
            take()
        except Exception as error:  # noqa: BLE001  # else it would end in the event loop, and nobody know
            # What it says may quote a credential.
            why = type(error).__name__
            self._log("settings cannot be served by, and are kept as they were", error=why, level="error")
        else:
            self.is_stale = False


# Files that are read again when they change, while a process runs.


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

    A file that could not be read is tried again with each look, since rights may change where a file does
    not. Why is told once.
    """
    watched, warned = WatchedFiles(), ""
    while True:
        if await asyncio.to_thread(watched.changed, [*paths()]):
            why = await read()
            if why:
                watched.forget()
                if why != warned:
                    warn(why)
            warned = why
        await asyncio.sleep(look_s)
