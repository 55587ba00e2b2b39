"""What `settle` answers: results other than done are counted, and those that no usual call has are logged.

A result that is a fault changes nothing of its call: what it says is for people.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from gateway.core.model import SettleResult
from gateway.counters.layouts.packing import code_of

# The next fault of a kind is logged after this time.
LOG_INTERVAL_S: Final = 60.0
COUNTED: Final = (
    SettleResult.RECLAIMED, SettleResult.UNKNOWN, SettleResult.UNKNOWN_ACCOUNT, SettleResult.RAISED,
    SettleResult.UNHELD,
)  # fmt: skip
FAULTS: Final = {
    SettleResult.UNHELD: "an account held less than was given back",
    SettleResult.UNKNOWN_ACCOUNT: "a hold's account is not stored",
}

_log = logging.getLogger("tollkeeper.redis")


class SettleResults:
    """The results of settlements in this process; `clock` is monotonic."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._counts = dict.fromkeys(COUNTED, 0)
        self._logged_at: dict[SettleResult, float] = {}

    def read(self, answer: bytes, request_id: str) -> SettleResult:
        """Return the result in an answer of `settle` for a call; DONE for one that is UNHELD."""
        result = SettleResult(code_of(answer))
        if result not in self._counts:
            return result
        self._counts[result] += 1
        now = self._clock()
        if result in FAULTS and now - self._logged_at.get(result, float("-inf")) >= LOG_INTERVAL_S:
            self._logged_at[result] = now
            _log.error(FAULTS[result], extra={"request_id": request_id})
        return SettleResult.DONE if result is SettleResult.UNHELD else result

    def snapshot(self) -> list[tuple[str, int]]:
        """Return (result, number of settlements) of each counted result."""
        return [(result.name.lower(), count) for result, count in self._counts.items()]


SETTLE_RESULTS: Final = SettleResults(time.monotonic)
