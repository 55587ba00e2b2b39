"""Wrong credentials are counted, and answered later with each; right ones never wait."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.core.failures import FREE_MAX
from gateway.core.model import Refused, Verdict
from tests.http.fakes import CHAT, answer, post
from tests.http.stage import Client, Stage, staged
from tests.waiting import eventually

NO_KEY = post(CHAT).replace(b"authorization: Bearer tk_0123456789abcdef\r\n", b"")


@asynccontextmanager
async def slowed(failed: int) -> AsyncIterator[tuple[Stage, Client]]:
    """A client whose answer waits, since its address failed so often beyond what is free."""
    async with staged() as stage:
        stage.failures.free_max = FREE_MAX
        for _ in range(FREE_MAX + failed):
            stage.failures.count("127.0.0.1", "unknown")
        slow = await stage.client()
        await slow.send(NO_KEY)
        await eventually(lambda: stage.failures.delayed == 1)
        yield stage, slow


async def test_each_kind_is_counted(stage: Stage) -> None:
    assert (await stage.ask(NO_KEY)).status == 401
    assert (await stage.ask(post(CHAT).replace(b"Bearer tk_", b"Basic tk_"))).status == 401
    stage.directory.known = False
    assert (await stage.ask(post(CHAT))).status == 401
    stage.directory.known = True
    stage.counters.decision = Refused(Verdict.REVOKED, 1)
    assert (await stage.ask(post(CHAT))).status == 401
    counted = {reason: count for reason, count in stage.failures.counts.items() if count}
    assert counted == {"missing": 1, "malformed": 1, "unknown": 1, "revoked": 1}
    assert [told.attempts for told in stage.failures.take_reports()] == [4]


async def test_who_sends_many_waits_and_others_of_the_same_address_do_not() -> None:
    async with slowed(4) as (stage, slow):
        assert (await stage.ask(post(CHAT))).status == 200
        got = await slow.answer()
        assert (got.status, got.reason) == (401, "invalid_api_key")
        assert stage.failures.delayed == 0


async def test_who_leaves_meanwhile_leaves_nothing() -> None:
    async with slowed(9) as (stage, slow):
        slow.reset()
        await eventually(lambda: stage.failures.delayed == 0)
        await eventually(lambda: not stage.plane.calls)
        assert not stage.events("request_failed")


async def test_an_upstream_that_refuses_our_key_is_told_once_a_minute_with_the_place_of_the_key() -> None:
    async with staged(of_target={"held": ("OPENAI_API_KEY",)}) as stage:
        for _ in range(3):
            stage.upstream.scripts.append([answer(b"{}", b"", b"401 Unauthorized")])
            assert (await stage.ask(post(CHAT))).status == 401
        (told,) = stage.events("upstream_refuses_us")
    assert (told["upstream"], told["status"], told["held_in"]) == ("up", 401, "OPENAI_API_KEY")
    assert "upstream-secret" not in str(stage.logged)
