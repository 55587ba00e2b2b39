"""The providers of identities by which people sign in to the console.

Part of the composition root.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from gateway.issuers.sign_in import SignIns
from gateway.settings.settings import Settings


def sign_ins(settings: Settings, log: Callable[..., None]) -> SignIns | None:
    """Those of the settings; None where there are none."""
    if not settings.sign_in.providers:
        return None
    return SignIns(settings.sign_in, time.monotonic, time.time, log)
