"""Things in portions: what `itertools.batched` of later versions of Python is, as lists."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

T = TypeVar("T")


def batched(items: Iterable[T], count: int) -> Iterator[list[T]]:
    """So many of them at a time; what makes them is asked for no more than that ahead."""
    left = iter(items)
    while some := list(islice(left, count)):
        yield some
