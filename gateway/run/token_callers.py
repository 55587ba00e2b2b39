"""Who calls with a token of an issuer, introduced to the directory of API keys.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.core.peppers import peppers_of
from gateway.issuers.callers import Directory, TokenCallers
from gateway.issuers.keys import AllKeys
from gateway.settings.settings import Settings


def token_callers(settings: Settings, directory: Directory, log: Callable[..., None]) -> TokenCallers:
    """What a worker knows tokens by, with the issuers of its settings."""
    keys = AllKeys(time.monotonic, log)
    callers = TokenCallers(keys, directory, peppers_of(settings).digests, time.time)
    callers.renew(settings.issuers)
    return callers
