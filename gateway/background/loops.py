"""The loop that all background work uses: one pass, a pause, and again until cancelled.

A loop is a row: its name in logs and metrics, its interval, and the steps of a pass. `gateway/run` composes
these rows from callables. An item that fails is counted by `Isolation`, and the other items go on. Any other
error ends the pass; `keep_going` counts the error and restarts the loop.

Gauges are numbers for metrics that no loop knows by itself. They are queried at intervals. A number that
cannot be queried is omitted, since an outdated one would look right.
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

from gateway.core.circuit_breaker import is_worth_a_line
from gateway.core.failures import FailureReport, Failures
from gateway.core.unreported_failures import UnreportedFailures
from gateway.errors import (
    CountersRefused,
    CountersUnavailable,
    StoreTimeout,
    StoreUnavailable,
    TollkeeperError,
)

# An item that fails is skipped, counted and logged, and the loop goes on with the others.
#
# An unavailable database is no item's fault: that ends the pass.

T = TypeVar("T")

UNAVAILABLE = 503
NAME_CHARS_MAX = 200
# The interval between two log lines of the same fault; a line has the number of failures since the last.
FAULT_EACH_S = 60.0
REDIS, POSTGRESQL = "redis", "postgresql"
# Classes of SQLSTATE of a server that answers: it lacks resources, or only reads.
REFUSING = frozenset({"25", "53"})
# The scope of a failure: a whole pass of a loop, or one item.
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
    """Return whether an error says that PostgreSQL is unreachable.

    A timeout of one statement does not, since the item may have caused it.
    """
    return isinstance(error, StoreUnavailable) and not isinstance(error, StoreTimeout)


class Isolation:
    """Counts failures by loop, and logs some of them. `is_away` recognises further errors of a whole server.

    `code` returns the SQLSTATE of an error, or "".

    The `name` parameters of its methods give an item's name in the log: no text from callers, and no secret.
    """

    def __init__(
        self,
        log: Callable[..., None] = lambda *_, **__: None,
        is_away: Callable[[Exception], bool] = lambda _: False,
        seconds: Callable[[], float] = time.monotonic,
        *,
        code: Callable[[Exception], str] = lambda _: "",
    ) -> None:
        self._log, self._is_away, self._seconds, self._code = log, is_away, seconds, code
        self._failed: Counter[tuple[str, str]] = Counter()
        self._untold = UnreportedFailures()

    def watch(self, loops: Iterable[str]) -> None:
        """Register loops with 0 failures, because a counter that first appears with 1 raises no alarm."""
        for loop in loops:
            self._failed[loop, PASS] += 0
            self._failed[loop, ITEM] += 0

    def pass_failed(self, loop: str, error: Exception) -> None:
        self._failed[loop, PASS] += 1
        self.say("loop failed", loop, error)

    def say(self, event: str, loop: str, error: Exception) -> None:
        """Log a failure, at most once a minute for the same fault: each SQLSTATE is one.

        A server that is away is one fault of all loops.
        """
        server, code = self._server_away(error), self._code(error)
        cause = code if server else f"{loop} {type(error).__name__} {code}"
        count = self._untold.note(server or event, cause, self._seconds(), FAULT_EACH_S)
        if count:
            facts = {"loop": loop, "error": repr(error), "failures": count}
            if server:
                event = f"{server} {'refuses' if code[:2] in REFUSING else 'does not answer'}"
                facts["do"] = f"look at {_URLS[server]} and the server; tollkeeper doctor says what is wrong"
            self._log(event, **facts, level="error")

    def _server_away(self, error: Exception) -> str:
        if isinstance(error, CountersUnavailable):
            return "" if isinstance(error, CountersRefused) else REDIS
        return POSTGRESQL if is_store_away(error) or self._is_away(error) else ""

    def item_failed(self, loop: str, name: str, error: Exception) -> None:
        """Count a skipped item, and log it at growing intervals, so that a lasting fault fills no disk."""
        self._failed[loop, ITEM] += 1
        failures = self._failed[loop, ITEM]
        if is_worth_a_line(failures):
            fields = {"loop": loop, "item": name[:NAME_CHARS_MAX], "error": repr(error), "failures": failures}
            self._log("item left", **fields, level="error")

    async def run_items(
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
        """Run `act` on all items together, or on each alone if that fails; return how many succeeded.

        An item that succeeds alone does not count as failed. An error of a server is raised.
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

        return await self.run_items(loop, items, alone, name=name)

    async def tried(
        self, loop: str, item: T, act: Callable[[T], Awaitable[object]], *, name: Callable[[T], str]
    ) -> bool:
        """Run `act` on one item; return False if the item failed. Raise the error if a server failed."""
        try:
            await act(item)
        except Exception as error:
            if self.is_everybodys(error):
                raise
            self.item_failed(loop, name(item), error)
            return False
        return True

    def is_everybodys(self, error: Exception) -> bool:
        """Return whether an error concerns a whole server (Redis, PostgreSQL) instead of one item."""
        return _unavailable(error) or self._is_away(error)

    def figures(self) -> dict[str, object]:
        return {
            "loop_failures": [[loop, kind, count] for (loop, kind), count in sorted(self._failed.items())]
        }


ITEMS_A_PAGE = 200

# A part of a pass, called with the name of its loop; returns the number of processed items.
Step = Callable[[Isolation, str], Awaitable[int]]
# Returns up to a number of items after a position, in order. A loop without positions gets one page.
Due = Callable[[int, int], Awaitable[Sequence[T]]]


# The longest wait until new work is seen, and the shortest pause between two looks.
AGENDA_S = 1.0
AGENDA_S_MIN = 0.25


class Agenda:
    """Knows which loops have work: one query, `ask`, serves all loops that wait.

    A result counts for the loops that waited when its query began; each of them raises an error of `ask`.
    `written` returns a number that grows with each write that may make work for any loop.
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
        """Wake the waiting loops, because a change may have made work due."""
        self._hurried.set()

    def has(self, name: str) -> bool:
        """Return whether the last query found work for a loop; True before the first query."""
        return self._last is None or name in self._last

    async def until(self, name: str) -> None:
        items: Collection[str] = ()
        while name not in items:
            items = await self._next()

    async def until_written(self, seen: int) -> None:
        """Wait until `written()`, a number of writes, exceeds `seen`, its value when the last pass began."""
        while self.written() <= seen:
            await self._next()

    async def _next(self) -> Collection[str]:
        """Return the names of loops with work, from the next query."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look())
        return await asyncio.shield(self._looking)

    async def _look(self) -> Collection[str]:
        """Query which loops are due, at once if hurried; return their names."""
        clock = asyncio.get_running_loop().time
        try:
            await asyncio.sleep(self._asked_at + self._look_s_min - clock())
            with suppress(TimeoutError):
                async with asyncio.timeout_at(self._asked_at + self._look_s):
                    await self._hurried.wait()
        finally:
            self._looking = None  # callers from now on wait for the next query
        self._hurried.clear()
        self._asked_at = clock()
        self._last = await self._ask()
        return self._last


@dataclass(frozen=True, slots=True)
class Loop:
    """A loop and its timing. After a pass that did something it starts `again` at once, if set.

    Errors of `quiet` end a pass and are no failure. A pause is at least the interval, and `rest` times as
    long as the pass before. After a pass that did nothing, the loop waits until the `agenda` has work for it,
    if it has one, and until something was written, if it has `writes`. Setting the event `woken` ends a
    pause.
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
        """Run all steps once; return the number of items processed. `isolation` counts failures."""
        isolation = isolation or Isolation()
        return sum([await step(isolation, self.name) for step in self.steps])

    async def run(self, isolation: Isolation | None = None) -> None:
        """Run turns forever, each after a pause, a wake-up, or the time that `agenda` or `writes` gives."""
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


def run_each(
    due: Due[T],
    act: Callable[[T], Awaitable[object]],
    *,
    count: int = ITEMS_A_PAGE,
    place: Callable[[T], int] | None = None,
    leaves: tuple[type[Exception], ...] = (),
    name: Callable[[T], str] = str,
) -> Step:
    """Return a step that runs `act` on each due item; `act` returns False if it had nothing to do.

    A page has `count` items. `place` returns an item's position, where the next page continues; `name` its
    name in the log. An error of the types `leaves` means that an item has to wait, and is no failure.
    """

    async def step(isolation: Isolation, loop: str) -> int:
        done = 0

        async def once(item: T) -> None:
            nonlocal done
            with suppress(*leaves):
                done += await act(item) is not False

        async for page in pages(due, count, place):
            await isolation.run_items(loop, page, once, name=name)
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
    """Return a step that runs `act` on batches of due items, and on each item of a batch that failed.

    `split` divides a page of `count` items into batches. `place` returns an item's position, where the
    next page continues; `name` its name in the log.
    """

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


# Reports wrong credentials: a log line for each site and interval, and a stored row for the port of people.
#
# Both are bounded by the number of reports that `Failures` returns, so that guessing fills no log and no
# table.

INTERVAL_S = 10.0


@dataclass(slots=True, eq=False)
class FailureTeller:
    """Logs failed authentications at one port; `keep`, if set, stores them too."""

    port: str
    failures: Failures
    log: Callable[..., None]
    keep: Callable[[Sequence[FailureReport]], Awaitable[None]] | None = None

    def loop(self) -> Loop:
        return Loop("failures", INTERVAL_S, (call(self.tell),))

    async def tell(self) -> None:
        """Log the wrong credentials of each address, and store them."""
        reports = self.failures.take_reports()
        for report in reports:
            self.log(
                "wrong credentials",
                port=self.port,
                address=report.site or "others",
                attempts=report.attempts,
                reasons=report.reasons,
                level="warning",
            )
        if reports and self.keep is not None:
            await self.keep(reports)


class Gauges:
    """Queries metrics at intervals; `latest` has the last values, by the names of a metrics snapshot."""

    def __init__(self, looks: Sequence[Look]) -> None:
        self.latest: Mapping[str, Any] = {}
        self._looks = looks

    def loop(self) -> Loop:
        return Loop("watcher", LOOK_INTERVAL_S, (call(self.refresh),))

    async def refresh(self) -> None:
        facts: dict[str, Any] = {}
        for facts_ in await asyncio.gather(*(_collect_facts(look) for look in self._looks)):
            for name, value in facts_.items():
                # Several looks may give rows of one metric.
                facts[name] = [*facts[name], *value] if isinstance(value, list) and name in facts else value
        self.latest = facts


async def _collect_facts(look: Look) -> Mapping[str, Any]:
    try:
        async with asyncio.timeout(LOOK_MAX_S):
            return await look()
    except Exception:  # noqa: BLE001  # any error: then there is nothing to show
        return {}
