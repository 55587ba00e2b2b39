"""Partitions that PostgreSQL knows as verified since, under another history than the counters here have.

Two keepers see two servers then. A primary that was cut off answers as ever until its cluster tells it, and
a replica has taken over meanwhile. Whoever is behind says nothing and stores nothing: what the other one
compared with PostgreSQL would be wrong from then on. Where that stays so, the other one is gone, and what is
here is verified anew, under a later epoch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final

from gateway.core.integrity.recovery import Markers

# Longer than a primary that was cut off answers: a cluster's node timeout, 15 s where nobody chose another.
OVERTAKEN_S: Final = 20.0


class Overtaken:
    """Since when each partition is. Moments are seconds of a monotonic clock."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Of this run id alone: another server's partitions may be what PostgreSQL knows.
        self._run_id = b""
        self._since: dict[int, float] = {}

    def due(self, run_id: bytes) -> frozenset[int]:
        """Those that are to be verified anew, under the run id that counts now."""
        until = self._clock() - OVERTAKEN_S
        return frozenset(
            one for one, since in self._since.items() if since <= until and run_id == self._run_id
        )

    def look(self, markers: Markers, noted: Mapping[int, tuple[bytes, int]]) -> None:
        """Note which verified ones PostgreSQL knows otherwise, by the run id and epoch it has of each."""
        now = self._clock()
        if markers.run_id != self._run_id:
            self._run_id, self._since = markers.run_id, {}
        self._since = {
            one: self._since.get(one, now)
            for one, epoch in markers.verified.items()
            if one in noted and noted[one][1] >= epoch and noted[one] != (markers.run_id, epoch)
        }
