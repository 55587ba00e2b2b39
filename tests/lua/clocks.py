"""A world whose clock a test sets: its library reads the time from a key."""

from __future__ import annotations

from functools import cache
from typing import Any

from gateway.counters.layouts import packing
from gateway.counters.redis import scripts
from tests.builders import World, located

CLOCK = "test:clock"
_TIME, _CLOCK = "call('TIME')", f"{{0, call('GET', '{CLOCK}') * 1000}}"


def read(name: str) -> str:
    """Return a file with the test's clock in place of the server's."""
    text = scripts.read(name)
    if name == "lib/state.lua":
        assert _TIME in text
    return text.replace(_TIME, _CLOCK)


@cache
def library() -> scripts.Library:
    """The library with the test's clock in place of the server's."""
    return scripts.assemble(read)


class ClockWorld(World):
    """Its time stands still until it is set."""

    library = staticmethod(library)

    def __init__(self, url: str, at_ms: int, **more: Any) -> None:
        self.at_ms = at_ms
        super().__init__(url, **more)

    def load_library(self) -> None:
        self.set_clock(self.at_ms)
        if not self.client.function_list(self.library().name):
            with located():
                self.client.function_load(self.library().text)

    def set_clock(self, at_ms: int) -> None:
        """Set the time, forward or back."""
        self.at_ms = at_ms
        self.client.set(CLOCK, at_ms)

    def now_ms(self) -> int:
        return self.at_ms

    def run(self, verb: str, call: packing.Call) -> Any:
        names, arguments = call
        with located():
            return self.client.fcall(self.library().functions[verb], len(names), *names, *arguments)
