"""How often something is tried again, after how long, and which of its failures are said."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Retries:
    """At most so many attempts; the first pause, how many times as long the next one is, and the longest."""

    attempts_max: int
    first_s: float
    factor: float
    longest_s: float

    def after_s(self, attempts: int) -> float | None:
        """Seconds until the next attempt after so many, 1 or more; None when it is given up."""
        if attempts >= self.attempts_max:
            return None
        return min(self.longest_s, self.first_s * self.factor ** (attempts - 1))


def is_said(failures: int) -> bool:
    """Which of many failures are said: the first, the second, the fourth … What lasts fills no disk."""
    return failures & (failures - 1) == 0
