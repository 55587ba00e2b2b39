"""The one loop of the clock: a pass over what is due, a pause, and again until it is cancelled.

A loop is a row: its name in the log and in metrics, its interval, and the steps of a pass. `gateway/run`
composes rows of callables. An item that fails is counted by `Isolation`, and the others go on. Any other
error ends the pass; `keep_going` counts that and runs the loop again.

Gauges are numbers that a scrape shows and no loop knows by itself. They are looked up now and then; a number
that cannot be looked up is omitted, since an old one would look right.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from inspect import isawaitable
from typing import Any, TypeVar

from gateway.core.circuit_breaker import UnreportedFailures, is_worth_a_line
from gateway.core.credentials import FailureReport, Failures
from gateway.errors import (
    CountersRefused,
    CountersUnavailable,
    StoreTimeout,
    StoreUnavailable,
    TollkeeperError,
)

# One item that fails keeps no other from its turn: each is left, counted and told, and the loop goes on.
#
# What concerns everybody (a database that is away) is no item's fault: that ends the pass.

T = TypeVar("T")

UNAVAILABLE = 503
NAME_CHARS_MAX = 200
# One line of each fault within so many seconds; it says how many failures it is about.
FAULT_EACH_S = 60.0
REDIS, POSTGRESQL = "redis", "postgresql"
# What failed: a whole pass of a loop, or one item of it.
PASS, ITEM = "pass", "item"
LOOK_INTERVAL_S = 15.0
LOOK_MAX_S = 10.0

Look = Callable[[], Awaitable[Mapping[str, Any]]]


def _unavailable(error: Exception) -> bool:
    if isinstance(error, TollkeeperError):
        return error.status == UNAVAILABLE and not isinstance(error, CountersRefused | StoreTimeout)
    return isinstance(error, OSError | TimeoutError)


_URLS = {REDIS: "TOLLKEEPER_REDIS_URL", POSTGRESQL: "TOLLKEEPER_DATABASE_URL"}


def is_store_away(error: Exception) -> bool:
    """Return whether PostgreSQL does not answer at all. A timeout of a statement is its item's fault."""
    return isinstance(error, StoreUnavailable) and not isinstance(error, StoreTimeout)


class Isolation:
    """Counts by loop what failed, and says some of it. `is_away` knows more errors that are everybody's.

    `name` says how people find an item in the log. It has nothing that callers made up, and no secret.
    """

    def __init__(
        self,
        log: Callable[..., None] = lambda *_, **__: None,
        is_away: Callable[[Exception], bool] = lambda _: False,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._is_away, self._seconds = log, is_away, seconds
        self._failed: Counter[tuple[str, str]] = Counter()
        self._untold = UnreportedFailures()

    def watch(self, loops: Iterable[str]) -> None:
        """Register loops with 0 failures at the start: a counter that begins at 1 raises no alarm."""
        for loop in loops:
            self._failed[loop, PASS] += 0
            self._failed[loop, ITEM] += 0

    def pass_failed(self, loop: str, error: Exception) -> None:
        """Count and log a failed pass."""
        self._failed[loop, PASS] += 1
        self.say("loop failed", loop, error)

    def say(self, event: str, loop: str, error: Exception) -> None:
        """Log a failure, once a minute per fault: a server that is away is one fault of all loops."""
        server = self._server_away(error)
        cause = "" if server else f"{loop} {type(error).__name__}"
        count = self._untold.note(server or event, cause, self._seconds(), FAULT_EACH_S)
        if count:
            facts = {"loop": loop, "error": repr(error), "failures": count}
            if server:
                event = f"{server} does not answer"
                facts["do"] = f"look at {_URLS[server]} and the server; tollkeeper doctor says what is wrong"
            self._log(event, **facts, level="error")

    def _server_away(self, error: Exception) -> str:
        if isinstance(error, CountersUnavailable):
            return "" if isinstance(error, CountersRefused) else REDIS
        return POSTGRESQL if is_store_away(error) or self._is_away(error) else ""

    def item_failed(self, loop: str, name: str, error: Exception) -> None:
        """Count an item that was left, and say so now and then: what lasts fills no disk."""
        self._failed[loop, ITEM] += 1
        failures = self._failed[loop, ITEM]
        if is_worth_a_line(failures):
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
        """Run `act` on each item in turn; return how many succeeded."""
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
        """Run `act` on all items at once, else on each alone; return how many succeeded.

        An item that succeeds alone does not count as failed.
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
        """Run `act` on one item; return False if it failed. Faults of a server are raised."""
        try:
            await act(item)
        except Exception as error:
            if self.is_everybodys(error):
                raise
            self.item_failed(loop, name(item), error)
            return False
        return True

    def is_everybodys(self, error: Exception) -> bool:
        """Return whether an error is of a server, and not of the item."""
        return _unavailable(error) or self._is_away(error)

    def figures(self) -> dict[str, object]:
        return {"loop_failures": [[loop, of, count] for (loop, of), count in sorted(self._failed.items())]}


ITEMS_A_PAGE = 200

# A part of a pass, under the name of its loop; answers with how many items it was done.
Step = Callable[[Isolation, str], Awaitable[int]]
# Items behind a place, in their order, so many at most. Without a place there is one page.
Due = Callable[[int, int], Awaitable[Sequence[T]]]


# How long work waits until it is seen, and how soon after a look there is another one.
AGENDA_S = 1.0
AGENDA_S_MIN = 0.25


class Agenda:
    """Which loops have something to do: `ask` is one question for all of them, while any waits.

    An answer is good for those who waited when it was asked for. What `ask` raises, each of them raises.
    `written` says how often there was anything new, for any loop.
    """

    def __init__(
        self, ask: Callable[[], Awaitable[Collection[str]]], *, look_s: float = AGENDA_S,
        look_s_min: float = AGENDA_S_MIN, written: Callable[[], int] = lambda: 0,
    ) -> None:  # fmt: skip
        self.written = written
        self._ask, self._look_s, self._look_s_min = ask, look_s, look_s_min
        self._hurried = asyncio.Event()
        self._looking: asyncio.Task[Collection[str]] | None = None
        self._last: Collection[str] | None = None
        self._asked_at = -look_s

    def hurry(self) -> None:
        """Wake the loops: a change may have made something due."""
        self._hurried.set()

    def has(self, name: str) -> bool:
        """Return whether a loop found something due at the last look; also True before the first."""
        return self._last is None or name in self._last

    async def until(self, name: str) -> None:
        found: Collection[str] = ()
        while name not in found:
            found = await self._next()

    async def until_written(self, seen: int) -> None:
        """Wait until `written` is more: what a pass that began with so many found may be otherwise now."""
        while self.written() <= seen:
            await self._next()

    async def _next(self) -> Collection[str]:
        """Return the answer of the next look."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Collection[str]:
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(self._asked_at + self._look_s_min - clock())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._asked_at + self._look_s):
                    await self._hurried.wait()
        finally:
            self._looking = None  # who comes from now on waits for the next one
        self._hurried.clear()
        self._asked_at = clock()
        self._last = await self._ask()
        return self._last


@dataclass(frozen=True, slots=True)
class Loop:
    """`again`: at once, after a pass that did something. `quiet`: errors that end a pass and are no failure.

    A pause is `rest` times as long as the pass before it, and the interval at least. Behind a pass that did
    nothing the loop waits until it is on the `agenda`, where there is one. Or until something is `written`:
    of a loop that finds the same as before where nobody has written. What sets `woken` ends its pause.
    """

    name: str
    interval_s: float
    steps: tuple[Step, ...]
    again: bool = False
    quiet: tuple[type[Exception], ...] = ()
    rest: float = 0.0
    agenda: Agenda | None = None
    writes: Agenda | None = None
    woken: asyncio.Event | None = None

    async def turn(self, isolation: Isolation | None = None) -> int:
        """Make one pass; answers with how many items something was done."""
        isolation = isolation or Isolation()
        return sum([await step(isolation, self.name) for step in self.steps])

    async def run(self, isolation: Isolation | None = None) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            began, done = clock(), 0
            seen = 0 if self.writes is None else self.writes.written()
            with suppress(*self.quiet):
                done = await self.turn(isolation)
            pause_s = 0 if self.again and done else self.pause_s(clock() - began)
            if self.woken is None:
                await asyncio.sleep(pause_s)
            else:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.woken.wait(), pause_s)
                self.woken.clear()
            if self.agenda is not None:
                if done:
                    self.agenda.hurry()
                else:
                    await self.agenda.until(self.name)
            if self.writes is not None and not done:
                await self.writes.until_written(seen)

    def pause_s(self, took_s: float) -> float:
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
    """Return a step that runs `act` on each due item; `act` returns False if it had nothing to do.

    An error of `leaves` means that an item waits: no failure of it.
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
    """Return a step that runs `act` on due items by batch, and on each item of a failed batch."""

    async def step(isolation: Isolation, loop: str) -> int:
        done = 0
        async for page in pages(due, count, place):
            for batch in split(page):
                done += await isolation.together(loop, batch, act, name=name)
        return done

    return step


def call(act: Callable[[], object]) -> Step:
    """Return a step that runs `act` once a pass; an integer result counts as its number of items."""

    async def step(_isolation: Isolation, _loop: str) -> int:
        done = act()
        if isawaitable(done):
            done = await done
        return done if isinstance(done, int) else 0

    return step


async def pages(due: Due[T], count: int, place: Callable[[T], int] | None) -> AsyncIterator[Sequence[T]]:
    after = 0
    while page := await due(after, count):
        yield page
        if place is None:
            return
        after = place(page[-1])


# Reports wrong credentials: a line in the log a site and interval, and for people's port a stored row.
#
# Both are bounded by what `Failures` tells at a time, so that nobody fills a log or a table by guessing.

INTERVAL_S = 10.0


@dataclass(slots=True, eq=False)
class FailureTeller:
    """Reports what failed at one port; `keep` stores it, where there is a store."""

    port: str
    failures: Failures
    log: Callable[..., None]
    keep: Callable[[Sequence[FailureReport]], Awaitable[None]] | None = None

    def loop(self) -> Loop:
        return Loop("failures", INTERVAL_S, (call(self.tell),))

    async def tell(self) -> None:
        told = self.failures.take_reports()
        for one in told:
            self.log(
                "wrong credentials",
                port=self.port,
                address=one.site or "others",
                attempts=one.attempts,
                reasons=one.reasons,
                level="warning",
            )
        if told and self.keep is not None:
            await self.keep(told)


class Gauges:
    """`latest` is what the last look at everything found, by the names of a metrics snapshot."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.latest: Mapping[str, Any] = {}
        self._looks = looks

    def loop(self) -> Loop:
        return Loop("watcher", LOOK_INTERVAL_S, (call(self.refresh),))

    async def refresh(self) -> None:
        found: dict[str, Any] = {}
        for one in await asyncio.gather(*(_seen(look) for look in self._looks)):
            for name, value in one.items():
                # Rows about different things come from different looks.
                found[name] = [*found[name], *value] if isinstance(value, list) and name in found else value
        self.latest = found


async def _seen(look: Look) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(LOOK_MAX_S):
            return await look()
    except Exception:  # noqa: BLE001  # whatever it meets, there is nothing to show
        return {}
