"""Whoever has something known and owed is charged: those of a partition together, each once a turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gateway.background.timed.charging import Charging
from gateway.errors import Conflict, StoreUnavailable

PARTITIONS = 2


class Owing:
    """Organizations that owe something; `stubborn` ones still do after they were charged.

    `busy` ones are charged by somebody else; where `refused` ones are charged, nothing is.
    """

    def __init__(self, *ids: int, stubborn: Sequence[int] = (), busy: Sequence[int] = ()) -> None:
        self.ids = set(ids)
        self.stubborn, self.busy = stubborn, busy
        self.refused: set[int] = set()
        self.asked: list[list[int]] = []
        self.log: list[dict[str, object]] = []

    def partition(self, organization_id: int) -> int:
        return organization_id % PARTITIONS

    async def to_charge(self, after: int, count: int) -> Sequence[int]:
        return sorted(id_ for id_ in self.ids if id_ > after)[:count]

    async def charge_free(self, organization_ids: Sequence[int]) -> Sequence[int]:
        self._charge([each for each in organization_ids if each not in self.busy])
        return [each for each in organization_ids if each in self.busy]

    async def charge(self, organization_id: int) -> None:
        self._charge([organization_id])

    def _charge(self, some: list[int]) -> None:
        self.asked.append(some)
        if self.refused.intersection(some):
            raise Conflict("PostgreSQL refuses it.")
        self.ids -= set(some).difference(self.stubborn)

    def loop(self, **bounds: int) -> Charging:
        return Charging(self, lambda event, **more: self.log.append({"event": event, **more}), **bounds)


async def test_everybody_is_charged_page_by_page_and_by_partitions() -> None:
    owing = Owing(5, 3, 9, 4, 1, 2)
    assert await owing.loop(organizations_a_page=4).turn() == 6
    assert owing.asked == [[1, 3], [2, 4], [5, 9]]
    assert await owing.loop().turn() == 0


async def test_a_batch_has_a_bound() -> None:
    owing = Owing(1, 3, 5, 7, 9)
    assert await owing.loop(organizations_a_batch=2).turn() == 5
    assert owing.asked == [[1, 3], [5, 7], [9]]


async def test_what_is_used_meanwhile_waits_for_the_next_turn() -> None:
    owing = Owing(1, 2, 3, stubborn=[2])
    assert await owing.loop(organizations_a_page=1).turn() == 3
    assert owing.asked == [[1], [2], [3]]


async def test_who_is_charged_by_somebody_else_is_waited_for_behind_the_others() -> None:
    owing = Owing(1, 3, 5, busy=[3])
    assert await owing.loop().turn() == 3
    assert owing.asked == [[1, 5], [3]]
    assert not owing.ids


async def test_who_cannot_be_charged_holds_no_other_up_and_is_named() -> None:
    owing = Owing(1, 3, 5, 2)
    owing.refused = {3}
    assert await owing.loop().turn() == 4
    assert owing.ids == {3}
    [said] = owing.log
    assert (said["event"], said["organization_id"], said["level"]) == ("charges left", 3, "warning")


async def test_a_store_that_is_away_ends_the_turn() -> None:
    class Away(Owing):
        async def charge_free(self, organization_ids: Sequence[int]) -> Sequence[int]:
            raise StoreUnavailable

    away = Away(1, 3)
    with pytest.raises(StoreUnavailable):
        await away.loop().turn()
    assert away.asked == away.log == []
