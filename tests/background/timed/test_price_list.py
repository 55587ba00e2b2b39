"""The bundled list is put in once, and nobody waits for it longer than that takes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gateway.background.timed.invoicing import PriceList
from gateway.core.accounts.administration import Row

ROWS: Sequence[Row] = ({"model": "m"},)


class Table:
    """A table in memory; `other` is whether another keeper fills it meanwhile."""

    def __init__(self, *, there: bool, other: bool = False) -> None:
        self.there = there
        self.other = other
        self.rows: list[Row] = []

    async def has_bundled(self) -> bool:
        return self.there

    async def put_in_bundled(self, rows: Sequence[Row]) -> int:
        self.rows += () if self.other else rows
        return 0 if self.other else len(rows)


@pytest.mark.parametrize(
    ("table", "reads", "told"),
    [
        (Table(there=False), 1, [1]),
        (Table(there=True), 0, []),
        (Table(there=False, other=True), 1, []),
    ],
)
async def test_the_list_is_read_only_where_there_is_none(table: Table, reads: int, told: list[int]) -> None:
    read: list[int] = []
    said: list[int] = []

    def rows() -> Sequence[Row]:
        read.append(1)
        return ROWS

    price_list = PriceList(table, rows, said.append)
    assert not price_list.there.is_set()
    task = asyncio.create_task(price_list.run())
    async with asyncio.timeout(30):
        await price_list.there.wait()
    assert not task.done()
    task.cancel()
    assert (len(read), said) == (reads, told)
