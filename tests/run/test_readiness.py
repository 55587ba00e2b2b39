"""A probe answers in time, whatever it asks does."""

from __future__ import annotations

import asyncio

from gateway.run.readiness import Probe


async def test_what_answers_is_told_and_an_error_is_a_no() -> None:
    async def refuses() -> bool:
        raise OSError("nobody there")

    assert await Probe(lambda: asyncio.sleep(0, True)).answers()
    assert not await Probe(lambda: asyncio.sleep(0, False)).answers()
    assert not await Probe(refuses).answers()


async def test_what_hangs_is_a_no_in_time_and_asked_once() -> None:
    asked, release = [], asyncio.Event()

    async def hangs() -> bool:
        asked.append(1)
        return await release.wait()

    probe = Probe(hangs, answer_s_max=0.01)
    assert [await probe.answers() for _ in range(3)] == [False] * 3
    assert len(asked) == 1
    release.set()
    await asyncio.sleep(0)
    assert await Probe(hangs).answers()
    assert await probe.answers()
