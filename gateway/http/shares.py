"""A bounded amount that many share: connections or bytes, and the share that one of them may have.

Nobody is ever stopped in what it has; only more is refused. Pure: no clock, no socket.
"""

from __future__ import annotations


class Shares:
    """`most` of something, of which one of its users has `each` at most. Users are numbers.

    Where `each` is less than the whole, nobody takes more than would then be left for all others
    (the dynamic threshold of Choudhury and Hahne, 1998): where a few have much, a newcomer gets some.
    """

    __slots__ = ("_has", "each", "most", "used")

    def __init__(self, most: int, each: int) -> None:
        self.most = most
        self.each = max(1, each)
        self.used = 0
        self._has: dict[int, int] = {}

    def allows(self, who: int, amount: int) -> bool:
        """Whether a user may have so much more."""
        had = self._has.get(who, 0)
        has, left = had + amount, self.most - self.used - amount
        return has <= self.each and left >= 0 and (not had or has <= left or self.each >= self.most)

    def acquire(self, who: int, amount: int = 1) -> bool:
        """Whether a user may have so much more; then it has it until `release`."""
        if not self.allows(who, amount):
            return False
        self.add(who, amount)
        return True

    def add(self, who: int, amount: int) -> None:
        """A user has so much more, whether it may or not."""
        self._has[who] = self._has.get(who, 0) + amount
        self.used += amount

    def release(self, who: int, amount: int = 1) -> None:
        """A user has so much less."""
        left = self._has[who] - amount
        if left:
            self._has[who] = left
        else:
            del self._has[who]
        self.used -= amount

    def used_by(self, who: int) -> int:
        """How much a user has now."""
        return self._has.get(who, 0)
