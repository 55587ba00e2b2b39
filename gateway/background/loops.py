"""The one loop of the clock: a pass over what is due, a pause, and again until it is cancelled.

A loop is a row: its name in the log and in metrics, its interval, and the steps of a pass. `gateway/run`
composes rows of callables. An item that fails is counted by `Isolation`, and the others go on. Any other
error ends the pass; `keep_going` counts that and runs the loop again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import TypeVar

from gateway.background.isolation import Isolation

ITEMS_A_PAGE = 200

T = TypeVar("T")
# A part of a pass, under the name of its loop; answers with how many items it was done.
Step = Callable[[Isolation, str], Awaitable[int]]
# Items behind a place, in their order, so many at most. Without a place there is one page.
Due = Callable[[int, int], Awaitable[Sequence[T]]]


@dataclass(frozen=True, slots=True)
class Loop:
    """`again`: at once, after a pass that did something. `quiet`: errors that end a pass and are no failure.

    A pause is `rest` times as long as the pass before it, and the interval at least.
    """

    name: str
    interval_s: float
    steps: tuple[Step, ...]
    again: bool = False
    quiet: tuple[type[Exception], ...] = ()
    rest: float = 0.0

    async def turn(self, isolation: Isolation | None = None) -> int:
        """Make one pass; answers with how many items something was done."""
        isolation = isolation or Isolation()
        return sum([await step(isolation, self.name) for step in self.steps])

    async def run(self, isolation: Isolation | None = None) -> None:
        """Make passes until cancelled."""
        clock = asyncio.get_running_loop().time
        while True:
            began, done = clock(), 0
            with suppress(*self.quiet):
                done = await self.turn(isolation)
            await asyncio.sleep(0 if self.again and done else self.pause_s(clock() - began))

    def pause_s(self, took_s: float) -> float:
        """How long to rest after a pass."""
        return max(self.interval_s, self.rest * took_s)


def each(
    due: Due[T],
    act: Callable[[T], Awaitable[object]],
    *,
    count: int = ITEMS_A_PAGE,
    place: Callable[[T], int] | None = None,
    leaves: tuple[type[Exception], ...] = (),
    name: Callable[[T], str] = str,
) -> Step:
    """Do this with each item that is due; False says that there was nothing to do.

    An error of `leaves` says that an item waits: no failure of it.
    """

    async def step(isolation: Isolation, loop: str) -> int:
        done = 0

        async def once(item: T) -> None:
            nonlocal done
            with suppress(*leaves):
                done += await act(item) is not False

        async for page in pages(due, count, place):
            await isolation.each(loop, page, once, name=name)
        return done

    return step


def batches(
    due: Due[T],
    act: Callable[[Sequence[T]], Awaitable[object]],
    *,
    place: Callable[[T], int],
    count: int = ITEMS_A_PAGE,
    split: Callable[[Sequence[T]], Iterable[Sequence[T]]] = lambda page: [page],
    name: Callable[[T], str] = str,
) -> Step:
    """Do this with all that is due, batch by batch; with each item alone where its batch fails."""

    async def step(isolation: Isolation, loop: str) -> int:
        done = 0
        async for page in pages(due, count, place):
            for batch in split(page):
                done += await isolation.together(loop, batch, act, name=name)
        return done

    return step


def call(act: Callable[[], object]) -> Step:
    """Do this once a pass; a number that it answers is how many items there were."""

    async def step(_isolation: Isolation, _loop: str) -> int:
        done = act()
        if isawaitable(done):
            done = await done
        return done if isinstance(done, int) else 0

    return step


async def pages(due: Due[T], count: int, place: Callable[[T], int] | None) -> AsyncIterator[Sequence[T]]:
    """What is due, page by page."""
    after = 0
    while page := await due(after, count):
        yield page
        if place is None:
            return
        after = place(page[-1])
