"""Accounts of upstreams that are out of money or quota: the table of one worker. Pure.

An account is a base URL and a credential, by its keyed digest. An empty one is left alone; then one call of all
gateways asks it again. Unlike a pause, the entry lasts until the account answered well.

Times are seconds of the worker's monotonic clock.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

LEFT_ALONE_S: Final = 60.0
# An account that nobody asked for so long is forgotten.
FORGOTTEN_S: Final = 86_400.0
ENTRIES_MAX: Final = 256


class EmptyAccount(NamedTuple):
    """An account that said at `since` that it is empty, and is left alone before `until`."""

    since: float
    until: float


class EmptyReport(NamedTuple):
    """A worker's report on an account: `OPENED` has answered well, `AGAIN` is to be asked again."""

    upstream: str = ""
    status: int = 0


OPENED: Final = EmptyReport()
AGAIN: Final = EmptyReport("again")


async def _ask_alone(account: str) -> float:
    return 0.0


class EmptyAccounts:
    """The empty accounts by their digests, and the `reports` that other workers have not got yet.

    `changed` is called for a new report. `claim` returns 0.0 if a call of this worker may ask an account again,
    else the seconds until the question of another worker is over.
    """

    __slots__ = ("changed", "claim", "entries", "reports")

    def __init__(
        self,
        changed: Callable[[], None] = lambda: None,
        claim: Callable[[str], Awaitable[float]] = _ask_alone,
    ) -> None:
        self.entries: dict[str, EmptyAccount] = {}
        self.reports: dict[str, EmptyReport] = {}
        self.changed, self.claim = changed, claim

    def note(self, account: str, upstream: str, status: int, now: float) -> bool:
        """Note that an account of `upstream` said by `status` that it is empty; return whether that is news."""
        entry = self.entries.get(account)
        is_ignored = len(self.entries) >= ENTRIES_MAX if entry is None else entry.until > now
        if is_ignored:
            return False
        since = now if entry is None else entry.since
        self.entries[account] = EmptyAccount(since, now + LEFT_ALONE_S)
        self._report(account, EmptyReport(upstream, status))
        return entry is None

    def answered(self, account: str, began: float) -> None:
        """Forget an account that answered well, unless the call `began` before the account was empty."""
        entry = self.entries.get(account)
        if entry is not None and began > entry.since:
            del self.entries[account]
            self._report(account, OPENED)

    async def leaves_alone(self, account: str, now: float) -> tuple[bool, bool]:
        """Return whether calls leave an account alone, and if not, whether this call is the one that asks again."""
        entry = self.entries.get(account)
        if entry is None:
            return False, False
        if entry.until > now:
            return True, False
        self.entries[account] = entry._replace(until=now + LEFT_ALONE_S)
        left_s = await self.claim(account)
        entry = self.entries.get(account)
        if left_s <= 0 or entry is None:
            return False, entry is not None
        self.entries[account] = entry._replace(until=now + min(left_s, LEFT_ALONE_S))
        return True, False

    def ask_again(self, account: str, now: float) -> None:
        """Allow the next call to ask the account at once: the last answer said nothing about its money.

        Other workers are told.
        """
        entry = self.entries.get(account)
        if entry is not None:
            self.entries[account] = entry._replace(until=now)
            self._report(account, AGAIN)

    def _report(self, account: str, report: EmptyReport) -> None:
        self.reports[account] = report
        self.changed()
