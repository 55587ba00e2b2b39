"""Errors that scripts answer: counted by script, and logged before anybody can catch them.

A caller that goes on without Redis would take such an error for an outage. The text of a script's error names
the fault of its call, and never a row.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.counters.redis.scripts import VERBS

# The next error of a script is logged after this time.
LOG_INTERVAL_S: Final = 60.0
# Codes of errors of the server, or of data of a newer version: they are no fault of the script.
OUTAGES: Final = frozenset(
    {
        "ASK", "BUSY", "CLUSTERDOWN", "CROSSSLOT", "LOADING", "MASTERDOWN", "MISCONF", "MOVED", "NEWERLAYOUT",
        "NOAUTH", "NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN",
    }
)  # fmt: skip
# A script met a state that is shorter than this version's form, and changed nothing.
_UNREADABLE: Final = "data string too short"
# For how long a process says so after the last one.
UNREADABLE_S: Final = 120.0
# The error of a server that lost the library of scripts, which is then loaded again.
_LOST: Final = "ERR Function not found"

_log = logging.getLogger("tollkeeper.redis")


class ScriptErrors:
    """The errors of scripts in this process; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts = dict.fromkeys(VERBS, 0)
        self._logged_at: dict[str, float] = {}
        self._unreadable_at = float("-inf")

    def note(self, script: str, message: str) -> bool:
        """Count and log an error of Redis; return False if the script is not at fault."""
        if not script or message.partition(" ")[0] in OUTAGES or message.startswith(_LOST):
            return False
        self._counts[script] += 1
        now = self._clock()
        if _UNREADABLE in message:
            self._unreadable_at = now
        if now - self._logged_at.get(script, float("-inf")) >= LOG_INTERVAL_S:
            self._logged_at[script] = now
            _log.error("a script failed", extra={"script": script, "why": message[:200]})
        return True

    def unreadable_accounts(self) -> int:
        """Return 1 if a script met an account lately that it could not read, else 0."""
        return int(self._clock() - self._unreadable_at < UNREADABLE_S)

    def snapshot(self) -> list[tuple[str, int]]:
        """Return (script, number of errors) of each script."""
        return list(self._counts.items())


SCRIPT_ERRORS: Final = ScriptErrors(time.monotonic)
