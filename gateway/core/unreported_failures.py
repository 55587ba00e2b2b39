"""Failures that are counted until they are reported, rarely."""

from __future__ import annotations

# Seconds between two log lines about one upstream and cause; a line has the number of failures.
TELL_EACH_S = 10.0


class UnreportedFailures:
    """Counts of failures by upstream and cause since the last log line about them."""

    __slots__ = ("_untold",)

    def __init__(self) -> None:
        self._untold: dict[tuple[str, str], list[float]] = {}

    def note(self, upstream: str, cause: str, now: float, each_s: float = TELL_EACH_S) -> int:
        """Count a failure of an upstream. Return the failures since the last log line, or 0.

        It is 0 unless a line is due: at the first failure, and then every `each_s` seconds.
        """
        known = self._untold.get((upstream, cause))
        if known is None:
            self._untold[upstream, cause] = [now + each_s, 0.0]
            return 1
        known[1] += 1
        if now < known[0]:
            return 0
        count = int(known[1])
        known[0], known[1] = now + each_s, 0.0
        return count
