"""Where a request goes in the program: a stay is the time that its thread spends in one file."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from types import FrameType

from tests.http.fakes import CHAT, post
from tests.http.stage import staged
from tests.tree import ROOT

_PRODUCT = f"{ROOT}/gateway/"


@dataclass
class Walk:
    """The files of the product that ran, in order, one a stay."""

    places: list[str] = field(default_factory=list)

    @property
    def stays(self) -> int:
        """How often another file begins to run, by a call or by a return."""
        return len(self.places)

    @property
    def files(self) -> set[str]:
        """The files that ran."""
        return set(self.places)

    def step(self, frame: FrameType | None, event: str, _: object) -> None:
        """Note where the thread is from now on."""
        there = frame.f_back if frame is not None and event == "return" else frame
        if event not in {"call", "return"} or there is None:
            return
        name = there.f_code.co_filename
        if name.startswith(_PRODUCT) and self.places[-1:] != [name]:
            self.places.append(name)


@contextmanager
def _followed(walked: Walk) -> Iterator[None]:
    before = sys.getprofile()
    sys.setprofile(walked.step)
    try:
        yield
    finally:
        sys.setprofile(before)


async def _ask() -> Walk:
    walked = Walk()
    async with staged(tick_s=60.0) as stage:
        client = await stage.client()
        assert (await client.ask(post(CHAT))).status == 200  # its caller is known from now on
        await stage.settled()
        with _followed(walked):
            assert (await client.ask(post(CHAT))).status == 200
            await stage.settled(2)
    return walked


@cache
def walk() -> Walk:
    """Follow one chat of a known caller on a known connection, from its first byte to its charge."""
    return asyncio.run(_ask())
