"""What the loops tell is read as it came last; what is no fact goes elsewhere; silence is told."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gateway.errors import LoopsSilent
from gateway.run.admin_process import FactsReader, LoopFacts, written_fact
from gateway.run.parent_pipe import ParentPipe


class Pipe(ParentPipe):
    """A keeper that says what a test does."""

    def __init__(self) -> None:
        self.say: Callable[[bytes], object] = lambda _: None

    def listen(self, told: Callable[[bytes], object]) -> None:
        self.say = told


def test_the_last_facts_count_until_nothing_came_for_too_long() -> None:
    pipe, now, begun, settings = Pipe(), [0.0], list[bool](), list[bytes]()
    heard = FactsReader(
        pipe, lambda: begun.append(True), settings.append, clock=lambda: now[0], silent_s_max=10.0
    )
    with pytest.raises(LoopsSilent):
        heard.last()
    for holds in (1, 2):
        pipe.say(b'{"log_level":"info"}\n')
        pipe.say(written_fact(LoopFacts({"holds": holds}, {"counters_verified": True})) + b"\n")
    assert heard.last() == LoopFacts({"holds": 2}, {"counters_verified": True})
    assert (begun, len(settings)) == ([True], 2)
    now[0] = 10.1
    with pytest.raises(LoopsSilent):
        heard.last()
