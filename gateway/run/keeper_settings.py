"""Settings of a keeper that may change while it runs: its supervisor sends them, or it reads them itself.

Both of its processes have them: the loops' process sends them to the one for people.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.core.network import Proxies
from gateway.local.parent_pipe import ParentPipe
from gateway.run.reload import (
    KEEPERS_RENEWABLE,
    KEPT_BY_KEEPERS,
    LOOK_S,
    Renewal,
    SettingsListener,
    SettingsUpdates,
    keep_renewing,
    watch_credentials,
)
from gateway.settings.settings import Settings
from gateway.telemetry import logs

# The source of later settings, if any.
Source = ParentPipe | Callable[[], Settings] | None


class KeeperSettings:
    """The settings of a keeper that may change while it runs: sign-in, proxies, secrets, log level.

    `renew` applies new settings elsewhere first; if it raises, nothing is changed.
    """

    def __init__(
        self, settings: Settings, source: Source, log: Callable[..., None],
        renew: Callable[[Settings], None], *, look_s: float = LOOK_S,
    ) -> None:  # fmt: skip
        self._renew_others = renew
        self._running, self._look_s = settings, look_s
        self._source, self._log = source, log
        read = source if callable(source) else lambda: settings
        self._now = Renewal(settings, read, KEEPERS_RENEWABLE, KEPT_BY_KEEPERS)
        self._sent = SettingsUpdates(self._renew, log)

    def hear(self, line: bytes) -> None:
        """Apply the settings in a line from the parent process."""
        self._sent.hear(line)

    async def keep(self) -> None:
        """Apply new settings until cancelled: from the parent process, or without one from a changed file.

        SIGHUP makes a keeper without a parent read the file at once.
        """
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        if isinstance(self._source, ParentPipe):
            self._source.listen(lambda line: loop.call_soon_threadsafe(self.hear, line))
        if not callable(self._source):
            await asked.wait()
            return
        if not sys.stdin.isatty():  # in a terminal SIGHUP means that it was closed
            loop.add_signal_handler(signal.SIGHUP, asked.set)
        listener = SettingsListener(self._apply_settings, self._log, partial(self._log, level="warning"))
        async with asyncio.TaskGroup() as both:
            both.create_task(keep_renewing(self._now, asked, listener))
            both.create_task(watch_credentials(self._now, listener, look_s=self._look_s))

    def proxies(self) -> Proxies:
        return self._running.proxies

    def saying(self, name: str) -> Callable[[], str]:
        """Return a function that returns the present value of the secret setting `name`."""
        return lambda: str(self._running.value(name))

    def snapshot(self) -> Mapping[str, Any]:
        return {"configuration_stale": int(bool(self._now.wrong) or self._sent.is_stale)}

    async def _apply_settings(self) -> None:
        self._sent.take(self._now.running)
        self._now.running = self._running  # the former ones, if the new ones were refused

    def _renew(self, settings: Settings) -> None:
        self._renew_others(settings)
        self._running = settings
        logs.configure(settings.log_level)
