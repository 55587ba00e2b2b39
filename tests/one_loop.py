"""One loop a process for tests of PostgreSQL: connections of an engine belong to a loop, and are dear to open.

Tests that ask for a database which they have in turn run on that loop, with all their fixtures; others have a
loop each. What a test leaves running is cancelled behind it, as it would be at the end of a loop of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Generator
from inspect import isasyncgenfunction, iscoroutinefunction
from typing import Any, Final
from weakref import WeakSet

import pytest
import pytest_asyncio

from tests.waiting import HUNG_S

# Fixtures of databases that tests have in turn.
IN_TURN: Final = {"admin_database", "migrated", "shared"}
# What goes on behind a test, for the next one.
LASTING: Final = WeakSet[asyncio.Task[Any]]()
_RUNNER: Final = "_session_scoped_runner"


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Have a test run on the loop, with its fixtures."""
    if not IN_TURN.isdisjoint(metafunc.fixturenames) and iscoroutinefunction(metafunc.function):
        mark = pytest.mark.asyncio(loop_scope="session")
        mark(metafunc.function)
        metafunc.definition.add_marker(mark)
        for definitions in metafunc.definition._fixtureinfo.name2fixturedefs.values():
            function = definitions[-1].func
            if iscoroutinefunction(function) or isasyncgenfunction(function):
                pytest_asyncio.fixture(loop_scope="session")(function)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Cancel what a test left running, once its fixtures are gone."""
    runner: asyncio.Runner | None = getattr(item, "funcargs", {}).get(_RUNNER)
    loop = None if runner is None else runner.get_loop()
    yield
    if runner is not None and loop is not None and not loop.is_closed():
        runner.run(_cancel_left())


async def _cancel_left() -> None:
    left = asyncio.all_tasks() - {*LASTING, asyncio.current_task()}
    for task in left:
        task.cancel()
    if left:
        _, hung = await asyncio.wait(left, timeout=HUNG_S)
        assert not hung, hung


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def one_loop() -> AsyncIterator[None]:
    """Have engines keep their connections from test to test, until the loop ends."""
    from tests.databases import open_engines

    async with open_engines():
        yield
