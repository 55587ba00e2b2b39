"""The driver of a request's coroutine: what was given up resumes nobody."""

from __future__ import annotations

import asyncio
import weakref

from gateway.core.wait import OVER, Wait
from gateway.http.server.buffers import RequestDriver


class EndsRecorder(RequestDriver):
    """A handler that remembers its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.ends: list[BaseException | None] = []

    def ended(self, error: BaseException | None) -> None:
        self.ends.append(error)


async def test_a_wait_that_was_given_up_resumes_nobody_who_awaits_a_future_since() -> None:
    given_up, heard = Wait[None](), list[str]()
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def telling() -> None:
        try:
            await given_up
        except TimeoutError:
            heard.append("given up")
        heard.append(await future)

    driver = EndsRecorder()
    driver.tell(telling())
    driver.expire_wait(TimeoutError())
    given_up.set(None)
    assert (heard, driver.ends) == (["given up"], [])
    future.set_result("told")
    await asyncio.sleep(0)
    assert (heard, driver.ends) == (["given up", "told"], [None])


async def test_a_coroutine_that_says_it_is_over_is_kept_no_longer() -> None:
    class Whole:
        """What the coroutine has."""

    async def telling(whole: Whole) -> None:
        seen.append(weakref.ref(whole))
        await first
        await OVER

    first, seen, driver = Wait[None](), list[weakref.ref[Whole]](), EndsRecorder()
    driver.tell(telling(Whole()))
    assert (driver.over, driver.ends) == (False, [])
    first.set(None)
    assert (driver.over, driver.ends, seen[0]()) == (True, [None], None)
    driver.interrupt(TimeoutError())
    driver.expire_wait(TimeoutError())
    assert driver.ends == [None]


async def test_an_error_is_handled_by_the_coroutine_behind_it_which_may_wait() -> None:
    failed, released = ValueError("lost"), Wait[None]()
    heard: list[BaseException] = []

    async def failing() -> None:
        raise failed

    async def given_up(_: EndsRecorder, error: BaseException) -> None:
        heard.append(error)
        await released

    driver = EndsRecorder()
    driver.tell(failing(), given_up)
    assert (heard, driver.over, driver.ends) == ([failed], False, [])
    released.set(None)
    assert (heard, driver.over, driver.ends) == ([failed], True, [None])


async def test_an_error_of_whoever_handles_one_is_the_last() -> None:
    async def failing() -> None:
        raise ValueError

    async def given_up(_: EndsRecorder, error: BaseException) -> None:
        raise KeyError from error

    driver = EndsRecorder()
    driver.tell(failing(), given_up)
    assert [type(end) for end in driver.ends] == [KeyError]


async def test_a_future_that_was_cancelled_ends_its_handler() -> None:
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def waiting() -> None:
        await future

    driver = EndsRecorder()
    driver.tell(waiting())
    future.cancel()
    await asyncio.sleep(0)
    assert [type(end) for end in driver.ends] == [asyncio.CancelledError]


async def test_coroutine_that_awaits_a_bare_yield_ends_with_an_error() -> None:
    first, driver = Wait[None](), EndsRecorder()

    async def yielding_to_the_loop() -> None:
        await first
        await asyncio.sleep(0)

    driver.tell(yielding_to_the_loop())
    first.set(None)
    assert driver.over
    (error,) = driver.ends
    assert isinstance(error, TypeError)
    assert "neither a Wait nor a future" in str(error)
