"""Which partitions are read at once, and which before others: whoever waits for the first is served soon.

Some are packed while PostgreSQL is asked for others and Redis writes a third.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

# How many organizations are read at once: so many partitions as have no more, or one that has.
ORGANIZATIONS_MAX = 2_000
# Of these as many are read and written at once.
TOGETHER_MAX = 3
# But the first are few, and for a moment by themselves.
FIRST_ORGANIZATIONS_MAX, HEAD_START_S = 200, 0.5


def together(
    wanted: Iterable[int], organizations: Mapping[int, Sequence[int]], most: int = ORGANIZATIONS_MAX
) -> Iterator[list[int]]:
    """Partitions that are read at once: as many as have so many organizations at most, or one; the first of
    them have fewer.
    """
    some, count, bound = list[int](), 0, min(FIRST_ORGANIZATIONS_MAX, most)
    for partition in wanted:
        its = len(organizations.get(partition, ()))
        if some and count + its > bound:
            yield some
            some, count, bound = [], 0, most
        some.append(partition)
        count += its
    if some:
        yield some


async def in_turns(
    groups: Iterable[list[int]],
    read: Callable[[list[int]], Awaitable[None]],
    *,
    head_start_s: float = HEAD_START_S,
) -> None:
    """Read group after group, some at a time. Where one fails no more are begun, and it is raised."""
    left, begun = deque(groups), asyncio.Event()

    async def work() -> None:
        while left:
            try:
                await read(left.popleft())
            except BaseException:
                left.clear()
                raise
            finally:
                begun.set()

    async def follow() -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(head_start_s):
                await begun.wait()
        await work()

    await all_of((work(), *(follow() for _ in range(TOGETHER_MAX - 1))))


async def all_of(doing: Iterable[Coroutine[None, None, None]]) -> None:
    """Have all of it end, then raise what failed first."""
    for failed in await asyncio.gather(*doing, return_exceptions=True):
        if isinstance(failed, BaseException):
            raise failed
