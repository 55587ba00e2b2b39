"""Databases that tests have for themselves."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from persistence import engine as engines
from tests.connections import kept, leave

# Engines that no test has now. Each knows the statements that it compiled, which costs more than to run them.
_SPARE: Final = defaultdict[str, list[AsyncEngine]](list)
# Those that have connections, by their loop.
_OPEN: Final[dict[asyncio.AbstractEventLoop, defaultdict[str, list[AsyncEngine]]]] = {}


def make_database(postgres: str, name: str, template: str = "") -> str:
    """Make a database of this server, like the template where one is named; return its URL."""
    server = postgres.rsplit("/", 1)[0]
    leave(f"{server}/{template}")
    like = f" template {template}" if template else ""
    kept(postgres).execute(f"create database {name}{like}".encode())
    return f"{server}/{name}"


@contextmanager
def own_database(postgres: str, name: str, template: str = "") -> Iterator[str]:
    """The URL of a new database of this server, like the template where one is named; it goes afterwards."""
    url = make_database(postgres, name, template)
    yield url
    leave(url)
    kept(postgres).execute(f"drop database if exists {name} with (force)".encode())


def take_engine(url: str) -> AsyncEngine:
    """Return an engine that a test has alone until it gives it back."""
    spare = _spare()[url]
    return spare.pop() if spare else engines.create(url)


async def give_back(url: str, engine: AsyncEngine) -> None:
    """Give an engine to a later test; its connections stay open only on the loop of `open_engines`."""
    if _spare() is _SPARE or engine.pool.checkedout():  # type: ignore[attr-defined]  # of pools that have a bound
        await engine.dispose()
    else:
        await forget_ids(engine)
    _spare()[url].append(engine)


async def leave_with_engines(url: str) -> None:
    """Close all that nobody has open there: only a database without sessions can be copied."""
    leave(url)
    for known, engines_there in _spare().items():
        if known.rpartition("@")[2] == url.rpartition("@")[2]:
            for engine in engines_there:
                await engine.dispose()


async def forget_ids(engine: AsyncEngine) -> None:
    """Have idle sessions forget the ids that they have ahead: a database that is emptied begins anew."""
    idle: int = engine.pool.checkedin()  # type: ignore[attr-defined]  # the same
    try:
        connections = [await engine.connect() for _ in range(idle)]
        for connection in connections:
            await connection.exec_driver_sql("DISCARD SEQUENCES")
            await connection.close()
    except DBAPIError:  # a test had sessions ended
        await engine.dispose()


@asynccontextmanager
async def open_engines() -> AsyncIterator[None]:
    """Have the engines of this loop keep their connections, from taker to taker."""
    loop = asyncio.get_running_loop()
    _OPEN[loop] = defaultdict(list)
    yield
    for url, spare in _OPEN.pop(loop).items():
        for engine in spare:
            await give_back(url, engine)


def _spare() -> defaultdict[str, list[AsyncEngine]]:
    with suppress(RuntimeError):  # no loop runs
        return _OPEN.get(asyncio.get_running_loop(), _SPARE)
    return _SPARE
