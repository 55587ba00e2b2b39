"""Budgets with an account for each whose places are all taken, as calls meet them: counted, and told people.

Callers say who they are, so one who makes up users fills the places. It is told once a minute at most: which
budget, and whose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gateway.core.accounts.budgets import DEFINED_WINDOW, OTHERS
from gateway.core.model import BudgetAccount

TELL_INTERVAL_S: Final = 60.0


class Crowded:
    """Of one worker; `calls` took from the account that all share beyond the maximum."""

    __slots__ = ("_clock", "_log", "_told", "calls")

    def __init__(self, clock: Callable[[], float], log: Callable[..., None]) -> None:
        self.calls = 0
        self._clock, self._log = clock, log
        self._told = -TELL_INTERVAL_S

    def met(self, organization_id: int, accounts: Iterable[BudgetAccount]) -> None:
        """A call takes from these; some are those that all others share."""
        self.calls += 1
        now = self._clock()
        if now - self._told < TELL_INTERVAL_S:
            return
        self._told = now
        budgets = [
            int(DEFINED_WINDOW.struct.unpack_from(one.defined)[0])
            for one in accounts
            if one.name.endswith(f":{OTHERS}") and one.defined
        ]
        self._log(
            "no place is left for another account of a budget with each: newcomers share one",
            organization_id=organization_id, budget_ids=budgets, calls_until_now=self.calls, level="warning",
        )  # fmt: skip
