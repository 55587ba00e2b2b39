"""What a price left is rated a piece a turn, of every price that has something left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from gateway.background.timed.rating import Rating


class Left:
    """Prices with so many pieces left."""

    def __init__(self, **pieces: int) -> None:
        self.pieces = {int(name[1:]): count for name, count in pieces.items()}
        self.rated: Counter[int] = Counter()

    async def prices_left(self, count: int) -> Sequence[int]:
        return sorted(each for each, pieces in self.pieces.items() if pieces)[:count]

    async def rate(self, price_id: int) -> None:
        self.pieces[price_id] -= 1
        self.rated[price_id] += 1


async def test_no_price_waits_for_all_of_another() -> None:
    left = Left(p1=3, p2=1)
    rating = Rating(left)
    assert [await rating.turn() for _ in range(4)] == [2, 1, 1, 0]
    assert left.rated == {1: 3, 2: 1}
