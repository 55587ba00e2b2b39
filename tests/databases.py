"""Databases that tests have for themselves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from sqlalchemy.ext.asyncio import AsyncEngine

from persistence import engine as engines
from tests.connections import kept, leave

# Engines that no test has now. Each knows the statements that it compiled, which costs more than to run them.
_SPARE: Final = defaultdict[str, list[AsyncEngine]](list)


def make_database(postgres: str, name: str, template: str = "") -> str:
    """Make a database of this server, like the template where one is named; return its URL."""
    like = f" template {template}" if template else ""
    kept(postgres).execute(f"create database {name}{like}".encode())
    return postgres.rsplit("/", 1)[0] + "/" + name


@contextmanager
def own_database(postgres: str, name: str, template: str = "") -> Iterator[str]:
    """The URL of a new database of this server, like the template where one is named; it goes afterwards."""
    url = make_database(postgres, name, template)
    yield url
    leave(url)
    kept(postgres).execute(f"drop database if exists {name} with (force)".encode())


def take_engine(url: str) -> AsyncEngine:
    """Return an engine that a test has alone until it gives it back."""
    return _SPARE[url].pop() if _SPARE[url] else engines.create(url)


async def give_back(url: str, engine: AsyncEngine) -> None:
    """End the connections of an engine; a later test may have it."""
    await engine.dispose()
    _SPARE[url].append(engine)
