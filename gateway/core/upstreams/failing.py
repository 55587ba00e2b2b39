"""Why upstreams fail: causes of a few words, told at a bounded rate.

Causes are labels of a metric and words of a log line; `gateway/outbound/causes.py` finds them in errors.
"""

from __future__ import annotations

REFUSED, UNRESOLVED, TLS, UNROUTABLE, RESET = "refused", "unresolved", "tls", "unroutable", "reset"
TIMEOUT, CONNECT_TIMEOUT, BROKEN, OTHER = "timeout", "connect_timeout", "broken", "other"
PROXY = "proxy"  # on the way to the upstream: it cannot be reached, refuses, or speaks no HTTP
CAUSES = (REFUSED, UNRESOLVED, TLS, UNROUTABLE, RESET, CONNECT_TIMEOUT, TIMEOUT, BROKEN, PROXY, OTHER)
# One line of each upstream and cause within so many seconds; it says how many there were.
TELL_EACH_S = 10.0


class Failing:
    """How many failures of an upstream and cause are not told yet, and when one was told last."""

    __slots__ = ("_untold",)

    def __init__(self) -> None:
        self._untold: dict[tuple[str, str], list[float]] = {}

    def note(self, upstream: str, cause: str, now: float) -> int:
        """Count a failure; how many there were since the last telling where it is time to tell, else 0."""
        known = self._untold.get((upstream, cause))
        if known is None:
            self._untold[upstream, cause] = [now + TELL_EACH_S, 0.0]
            return 1
        known[1] += 1
        if now < known[0]:
            return 0
        count = int(known[1])
        known[0], known[1] = now + TELL_EACH_S, 0.0
        return count
