"""A gateway worker or a keeper that kills itself at a named point: the real one, but for that.

Its coroutines are stepped through an object that looks where they stand: requests where the data
plane begins their handling, the keeper's loops where their tasks are made. A point is the innermost
`await` of ours and one of three moments: `suspended` (nothing of this tick has left the process
yet), `sent` (it has), `resumed` (the answer is here and nothing was done about it). Production
code knows nothing of it.

Usage: python -m tests.faults.crashing serve|keeper POINT NTH FILE, settings on standard input.
Points seen are appended to FILE; with POINT "" nothing is killed.
"""

from __future__ import annotations

import asyncio
import linecache
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from gateway.core.wait import OVER

ROOT = Path(__file__).resolve().parents[2]
# What only carries an answer: where the waiting is done, not what is waited for.
CARRIERS = ("gateway/core/wait.py", "gateway/counters/redis/connection.py")
KEEPER_TASKS = ("Flusher.run", "Flusher._gather", "forever")


class Plan:
    """Where to die: the `nth` time a point is met. Remembers in a file which points there are."""

    def __init__(self, point: str, nth: int, seen: Path) -> None:
        self._point = point
        self._left = nth
        self._file = seen.open("a", buffering=1)
        self._seen: set[str] = set()

    def meet(self, name: str) -> None:
        """Stand at a point, and die if it is the one."""
        if name not in self._seen:
            self._seen.add(name)
            self._file.write(name + "\n")
        if name == self._point:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


class Stepped(Coroutine[Any, Any, Any]):
    """A coroutine that meets its plan's points as it is driven."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], plan: Plan) -> None:
        self._coroutine = coroutine
        self._plan = plan
        self._at = ""
        plan.meet(f"{_name(coroutine.cr_code)} | begin")  # type: ignore[attr-defined]  # a native one

    def send(self, value: Any) -> Any:
        """Run on to the next wait."""
        return self._step(lambda: self._coroutine.send(value))

    def throw(self, *error: Any) -> Any:
        """Have the wait fail."""
        return self._step(lambda: self._coroutine.throw(*error))

    def close(self) -> None:
        """End it."""
        self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield from self._coroutine.__await__())

    def _step(self, run: Callable[[], Any]) -> Any:
        plan = self._plan
        if self._at:
            plan.meet(f"{self._at} | resumed")
        end = f"{_name(self._coroutine.cr_code)} | end"  # type: ignore[attr-defined]  # as above
        try:
            awaited = run()
        except StopIteration:
            plan.meet(end)
            raise
        if awaited is OVER:
            plan.meet(end)
            return awaited
        self._at = where(self._coroutine)
        plan.meet(f"{self._at} | suspended")
        asyncio.get_running_loop().call_soon(plan.meet, f"{self._at} | sent")
        return awaited


def where(coroutine: Any) -> str:
    """The innermost await of ours a suspended coroutine stands at, by function and source."""
    found = "?"
    while coroutine is not None and (frame := getattr(coroutine, "cr_frame", None)) is not None:
        place = _place(frame.f_code)
        if place and place not in CARRIERS:
            found = f"{_name(frame.f_code)} | {_source(frame)}"
        coroutine = coroutine.cr_await
    return found


def _place(code: CodeType) -> str:
    path = Path(code.co_filename)
    return path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else ""


def _name(code: CodeType) -> str:
    return f"{_place(code).removesuffix('.py')}.{code.co_qualname}"


def _source(frame: FrameType) -> str:
    return linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()


def gateway(plan: Plan) -> None:
    """Have every request of this process stepped."""
    from gateway.http import collections
    from gateway.http.server import server

    def stepped(handled: Callable[..., Any]) -> Callable[..., Stepped]:
        return lambda *given: Stepped(handled(*given), plan)

    for module, name in ((server, "proxy"), (collections, "proxy"), (server, "given_up")):
        vars(module)[name] = stepped(vars(module)[name])


def keeper(plan: Plan) -> None:
    """Have the loops of this process's keeper stepped."""
    from gateway.run import keeper as loops

    run = loops.run_keeper

    def made(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        name = getattr(coroutine, "__qualname__", "")
        if name in KEEPER_TASKS:
            coroutine = Stepped(coroutine, plan)
        return asyncio.Task(coroutine, loop=loop, **options)

    async def watched(*given: Any, **named: Any) -> None:
        asyncio.get_running_loop().set_task_factory(made)
        await run(*given, **named)

    loops.run_keeper = watched


def main() -> int:
    """Run as `gateway serve|keeper --worker` would."""
    role, point, nth, seen = sys.argv[1:]
    plan = Plan(point, int(nth), Path(seen))
    gateway(plan) if role == "serve" else keeper(plan)
    from gateway.__main__ import main as run

    return run([role, "--worker"])


if __name__ == "__main__":
    sys.exit(main())
