"""HAProxy in front of Tollkeeper: clients share its connections, and streams pass as they are written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from tests import plain_http
from tests.journey import fronts
from tests.journey.fronts import Front
from tests.journey.stack import ANSWER_S_MAX, Stack
from tests.journey.test_authority import call
from tests.journey.test_authorize import CHAT
from tests.journey.test_holds import Holder
from tests.waiting import wait_until

CALLERS, CALLS = 32, 200
STREAM = CHAT | {"stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tollkeeper-haproxy-") as found:
        yield Path(found)


@pytest.fixture(scope="module")
def front(stack: Stack, folder: Path) -> Iterator[Front]:
    one = fronts.haproxy(stack, folder)
    yield one
    one.stop()


def charged(stack: Stack, holder: Holder) -> list[int]:
    """The tokens of a holder's calls, once nothing of it is held."""
    wait_until(lambda: stack.quota(holder.tenant)["tokens_held"] == 0)
    return holder.consumed()


def test_calls_over_shared_connections_are_charged_once_to_their_own_key(stack: Stack, front: Front) -> None:
    holders = [Holder(stack), Holder(stack)]

    def one(at: int) -> int:
        said: dict[str, Any] = {"body": STREAM} if at % 3 == 0 else {}
        return call(front, holders[at % 2].key, x_demo_usage=f"{1 + at % 2},7", **said).status_code

    with ThreadPoolExecutor(CALLERS) as pool:
        assert set(pool.map(one, range(CALLS))) == {200}
    for at, holder in enumerate(holders):
        stack.settled(holder.tenant, 1 + CALLS // 2)
        assert charged(stack, holder) == [8 + at] * (CALLS // 2)


def test_a_stream_arrives_as_it_is_written_and_who_leaves_it_is_charged_once(
    stack: Stack, front: Front
) -> None:
    holder = Holder(stack)
    fields = {"authorization": f"Bearer {holder.key}", "x-demo-pause-s": "1", "x-demo-usage": "3,7"}
    address = f"{front.url}/v1/chat/completions"
    with (
        httpx.Client(verify=plain_http.NO_TLS, trust_env=False, timeout=ANSWER_S_MAX) as client,
        client.stream("POST", address, json=STREAM, headers=fields) as answer,
    ):
        first = next(answer.iter_text())
        assert first.startswith("data: ")
        assert "[DONE]" not in first
    stack.settled(holder.tenant, 2)
    assert charged(stack, holder) == [10]


def test_a_refusal_passes_as_it_is(stack: Stack, front: Front) -> None:
    _, key = stack.tenant(1000, admission="strict")
    over = call(front, key, body={"max_tokens": 5000})
    assert (over.status_code, over.headers["x-tollkeeper-reason"]) == (429, "quota_exceeded")
    assert over.json()["error"]["code"]
    assert int(over.headers["retry-after"]) > 0


def test_a_longer_silence_than_it_waits_is_a_504_that_is_charged(stack: Stack, folder: Path) -> None:
    front, holder = fronts.haproxy(stack, folder, silence_s=1), Holder(stack)
    try:
        answer = call(front, holder.key, x_demo_usage="3,7", x_demo_delay_s="3")
        assert answer.status_code == 504
        stack.settled(holder.tenant, 2)
        assert charged(stack, holder) == [10]
    finally:
        front.stop()
