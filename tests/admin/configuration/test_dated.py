"""Rows that take each other's place in time are found as one who looks through all of them finds them."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.admin.configuration.objects import DateOrder

MOMENTS = st.integers(0, 12)


class Watched(dict[str, Any]):
    """A row that counts how often it is looked at."""

    looked = 0

    def __getitem__(self, name: str) -> Any:
        Watched.looked += 1
        return super().__getitem__(name)


@given(st.lists(MOMENTS, max_size=12), MOMENTS, st.randoms())
def test_the_newest_row_of_a_moment_and_the_last_one_before_it(
    moments: list[int], asked: int, any_: Any
) -> None:
    rows = [{"id": number, "since": moment} for number, moment in enumerate(moments)]
    any_.shuffle(rows)
    made: list[Any] = [row for row in rows if row["since"] == asked]
    before: list[Any] = [row for row in rows if row["since"] <= asked]
    dated = DateOrder(rows, "since")
    assert dated.made_for(asked) == max(made, key=lambda row: row["id"], default=None)
    assert dated.in_force(asked) == max(before, key=lambda row: (row["since"], row["id"]), default=None)


def test_thousands_of_objects_of_one_name_look_at_each_row_a_few_times() -> None:
    rows = [Watched(id=number, since=number) for number in range(2_000)]
    dated = DateOrder(rows, "since")
    for number in range(2_000):
        assert dated.made_for(number) is rows[number]
    assert Watched.looked <= 4 * len(rows)
