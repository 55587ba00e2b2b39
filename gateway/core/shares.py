"""A bounded amount shared by many users: connections, bytes or holds, with a maximum for each.

Nobody loses what it has; only more is refused. Pure: no clock, no socket.
"""

from __future__ import annotations


def leaves_others(had: int, more: int, left: int) -> bool:
    """Return whether a user with `had` of a shared amount may take `more`; `left` would then be free.

    A user may not have more than is left for all others (the dynamic threshold of Choudhury and Hahne,
    1998), so a newcomer gets a part even if a few users have much. A user without any may always take
    some. `lua/run.lua` counts runs by the same rule.
    """
    return left >= 0 and (not had or had + more <= left)


class FairShares:
    """`most` of some amount, with at most `each` for one user. Users are numbers.

    A user's amount may not exceed the rest left for others (`leaves_others`). So `each` is at most half of
    `most`, unless there is only one user (`alone`).
    """

    __slots__ = ("_has", "each", "most", "used")

    def __init__(self, most: int = 2, each: int = 1, *, alone: bool = False) -> None:
        self.used = 0
        self._has: dict[int, int] = {}
        self.bound(most, each, alone=alone)

    def bound(self, most: int, each: int, *, alone: bool = False) -> None:
        """Set the maximum `most` of all users together, and `each` of one user.

        Raise ValueError if `each` is more than half of `most`, unless there is one user only
        (`alone`).
        """
        each = max(1, each)
        if 2 * each > most and not alone:
            raise ValueError(f"{each} of {most} for one user are more than half")
        self.most, self.each = most, each

    def bound_by_share(self, most: int, share: float, largest: int = 1) -> None:
        """Set the maximum of one user to this `share` of `most`: at least `largest`, at most half.

        A share of 1, or a `most` of 1, means that there is only one user.
        """
        alone = share >= 1 or most < 2
        self.bound(most, most if alone else min(max(largest, int(most * share)), most // 2), alone=alone)

    def allows(self, who: int, amount: int) -> bool:
        """Return whether a user may have `amount` more, within all maxima."""
        had, left = self._has.get(who, 0), self.most - self.used - amount
        if self.each >= self.most:
            return left >= 0
        return had + amount <= self.each and leaves_others(had, amount, left)

    def acquire(self, who: int, amount: int = 1) -> bool:
        """Add `amount` to a user if that is allowed; return whether it was added. `release` undoes it."""
        if not self.allows(who, amount):
            return False
        self.add(who, amount)
        return True

    def add(self, who: int, amount: int) -> None:
        """Add `amount` to a user, whether or not it is allowed."""
        self._has[who] = self._has.get(who, 0) + amount
        self.used += amount

    def release(self, who: int, amount: int = 1) -> None:
        """Subtract `amount` from a user."""
        left = self._has[who] - amount
        if left:
            self._has[who] = left
        else:
            del self._has[who]
        self.used -= amount

    def used_by(self, who: int) -> int:
        """Return the amount that a user has now."""
        return self._has.get(who, 0)
