"""What is to be done about an invoice that is not paid, by the days since it was due. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

REMINDER, BLOCK, UNBLOCK = "reminder", "block", "unblock"
DUNNING_ACTIONS = (REMINDER, BLOCK, UNBLOCK)


@dataclass(frozen=True, slots=True)
class DunningSchedule:
    """Days behind the due date on which people are reminded, and on which calls are refused (None: never)."""

    reminder_days: tuple[int, ...] = ()
    block_days: int | None = None

    @classmethod
    def read(cls, reminder_days: str, block_days: int) -> DunningSchedule:
        """As settings say it: "3,7,14", and 0 for never."""
        days = {int(each) for each in reminder_days.split(",") if each}
        return cls(tuple(sorted(days)), block_days or None)

    def reminder(self, days_over: int, told: Sequence[int]) -> int | None:
        """The reminder that is due; of several that came due at once the last, and none that was passed."""
        due = [days for days in self.reminder_days if days <= days_over and days > max(told, default=-1)]
        return due[-1] if due else None

    def blocks(self, days_over: int, told: Sequence[int], days_since_told: int) -> bool:
        """Whether calls are to be refused: never on the day of the last reminder, or before it."""
        if self.block_days is None or days_over < self.block_days:
            return False
        before = [days for days in self.reminder_days if days <= self.block_days]
        return not before or (max(told, default=-1) >= before[-1] and days_since_told >= 1)
