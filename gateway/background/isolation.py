"""One item that fails keeps no other from its turn: each is left, counted and told, and the loop goes on.

What concerns everybody (a database that is away) is no item's fault: that ends the pass.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from gateway.core.retries import is_said
from gateway.errors import CountersRefused, StoreUnavailable, TollkeeperError, TookTooLong

UNAVAILABLE = 503
NAME_CHARS_MAX = 200
# What failed: a whole pass of a loop, or one item of it.
PASS, ITEM = "pass", "item"

T = TypeVar("T")


def _unavailable(error: Exception) -> bool:
    if isinstance(error, TollkeeperError):
        return error.status == UNAVAILABLE and not isinstance(error, CountersRefused | TookTooLong)
    return isinstance(error, OSError | TimeoutError)


def is_store_away(error: Exception) -> bool:
    """Whether PostgreSQL cannot be asked at all. A statement that takes too long is its item's fault."""
    return isinstance(error, StoreUnavailable) and not isinstance(error, TookTooLong)


class Isolation:
    """Counts by loop what failed, and says some of it. `is_away` knows more errors that are everybody's.

    `name` says how people find an item in the log. It has nothing that callers made up, and no secret.
    """

    def __init__(
        self,
        log: Callable[..., None] = lambda *_, **__: None,
        is_away: Callable[[Exception], bool] = lambda _: False,
    ) -> None:
        self._log, self._is_away = log, is_away
        self._failed: Counter[tuple[str, str]] = Counter()

    def watch(self, loops: Iterable[str]) -> None:
        """Have these loops shown from the start: a counter that begins at 1 raises no alarm."""
        for loop in loops:
            self._failed[loop, PASS] += 0
            self._failed[loop, ITEM] += 0

    def pass_failed(self, loop: str) -> None:
        """Count a pass that failed; whoever runs the loop says it."""
        self._failed[loop, PASS] += 1

    def item_failed(self, loop: str, name: str, error: Exception) -> None:
        """Count an item that was left, and say so now and then: what lasts fills no disk."""
        self._failed[loop, ITEM] += 1
        failures = self._failed[loop, ITEM]
        if is_said(failures):
            told = {"loop": loop, "item": name[:NAME_CHARS_MAX], "error": repr(error), "failures": failures}
            self._log("item left", **told, level="error")

    async def each(
        self,
        loop: str,
        items: Iterable[T],
        act: Callable[[T], Awaitable[object]],
        *,
        name: Callable[[T], str],
    ) -> int:
        """Do this with each item in turn; answers with how many it was done."""
        done = 0
        for item in items:
            if await self.tried(loop, item, act, name=name):
                done += 1
        return done

    async def together(
        self,
        loop: str,
        items: Sequence[T],
        act: Callable[[Sequence[T]], Awaitable[object]],
        *,
        name: Callable[[T], str],
    ) -> int:
        """Do this with all items at once, else with each alone; answers with how many it was done.

        An item that succeeds alone was never left, and is not counted.
        """
        if len(items) > 1:
            try:
                await act(items)
            except Exception as error:
                if self.is_everybodys(error):
                    raise
            else:
                return len(items)

        async def alone(item: T) -> None:
            await act([item])

        return await self.each(loop, items, alone, name=name)

    async def tried(
        self, loop: str, item: T, act: Callable[[T], Awaitable[object]], *, name: Callable[[T], str]
    ) -> bool:
        """Do this with one item; False where it was left. What concerns everybody is raised."""
        try:
            await act(item)
        except Exception as error:
            if self.is_everybodys(error):
                raise
            self.item_failed(loop, name(item), error)
            return False
        return True

    def is_everybodys(self, error: Exception) -> bool:
        """Whether an error says something of a server, and nothing of the item."""
        return _unavailable(error) or self._is_away(error)

    def figures(self) -> dict[str, object]:
        """How often each loop failed, for metrics."""
        return {"loop_failures": [[loop, of, count] for (loop, of), count in sorted(self._failed.items())]}
