"""Every organization with something known and owed is charged, in pages, each once a turn."""

from __future__ import annotations

from collections.abc import Sequence

from gateway.background.timed.charging import Charging


class Owing:
    """Organizations that owe something; `stubborn` ones still do after they were charged."""

    def __init__(self, *ids: int, stubborn: frozenset[int] = frozenset()) -> None:
        self.ids = set(ids)
        self.stubborn = stubborn
        self.charged: list[int] = []

    async def to_charge(self, after: int, count: int) -> Sequence[int]:
        return sorted(id_ for id_ in self.ids if id_ > after)[:count]

    async def charge(self, organization_id: int) -> None:
        self.charged.append(organization_id)
        if organization_id not in self.stubborn:
            self.ids.remove(organization_id)


async def test_everybody_is_charged_page_by_page() -> None:
    owing = Owing(5, 3, 9, 4, 1)
    assert await Charging(owing, organizations_a_page=2).turn() == 5
    assert owing.charged == [1, 3, 4, 5, 9]
    assert await Charging(owing).turn() == 0


async def test_what_is_used_meanwhile_waits_for_the_next_turn() -> None:
    owing = Owing(1, 2, 3, stubborn=frozenset({2}))
    assert await Charging(owing, organizations_a_page=1).turn() == 3
    assert owing.charged == [1, 2, 3]
