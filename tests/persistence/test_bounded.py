"""Nobody waits for a PostgreSQL that does not answer, and everybody for one that is only slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial

import pytest
from psycopg.conninfo import conninfo_to_dict

from gateway.errors import Conflict, StoreUnavailable
from persistence import engine as persistence_engine
from persistence.engine import alive, create, plain_url

SHORT_S = 0.02
answered = partial(persistence_engine.answered, silent_s_max=SHORT_S, probe_s_max=SHORT_S)


async def yes() -> bool:
    return True


async def never() -> bool:
    await asyncio.Event().wait()
    return True


async def broken() -> bool:
    raise OSError("refused")


async def test_work_that_does_not_end_though_it_is_cancelled_is_left_behind() -> None:
    ended = asyncio.Event()

    async def stubborn() -> bool:
        while not ended.is_set():
            with suppress(asyncio.CancelledError):
                await ended.wait()
        return True

    with pytest.raises(TimeoutError):
        await persistence_engine.within(stubborn(), SHORT_S)
    ended.set()
    assert await persistence_engine.within(yes(), 30)
    with pytest.raises(OSError, match="refused"):
        await persistence_engine.within(broken(), 30)


async def test_slow_work_is_waited_for() -> None:
    asked = 0
    slow = asyncio.Event()

    async def often() -> bool:
        nonlocal asked
        asked += 1
        if asked == 5:
            slow.set()
        return True

    async def work() -> int:
        await slow.wait()
        return 7

    assert await answered(work(), often) == 7
    assert asked >= 5


async def test_what_goes_wrong_in_the_work_is_said() -> None:
    async def work() -> int:
        raise Conflict("no")

    with pytest.raises(Conflict):
        await answered(work(), yes)


@pytest.mark.parametrize("alive", [never, broken])
async def test_work_on_a_silent_server_is_left_behind(alive: Callable[[], Awaitable[bool]]) -> None:
    left = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
            # As a query whose cancellation waits for the server's word.
            await asyncio.Event().wait()
        return 0

    with pytest.raises(StoreUnavailable):
        await answered(work(), alive)
    await left.wait()


async def test_a_server_that_accepts_and_says_nothing_is_not_alive(postgres: str) -> None:
    there = create(postgres)
    assert await alive(there)
    await there.dispose()
    silent = await asyncio.start_server(lambda _, __: asyncio.Event().wait(), "127.0.0.1", 0)
    port = silent.sockets[0].getsockname()[1]
    engine = create(f"postgresql://u@127.0.0.1:{port}/d")
    assert not await persistence_engine._answers(lambda: alive(engine), SHORT_S)
    await engine.dispose()
    silent.close()


async def test_a_password_with_blanks_does_not_make_slow_work_look_like_a_dead_server() -> None:
    password = "a keeper's 100 % + password"
    engine = create("postgresql://keeper@127.0.0.1:5432/ledger")
    shown = engine.url.set(password=password).render_as_string(hide_password=False)
    assert conninfo_to_dict(plain_url(shown))["password"] == password
    await engine.dispose()
