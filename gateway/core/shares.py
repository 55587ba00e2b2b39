"""A bounded amount that many share: connections, bytes or holds, and the share that one of them may have.

Nobody is ever stopped in what it has; only more is refused. Pure: no clock, no socket.
"""

from __future__ import annotations


def leaves_others(had: int, more: int, left: int) -> bool:
    """Return whether a user with `had` of a whole may have `more`, so that `left` of it is free then.

    Nobody takes more than is then left for all others (the dynamic threshold of Choudhury and Hahne, 1998):
    where a few have much, a newcomer gets some. `lua/run.lua` counts runs by the same rule.
    """
    return left >= 0 and (not had or had + more <= left)


class FairShares:
    """`most` of something; one of its users has `each` at most. Users are numbers.

    Nobody takes more than would then be left for all others (`leaves_others`). So `each` is half of the whole
    at most, but for one user `alone`.
    """

    __slots__ = ("_has", "each", "most", "used")

    def __init__(self, most: int = 2, each: int = 1, *, alone: bool = False) -> None:
        self.used = 0
        self._has: dict[int, int] = {}
        self.bound(most, each, alone=alone)

    def bound(self, most: int, each: int, *, alone: bool = False) -> None:
        """Set both bounds; ValueError where `each` is more than half and no user is `alone`."""
        each = max(1, each)
        if 2 * each > most and not alone:
            raise ValueError(f"{each} of {most} for one user are more than half")
        self.most, self.each = most, each

    def bound_by_share(self, most: int, share: float, largest: int = 1) -> None:
        """Limit one user to this `share`: the `largest` thing at least, and half at most.

        A share of 1, or a whole of 1, is said to be for one user.
        """
        alone = share >= 1 or most < 2
        self.bound(most, most if alone else min(max(largest, int(most * share)), most // 2), alone=alone)

    def allows(self, who: int, amount: int) -> bool:
        """Return whether a user may have so much more."""
        had, left = self._has.get(who, 0), self.most - self.used - amount
        if self.each >= self.most:
            return left >= 0
        return had + amount <= self.each and leaves_others(had, amount, left)

    def acquire(self, who: int, amount: int = 1) -> bool:
        """Return whether a user may have so much more; then it has it until `release`."""
        if not self.allows(who, amount):
            return False
        self.add(who, amount)
        return True

    def add(self, who: int, amount: int) -> None:
        """Add `amount` to a user's, whether or not the user may have more."""
        self._has[who] = self._has.get(who, 0) + amount
        self.used += amount

    def release(self, who: int, amount: int = 1) -> None:
        """Subtract `amount` from a user's."""
        left = self._has[who] - amount
        if left:
            self._has[who] = left
        else:
            del self._has[who]
        self.used -= amount

    def used_by(self, who: int) -> int:
        """Return the amount that a user has now."""
        return self._has.get(who, 0)
