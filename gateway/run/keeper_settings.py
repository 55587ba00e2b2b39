"""Settings of a keeper, read again while it runs: its supervisor tells them, or it reads them itself.

Both of its processes have them: that of the loops tells that for people.

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
from gateway.run.watching import LOOK_S
from gateway.settings.settings import Settings
from gateway.telemetry import logs

# Where later settings come from, if any do.
Source = ParentPipe | Callable[[], Settings] | None


class KeeperSettings:
    """What a keeper goes by that may change while it runs: who signs in, through whom it calls others and
    by which secrets, and what is logged.

    `renew` goes by other ones first, and changes nothing where it raises.
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
        self._sent = SentSettings(self._renew, log)

    def hear(self, line: bytes) -> None:
        """Take over settings that the process above sends."""
        self._sent.hear(line)

    async def keep(self) -> None:
        """Take over what comes until cancelled; SIGHUP asks a keeper that reads it itself."""
        loop, asked = asyncio.get_running_loop(), asyncio.Event()
        if isinstance(self._source, ParentPipe):
            self._source.listen(lambda line: loop.call_soon_threadsafe(self.hear, line))
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

    def snapshot(self) -> Mapping[str, Any]:
        """What metrics say of it."""
        return {"configuration_stale": int(bool(self._now.wrong) or self._sent.is_stale)}

    async def _taken(self) -> None:
        self._sent.take(self._now.running)
        self._now.running = self._running  # those before, where these were not taken

    def _renew(self, settings: Settings) -> None:
        self._renew_others(settings)
        self._running = settings
        logs.configure(settings.log_level)
