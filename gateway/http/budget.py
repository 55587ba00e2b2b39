"""A bounded amount that many share: connections or bytes, and the most of it that one of them has.

Nobody is ever stopped in what it has; only more is refused. Pure: no clock, no socket.
"""

from __future__ import annotations


class Budget:
    """`most` of something, of which one organization has `share` (a fraction) at most.

    Where a share is less than the whole, nobody takes more than would then be left for all others
    (the dynamic threshold of Choudhury and Hahne, 1998): where a few have much, a newcomer gets some.
    """

    __slots__ = ("_each", "_used", "most", "refused", "used")

    def __init__(self, most: int, share: float) -> None:
        self.most = most
        self.used = self.refused = 0
        self._each = max(1, int(most * share))
        self._used: dict[int, int] = {}

    def take(self, organization_id: int, amount: int = 1) -> bool:
        """Whether an organization may have so much more; then it has it until `give`."""
        had = self._used.get(organization_id, 0)
        has, used = had + amount, self.used + amount
        if (
            has > self._each
            or used > self.most
            or (had and self._each < self.most and has > self.most - used)
        ):
            self.refused += 1
            return False
        self._used[organization_id] = has
        self.used = used
        return True

    def give(self, organization_id: int, amount: int = 1) -> None:
        """An organization has so much less."""
        left = self._used[organization_id] - amount
        if left:
            self._used[organization_id] = left
        else:
            del self._used[organization_id]
        self.used -= amount

    def of(self, organization_id: int) -> int:
        """How much an organization has now."""
        return self._used.get(organization_id, 0)
