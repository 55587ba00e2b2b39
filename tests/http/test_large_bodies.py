"""Large bodies are read one at a time, by turns of organizations; whoever left has none."""

from __future__ import annotations

import asyncio
import threading

import pytest

from gateway.http.fair_share import REST_S_MAX, TIME_SHARE, LargeBodies
from tests.waiting import eventually


class Readers:
    """Notes who was read, in order, and how many at once; nobody is read before `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.order: list[str] = []
        self.now = self.most = 0

    def reading(self, name: str) -> str:
        self.now += 1
        self.most = max(self.most, self.now)
        self.go.wait(10)
        self.order.append(name)
        self.now -= 1
        return name.upper()

    def asked(self, bodies: LargeBodies[str], organization: int, name: str) -> asyncio.Task[str]:
        return asyncio.ensure_future(bodies.read(organization, lambda: self.reading(name)))


async def test_organizations_take_turns_and_one_body_is_read_at_a_time() -> None:
    bodies: LargeBodies[str] = LargeBodies(asyncio.get_running_loop(), lambda: 0.0)
    readers = Readers()
    greedy = [readers.asked(bodies, 1, f"a{number}") for number in range(5)]
    others = [readers.asked(bodies, 2, "b0"), readers.asked(bodies, 3, "c0"), readers.asked(bodies, 2, "b1")]
    await asyncio.sleep(0)
    readers.go.set()
    assert await asyncio.gather(*greedy, *others) == ["A0", "A1", "A2", "A3", "A4", "B0", "C0", "B1"]
    assert readers.order == ["a0", "a1", "b0", "c0", "a2", "b1", "a3", "a4"]
    assert (readers.most, bodies.turns) == (1, 8)


async def test_who_left_is_not_read_and_what_fails_is_told() -> None:
    bodies: LargeBodies[str] = LargeBodies(asyncio.get_running_loop(), lambda: 0.0)
    readers = Readers()
    first, leaver, last = (readers.asked(bodies, 1, name) for name in "abc")
    await asyncio.sleep(0)
    leaver.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaver
    readers.go.set()
    assert [await first, await last] == ["A", "C"]
    with pytest.raises(ZeroDivisionError):
        await bodies.read(1, lambda: str(1 // 0))
    assert readers.order == ["a", "c"]


async def test_reading_takes_no_more_than_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, clock, rests = asyncio.get_running_loop(), iter([0.0, 0.02, 1.0, 9.0]), list[float]()
    bodies: LargeBodies[str] = LargeBodies(loop, lambda: next(clock))
    later = loop.call_later
    monkeypatch.setattr(loop, "call_later", lambda s, *what: rests.append(s) or later(0, *what))
    for _ in range(2):
        await bodies.read(1, str)
        await eventually(lambda: not bodies._taken)
    assert rests[0] == pytest.approx(0.02 * (1 / TIME_SHARE - 1))
    assert REST_S_MAX in rests
