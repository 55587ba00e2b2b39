"""A process waits for what it needs, says so, and gives up or stops when it is told to."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import redis

from gateway.core.model import Service
from gateway.counters.admission.stored import encode_catalogue
from gateway.counters.redis import keys
from gateway.errors import StartError
from gateway.run.lifecycle import ASK_INTERVAL_S, catalogue_of, reached
from gateway.settings.settings import load
from tests.conftest import ValkeyServer, free_port
from tests.tree import ROOT

CHAT = Service(1, "chat")


class Log:
    def __init__(self) -> None:
        self.said: list[tuple[str, Any]] = []

    def __call__(self, event: str, **facts: Any) -> None:
        self.said.append((event, facts["why"]))


async def test_what_answers_in_the_end_is_reached() -> None:
    troubles, log = ["refused", "refused", ""], Log()

    async def trouble() -> str:
        return troubles.pop(0)

    assert await reached("Redis", trouble, wait_s=60, stop=asyncio.Event(), log=log)
    assert log.said == [("waiting for Redis", "refused")]


@pytest.mark.parametrize(
    ("raw", "known"),
    [
        (encode_catalogue(1, [CHAT]), {"chat": CHAT}),
        (b"{", {}),
        (b'{"version":1,"services":[]}', {}),
        (b"", {}),
    ],
)
async def test_services_that_nobody_can_read_are_none(
    own_valkey: Callable[..., ValkeyServer], raw: bytes, known: dict[str, Service]
) -> None:
    url = own_valkey().url
    with redis.Redis.from_url(url) as client:
        client.set(keys.CATALOGUE, raw)
    assert await catalogue_of(load({"TOLLKEEPER_REDIS_URL": url})) == known


async def test_what_answers_at_once_is_not_mentioned() -> None:
    log = Log()

    async def trouble() -> str:
        return ""

    assert await reached("Redis", trouble, wait_s=1, stop=asyncio.Event(), log=log)
    assert log.said == []


async def test_the_wait_ends_with_what_is_wrong() -> None:
    async def trouble() -> str:
        return "no such host"

    with pytest.raises(StartError, match=r"Redis cannot be reached, after 0\.1 s: no such host"):
        await reached("Redis", trouble, wait_s=0.1, stop=asyncio.Event(), log=Log())


async def test_an_answer_that_never_comes_is_bounded() -> None:
    async def trouble() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(StartError, match="no answer within"):
        await reached("Redis", trouble, wait_s=0.1, stop=asyncio.Event(), log=Log())


async def test_a_process_told_to_stop_waits_no_longer() -> None:
    stop = asyncio.Event()
    stop.set()

    async def trouble() -> str:
        return "refused"

    assert not await reached("Redis", trouble, wait_s=3_600, stop=stop, log=Log())


async def test_a_last_look_that_takes_its_time_still_says_what_is_wrong() -> None:
    """As a connection is asked after: for a while, and then with the reason it has met."""

    async def trouble() -> str:
        await asyncio.sleep(ASK_INTERVAL_S)
        return "wrong password"

    with pytest.raises(StartError, match="wrong password"):
        await reached("Redis", trouble, wait_s=ASK_INTERVAL_S * 2, stop=asyncio.Event(), log=Log())


def test_a_migration_that_cannot_begin_says_of_which_setting_and_what_to_do() -> None:
    url = f"postgresql://u:p@127.0.0.1:{free_port()}/x"
    ended = subprocess.run(
        [sys.executable, "-m", "gateway", "migrate", "--database-url", url],
        capture_output=True, text=True, cwd=ROOT, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 1
    assert "start PostgreSQL, or correct host and port of TOLLKEEPER_DATABASE_URL" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
