"""Settings of a keeper, read again while it runs: its supervisor tells them, or it reads them itself.

Part of the composition root.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gateway.core.upstreams.proxies import Proxies
from gateway.run.parent_pipe import ParentPipe
from gateway.run.reload import (
    KEEPERS_RENEWABLE,
    KEPT_BY_KEEPERS,
    Renewal,
    Told,
    keep_renewing,
    watch_credentials,
)
from gateway.run.sent_settings import SentSettings
from gateway.run.sign_ins import KeptSignIns
from gateway.run.watching import LOOK_S
from gateway.settings.settings import Settings
from gateway.telemetry import logs
from gateway.telemetry import snapshot_files as tallies

# Where later settings come from, if any do.
Source = ParentPipe | Callable[[], Settings] | None


class KeeperSettings:
    """What a keeper goes by that may change while it runs: who signs in, through whom it calls others and
    by which secrets, and what is logged.
    """

    def __init__(
        self, settings: Settings, source: Source, log: Callable[..., None], *, look_s: float = LOOK_S
    ) -> None:
        self.sign_ins = KeptSignIns(settings, log)
        self._running, self._look_s = settings, look_s
        self._settings, self._source, self._log = settings, source, log
        read = source if callable(source) else lambda: settings
        self._now = Renewal(settings, read, KEEPERS_RENEWABLE, KEPT_BY_KEEPERS)
        self._sent = SentSettings(self._renew, log)

    async def keep(self) -> None:
        """Take over what comes until cancelled; SIGHUP asks a keeper that reads it itself."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        if isinstance(self._source, ParentPipe):
            self._source.listen(lambda line: loop.call_soon_threadsafe(self._sent.hear, line))
        if not callable(self._source):
            await asked.wait()
            return
        if not sys.stdin.isatty():  # else it means that the terminal is gone
            loop.add_signal_handler(signal.SIGHUP, asked.set)
        told = Told(self._taken, self._log, partial(self._log, level="warning"))
        async with asyncio.TaskGroup() as both:
            both.create_task(keep_renewing(self._now, asked, told))
            both.create_task(watch_credentials(self._now, told, look_s=self._look_s))

    def proxies(self) -> Proxies:
        """Through whom others are called now."""
        return self._running.proxies

    def saying(self, name: str) -> Callable[[], str]:
        """What tells the secret of a setting, as it is when it is asked."""
        return lambda: str(getattr(self._running, name))

    async def is_last(self) -> bool:
        """Whether what runs here goes by the configuration file as it is now."""
        told = await asyncio.to_thread(tallies.collect, self._settings.metrics_dir)
        return not (self._now.wrong or self._sent.is_stale or told.get("configuration_stale", 0))

    def snapshot(self) -> Mapping[str, Any]:
        """What metrics say of it."""
        return {"configuration_stale": int(bool(self._now.wrong) or self._sent.is_stale)}

    async def _taken(self) -> None:
        self._sent.take(self._now.running)
        self._now.running = self._running  # those before, where these were not taken

    def _renew(self, settings: Settings) -> None:
        self.sign_ins.renew(settings)
        self._running = settings
        logs.configure(settings.log_level)
