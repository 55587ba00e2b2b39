"""The providers of identities by which people sign in to the console, as the settings of a keeper have them.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.issuers.sign_in import SignIns
from gateway.settings.settings import Settings


class KeptSignIns:
    """Those of the settings: `now` is None where there were none when the keeper was started."""

    def __init__(self, settings: Settings, log: Callable[..., None]) -> None:
        wanted, self._log = settings.sign_in, log
        self._heard = wanted
        self.now = SignIns(wanted, time.monotonic, time.time, log) if wanted.providers else None

    def renew(self, settings: Settings) -> None:
        """Go by other providers; the address of the console stays, since browsers were told it."""
        wanted, now = settings.sign_in, self.now
        if now is not None:
            now.renew_providers(wanted)
        is_new, self._heard = wanted != self._heard, wanted
        if is_new and wanted.providers and (now is None or now.console_url != wanted.console_url):
            self._log("a restart is needed", setting="sign_in", level="warning")
