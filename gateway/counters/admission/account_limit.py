"""Budgets with an account for each user, whose maximum of accounts is reached: counted and logged.

Callers name their users, so a caller that makes up names uses up the accounts. The log names the budget and
its organization, once a minute at most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from gateway.core.accounts.budgets import DEFINED_WINDOW, OTHERS
from gateway.core.model import BudgetAccount

TELL_INTERVAL_S: Final = 60.0


class AccountLimit:
    """Counts, as `calls`, this worker's calls that share an account because a budget has its maximum."""

    __slots__ = ("_clock", "_log", "_told", "calls")

    def __init__(self, clock: Callable[[], float], log: Callable[..., None]) -> None:
        self.calls = 0
        self._clock, self._log = clock, log
        self._told = -TELL_INTERVAL_S

    def met(self, organization_id: int, accounts: Iterable[BudgetAccount]) -> None:
        """Count a call that takes from a shared account, because its budget has the maximum of separate ones.

        Log these budgets once a minute at most.
        """
        self.calls += 1
        now = self._clock()
        if now - self._told < TELL_INTERVAL_S:
            return
        self._told = now
        budgets = [
            int(DEFINED_WINDOW.struct.unpack_from(account.defined)[0])
            for account in accounts
            if account.name.endswith(f":{OTHERS}") and account.defined
        ]
        self._log(
            "no place is left for another account of a budget with each: newcomers share one",
            organization_id=organization_id, budget_ids=budgets, calls_until_now=self.calls, level="warning",
        )  # fmt: skip
