"""Who calls with a token of an issuer, introduced to the directory of API keys.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.http.routing.identity import key_digest
from gateway.issuers.callers import Directory, TokenCallers
from gateway.issuers.keys import AllKeys
from gateway.settings.settings import Settings


def token_callers(settings: Settings, directory: Directory, log: Callable[..., None]) -> TokenCallers:
    """What a worker knows tokens by, with the issuers of its settings."""
    pepper = settings.key_pepper.encode()
    keys = AllKeys(time.monotonic, log)
    callers = TokenCallers(keys, directory, lambda known_as: key_digest(known_as, pepper), time.time)
    callers.renew(settings.issuers)
    return callers
